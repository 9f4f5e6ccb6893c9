"""compress train."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import Display, emit, say, show_table
from compress.cli.options import (
    common_options,
    data_options,
    model_options,
    recipe_from,
    recipe_options,
    result_options,
)
from compress.cli.parameters import OneOf
from compress.errors import ModelError, RecipeError, WorkspaceError

if TYPE_CHECKING:
    from compress.opening import Opened
    from compress.recipe import Recipe
    from compress.sparsity.comparison import Comparison
    from compress.values import Model

# Options of this command -> fields of the recipe's [train].
FIELDS = {
    "epochs": "epochs",
    "seeds": "seeds",
    "margin": "margin",
    "fresh": "fresh",
    "interval": "interval",
    "threshold": "realtime.tolerance",
    "sparsity": "realtime.sparsity",
    "score": "realtime.score",
}
WRITTEN = (
    "comparison.json", "comparison.md", "comparison.html", "comparison.svg", "comparison.png", "history.csv",
)  # fmt: skip
MADE = "weights-seed*.safetensors"
ARMS = "arms"  # every training that is done: what --resume reads
# Fields of the settings that training on labels alone, or this command, does not use.
UNUSED = ("finetune.temperature", "finetune.distillation", "finetune.dropout", "realtime.interval")


@click.command(short_help="Train with and without pruning; is there a difference?")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@data_options()
@click.option("--out", type=click.Path(path_type=Path), default="trained", show_default=True, help="Where to write.")
@click.option("--resume", is_flag=True, help="Keep the trainings that an earlier run finished in --out.")
@click.option("--overwrite", is_flag=True, help="Replace what is in --out.")
@click.option("--seeds", type=int, help="Pairs of trainings: --seed, --seed + 1, … [default: 5]")
@click.option("--epochs", type=float, help="Passes over the training data in each training. [default: 15]")
@click.option("--interval", help="Between two decisions: '1 epoch', '0.5 epochs', or steps. [default: 1 epoch]")
@click.option("--threshold", type=float, help="How far the loss may be above its best. [default: 0.01]")
@click.option("--sparsity", type=float, help="Share of the weights that is removed at most. [default: 0.9]")
@click.option(
    "--score",
    type=OneOf(("lamp", "magnitude", "taylor", "random")),
    help="What is removed first. [default: lamp]",
)
@click.option("--margin", type=float, help="Drop of accuracy that does not matter. [default: 0.01]")
@click.option("--fresh", is_flag=True, default=None, help="From new weights of MODEL's architecture for each seed.")
@common_options()
@model_options()
@recipe_options()
@result_options()
def train(
    model: Path | None, out: Path, resume: bool, overwrite: bool, quiet: bool, as_json: bool, **options: Any
) -> int:
    """Train with pruning in real time and without it, and test whether the accuracy differs.

    From the weights of MODEL, or, without MODEL, from new ones that --factory draws for each seed. The two trainings of
    a seed differ in the pruner alone: same weights, samples, order and settings. Writes comparison.json, .md, .html,
    .svg and .png, history.csv, the sparse weights of each seed, and arms/ for --resume. Exit status 3 where the loss of
    accuracy is significant and above --margin.

    \b
    Examples:
      compress train --factory compress.models.reference:FineGrainedCNN --data mnist-5k --epochs 15 --seeds 5
      compress train model.pt --data digits --epochs 5 --seeds 3 --sparsity 0.8 --out fine-tuned
      compress train model.pt --fresh --data digits --interval 20 --threshold 0.02
    """
    from compress.opening import open_inputs
    from compress.sparsity.comparison import check, compare
    from compress.workspace import fingerprint

    given = {f"train.{field}": options.pop(name) for name, field in FIELDS.items()}
    recipe = recipe_from(model, {**options, **given})
    if recipe.data is None:
        raise RecipeError("train needs labelled data: give --data. See `compress train --help`.")
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        original = opened.needs_classifier("train")
        check(recipe.train, opened.data)  # before --overwrite deletes anything
        _open_directory(out, resume=resume, overwrite=overwrite)
        identity = fingerprint(opened=opened.identity, device=opened.device)
        make_model = _maker(original, opened, recipe)
        comparison = compare(make_model, recipe.train, opened.context(out, recipe, display), identity=identity)
    report = _write(comparison, opened, recipe, out)
    if as_json:
        emit(report)
    else:
        _show(report)
        say(f"{out}: {', '.join(WRITTEN)}, {MADE.replace('*', 'N')}")
    return 3 if comparison.verdict.outcome == "loss" and comparison.tests.mean > recipe.train.margin else 0


def _open_directory(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Make ``out`` ready: empty but for foreign files, or with the trainings to keep."""
    if resume and overwrite:
        raise WorkspaceError("--resume keeps what is there and --overwrite deletes it: give one of them.")
    if out.exists() and not out.is_dir():
        raise WorkspaceError(f"--out {out} is a file. Give a directory.")
    if not out.is_dir() or resume:
        return
    if any(out.iterdir()) and not overwrite:
        raise WorkspaceError(
            f"--out {out} is not empty. Give --resume to keep its finished trainings, --overwrite to replace them, "
            "or another directory."
        )
    for path in (*(out / name for name in WRITTEN), *out.glob(MADE)):
        path.unlink(missing_ok=True)
    shutil.rmtree(out / ARMS, ignore_errors=True)


