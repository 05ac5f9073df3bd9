"""Watching a run: a live bar on a terminal, a line per case elsewhere. All on stderr: stdout is for results."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from norm_fusion.records import Environment, Record, Status
from norm_fusion.report.rows import duration
from norm_fusion.report.table import machine
from norm_fusion.spec import CONTROL, ROOF


class Watch:
    """The listener of a run, to be used as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.about = ""
        self.task = self.bar.add_task("starting the measuring process (imports PyTorch)", total=None)

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def started(self, environment: Environment) -> None:
        if not self.console.is_terminal:
            self.console.print(machine(environment), soft_wrap=True)

    def process(self, number: int, of: tuple[int, int], cases: int, attempt: int, steps: int) -> None:
        fewest, most = of
        known = f"{fewest}" if most == fewest else f"at least {fewest}" if number <= fewest else f"at most {most}"
        self.about = f"process {number} of {known}" if most > 1 else "one process"
        if attempt:
            noisy = "1 noisy case" if cases == 1 else f"{cases} noisy cases"
            self.about = f"{noisy} again (rerun {attempt}), {self.about}"
        self.bar.update(self.task, total=steps, completed=0, description=self.about)

    def step(self, case: str, what: str) -> None:
        self.bar.update(self.task, description=f"{self.about}: {case}, {what}")
        self.bar.advance(self.task)

    def measured(self, records: Sequence[Record]) -> None:
        if not records or records[0].replicate:
            return
        timed = [
            (record.p50_ms, record)
            for record in records
            if record.p50_ms is not None and record.timer in ("device", "wall") and record.cache == "cold"
            if record.status is Status.OK and record.profile not in (ROOF, CONTROL)
        ]
        ms, fastest = min(timed, key=lambda pair: pair[0], default=(0.0, None))
        said = "nothing timed" if fastest is None else f"fastest {fastest.profile} {duration(ms)} ({fastest.timer})"
        self.console.print(f"{records[0].case}: {said}", soft_wrap=True, highlight=False)

    def ended(self, number: int, took_s: float, widest: float | None) -> None:
        width = "" if widest is None else f"; widest interval {'±' if widest < 1 else 'over ±'}{min(widest, 1.0):.1%}"
        self.console.print(f"{self.about}: {took_s:.0f} s{width}", soft_wrap=True, highlight=False, style="dim")
