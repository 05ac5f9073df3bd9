"""The rule that makes a status of a decision, from the calls and figures of the selected runs. Pure, and versioned.

A row of a claim (a case on a model of GPU)

    holds           its call says so: the interval lies beyond the threshold, past every gate
    is shown        a figure without a call, of counters, a rate, or an example that a gate of runs would not let pass,
                    lies beyond the threshold
    is undecided    inconclusive, rerun noise, over an invalid baseline, or not collected
    does not hold   the interval, or the figure, lies on the other side; or what is claimed of is wrong, or failed

and a decision, the first that matches, by the claims that it rests on and those of its boundary, is

    Rejected    of a claim that it rests on at least as many rows do not hold as hold
    Supported   every row of every claim holds, those of the boundary too
    Measured    no call decides a row of what it rests on: figures show it, or all is undecided; a boundary that does
                not hold is named
    Caveated    the rest: it holds in part, and the rows where it does not are named

A change of any of this is a new DECIDING: `norm-fusion decide` then says which decisions it changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from norm_fusion.evidence.archive import EARLIEST, moment
from norm_fusion.evidence.decisions import Decision
from norm_fusion.evidence.examples import Example
from norm_fusion.evidence.selection import SELECTION, Selected
from norm_fusion.evidence.standing import Evidence, rows_of, unspoken
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.records import Decided, DecidedClaim, DecisionStatus, Ledger, Standing, tally

# 2: what is wrong or failed does not hold; an example that a gate of runs would not let pass is shown.
DECIDING = 2


@dataclass(frozen=True)
class Judged:
    """A decision as it stands, with the runs that it was judged by."""

    decision: Decision
    decided: Decided
    selected: Sequence[Selected]
    examples: Sequence[Example] = ()


def ledger(judged: Sequence[Judged]) -> Ledger:
    """What is kept of all of them."""
    made = [one.decided for one in judged]
    return Ledger(deciding=DECIDING, selection=SELECTION, rule=RULE, decisions=made)


def decide(decision: Decision, evidence: Evidence) -> Judged:
    """A decision's status.

    Raises:
        SpecError: a claim names a case that no run measured, or that no run may speak for; says which file and key.
    """
    claims: list[DecidedClaim] = []
    selected: dict[tuple[str, str], Selected] = {}
    kept: dict[str, Example] = {}
    for claim in decision.claims:
        rows, sources = rows_of(decision, claim, evidence)
        selected |= {(one.run.name, one.case): one for one in sources if isinstance(one, Selected)}
        kept |= {one.name: one for one in sources if isinstance(one, Example)}
        claims.append(
            DecidedClaim(
                name=claim.name,
                says=claim.says,
                boundary=claim.boundary,
                metric=claim.metric,
                series="" if claim.counted else claim.series,
                baseline=claim.baseline,
                threshold=claim.threshold,
                at_most=claim.at_most,
                rows=rows,
            )
        )
    status, why = status_of(claims)
    environments = [one.environment for one in selected.values()] + [one.environment for one in kept.values()]
    dates = [one.run.manifest.started_at for one in selected.values()]
    dates += [one.started_at for one in kept.values() if one.started_at]
    dates.sort(key=lambda at: moment(at) or EARLIEST)
    made = Decided(
        name=decision.name,
        title=decision.title,
        domain=decision.domain,
        statement=decision.statement,
        owner=decision.owner,
        status=status,
        why=why,
        claims=claims,
        software={
            "gpu": sorted({e.device_name for e in environments}),
            "driver": sorted({e.driver for e in environments if e.driver}),
            "torch": sorted({e.torch for e in environments}),
            "triton": sorted({e.triton for e in environments if e.triton}),
        },
        oldest=dates[0] if dates else None,
        latest=dates[-1] if dates else None,
        unheard=list(unspoken(decision.claims, evidence)),
    )
    return Judged(decision, made, list(selected.values()), list(kept.values()))


def status_of(claims: Sequence[DecidedClaim]) -> tuple[DecisionStatus, str]:
    """By the rule above: the status, and why in a sentence."""
    resting = [claim for claim in claims if not claim.boundary]
    for claim in resting:
        against, held = claim.count(Standing.FAILS), claim.count(Standing.HOLDS, Standing.SHOWN)
        if against and against >= held:
            said = f"does not hold in {against} of {_rows(len(claim.rows))}: {_quoted_says(claim)}"
            return DecisionStatus.REJECTED, said
    standing = [row.standing for claim in resting for row in claim.rows]
    if not {Standing.HOLDS, Standing.FAILS} & {*standing}:
        shown = standing.count(Standing.SHOWN)
        said = f"figures show it in {shown} of {_rows(len(standing))}, and no call says so" if shown else ""
        undecided = f"{len(standing) - shown} of {_rows(len(standing))} undecided" if shown < len(standing) else ""
        beyond = [_named(claim) for claim in claims if claim.boundary and claim.count(Standing.FAILS)]
        return DecisionStatus.MEASURED, "; ".join(filter(None, (said, undecided, *beyond)))
    short = [claim for claim in claims if claim.count(Standing.HOLDS) < len(claim.rows)]
    if not short:
        return DecisionStatus.SUPPORTED, f"every claim holds in every row, {len(standing)} of what it rests on"
    return DecisionStatus.CAVEATED, "; ".join(map(_named, short))


def _named(claim: DecidedClaim) -> str:
    return f"{tally(claim.rows)}: {_quoted_says(claim)}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _quoted_says(claim: DecidedClaim) -> str:
    return f"“{claim.says}”" + (" (boundary)" if claim.boundary else "")
