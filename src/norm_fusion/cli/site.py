"""The command that builds the site. No torch."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from norm_fusion import backends
from norm_fusion.cli.decide import AsOfOption
from norm_fusion.cli.options import existing, lab, name_left_out, usage
from norm_fusion.spec import SpecError


@lab.command(
    "site",
    epilog="Exit codes: 0 built; 1 built, and a file or a run was left out, as it cannot be read or was changed; 2 bad "
    "usage, or a decision that is wrong.",
)
def _site(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of the site.")] = Path("site"),
    parents: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="DIR", help="A folder that holds runs; repeatable.  [default: evidence and runs]"
        ),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            "--decisions", metavar="DIR", help="Folder of the decisions.  [default: decisions; with --from none]"
        ),
    ] = None,
    as_of: AsOfOption = None,
) -> None:
    """Build a site of decisions, experiments and runs.

    Static pages that open from a file, without a server and without a network. Runs whose files have not changed
    are not made again. Open DIR/index.html, or copy DIR to any web server.

    \b
    Examples:
      norm-fusion site --output site
      norm-fusion site --from runs --output my-runs
      python -m http.server --directory site
    """
    from norm_fusion.runs import suites

    with usage("norm-fusion site"):
        try:
            from norm_fusion.site.build import Asked, build
        except ModuleNotFoundError as missing:
            raise SpecError(f"a site needs {missing.name}: install norm-fusion[report]") from None
        folders = parents or [path for path in (Path("evidence"), Path("runs")) if path.is_dir()]
        existing(folders)
        existing([decisions] if decisions is not None else [], "--decisions", "decisions")
        began = time.perf_counter()
        made = build(
            Asked(
                output=output,
                folders=folders,
                decisions=decisions or (Path("decisions") if not parents and Path("decisions").is_dir() else None),
                suites=[suites.load(name) for name in suites.names()],
                summaries={name: profile.summary for name, profile in backends.BY_NAME.items()},
                as_of=(as_of or datetime.now(UTC)).date(),
            ),
            lambda said: typer.echo(said, err=True),
        )
        name_left_out("norm-fusion site", made.left_out, "left out")
        took = time.perf_counter() - began
        typer.echo(f"{made.runs} runs, {made.anew} of them anew, {made.pages} files, {took:.1f} s", err=True)
        typer.echo(made.index)
        raise typer.Exit(int(bool(made.left_out)))
