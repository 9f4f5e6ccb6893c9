"""What RealtimePruner costs: training steps of the fine-grained pruning CNN (batch 64, Adam) with it and without.

    python -m benchmarks.realtime_overhead

Two copies of the model train on the same random images, one with the pruner. Blocks of one interval each, with exactly
one decision in it, alternate, and so does which comes first; each pair of blocks gives one ratio: of the seconds that
passed, and of those that the processor spent on this process, which other work on the machine disturbs less. Beside
them the share of the time that was spent in `RealtimePruner.step` itself. Every decision is one to remove weights
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

    def block(self, steps: int) -> dict[str, float]:
        """Seconds of ``steps`` training steps, the processor's for them, and of the former those in the pruner."""
        inside, started, cpu = 0.0, time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = F.nll_loss(self.module(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.pruner is not None:
                before = time.perf_counter()
                self.pruner.step(loss)
                inside += time.perf_counter() - before
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return {"s": seconds, "cpu_s": cpu} | ({"inside_s": inside} if self.pruner is not None else {})


def measure(interval: int, score: str, rounds: int) -> dict[str, Any]:
    """Ratio of the times with and without, its 95 % interval over the rounds, and the share inside the pruner."""
    without, pruned = Arm(), Arm(interval=interval, score=score, start=0, tolerance=1e9, cut=0.05, sparsity=0.99)
    for arm in (without, pruned):
        arm.block(interval)  # first calls load code and allocate; the first masks are made
    blocks: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        order = ("without", "with") if number % 2 else ("with", "without")
        blocks.append({name: (pruned if name == "with" else without).block(interval) for name in order})
    assert pruned.pruner is not None
    assert all(decision.action == "raise" for decision in pruned.pruner.history)
    inside = [b["with"]["inside_s"] / (b["with"]["s"] - b["with"]["inside_s"]) for b in blocks]
    return {
        "interval_steps": interval,
        "score": score,
        "blocks": blocks,
        "step_ms": 1000 * statistics.median(b["without"]["s"] for b in blocks) / interval,
        "ratio": _ratio([b["with"]["s"] / b["without"]["s"] for b in blocks]),
        "ratio_cpu": _ratio([b["with"]["cpu_s"] / b["without"]["cpu_s"] for b in blocks]),
        "share_inside": {"median": statistics.median(inside), "high": max(inside)},
    }


def _ratio(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of the ratios, and the ends of its 95 % interval (Student's t)."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.mean(logs)
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        "| interval | score | a step | with / without (95 %) | in processor time | in the pruner |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        told = [f"{r['mean']:.3f} ({r['low']:.3f}–{r['high']:.3f})" for r in (found["ratio"], found["ratio_cpu"])]
        rows.append(
            f"| {found['interval_steps']} steps | {found['score']} | {found['step_ms']:.1f} ms "
            f"| {told[0]} | {told[1]} | {found['share_inside']['median']:.2%} |"
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
