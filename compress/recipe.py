"""The options of a run: compress.toml, then the command line, then --set, into one frozen Recipe.

Unknown keys are refused with the nearest known one, and all problems are told at once, before any work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from compress.data.options import DataOptions
from compress.errors import RecipeError
from compress.measurement.stage import BenchmarkConfig
from compress.onnx_export import ExportConfig
from compress.pruning import PruneConfig, ReduceConfig
from compress.quantization import QuantizeConfig
from compress.reporting import Objective
from compress.reporting.gate import Limits
from compress.sparsity import CurveConfig, SparsifyConfig, TrainConfig
from compress.values import InputSpec

Skippable = Literal["prune", "sparsify", "quantize"]
FILE_NAME = "compress.toml"

# Options that a user names without their section: on the command line, and at the top of compress.toml.
SHORT: Mapping[str, str | tuple[str, ...]] = {
    "data_root": "preprocess.root",
    "download": "preprocess.download",
    "size": "preprocess.size",
    "channels": "preprocess.channels",
    "mean": "preprocess.mean",
    "std": "preprocess.std",
    "limit": "preprocess.limit",
    "text_column": "preprocess.text_column",
    "label_column": "preprocess.label_column",
    "label_threshold": "preprocess.label_threshold",
    "vocabulary": "preprocess.vocabulary",
    "max_tokens": "preprocess.max_tokens",
    "labels": "preprocess.labels",
    "ratio": "prune.ratio",
    "speedup": "prune.speedup",
    "sparsity": "sparsify.sparsity",
    "epochs": ("prune.epochs", "sparsify.epochs"),
    "method": "quantize.method",
    "opset": "export.opset",
    "min_ort": "export.min_ort",
    "dynamic_length": "export.dynamic_length",
    "ort": "export.ort",
    "target_isa": "quantize.target_isa",
    "calibration": "quantize.calibration",
    "providers": "benchmark.providers",
    "batches": "benchmark.batches",
    "batch": "benchmark.batches",
    "threads": "benchmark.threads",
    "metric": "benchmark.metric",
    "energy": "benchmark.energy",
}

# What an objective changes where the user names nothing else. Zeros buy no latency, so that accuracy goes to channels.
# Bytes are parameters: where multiply-adds are counted an embedding, which has none, is never cut.
FOR_OBJECTIVE: Mapping[str, Mapping[str, Any]] = {
    "size": {"prune.objective": "parameters"},
    "latency": {
        "skip": ("sparsify",),
        "prune.objective": "latency",
        "prune.rounds": 8,
        "prune.budget": 0.75,
        "prune.floor": 0.03,
    },
}

# Tables whose keys are names of the user's own: left as they are written, and replaced as a whole, but for the one key
# that a --set names.
OWN_NAMES = ("factory_args", "layers")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run."""

    model: Path | None  # what `compress.models.load` takes; None: new weights from the factory (`compress train`)
    data: str | None = None  # what `compress.data.load_data` takes; None: synthetic inputs, no fine-tuning
    out: Path = Path("compressed")  # the run directory
    max_drop: float = (
        0.01  # allowed loss: a fraction 0..1 of accuracy (fidelity without labels), or in the metric's unit
    )
    objective: Objective = "balanced"  # what the shipped variant is best at
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where fine-tuning runs
    skip: tuple[Skippable, ...] = ()
    resume: bool = False
    overwrite: bool = False
    factory: str | None = None  # module:callable or ./file.py:callable that builds the module of a state dict
    factory_args: Mapping[str, Any] = field(default_factory=dict)  # its keyword arguments
    trust: tuple[str, ...] = ()  # classes that a pickle may name besides those of torch and torchvision
    trust_pickle: bool = False  # run whatever the pickle asks for
    input: tuple[str, ...] = ()  # one an input, as 1x28x28 or 48:int64, where there is no data to tell
    preprocess: DataOptions = field(default_factory=DataOptions)
    prune: PruneConfig = field(default_factory=PruneConfig)
    reduce: ReduceConfig = field(default_factory=ReduceConfig)  # of `compress reduce`; not part of the pipeline
    curve: CurveConfig = field(default_factory=CurveConfig)  # of `compress curve`; not part of the pipeline
    train: TrainConfig = field(default_factory=TrainConfig)  # of `compress train`; not part of the pipeline
    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    check: Limits = field(default_factory=Limits)  # of `compress check`; not part of the pipeline

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= (1 if self.benchmark.metric is None else sys.float_info.max):
            raise RecipeError(f"max_drop={self.max_drop} must be a fraction within 0..1 (one point is 0.01)")
        self.input_specs()

    def input_specs(self) -> tuple[InputSpec, ...]:
        """``input`` as values. Raises RecipeError where it cannot be read."""
        return tuple(_input_spec(text, number, len(self.input)) for number, text in enumerate(self.input))


