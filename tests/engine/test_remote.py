"""What travels to a node: our code is unpacked once, to a folder that is nobody's but ours, and imports from there."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from norm_fusion.engine import cluster, remote


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_our_code_is_there_once_and_works(temporary: Path) -> None:
    archive, name = cluster.packed()
    folder = remote.unpacked(archive, name)
    assert folder.parent == temporary and name in folder.name
    assert folder.stat().st_mode & 0o077 == 0
    assert remote.unpacked(b"no archive at all", name) == folder, "what is there is not unpacked again"
    code = "import norm_fusion.machine as m; print(m.__file__, m.code()['source'], m.code()['commit'])"
    environment = os.environ | {"PYTHONPATH": str(folder), "NORM_FUSION_COMMIT": "c0ffee"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=temporary)
    file, source, commit = done.stdout.split()
    assert Path(file).is_relative_to(folder)
    assert (source, commit) == (name, "c0ffee"), "the same code, under another roof, has the same hash"


@pytest.mark.parametrize("planted", ["empty", "open", "unfinished", "link"])
def test_somebody_elses_folder_is_not_believed(temporary: Path, planted: str) -> None:
    archive, name = cluster.packed()
    place = temporary / f"norm-fusion-{os.getuid()}-{name}"
    evil = temporary / "evil"
    for folder in (evil, *([place] if planted != "link" else [])):
        (folder / "norm_fusion").mkdir(parents=True)
        (folder / "norm_fusion" / "__init__.py").write_text("raise SystemExit('evil')")
        (folder / remote.WHOLE).touch()
        folder.chmod(0o700)
    match planted:
        case "empty":
            (place / "norm_fusion" / "__init__.py").unlink()
        case "open":
            place.chmod(0o777)
        case "unfinished":
            (place / remote.WHOLE).unlink()
        case "link":
            place.symlink_to(evil)
    folder = remote.unpacked(archive, name)
    assert folder.lstat().st_mode & 0o077 == 0 and not folder.is_symlink()
    assert "evil" not in (folder / "norm_fusion" / "__init__.py").read_text()
    assert (folder / "norm_fusion" / "engine" / "shard.py").is_file()
