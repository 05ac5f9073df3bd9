"""Watching a run: a live bar for each card on a terminal, a line per case elsewhere. All on stderr: stdout is for
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from norm_fusion.records import Record, Status
from norm_fusion.report.rows import duration
from norm_fusion.report.table import machine
from norm_fusion.spec import CONTROL, ROOF


class Watch:
    """The listener of a run, to be used as a context manager: called with a card's name and what its shard tells."""

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
        self.about: dict[str, str] = {}  # by card: which process
        self.first: TaskID | None = self.bar.add_task("starting the measuring process (imports PyTorch)", total=None)
        self.rows: dict[str, TaskID] = {}
        self.profiled: set[str] = set()

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, where: str, message: Any) -> None:
        """`message`: one of the engine's."""
        match message.kind:
            case "began":
                if not self.console.is_terminal:
                    self.say(where, machine(message.environment).plain)
            case "process":
                self.process(where, message.number, message.of, message.cases, message.attempt, message.steps)
            case "step":
                self.bar.update(self._row(where), description=self._named(where, f"{message.case}, {message.what}"))
                self.bar.advance(self._row(where))
            case "measured":
                self.measured(where, [record for record, _ in message.made])
            case "counted":
                self.counted(where, message.counters.case)
            case "ended":
                width = message.widest
                known = "" if width is None else "; widest interval "
                known += "" if width is None else f"{'±' if width < 1 else 'over ±'}{min(width, 1.0):.1%}"
                self.say(where, f"{self.about.get(where, '')}: {message.took_s:.0f} s{known}", style="dim")
            case "refused" | "note":
                self.say(where, message.message if message.kind == "refused" else message.text, style="yellow")

    def process(self, where: str, number: int, of: tuple[int, int], cases: int, attempt: int, steps: int) -> None:
        fewest, most = of
        known = f"{fewest}" if most == fewest else f"at least {fewest}" if number <= fewest else f"at most {most}"
        about = f"process {number} of {known}" if most > 1 else "one process"
        if attempt:
            noisy = "1 noisy case" if cases == 1 else f"{cases} noisy cases"
            about = f"{noisy} again (rerun {attempt}), {about}"
        self.about[where] = about
        self.bar.update(self._row(where), total=steps, completed=0, description=self._named(where))

    def measured(self, where: str, records: Sequence[Record]) -> None:
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
        self.say(where, f"{records[0].case}: {said}")

    def counted(self, where: str, case: str) -> None:
        if case not in self.profiled:
            self.profiled.add(case)
            self.say(where, f"{case}: hardware counters", style="dim")

    def say(self, where: str, text: str, style: str | None = None) -> None:
        said = f"{where}: {text}" if where else text
        self.console.print(said, soft_wrap=True, highlight=False, style=style)

    def _named(self, where: str, doing: str = "") -> str:
        return ": ".join(word for word in (where, self.about.get(where, ""), doing) if word)

    def _row(self, where: str) -> TaskID:
        """The bar of a card; the first takes the one that was there while nothing had begun."""
        if where not in self.rows:
            self.rows[where] = self.first if self.first is not None else self.bar.add_task("", total=None)
            self.first = None
        return self.rows[where]
