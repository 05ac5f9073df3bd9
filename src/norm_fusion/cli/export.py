"""The command that makes tables of runs, and the files that it writes: CSV, and Parquet by pyarrow. No torch."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, TextIO, cast

import typer

from norm_fusion import __version__
from norm_fusion.cli.options import lab, usage
from norm_fusion.cli.streams import GONE, Lasting
from norm_fusion.spec import SpecError

if TYPE_CHECKING:
    from norm_fusion.evidence.export import Cell, Row

FORMATS = {".csv": "csv", ".parquet": "parquet"}  # by the suffix of a file
FOLDERS = (Path("runs"), Path("evidence"))
# A spreadsheet takes a cell that begins so for a formula, and runs it.
RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r")
# What is held in memory on its way into a Parquet file, and becomes a row group of it.
CHUNK_ROWS, CHUNK_CHARACTERS = 5000, 2**24


@lab.command(
    "export",
    epilog="Exit codes: 0 all of it; 1 a file or a run was left out, as it cannot be read, was changed or is of a "
    "newer version; 2 bad usage.",
)
def _export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs: an id, a run's folder or a folder of runs.  [default: all]"),
    ] = None,
    folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="DIR", help="A folder that holds runs; repeatable.  [default: runs and evidence]"
        ),
    ] = None,
    table: Annotated[
        str, typer.Option("--table", metavar="TABLE", help="records, speedups, calls or counters.")
    ] = "records",
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled",
            help="Of records and speedups: those of all processes pooled, which have intervals and labels, and an "
            "empty replicate; instead of one of each process.",
        ),
    ] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="csv or parquet.  [default: by FILE's suffix, else csv]"),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FILE", help="Where to; - is stdout. Written whole or not at all.")
    ] = "-",
    columns: Annotated[
        bool, typer.Option("--columns", help="Print the table's columns, their types and what they hold, and end.")
    ] = False,
) -> None:
    """Export runs as a table, CSV or Parquet.

    \b
    records    a row per case, profile, timer, cache, attempt and process, as it
               was stored: times, rates, errors, status, and where it was measured
    speedups   a row per record and baseline: speedup; with --pooled also its 95%
               interval, label and why
    calls      a row per claim that was judged; `earlier` is true of a call from
               an attempt that is not quoted
    counters   a row per case and profile whose hardware counters were read

    Columns have one order and one type each, whatever the runs hold: --columns prints them. Units are in the names.
    What is missing is null in Parquet and empty in CSV, never 0. Lists (notes, events, ratios, kernels) are JSON. A row
    that is wrong or failed may have a time, which is not to be quoted: keep those whose status is ok.

    In CSV a text that a spreadsheet would run, one that begins with =, +, -, @, a tab or a carriage return, has an
    apostrophe before it. Parquet holds every text exactly; it needs pyarrow:

    \b
      pip install 'norm-fusion[export]'

    \b
    Examples:
      norm-fusion export --to all.parquet
      norm-fusion export first second --pooled --to two.csv
      norm-fusion export first --table speedups --pooled | cut -d, -f2,8-19 | column -s, -t | less -S
      norm-fusion export first | duckdb -c "select status, count(*) from read_csv('/dev/stdin') group by all"
      duckdb -c "select profile, min(p50_ms) from 'all.parquet' where status = 'ok' and timer = 'graph' group by all"

    \b
    In Python, with pandas:
      frame = pandas.read_parquet("all.parquet")
      frame[(frame.status == "ok") & (frame.timer == "graph")].groupby(["case", "profile"]).p50_ms.median()
    """
    from norm_fusion.evidence import export

    with usage("norm-fusion export"):
        form = _checked(table, pooled, form, to)
        if columns:
            for column in export.TABLES[table]:
                typer.echo(f"{column.name:18}{column.kind:9}{column.about}")
            raise typer.Exit
        found, left_out = export.runs_of(runs or [], folders or [path for path in FOLDERS if path.is_dir()])
        told = [_tell(said) for said in left_out]
        rows = export.rows_of(found, table, pooled=pooled, tell=lambda said: told.append(_tell(said)))
        if not found:
            where = " and ".join(map(str, folders or FOLDERS))
            typer.echo(f"norm-fusion export: there are no runs in {where}: the table is empty", err=True)
        if to == "-":
            _to_stdout(rows, table, form)
        else:
            count = _to_file(rows, table, form, Path(to))
            typer.echo(f"norm-fusion export: {count:,} rows of {len(found)} runs in {to}", err=True)
        raise typer.Exit(int(bool(told)))


def _checked(table: str, pooled: bool, form: str | None, to: str) -> str:
    """The format; raises SpecError where what was asked cannot be."""
    from norm_fusion.evidence.export import POOLABLE, TABLES

    if table not in TABLES:
        raise SpecError(f"--table {table!r} is unknown: choose from {', '.join(TABLES)}")
    if pooled and table not in POOLABLE:
        raise SpecError(f"--pooled is for {' and '.join(POOLABLE)}, not for {table}: leave it out")
    if form is None:
        suffix = Path(to).suffix.lower()
        form = "csv" if to == "-" else FORMATS.get(suffix)
        if form is None:
            raise SpecError(f"--to {to}: the suffix tells no format: use {' or '.join(FORMATS)}, or add --format")
    if form not in FORMATS.values():
        raise SpecError(f"--format {form!r} is unknown: choose from {', '.join(FORMATS.values())}")
    if form == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as missing:
            if missing.name != "pyarrow":
                raise
            raise SpecError("Parquet needs pyarrow: pip install 'norm-fusion[export]'; CSV does not") from None
        if to == "-" and sys.stdout.isatty():
            raise SpecError("Parquet is nothing for a terminal: name a file, --to FILE, or pipe it")
    return form


def _tell(said: str) -> str:
    typer.echo(f"norm-fusion export: not believed: {said}", err=True)
    return said


def _to_stdout(rows: Iterable[Row], table: str, form: str) -> None:
    """CSV as the rows come, until its reader has enough; Parquet when it is whole."""
    gone: list[OSError] = []

    def bears(error: OSError) -> bool:
        gone.append(error)
        return error.errno in GONE

    sys.stdout.flush()
    out = cast("BinaryIO", Lasting(cast("TextIO", sys.stdout.buffer), bears))
    if form == "csv":
        write_csv(takewhile(lambda _: not gone, rows), table, out)
    else:
        with tempfile.TemporaryFile() as file:
            write_parquet(rows, table, file)
            file.seek(0)
            shutil.copyfileobj(file, out)
    out.flush()


def _to_file(rows: Iterable[Row], table: str, form: str, path: Path) -> int:
    with whole(path) as file:
        return (write_csv if form == "csv" else write_parquet)(rows, table, file)


def write_csv(rows: Iterable[Row], table: str, out: BinaryIO) -> int:
    """Write them in UTF-8, quoted as RFC 4180 says, after a line of names; returns how many there were.

    Lines end in a line feed. Text that a spreadsheet would run gets an apostrophe before it.
    """
    from norm_fusion.evidence.export import TABLES

    class Lines:
        def write(self, line: str) -> None:
            # The module quotes what is in its own line's end, \r and \n; column, cut and awk want \n alone there.
            out.write((line[:-2] + "\n").encode())

    writer = csv.writer(Lines(), lineterminator="\r\n")
    writer.writerow(column.name for column in TABLES[table])
    count = 0
    for row in rows:
        writer.writerow(map(_shown, row))
        count += 1
    return count


def _shown(cell: Cell) -> Cell:
    """A cell as CSV has it."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(RUN_BY_SPREADSHEETS) else cell


def write_parquet(rows: Iterable[Row], table: str, out: BinaryIO) -> int:
    """Write them, a row group for each chunk, with what each column holds; returns how many there were."""
    import pyarrow as pa
    from pyarrow import parquet

    from norm_fusion.evidence.export import TABLES
    from norm_fusion.records import SCHEMA

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    fields = [pa.field(one.name, kinds[one.kind], metadata={"about": one.about}) for one in TABLES[table]]
    about = {"norm_fusion": __version__, "norm_fusion.table": table, "norm_fusion.schema": str(SCHEMA)}
    schema = pa.schema(fields, metadata=about)
    count = 0
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for chunk in chunked(rows):
            cells = zip(*chunk, strict=True)
            arrays = [pa.array(list(mine), field.type) for mine, field in zip(cells, fields, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(chunk)
    return count


def chunked(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    """CHUNK_ROWS at a time, fewer where their text has CHUNK_CHARACTERS."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(cell) for cell in row if isinstance(cell, str))
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block has ended well; until then, and else, what had the name stays.

    Raises:
        SpecError: it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():
        raise SpecError(f"{path} is no file: name one, or leave --to out and pipe what is printed")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
