"""Decisions as they are written: what a file may say, and what is wrong with it, by file, line and key."""

from pathlib import Path

import pytest
from speaking import HEAD, SUITE, toml

from norm_fusion.evidence.decisions import COUNTED, METRICS, RATED, Cases, load, load_all
from norm_fusion.records import Counters, Record
from norm_fusion.runs import suites
from norm_fusion.spec import MAX_DIM, Pass, SpecError

COMMITTED = Path(__file__).parents[2] / "decisions"
ONE = "\n".join(
    [
        HEAD.rstrip(),  # lines 1 to 9
        "",
        "[claims.fast]",  # 11
        'says = "it is fast"',
        'cases = ["rmsnorm-4096x4096-float16"]',
        'profile = "fused"',
        'baseline = "torch-baseline"',
        "",
        "[claims.far]",  # 17
        'says = "and wide"',
        'cases = ["rmsnorm-1024..x*-*", "layernorm-backward-64x..128-bfloat16"]',
        'profile = "fused"',
        'baseline = "fastest"',
        'series = "eager"',
        "at_most = 1.5",
        "boundary = true",
        "",
    ]
)


def loaded(tmp_path: Path, text: str, name: str = "fused-norm") -> object:
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return load(path, [SUITE])


def test_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "fused-norm.toml"
    path.write_text(ONE)
    made = load(path, [SUITE, "backward"])
    assert (made.name, made.title, made.domain, made.statement, made.owner) == (
        "fused-norm",
        "Fused",
        "D",
        "Use it.",
        "kernels",
    )
    assert (made.experiments, made.path) == ((SUITE,), path)
    assert (made.expires_when, made.expires_days) == (("gpu", "driver", "torch", "triton"), 100)
    fast, far = made.claims
    assert (fast.name, fast.says, fast.profile, fast.baseline) == ("fast", "it is fast", "fused", "torch-baseline")
    assert (fast.metric, fast.series, fast.threshold, fast.at_most) == ("speedup", "kernel", 1.02, False)
    assert (fast.boundary, fast.example, fast.counted) == (False, None, False)
    assert (far.series, far.threshold, far.at_most, far.boundary) == ("eager", 1.5, True, True)
    assert [one.pass_ for one in far.cases] == [Pass.FORWARD, Pass.BACKWARD]


