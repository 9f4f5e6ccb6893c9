"""compress sparsify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display, emit, say, show_table
from compress.cli.options import (
    common_options,
    data_options,
    model_options,
    output_option,
    recipe_from,
    recipe_options,
    result_options,
)
from compress.cli.parameters import OneOf, Shares
from compress.units import signed

# Options of this command that are fields of the recipe's [sparsify] and have no short name there.
FIELDS = ("layers", "pattern", "zip_bytes", "schedule", "score", "scope")


@click.command(short_help="Make weights zero, within the budget.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("sparse.safetensors", "The sparse weights, a safetensors file.")
@click.option("--max-drop", type=float, help="Accuracy that may be lost, as a fraction. [default: 0.01]")
@click.option("--sparsity", type=float, help="Share of weights to remove; default: the most within the budget.")
@click.option("--layers", type=Shares(), help="Instead: each layer its own share. [default: none]")
@click.option("--pattern", metavar="N:M", help="Instead: N of each M weights stay, along the input axis: 2:4.")
@click.option("--zip-bytes", type=int, help="Instead: as sparse as it takes to zip to so many bytes, as predicted.")
@click.option(
    "--schedule",
    type=OneOf(("cubic", "one-shot", "iterative", "reactive")),
    help="When weights go: on a curve, at once, cut and retrain in turns, as the loss allows. [default: cubic]",
)
@click.option("--score", type=OneOf(("lamp", "magnitude", "taylor", "random")), help="Which go first. [default: lamp]")
@click.option("--scope", type=OneOf(("global", "layer")), help="Ranked among all, or the same share of each layer.")
@click.option("--epochs", type=float, help="Passes over the training data in each round. [default: 3]")
@common_options()
@model_options()
@recipe_options()
@result_options()
def sparsify(model: Path, out: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Make as many weights of MODEL zero as its accuracy allows, with fine-tuning.

    The whole of --max-drop is used here, unless --set sparsify.budget says otherwise. Exit status 3 where no sparsity
    kept the accuracy: then nothing is written.

    \b
    Examples:
      compress sparsify model.pt --data fashion-mnist
      compress sparsify model.pt --data digits --sparsity 0.9 --epochs 5 --out sparse.safetensors
      compress sparsify model.pt --data digits --layers 0=0.5,5=0.9,7=0.9 --schedule one-shot
      compress sparsify model.pt --data digits --pattern 2:4
    """
    from compress.files import write_atomically
    from compress.models import save_state
    from compress.opening import open_inputs
    from compress.sparsity import sparsify as run_stage

    fields = {f"sparsify.{name}": options.pop(name) for name in FIELDS}
    options["overrides"] = ("sparsify.budget=1", *options["overrides"])
    recipe = recipe_from(model, {**options, **fields})
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        original = opened.needs_classifier("sparsify")
        sparse, record = run_stage(original, recipe.sparsify, opened.context(out.parent, recipe, display))
    if not record.skipped:
        write_atomically(out, save_state(sparse.module))
    if as_json:
        emit({"file": None if record.skipped else out, **asdict(record)})
        return 3 if record.skipped else 0
    if record.figures["rounds"]:
        _show_rounds(record.figures["rounds"])
    if record.skipped:
        say(f"Nothing written: {record.skipped}.")
        return 3
    for note in record.notes[2:]:
        say(note)
    say(f"{out}: {record.figures['sparsity']:.2%} of {record.figures['weights']:,} weights are zero.")
    return 0


def _show_rounds(rounds: Sequence[Mapping[str, Any]]) -> None:
    show_table(
        ("round", "sparsity", "drop on validation", "within the budget"),
        [
            (str(n), f"{r['sparsity']:.2%}", signed(r["drop"]), "yes" if r["within"] else "no")
            for n, r in enumerate(rounds, 1)
        ],
    )
