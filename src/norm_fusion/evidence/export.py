"""Runs as flat tables, for people's own tools: which columns there are, and the rows of runs on disk. No torch.

records    a row per record as stored, or, pooled, per record of all processes
speedups   a row per record and baseline: the speedup, and of pooled ones its interval and label
calls      a row per call of a claim, those of earlier attempts too
counters   a row per profile and case whose hardware counters were read

The columns below are all that there is, in this order and of these types, whatever the runs hold; new ones go to the
end. What is missing is null. Units are in the names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from norm_fusion.evidence.archive import odd
from norm_fusion.evidence.pool import profile_of
from norm_fusion.evidence.stored import with_records
from norm_fusion.records import Call, Code, Conclusions, Counters, Manifest, Record
from norm_fusion.runs.files import StoreError, bytes_of, read
from norm_fusion.runs.listing import listed
from norm_fusion.runs.order import in_order
from norm_fusion.runs.store import SUM, SUMS, RunStore
from norm_fusion.spec import Case, SpecError

Cell = str | int | float | bool | None
Row = tuple[Cell, ...]
Told = dict[str, Any]  # a row by the names of its columns; a name that is not there is null

TEXT: Literal["string"] = "string"
INT: Literal["int64"] = "int64"
FLOAT: Literal["float64"] = "float64"
BOOL: Literal["bool"] = "bool"


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its type in Arrow's words, and what it holds."""

    name: str
    kind: Literal["string", "int64", "float64", "bool"]
    about: str


