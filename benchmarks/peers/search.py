"""How far can it be pruned? Rising factors, each from the last that was good, then half-way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from benchmarks.peers.exporting import export
from benchmarks.peers.points import Point, write_points
from benchmarks.peers.task import Task, answers

SHARE = 0.75  # of the allowed drop: the rest is left to a quantization that may follow
POINTS = 3  # that are written at most
ROUNDING = 1e-9  # a drop exactly at its limit is within it


@dataclass(frozen=True)
class Tried:
    """A model that was pruned and fine-tuned."""

    factor: float  # how many times smaller it was to become
    module: nn.Module
    settings: str
    drop: float  # on validation, fraction 0..1
    loss: float  # cross-entropy there

    def within(self, limit: float) -> bool:
        return self.drop <= limit + ROUNDING

    def good(self, task: Task) -> bool:
        """Its drop is within the share of pruning."""
        return self.within(SHARE * task.max_drop)


def score(task: Task, factor: float, module: nn.Module, settings: str) -> Tried:
    """``module`` with its drop and loss."""
    outputs, labels = answers(module, task.validation), task.validation.labels
    accuracy = (outputs.argmax(dim=1) == labels).double().mean().item()
    return Tried(factor, module, settings, task.baseline - accuracy, F.cross_entropy(outputs, labels).item())


def climb(
    task: Task,
    factors: Sequence[float],
    tries: int,
    attempt: Callable[[nn.Module, float], Tried],
    start: Tried | None = None,
    failed: float = math.inf,
) -> list[Tried]:
    """Try ``factors`` in turn for as long as the drop is within its share; from then on half-way, on a log scale.

    Args:
        factors: Rising, above 1; after the last of them it goes on with its double.
        tries: Calls of ``attempt`` in all.
        attempt: Prunes and fine-tunes a copy of the module that it is given: the best so far.
        start: The best so far; None: the dense model.
        failed: The least factor that is known to be too much.
    """
    best, factor = start or score(task, 1.0, task.module, "dense"), factors[0]
    tried: list[Tried] = []
    for _ in range(tries):
        now = attempt(best.module, factor)
        print(f"{now.settings}: drop {now.drop:+.4f}", flush=True)
        tried.append(now)
        best, failed = (now, failed) if now.good(task) else (best, min(failed, factor))
        rising = next((f for f in factors if f > best.factor), 2 * best.factor)
        factor = rising if failed == math.inf else math.sqrt(best.factor * failed)
    return tried


def climb_again(
    task: Task, tried: Sequence[Tried], tries: int, attempt: Callable[[nn.Module, float], Tried]
) -> list[Tried]:
    """The best factor of ``tried`` once more with another ``attempt``, from the best model before it; then on."""
    good = sorted((one for one in tried if one.good(task)), key=lambda one: one.factor)
    failed = min((one.factor for one in tried if not one.good(task)), default=math.inf)
    factor = good[-1].factor if good else math.sqrt(failed)
    return climb(task, [factor], tries, attempt, good[-2] if len(good) > 1 else None, failed)


def write(task: Task, ways: Sequence[Sequence[Tried]], out: Path, steps: int, *packages: str) -> None:
    """Export what kept its accuracy, the smallest of each way first; where nothing did, the most accurate."""
    kept = [sorted((one for one in way if one.within(task.max_drop)), key=lambda one: -one.factor) for way in ways]
    chosen = [way[0] for way in kept if way]
    chosen += sorted((one for way in kept for one in way[1:]), key=lambda one: -one.factor)
    points = []
    for number, one in enumerate(chosen[:POINTS] or [min(chain(*ways), key=lambda one: one.drop)]):
        file = f"p{number}.onnx"
        export(one.module, task.example(), task.names, out / file)
        points.append(Point(file, one.settings, one.drop, one.good(task)))
    write_points(out, points, steps, "torch", "onnx", "onnxslim", *packages)
