"""Pruned models on disk, without pickle: what is left of which tensor (JSON), and the values (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from compress.errors import PruningError
from compress.files import write_atomically
from compress.models.state import fit, read_safetensors
from compress.pruning.blocks import skip
from compress.pruning.rewriting import rewrite
from compress.pruning.slicing import slice_module
from compress.pruning.traced import TracedModule
from compress.pruning.values import Kept

WEIGHTS = "weights.safetensors"
KEPT = "kept.json"
_SCHEMA = 2  # 1: no blocks were left out


@dataclass(frozen=True)
class Cut:
    """What a pruned model is of its original."""

    kept: Kept
    skipped: tuple[str, ...] = ()  # residual blocks that were left out
    traced: bool = False


def save(module: nn.Module, kept: Kept, directory: Path, skipped: Sequence[str] = ()) -> None:
    """Write a pruned ``module``, trained further or not, and what it kept of the original.

    Args:
        module: What `compress.pruning.surgery.cut` returned.
        kept: What it was cut with.
        directory: Gets ``weights.safetensors`` (tied tensors once) and ``kept.json``.
        skipped: The residual blocks that were left out of it.
    """
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state = {name: tensor for name, tensor in module.state_dict().items() if name in set(first.values())}
    content = safetensors.torch.save(
        {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    )
    plain = {
        "schema": _SCHEMA,
        "form": "traced" if isinstance(module, TracedModule) else "class",
        "skipped": list(skipped),
        "kept": {name: {str(axis): index.tolist() for axis, index in axes.items()} for name, axes in kept.items()},
    }
    write_atomically(directory / WEIGHTS, content)
    write_atomically(directory / KEPT, (json.dumps(plain) + "\n").encode())


def load(original: nn.Module, directory: Path, inputs: Sequence[Any]) -> nn.Module:
    """What `save` wrote, on the class of ``original``, or traced from it again where it was traced.

    Args:
        original: The model as it was before pruning; its values do not matter. Left as it was.
        inputs: Positional arguments of its forward, to trace with.

    Raises:
        PruningError: the files are damaged, or belong to another model.
        ModelError: a tensor is missing or has another shape.
    """
    cut = read_cut(directory)
    try:
        whole = skip(original, cut.skipped)
    except AttributeError as error:
        raise PruningError(
            f"{directory} leaves out a block that {type(original).__name__} does not have: {error}."
        ) from error
    module = rewrite(whole, cut.kept, inputs) if cut.traced else slice_module(whole, cut.kept)
    fit(module, read_safetensors(directory / WEIGHTS), what=str(directory / WEIGHTS), target=type(original).__name__)
    return module


def read_cut(directory: Path) -> Cut:
    """What the pruned model in a directory is of the original.

    Raises:
        PruningError: ``kept.json`` is missing or damaged.
    """
    path = directory / KEPT
    try:
        plain = json.loads(path.read_bytes())
        schema, form = plain["schema"], plain["form"]
        skipped = tuple(map(str, plain["skipped"] if schema != 1 else ()))
        kept = {
            name: {int(axis): torch.tensor(index, dtype=torch.int64) for axis, index in axes.items()}
            for name, axes in plain["kept"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PruningError(f"{path} cannot be read as what a pruned model kept ({error}). Write it again.") from error
    if schema not in (1, _SCHEMA) or form not in ("class", "traced"):
        raise PruningError(
            f"{path} has schema {schema!r} and form {form!r}; this version reads schemas 1 to {_SCHEMA}, form class "
            "or traced."
        )
    for name, axes in kept.items():
        for axis, index in axes.items():
            if axis < 0 or index.ndim != 1 or not len(index) or int(index[0]) < 0 or bool((index.diff() <= 0).any()):
                raise PruningError(f"{path} is damaged: axis {axis} of {name!r} must list ascending indices.")
    return Cut(kept, skipped, form == "traced")