_CASE = (
    Column("run_id", TEXT, "the run"),
    Column("case", TEXT, "operator, rows, columns, dtype and pass as one name"),
    Column("op", TEXT, "operator: rmsnorm, layernorm, add-rmsnorm, add-layernorm"),
    Column("pass", TEXT, "forward or backward"),
    Column("rows", INT, "rows of x"),
    Column("cols", INT, "columns of x, over which is normalized"),
    Column("dtype", TEXT, "of x"),
    Column("profile", TEXT, "the implementation; control: the A/A control, copy: the roof"),
)
_WHERE = (
    Column("schema_version", INT, "of what is stored"),
    Column("fingerprint", TEXT, "hash of machine and software; 'a, then b': it changed meanwhile"),
    Column("device_name", TEXT, "the GPU or CPU"),
    Column("device_uuid", TEXT, "of the GPU"),
    Column("driver", TEXT, "version of the GPU's driver"),
    Column("torch", TEXT, "version of PyTorch"),
    Column("cuda", TEXT, "version of CUDA that PyTorch was built for"),
    Column("triton", TEXT, "version of Triton"),
    Column("norm_fusion", TEXT, "version of this library that measured"),
    Column("commit", TEXT, "of the code that measured"),
    Column("dirty", BOOL, "was that code changed since the commit?"),
    Column("suite", TEXT, "the run's suite; null: a question to benchmark-norms"),
    Column("started_at", TEXT, "when the run began, ISO 8601"),
    Column("folder", TEXT, "the run's folder, as it was found"),
)
_SERIES = (
    Column("timer", TEXT, "device, graph, host, wall; none: not timed"),
    Column("cache", TEXT, "cold, hot; none: not timed"),
    Column("attempt", INT, "0, then 1 and 2 for automatic reruns"),
)
_PROCESS = (
    Column("replicate", INT, "the process, counted from 0; null: all processes pooled"),
    Column("processes", INT, "how many were pooled; null: a single one"),
)
_VERDICT = (
    Column("speedup", FLOAT, "time of the baseline over that of the profile"),
    Column("low", FLOAT, "lower end of the speedup's 95% interval"),
    Column("high", FLOAT, "upper end of it"),
    Column("label", TEXT, "supported, regression, no difference, inconclusive, rerun noise or invalid"),
    Column("code", TEXT, "why this label, as one word that does not change"),
    Column("reason", TEXT, "why, as a sentence"),
    Column("rule", INT, "version of the rule that judged"),
)
_OUTCOME = (
    Column("status", TEXT, "ok, checked, wrong, failed or unavailable"),
    Column("reason", TEXT, "why it is not ok, as a sentence"),
    Column("remedy", TEXT, "what would help"),
    Column("resolved_backend", TEXT, "what really ran"),
)
TABLES: Mapping[str, tuple[Column, ...]] = {
    "records": (
        *_CASE,
        *_SERIES,
        *_PROCESS,
        Column("control_of", TEXT, "of the A/A control: the profile that it is, a second time"),
        *_OUTCOME,
        Column("code", TEXT, "why it has no figures that may be quoted, as one word that does not change"),
        Column("p50_ms", FLOAT, "median time of a call"),
        Column("p95_ms", FLOAT, "95th percentile of it"),
        Column("noise_ratio", FLOAT, "p95 over p50"),
        Column("noise", TEXT, "good, warn or rerun: that ratio judged"),
        Column("process_spread", FLOAT, "pooled: largest over smallest of the processes' medians"),
        Column("gbps", FLOAT, "compulsory traffic over p50, GB/s"),
        Column("roof_gbps", FLOAT, "that of the copy"),
        Column("roof_share", FLOAT, "gbps over roof_gbps"),
        Column("read_gbps", FLOAT, "what the device reads at most, measured with the case, GB/s"),
        Column("write_gbps", FLOAT, "what it writes at most"),
        Column("tflops", FLOAT, "arithmetic over p50, TFLOP/s"),
        Column("regime", TEXT, "pooled: launch-bound, L2-resident, DRAM-bound or cache-resident"),
        Column("correct", BOOL, "within the tolerance? null: not compared"),
        Column("max_abs_error", FLOAT, "against fp64"),
        Column("max_rel_error", FLOAT, "against fp64"),
        Column("tolerance", FLOAT, "the relative error that is allowed"),
        Column("checked_rows", INT, "rows that each verification compared"),
        Column("n_samples", INT, "samples that p50 and p95 are of"),
        Column("settled", BOOL, "did warm-up reach three blocks within 1%?"),
        Column("rotation", INT, "sets of inputs and outputs in rotation"),
        Column("outside_ms", FLOAT, "one call, by the parent's clock around many"),
        Column("probe", FLOAT, "a fixed amount of work beside its blocks, over the median of all contestants"),
        Column("probe_ms", FLOAT, "the same, in ms"),
        Column("samples_file", TEXT, "the raw samples, in the run's folder"),
        Column("samples_sha256", TEXT, "hash of that file"),
        Column("notes", TEXT, "JSON: a list of sentences"),
        Column("events", TEXT, "JSON: a list of {kind, detail}: why the series is doubted"),
        *_WHERE,
    ),
    "speedups": (
        *_CASE,
        Column("baseline", TEXT, "over which; torch-baseline is another name of one of the others"),
        *_SERIES,
        *_PROCESS,
        Column("status", TEXT, "of the record"),
        *_VERDICT,
        *_WHERE,
    ),
    "calls": (
        *_CASE,
        Column("baseline", TEXT, "the claim: profile is faster than this"),
        *_SERIES,
        Column("earlier", BOOL, "was it judged from an attempt that is not the one that is quoted?"),
        Column("processes", INT, "how many it was judged from"),
        *_VERDICT,
        Column("ratios", TEXT, "JSON: the speedup in each process"),
        *_WHERE,
    ),
    "counters": (
        *_CASE,
        *_OUTCOME,
        Column("tool", TEXT, "which profiler, and what read its report"),
        Column("n_kernels", INT, "kernels of a call that were counted"),
        Column("duration_ms", FLOAT, "of these, each replayed alone: never a latency"),
        Column("dram_bytes", INT, "read and written"),
        Column("compulsory_bytes", INT, "that a call cannot do without"),
        Column("dram_pct", FLOAT, "of the peak throughput of memory"),
        Column("occupancy_pct", FLOAT, "warps on a multiprocessor that has any, of the most it can hold"),
        Column("l2_hit_pct", FLOAT, "of sectors; may exceed 100"),
        Column("sm_pct", FLOAT, "of the peak of the multiprocessors' busiest part"),
        Column("tensor_pct", FLOAT, "of the peak of the tensor pipes"),
        Column("registers", INT, "a thread, the most of any kernel"),
        Column("traced_kernels", INT, "kernels of a call, by torch.profiler"),
        Column("traced_ms", FLOAT, "the same call's time on the device, gaps left out"),
        Column("traced_reason", TEXT, "why it was not traced"),
        Column("kernels", TEXT, "JSON: a list of the kernels' own counters, in the order of their launches"),
        *_WHERE,
    ),
}
POOLABLE = ("records", "speedups")


