"""One case on the CPU, with contestants that cheat, raise, are missing, or interrupt."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contest import CASE, CPU, EFFORT, FakeParent, install, measure, norm

from norm_fusion import backends
from norm_fusion.backends import saboteurs
from norm_fusion.backends.builtin import Operands, Prepared, Unavailable
from norm_fusion.backends.passes import Launch
from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.measure import case as case_module
from norm_fusion.measure import environment
from norm_fusion.measure.case import CaseRun
from norm_fusion.measure.clocks import tampered
from norm_fusion.metrics import percentile
from norm_fusion.records import Code, Measurement, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.spec import CONTROL, ROOF, Case, Effort, Shard

LONGER = Effort(rounds=10, block=5, warmup_s=0.0, settle_s=0.0)


def state(m: Measurement) -> tuple[Status, Code | None]:
    return m.status, m.code


def test_every_contestant_the_control_and_the_roof_have_the_same_series() -> None:
    measured, parent = measure(control=True)
    assert list(measured) == ["torch-eager", "torch-native", CONTROL, ROOF]
    for m in measured.values():
        assert m.status is Status.OK
        assert [(s.timer, s.cache, s.rotation) for s in m.series] == [("wall", "cold", 4), ("wall", "hot", 1)]
        for series in m.series:
            assert [len(block) for block in series.blocks] == [3] * 8, "five rounds, filled up to whole squares of four"
            assert len(series.probes_ms) == 8
    assert measured[CONTROL].control_of == "torch-native"
    assert measured[CONTROL].resolved_backend == measured["torch-native"].resolved_backend
    assert measured[ROOF].resolved_backend == "Tensor.clone"
    assert (measured[ROOF].read_gbps, measured[ROOF].write_gbps) == (10.0, 5.0)
    assert measured["torch-native"].read_gbps == 10.0
    assert parent.verdicts and {wrong for _, _, wrong in parent.verdicts} == {None}
    assert {name for name, _, _ in parent.verdicts} == {"torch-eager", "torch-native", CONTROL}


@pytest.mark.parametrize("times", [1, 3])
def test_everyone_is_measured_by_the_parents_clock_as_often_as_it_asks(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeParent.__init__
    monkeypatch.setattr(FakeParent, "__init__", lambda self: (real(self), setattr(self, "brackets", times))[0])
    measured, parent = measure()
    begun, ended = parent.events("bracket"), parent.events("bracket-end")
    names = [each["profile"] for each in begun]
    assert sorted(names) == sorted(list(measured) * times)
    assert len([name for name, before in zip(names, [None, *names], strict=False) if name != before]) == len(measured)
    for each in begun:
        p50 = percentile(measured[each["profile"]].series[0].blocks, 50)
        assert each == {"case": CASE.name, "profile": each["profile"], "timer": "wall", "p50_ms": p50}
    assert all(each["calls"] >= 1 and each["told_ms"] > 0 for each in ended)
    order = [event for event, _ in parent.sent if event.startswith("bracket")]
    assert order == ["bracket", "bracket-end"] * len(begun)


def test_brackets_last_long_enough_for_another_clock() -> None:
    def sleeps(p: Operands) -> Launch:
        import time

        return lambda x: (time.sleep(0.003), norm(p)(x))[1]

    with pytest.MonkeyPatch.context() as patch:
        install(patch, torch_native=sleeps)
        measured, parent = measure("torch-native")
    p50 = percentile(measured["torch-native"].series[0].blocks, 50)
    calls = [
        ended["calls"]
        for begun, ended in zip(parent.events("bracket"), parent.events("bracket-end"), strict=True)
        if begun["profile"] == "torch-native"
    ]
    assert len(calls) == 1 and calls[0] * p50 == pytest.approx(20, abs=5)


def test_as_many_steps_are_told_as_the_worker_counts() -> None:
    from norm_fusion.measure.worker import _steps

    for profiles, more in (
        (("torch-eager", "torch-native", "triton-fused-layernorm"), {}),
        (("torch-native",), {"series": ("wall",)}),
        (("torch-native",), {"series": ("wall-hot",)}),
        (("torch-native",), {"yardsticks": False}),
        (("torch-eager", "torch-native"), {"skip": ((CASE.name, "torch-eager"), (CASE.name, CONTROL))}),
    ):
        _, parent = measure(*profiles, control=True, **more)
        shard = Shard("a", (CASE,), profiles, "cpu", **more)  # type: ignore[arg-type]
        assert len(parent.events("progress")) == _steps(shard, "cpu")


def test_only_profiles_that_serve_the_operator_take_part() -> None:
    measured, _ = measure("torch-native", "triton-fused-rmsnorm", "triton-fused-layernorm", "layernorm=no:where")
    assert set(measured) == {"torch-native", "triton-fused-rmsnorm", ROOF}


def test_what_is_skipped_is_left_out_of_this_case_alone() -> None:
    skip = ((CASE.name, "torch-eager"), ("rmsnorm-1x1-float32", "torch-native"))
    measured, _ = measure(skip=skip, control=True)
    assert set(measured) == {"torch-native", CONTROL, ROOF}
    without = (*skip, (CASE.name, CONTROL))
    assert set(measure(skip=without, control=True)[0]) == {"torch-native", ROOF}
    with_original = ((CASE.name, "torch-native"),)
    assert measure(skip=with_original, control=True)[0][CONTROL].control_of == "torch-eager"


def test_without_yardsticks_there_are_the_contestants_alone() -> None:
    measured, _ = measure(yardsticks=False)
    assert set(measured) == {"torch-eager", "torch-native"}
    assert all(m.status is Status.OK for m in measured.values())


def test_nobody_left_is_a_case_of_the_roof_alone() -> None:
    everyone = ((CASE.name, "torch-eager"), (CASE.name, "torch-native"))
    assert set(measure(skip=everyone, control=True)[0]) == {ROOF}


@pytest.mark.parametrize(
    ("asked", "sampled"),
    [
        (("host",), [("host", "cold")]),
        (("wall",), [("wall", "cold"), ("wall", "hot")]),
        (("wall-hot", "host-cold"), [("wall", "hot"), ("host", "cold")]),
        ((), [("wall", "cold"), ("wall", "hot"), ("host", "cold")]),
    ],
)
def test_series_that_are_not_asked_for_are_not_sampled(
    asked: tuple[str, ...], sampled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_module, "CPU_SERIES", (*case_module.CPU_SERIES, ("host", "cold")))
    measured, _ = measure("torch-native", series=asked)
    assert [(s.timer, s.cache) for s in measured["torch-native"].series] == sampled


def test_the_order_in_the_ring_is_each_processs_own() -> None:
    def order(seed: int) -> list[str]:
        shard = Shard("a", (CASE,), ("torch-eager", "torch-native"), "cpu", seed=seed)
        run = CaseRun(CASE, shard, CPU, EFFORT, 2**16, {}, FakeParent(seed), lambda: False)  # type: ignore[arg-type]
        with torch.inference_mode():
            run.run()
        assert run.ring is not None
        return [contestant.name for contestant in run.ring.contestants]

    orders = [order(seed) for seed in range(4)]
    assert len({tuple(each) for each in orders}) > 1
    assert order(0) == orders[0]


def test_triton_on_a_cpu_is_checked_and_has_no_latency() -> None:
    m = measure("triton-fused-rmsnorm")[0]["triton-fused-rmsnorm"]
    assert m.status is Status.CHECKED
    assert m.series == []
    assert "interpreter" in str(m.resolved_backend)
    assert m.max_rel_error is not None
    assert m.max_rel_error > 0, "it was compared with itself"


@pytest.mark.parametrize("name", ["add-rmsnorm", "add-layernorm", "rmsnorm-backward", "add-layernorm-backward"])
def test_sums_and_backwards_are_measured_like_the_others(name: str) -> None:
    case = Case.parse(f"{name}-64x256-float32")
    fused = "triton-fused-layernorm" if case.op.centred else "triton-fused-rmsnorm"
    measured, parent = measure("torch-eager", "torch-native", "torch-compile", fused, case=case)
    assert {name: m.status for name, m in measured.items()} == {
        "torch-eager": Status.OK,
        "torch-native": Status.OK,
        "torch-compile": Status.OK,
        fused: Status.CHECKED,
        ROOF: Status.OK,
    }
    for profile in ("torch-eager", "torch-native", "torch-compile"):
        assert [(s.timer, s.cache) for s in measured[profile].series] == [("wall", "cold")]
        assert measured[profile].checked_rows == 64
    assert len(parent.verdicts) == 6 and all(wrong is None for _, _, wrong in parent.verdicts)
    (record, _), *_ = records_of(case, list(measured.values()), run_id="a", fingerprint="b", replicate=0)
    assert (record.op, record.pass_, record.tolerance) == (case.op, case.pass_, case.tolerance)


def test_kernels_whose_gradients_are_zeros_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatch, "__call__", lambda *_: None)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, getattr(torch, name.replace("empty", "zeros")))
    m = measure("triton-fused-rmsnorm", case=Case.parse("rmsnorm-backward-64x256-float32"))[0]["triton-fused-rmsnorm"]
    assert (m.status, m.code) == (Status.WRONG, Code.WRONG_OUTPUT)


def test_the_first_process_compares_all_rows_and_the_others_a_sample() -> None:
    large = Case.parse("rmsnorm-600x64-float32")
    for replicate, rows in ((0, 600), (1, 256)):
        measured, _ = measure("torch-native", case=large, replicate=replicate, series=("wall-cold",))
        assert measured["torch-native"].checked_rows == rows


def test_where_the_first_choice_cannot_run_another_is_the_control() -> None:
    measured, _ = measure("no.such:thing", "torch-native", "torch-eager", control=True)
    assert state(measured["no.such:thing"]) == (Status.UNAVAILABLE, Code.MISSING)
    assert measured[CONTROL].status is Status.OK
    assert measured[CONTROL].control_of == "torch-native"


def test_what_cannot_be_timed_is_checked_by_the_first_process_only() -> None:
    m = measure("triton-fused-rmsnorm", "torch-native", replicate=1)[0]["triton-fused-rmsnorm"]
    assert state(m) == (Status.UNAVAILABLE, Code.MISSING)
    assert "only the first process" in str(m.reason)


@pytest.fixture
def saboteur() -> Any:
    """The shipped saboteurs' names; what they remember is forgotten before and after."""

    def forget() -> None:
        saboteurs._kept.clear()
        saboteurs._calls.update(dict.fromkeys(saboteurs._calls, 0))
        tampered()

    forget()
    yield lambda name: f"norm_fusion.backends.saboteurs:{name}"
    forget()


