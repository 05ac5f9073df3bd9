"""A real Ray cluster of fake cards: nodes that die or fall silent, a driver that does, models that are not there.

One head, two nodes with a card of one model and one with a card of another, all on loopback. Shards' workers are a few
lines of Python (see elsewhere.py); everything between them and the run's folder is real.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from elsewhere import IMPORTS_S, asked, bound_s, cost_s, run_of, running, shards_do
from workers import Watching

from norm_fusion import engine
from norm_fusion.engine import cluster, messages
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case, SpecError

# Not imported here: what is set below has to be set before.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")

CASES = tuple(Case.parse(f"rmsnorm-{rows}x8-float32") for rows in (1, 2, 3, 4, 5, 6))
NAMES = [case.name for case in CASES]
RAY = {
    # As our launchers start every node and driver: where some have it and some not, Ray breaks their connections.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback stays loopback: see cluster.py
}
HEAD = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.1"}


class Nodes:
    """The cluster under test."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.address = str(made.address)

    def add(self, model: str) -> Any:
        return self.made.add_node(num_cpus=2, num_gpus=1, resources={f"accelerator_type:{model}": 1})

    def kill(self, *ones: Any) -> Any:
        """Kill one of these nodes, not that by which this driver is connected, and say which."""
        import ray

        mine = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
        node = next(one for one in ones if one.node_id != mine)
        self.made.remove_node(node, allow_graceful=False)
        return node


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY.items():
            patch.setenv(name, value)
        # Where shards find what their workers do: each test writes it anew.
        folder = tmp_path_factory.mktemp("site")
        shards_do(folder, patch)
        patch.setenv("NORM_FUSION_TEST_SITE", str(folder))
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args=HEAD)
        there = Nodes(made)
        try:
            for model in ("A10G", "A10G", "T4"):
                there.add(model)
            yield there
        finally:
            made.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> Iterator[None]:
    monkeypatch.setattr(cluster, "NODES_S", 1.0)
    yield
    assert not strays(), "a shard's process outlived its task"


def do(monkeypatch: pytest.MonkeyPatch, misdeed: str = "", **more: Any) -> None:
    shards_do(Path(os.environ["NORM_FUSION_TEST_SITE"]), monkeypatch, misdeed, **more)


def strays() -> list[str]:
    """Shards' processes that are there after ten seconds; they die with the task that started them."""
    for _ in range(20):
        mine = [words for _, _, words in running() if "norm_fusion.engine.shard" in words]
        if not mine:
            return []
        time.sleep(0.5)
    return mine


def events(store: RunStore) -> Counter[str]:
    return Counter(event["event"] for event in store.events())


def test_six_shards_with_a_node_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    do(monkeypatch, "time.sleep(2.0)", model="L4")
    two = [nodes.add("L4"), nodes.add("L4")]
    began, told = time.monotonic(), 0

    def listener(where: str, message: messages.Message) -> None:
        nonlocal told
        told += isinstance(message, messages.Process)
        if told == 2 and isinstance(message, messages.Process):
            two.remove(nodes.kill(*two))

    crew = cluster.Cluster(nodes.address, shards=6)
    (outcome,) = engine.carry_out([run_of(tmp_path, asked(CASES), listener, "L4")], crew)
    took = time.monotonic() - began
    nodes.kill(*two)
    store = RunStore(tmp_path / "a")
    assert outcome.exit_code == 0
    assert store.manifest().state == "finished"
    assert Counter(record.case for record in store.records()) == dict.fromkeys(NAMES, 1), "every record once"
    assert any("is submitted again" in note for note in store.manifest().notes)
    assert took < 60


def test_a_shard_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    """Four, one after the other on the only card of its model, with the joining, which is once a run."""
    do(monkeypatch, model="T4", imports_s=IMPORTS_S)
    crew = lambda: cluster.Cluster(nodes.address, shards=4)  # noqa: E731
    assert cost_s(tmp_path, crew, CASES[:4], "T4") < bound_s(2.0)


def test_a_node_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    do(monkeypatch, "time.sleep(1.0)", beat_s=0.5, model="L40S")
    monkeypatch.setattr(cluster, "SILENT_S", 6.0)
    silent = nodes.add("L40S")
    stopped: list[int] = []
    more: list[Any] = []

    def listener(where: str, message: messages.Message) -> None:
        if isinstance(message, messages.Process) and not stopped:
            stopped.extend(tree(silent))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            more.append(nodes.add("L40S"))

    began = time.monotonic()
    crew = cluster.Cluster(nodes.address, shards=1)
    (outcome,) = engine.carry_out([run_of(tmp_path, asked(CASES[:2]), listener, "L40S")], crew)
    took = time.monotonic() - began
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    for node in (silent, *more):
        nodes.kill(node)
    nodes.made.wait_for_nodes()  # until the head too knows that they are gone: the next tests count them
    store = RunStore(tmp_path / "a")
    assert outcome.exit_code == 0
    assert Counter(record.case for record in store.records()) == dict.fromkeys(NAMES[:2], 1)
    assert any("fell silent" in note or "ended early" in note for note in store.manifest().notes)
    assert took < 60


