"""compress inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import Display, emit, say, show_table
from compress.cli.inspect_onnx import show_onnx
from compress.cli.inspect_sensitivity import DEFAULTS, show_sensitivity
from compress.cli.options import data_options, model_options, recipe_from, recipe_options, result_options

if TYPE_CHECKING:
    from torch import nn

    from compress.pruning import Structure


@click.command(short_help="What can be cut, and what each layer's weights are worth.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@click.option("--sensitivity", is_flag=True, help="Accuracy of each layer alone at rising sparsity; needs --data.")
@click.option("--drop-budget", type=float, help="Drop allowed to the suggested sparsities together. [default: 0.01]")
@click.option("--samples", type=int, help="Validation samples of the scan. [default: 1000]")
@click.option("--rates", help="Sparsities of the scan: start:stop:step, numbers. [default: 0:0.9:0.1,0.95,0.99]")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the scan's files. [default: sensitivity]")
@click.option("--overwrite", is_flag=True, default=None, help="Replace what is there.")
@model_options()
@recipe_options()
@result_options()
def inspect(model: Path, quiet: bool, as_json: bool, sensitivity: bool, **options: Any) -> int:
    """Show the channel groups of MODEL: which layers can only lose channels together, and what cannot lose any.

    The model runs on one sample of the data, or on made-up input of the sizes given with --input. Of an ONNX file, its
    operators, size and provenance are shown.

    With --sensitivity: the accuracy of each layer alone at each sparsity, without retraining, and the sparsity of each
    layer that all of them together can have within --drop-budget. Tables, pictures and a report go to --out.

    \b
    Examples:
      compress inspect model.pt --input 3x224x224
      compress inspect model.pt --data fashion-mnist --json
      compress inspect compressed/model.onnx
      compress inspect model.pt --sensitivity --data digits --drop-budget 0.01 --out scan
    """
    given = {name: options.pop(name) for name in DEFAULTS}
    if sensitivity:
        return show_sensitivity(model, quiet, as_json, given, options)
    stray = [name for name, value in given.items() if value is not None]
    if stray:
        raise click.UsageError(f"--{stray[0].replace('_', '-')} needs --sensitivity.")
    return _show_groups(model, quiet, as_json, options)


def _show_groups(model: Path, quiet: bool, as_json: bool, options: Mapping[str, Any]) -> int:
    from compress.opening import open_inputs
    from compress.pruning import analyse
    from compress.pruning.blocks import residual_blocks

    recipe = recipe_from(model, options)
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        if opened.state.onnx is not None:
            return show_onnx(opened.state.onnx, as_json)
        module = opened.needs_torch("inspect").module
        sample = tuple(x[:1] for x in opened.example)
        structure, blocks = analyse(module, sample, display), residual_blocks(module, sample)
    if as_json:
        emit({**_plain(structure), "residual_blocks": blocks})
        return 0
    _show(module, structure)
    if blocks:
        say(f"{len(blocks)} residual blocks can leave whole: {', '.join(blocks)}.")
    return 0


def _show(module: nn.Module, structure: Structure) -> None:
    free = [group for group in structure.groups if group.frozen is None]
    show_table(
        ("group", "channels", "with", "exact"),
        [(g.name, str(g.channels), _others(g.name, g.members), "yes" if g.exact else "but for norms") for g in free],
    )
    frozen = [group for group in structure.groups if group.frozen is not None]
    if frozen:
        show_table(("cannot be cut", "channels", "why"), [(g.name, str(g.channels), g.frozen or "") for g in frozen])
    parameters = sum(p.numel() for p in module.parameters())
    macs = sum(layer.macs for layer in structure.layers)
    say(f"{len(free)} groups of {sum(g.channels for g in free):,} channels can be cut, {len(frozen)} cannot.")
    say(f"{parameters:,} parameters, {macs:,} multiply-accumulates a sample; {structure.passes} passes.")


def _others(name: str, members: Any) -> str:
    """The layers that lose channels with the one that the group is named after."""
    modules = dict.fromkeys(m.name.rpartition(".")[0] or m.name for m in members)
    modules.pop(name.partition("#")[0], None)
    shown = list(modules)[:4]
    return ", ".join(shown) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")


def _plain(structure: Structure) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": group.name,
                "channels": group.channels,
                "frozen": group.frozen,
                "exact": group.exact,
                "members": [
                    {"name": m.name, "axis": m.axis, "role": m.role, "entries": len(m.index)} for m in group.members
                ],
            }
            for group in structure.groups
        ],
        "layers": [
            {"weight": layer.weight, "operator": layer.operator, "macs": layer.macs} for layer in structure.layers
        ],
        "passes": structure.passes,
    }