def runs_of(names: Sequence[str], folders: Sequence[Path]) -> tuple[list[RunStore], list[str]]:
    """The runs of these names, or with none all below the folders, each once; and a sentence for each unreadable one.

    A name is a run's folder, a folder of runs, or a run's id in the first of the folders that has it.

    Raises:
        StoreError: there is no run of that name, or no such folder.
    """
    found: dict[Path, RunStore] = {}
    unreadable: list[str] = []
    for folder in folders if not names else ():
        if not folder.is_dir():
            raise StoreError(f"there is no folder {folder}: name one that holds runs")
    for folder in [_folder_of(name, folders) for name in names] or folders:
        if (folder / "manifest.json").is_file():
            stores = [RunStore(folder)]
        else:
            inside, odd = listed(folder)
            stores = [RunStore(Path(one.path)) for one in inside]
            unreadable += odd
        for store in stores:
            found.setdefault(store.path.resolve(), store)
    return list(found.values()), list(dict.fromkeys(unreadable))


def _folder_of(name: str, folders: Sequence[Path]) -> Path:
    """The folder of a run, or one that holds runs."""
    for path in (Path(name), *(folder / name for folder in folders)):
        with suppress(OSError):  # a name that no file can have is the name of no run
            if (path / "harness.json").is_file():
                return RunStore.open(str(path), path).path  # raises, and says which runs are in it
            if (path / "manifest.json").is_file() or (name and any(listed(path))):
                return path
    where = " or ".join(str(folder) for folder in folders) or "this folder"
    raise StoreError(f"there is no run {name[:120]!r} in {where}: `norm-fusion runs --output DIR` lists what there is")


def rows_of(
    stores: Iterable[RunStore], table: str, *, pooled: bool = False, tell: Callable[[str], object]
) -> Iterator[Row]:
    """The rows of a table of runs, read one after the other: a run is in memory while its rows are taken.

    `pooled`: the records of all processes, instead of those of each; of records and speedups.
    `tell` gets a sentence for each file or run that is damaged, was edited or is of a newer schema, and left out.
    """
    for store in stores:
        left_out: list[str] = []
        made: list[Row] = []
        try:
            manifest = store.manifest()
            if (why := odd(*manifest.environments)) is not None:
                raise StoreError(f"{store.path / 'manifest.json'} is not believed: {why}")
            for told in _told(store, manifest, table, pooled, left_out):
                try:
                    made.append(_row(TABLES[table], told))
                except StoreError as error:
                    left_out.append(f"{store.path}: {error}")
        except SpecError as error:
            left_out.append(str(error))
        except OSError as error:
            left_out.append(f"{error.filename or store.path} cannot be read: {error.strerror}")
        for said in left_out:
            tell(said)
        yield from made


def _told(store: RunStore, manifest: Manifest, table: str, pooled: bool, left_out: list[str]) -> Iterator[Told]:
    """A run's rows of a table; what is left out is added to the list."""
    of_run = {name: getattr(manifest, name) for name in ("run_id", "suite", "started_at")}
    of_run["folder"] = store.path.as_posix()
    if table == "counters":
        for counters in _counters(store, left_out):
            yield of_run | _environment(manifest, counters.fingerprint) | _of_counters(counters)
        return
    made, records, odd = with_records(store, manifest)
    left_out += odd
    if table == "calls":
        cards = {(record.case, record.attempt): record.fingerprint for record in made.pooled}
        for call, earlier in _all_calls(made.calls):
            where = _environment(manifest, cards.get((call.case, call.attempt)))
            yield of_run | where | _of_call(call) | {"earlier": earlier, "schema_version": made.schema_version}
        return
    # What stands for a damaged file among the records was never stored.
    stored = made.pooled if pooled else [record for record in records if record.code is not Code.UNREADABLE]
    calls = _by_series(made)
    for record in in_order(stored, manifest):
        of_record = of_run | _environment(manifest, record.fingerprint) | _of_record(record)
        if table == "records":
            yield of_record
        else:
            yield from (of_record | of_baseline for of_baseline in _of_baselines(record, calls))


def _environment(manifest: Manifest, fingerprint: str | None) -> Told:
    """Where it was measured."""
    found = None if fingerprint is None else manifest.environment_of(fingerprint)
    names = {column.name for column in _WHERE} - {"fingerprint"}
    return {"fingerprint": fingerprint} | ({} if found is None else found.model_dump(include=names))


