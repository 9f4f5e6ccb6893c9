"""compress pipeline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display
from compress.cli.options import (
    SKIPPABLE,
    benchmark_options,
    common_options,
    data_options,
    model_options,
    objective_option,
    recipe_from,
    recipe_options,
    result_options,
    target_option,
)
from compress.cli.parameters import OneOf
from compress.cli.tracking import track, trackers, tracking_options


@click.command(short_help="Compress a model, end to end, with a report.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@click.option("--out", type=click.Path(path_type=Path), help="The run directory. [default: compressed]")
@click.option("--max-drop", type=float, help="Accuracy that may be lost, as a fraction. [default: 0.01]")
@objective_option("What ships.")
@click.option("--skip", multiple=True, type=OneOf(SKIPPABLE), help="A stage to leave out. Repeatable.")
@click.option("--resume", is_flag=True, default=None, help="Go on with the run in --out after its last finished stage.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace the run in --out.")
@click.option(
    "--speedup", type=float, help="What pruning aims at, as float ONNX here; default: the most in the budget."
)
@click.option("--ratio", type=float, help="Or: share of the channels that leave every group.")
@click.option("--sparsity", type=float, help="Share of weights to remove; default: the most within the budget.")
@click.option("--epochs", type=float, help="Passes over the training data in each round of fine-tuning. [default: 3]")
@target_option()
@click.option("--min-ort", metavar="RELEASE", help="Oldest onnxruntime that must read the files. [default: 1.18]")
@click.option("--ort", is_flag=True, default=None, help="Write model.ort too, onnxruntime's own format.")
@common_options()
@benchmark_options()
@model_options()
@recipe_options()
@result_options()
@tracking_options()
def pipeline(
    model: Path, quiet: bool, as_json: bool, mlflow: str | None, tensorboard: Path | None, **options: Any
) -> int:
    """Compress MODEL: prune, sparsify, export, quantize, benchmark, choose, report.

    MODEL is a pickled module, a state dict or safetensors file (with --factory), TorchScript, .pt2 or .onnx. The run
    directory gets model.onnx, its zip, report.md, report.html, report.json and every stage's files. Exit status 3 where
    no variant kept the accuracy.

    \b
    Examples:
      compress pipeline model.pt --data fashion-mnist
      compress pipeline model.pt --data npz:data.npz --max-drop 0.005 --objective size --out small
      compress pipeline weights.pt --factory ./net.py:Net --factory-args '{"width": 32}' --data images:photos
      compress pipeline model.pt --input 3x224x224        (no data: no fine-tuning)
      compress pipeline model.onnx --data fashion-mnist    (quantization, of a model from elsewhere)
      compress pipeline model.pt --resume
      compress pipeline model.pt --data fashion-mnist --json --quiet > report.json
    """
    from compress.cli.results import show_report
    from compress.pipeline import run

    recipe, logs = recipe_from(model, options), trackers(mlflow, tensorboard)
    command = shlex.join(["compress", *sys.argv[1:]])
    with Display(quiet) as display:
        report = run(recipe, display, command)
    track(logs, recipe.out)  # before the result: where it is refused, --json must leave standard output empty
    return show_report(report, recipe.out, as_json=as_json)
