"""compress demo."""

from __future__ import annotations

from pathlib import Path

import click

from compress.cli.console import Display, say
from compress.cli.options import result_options

# 270 validation images cannot tell a drop of 0.005 from none: a longer search would overdo it now and then.
GENTLE = "--set prune.macs=0.7 --set prune.rounds=1 --set sparsify.start=0.8 --set sparsify.rounds=2"


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

    torch.set_num_threads(1)  # so small a model is trained sooner than several threads have agreed on their shares
    run_directory = out / "compressed"
    Workspace.open(run_directory, overwrite=overwrite)
    with Display(quiet) as display:
        model = train_digits(out / "model.pt", seed, display)
        command = (
            f"compress pipeline {model} --data digits --objective size --seed {seed} --out {run_directory} {GENTLE}"
        )
        options = {"data": "digits", "objective": "size", "seed": seed, "out": run_directory, "overwrite": True}
        report = run(load_recipe(model, options, overrides=GENTLE.split()[1::2]), display, command)
    if not as_json:
        say(f"$ {command}\n")
    return show_report(report, run_directory, as_json=as_json)
