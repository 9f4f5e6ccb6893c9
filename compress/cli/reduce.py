"""compress reduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from compress.data import Data
    from compress.measurement import Score
    from compress.measurement.metrics import Metric
    from compress.pruning.history import History
    from compress.values import Model

# Options of this command that are fields of the recipe's [reduce].
FIELDS = ("step", "loss_threshold", "accuracy_threshold", "probes", "rounds", "epochs", "fresh")
WRITTEN = ("weights.safetensors", "kept.json", "history.json", "history.csv", "history.svg", "history.png")


@click.command(short_help="Cut neurons and channels, layer by layer.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("reduced", "Directory for the reduced model and its history.", directory=True)
@click.option("--step", type=float, help="Channels fewer in a first probe; below 1: a share. [default: 100]")
@click.option("--loss-threshold", type=float, help="Allowed rise of the validation loss. [default: 0.05]")
@click.option("--accuracy-threshold", type=float, help="Allowed drop of the validation accuracy. [default: 0.003]")
@click.option("--probes", type=int, help="Candidates retrained in a round, least important first. [default: all]")
@click.option("--rounds", type=int, help="Rounds at most. [default: 100]")
@click.option("--epochs", type=float, help="Passes over the training data for each candidate. [default: 1]")
@click.option("--fresh", is_flag=True, default=None, help="Train every candidate from new weights: a baseline.")
@common_options()
@model_options()
@recipe_options()
@result_options()
def reduce(model: Path, out: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Make layers of MODEL narrower for as long as retraining keeps it near the original.

    In each round layers are probed with fewer neurons or channels, retrained, and the best candidate is kept. Both
    thresholds are against the original model. Exit status 3 where no candidate was within them: then only the history
    is written.

    \b
    Examples:
      compress reduce model.pt --data fashion-mnist --step 100 --probes 1
      compress reduce model.pt --data digits --step 0.25 --accuracy-threshold 0.01 --out smaller
    """
    from compress.opening import open_inputs
    from compress.pruning.retraining import reduce_model
    from compress.pruning.saving import save

    given = {name: options.pop(name) for name in FIELDS}
    recipe = recipe_from(model, {**options, **{f"reduce.{name}": value for name, value in given.items()}})
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        original = opened.needs_classifier("reduce")
        smaller, record, reduction = reduce_model(original, recipe.reduce, opened.context(out, recipe, display))
    for name in WRITTEN:  # of an earlier run, with --overwrite
        (out / name).unlink(missing_ok=True)
    _write_history(reduction.history, out)
    if not record.skipped:
        save(smaller.module, reduction.kept, out)
    assert opened.data is not None
    scores = {} if record.skipped else _test_scores(original, smaller, opened.data, opened.metric)
    if as_json:
        test = {name: score.to_dict() for name, score in scores.items()}
        emit({"directory": out, **asdict(record), "history": reduction.history.to_dict(), "test": test})
        return 3 if record.skipped else 0
    _show_rounds(reduction.history)
    if record.skipped:
        say(f"No smaller model written: {record.skipped}. The history is in {out}.")
        return 3
    _show_sizes(reduction.history)
    _show_test(scores)
    say(f"{out}: {', '.join(name for name in WRITTEN if (out / name).exists())}")
    return 0


def _write_history(history: History, out: Path) -> None:
    from compress.files import write_atomically
    from compress.pruning.history import to_csv
    from compress.reporting.plot_history import plot_history
    from compress.reporting.plots import save_pictures
    from compress.workspace import to_json

    write_atomically(out / "history.json", to_json(history.to_dict()))
    write_atomically(out / "history.csv", to_csv(history).encode())
    save_pictures(plot_history(history), out, "history")


def _show_rounds(history: History) -> None:
    show_table(
        ("round", "reduced", "channels", "loss", "accuracy", "capacity (bits)", "parameters", "candidates"),
        [
            (
                str(r.number),
                r.chosen or ("original" if r.number == 0 else "nothing"),
                "" if r.chosen is None else str(r.widths[r.chosen]),
                f"{r.loss:.4f}",
                f"{r.accuracy:.4f}",
                f"{r.capacity:,}",
                f"{r.parameters:,}",
                str(len(r.trials)),
            )
            for r in history.rounds
        ],
    )


def _show_sizes(history: History) -> None:
    first, last = history.rounds[0], history.rounds[-1]
    for name, width in first.widths.items():
        say(f"{name}: {width} -> {last.widths[name]} channels")
    for what, before, after in (
        ("capacity", first.capacity, last.capacity),
        ("parameters", first.parameters, last.parameters),
    ):
        unit = " bits" if what == "capacity" else ""
        say(f"{what}: {before:,} -> {after:,}{unit} ({1 - after / before:.2%} less)")


def _test_scores(original: Model, smaller: Model, data: Data, metric: Metric | None) -> dict[str, Score]:
    """What the test split says of both: it had no part in the search."""
    from compress.measurement import outputs_of, score

    reference = outputs_of(original, data.test)
    return {
        "original": score(reference, reference, metric),
        "reduced": score(outputs_of(smaller, data.test), reference, metric),
    }


def _show_test(scores: Mapping[str, Score]) -> None:
    for name, found in scores.items():
        if found.metric is not None:
            say(f"test, {name}: {found.metric.name} {found.metric.value:.4f} (n={found.n})")
        elif found.accuracy is None:
            say(f"test, {name}: agrees with the original on {found.fidelity:.4f} (n={found.n})")
        else:
            a = found.accuracy
            say(f"test, {name}: accuracy {a.value:.4f} [{a.low:.4f}-{a.high:.4f}] (n={a.n})")
