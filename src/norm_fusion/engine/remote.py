"""What travels to a cluster's node: it unpacks our code there, runs a shard's process and passes on what that tells.

Nothing but the standard library: it is sent by value, to nodes where nothing of ours is installed.
"""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

# Of what a shard's process printed, this much of the end is passed on where it ended badly.
LAST_WORDS = 4000
# In the folder that our code was unpacked to, when all of it was.
WHOLE = "whole"


def shard(task: bytes, archive: bytes, name: str, settings: Mapping[str, str]) -> Iterator[bytes]:
    """Run a shard's process in this Ray task and yield its messages, a line of JSON each; the first says where.

    `archive`: our package, zipped, and `name`, which tells it from others; `settings`: its environment, beside ours.
    """
    yield json.dumps({"kind": "started", "where": _where()}).encode()
    code = unpacked(archive, name)
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("OMP_NUM_THREADS", None)  # Ray sets it to 1: a CPU's figures are of all its threads
    process = subprocess.Popen(
        [sys.executable, "-m", "norm_fusion.engine.shard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    said: list[bytes] = []
    printing = threading.Thread(target=_print, args=(process, said), daemon=True)
    printing.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(task + b"\n")
            process.stdin.close()
        yield from (line for line in process.stdout)  # a generator: what Ray sends is none of the file's
        exit_code = process.wait()
        printing.join(timeout=5)
        words = b"".join(said).decode(errors="replace").strip()[-LAST_WORDS:]
        yield json.dumps({"kind": "gone", "code": exit_code, "words": words if exit_code else ""}).encode()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _where() -> str:
    """Host, Ray's name for the node, and the cards that this task has."""
    import ray

    cards = ",".join(str(card) for card in ray.get_gpu_ids())
    node = ray.get_runtime_context().get_node_id()[:6]
    return f"{os.uname().nodename}/{node}{f' gpu {cards}' if cards else ''}"


def unpacked(archive: bytes, name: str) -> Path:
    """The folder with our package in it, under a name of its content: unpacked once a node, and nobody's but ours."""
    folder = Path(tempfile.gettempdir()) / f"norm-fusion-{os.getuid()}-{name}"
    if _ours(folder):
        return folder
    made = Path(tempfile.mkdtemp(prefix="norm-fusion-"))  # mode 0700
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(made)
    (made / WHOLE).touch()
    with suppress(OSError):  # another shard of this node was faster, or somebody's folder has the name
        made.rename(folder)
        return folder
    return made


def _ours(folder: Path) -> bool:
    """A folder of this user's, that nobody else may write to, unpacked to its end."""
    with suppress(OSError):
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        return mine and (folder / WHOLE).is_file() and (folder / "norm_fusion" / "__init__.py").is_file()
    return False


def _print(process: subprocess.Popen[bytes], said: list[bytes]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        del said[:-200]
