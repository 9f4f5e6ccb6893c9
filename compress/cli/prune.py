"""compress prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from compress.cli.parameters import OneOf
from compress.units import signed

# Options of this command that are fields of the recipe's [prune].
FIELDS = ("ratio", "speedup", "macs", "parameters", "importance", "round_to", "keep", "rounds", "epochs")
IMPORTANCES = ("l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "fisher", "random")


@click.command(short_help="Cut channels out, within the budget.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("pruned", "Directory for the smaller model: weights, what it kept, ONNX.", directory=True)
@click.option("--max-drop", type=float, help="Accuracy that may be lost, as a fraction. [default: 0.01]")
@click.option("--speedup", type=float, help="How many times faster on this machine; default: the most in the budget.")
@click.option("--ratio", type=float, help="Or: share of the channels that leave every group.")
@click.option("--macs", type=float, help="Or: share of the multiply-accumulates that stays.")
@click.option("--parameters", type=float, help="Or: share of the parameters that stays.")
@click.option("--importance", type=OneOf(IMPORTANCES), help="Which channels leave first. [default: lamp]")
@click.option("--round-to", type=int, help="Kept counts are multiples of it; 1: any count. [default: 8]")
@click.option("--keep", multiple=True, metavar="PATTERN", help="Groups or parameters that stay whole: 'layer4.*'.")
@click.option("--rounds", type=int, help="Fine-tunings at most. [default: 4]")
@click.option("--epochs", type=float, help="Passes over the training data in each round. [default: 3]")
@common_options()
@model_options()
@recipe_options()
@result_options()
def prune(model: Path, out: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Take as many channels out of MODEL as its accuracy allows, with fine-tuning: it becomes smaller and faster.

    Without --speedup, --ratio, --macs or --parameters the most that the budget allows is searched. The whole of
    --max-drop is used here, unless --set prune.budget says otherwise. Exit status 3 where no reduction kept the
    accuracy: then nothing is written.

    \b
    Examples:
      compress prune model.pt --data fashion-mnist
      compress prune model.pt --data digits --ratio 0.5 --epochs 5
      compress prune model.pt --data images:photos --size 224 --speedup 3 --keep 'layer1.*'
    """
    from compress.onnx_export import export
    from compress.opening import open_inputs
    from compress.pruning import prune_to_budget, save_pruned
    from compress.speed import measured_speedup
    from compress.values import Model

    given = {f"prune.{name}": options.pop(name) for name in FIELDS}
    options["overrides"] = ("prune.budget=1", *options["overrides"])
    recipe = recipe_from(model, {**options, **given})
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        original = opened.needs_classifier("prune")
        context = opened.context(out, recipe, display)

        def measure(before: Model, after: Model) -> float:
            return measured_speedup(before, after, recipe.export, context, recipe.benchmark.first_threads)

        smaller, record = prune_to_budget(original, recipe.prune, context, measure)
        faster: float | None = None
        if not record.skipped:
            assert smaller.kept is not None
            save_pruned(smaller.module, smaller.kept, out, smaller.skipped)
            export(smaller, recipe.export, replace(context, directory=out))
            faster = measure(original, smaller)
    if as_json:
        emit({"directory": None if record.skipped else out, "speedup": faster, **asdict(record)})
        return 3 if record.skipped else 0
    _show_rounds(record.figures["rounds"])
    if record.skipped:
        say(f"Nothing written: {record.skipped}.")
        return 3
    for name, (before, after) in record.figures["widths"].items():
        say(f"{name}: {before} -> {after or 'left out'}")
    say(f"{record.notes[0]}; as float ONNX {faster:.2f}x as fast.")
    say(f"{out}: weights.safetensors, kept.json, model.onnx")
    return 0


def _show_rounds(rounds: Sequence[Mapping[str, Any]]) -> None:
    show_table(
        ("round", "left", "MACs", "parameters", "drop on validation", "within the budget"),
        [
            (
                str(n),
                f"{r['left']:.1%}",
                f"{r['macs']:,}",
                f"{r['parameters']:,}",
                signed(r["drop"]),
                "yes" if r["within"] else "no",
            )
            for n, r in enumerate(rounds, 1)
        ],
    )
