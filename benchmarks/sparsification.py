"""Which way of sparsifying keeps the most accuracy: every schedule, score and scope, at equal sparsity and training.

    python -m benchmarks.train cnn
    python -m benchmarks.sparsification --seeds 3

Every way starts from the same trained CNN and removes the same share of its weights, with the same number of optimizer
steps of the same fine-tuning; the reactive one removes what the loss allows, at most that. The figure is the drop of
accuracy on the test split, which nothing is chosen on. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.train import MODELS
from compress.data import DataOptions, load_data
from compress.files import write_atomically
from compress.measurement import accuracy, outputs_of
from compress.measurement.environment import environment
from compress.models import load
from compress.sparsity import SparsifyConfig, sparsify
from compress.values import Context, Model
from compress.workspace import to_json

FACTORY = "compress.models.reference:FineGrainedCNN"
# The share of each layer in the fine-grained pruning example: 97.46 % of the weights.
DICTIONARY = {"conv1": 0.65, "conv2": 0.95, "conv3": 0.98, "fc1": 0.98, "fc2": 0.90}
SPARSITY = 0.9746
EPOCHS = 3.0
ITERATIONS = 3  # of the iterative way, an equal part of the epochs each

WAYS: Mapping[str, dict[str, Any]] = {
    "lamp, cubic (default)": {},
    "lamp, one-shot": {"schedule": "one-shot"},
    "lamp, iterative": {"schedule": "iterative"},
    "lamp, reactive": {"schedule": "reactive"},
    "magnitude, global, cubic from 0.5": {"score": "magnitude", "initial": 0.5},
    "magnitude, global, one-shot": {"score": "magnitude", "schedule": "one-shot"},
    "magnitude, global, iterative": {"score": "magnitude", "schedule": "iterative"},
    "magnitude, layer, cubic": {"score": "magnitude", "scope": "layer"},
    "magnitude, dictionary, cubic": {"score": "magnitude", "layers": DICTIONARY},
    "taylor, global, cubic": {"score": "taylor"},
    "random, global, cubic": {"score": "random"},
}


def config_of(way: str) -> SparsifyConfig:
    options: dict[str, Any] = {"budget": 1.0, "rounds": 1, "epochs": EPOCHS, "min_steps": 1, **WAYS[way]}
    if options.get("schedule") == "iterative":
        options |= {"rounds": ITERATIONS, "epochs": EPOCHS / ITERATIONS, "cut": 1 - (1 - SPARSITY) ** (1 / ITERATIONS)}
    if "layers" not in options:
        options["sparsity"] = SPARSITY
    return SparsifyConfig(**options)


def measure(checkpoint: Path, seeds: int, limit: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Way -> sparsity reached and drop on test, one a seed."""
    data = load_data("fashion-mnist", DataOptions(limit=limit))
    module = load(checkpoint, factory=FACTORY).module
    assert module is not None
    dense = Model(module, data.inputs)
    baseline = accuracy(outputs_of(dense, data.test))
    found: dict[str, Any] = {way: {"sparsity": [], "drop": []} for way in ways}
    for seed in range(seeds):
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                # max_drop=1: every round counts, however much it costs.
                context = Context(data, Path(folder), original=dense, max_drop=1.0, seed=seed)
                sparse, record = sparsify(dense, config_of(way), context)
            drop = baseline.value - accuracy(outputs_of(sparse, data.test)).value
            found[way]["sparsity"].append(round(record.figures["sparsity"], 5))
            found[way]["drop"].append(round(drop, 5))
            print(f"seed {seed}, {way}: {record.figures['sparsity']:.2%} zeros, drop {drop:+.4f}", flush=True)
    for values in found.values():
        values["mean_drop"] = statistics.fmean(values["drop"])
        values["interval"] = _interval(values["drop"])
    return {"dense": dataclasses.asdict(baseline), "ways": found}


def _interval(values: list[float]) -> list[float] | None:
    """95 %, Student's t over seeds; None for a single one or where they are equal."""
    if len(values) < 2 or len(set(values)) == 1:
        return None
    low, high = stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), stats.sem(values))
    return [float(low), float(high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/cnn/model.pt"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=12_800, help="training images")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    content = {
        "command": f"python -m benchmarks.sparsification --seeds {options.seeds} --limit {options.limit}",
        "model": MODELS["cnn"].__doc__,
        "epochs": EPOCHS,
        "training_images": options.limit,
        "cpu": environment(1)["cpu"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        **measure(options.checkpoint, options.seeds, options.limit, tuple(options.ways)),
    }
    file = options.out / f"sparsification-cnn-fashion-mnist-{options.limit}-seeds{options.seeds}.json"
    write_atomically(file, to_json(content))


if __name__ == "__main__":
    main()
