"""compress export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display, emit, say
from compress.cli.options import data_options, model_options, output_option, recipe_from, recipe_options, result_options
from compress.cli.parameters import OneOf

_FIELDS = ("min_ort", "dynamic_length", "ort")  # of the recipe's table export


@click.command(short_help="Write a float ONNX file, checked.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("model.onnx", "The ONNX file.")
@click.option("--min-ort", metavar="RELEASE", help="Oldest onnxruntime that must read the file. [default: 1.18]")
@click.option("--opset", type=int, help="ONNX opset, 17 to 20. [default: 18, or 17 where --min-ort needs it]")
@click.option(
    "--dynamic-length",
    type=OneOf(("auto", "yes", "no")),
    help="Texts of any length; auto: where that agrees with torch. [default: auto]",
)
@click.option("--ort", is_flag=True, default=None, help="Write onnxruntime's own format too, beside the ONNX file.")
@model_options()
@recipe_options()
@result_options()
def export(model: Path, out: Path, quiet: bool, as_json: bool, **options: Any) -> int:
    """Write MODEL as a float ONNX file with a free batch size, simplified, and compared with torch.

    Texts can have any length too. Above 2 GB the weights lie beside the file, as OUT.data: ship both.

    \b
    Examples:
      compress export model.pt --input 3x224x224
      compress export weights.pt --factory torchvision.models:resnet18 --data images:photos --size 224 --out r18.onnx
      compress export model.pt --input 3x224x224 --min-ort 1.16
      compress export lstm.pt --input 48:int64 --dynamic-length yes --ort
    """
    from compress.errors import ModelError
    from compress.onnx_export import export as run_stage
    from compress.onnx_export import to_ort
    from compress.opening import open_inputs

    if out.suffix == ".ort":
        raise click.UsageError(f"--out {out} is the ONNX file: name it {out.with_suffix('.onnx')}, and give --ort.")
    named = {f"export.{name}": options.pop(name) for name in _FIELDS}
    recipe = recipe_from(model, {**options, **named})
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        if opened.original is None:
            raise ModelError(f"{model} is an ONNX file already. See `compress quantize`.")
        context = opened.context(out.parent, recipe, display)
        onnx, record = run_stage(opened.original, recipe.export, context, file_name=out.name)
        if recipe.export.ort:
            to_ort(onnx.path, onnx.path.with_suffix(".ort"), onnx.inputs)
    notes, figures = (*opened.notes, *record.notes), record.figures
    if as_json:
        emit(
            {
                "file": onnx.path,
                "ort": onnx.path.with_suffix(".ort") if recipe.export.ort else None,
                **asdict(record),
                "notes": notes,
            }
        )
        return 0
    for note in notes:
        say(note)
    told = f"opset {onnx.opset}, IR version {figures['ir_version']}, parity {figures['parity']:.2e}"
    say(f"{onnx.path}: {figures['bytes']:,} bytes, {told}.")
    if recipe.export.ort:
        written = onnx.path.with_suffix(".ort")
        say(f"{written}: {written.stat().st_size:,} bytes.")
    return 0
