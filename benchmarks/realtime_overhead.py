"""What RealtimePruner costs: training steps of the fine-grained pruning CNN (batch 64, Adam) with it and without.

    python -m benchmarks.realtime_overhead

Two copies of the model train on the same random images, one with the pruner. Blocks of one interval each, with exactly
one decision in it, alternate, and so does which comes first; each pair of blocks gives one ratio. Beside it, more
exactly, the share of the time that was spent in `RealtimePruner.step` itself. Every decision is one to remove weights
(the dearest: all are ranked), and all masks are held. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats

from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.models.reference import FineGrainedCNN
from compress.sparsity.realtime import RealtimePruner
from compress.workspace import to_json

BATCH = 64  # images a step
INTERVALS = {"100 steps": 100, "one epoch of 3,500 images": 55}
SCORES = ("lamp", "magnitude", "taylor")


class Arm:
    """A copy of the model in training."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = FineGrainedCNN().train()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.001)
        self.pruner = RealtimePruner(self.module, **options) if options else None
        self.images, self.labels = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))

    def block(self, steps: int) -> tuple[float, float]:
        """Seconds of ``steps`` training steps, and of these the seconds in the pruner."""
        inside, started = 0.0, time.perf_counter()
        for _ in range(steps):
            loss = F.nll_loss(self.module(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.pruner is not None:
                before = time.perf_counter()
                self.pruner.step(loss)
                inside += time.perf_counter() - before
        return time.perf_counter() - started, inside


def measure(interval: int, score: str, rounds: int) -> dict[str, Any]:
    """Ratio of the times with and without, its 95 % interval over the rounds, and the share inside the pruner."""
    without, pruned = Arm(), Arm(interval=interval, score=score, start=0, tolerance=1e9, cut=0.05, sparsity=0.99)
    for arm in (without, pruned):
        arm.block(interval)  # first calls load code and allocate; the first masks are made
    blocks: list[dict[str, float]] = []
    for number in range(rounds):
        found: dict[str, float] = {}
        for arm in (without, pruned) if number % 2 else (pruned, without):
            seconds, inside = arm.block(interval)
            found |= {"without_s": seconds} if arm is without else {"with_s": seconds, "inside_s": inside}
        blocks.append(found)
    assert pruned.pruner is not None
    assert all(decision.action == "raise" for decision in pruned.pruner.history)
    low, ratio, high = _interval([math.log(b["with_s"] / b["without_s"]) for b in blocks])
    inside = [b["inside_s"] / (b["with_s"] - b["inside_s"]) for b in blocks]
    return {
        "interval_steps": interval,
        "score": score,
        "blocks": blocks,
        "step_ms": 1000 * statistics.median(b["without_s"] for b in blocks) / interval,
        "ratio": {"mean": math.exp(ratio), "low": math.exp(low), "high": math.exp(high)},
        "share_inside": {"median": statistics.median(inside), "high": max(inside)},
    }


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Low end, mean and high end of the 95 % interval of the mean (Student's t)."""
    mean = statistics.mean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean, mean + half


def table(results: list[dict[str, Any]]) -> str:
    rows = ["| interval | score | a step | with / without (95 %) | in the pruner |", "|---|---|---|---|---|"]
    for found in results:
        ratio, inside = found["ratio"], found["share_inside"]["median"]
        rows.append(
            f"| {found['interval_steps']} steps | {found['score']} | {found['step_ms']:.1f} ms "
            f"| {ratio['mean']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) | {inside:.2%} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of blocks, at least 2")
    parser.add_argument("--intervals", type=int, nargs="+", default=list(INTERVALS.values()), help="steps")
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=["lamp"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [measure(interval, score, options.rounds) for interval in options.intervals for score in options.scores]
    print(table(results))
    content = {
        "model": "FineGrainedCNN",
        "batch": BATCH,
        "optimizer": "Adam",
        "rounds": options.rounds,
        "environment": environment(options.threads),
        "results": results,
    }
    write_atomically(options.out / f"realtime-overhead-cnn-threads{options.threads}.json", to_json(content))


if __name__ == "__main__":
    main()
