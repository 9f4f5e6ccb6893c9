"""compress export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display, say
from compress.cli.options import data_options, model_options, output_option, recipe_from, recipe_options


@click.command(short_help="Write a float ONNX file, checked.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("model.onnx", "The ONNX file.")
@click.option("--opset", type=int, help="ONNX opset. [default: 18]")
@model_options()
@recipe_options()
def export(model: Path, out: Path, **options: Any) -> int:
    """Write MODEL as a float ONNX file with a free batch size, simplified, and compared with torch.

    \b
    Examples:
      compress export model.pt --input 3x224x224
      compress export weights.pt --factory torchvision.models:resnet18 --data images:photos --size 224 --out r18.onnx
    """
    from compress.errors import ModelError
    from compress.onnx_export import export as run_stage
    from compress.opening import open_inputs

    recipe = recipe_from(model, options)
    with Display() as display:
        opened = open_inputs(recipe, display)
        if opened.original is None:
            raise ModelError(f"{model} is an ONNX file already. See `compress quantize`.")
        context = opened.context(out.parent, recipe, display)
        onnx, record = run_stage(opened.original, recipe.export, context, file_name=out.name)
    for note in (*opened.notes, *record.notes):
        say(note)
    say(f"{onnx.path}: {onnx.path.stat().st_size:,} bytes, opset {onnx.opset}, parity {record.figures['parity']:.2e}.")
    return 0
