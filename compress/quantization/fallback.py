"""Layers that return to float, worst first, until the accuracy is back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from compress.errors import QuantizationError
from compress.quantization.judge import Judge
from compress.units import signed
from compress.values import Progress, silent

Build = Callable[[tuple[str, ...]], tuple[onnx.ModelProto, bytes]]  # layers that stay float -> graph and file


@dataclass(frozen=True)
class Step:
    """One point of the trade-off."""

    layers_in_float: int
    drop: float  # on validation, as a fraction
    p50_ms: float  # of one sample at one thread, timed in turns with the float file
    float_p50_ms: float
    bytes: int


@dataclass(frozen=True)
class Fallback:
    """The whole trade-off, and the best graph of it."""

    proto: onnx.ModelProto
    layers: tuple[str, ...]  # in float in ``proto``
    steps: tuple[Step, ...]  # in the order in which they were tried
    within: bool  # whether ``proto`` keeps the budget

    @property
    def drop(self) -> float:
        return min(step.drop for step in self.steps if step.layers_in_float == len(self.layers))


def return_to_float(
    order: Sequence[str], build: Build, judge: Judge, budget: float, progress: Progress = silent
) -> Fallback:
    """Leave more and more layers in float until the drop is within ``budget``.

    The counts tried grow by a half each time, then the smallest count that is enough is found by bisection between the
    last two: a drop falls with the number of float layers but for noise. Where no count is enough, the file with the
    smallest drop is returned.

    Args:
        order: Layers by name, the most sensitive first.
        build: Makes the file for some layers in float.
        judge: Scores it.
        budget: Fraction that may be lost.
        progress: Told after each trial.

    Raises:
        QuantizationError: not even the file without a layer in float can be built.
    """
    trials: dict[int, tuple[Step, onnx.ModelProto]] = {}

    def passes(count: int) -> bool:
        proto, data = build(tuple(order[:count]))
        p50, float_p50 = judge.p50_ms(data)
        trials[count] = Step(count, judge.drop(data), p50, float_p50, len(data)), proto
        within = [tried for tried, (step, _) in trials.items() if step.drop <= budget]
        best = f"best: {min(within)} layers in float are enough, " if within else ""
        progress("layers back to float", count, len(order), f"{best}drop {signed(trials[count][0].drop)} with {count}")
        return trials[count][0].drop <= budget

    low, high = -1, None  # ``low`` layers are too few, ``high`` are enough
    for count in _counts(len(order)):
        try:
            enough = passes(count)
        except QuantizationError:  # what is left is nothing that can be quantized
            if not trials:
                raise
            break
        if enough:
            high = count
            break
        low = count
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    progress("layers back to float", len(order), len(order))
    best = high if high is not None else min(trials, key=lambda count: (trials[count][0].drop, count))
    steps = tuple(step for step, _ in trials.values())
    return Fallback(trials[best][1], tuple(order[:best]), steps, high is not None)


def _counts(layers: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 9, … below ``layers``: one layer at least stays quantized."""
    counts = [0]
    while counts[-1] < layers:
        counts.append(max(counts[-1] + 1, counts[-1] * 3 // 2))
    return [count for count in counts if count < layers]