def _maker(original: Model, opened: Opened, recipe: Recipe) -> Callable[[int], Model]:
    """What gives both trainings of a seed the weights that they start from."""
    from compress import models

    def from_factory(seed: int) -> Model:
        assert recipe.factory is not None  # open_inputs refuses to go without model and factory
        source = models.load_new(recipe.factory, recipe.factory_args, seed)
        return models.bind(source, original.inputs, opened.example)

    if recipe.model is None:
        return from_factory
    if recipe.train.fresh:
        return lambda seed: _with_new_weights(original, seed)
    return lambda seed: original


def _with_new_weights(original: Model, seed: int) -> Model:
    """The model with weights drawn anew by its layers' own ``reset_parameters``.

    Raises:
        ModelError: a weight keeps its values: no layer says how to draw it.
    """
    import copy
    from dataclasses import replace

    import torch

    from compress.pruning.reduction import reinitialise

    module = copy.deepcopy(original.module)
    reinitialise(module, seed)
    before = dict(original.module.named_parameters())
    same = [name for name, p in module.named_parameters() if p.ndim >= 2 and torch.equal(p, before[name])]
    if same:
        raise ModelError(
            f"--fresh cannot draw {', '.join(same[:4])} anew: no reset_parameters belongs to it. "
            "Leave MODEL out and give --factory, which builds the model with new weights."
        )
    return replace(original, module=module)


def _write(comparison: Comparison, opened: Opened, recipe: Recipe, out: Path) -> Mapping[str, Any]:
    """Write every file, and return the content of comparison.json."""
    import json

    from compress.files import write_atomically
    from compress.reporting.comparison_report import history_csv, render_html, render_markdown
    from compress.reporting.plot_comparison import plot_comparison
    from compress.reporting.plots import inline_svg, save_pictures
    from compress.workspace import to_json

    # Through JSON: what is shown is what can be read back.
    report: dict[str, Any] = json.loads(to_json({**_about(opened, recipe), **comparison.to_dict()}))
    write_atomically(out / "comparison.json", to_json(report))
    write_atomically(out / "comparison.md", render_markdown(report).encode())
    write_atomically(out / "history.csv", history_csv(report).encode())
    figure = plot_comparison(report)
    save_pictures(figure, out, "comparison")
    write_atomically(out / "comparison.html", render_html(report, inline_svg(figure)).encode())
    return report


def _about(opened: Opened, recipe: Recipe) -> dict[str, Any]:
    """What a reader needs to judge or repeat the comparison."""
    import torch

    from compress.measurement.environment import environment

    data = opened.data
    assert data is not None
    splits = {split.name: len(split) for split in (data.train, data.validation, data.test)}
    return {
        "schema": 1,
        "command": shlex.join(["compress", *sys.argv[1:]]),
        "seed": recipe.seed,
        "settings": {"weights to start from": _start(recipe), **_settings(recipe)},
        "data": {"name": data.name, **splits, "sha256": data.sha256},
        "environment": {**environment(torch.get_num_threads()), "device": opened.device},
        "notes": list(opened.notes),
    }


def _start(recipe: Recipe) -> str:
    if recipe.model is None:
        return f"new ones of {recipe.factory} for each seed"
    return f"new ones of {recipe.model.name}'s layers for each seed" if recipe.train.fresh else recipe.model.name


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The fields of [train] that were used, by their dotted names."""
    import dataclasses

    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(recipe.train).items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in (*UNUSED, "fresh")}


def _show(report: Mapping[str, Any]) -> None:
    from compress.reporting.comparison_report import arm_table, seed_table, tests_table

    for table in (seed_table(report), arm_table(report), tests_table(report)):
        show_table(table.columns, table.rows)
        say("")
    say(report["verdict"]["sentence"])
