"""Which way of sparsifying keeps the most accuracy: every schedule, score and scope, at equal sparsity and training.

    python -m benchmarks.train mlp-256 cnn
    python -m benchmarks.sparsification mlp-256 --seeds 3
    python -m benchmarks.sparsification mlp-256 --seeds 5 --steps 480
    python -m benchmarks.sparsification cnn --seeds 1

Every way starts from the same trained model and removes the same share of its weights, with as many optimizer
steps of the same fine-tuning; the reactive one removes what the loss allows, at most that. The figure is the drop of
accuracy on validation and test together: nothing is chosen on either. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.train import MODELS
from compress.data import Data
from compress.files import write_atomically
from compress.measurement import outputs_of
from compress.measurement.accuracy import accuracy
from compress.measurement.environment import environment
from compress.models import load
from compress.sparsity import SparsifyConfig, sparsify
from compress.values import Context, Model
from compress.workspace import to_json

FACTORIES = {"cnn": "compress.models.reference:FineGrainedCNN"}
# The share of each layer in the fine-grained pruning example: 97.46 % of the weights.
DICTIONARY = {"conv1": 0.65, "conv2": 0.95, "conv3": 0.98, "fc1": 0.98, "fc2": 0.90}
SPARSITY = 0.9746
STEPS = 1500  # optimizer steps: fewer leave the cubic schedule too few for recovery after its ramp
ITERATIONS = 3  # of the iterative way, an equal part of the training each

DEFAULT = "lamp, cubic (default)"
WAYS: Mapping[str, dict[str, Any]] = {
    DEFAULT: {},
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


def config_of(way: str, steps: int = STEPS) -> SparsifyConfig:
    # Next to no epochs: min_steps alone says how long.
    options: dict[str, Any] = {"budget": 1.0, "rounds": 1, "epochs": 1e-6, "min_steps": steps, **WAYS[way]}
    if options.get("schedule") == "iterative":
        options |= {"rounds": ITERATIONS, "min_steps": steps // ITERATIONS}
        options["cut"] = 1 - (1 - SPARSITY) ** (1 / ITERATIONS)
    if "layers" not in options:
        options["sparsity"] = SPARSITY
    return SparsifyConfig(**options)


def measure(name: str, checkpoints: Path, seeds: int, steps: int, ways: list[str]) -> dict[str, Any]:
    """Way -> sparsity reached and drop, one a seed."""
    path = checkpoints / name / "model.pt"
    data = MODELS[name](path.parent, 0).data
    module = load(path, factory=FACTORIES.get(name)).module
    assert module is not None
    dense = Model(module, data.inputs)
    baseline, samples = _right(dense, data)
    ways = [way for way in ways if name == "cnn" or "layers" not in WAYS[way]]
    found: dict[str, Any] = {way: {"sparsity": [], "drop": []} for way in ways}
    for seed in range(seeds):
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                # max_drop=1: every round counts, however much it costs.
                context = Context(data, Path(folder), original=dense, max_drop=1.0, seed=seed)
                sparse, record = sparsify(dense, config_of(way, steps), context)
            drop = (baseline - _right(sparse, data)[0]) / samples
            found[way]["sparsity"].append(round(record.figures["sparsity"], 5))
            found[way]["drop"].append(round(drop, 5))
            print(f"seed {seed}, {way}: {record.figures['sparsity']:.2%} zeros, drop {drop:+.4f}", flush=True)
    for values in found.values():
        values["mean_drop"] = statistics.fmean(values["drop"])
        values["interval"] = _interval(values["drop"])
        values["default_is_better_by"] = _paired(values["drop"], found[DEFAULT]["drop"])
    return {"dense": baseline / samples, "samples": samples, "ways": found}


def _right(model: Model, data: Data) -> tuple[int, int]:
    """Right answers, and samples, of validation and test together."""
    scores = [accuracy(outputs_of(model, split)) for split in (data.validation, data.test)]
    return sum(round(found.value * found.n) for found in scores), sum(found.n for found in scores)


def _paired(ours: list[float], default: list[float]) -> dict[str, Any] | None:
    """Mean difference to the default over the same seeds, with its 95 % interval; None for the default itself."""
    differences = [a - b for a, b in zip(ours, default, strict=True)]
    return {"mean": statistics.fmean(differences), "interval": _interval(differences)} if any(differences) else None


def _interval(values: list[float]) -> list[float] | None:
    """95 %, Student's t over seeds; None for a single one or where they are equal."""
    if len(values) < 2 or len(set(values)) == 1:
        return None
    low, high = stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), stats.sem(values))
    return [float(low), float(high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("mlp-256", "cnn"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of each training")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the default first")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    given = f"{options.model} --seeds {options.seeds} --steps {options.steps}"
    content = {
        "command": f"python -m benchmarks.sparsification {given}",
        "model": MODELS[options.model].__doc__,
        "asked_sparsity": SPARSITY,
        "steps": options.steps,
        "cpu": environment(1)["cpu"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        **measure(options.model, options.checkpoints, options.seeds, options.steps, options.ways),
    }
    write_atomically(
        options.out / f"sparsification-{options.model}-steps{options.steps}-seeds{options.seeds}.json", to_json(content)
    )


if __name__ == "__main__":
    main()
