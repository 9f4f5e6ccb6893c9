"""compress benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display
from compress.cli.options import benchmark_options, data_options, recipe_from, recipe_options


@click.command(short_help="Measure ONNX files side by side.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options()
@benchmark_options()
@click.option("--input", multiple=True, metavar="SHAPE", help="One sample's sizes, where there is no data: 3x224x224.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the measurements here, raw samples too."
)
@click.option("--seed", type=int, help="Of the order in which the files take turns. [default: 0]")
@recipe_options()
def benchmark(files: tuple[Path, ...], json_file: Path | None, **options: Any) -> int:
    """Measure ONNX FILES side by side: size, latency, accuracy. The first one is the baseline.

    \b
    Examples:
      compress benchmark float.onnx int8.onnx --data fashion-mnist
      compress benchmark float.onnx int8.onnx --input 3x224x224 --batches 1,8 --threads 2 --json measured.json
    """
    from compress.cli.results import show_measurements
    from compress.errors import ModelError
    from compress.files import write_atomically
    from compress.measurement import benchmark as run_stage
    from compress.opening import open_inputs
    from compress.values import Variant
    from compress.workspace import to_json

    variants = []
    with Display() as display:
        for file in files:
            recipe = recipe_from(file, options)
            opened = open_inputs(recipe, display)
            if opened.state.onnx is None:
                raise ModelError(f"{file} is not an ONNX file. Run `compress export {file}` first.")
            name = file.stem if [f.stem for f in files].count(file.stem) == 1 else str(file)
            variants.append(Variant(name, "benchmark", opened.state.onnx))
        measurements, _ = run_stage(tuple(variants), recipe.benchmark, opened.context(Path(), recipe, display))
    show_measurements(measurements)
    if json_file is not None:
        write_atomically(json_file, to_json([m.to_dict() for m in measurements]))
    return 0
