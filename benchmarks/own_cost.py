"""What `compress` itself costs: beside the training steps that a run contains, and as models and data grow.

    python -m benchmarks.own_cost --part overhead --workloads cnn mobilenetv2   # whole pipelines: many minutes
    python -m benchmarks.own_cost --part parameters                             # 0.2 to 100 million
    python -m benchmarks.own_cost --part samples                                # 1,000 to 60,000 images
    python -m benchmarks.own_cost --part limits

overhead: the seconds of a whole `compress pipeline`, from the start of its process to its end, over those of the bare
training steps in it: as many as it took, of the models that it trained (a sample of --replay steps of each round, times
its steps), with the teacher's answers at hand and no file, score or mask. "bare" steps use the layout and the optimizer
that this package does, so that nothing but overhead is left; "plain" ones are torch's defaults.
parameters, samples: the seconds of everything that is no training, and the peak of resident memory, in runs of a few
steps. Their models are untrained and their images and labels random: neither changes how long anything takes.
limits: group finding in forward passes of the model, mask selection in reads of the weights, calibration in runs of
the samples. Linux only, one thread. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import own_limits
from benchmarks.watched_run import TRAINING
from benchmarks.workloads import WORKLOADS, data_flags, model_flags
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.workspace import to_json

TARGET = 0.2  # of the seconds of the bare steps
NOT_MET = 3  # exit status of a run in which nothing met the gate: it has done all its work all the same
SIZES = (200_000, 1_000_000, 10_000_000, 100_000_000)
LARGEST_CNN = 10_000_000  # above it, one step takes longer than everything that this part is about
COUNTS = (1_000, 10_000, 60_000)
IMAGES = 2_000  # of the runs that compare sizes of models
FEW = ("--set", "prune.rounds=1", "--set", "sparsify.rounds=1", "--epochs", "0.001")
# What is timed is no part of the question: a few calls of each file will do.
FEW_CALLS = ("--set", "benchmark.seconds=0.3", "--set", "benchmark.launches=1")
FEW_STEPS = ("--set", "prune.min_steps=5", "--set", "sparsify.min_steps=5")


def spawn(arguments: Sequence[str]) -> dict[str, float]:
    """Run a module of this folder in a process of its own: its seconds, the processor's, and its peak of memory.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, NOT_MET):
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    seconds = time.perf_counter() - started
    return {"s": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def watched(folder: Path, arguments: Sequence[str], rounds: bool = False) -> dict[str, Any]:
    """A `compress pipeline` with one thread, and what each kind of work in it took."""
    out = ("--out", str(folder / "compressed"), "--overwrite", "--quiet", "--threads", "1")
    flags = ("--rounds",) if rounds else ()
    whole = spawn(["benchmarks.watched_run", str(folder), *flags, "--", "pipeline", *arguments, *out])
    return {"whole": whole, **json.loads((folder / "watched.json").read_text())}


# -- overhead --------------------------------------------------------------------------------------------------------


def overhead(name: str, checkpoint: Path, epochs: float | None, steps: int, objective: str) -> dict[str, Any]:
    """One workload: a whole run, and the bare steps in it."""
    workload = WORKLOADS[name]
    arguments = [str(checkpoint / "model.pt"), *model_flags(workload.trained, checkpoint)]
    arguments += [*data_flags(workload.trained, checkpoint), "--objective", objective]
    arguments += ["--epochs", str(workload.epochs if epochs is None else epochs)]
    for stage in ("prune", "sparsify"):
        least = workload.min_steps if epochs is None else 1
        arguments += [
            "--set",
            f"{stage}.min_steps={least}",
            "--set",
            f"{stage}.finetune.batch_size={workload.batch_size}",
        ]
        arguments += ["--set", f"{stage}.finetune.learning_rate={workload.learning_rate}"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = watched(folder, arguments, rounds=True)
        spawn(["benchmarks.watched_run", place, "--replay", str(steps)])
        replayed = json.loads((folder / "replayed.json").read_text())
    return {
        "workload": name,
        "objective": objective,
        "epochs": epochs,
        **ratios(run, replayed),
        "run": run,
        "replayed": replayed,
    }


def ratios(run: Mapping[str, Any], replayed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The seconds of the bare steps of all rounds, and those of the whole run over them, less 1."""
    found: dict[str, Any] = {"steps": sum(r["steps"] for r in run["rounds"])}
    for arm in ("bare", "plain"):
        for unit, key in (("s", "ms"), ("cpu_s", "cpu_ms")):
            found[f"{arm}_{unit}"] = sum(
                one["steps"] * statistics.median(block[arm][key] for block in again["blocks"]) / 1000
                for one, again in zip(run["rounds"], replayed, strict=True)
            )
    for unit in ("s", "cpu_s"):
        found[f"overhead_{unit}"] = run["whole"][unit] / found[f"bare_{unit}"] - 1
        found[f"loop_overhead_{unit}"] = run["work"][TRAINING][unit] / found[f"bare_{unit}"] - 1
    return found


def overhead_table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| workload | objective | steps | whole run | bare steps | overhead | of it the training loop | plain steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        told = [
            f"{found[key]:+.1%} ({found[key.replace('_s', '_cpu_s')]:+.1%})"
            for key in ("overhead_s", "loop_overhead_s")
        ]
        rows.append(
            f"| {found['workload']} | {found['objective']} | {found['steps']:,} | {found['run']['whole']['s']:.0f} s "
            f"| {found['bare_s']:.0f} s | {told[0]} | {told[1]} | {found['plain_s']:.0f} s |"
        )
    rows.append("\nIn parentheses: in seconds of the processor. A tenth of a percent and more of the bare steps:\n")
    rows += ["| workload | work | seconds | of the bare steps |", "|---|---|---|---|"]
    for found in results:
        work = sorted(found["run"]["work"].items(), key=lambda item: -item[1]["s"])
        rows += [
            f"| {found['workload']} | {what} | {spent['s']:.1f} | {spent['s'] / found['bare_s']:.1%} |"
            for what, spent in work
            if spent["s"] >= 0.001 * found["bare_s"]
        ]
    return "\n".join(rows)


# -- growth ----------------------------------------------------------------------------------------------------------


def mlp(parameters: int) -> nn.Module:
    """Images (N, 1, 28, 28) to 10 classes by two hidden layers of equal width, of about as many parameters."""
    width = round((-794 + (794**2 + 4 * parameters) ** 0.5) / 2)
    layers = (nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(parameters: int) -> nn.Module:
    """Three convolutions, normalised, each twice as wide as the one before: 9 · 10 c² parameters."""
    c = round((parameters / 90) ** 0.5)
    blocks: list[nn.Module] = []
    for i, o in ((1, c), (c, 2 * c), (2 * c, 4 * c)):
        blocks += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * c, 10))


FAMILIES: Mapping[str, Callable[[int], nn.Module]] = {"mlp": mlp, "cnn": cnn}


def growth(family: str, parameters: int, images: int) -> dict[str, Any]:
    """A run of five steps a stage on random images: what is left is everything but training."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        module = FAMILIES[family](parameters).eval()
        torch.save(module, folder / "model.pt")
        draw = np.random.default_rng(0)
        x = draw.integers(0, 256, (images, 1, 28, 28), dtype=np.uint8)
        np.savez(folder / "data.npz", x=x, y=draw.integers(0, 10, images))
        arguments = [str(folder / "model.pt"), "--data", f"npz:{folder / 'data.npz'}", "--max-drop", "1"]
        run = watched(folder, [*arguments, *FEW, *FEW_STEPS, *FEW_CALLS])
    count = sum(p.numel() for p in module.parameters())
    other = sum(spent["s"] for what, spent in run["work"].items() if what != TRAINING)
    return {"family": family, "parameters": count, "images": images, "other_s": other, "run": run}


def growth_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row a run, with the work that takes the longest in any of them."""
    longest: dict[str, float] = {}
    for found in results:
        for what, spent in found["run"]["work"].items():
            longest[what] = max(longest.get(what, 0.0), spent["s"])
    names = [n for n in sorted(longest, key=lambda n: -longest[n]) if n != TRAINING][:8]
    rows = ["| model | parameters | images | peak | all but training | " + " | ".join(names) + " |"]
    rows.append("|---" * (5 + len(names)) + "|")
    for found in results:
        work = found["run"]["work"]
        peak = found["run"]["whole"]["peak_bytes"] / 2**20
        rows.append(
            f"| {found['family']} | {found['parameters']:,} | {found['images']:,} | {peak:,.0f} MiB "
            f"| {found['other_s']:.1f} s | " + " | ".join(f"{work.get(n, {'s': 0.0})['s']:.1f}" for n in names) + " |"
        )
    return "\n".join(rows)


# -- all parts -------------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace) -> tuple[str, Any, str]:
    """What the file's name tells of a part, its results, and their table."""
    if options.part == "overhead":
        found = []
        for name in options.workloads:
            found.append(overhead(name, options.checkpoints / name, options.epochs, options.replay, options.objective))
        return "-".join((*options.workloads, options.objective)), found, overhead_table(found)
    if options.part == "limits":
        limits = own_limits.measure(options.weights)
        return f"weights{options.weights}", limits, own_limits.table(limits)
    if options.part == "samples":
        found = [growth("cnn", SIZES[0], images) for images in options.images]
        return f"images{max(options.images)}", found, growth_table(found)
    runs = [(family, size) for family in FAMILIES for size in options.sizes if family == "mlp" or size <= LARGEST_CNN]
    found = [growth(family, size, IMAGES) for family, size in runs]
    return f"parameters{max(options.sizes)}", found, growth_table(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("overhead", "parameters", "samples", "limits"), default="overhead")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=["lenet-5-fashion", "cnn"])
    parser.add_argument("--objective", choices=("size", "latency", "balanced"), default="balanced")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="of benchmarks.train")
    parser.add_argument("--epochs", type=float, help="of a round; default: the workload's")
    parser.add_argument("--replay", type=int, default=40, help="bare steps of each round's model, of both kinds")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="parameters")
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--weights", type=int, default=100_000_000, help="of limits: that masks are selected of")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]  # of the machine: others may be at work
    detail, results, table = measured(options)
    machine = environment(1)
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    content = {
        "schema": 1,
        "part": options.part,
        "environment": machine,
        "load_average_1_min": load,
        "results": results,
    }
    target = options.out / f"own-cost-{options.part}-{detail}-{cpu}-threads1.json"
    write_atomically(target, to_json(content))
    told = f"{table}\n\n{machine['cpu']}, 1 thread; torch {machine['torch']}, onnxruntime {machine['onnxruntime']}.\n"
    write_atomically(target.with_suffix(".md"), told.encode())
    print(f"{told}\n{target}")
    if options.part == "overhead" and any(found["overhead_s"] > TARGET for found in results):
        raise SystemExit(f"overhead above {TARGET:.0%} of the bare steps: see {target}")


if __name__ == "__main__":
    main()
