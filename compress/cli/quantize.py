"""compress quantize."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import Display, emit, say, show_table
from compress.cli.options import (
    benchmark_options,
    common_options,
    data_options,
    model_options,
    objective_option,
    output_option,
    recipe_from,
    recipe_options,
    result_options,
    target_option,
)
from compress.cli.parameters import OneOf

if TYPE_CHECKING:
    from compress.opening import Opened
    from compress.recipe import Recipe
    from compress.reporting import Section
    from compress.values import Context, OnnxModel, StageRecord

NOT_MET = 3
CACHE = ".calibration"
RESULT = "quantize.json"
METHODS = ("auto", "static", "dynamic", "weights")
CALIBRATIONS = ("auto", "minmax", "moving-average", "percentile", "entropy", "mse")


@click.command(short_help="Write quantized ONNX files, measured, and the best of them.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options()
@output_option("quantized", "Directory for the files.", directory=True)
@click.option("--max-drop", type=float, help="Accuracy that may be lost, as a fraction. [default: 0.01]")
@objective_option("What is best.")
@click.option("--method", type=OneOf(METHODS), help="How. [default: auto]")
@target_option("The processor that the file is for; see below.")
@click.option(
    "--calibration",
    type=OneOf(CALIBRATIONS, metavar="METHOD"),
    help=f"How ranges are taken: {', '.join(CALIBRATIONS)}. [default: auto]",
)
@benchmark_options()
@common_options()
@model_options()
@recipe_options()
@result_options()
def quantize(model: Path, out: Path, overwrite: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Write quantized forms of MODEL, an ONNX file or a torch model (which is exported first), and measure them.

    The directory gets float.onnx, a file for each candidate, quantize.json with all that was measured, and model.onnx:
    the best file whose accuracy on validation is within --max-drop, which can be the float one. Static quantization
    takes its ranges from the data's calibration split. Exit status 3 where no candidate kept the accuracy.

    --target-isa is one of host, avx2, avx512, avx-vnni, avx512-vnni, amx, arm, arm-dotprod, arm-i8mm, any-x86, any.

    \b
    Examples:
      compress quantize model.onnx --data fashion-mnist
      compress quantize model.onnx --data images:photos --objective latency --max-drop 0.003 --target-isa avx2
      compress quantize model.pt --data digits --objective size --out small
    """
    from compress.opening import open_inputs

    if model.resolve() == (out / "model.onnx").resolve():
        raise click.UsageError(f"--out {out} would replace {model} itself: give another directory.")
    recipe = recipe_from(model, options)
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        _forget_earlier_files(out)
        found, record = _quantize(opened, recipe, opened.context(out, recipe, display, cache=out / CACHE))
    if as_json:
        emit(found)
    else:
        notes = (*opened.notes, *record.notes, *filter(None, [record.skipped]))
        _show(found, tuple(dict.fromkeys(notes)), out)
    return 0 if found["met"] else NOT_MET


def _forget_earlier_files(out: Path) -> None:
    """Delete the candidates that an earlier run wrote here, so that none of them is taken for one of this run."""
    try:
        variants = json.loads((out / RESULT).read_bytes())["variants"]
    except (OSError, ValueError, KeyError):
        return
    for variant in variants[1:]:  # the first is float.onnx, which is written again
        (out / Path(variant["file"]).name).unlink(missing_ok=True)
    (out / RESULT).unlink()


def _quantize(opened: Opened, recipe: Recipe, context: Context) -> tuple[dict[str, Any], StageRecord]:
    """Make the candidates, measure and choose as the pipeline does, and write; the content of quantize.json."""
    from compress.files import write_atomically
    from compress.measurement import benchmark
    from compress.quantization import quantize as run_stage
    from compress.reporting import choose, variant_entries
    from compress.shipping import origin, write_shipped
    from compress.values import Variant
    from compress.workspace import to_json

    onnx = _float_file(opened, recipe, context)
    variants, record = run_stage(onnx, recipe.quantize, context)
    measurements, _ = benchmark((Variant("float", "export", onnx), *variants), recipe.benchmark, context)
    choice = choose(measurements, recipe.objective, recipe.max_drop)
    shipped = next(measurement for measurement in measurements if measurement.variant.name == choice.shipped)
    told = origin(opened.source.sha256, shipped, (record,))
    write_shipped(shipped.variant.onnx, context.directory, told, ort=recipe.export.ort)
    entries = variant_entries(measurements, context.directory, choice)
    found = {"shipped": choice.shipped, "met": choice.met, "variants": entries, "quantize": record}
    write_atomically(context.directory / RESULT, to_json(found))
    shutil.rmtree(context.directory / CACHE, ignore_errors=True)  # nothing is left to go on from
    return found, record


def _show(found: Mapping[str, Any], notes: Sequence[str], out: Path) -> None:
    from compress.reporting import quantization_section, variant_table

    for note in notes:
        say(note)
    table = variant_table(found["variants"], found["shipped"])
    show_table(table.columns, table.rows, table.mark)
    _show_section(quantization_section(found["quantize"].figures, found["shipped"]))
    say(f"{out / 'model.onnx'}: {found['shipped']}")


def _show_section(section: Section | None) -> None:
    if section is None:
        return
    say("")
    for table in filter(None, (section.files, section.fallback)):
        show_table(table.columns, table.rows, table.mark)
        say("")
    for sentence in section.sentences:
        say(sentence)


def _float_file(opened: Opened, recipe: Recipe, context: Context) -> OnnxModel:
    """What is quantized, as float.onnx in the directory."""
    from compress.files import copy_atomically
    from compress.measurement import SHIPPED_NAME, members
    from compress.onnx_export import export

    name = "float.onnx"
    if opened.original is not None:
        return export(opened.original, recipe.export, context, file_name=name)[0]
    onnx = opened.state.onnx
    assert onnx is not None
    for member, file in members(onnx.path).items():
        copy_atomically(file, context.directory / (name if member == SHIPPED_NAME else member))
    return replace(onnx, path=context.directory / name)