def _of_record(record: Record) -> Told:
    return record.model_dump(by_alias=True) | {
        "notes": _json(record.notes),
        "events": _json([event.model_dump() for event in record.events]),
    }


SeriesKey = tuple[str, str, str, str, str, int]  # case, profile, baseline, timer, cache, attempt


def _by_series(made: Conclusions) -> dict[SeriesKey, Call]:
    return {
        (call.case, call.profile, call.baseline, call.timer, call.cache, call.attempt): call
        for call, _ in _all_calls(made.calls)
    }


def _of_baselines(record: Record, calls: Mapping[SeriesKey, Call]) -> Iterator[Told]:
    """A record's speedups, and labels of those that it does not have."""
    for baseline in {**record.speedup, **record.call}:
        low, high = record.interval.get(baseline, (None, None))
        series = (record.case, record.profile, profile_of(baseline, record.op), record.timer, record.cache)
        call = calls.get((*series, record.attempt)) if record.replicate is None else None
        yield {
            "baseline": baseline,
            "speedup": record.speedup.get(baseline),
            "low": low,
            "high": high,
            "label": record.call.get(baseline),
            **({"code": None, "reason": None} if call is None else call.model_dump(include={"code", "reason", "rule"})),
        }


def _all_calls(calls: Iterable[Call], *, earlier: bool = False) -> Iterator[tuple[Call, bool]]:
    """Each call, before it those of earlier attempts; and whether it is one of these."""
    for call in calls:
        yield from _all_calls(call.earlier, earlier=True)
        yield call, earlier


def _of_call(call: Call) -> Told:
    told = call.model_dump(exclude={"earlier"})
    return _parts(call.case) | told | {"ratios": _json(call.ratios)}


def _counters(store: RunStore, left_out: list[str]) -> Iterator[Counters]:
    """Those that can be read and are as they were written."""
    try:
        lines = store.sum_lines()
    except ValueError as error:
        raise StoreError(f"{store.path / SUMS} cannot be read: {error}") from None
    hashes = {match[2]: match[1] for line in lines if (match := SUM.fullmatch(line))}
    there = {f"counters/{path.name}" for path in (store.path / "counters").glob("*.json")}
    for file in sorted(there | {file for file in hashes if file.startswith("counters/")}):
        path = store.path / file
        try:
            counters = read(path, Counters)
            if file not in hashes:
                raise StoreError(f"{path} is not in {SUMS}: it was not written by the run")
            if sha256(bytes_of(path)).hexdigest() != hashes[file]:
                raise StoreError(f"{path} was changed after it was written: its hash is not the one in {SUMS}")
        except StoreError as error:
            left_out.append(str(error))
        else:
            yield counters


def _of_counters(counters: Counters) -> Told:
    told = counters.model_dump()
    kernels = {"kernels": _json(told["kernels"]), "n_kernels": len(counters.kernels) if counters.kernels else None}
    return _parts(counters.case) | told | kernels


def _parts(name: str) -> Told:
    """What a case's name says; of one that is no norm, nothing."""
    case = Case.of(name)
    if case is None:
        return {}
    return {"op": case.op, "pass": case.pass_, "rows": case.rows, "cols": case.cols, "dtype": case.dtype}


def _text(value: object) -> str:
    """As text that UTF-8 can hold: a folder may have a name in another encoding."""
    return str(value).encode("utf-8", "backslashreplace").decode()


_CAST: Mapping[str, Callable[[Any], Cell]] = {TEXT: _text, INT: int, FLOAT: float, BOOL: bool}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _row(columns: Sequence[Column], told: Told) -> Row:
    """The cells in the order of the columns. Raises StoreError where an integer needs more than 64 bits."""
    row: list[Cell] = []
    for column in columns:
        value = told.get(column.name)
        cell = None if value is None else _CAST[column.kind](value)
        if column.kind == INT and isinstance(cell, int) and not -(2**63) <= cell < 2**63:
            case, profile = str(told.get("case"))[:120], str(told.get("profile"))[:120]
            raise StoreError(f"{column.name} of {profile} at {case} is a number that 64 bits do not hold")
        row.append(cell)
    return tuple(row)
