"""One case on the CPU, with contestants that cheat, raise, are missing, or interrupt."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from norm_fusion.backends import builtin
from norm_fusion.backends.builtin import Operands, Prepared, Unavailable
from norm_fusion.measure.case import POISONS, CaseRun
from norm_fusion.records import Measurement, Status
from norm_fusion.spec import ROOF, Case, Effort

CASE = Case.parse("rmsnorm-64x256-float32")
EFFORT = Effort(rounds=5, block=3, warmup_s=0.0, settle_s=0.0)


def run(case: Case = CASE, *profiles: str, **changes: object) -> dict[str, Measurement]:
    settings = {
        "device": torch.device("cpu"),
        "effort": EFFORT,
        "cache_bytes": 2**16,
        "seed": 1,
        "progress": lambda what: None,
        "stop": lambda: False,
    } | changes
    with torch.inference_mode():
        measured = CaseRun(case, profiles or ("torch-eager", "torch-native"), **settings).run()  # type: ignore[arg-type]
    return {m.profile: m for m in measured}


@dataclass
class Sabotage:
    """A contestant that is right when it is watched less closely."""

    honest: Callable[[torch.Tensor], torch.Tensor]
    calls: int = 0
    kept: list[torch.Tensor] = field(default_factory=list)
    known: dict[int, torch.Tensor] = field(default_factory=dict)

    def skips_rows(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[: len(x) // 2] = self.honest(x[: len(x) // 2])
        return y

    def caches(self, x: torch.Tensor) -> torch.Tensor:
        if not self.kept:
            self.kept.append(self.honest(x))
        return self.kept[0]

    def remembers_by_address(self, x: torch.Tensor) -> torch.Tensor:
        """Honest in the calls before timing, where it would be found at once."""
        self.calls += 1
        if self.calls <= 2 * len(POISONS):
            return self.honest(x)
        if x.data_ptr() not in self.known:
            self.known[x.data_ptr()] = self.honest(x)
        return self.known[x.data_ptr()]

    def changes_its_input(self, x: torch.Tensor) -> torch.Tensor:
        y = self.honest(x)
        x[0, 0] += 1
        return y

    def spoils_its_input_later(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = self.honest(x)
        if self.calls == 6:  # the second of the timed calls' warm-up: after the checks before timing
            x[0, 0] += 1
        return y

    def returns_float64(self, x: torch.Tensor) -> torch.Tensor:
        return self.honest(x).double()

    def turns_lazy(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.honest(x) if self.calls <= 4 else torch.zeros_like(x)


@pytest.fixture
def contestant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces torch-native by one of the saboteurs."""
    real = builtin.prepare

    def install(name: str) -> None:
        def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
            if profile != "torch-native":
                return real(profile, operands, device)
            saboteur = Sabotage(lambda x: F.rms_norm(x, operands.shape, operands.weight, operands.eps))
            return Prepared(getattr(saboteur, name), "sabotage")

        monkeypatch.setattr(builtin, "prepare", prepare)

    return install


def test_a_case_gives_every_contestant_and_the_roof_the_same_number_of_samples() -> None:
    measured = run()
    assert list(measured) == ["torch-eager", "torch-native", ROOF]
    for m in measured.values():
        assert m.status is Status.OK
        (series,) = m.series
        assert (series.timer, series.cache) == ("wall", "cold")
        assert [len(block) for block in series.blocks] == [3] * 6, "five rounds, filled up to a whole balanced square"
        assert series.rotation == 2


def test_only_profiles_that_serve_the_operator_take_part() -> None:
    assert set(run(CASE, "torch-native", "triton-fused-rmsnorm", "triton-fused-layernorm")) == {
        "torch-native",
        "triton-fused-rmsnorm",
        ROOF,
    }


def test_triton_on_a_cpu_is_checked_and_has_no_latency() -> None:
    m = run(CASE, "triton-fused-rmsnorm")["triton-fused-rmsnorm"]
    assert m.status is Status.CHECKED
    assert m.series == []
    assert "interpreter" in str(m.resolved_backend)
    assert m.max_rel_error is not None
    assert m.max_rel_error > 0, "it was compared with itself"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("skips_rows", "before timing"),
        ("caches", "above the tolerance"),
        ("remembers_by_address", "after timing"),
        ("changes_its_input", "changed its input"),
        ("returns_float64", "expected torch.float32"),
        ("turns_lazy", "above the tolerance"),
    ],
)
def test_sabotage_is_wrong_and_costs_its_own_row(contestant: Callable[[str], None], name: str, says: str) -> None:
    contestant(name)
    measured = run()
    assert measured["torch-native"].status is Status.WRONG
    assert says in str(measured["torch-native"].reason)
    assert measured["torch-eager"].status is Status.OK


@pytest.mark.parametrize("cache_bytes", [1, 2**16], ids=["one-set", "several-sets"])
def test_an_input_spoiled_during_timing_spoils_the_case(contestant: Callable[[str], None], cache_bytes: int) -> None:
    contestant("spoils_its_input_later")
    measured = run(cache_bytes=cache_bytes)
    assert {m.status for m in measured.values()} == {Status.WRONG}
    assert "an input was changed during timing" in str(measured["torch-eager"].reason)


def test_a_contestant_that_raises_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtin.prepare

    def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
        if profile == "torch-native":
            raise RuntimeError("no kernel image\nlong trace")
        if profile == "torch-compile":
            raise Unavailable("no compiler", "get one")
        return real(profile, operands, device)

    monkeypatch.setattr(builtin, "prepare", prepare)
    measured = run(CASE, "torch-eager", "torch-native", "torch-compile")
    assert measured["torch-eager"].status is Status.OK
    assert (measured["torch-native"].status, measured["torch-native"].reason) == (
        Status.FAILED,
        "RuntimeError: no kernel image",
    )
    missing = measured["torch-compile"]
    assert (missing.status, missing.reason, missing.remedy) == (Status.UNAVAILABLE, "no compiler", "get one")


def test_a_case_that_cannot_fit_fails_before_it_takes_the_machine_down() -> None:
    measured = run(Case.parse("rmsnorm-1000000x200000-float32"))
    assert {m.status for m in measured.values()} == {Status.FAILED}
    assert "out of memory: rmsnorm-1000000x200000-float32 needs about" in str(measured["torch-eager"].reason)


def test_an_interrupted_case_keeps_its_samples_and_says_so() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    measured = run(stop=stop)
    for m in measured.values():
        assert 0 < sum(len(block) for block in m.series[0].blocks) < 15
        assert any("interrupted" in note for note in m.notes)


def test_without_a_compiler_torch_compile_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    m = run(CASE, "torch-eager", "torch-compile")["torch-compile"]
    assert m.status is Status.UNAVAILABLE
    assert "C++ compiler" in str(m.reason)
    assert "apt-get install g++" in str(m.remedy)


def test_a_program_that_a_contestant_runs_and_lacks_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
        def launch(x: torch.Tensor) -> torch.Tensor:
            try:
                subprocess.run(["no-such-program"], check=True)
            except FileNotFoundError as error:
                raise RuntimeError("the compiler failed") from error
            return x

        return Prepared(launch, "lacking")

    monkeypatch.setattr(builtin, "prepare", prepare)
    m = run(CASE, "torch-native")["torch-native"]
    assert m.status is Status.UNAVAILABLE
    assert "'no-such-program', which is not on PATH" in str(m.reason)


def test_torch_compile_is_really_compiled() -> None:
    m = run(CASE, "torch-eager", "torch-compile")["torch-compile"]
    assert m.status is Status.OK
    assert "torch.compile" in str(m.resolved_backend)
