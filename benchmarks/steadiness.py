"""Whether the benchmark can be trusted: it finds what is there, and does not find what is not.

    python -m benchmarks.steadiness

On the CNN of the fine-grained pruning example (random weights: latency does not ask), each run one benchmark as
`compress benchmark` makes it, of short blocks:

1. A/A: the same file twice. How often is a "significant" difference found where there is none?
2. A/B: a file with more channels in its last convolution, about 10 % slower. How often is it found?
3. A busy machine: the CNN against one of half its width, while nothing else runs, and while one and then two processes
   burn a core each. How far does the ratio go from the quiet one?

The first two are of the same runs, three files side by side. The width of the slower file is searched for once, and its
true ratio measured with many launches. Linux only. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.files import write_atomically
from compress.measurement import Timing, speedup
from compress.measurement.environment import environment
from compress.measurement.latency import Job, Plan, time_together
from compress.models.reference import FineGrainedCNN
from compress.onnx_export import ExportConfig, export
from compress.values import Context, InputSpec, Model
from compress.workspace import to_json

INPUT = InputSpec("x", (1, 28, 28))
SLOWER = 1.10  # times as slow, of the file of the second part
WIDTHS = range(72, 168, 8)  # of the last convolution, which has 64 channels; multiples of 8, as kernels like them
BUSY = (0, 1, 2)  # processes that burn a core each
WITHIN = 0.10  # how far the ratio of the third part may be from the quiet one
FEEDS = {INPUT.name: np.random.default_rng(0).random((1, *INPUT.shape), np.float32)}


class CNN(FineGrainedCNN):
    """The CNN with other numbers of channels."""

    def __init__(self, first: int = 32, second: int = 32, third: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, kernel_size=5)
        self.conv2 = nn.Conv2d(first, second, kernel_size=5)
        self.conv3 = nn.Conv2d(second, third, kernel_size=5)
        self.third = third
        self.fc1 = nn.Linear(3 * 3 * third, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, 28, 28) to log-probabilities (N, 10)."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(nn.functional.max_pool2d(self.conv2(x), 2))
        x = torch.relu(nn.functional.max_pool2d(self.conv3(x), 2))
        x = torch.relu(self.fc1(x.view(-1, 3 * 3 * self.third)))
        return nn.functional.log_softmax(self.fc2(x), dim=1)


def written(folder: Path, *channels: int) -> Path:
    """The ONNX file of a CNN with these numbers of channels."""
    torch.manual_seed(0)
    name = "-".join(map(str, channels)) or "cnn"
    model = Model(CNN(*channels).eval(), (INPUT,))
    return export(model, ExportConfig(), Context(None, folder), f"{name}.onnx")[0].path.resolve()


def timed(files: Sequence[Path], seconds: float, launches: int, threads: int, seed: int) -> list[Timing]:
    plan = Plan(threads=threads, seconds=seconds, rounds=3 * launches, launches=launches, seed=seed)
    return time_together([Job(file, FEEDS) for file in files], plan)


def compared(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """The speed-up of every file but the first against it."""
    return [asdict(speedup(timings[0], timing)) for timing in timings[1:]]


def slower(folder: Path, base: Path, seconds: float, threads: int) -> tuple[int, Path]:
    """The width whose file comes nearest to taking ``SLOWER`` times as long, and that file."""
    files = [written(folder, 32, 32, width) for width in WIDTHS]
    ratios = [found["value"] for found in compared(timed([base, *files], seconds, 10, threads, seed=0))]
    nearest = int(np.argmin([abs(1 / ratio - SLOWER) for ratio in ratios]))
    return WIDTHS[nearest], files[nearest]


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many other processes that never rest."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def launch_spread(timings: Sequence[Timing]) -> float:
    """Standard deviation, over launches, of the logarithm of the ratio of two files' medians in one launch."""
    medians = [np.median(np.array(t.samples_ms).reshape(t.launches, -1), axis=1) for t in timings[:2]]
    return float(np.log(medians[0] / medians[1]).std(ddof=1))


