"""What a model returns, whatever holds its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Leaf = tuple[str, Tensor]  # where in the outputs, what


def leaves(outputs: Any, path: str = "", depth: int = 8) -> Iterator[Leaf]:
    """Every tensor of nested mappings, sequences, dataclasses and objects with attributes, in order, with its place."""
    if isinstance(outputs, Tensor):
        yield path, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from leaves(value, f"{path}[{key!r}]", depth - 1)
    elif isinstance(outputs, list | tuple):
        for number, value in enumerate(outputs):
            yield from leaves(value, f"{path}[{number}]", depth - 1)
    elif dataclasses.is_dataclass(outputs):
        for field in dataclasses.fields(outputs):
            yield from leaves(getattr(outputs, field.name), f"{path}.{field.name}", depth - 1)
    elif depth > 0 and hasattr(outputs, "__dict__"):  # a namespace, a distribution
        for name, value in vars(outputs).items():
            yield from leaves(value, f"{path}.{name}", depth - 1)
