"""compress demo."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from compress.cli.console import Display, say
from compress.cli.options import result_options

THREADS = 1  # more would only wait for each other in so small a model
# 270 validation images cannot tell a drop of 0.005 from none: a longer search would overdo it now and then.
GENTLE = ("prune.macs=0.7", "prune.rounds=1", "sparsify.start=0.8", "sparsify.rounds=2", "benchmark.seconds=1")


@click.command(short_help="Train and compress a small model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Directory for the model and the run.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training and of the run.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in --out.")
@result_options()
def demo(out: Path, seed: int, overwrite: bool, quiet: bool, as_json: bool) -> int:
    """Train a small CNN on handwritten digits in seconds, then compress it.

    \b
    Example:
      compress demo --out demo
    """
    import torch

    from compress.cli.results import show_report
    from compress.demo import train_digits
    from compress.pipeline import run
    from compress.recipe import load_recipe
    from compress.workspace import Workspace

    torch.set_num_threads(THREADS)
    run_directory = out / "compressed"
    options = {"data": "digits", "objective": "size", "threads": THREADS, "seed": seed, "out": run_directory}
    Workspace.open(run_directory, overwrite=overwrite)
    with Display(quiet) as display:
        model = train_digits(out / "model.pt", seed, display)
        recipe = load_recipe(model, {**options, "overwrite": True}, overrides=GENTLE)
        report = run(recipe, display, command := _command(model, options))
    if not as_json:
        say(f"$ {command}\n")
    return show_report(report, run_directory, as_json=as_json)


def _command(model: Path, options: Mapping[str, object]) -> str:
    """What a user types for the same run."""
    given = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return shlex.join(["compress", "pipeline", str(model), *given, *(w for each in GENTLE for w in ("--set", each))])
