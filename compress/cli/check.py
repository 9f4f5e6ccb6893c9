"""compress check."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, say
from compress.cli.parameters import OneOf
from compress.units import milliseconds, whole_bytes

if TYPE_CHECKING:
    from compress.reporting.gate import Limits, Line

NOT_MET = 3
SUMMARY = "GITHUB_STEP_SUMMARY"  # GitHub names the file of the job summary in it


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # click before 8.5 cannot be subscripted
    """A number with its unit."""

    def __init__(self, name: str, read: Callable[[object], float]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_DURATION = _Quantity("TIME", milliseconds)
_SIZE = _Quantity("SIZE", whole_bytes)


@click.command(short_help="Hold a finished run against limits, for a release step.")
@click.argument("run_directory", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--max-drop", type=float, help="Accuracy that may be lost on test, as a fraction: 0.01.")
@click.option("--min-accuracy", type=float, help="Accuracy on test, or your own --metric where the run has one.")
@click.option("--min-zip-ratio", type=float, help="Original bytes / bytes of model.onnx.zip.")
@click.option("--min-speedup", type=float, help="p50 of the original / p50 of what ships.")
@click.option("--max-p50", type=_DURATION, help="Median latency: 3ms, 800us. A bare number is milliseconds.")
@click.option("--max-p95", type=_DURATION, help="Latency that 95 % of the calls keep to.")
@click.option("--max-bytes", type=_SIZE, help="Bytes of model.onnx.zip: 1MB (10^6), 1MiB (2^20), or a bare number.")
@click.option("--max-peak-memory", type=_SIZE, help="Peak memory of the process that ran it: 200MB.")
@click.option("--provider", help="Latency on this provider: cpu, cuda, …  [default: the first that was measured]")
@click.option("--batch", type=int, help="Latency at this batch size. [default: the first that was measured]")
@click.option("--threads", type=int, help="Latency with so many threads. [default: the first that was measured]")
@click.option("--strict", is_flag=True, default=None, help="The worse end of each 95 % interval must meet its limit.")
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="Limits of its [check] table, too.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the lines here as JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines, and nothing else.")
@click.option(
    "--github",
    type=OneOf(("auto", "yes", "no")),
    default="auto",
    show_default=True,
    help="Annotations and job summary of GitHub Actions; auto: where it runs this.",
)
def check(
    run_directory: Path, junit: Path | None, as_json: bool, github: str, recipe_file: Path | None, **options: Any
) -> int:
    """Hold what ships from the run in RUN_DIR against limits: exit status 0 where all are met, 3 where one is not.

    Nothing is measured again: figures are those of report.json, and the files must be those of manifest.json. A limit
    that lies inside the 95 % interval of its figure is a warning, and a failure with --strict. Limits that a team
    shares belong in the [check] table of compress.toml; those given here win.

    \b
    Examples:
      compress check compressed --max-drop 0.01 --min-zip-ratio 8 --min-speedup 2
      compress check compressed --max-p95 5ms --max-bytes 1MB --batch 1 --threads 1 --strict
      compress check compressed --recipe release.toml --junit check.xml
    """
    from compress.files import write_atomically
    from compress.integrity import check_files
    from compress.reporting import gate
    from compress.reporting.junit import junit_xml
    from compress.workspace import read_run

    limits = _limits(options, recipe_file)
    if not limits.asked:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in gate.LIMITS)
        raise click.UsageError(
            f"no limit was given. Give at least one of {names}, or a [check] table in compress.toml."
        )
    report, files = read_run(run_directory), check_files(run_directory)
    lines = (gate.files_line(files.problems, files.count), *gate.check(report, limits))
    if junit is not None:
        write_atomically(junit, junit_xml(lines, str(run_directory)))
    if github == "yes" or (github == "auto" and os.environ.get("GITHUB_ACTIONS") == "true"):
        _tell_github(lines, report, run_directory, to_stderr=as_json)
    if as_json:
        emit(gate.as_dict(lines, report))
    else:
        _show(lines)
    return 0 if gate.passed(lines) else NOT_MET


def _limits(options: dict[str, Any], recipe_file: Path | None) -> Limits:
    """The [check] table of the recipe file, with what was given on the command line in its place."""
    from compress.recipe import load_recipe

    given = {f"check.{name}": value for name, value in options.items() if value is not None}
    return load_recipe(None, given, file=recipe_file).check


def _show(lines: Sequence[Line]) -> None:
    for line in lines:
        mark = "FAILED " if not line.met else "WARNING" if line.warning else "ok     "
        say(f"{mark} {line.sentence}")
    failed, warned = sum(not line.met for line in lines), sum(line.met and line.warning for line in lines)
    told = f"{failed} of {len(lines)} not met." if failed else f"All {len(lines)} met."
    say(f"{told}{f' {warned} of them might not be, if measured again.' if warned else ''}")


def _tell_github(lines: Sequence[Line], report: dict[str, Any], run: Path, to_stderr: bool) -> None:
    """The runner reads commands from both streams: with --json, standard output is left to the document."""
    from compress.cli.console import complain
    from compress.errors import WorkspaceError
    from compress.reporting.annotations import job_summary, workflow_commands

    for command in workflow_commands(lines, str(run)):
        (complain if to_stderr else say)(command)
    if summary := os.environ.get(SUMMARY):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(job_summary(lines, report))
        except OSError as error:
            told = f"{SUMMARY}={summary} cannot be written: {error.strerror or error}."
            raise WorkspaceError(f"{told} Unset it, or give --github no.") from error
