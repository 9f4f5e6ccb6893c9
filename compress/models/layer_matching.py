"""The layers of one ONNX file, and which of another file's they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.models.onnx_file import read
from compress.models.restored_weights import Floats, restored_weights
from compress.models.weighted_layers import WeightedLayer, Wiring, weighted_layers

_LINEAR = {"Gemm": "MatMul"}  # quantizers turn one into the other
_SAME_NAME = 2.0  # a common name counts as much as a common kind and shape


@dataclass(frozen=True)
class Form:
    """What a layer is told by."""

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]  # of its weights, as `restored_weights` gives them


class Layers:
    """The layers of an ONNX file; its weights are read one layer at a time."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.proto = read(path, weights=False)
        self.wiring = Wiring(self.proto.graph)
        self.all = weighted_layers(self.proto.graph)

    def weights(self, layer: WeightedLayer) -> tuple[Floats, ...]:
        """As of `restored_weights`."""
        return restored_weights(self.proto, layer, self.folder, self.wiring)

    def forms(self) -> tuple[Form, ...]:
        """What each layer is told by."""
        return tuple(
            Form(layer.name, layer.operator, tuple(weight.shape for weight in self.weights(layer)))
            for layer in self.all
        )


def match(before: Sequence[Form], after: Sequence[Form]) -> tuple[int | None, ...]:
    """For each layer of ``before`` its place in ``after``; None where it is gone.

    Both are in the order in which they run. The best alignment of the two (Needleman, Wunsch 1970) pairs layers of one
    kind whose kernels are equal and whose channels did not grow, and of those the most alike. Names help where they
    were kept; files that ship have none.
    """
    best = np.zeros((len(before) + 1, len(after) + 1))
    for i in reversed(range(len(before))):
        for j in reversed(range(len(after))):
            paired = _alike(before[i], after[j]) + best[i + 1, j + 1]
            best[i, j] = max(paired, best[i + 1, j], best[i, j + 1])
    found: list[int | None] = [None] * len(before)
    i = j = 0
    while i < len(before) and j < len(after):
        if best[i, j] == _alike(before[i], after[j]) + best[i + 1, j + 1]:
            found[i] = j
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return tuple(found)


def _alike(before: Form, after: Form) -> float:
    """How alike two layers are: 0 < … <= 4, or minus infinity where one cannot have become the other."""
    if _LINEAR.get(before.kind, before.kind) != _LINEAR.get(after.kind, after.kind):
        return -np.inf
    if len(before.shapes) != len(after.shapes):
        return -np.inf
    shares = []
    for old, new in zip(before.shapes, after.shapes, strict=True):
        if len(old) != len(new) or old[2:] != new[2:] or any(n > o for o, n in zip(old, new, strict=True)):
            return -np.inf
        shares += [n / max(o, 1) for o, n in zip(old, new, strict=True)]
    return 1.0 + float(np.mean(shares or [1.0])) + _SAME_NAME * (before.name == after.name)
