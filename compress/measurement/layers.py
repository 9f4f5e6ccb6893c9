"""What became of each layer: its width, its weights and its bytes, in the baseline and in what ships."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ModelError
from compress.measurement.size import stored_bytes
from compress.models.layer_matching import Layers, match
from compress.models.onnx_file import first_line
from compress.models.restored_weights import Floats
from compress.models.weighted_layers import WeightedLayer, stored_tensor

logger = logging.getLogger(__name__)

BINS = 61
_DIGITS = 6  # of a histogram's edges: more than a picture shows
_TAIL = (
    0.001  # of the weights at either end lie in the first and the last bin, however far out: one would hide all others
)
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_OUTPUT_AXIS = {"ConvTranspose": 1, "Gather": 1}  # of the weight, where it is not the first


@dataclass(frozen=True)
class LayerSide:
    """A layer in one file."""

    shape: tuple[int, ...]  # of its weight as `restored_weights` gives it; of a recurrent layer: its inputs' weight
    channels: int  # outputs: filters, features, hidden units
    weights: int  # elements of all its weights, without biases
    nonzero: int  # of them
    bytes: int  # of all that is stored for it: weights, biases, scales, zero points


@dataclass(frozen=True)
class Histogram:
    """The weights of a layer that are not zero, before and after, in the same bins."""

    edges: tuple[float, ...]  # one more than there are bins
    before: tuple[int, ...]  # how many weights in each bin
    after: tuple[int, ...] | None  # None: the layer is gone
    zeros_before: int
    zeros_after: int | None


@dataclass(frozen=True)
class LayerChange:
    """A layer of the baseline, and what became of it."""

    name: str
    kind: str  # the baseline's operator: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN, Gather (an embedding)
    before: LayerSide
    after: LayerSide | None  # None: the layer is gone, pruned away or folded into another
    histogram: Histogram

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        for part in (plain["before"], plain["after"], plain["histogram"]):
            if part is not None:
                part.update({key: list(value) for key, value in part.items() if isinstance(value, tuple)})
        return plain

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LayerChange:
        """What `to_dict` made."""
        after = None if stored["after"] is None else LayerSide(**_with_tuples(stored["after"]))
        return cls(
            name=stored["name"],
            kind=stored["kind"],
            before=LayerSide(**_with_tuples(stored["before"])),
            after=after,
            histogram=Histogram(**_with_tuples(stored["histogram"])),
        )


def _with_tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}


def layer_changes(before: Path, after: Path) -> tuple[LayerChange, ...]:
    """Each weighted layer of ``before``, in the order in which they run, with what ``after`` has in its place.

    A file that ships has no names left: layers are found by their order, kind and shape, see
    `compress.models.layer_matching.match`. Layers that only ``after`` has are left out, and logged.

    Args:
        before: The baseline's ONNX file.
        after: The one that ships: float, int8, int4, or with shared values.

    Returns:
        Empty, with the reason logged, where the constants of one of the files cannot be computed.
    """
    try:
        return _changes(Layers(before), Layers(after))
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base of their own
        logger.warning("layers cannot be compared: %s.", first_line(error))
        return ()


def _changes(old: Layers, new: Layers) -> tuple[LayerChange, ...]:
    places = match(old.forms(), new.forms())
    added = [layer.name for place, layer in enumerate(new.all) if layer.weights and place not in places]
    if added:
        logger.info("layers that the baseline does not have: %s", ", ".join(added))
    pairs = [(layer, None if place is None else new.all[place]) for layer, place in zip(old.all, places, strict=True)]
    return tuple(_change(old, new, was, now) for was, now in pairs if was.weights)


def _change(old: Layers, new: Layers, was: WeightedLayer, now: WeightedLayer | None) -> LayerChange:
    weights = old.weights(was)
    left = None if now is None else new.weights(now)
    return LayerChange(
        name=was.name,
        kind=was.operator,
        before=_side(old, was, weights),
        after=None if now is None or left is None else _side(new, now, left),
        histogram=histogram(_flat(weights), None if left is None else _flat(left)),
    )


def _side(file: Layers, layer: WeightedLayer, weights: Sequence[Floats]) -> LayerSide:
    shape = weights[0].shape
    channels = shape[_OUTPUT_AXIS.get(layer.operator, 0)]
    if layer.operator in _GATES:  # (directions, gates * H, in): both directions' hidden units are outputs
        channels = shape[0] * shape[1] // _GATES[layer.operator]
    elif layer.operator == "MatMul" and len(shape) > 2:
        channels = shape[-1]
    tensors = (stored_tensor(file.wiring, name) for name in layer.tensors)
    return LayerSide(
        shape=shape,
        channels=channels,
        weights=sum(weight.size for weight in weights),
        nonzero=sum(int(np.count_nonzero(weight)) for weight in weights),
        bytes=sum(stored_bytes(tensor, file.folder) for tensor in tensors if tensor is not None),
    )


def _flat(weights: Sequence[Floats]) -> Floats:
    return np.concatenate([weight.reshape(-1) for weight in weights])


def histogram(before: Floats, after: Floats | None) -> Histogram:
    """The weights other than zero in ``BINS`` bins; zeros apart.

    The bins reach from the lower 0.1 % of each side to its upper 0.1 %; what lies farther out is in the first and the
    last. Layers of fewer than a thousand weights have all of them inside.

    Args:
        before: Any number of weights, on one axis.
        after: The same of what is left; None: nothing is.
    """
    sides = [before[before != 0], *([] if after is None else [after[after != 0]])]
    ends = [end for side in sides if side.size for end in _ends(side)] or [0.0]
    low, high = min(ends), max(ends)
    # Equal bins and their range, not edges, for which numpy would sort.
    made = [np.histogram(side.astype(np.float64).clip(low, high), BINS, (low, high)) for side in sides]
    counts = [tuple(int(count) for count in found) for found, _ in made]
    edges = made[0][1]
    return Histogram(
        edges=tuple(float(f"{edge:.{_DIGITS}g}") for edge in edges),
        before=counts[0],
        after=None if after is None else counts[1],
        zeros_before=before.size - sides[0].size,
        zeros_after=None if after is None else after.size - sides[1].size,
    )


def _ends(weights: Floats) -> tuple[float, float]:
    """Between which all but the outermost weights lie."""
    low = np.quantile(weights, _TAIL, method="lower")
    return float(low), float(np.quantile(weights, 1 - _TAIL, method="higher"))