def test_a_name_stands_for_the_one_of_each_operator(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(ONE)
    fast, far = load(path, [SUITE]).claims
    rms, layer = "add-rmsnorm-backward-1x1-float16", "layernorm-1x1-float16"
    assert (fast.profile_at(rms), fast.profile_at(layer)) == ("triton-fused-rmsnorm", "triton-fused-layernorm")
    assert (fast.baseline_at(rms), fast.baseline_at(layer)) == ("torch-eager", "torch-native")
    assert far.baseline_at(rms) == "fastest"


def test_expiry_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(ONE.replace('[expires]\nwhen = ["gpu", "driver", "torch", "triton"]\ndays = 100\n', ""))
    assert (load(path, [SUITE]).expires_when, load(path, [SUITE]).expires_days) == ((), None)


@pytest.mark.parametrize(
    ("was", "is_", "line", "says"),
    [
        ('title = "Fused"', 'titel = "Fused"', 1, "'titel' is unknown: allowed are claims, domain"),
        ('title = "Fused"', "title = 2026-01-01", 1, "'title' must be a text"),
        ('owner = "kernels"\n', "", None, "'owner' must be a text"),
        ('statement = "Use it."', 'statement = " "', 3, "'statement' must be a text"),
        (f'["{SUITE}"]', '["nothing"]', 5, f"'experiments': there is no suite 'nothing': choose from {SUITE}"),
        (f'["{SUITE}"]', "[]", 5, "'experiments' must be a list"),
        ('"driver", ', '"weather", ', 8, "'expires.when': there is no trigger 'weather': choose from gpu, driver, "),
        ('"driver", ', '"gpu", ', 8, "'expires.when' names 'gpu' twice"),
        ("days = 100", "days = 0", 9, "'expires.days' must be a whole number of days, 1 to 10,000"),
        ("days = 100", "days = 10_001", 9, "'expires.days' must be"),
        ("days = 100", "days = true", 9, "'expires.days' must be"),
        ("days = 100", "days = 1.5", 9, "'expires.days' must be"),
        ("days = 100", "years = 1", 9, "'expires.years' is unknown: allowed are days, when"),
        ("[claims.fast]", "[claims.Fast]", 11, "'claims.Fast' must be lower-case words"),
        ("[claims.fast]", '[claims."a b"]', 11, "'claims.a b' must be lower-case words"),
        ("[claims.fast]", "[claims.fast.inner]", 11, "'claims.fast.inner' is unknown"),
        ('says = "it is fast"\n', "", 11, "'claims.fast.says' must be a text"),
        ('says = "it is fast"', "says = 3", 12, "'claims.fast.says' must be a text"),
        ('says = "it is fast"', 'status = "Supported"', 12, "'claims.fast.status' is unknown"),
        ('cases = ["rmsnorm-4096x4096-float16"]\n', "", 11, "'claims.fast' must have either cases or an example"),
        ('cases = ["rmsnorm-4096x4096-float16"]', "cases = []", 13, "'claims.fast.cases' must be a list"),
        (
            "rmsnorm-4096x4096-float16",
            "rmsnorm-4096-float16",
            13,
            "'claims.fast.cases': 'rmsnorm-4096-float16' selects",
        ),
        ("rmsnorm-4096x4096-float16", "rmsnorm-4096x4096-flaot16", 13, "dtype 'flaot16' is none of float16, "),
        ("rmsnorm-4096x4096-float16", "rmsnorm-8..4x1-*", 13, "'8..4' ends before it begins"),
        ("rmsnorm-4096x4096-float16", "rmsnorm-4**x1-*", 13, "'4**' is no number, no range"),
        ("rmsnorm-4096x4096-float16", "groupnorm-1x1-*", 13, "with rmsnorm, layernorm, add-rmsnorm, add-layernorm"),
        ("rmsnorm-4096x4096-float16", "matmul-8x8-float16", 13, "is not matmul-MxNxK-DTYPE"),
        ("rmsnorm-4096x4096-float16", "matmul-8x8x8-float16", 13, "are of matrix products, which only counters"),
        ('profile = "fused"\n', "", 11, "'claims.fast.profile' must be a text"),
        ('profile = "fused"', 'profile = ["fused"]', 14, "'claims.fast.profile' must be a text"),
        ('baseline = "torch-baseline"\n', "", 11, "'claims.fast' needs a baseline: torch-baseline, fastest or"),
        ('baseline = "torch-baseline"', "baseline = 3", 15, "'claims.fast.baseline' must be a text"),
        ('baseline = "torch-baseline"', 'baseline = "fused"', 15, "'claims.fast.baseline' is the profile itself"),
        ('series = "eager"', 'series = "wall"', 22, "'claims.far.series' is 'wall': choose from kernel, eager"),
        ('series = "eager"', 'series = ["eager"]', 22, "'claims.far.series' is ['eager']"),
        ('series = "eager"', 'metric = "speed"', 22, "'claims.far.metric' is 'speed': choose from speedup, "),
        ('series = "eager"', "metric = [3]", 22, "'claims.far.metric' is [3]"),
        ('series = "eager"', 'metric = "gbps"', 17, "'claims.far' is of gbps, which has no baseline"),
        ("at_most = 1.5", "at_most = 1.5\nat_least = 1", 17, "'claims.far' needs one of at_least and at_most"),
        ("at_most = 1.5", "at_most = 0", 23, "'claims.far.at_most' must be a number above 0 and below 1e12"),
        ("at_most = 1.5", "at_most = nan", 23, "'claims.far.at_most' must be a number"),
        ("at_most = 1.5", "at_most = inf", 23, "'claims.far.at_most' must be a number"),
        ("at_most = 1.5", f"at_most = 1{'0' * 400}", 23, "'claims.far.at_most' must be a number"),
        ("at_most = 1.5", "at_most = true", 23, "'claims.far.at_most' must be a number"),
        ("at_most = 1.5", 'at_most = "1.5"', 23, "'claims.far.at_most' must be a number"),
        ("boundary = true", "boundary = 1", 24, "'claims.far.boundary' must be true or false"),
        ("boundary = true", 'example = "a"', 17, "'claims.far' must have either cases or an example"),
        ("boundary = true", 'boundary = "yes"', 24, "'claims.far.boundary' must be true or false"),
    ],
)
def test_a_wrong_decision_is_named_with_its_line_and_key(
    tmp_path: Path, was: str, is_: str, line: int | None, says: str
) -> None:
    assert was in ONE
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, ONE.replace(was, is_, 1))
    path = tmp_path / "fused-norm.toml"
    where = f"{path}, line {line}: key " if line is not None else f"{path}: key "
    assert str(caught.value).startswith(where)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"example": "block", "cases": None, "profile": "a", "baseline": "b", "metric": "gbps"}, "is of no example"),
        ({"example": "../block", "cases": None}, "must be the name of a file, without its folder and ending"),
        ({"example": "block.json", "cases": None}, "must be the name of a file, without its folder and ending"),
        ({"example": 3, "cases": None}, "key 'claims.a.example' must be a text"),
        ({"metric": "dram_pct", "baseline": None}, "needs one of at_least and at_most"),
        ({"metric": "dram_pct", "baseline": None, "at_least": 1, "series": "kernel"}, "has no meaning for hardware"),
        ({"metric": "dram_pct", "baseline": None, "at_least": 1, "cases": ["matmul-8x8x8-float16"]}, "named profile"),
        ({"boundary": True}, "key 'claims' are all of the boundary: a decision has to rest on one"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path: Path, claim: dict[str, object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        loaded(tmp_path, toml(a=claim))


def test_counters_of_matrix_products_may_be_claimed_of_a_named_profile(tmp_path: Path) -> None:
    claim = {"metric": "tensor_pct", "baseline": None, "at_most": 90, "cases": ["matmul-8x16x32-float16"]}
    path = tmp_path / "a.toml"
    path.write_text(toml(a=claim | {"profile": "triton-matmul"}))
    (one,) = load(path, [SUITE]).claims
    assert (one.counted, one.baseline, one.threshold, one.at_most) == (True, "", 90.0, True)
    assert one.cases[0].takes("matmul-8x16x32-float16") and not one.cases[0].takes("matmul-8x16x64-float16")


@pytest.mark.parametrize("text", ["", "claims = 3", HEAD, HEAD + "claims = {}", HEAD + "claims = {a = 3}"])
def test_a_decision_without_claims_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="fused-norm.toml"):
        loaded(tmp_path, text)


def test_a_file_has_a_name_that_a_page_can_have(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="A b.toml has a name that cannot be a page's"):
        loaded(tmp_path, ONE, "A b")


@pytest.mark.parametrize(
    ("selector", "taken", "left"),
    [
        ("rmsnorm-4096x4096-float16", ["rmsnorm-4096x4096-float16"], ["rmsnorm-4096x4096-bfloat16"]),
        (
            "rmsnorm-512..4096x1024-*",
            ["rmsnorm-512x1024-float16", "rmsnorm-4096x1024-float32"],
            ["rmsnorm-511x1024-float16", "rmsnorm-4097x1024-float16", "rmsnorm-512x1025-float16"],
        ),
        ("rmsnorm-..64x64..-*", ["rmsnorm-64x64-float16"], ["rmsnorm-65x64-float16", "rmsnorm-64x63-float16"]),
        (
            "rmsnorm-*x*-float16",
            [f"rmsnorm-1x{MAX_DIM}-float16"],
            ["rmsnorm-backward-1x1-float16", "rmsnorm-0x1-float16"],
        ),
        ("rmsnorm-backward-*x*-*", ["rmsnorm-backward-1x1-float16"], ["rmsnorm-1x1-float16"]),
        ("add-rmsnorm-*x*-*", ["add-rmsnorm-1x1-float16"], ["rmsnorm-1x1-float16", "add-layernorm-1x1-float16"]),
        ("rmsnorm-*x*-*", [], ["add-rmsnorm-1x1-float16", "", "rmsnorm", "rmsnorm-1x1-float64", "\ud800", "x" * 10**6]),
    ],
    ids=["one", "ranges", "open", "any", "backward", "added", "none"],
)
def test_which_cases_a_selector_takes(selector: str, taken: list[str], left: list[str]) -> None:
    one = Cases.parse(selector)
    assert [name for name in [*taken, *left] if one.takes(name)] == taken


@pytest.mark.parametrize(
    "text",
    ["9" * 10**6, "rmsnorm-" + "9" * 10**6 + "x1-*", "rmsnorm-1x1-" + "f" * 10**6, "-" * 10**5],
    ids=["digits", "rows", "dtype", "hyphens"],
)
def test_a_hostile_selector_is_refused_at_once_and_in_few_words(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Cases.parse(text)
    assert len(str(caught.value)) < 400


def test_digits_of_other_scripts_are_none() -> None:
    with pytest.raises(SpecError, match="selects no cases"):
        Cases.parse("rmsnorm-\u0664x1-*")


def test_every_metric_is_read_off_something_that_is_stored() -> None:
    assert {"speedup", *RATED, *COUNTED} == {*METRICS}
    assert {*RATED} <= Record.model_fields.keys() and {*COUNTED} <= Counters.model_fields.keys()
    told = {name: float(i) for i, name in enumerate(COUNTED, start=1)}
    counters = Counters.model_construct(**told)
    assert {name: read(counters) for name, read in COUNTED.items()} == told
    told = {name: float(i) for i, name in enumerate(RATED, start=1)}
    record = Record.model_construct(**told)
    assert {name: read(record) for name, read in RATED.items()} == told


def test_all_of_a_folder_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no decisions: each is a .toml file"):
        load_all(tmp_path, [SUITE])
    for name in ("b", "a"):
        (tmp_path / f"{name}.toml").write_text(ONE)
    assert [one.name for one in load_all(tmp_path, [SUITE])] == ["a", "b"]
    (tmp_path / "c.toml").write_text("title = 3")
    with pytest.raises(SpecError, match="c.toml, line 1"):
        load_all(tmp_path, [SUITE])


def test_the_committed_decisions_are_written_as_they_should_be() -> None:
    found = load_all(COMMITTED, suites.names())
    assert {"fused-rmsnorm", "profiler-backed-proof"} <= {one.name for one in found}
    assert len({one.title for one in found}) == len(found)
    assert all(one.expires_days for one in found)