@pytest.mark.parametrize(
    ("name", "status", "code", "says"),
    [
        ("stale_output", Status.WRONG, Code.WRONG_OUTPUT, "read at once"),
        ("mutated_input", Status.WRONG, Code.MUTATED_INPUT, "while it was timed"),
        ("wrong_dtype", Status.WRONG, Code.WRONG_KIND, "float8"),
        ("wrong_shape", Status.WRONG, Code.WRONG_KIND, "shape"),
        ("patched_clock", Status.WRONG, Code.TIMER, "it replaced time.perf_counter_ns"),
        ("skipped_rows", Status.WRONG, Code.WRONG_OUTPUT, ""),
        ("raises_late", Status.FAILED, Code.RAISED, "RuntimeError: the fiftieth call"),
    ],
)
@pytest.mark.parametrize("sets_of", [2**17, 1], ids=["rotation", "one-set"])
def test_a_saboteur_costs_its_own_row(
    saboteur: Callable[[str], str], name: str, status: Status, code: Code, says: str, sets_of: int
) -> None:
    measured, parent = measure("torch-native", saboteur(name), "torch-eager", effort=LONGER, cache_bytes=sets_of)
    m = measured.pop(saboteur(name))
    assert state(m) == (status, code)
    assert says in str(m.reason)
    for other in measured.values():
        assert state(other) == (Status.OK, None)
        hot = [("wall", "hot")] * (sets_of > 1)  # no cache of one byte holds what a producer leaves there
        assert [(s.timer, s.cache) for s in other.series] == [("wall", "cold"), *hot]
    assert {wrong for profile, _, wrong in parent.verdicts if profile != saboteur(name)} <= {None}


