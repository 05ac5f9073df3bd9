"""The registry of names, a user's own function among them, and who runs a second time as control. No torch needed."""

import pytest

from norm_fusion import backends
from norm_fusion.backends import BY_NAME, PROFILES, contestant, controlled, judged, select, serves
from norm_fusion.spec import CONTROL, ROOF, Op, Pass, SpecError, is_users

RMS, LAYER = "triton-fused-rmsnorm", "triton-fused-layernorm"


def test_names_are_unique_and_none_is_the_labs_own() -> None:
    assert len(BY_NAME) == len(PROFILES)
    assert not {CONTROL, ROOF, "torch-baseline", *backends.FAMILIES} & set(BY_NAME)
    assert not any(is_users(name) for name in BY_NAME)


def test_all_means_what_is_compared_and_not_what_checks_the_harness() -> None:
    chosen = select(["all"], [Op.RMSNORM])
    assert chosen == ("torch-eager", "torch-native", "torch-compile", "torch-compile-max", RMS)
    assert select(["triton"], list(Op)) == (RMS, LAYER)
    assert select(["known-norm"], [Op.LAYERNORM]) == ("known-norm",)
    assert select(["torch-baseline"], list(Op)) == ("torch-eager", "torch-native")
    assert select(["torch-native", "torch", "torch-eager"], [Op.RMSNORM])[:2] == ("torch-eager", "torch-native")


@pytest.mark.parametrize("name", ["check", "torch_native", "", "Torch-Native", "mine:fast", CONTROL, ROOF])
def test_what_is_no_backend_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(SpecError, match="is unknown: choose from all, torch, triton, torch-baseline, torch-eager"):
        select([name], [Op.RMSNORM])


def test_a_backend_that_does_not_serve_the_operator_is_an_error() -> None:
    with pytest.raises(SpecError, match="does not implement layernorm: add a backend that does"):
        select([RMS], [Op.LAYERNORM])


@pytest.mark.parametrize("text", ["mine:fast", "pkg.sub.mod:fn_2", "_m:_f", "rmsnorm=mine:fast", "layernorm=a.b:c"])
def test_a_contestant_is_a_module_and_a_function(text: str) -> None:
    assert contestant(text, set(Op)) == text
    assert is_users(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mine",
        "mine:",
        ":fast",
        "mine.py:fast:er",
        "mine:fast()",
        "my-module:fast",
        "../mine:fast",
        "1mine:fast",
        "matmul=mine:fast",
        "RMSNORM=mine:fast",
        "=mine:fast",
        "mine:fast\n",
        " mine:fast",
        "mine:a.b",
        "x" * 500,
    ],
)
def test_what_is_no_contestant_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(SpecError, match="is not module:function: write it like mykernels:rms_norm") as said:
        contestant(text, set(Op))
    assert len(str(said.value)) < 300
    assert not is_users(text)


@pytest.mark.parametrize("pass_", Pass)
def test_who_serves_which_operator(pass_: Pass) -> None:
    def served(name: str) -> list[Op]:
        return [op for op in Op if serves(name, op, pass_)]

    assert served("torch-eager") == served("mine:fast") == list(Op)
    assert served("known-base") == ([Op.RMSNORM, Op.LAYERNORM] if pass_ is Pass.FORWARD else [])
    assert served(RMS) == [Op.RMSNORM, Op.ADD_RMSNORM]
    assert served(LAYER) == [Op.LAYERNORM, Op.ADD_LAYERNORM]
    assert served("rmsnorm=mine:fast") == [Op.RMSNORM]
    assert served("add-layernorm=mine:fast") == [Op.ADD_LAYERNORM]


def test_spins_are_not_judged_and_everything_else_is() -> None:
    assert [p.name for p in PROFILES if not judged(p.name)] == [
        "known-empty",
        *(f"known-spin-{us}-{ratio}" for us in backends.SPIN_US for ratio in backends.SPIN_RATIOS),
    ]
    assert judged("mine:fast")


@pytest.mark.parametrize(
    ("names", "gpu", "cpu"),
    [
        (["torch-eager", "torch-native", RMS], RMS, "torch-native"),
        (["torch-eager", "torch-compile"], "torch-eager", "torch-eager"),
        (["torch-compile"], "torch-compile", "torch-compile"),
        ([RMS], RMS, RMS),
        (["torch-eager", "mine:fast"], "mine:fast", "mine:fast"),
        (["known-norm", "known-norm-again"], "known-norm", "known-norm"),
    ],
)
def test_the_control_is_the_one_that_claims_are_about(names: list[str], gpu: str, cpu: str) -> None:
    assert controlled(names, "cuda") == gpu
    assert controlled(names, "cpu") == cpu


def test_a_contestant_that_no_case_asks_for_is_refused() -> None:
    assert contestant("rmsnorm=mine:norm", {Op.RMSNORM}) == "rmsnorm=mine:norm"
    with pytest.raises(SpecError, match="has no case: this run is of rmsnorm alone"):
        contestant("layernorm=mine:norm", {Op.RMSNORM})
