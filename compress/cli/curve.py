"""compress curve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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
from compress.cli.parameters import OneOf, Shares, Words
from compress.errors import WorkspaceError

if TYPE_CHECKING:
    from compress.opening import Opened
    from compress.recipe import Recipe
    from compress.sparsity.curve_points import Area, Curves, Run
    from compress.sparsity.curves import CurveConfig

# Options of this command that are fields of the recipe's [curve].
FIELDS = ("methods", "rates", "seeds", "epochs", "layers", "split")
RUNS = "runs.json"  # every finished run: what --resume reads
WRITTEN = (RUNS, "curve.json", "curve.csv", "curve.svg", "curve.png")
METHODS = tuple(
    name + tuned for name in ("random", "layer", "flat", "lamp", "taylor", "custom") for tuned in ("", "+finetune")
)
# Which points there are, not what they are: runs of one call serve another that differs in these alone.
SELECTING = ("methods", "rates", "seeds")


@click.command(short_help="Accuracy against the share of weights removed.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@click.option("--out", type=click.Path(path_type=Path), default="curve", show_default=True, help="Directory to write.")
@click.option("--resume", is_flag=True, help="Keep the points that an earlier run left in --out.")
@click.option("--overwrite", is_flag=True, help="Replace what is in --out.")
@click.option(
    "--methods",
    type=Words(METHODS),
    help="random, layer, flat, lamp, taylor, custom; each also as NAME+finetune. [default: random,layer,flat,lamp]",
)
@click.option("--rates", metavar="RATES", help="start:stop:step and single ones, comma-separated. [default: 0:0.9:0.1]")
@click.option("--seeds", type=int, help="Runs of each random or fine-tuned point. [default: 3]")
@click.option("--epochs", type=float, help="Passes over the training data for a fine-tuned point. [default: 3]")
@click.option("--layers", type=Shares(), help="Dictionary of custom; default: suggested by the sensitivity of each.")
@click.option("--split", type=OneOf(("test", "validation")), help="Where points are scored. [default: test]")
@common_options()
@model_options()
@recipe_options()
@result_options()
def curve(model: Path, out: Path, resume: bool, overwrite: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Draw the accuracy of MODEL against the share of its weights removed, for several methods side by side.

    random and flat rank all weights together, by chance and by |weight|; layer takes the same share of each layer by
    |weight|; lamp and taylor (|weight·gradient|) rank all weights together; custom gives each layer its own share,
    scaled to the rate. With +finetune the model is distilled from itself while its weights go, --epochs for each point.
    Writes curve.csv, curve.json (areas and points), curve.png, curve.svg, and runs.json for --resume.

    \b
    Examples:
      compress curve model.pt --data mnist-5k --methods random,layer,flat,lamp --rates 0:0.9:0.1
      compress curve model.pt --data digits --methods flat,custom --layers fc1=0.9,fc2=0.5
      compress curve model.pt --data digits --methods lamp,lamp+finetune --rates 0:0.9:0.1,0.95,0.99 --epochs 5
    """
    from compress.opening import open_inputs
    from compress.sparsity.curves import measure_curves

    given = {f"curve.{name}": options.pop(name) for name in FIELDS}
    recipe = recipe_from(model, {**options, **given})
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        dense = opened.needs_classifier("curve")
        store = _Store.open(out, _identity(opened, recipe.curve), resume=resume, overwrite=overwrite)
        context = opened.context(out, recipe, display)
        config = dataclasses.replace(recipe.curve, layers=store.layers_for(dense, recipe.curve, context))
        curves = measure_curves(dense, config, context, finished=store.runs, after_run=store.add)
    written = _write(curves, model, opened, recipe, out)
    if as_json:
        emit(written)
        return 0
    _show(curves)
    say(f"{out}: {', '.join(WRITTEN[1:])}")
    return 0


def _identity(opened: Opened, config: CurveConfig) -> str:
    """sha256 of what decides the value of a run, given its method, rate and seed."""
    from compress.workspace import fingerprint

    deciding = {k: v for k, v in dataclasses.asdict(config).items() if k not in SELECTING}
    return fingerprint(opened=opened.identity, device=opened.device, config=deciding)


