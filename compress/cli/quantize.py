"""compress quantize."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display, say, show_table
from compress.cli.options import data_options, model_options, output_option, recipe_from, recipe_options


@click.command(short_help="Write int8 ONNX files.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("quantized", "Directory for the int8 ONNX files.", directory=True)
@click.option("--method", help="auto, static, dynamic or weights. [default: auto]")
@model_options()
@recipe_options()
def quantize(model: Path, out: Path, **options: Any) -> int:
    """Write int8 forms of MODEL, an ONNX file or a torch model (which is exported first).

    Static quantization takes its ranges from the data's calibration split. Compare what was written with
    `compress benchmark`.

    \b
    Examples:
      compress quantize model.onnx --data fashion-mnist
      compress quantize model.pt --data digits --method weights --out int8
    """
    from compress.measurement import zip_bytes
    from compress.onnx_export import export as run_export
    from compress.opening import open_inputs
    from compress.quantization import quantize as run_stage

    recipe = recipe_from(model, options)
    with Display() as display, tempfile.TemporaryDirectory() as scratch:
        opened = open_inputs(recipe, display)
        onnx = opened.state.onnx
        if opened.original is not None:
            onnx, _ = run_export(opened.original, recipe.export, opened.context(Path(scratch), recipe, display))
        assert onnx is not None
        out.mkdir(parents=True, exist_ok=True)
        variants, record = run_stage(onnx, recipe.quantize, opened.context(out, recipe, display))
        rows = [("float", f"{onnx.path.stat().st_size:,}", f"{zip_bytes(onnx.path):,}")]
    for note in record.notes:
        say(note)
    rows += [(v.onnx.path.name, f"{v.onnx.path.stat().st_size:,}", f"{zip_bytes(v.onnx.path):,}") for v in variants]
    show_table(("file", "bytes", "zipped"), rows)
    return 0
