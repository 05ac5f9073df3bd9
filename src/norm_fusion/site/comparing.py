"""Any two runs, row by row, paired in the page: of a hundred runs there are 4,950 pairs.

Each run has a file of data, which the page loads when the run is chosen. templates/compare.js does with two of them
what evidence.compare and verdicts.decided do: whatever one side alone can be doubted by is concluded here, and every
number that a rule uses is written into the page. A change of either file is a change of the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, zip_longest
from typing import Any

import numpy as np

from norm_fusion import metrics
from norm_fusion.evidence import compare, verdicts
from norm_fusion.evidence.archive import Kept
from norm_fusion.evidence.pool import ENOUGH
from norm_fusion.records import Label, Manifest
from norm_fusion.report.rows import ROLES, case_title
from norm_fusion.site.pages import LONGEST, Pages
from norm_fusion.site.runs import Address, anchor
from norm_fusion.spec import CONTROL, FEWEST, ROOF

# Of a row in a run's data, in this order. mean, variance: of the logs of the processes' medians in ms; ms: exp of that
# mean; case, profile, card, doubt: places in the lists of these; record: its place on the page of its case.
FIELDS = (
    *("case", "profile", "timer", "cache", "control_of", "processes", "ms", "mean", "variance"),
    *("p50_ms", "probe_ms", "card", "doubt", "record"),
)
LEVEL = 0.95  # metrics.welch's
# Student's quantile is tabled at this many steps of 1 / degrees of freedom; the cubic through the logs of the nearest
# four is within 1e-9 of it, the line through two would be within 1.2e-5: figures of three places could differ.
STEPS = 128
NO_ROWS: dict[str, Any] = {"alike": {}, "cases": [], "profiles": [], "asked": [[], []], "rows": []}
BEGINS, ENDS = b"normFusionRun(", b");"  # of a run's data, round JSON


@dataclass(frozen=True)
class Choice:
    """A run as the page lists it; `why` says why it cannot be chosen."""

    slug: str
    name: str
    text: str
    why: str


def path_of(at: Address) -> str:
    """Where the data of a run are, within the site."""
    return f"compare/{at.slug}.js"


def write(pages: Pages, runs: Sequence[Kept], at: Mapping[str, Address]) -> None:
    """The page, and the data of each run of `runs`, newest first, whose data are not among `pages.made`."""
    choices = []
    for run in runs:
        path = path_of(at[run.name])
        if path not in pages.made:
            pages.put(path, data_of(run, at[run.name]))
        # Read again: of a hundred runs that are as they were nothing else has to be.
        why = json.loads((pages.output / path).read_bytes().removeprefix(BEGINS).removesuffix(ENDS))["why"]
        choices.append(Choice(at[run.name].slug, run.name, _text(run), why))
    pair = _alike([run for run, choice in zip(runs, choices, strict=True) if not choice.why])
    pages.write(
        "compare/index.html",
        "compare.html",
        scripts=("compare.js", "site.js"),  # whatever an address does to the other
        choices=[choice for choice in choices if not choice.why],
        others=[choice for choice in choices if choice.why],
        facts=_facts() | {"first": [at[run.name].slug for run in pair]},
        delta=verdicts.DELTA,
        enough=ENOUGH,
        level=f"{LEVEL:.0%}",
    )


def data_of(run: Kept, at: Address | None = None) -> bytes:
    """What the page has to know of a run, as a script that hands it over: JSON, in which nothing can end a script.

    Without an address of its own, its cases have those that a new one gives them. A run that cannot be compared has
    no rows.
    """
    return BEGINS + _escaped(_told(run, at or Address(run.name, ""))).encode() + ENDS


def none(name: str, why: str) -> bytes:
    """The data of a run that cannot be compared."""
    told = {"name": _short(name), "started": "", "device": "", "left_out": [], "why": _short(why)}
    return BEGINS + _escaped(told | NO_ROWS).encode() + ENDS


def _escaped(value: object) -> str:
    """JSON in ASCII, harmless wherever a script may stand."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _told(run: Kept, at: Address) -> dict[str, Any]:
    manifest = run.manifest
    told: dict[str, Any] = {"name": _short(run.name), "started": _short(manifest.started_at), "device": _device(run)}
    told |= {"left_out": [_short(said) for said in run.left_out], "why": _why_not(run)}
    if told["why"]:
        return told | NO_ROWS
    made = run.conclusions
    assert made is not None, "there is a reason why, otherwise"
    side = compare.Side(manifest, made.pooled, run.records)
    seen = compare.Seen(side)
    cases, profiles, cards, doubts = _Places(), _Places(), _Places(), _Places()
    rows = []
    for (case, profile, timer, cache), record in compare.rows_of(side).items():
        if (case, profile, timer, cache, record.attempt) not in seen.by_series:
            continue  # edited by hand: there is nothing that it could have been made of
        doubted, medians = seen.of(record)
        if min(medians) <= 0:
            continue
        card, doubt = doubted.environment, _doubt(doubted)
        rows.append(
            (
                cases.of(case),
                profiles.of(profile),
                timer,
                cache,
                record.control_of and _short(record.control_of),
                len(medians),
                *_spread(medians),
                record.p50_ms,
                record.probe_ms,
                cards.of((card.device, card.device_uuid and _short(card.device_uuid))),
                None if doubt is None else doubts.of(doubt),
                anchor(record.key),
            )
        )
    shown = [at.case(case) for case in cases]
    said = [(cases.of(c), profiles.of(p), _short(why)) for (c, p), why in compare.reasons(side).items() if why]
    asked = [cases.of(case) for case in manifest.cases], [profiles.of(profile) for profile in manifest.profiles]
    return told | {
        "alike": {name: list(_entries(name, manifest)) for name in compare.MUST_MATCH},
        "cases": [(_short(c), _short(case_title(c)), page) for c, page in zip_longest(cases, shown)],
        "profiles": [_short(profile) for profile in profiles],
        "cards": list(cards),
        "doubts": list(doubts),
        "asked": asked,
        "reasons": said,
        "rows": rows,
    }