def test_a_driver_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    do(monkeypatch, "time.sleep(1.0)")
    told = {"here": str(Path(__file__).parent), "folder": str(tmp_path), "nodes": nodes, "n": 2}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER.format(**told)])
    store = RunStore(tmp_path / "a")
    wait_for(lambda: len(store.record_files()) >= 2)
    driver.kill()
    driver.wait()
    before = {path.name: path.stat().st_mtime_ns for path in store.record_files()}
    assert 2 <= len(before) < 6
    assert not strays()
    (outcome,) = engine.carry_out(
        [run_of(tmp_path, asked(CASES), Watching(), "A10G")], cluster.Cluster(nodes.address, 2)
    )
    assert outcome.exit_code == 0
    assert Counter(record.case for record in store.records()) == dict.fromkeys(NAMES, 1)
    assert (events(store)["finished"], events(store)["twice"]) == (1, 0), "what was there is not measured again"
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in store.record_files()}.items()


def test_a_model_that_is_not_there(tmp_path: Path, nodes: Nodes) -> None:
    began = time.monotonic()
    (outcome,) = engine.carry_out(
        [run_of(tmp_path, asked(CASES), Watching(), "H100")], cluster.Cluster(nodes.address, None)
    )
    assert time.monotonic() - began < 10
    assert outcome.exit_code == 3
    manifest = RunStore(tmp_path / "a").manifest()
    assert manifest.state == "blocked"
    assert manifest.notes == ["blocked: no node with a GPU of model H100; the cluster has A10G (2), T4 (1)"]


def test_a_worker_that_hangs_is_given_up_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes
) -> None:
    do(monkeypatch, "if case == SECOND: time.sleep(1000)")
    plan = asked(CASES[:3], timeout_s=2.0)
    (outcome,) = engine.carry_out([run_of(tmp_path, plan, Watching(), "A10G")], cluster.Cluster(nodes.address, 1))
    assert outcome.exit_code == 1
    found = {record.case: record for record in RunStore(tmp_path / "a").records()}
    assert "gave no sign of life for 2 s" in str(found[NAMES[1]].reason)
    assert {found[NAMES[i]].status for i in (0, 2)} == {"ok"}


def test_two_models_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    do(monkeypatch)  # every card says that it is an A10G
    runs = [run_of(tmp_path, asked(CASES, f"two/{model}"), Watching(), model) for model in ("A10G", "T4")]
    a10g, t4 = engine.carry_out(runs, cluster.Cluster(nodes.address, None))
    manifest = RunStore(tmp_path / "two" / "A10G").manifest()
    assert (a10g.exit_code, manifest.state, sorted(manifest.done)) == (0, "finished", NAMES)
    assert (t4.exit_code, t4.records) == (3, []), "a card of another model than its node says is refused"
    assert str(t4.problem).endswith(": a GPU of model T4 was asked for, and the card is NVIDIA A10G")


def test_a_shard_whose_process_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes
) -> None:
    site = Path(os.environ["NORM_FUSION_TEST_SITE"]) / "sitecustomize.py"
    site.write_text(
        "import sys\nif 'norm_fusion.engine.shard' in sys.orig_argv: sys.exit('no module named torch here')\n"
    )
    told = Watching()
    (outcome,) = engine.carry_out([run_of(tmp_path, asked(CASES[:1]), told, "A10G")], cluster.Cluster(nodes.address, 1))
    assert outcome.exit_code == 3
    assert "its process ended with code 1: SystemExit: no module named torch here" in " ".join(told.notes)


def test_a_head_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of its own, and a driver of its own, which Ray would end without a word."""
    from ray.cluster_utils import Cluster

    do(monkeypatch, "time.sleep(8.0)")  # the five cases left take longer than HEADLESS_S
    made = Cluster(initialize_head=True, head_node_args=HEAD)
    there = Nodes(made)
    there.add("A10G")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(here=str(Path(__file__).parent), folder=str(tmp_path), nodes=there, n=1)],
        stdout=subprocess.PIPE,
        text=True,
    )
    store = RunStore(tmp_path / "a")
    wait_for(lambda: len(store.record_files()) >= 1)
    for process in made.head_node.all_processes["gcs_server"]:
        process.process.kill()
    began = time.monotonic()
    said, _ = driver.communicate(timeout=90)
    took = time.monotonic() - began
    made.shutdown()
    assert said.split() == ["exit", "3"]
    assert took < 60
    assert store.manifest().state == "partial"
    assert any("head does not answer" in note for note in store.manifest().notes)


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come")


DRIVER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_cluster import CASES, Watching, asked, cluster, engine, run_of
runs = [run_of(Path({folder!r}), asked(CASES), Watching(), "A10G")]
(outcome,) = engine.carry_out(runs, cluster.Cluster({nodes.address!r}, {n}))
print("exit", outcome.exit_code, flush=True)
"""


def test_the_model_has_to_be_chosen_where_there_are_several(tmp_path: Path, nodes: Nodes) -> None:
    with pytest.raises(SpecError, match=r"has A10G \(2\), T4 \(1\): choose with --gpu-model"):
        engine.carry_out([run_of(tmp_path, asked(CASES), Watching())], cluster.Cluster(nodes.address, None))


def tree(node: Any) -> list[int]:
    """The processes of a node, the youngest first."""
    pids = [info[0].process.pid for info in node.all_processes.values()]
    return [*(pid for pid, parent, _ in running() if parent in pids), *pids[::-1]]
