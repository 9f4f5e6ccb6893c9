"""Options that several commands share, and what makes a Recipe of them. No heavy import: --help must be quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.cli.parameters import Json, Numbers, OneOf, Source, Words

if TYPE_CHECKING:
    from compress.recipe import Recipe

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

# Names that other modules define, and importing those would take a second: tests hold these to them.
OBJECTIVES = ("size", "latency", "balanced")
SKIPPABLE = ("prune", "sparsify", "quantize")
DEVICES = ("auto", "cpu", "cuda")
PROVIDERS = ("cpu", "cuda", "cuda-tf32", "tensorrt", "openvino", "coreml", "xnnpack")
ENERGY = ("no", "auto", "rapl", "codecarbon")
TARGETS = (
    "host", "avx2", "avx512", "avx-vnni", "avx512-vnni", "amx", "arm", "arm-dotprod", "arm-i8mm", "any-x86", "any",
)  # fmt: skip
NAMED_DATA = ("digits", "fashion-mnist", "mnist", "mnist-5k", "cifar10")
PREFIXED_DATA = {"images": "dir", "npz": "file", "csv": "file", "python": ""}


def _together(*options: Decorator[Any]) -> Decorator[Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def model_options() -> Decorator[Any]:
    """How the model file is read."""
    return _together(
        click.option(
            "--factory",
            metavar="MODULE:CALLABLE",
            help="Builds the module of a state dict: torchvision.models:resnet18, ./net.py:Net.",
        ),
        click.option("--factory-args", type=Json(), help="Its keyword arguments: '{\"num_classes\": 10}'."),
        click.option(
            "--trust",
            multiple=True,
            metavar="CLASS",
            help="A class that the pickle may name: package.module.Net, or ./net.py:Net. Repeatable.",
        ),
        click.option(
            "--trust-pickle",
            is_flag=True,
            default=None,
            help="Unpickle without any check. Runs whatever code the file holds.",
        ),
        click.option(
            "--input",
            multiple=True,
            metavar="SHAPE",
            help="One sample's sizes, where there is no data: 3x224x224, 48:int64. Once an input.",
        ),
    )


def data_options() -> Decorator[Any]:
    """Where samples come from and how they are prepared."""
    return _together(
        click.option(
            "--data",
            type=Source(NAMED_DATA, PREFIXED_DATA),
            help="digits, fashion-mnist, mnist[-5k], cifar10, images:DIR, npz:FILE, csv:FILE, python:MODULE:FUNCTION.",
        ),
        click.option("--data-root", type=click.Path(path_type=Path), help="Where the data set's files are."),
        click.option("--download", is_flag=True, default=None, help="Allow the data set to be downloaded."),
        click.option("--labels/--no-labels", default=None, help="Use the labels, or act as if there were none."),
        click.option("--size", type=int, help="Resize images to SIZE×SIZE pixels."),
        click.option("--channels", type=int, help="Image channels; default: what the model's first convolution takes."),
        click.option(
            "--mean", type=Numbers(float), help="Subtracted from pixels (scaled to 0..1), one number or one a channel."
        ),
        click.option("--std", type=Numbers(float), help="Pixels are divided by it after --mean."),
        click.option("--limit", type=int, help="Use at most this many training samples."),
        click.option(
            "--text-column", help="csv: column of the text, by name, or by number from 0 where there is no header."
        ),
        click.option("--label-column", help="csv: column of the label, likewise."),
        click.option("--label-threshold", type=float, help="csv: the label is whether the number is above this."),
        click.option(
            "--vocabulary",
            type=click.Path(path_type=Path),
            help="csv: vocab.json that the model was trained with; default: beside the model.",
        ),
    )


def recipe_options() -> Decorator[Any]:
    """Where the other options come from."""
    return _together(
        click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(path_type=Path),
            help="Recipe file; default: compress.toml beside the model or here.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any field of the recipe: --set sparsify.epochs=5. Repeatable.",
        ),
    )


def common_options() -> Decorator[Any]:
    return _together(
        click.option("--seed", type=int, help="Of everything random. [default: 0]"),
        click.option("--device", type=OneOf(DEVICES), help="Where fine-tuning runs. [default: auto]"),
    )


def json_option() -> Decorator[Any]:
    """``as_json`` is for `console.emit`. It takes no file: the shell can write one."""
    return _together(
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON document instead of tables, and nothing else."
        )
    )


def result_options() -> Decorator[Any]:
    """How the result of long work is told: ``quiet`` is for `console.Display`, ``as_json`` for `console.emit`."""
    return _together(click.option("-q", "--quiet", is_flag=True, help="No progress, only the result."), json_option())


def objective_option(text: str) -> Decorator[Any]:
    return _together(click.option("--objective", type=OneOf(OBJECTIVES), help=f"{text} [default: balanced]"))


def target_option(text: str = "Processor that int8 is for: see `compress quantize`.") -> Decorator[Any]:
    return _together(click.option("--target-isa", type=OneOf(TARGETS, metavar="NAME"), help=f"{text} [default: host]"))


def output_option(default: str, text: str, directory: bool = False) -> Decorator[Any]:
    """--out and --overwrite of a command that writes one file or one directory."""

    def check(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
        if value.exists() and value.is_dir() != directory:
            found, wanted = ("a directory", "a file") if value.is_dir() else ("a file", "a directory")
            raise click.UsageError(f"--out {value} is {found}, and {wanted} is written: give another name.", ctx)
        taken = value.is_dir() and any(value.iterdir()) if directory else value.exists()
        if taken and not ctx.params.get("overwrite"):
            raise click.UsageError(f"--out {value} exists. Give --overwrite to replace it, or another name.", ctx)
        return value

    return _together(
        click.option("--overwrite", is_flag=True, is_eager=True, expose_value=True, help="Replace what is there."),
        click.option(
            "--out", type=click.Path(path_type=Path), default=default, show_default=True, callback=check, help=text
        ),
    )


def benchmark_options() -> Decorator[Any]:
    """What is measured."""
    return _together(
        click.option(
            "--providers", type=Words(PROVIDERS), help=f"What to measure on: {', '.join(PROVIDERS)}. [default: cpu]"
        ),
        click.option("--batches", "--batch", type=Numbers(int), help="Batch sizes to measure. [default: 1]"),
        click.option(
            "--threads",
            type=Numbers(int),
            help="Threads to measure with, as 1,2; 0: all that may be used. [default: 0]",
        ),
        click.option("--metric", metavar="MODULE:FUNCTION", help="Your own measure of quality in place of accuracy."),
        click.option("--energy", type=OneOf(ENERGY), help="Energy a sample, where the machine tells it. [default: no]"),
    )


def recipe_from(model: Path | None, options: Mapping[str, Any]) -> Recipe:
    """The Recipe for what was given on the command line."""
    from compress.recipe import load_recipe

    given = {k: v for k, v in options.items() if v is not None and v != ()}
    overrides, file = given.pop("overrides", ()), given.pop("recipe_file", None)
    return load_recipe(model, given, overrides, file)
