"""What is stored of a run. Ground floor: no torch.

manifest.py  what was asked, where it ran, how it ended     environment.py  the machine, and what changes on it
timed.py     a record per series, and its samples           counted.py      hardware counters of a call
judged.py    a call per claim                               checked.py      what a check of the harness found
decided.py   a decision's status                            base.py      what they share

Units are in the names. What was not measured is null, with its reason, never 0.
"""

from norm_fusion.records.base import SCHEMA, Cache, Status, Stored, Timer, first_line
from norm_fusion.records.checked import HarnessCheck, HarnessReport
from norm_fusion.records.counted import Counters, KernelCounters
from norm_fusion.records.decided import (
    Decided,
    DecidedClaim,
    DecidedRow,
    DecisionStatus,
    Ledger,
    Otherwise,
    Standing,
    tally,
)
from norm_fusion.records.environment import Conditions, Environment, began_at
from norm_fusion.records.judged import Call, Conclusions, Label
from norm_fusion.records.manifest import Manifest
from norm_fusion.records.timed import Code, Event, Measurement, Record, Samples, Series

__all__ = [
    "SCHEMA",
    "Cache",
    "Call",
    "Code",
    "Conclusions",
    "Conditions",
    "Counters",
    "Decided",
    "DecidedClaim",
    "DecidedRow",
    "DecisionStatus",
    "Environment",
    "Event",
    "HarnessCheck",
    "HarnessReport",
    "KernelCounters",
    "Label",
    "Ledger",
    "Manifest",
    "Measurement",
    "Otherwise",
    "Record",
    "Samples",
    "Series",
    "Standing",
    "Status",
    "Stored",
    "Timer",
    "began_at",
    "first_line",
    "tally",
]