class _Store:
    """runs.json: written anew after every run, whole at any moment."""

    def __init__(self, path: Path, identity: str, runs: list[Run], layers: Mapping[str, float]) -> None:
        self._path, self._identity = path, identity
        self.runs, self._layers = runs, layers

    @classmethod
    def open(cls, out: Path, identity: str, *, resume: bool, overwrite: bool) -> _Store:
        """The runs to keep: those in ``out`` with --resume, else none.

        Raises:
            WorkspaceError: ``out`` holds something and neither was asked for, or runs of another model or config.
        """
        from compress.sparsity.curve_points import Run

        if resume and overwrite:
            raise WorkspaceError("--resume keeps what is there and --overwrite deletes it: give one of them.")
        if out.exists() and not out.is_dir():
            raise WorkspaceError(f"--out {out} is a file. Give a directory.")
        if out.is_dir() and any(out.iterdir()) and not (resume or overwrite):
            raise WorkspaceError(
                f"--out {out} is not empty. Give --resume to keep its points, --overwrite to replace them, "
                "or another directory."
            )
        path = out / RUNS
        if overwrite:
            for name in WRITTEN:
                (out / name).unlink(missing_ok=True)
        if not path.exists():
            return cls(path, identity, [], {})
        try:
            stored = json.loads(path.read_bytes())
            runs = [Run(**run) for run in stored["runs"]]
            theirs, layers = stored["fingerprint"], stored["layers"]
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{path} cannot be read ({error}). Start anew with --overwrite.") from error
        if theirs != identity:
            raise WorkspaceError(
                f"--resume: {path} was made from another model, other data or other options than "
                f"--{', --'.join(SELECTING)}. Give the same ones, or --overwrite, or another directory."
            )
        return cls(path, identity, runs, layers)

    def layers_for(self, model: Any, config: CurveConfig, context: Any) -> Mapping[str, float]:
        """The dictionary of custom: as given, as an earlier run found it, else suggested now."""
        from compress.sparsity.curves import FINE_TUNED, suggest_layers

        wanted = any(method.removesuffix(FINE_TUNED) == "custom" for method in config.methods)
        if wanted and not config.layers and not self._layers:
            self._layers = suggest_layers(model, config, context)
        return config.layers or (self._layers if wanted else {})

    def add(self, run: Run) -> None:
        from compress.files import write_atomically
        from compress.workspace import to_json

        self.runs.append(run)
        stored = {"fingerprint": self._identity, "layers": self._layers, "runs": self.runs}
        write_atomically(self._path, to_json(stored))


def _write(curves: Curves, model: Path, opened: Opened, recipe: Recipe, out: Path) -> Mapping[str, Any]:
    """Write every file, and return the content of curve.json."""
    import torch

    from compress.files import write_atomically
    from compress.measurement.environment import environment
    from compress.reporting.plot_curve import plot_curve
    from compress.reporting.plots import save_pictures
    from compress.workspace import to_json

    assert opened.data is not None
    about = {
        "model": {"file": model.name, "sha256": opened.source.sha256},
        "data": {"name": opened.data.name, "sha256": opened.data.sha256},
        "seed": recipe.seed,
        "config": recipe.curve,
        "notes": [*opened.notes, *notes(curves)],
        "environment": environment(torch.get_num_threads()),
    }
    written = {"schema": 1, **curves.to_dict(), **about}
    write_atomically(out / "curve.json", to_json(written))
    write_atomically(out / "curve.csv", curves.to_csv().encode())
    save_pictures(plot_curve(curves), out, "curve")
    return written


def notes(curves: Curves) -> list[str]:
    """What a reader must know to read the figures, one line each."""
    use = (
        "nothing was trained or chosen"
        if curves.split == "test"
        else "the dictionary of custom, if not given, was chosen"
    )
    found = [
        f"scored on {curves.n:,} samples of the {curves.split} split: {use}",
        "rate 0 is the model as it came, for every method; it is not fine-tuned",
        f"weights are whole: the sparsity achieved is at most {curves.rounding:.1e} from the rate",
        "bands are 95 %: over the seeds (Student's t) where a point has several, else over the samples (Wilson)",
    ]
    if curves.sparser:
        found.append(
            f"the model came with zeros, which stay: {len(curves.sparser)} of {len(curves.points)} points have more "
            "zeros than their rate asks for (sparsity in curve.csv)"
        )
    return found


def _show(curves: Curves) -> None:
    methods = [area.method for area in curves.areas]
    show_table(
        ("removed", *methods),
        [
            (f"{rate:g}", *(f"{point.value:.4f}" for point in curves.points if point.rate == rate))
            for rate in curves.rates
        ],
    )
    say("")
    show_table(("method", "area", "95 % over seeds", "of the ceiling"), [_area_row(a, curves) for a in curves.areas])
    first, last = curves.rates[0], curves.rates[-1]
    say(f"ceiling: {curves.ceiling:.4f} = {curves.measured_in} {curves.dense:.4f} × ({last:g} - {first:g})")
    for name, share in curves.layers.items():
        say(f"custom: {name} = {share:.4f}")
    for note in notes(curves):
        say(note)


def _area_row(area: Area, curves: Curves) -> tuple[str, ...]:
    band = "" if area.low is None else f"{area.low:.4f}-{area.high:.4f}"
    share = f"{area.value / curves.ceiling:.2%}" if curves.ceiling else ""  # a model that is always wrong has none
    return area.method, f"{area.value:.4f}", band, share
