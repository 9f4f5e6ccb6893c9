"""compress benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import Display, emit
from compress.cli.options import benchmark_options, data_options, recipe_from, recipe_options, result_options

if TYPE_CHECKING:
    from compress.opening import Opened
    from compress.recipe import Recipe
    from compress.values import Variant


@click.command(short_help="Measure ONNX files side by side.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options()
@benchmark_options()
@click.option("--input", multiple=True, metavar="SHAPE", help="One sample's sizes, where there is no data: 3x224x224.")
@click.option("--seed", type=int, help="Of the order in which the files take turns. [default: 0]")
@recipe_options()
@result_options()
def benchmark(files: tuple[Path, ...], quiet: bool, as_json: bool, **options: Any) -> int:
    """Measure ONNX FILES side by side: size, latency, accuracy. The first one is the baseline.

    Each file is timed in processes of its own, in turns with the others. With --json, the raw latency samples too.

    \b
    Examples:
      compress benchmark float.onnx int8.onnx --data fashion-mnist
      compress benchmark float.onnx int8.onnx --input 3x224x224 --batch 1,8 --threads 1,2
      compress benchmark float.onnx int8.onnx --data npz:pairs.npz --metric ./quality.py:mean_iou
      compress benchmark float.onnx int8.onnx --input 3x224x224 --energy auto --json --quiet > measured.json
    """
    from compress.cli.results import show_measurements
    from compress.measurement import benchmark as run_stage
    from compress.measurement.environment import environment
    from compress.reporting import variant_entries

    if as_json and files[-1].suffix == ".json":
        raise click.UsageError(f"--json takes no file. Let the shell write it: --json > {files[-1]}")
    with Display(quiet=quiet) as display, tempfile.TemporaryDirectory() as scratch:
        variants, recipe, opened = _opened(files, options, display)
        context = opened.context(Path(scratch), recipe, display)
        measurements, record = run_stage(variants, recipe.benchmark, context)
    if not as_json:
        show_measurements(measurements, record)
        return 0
    found = {
        "environment": environment(recipe.benchmark.first_threads),
        "variants": variant_entries(measurements, Path()),
        "measurements": [measurement.to_dict() for measurement in measurements],
        "benchmark": record,
    }
    emit(found)
    return 0


def _opened(
    files: tuple[Path, ...], options: dict[str, Any], display: Display
) -> tuple[tuple[Variant, ...], Recipe, Opened]:
    """The files as variants, and the recipe and the data that are the same for all."""
    from compress.errors import ModelError
    from compress.opening import open_inputs
    from compress.values import Variant

    variants = []
    for name, file in zip(_names(files), files, strict=True):
        recipe = recipe_from(file, options)
        opened = open_inputs(recipe, display)
        if opened.state.onnx is None:
            raise ModelError(f"{file} is not an ONNX file. Run `compress export {file}` first.")
        variants.append(Variant(name, "benchmark", opened.state.onnx))
    return tuple(variants), recipe, opened


def _names(files: Sequence[Path]) -> list[str]:
    """What tells the files apart: their names, else their paths, else their numbers, as where one is given twice."""
    stems = [file.stem for file in files]
    names = [stem if stems.count(stem) == 1 else str(file) for stem, file in zip(stems, files, strict=True)]
    return [name if names.count(name) == 1 else f"{number} {name}" for number, name in enumerate(names, 1)]