def alike_and_slower(base: Path, slow: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The first two parts."""
    same, other, spreads = [], [], []
    for run in range(options.runs):
        timings = timed([base, base, slow], options.seconds, options.launches, options.threads, seed=run)
        first, second = compared(timings)
        same.append(first)
        other.append(second)
        spreads.append(launch_spread(timings))
        print(f"run {run + 1}: A/A {told(first)}; A/B {told(second)}; launches differ by {spreads[-1]:.1%}", flush=True)
    return {"same": same, "slower": other, "launch_spread": spreads}


def on_busy_machines(base: Path, half: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The third part: the speed-up of a file of half the width, by the number of busy processes."""
    found: dict[str, list[dict[str, Any]]] = {str(processes): [] for processes in BUSY}
    for run in range(options.busy_runs):
        for processes in BUSY:
            with busy(processes):
                (ratio,) = compared(timed([base, half], options.seconds, options.launches, options.threads, seed=run))
            found[str(processes)].append(ratio)
            print(f"run {run + 1}: half the width, {processes} busy: {told(ratio)}", flush=True)
    return found


def told(ratio: dict[str, Any]) -> str:
    word = "" if ratio["significant"] else ", not significant"
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}-{ratio['high']:.3f}]{word}"


def verdict(found: dict[str, Any], loaded: dict[str, list[dict[str, Any]]], true: dict[str, Any]) -> dict[str, Any]:
    """The figures that the promises are about."""
    same, other = found["same"], found["slower"]
    quiet = float(np.median([ratio["value"] for ratio in loaded["0"]]))
    away = {processes: max(abs(ratio["value"] / quiet - 1) for ratio in ratios) for processes, ratios in loaded.items()}
    return {
        "runs": len(same),
        "same_significant": sum(ratio["significant"] for ratio in same),
        "same_largest_difference": max(abs(ratio["value"] - 1) for ratio in same),
        "same_interval_holds_1": sum(ratio["low"] <= 1 <= ratio["high"] for ratio in same),
        "slower_true_ratio": true["value"],
        "slower_found": sum(ratio["significant"] and ratio["value"] < 1 for ratio in other),
        "slower_interval_holds_the_true": sum(ratio["low"] <= true["value"] <= ratio["high"] for ratio in other),
        "launch_spread_median": float(np.median(found["launch_spread"])),
        "quiet_ratio": quiet,
        "largest_distance_from_quiet": away,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy-runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing each file in a run")
    parser.add_argument("--launches", type=int, default=Plan().launches)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, half = written(folder), written(folder, 16, 16, 32)
        width, slow = slower(folder, base, options.seconds, options.threads)
        (true,) = compared(timed([base, slow], 10 * options.seconds, 40, options.threads, seed=0))
        print(f"{width} channels instead of 64: {told(true)}", flush=True)
        found = alike_and_slower(base, slow, options)
        loaded = on_busy_machines(base, half, options)
    figures = verdict(found, loaded, true)
    print(to_json(figures).decode())
    machine = environment(options.threads)
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    command = f"python -m benchmarks.steadiness --runs {options.runs} --busy-runs {options.busy_runs}"
    content = {
        "schema": 1,
        "command": f"{command} --seconds {options.seconds:g} --launches {options.launches} --threads {options.threads}",
    }
    content |= {"environment": machine, "load_average_15_min": os.getloadavg()[2], "verdict": figures}
    content |= {"slower_channels": width, "true": true, **found, "half_width_by_busy_processes": loaded}
    factors = f"seconds{options.seconds:g}-launches{options.launches}-runs{options.runs}"
    write_atomically(options.out / f"steadiness-cnn-{factors}-{cpu}-threads{options.threads}.json", to_json(content))


if __name__ == "__main__":
    main()