def _spread(medians: Sequence[float]) -> tuple[float, float, float | None]:
    """What metrics.welch goes by: exp of the mean of logs, that mean and the variance; none of one process."""
    logs = np.log(np.asarray(medians, dtype=np.float64))
    variance = _rounded(float(logs.var(ddof=1))) if len(logs) > 1 else None
    return metrics.geometric_mean(medians), _rounded(float(logs.mean())), variance


class _Places(dict[Any, int]):
    """Things told once, by the place at which they are told."""

    def of(self, thing: Hashable) -> int:
        return self.setdefault(thing, len(self))


def _doubt(side: verdicts.Side) -> tuple[int, str, str, str] | None:
    """The first rule that says something of one side: its place among the rules, then label, code and reason."""
    for place, rule in enumerate(verdicts.RULES):
        if (found := rule(side)) is not None:
            label, code, reason = found
            return place, label.value, code, _short(reason)
    return None


def _entries(name: str, manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    """The facts under a name of MUST_MATCH as text; of a table each entry by itself, so that what differs is short."""
    for fact in compare.MUST_MATCH[name]:
        value = compare.fact_of(manifest, fact)
        if isinstance(value, Mapping):
            yield from ((_short(f"{fact} {key}"), _short(str(each))) for key, each in sorted(value.items()))
        else:
            yield fact, None if value is None else _short(str(value))


def _why_not(run: Kept) -> str:
    """Why a run has nothing to compare; empty of one that has."""
    made = run.conclusions
    if made is None:
        return _short(" ".join(run.left_out) or "nothing of it can be judged")
    if run.manifest.environment is None:
        return "it does not say where it took place"
    if not compare.rows_of(compare.Side(run.manifest, made.pooled, ())):
        return "it has no timed row"
    return ""


def _text(run: Kept) -> str:
    """A run among others: its name, its device and when it began."""
    return " · ".join(filter(None, (_short(run.name), _device(run), run.manifest.started_at[:16].replace("T", " "))))


def _device(run: Kept) -> str:
    return _short(", ".join(run.manifest.alike(lambda environment: environment.device_name)))


def _alike(runs: Sequence[Kept]) -> Sequence[Kept]:
    """The newest two that may be compared as they are and were asked for something in common: the older one first.

    Rather two of enough processes than newer ones: of fewer little is called.
    """
    asked = [(set(run.manifest.cases), set(run.manifest.profiles)) for run in runs]
    facts = [[list(_entries(name, run.manifest)) for name in compare.MUST_MATCH] for run in runs]
    found: Sequence[Kept] = ()
    for newer, older in combinations(range(len(runs)), 2):
        common = all(mine & theirs for mine, theirs in zip(asked[newer], asked[older], strict=True))
        if common and facts[newer] == facts[older]:
            pair = runs[older], runs[newer]
            if all(run.manifest.processes >= FEWEST for run in pair):
                return pair
            found = found or pair
    return found


def _facts() -> dict[str, Any]:
    """Every number and name that the script goes by."""
    return {
        "delta": verdicts.DELTA,
        "clocks": dict(verdicts.CLOCKS_WITHIN),
        "enough": ENOUGH,
        "level": f"{LEVEL:.0%}",
        "quantiles": quantiles(),
        "labels": [(label.value, compare.became(label)) for label in Label],
        "names": list(compare.MUST_MATCH),
        "everything": compare.EVERYTHING,
        "aside": [ROOF, CONTROL],
        "roles": list(ROLES.items()),
        "fields": FIELDS,
        "longest": LONGEST,
    }


def quantiles() -> list[float]:
    """Logs of Student's two-sided quantile at STEPS / i degrees of freedom, i from 0, where it is the normal one's."""
    # Imported here: a run's own pages need none of it.
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

    tail = (1 + LEVEL) / 2
    found = [float(ndtri(tail)), *(float(stdtrit(STEPS / i, tail)) for i in range(1, STEPS + 1))]
    return [_rounded(math.log(value)) for value in found]


def _rounded(value: float) -> float:
    """To 12 digits: what is compared has three."""
    return float(f"{value:.12g}")


def _short(text: str) -> str:
    """A text that a page can show; two long ones that differ still differ."""
    if len(text) <= LONGEST:
        return text
    told = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{text[:LONGEST]}… ({len(text):,} characters, SHA-256 {told}…)"
