"""What the driver and the kernel say: of a card made up, of one that answers nothing, of none; of the processors."""

import builtins
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from norm_fusion import machine
from norm_fusion.machine import Card, Host

UUID = "GPU-11111111-2222"


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml(ModuleType):
    """One card. `silent`: the calls that it does not support."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1, 2, 0, 1

    def __init__(self, silent: Sequence[str] = (), pids: Sequence[int] = ()) -> None:
        super().__init__("pynvml")
        self.silent, self.pids, self.asked = set(silent), list(pids), []
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("nvml"):
            self.asked.append(name)
            if name in self.silent:

                def unsupported(*_: object) -> None:
                    raise NVMLError("Not Supported")

                return unsupported
        return found

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise NVMLError("Not Found")
        return "handle"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 345, 2: 2600}[kind]

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:  # noqa: N802
        return [1, 0]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [0, 1]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 34

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 71_500

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return 0x24

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


FACTS = {
    "driver": "580.159.04",
    "power_limit_w": 700.0,
    "sm_clock_max_mhz": 1980,
    "memory_clock_max_mhz": 2619,
    "ecc": True,
    "mig": False,
}
READ = {
    "sm_clock_mhz": 345,
    "memory_clock_mhz": 2600,
    "temperature_c": 34,
    "power_w": 71.5,
    "throttle_reasons": "0x24",
    "other_processes": 0,
}


def read(card: Card, ours: Sequence[int] = (1,)) -> dict[str, Any]:
    found = card.conditions(set(ours)).model_dump(exclude_none=True)
    assert found.pop("device_uuid") == card.uuid
    assert found.pop("monotonic_s") > 0 and found.pop("at").endswith("+00:00")
    return found


@pytest.mark.parametrize("uuid", [UUID, UUID.removeprefix("GPU-")], ids=["nvml's", "torch's"])
def test_a_card_is_found_by_either_form_of_its_uuid(nvml: FakeNvml, uuid: str) -> None:
    card = Card(uuid)
    assert card.facts() == FACTS
    assert read(card) == READ


@pytest.mark.parametrize(
    ("ours", "there", "others"),
    [
        ([10, 11], [], 0),
        ([10, 11], [11], 0),
        ([10, 11], [11, 12], 1),
        ([10, 11], [10, 11, 12, 13], 2),
        ([10, 11], [4711], 0),  # in a container: by the host's numbers, and one of them is ours
        ([10, 11], [4711, 4712], 1),
        ([], [4711], 1),
        ([], [], 0),
    ],
)
def test_company_is_who_is_not_ours(nvml: FakeNvml, ours: list[int], there: list[int], others: int) -> None:
    nvml.pids = there
    assert Card(UUID).conditions(set(ours)).other_processes == others


@pytest.mark.parametrize(
    ("silent", "facts", "conditions"),
    [
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_w"}, set()),
        ("nvmlDeviceGetMaxClockInfo", {"sm_clock_max_mhz", "memory_clock_max_mhz"}, set()),
        ("nvmlDeviceGetEccMode", {"ecc"}, set()),
        ("nvmlDeviceGetMigMode", {"mig"}, set()),
        ("nvmlDeviceGetClockInfo", set(), {"sm_clock_mhz", "memory_clock_mhz"}),
        ("nvmlDeviceGetTemperature", set(), {"temperature_c"}),
        ("nvmlDeviceGetPowerUsage", set(), {"power_w"}),
        ("nvmlDeviceGetCurrentClocksEventReasons", set(), {"throttle_reasons"}),
        ("nvmlDeviceGetComputeRunningProcesses", set(), {"other_processes"}),
    ],
)
def test_what_a_card_does_not_say_is_missing_and_nothing_else(
    nvml: FakeNvml, silent: str, facts: set[str], conditions: set[str]
) -> None:
    nvml.silent = {silent}
    card = Card(UUID)
    assert set(FACTS) - set(card.facts()) == facts
    assert set(READ) - set(read(card)) == conditions


@pytest.mark.parametrize("silent", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_driver_that_cannot_be_reached_says_nothing(nvml: FakeNvml, silent: str) -> None:
    nvml.silent = {silent}
    card = Card(UUID)
    assert card.ask is None and card.facts() == {} and read(card) == {}


def test_a_card_that_is_not_there_says_nothing(nvml: FakeNvml) -> None:
    card = Card("GPU-other")
    assert card.facts() == {} and read(card) == {}


def test_without_the_library_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "pynvml":
            raise ModuleNotFoundError("No module named 'pynvml'", name="pynvml")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    card = Card(UUID)
    assert card.facts() == {} and read(card) == {}


def test_nothing_of_a_card_is_ever_changed(nvml: FakeNvml) -> None:
    card = Card(UUID)
    card.facts()
    card.conditions({1})
    assert nvml.asked and not [name for name in nvml.asked if "Set" in name or "Reset" in name]


def ticks(monkeypatch: pytest.MonkeyPatch, *readings: tuple[int, int] | None) -> None:
    left = iter(readings)
    monkeypatch.setattr(machine, "cpu_ticks", lambda: next(left))


def test_steal_is_its_share_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(monkeypatch, (1000, 100), (1100, 130), (1200, 130), (1200, 130))
    host = Host()
    assert host.conditions().steal == pytest.approx(0.3)
    assert host.conditions().steal == 0.0
    assert host.conditions().steal is None, "no time has passed"


def test_steal_is_unknown_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(monkeypatch, None, (1000, 100), None, (1000, 100), (2000, 200))
    host = Host()
    assert [host.conditions().steal for _ in range(4)] == [None, None, None, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpu  10 20 30 40 50 60 70 80 90 95\ncpu0 1\n", (360, 80)),  # guests' time is in the users' already
        ("cpu  10 20 30\n", None),
        ("cpu  a b c d e f g h\n", None),
        ("", None),
    ],
)
def test_ticks_are_read_from_the_kernels_first_line(text: str, found: tuple[int, int] | None, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(text)
    assert machine.cpu_ticks(tmp_path) == found


def test_a_machine_without_those_files_has_no_ticks_and_a_processor_of_a_kind(tmp_path: Path) -> None:
    assert machine.cpu_ticks(tmp_path) is None
    assert machine.cpu_name(tmp_path) in (platform.processor(), platform.machine())


def test_an_instance_of_a_card_is_read_as_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sliced(FakeNvml):
        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
            if uuid != "MIG-3333":
                raise NVMLError("Not Found")
            return "instance"

        def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
            return {"instance": "handle"}[handle]

    monkeypatch.setitem(sys.modules, "pynvml", Sliced())
    assert read(Card("3333")) == READ


def test_reasons_are_asked_by_their_old_name_where_the_new_one_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(FakeNvml):
        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
            return 0x8

    monkeypatch.setitem(sys.modules, "pynvml", Old(silent=["nvmlDeviceGetCurrentClocksEventReasons"]))
    found = Card(UUID).conditions({1})
    assert (found.throttle_reasons, found.throttle_bits) == ("0x8", 8)


def test_the_cards_that_a_process_may_use(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.nvmlDeviceGetCount = lambda: 2  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByIndex = lambda index: f"card {index}"  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"  # type: ignore[attr-defined]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible() == ["GPU-card 0", "GPU-card 1"]
    for said, found in (("1", ["1"]), ("GPU-b, 0", ["GPU-b", "0"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert machine.visible() == found


def test_code_that_travelled_says_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.code()
    package = tmp_path / "a" / "norm_fusion"
    package.mkdir(parents=True)
    monkeypatch.setattr(machine.norm_fusion, "__file__", str(package / "__init__.py"))
    assert set(machine.code()) == {"source"} and machine.code()["source"] != here["source"]
    monkeypatch.setenv(machine.COMMIT, "c0ffee+")
    assert machine.code() | {"source": ""} == {"source": "", "commit": "c0ffee", "dirty": True}
