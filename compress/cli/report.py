"""compress report."""

from __future__ import annotations

from pathlib import Path

import click

from compress.cli.console import say
from compress.cli.parameters import Words
from compress.cli.tracking import track, trackers, tracking_options

FORMATS = ("html", "md", "csv", "plots")  # those of `compress.reporting.FORMATS`, whose import takes a second


@click.command(short_help="Write the reports of a finished run again.")
@click.argument("run_directory", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    type=Words(FORMATS),
    default=",".join(FORMATS),
    show_default=True,
    help="report.html, report.md (fits a pull-request comment), report.csv, plots/ of the weights.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to. [default: RUN_DIR]")
@tracking_options()
def report(
    run_directory: Path, formats: tuple[str, ...], out: Path | None, mlflow: str | None, tensorboard: Path | None
) -> int:
    """Write the reports of the finished run in RUN_DIR again, from its report.json alone.

    Nothing is measured. The same report.json gives the same bytes; what a newer version of compress draws better, it
    draws better of old runs too. report.json is checked against its JSON Schema first.

    \b
    Examples:
      compress report compressed
      compress report compressed --format html --out public
      compress report compressed --format md --out comment
      compress report compressed --mlflow --tensorboard logs
    """
    from compress.reporting import render
    from compress.workspace import Workspace, read_run

    target, logs = Workspace(out or run_directory), trackers(mlflow, tensorboard)
    files = render(read_run(run_directory), formats)
    for name, content in files.items():
        say(str(target.write(name, content)))
    if target.root.resolve() == run_directory.resolve():
        target.update_manifest(files)
    track(logs, run_directory)
    return 0