def test_who_raises_late_leaves_and_the_others_series_is_taken_anew(saboteur: Callable[[str], str]) -> None:
    measured, _ = measure("torch-native", saboteur("raises_late"), effort=LONGER)
    assert measured[saboteur("raises_late")].series == []
    for name in ("torch-native", ROOF):
        assert [len(s.blocks) for s in measured[name].series] == [10, 10]
        assert [sorted(s.positions) for s in measured[name].series] == [[0] * 5 + [1] * 5] * 2


def test_who_is_lost_in_a_later_series_leaves_the_others_earlier_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def late(p: Operands) -> Launch:
        def launch(x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if x.data_ptr() != addresses.setdefault("last", x.data_ptr()):
                addresses["last"], addresses["same"] = x.data_ptr(), 0
            addresses["same"] = addresses.get("same", 0) + 1
            if addresses["same"] > 6:  # on one input again and again: it is hot
                raise RuntimeError("too hot")
            return norm(p)(x)

        return launch

    addresses: dict[str, int] = {}
    install(monkeypatch, torch_native=late)
    measured, _ = measure()
    assert state(measured["torch-native"]) == (Status.FAILED, Code.RAISED)
    assert [(s.timer, s.cache) for s in measured["torch-eager"].series] == [("wall", "cold"), ("wall", "hot")]
    assert measured["torch-eager"].status is Status.OK


def test_an_input_spoiled_where_nobody_watches_spoils_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def spoils(p: Operands) -> Launch:
        def launch(x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            y = norm(p)(x)
            if calls == 12:
                x[1, 0] += 1  # of sixteen rows one is watched on a CPU
            return y

        return launch

    install(monkeypatch, torch_native=spoils)
    measured, _ = measure("torch-native", "torch-eager", "no.such:thing", cache_bytes=2**19)
    assert state(measured.pop("no.such:thing")) == (Status.UNAVAILABLE, Code.MISSING), "it was not there"
    assert {state(m) for m in measured.values()} == {(Status.WRONG, Code.MUTATED_INPUT)}
    assert "an input was changed during timing" in str(measured["torch-eager"].reason)


def test_a_contestant_that_cannot_be_prepared_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(p: Operands) -> Launch:
        raise RuntimeError("no kernel image\nlong trace")

    def missing(p: Operands) -> Launch:
        raise Unavailable("no compiler", "get one")

    def full(p: Operands) -> Launch:
        def launch(x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        calls = iter([norm(p)] * 5)
        return lambda x: next(calls, launch)(x)

    install(monkeypatch, torch_native=fails, torch_compile=missing, torch_compile_max=full)
    measured, _ = measure("torch-eager", "torch-native", "torch-compile", "torch-compile-max")
    assert measured["torch-eager"].status is Status.OK
    failed = measured["torch-native"]
    assert (*state(failed), failed.reason) == (Status.FAILED, Code.RAISED, "RuntimeError: no kernel image")
    absent = measured["torch-compile"]
    assert (*state(absent), absent.reason, absent.remedy) == (
        Status.UNAVAILABLE,
        Code.MISSING,
        "no compiler",
        "get one",
    )
    assert state(measured["torch-compile-max"]) == (Status.FAILED, Code.OUT_OF_MEMORY)


def fails_at(nth: int, error: Exception) -> Callable[[Operands], Launch]:
    def make(p: Operands) -> Launch:
        calls = 0

        def launch(x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise error
            return norm(p)(x)

        return launch

    return make


@pytest.mark.parametrize("nth", range(1, 7))
def test_who_raises_while_it_is_examined_leaves_the_input_as_it_was(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the first one measured on it would be called a cheat."""
    install(monkeypatch, torch_native=fails_at(nth, RuntimeError("no")))
    measured, _ = measure("torch-eager", "torch-native")
    assert state(measured["torch-native"]) == (Status.FAILED, Code.RAISED)
    assert state(measured["torch-eager"]) == (Status.OK, None)


@pytest.mark.parametrize("error", [MemoryError("no memory"), torch.OutOfMemoryError("no memory")])
def test_who_runs_out_of_memory_while_it_is_timed_costs_its_own_row(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, torch_native=fails_at(9, error))
    measured, _ = measure("torch-eager", "torch-native")
    assert state(measured["torch-native"]) == (Status.FAILED, Code.OUT_OF_MEMORY)
    assert state(measured["torch-eager"]) == (Status.OK, None)


@pytest.mark.parametrize("guilty", ["torch-eager", "torch-native"])
def test_who_changes_its_input_under_the_parents_clock_is_the_one_who_leaves(
    guilty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    under: list[str] = []
    real = FakeParent.ask

    def ask(self: FakeParent, event: str, **data: Any) -> dict[str, Any]:
        if event == "bracket":
            under.append(data["profile"])
        elif event == "bracket-end":
            under.clear()
        return real(self, event, **data)

    def spoils(p: Operands) -> Launch:
        def launch(x: torch.Tensor) -> torch.Tensor:
            if under == [guilty]:
                x[0, 0] += 1
            return norm(p)(x)

        return launch

    monkeypatch.setattr(FakeParent, "ask", ask)
    install(monkeypatch, **{guilty.replace("-", "_"): spoils})
    measured, _ = measure()
    assert state(measured.pop(guilty)) == (Status.WRONG, Code.MUTATED_INPUT)
    assert {state(m) for m in measured.values()} == {(Status.OK, None)}


def test_who_has_no_series_says_so() -> None:
    m = measure("torch-native", series=("device",))[0]["torch-native"]
    assert (*state(m), m.reason) == (Status.FAILED, Code.RAISED, "not timed")


def test_an_interruption_of_the_warm_up_is_nobodys_failure() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3  # when two contestants and the roof are prepared

    measured, _ = measure(stop=stop)
    assert {state(m) for m in measured.values()} == {(Status.UNAVAILABLE, Code.INTERRUPTED)}


def test_a_case_that_cannot_fit_fails_before_it_takes_the_machine_down() -> None:
    measured, _ = measure(case=Case.parse("rmsnorm-1000000x200000-float32"))
    assert {state(m) for m in measured.values()} == {(Status.FAILED, Code.OUT_OF_MEMORY)}
    assert "out of memory: rmsnorm-1000000x200000-float32 needs about" in str(measured["torch-eager"].reason)
    assert "use fewer rows" in str(measured["torch-eager"].remedy)


@pytest.mark.parametrize("when", ["prepared", "called"])
def test_a_contestant_that_takes_too_much_memory_costs_its_own_row(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    install(monkeypatch, torch_native=(lambda p: full(p.weight)) if when == "prepared" else (lambda p: full))
    measured, _ = measure()
    assert state(measured["torch-native"]) == (Status.FAILED, Code.OUT_OF_MEMORY)
    assert measured["torch-native"].reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert measured["torch-eager"].status is Status.OK


def test_an_interrupted_case_keeps_its_samples_and_says_so() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    measured, _ = measure(stop=stop)
    for m in measured.values():
        assert m.status is Status.OK
        (series,) = m.series
        assert 0 < sum(len(block) for block in series.blocks) < 15
        assert any("interrupted" in note for note in m.notes)


def test_who_was_not_reached_before_an_interruption_is_not_at_fault() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1

    measured, _ = measure(stop=stop, control=True)
    for name in ("torch-native", CONTROL, ROOF):
        assert state(measured[name]) == (Status.UNAVAILABLE, Code.INTERRUPTED)
        assert measured[name].remedy == "run it again"


def test_rotation_that_does_not_leave_the_cache_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_module, "sets_in_rotation", lambda *_: 2)
    measured, _ = measure("torch-native", cache_bytes=2**20)
    assert measured["torch-native"].notes == ["not cold: 2 sets in rotation cover 0.25 MiB of a 1 MiB cache"]
    assert measure("torch-native")[0]["torch-native"].notes == []


def test_what_is_not_judged_is_timed_and_not_examined() -> None:
    measured, parent = measure("torch-native", "known-empty")
    m = measured["known-empty"]
    assert m.status is Status.OK and len(m.series) == 2
    assert (m.max_rel_error, m.checked_rows) == (None, None)
    assert "known-empty" not in {name for name, _, _ in parent.verdicts}


def test_without_a_compiler_torch_compile_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    m = measure("torch-eager", "torch-compile")[0]["torch-compile"]
    assert m.status is Status.UNAVAILABLE
    assert "C++ compiler" in str(m.reason)
    assert "apt-get install g++" in str(m.remedy)


def test_a_program_that_a_contestant_runs_and_lacks_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(p: Operands) -> Launch:
        def launch(x: torch.Tensor) -> torch.Tensor:
            try:
                subprocess.run(["no-such-program"], check=True)
            except FileNotFoundError as error:
                raise RuntimeError("the compiler failed") from error
            return x

        return launch

    install(monkeypatch, torch_native=lacking)
    m = measure("torch-native")[0]["torch-native"]
    assert state(m) == (Status.UNAVAILABLE, Code.MISSING)
    assert "'no-such-program', which is not on PATH" in str(m.reason)


def test_a_parent_that_is_gone_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one contestant after the other."""

    def gone(self: FakeParent, event: str, **data: Any) -> dict[str, Any]:
        raise EOFError("the process that started this one is gone")

    monkeypatch.setattr(FakeParent, "ask", gone)
    with pytest.raises(EOFError):
        measure("torch-native")


def test_the_control_is_prepared_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    real = backends.prepare

    def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
        prepared.append(profile)
        return real(profile, operands, device)

    monkeypatch.setattr(backends, "prepare", prepare)
    measure(control=True)
    assert prepared == ["torch-eager", "torch-native", "torch-native"]


def test_torch_compile_is_really_compiled_and_the_environment_as_it_was_told() -> None:
    from torch._inductor import config

    with config.patch(autotune_local_cache=True):  # monkeypatch would leave the setting deleted
        environment.tune_anew()
        before = environment.describe(torch.device("cpu")).fingerprint
        m = measure("torch-eager", "torch-compile")[0]["torch-compile"]
        assert environment.describe(torch.device("cpu")).fingerprint == before, "what a worker says at its beginning"
    assert m.status is Status.OK
    assert "torch.compile" in str(m.resolved_backend)