def _input_spec(text: str, number: int, count: int) -> InputSpec:
    shape, _, dtype = text.partition(":")
    try:
        sizes = tuple(int(size) for size in shape.lower().split("x"))
        name = np.dtype(dtype or "float32").name
    except (ValueError, TypeError):
        sizes, name = (), ""
    if not sizes or min(sizes) < 1:
        raise RecipeError(f"input {text!r} is not a shape: write the sizes of one sample, as 3x224x224 or 48:int64")
    return InputSpec("input" if count == 1 else f"input_{number}", sizes, name)


def find_recipe(model: Path | None) -> Path | None:
    """The compress.toml beside the model, else that of the current directory, else None."""
    beside = () if model is None else (model.parent / FILE_NAME,)
    return next((path for path in (*beside, Path(FILE_NAME)) if path.is_file()), None)


def load_recipe(
    model: Path | None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    file: Path | None = None,
) -> Recipe:
    """Put a recipe together.

    Args:
        model: The model file; None: there is none.
        options: Options by their names here or in ``SHORT``; None values are as if not given.
        overrides: ``section.key=value`` texts; values as in TOML, quotes optional. They win over all else.
        file: A recipe file; None: see `find_recipe`.

    Raises:
        RecipeError: with every unknown key and every value of the wrong type or range.
    """
    path = file or find_recipe(model)
    tree = _anchored(_read(path), path.parent) if path else {}
    problems: list[str] = []
    merged = _expanded(tree)
    _merge(merged, _expanded({k: v for k, v in (options or {}).items() if v is not None}))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--set {text}: write section.key=value")
            continue
        table, name = _own_name(key.strip())
        given = {**_table(merged, table), name: _value(value.strip())} if name else _value(value.strip())
        _merge(merged, _expanded({table: given}))
    merged["model"] = model
    merged = _with_tuples(Recipe, _for_objective(merged))
    problems += list(_unknown(Recipe, merged, ""))
    try:
        recipe = TypeAdapter(Recipe).validate_python(merged)
    except ValidationError as error:
        problems += [_told(dict(e)) for e in error.errors()]
    if problems:
        where = f"{path}: " if path and len(problems) == 1 else f"{path}:\n  " if path else ""
        raise RecipeError(where + "\n  ".join(problems))
    return recipe


def _for_objective(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, over those that their objective changes."""
    base = _expanded(FOR_OBJECTIVE.get(str(tree.get("objective")), {}))
    _merge(base, tree)
    return base


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist. Give --recipe the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from error


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths that start with ./ or ../ in a recipe file are relative to that file, wherever the command runs."""

    def anchored(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: anchored(v) for k, v in value.items()}
        if isinstance(value, list):
            return [anchored(v) for v in value]
        if isinstance(value, str):
            kind, colon, rest = value.partition(":")
            if colon and rest.startswith(("./", "../")):  # csv:./reviews.tsv
                return f"{kind}:{anchored(rest)}"
            if value.startswith(("./", "../")):
                # The result keeps a leading ./ so that ./net.py:Net is still a file and not a module.
                return f"./{folder / value}" if not folder.is_absolute() else str(folder / value)
        return value

    result: dict[str, Any] = anchored(tree)
    return result


def _expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dashes become underscores, short names their full ones, dotted names nested tables."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        paths = SHORT.get(name, name)
        if isinstance(value, Mapping) and name.rpartition(".")[2] not in OWN_NAMES:
            value = _underscored(value)
        for path in (paths,) if isinstance(paths, str) else paths:
            branch = value
            for part in reversed(path.split(".")):
                branch = {part: branch}
            _merge(tree, branch)
    return tree


def _underscored(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, Mapping) and key not in OWN_NAMES else value
        for key, value in tree.items()
    }


def _merge(base: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict) and key not in OWN_NAMES:
            _merge(base[key], value)
        else:
            base[key] = value


def _own_name(key: str) -> tuple[str, str]:
    """A dotted key as the table of the user's own names that it leads into and the name there; "" in all others."""
    parts = key.split(".")
    end = next((i for i, part in enumerate(parts, start=1) if part in OWN_NAMES), len(parts))
    return ".".join(parts[:end]), ".".join(parts[end:]).strip("\"'")


def _table(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = tree
    for part in path.replace("-", "_").split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _value(text: str) -> Any:
    """A value as TOML reads it, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(kind: type, tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """One line for each key of ``tree`` that the dataclass ``kind`` does not have."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in tree.items():
        if key not in names:
            known = names + (list(SHORT) if not prefix else [])
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(names)}"
            yield f"unknown option {prefix}{key}: {hint}"
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from _unknown(typing.cast(type, hints[key]), value, f"{prefix}{key}.")


def _with_tuples(kind: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """One value where several may be is a tuple of one: ``threads = 1``, ``providers = "cuda"``."""
    hints = typing.get_type_hints(kind)

    def fitted(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            return _with_tuples(typing.cast(type, hint), value) if isinstance(value, Mapping) else value
        return (value,) if typing.get_origin(hint) is tuple and isinstance(value, str | int | float) else value

    return {key: fitted(hints.get(key), value) for key, value in tree.items()}


def _told(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{message}"
    return f"{where}={error['input']!r}: {message[0].lower()}{message[1:]}"
