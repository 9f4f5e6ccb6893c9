"""Which channels should leave first: accuracy right after the cut, without fine-tuning, for every importance.

    python -m benchmarks.train cnn && python -m benchmarks.train mobilenetv2
    python -m benchmarks.importance cnn mobilenetv2

Channels leave until a share of the multiply-accumulates or of the parameters is left, the same for all; normalisation
statistics are taken again; the figure is accuracy on validation samples over that of the dense model. Writes
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import platform
from pathlib import Path

import torch

from benchmarks.train import MODELS
from compress.data import Data
from compress.files import write_atomically
from compress.measurement import outputs_of
from compress.measurement.accuracy import accuracy
from compress.models import load
from compress.pruning import IMPORTANCES, analyse, prune
from compress.training import reestimate
from compress.values import Model
from compress.workspace import to_json

SAMPLES = 2000  # of validation
FACTORIES = {"cnn": "compress.models.reference:FineGrainedCNN"}
BUDGETS = ({"macs": 0.5}, {"macs": 0.25}, {"parameters": 0.5}, {"parameters": 0.25})


def measure(name: str, checkpoints: Path, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Importance -> budget -> share of the dense accuracy that is left, one a seed (of the calibration samples)."""
    path = checkpoints / name / "model.pt"
    data: Data = MODELS[name](path.parent, 0).data
    module = load(path, factory=FACTORIES.get(name)).module
    assert module is not None
    module.eval()
    example = data.calibration.fetch(data.calibration.indices[:1])[0]
    structure = analyse(module, example)
    dense = _accuracy(module, data)
    found: dict[str, dict[str, list[float]]] = {}
    for importance, budget, seed in itertools.product(IMPORTANCES, BUDGETS, range(seeds)):
        pruned = prune(
            module, example, **budget, importance=importance, data=data.calibration, structure=structure, seed=seed
        )
        reestimate(pruned.module, data.train, seed=seed)
        share = _accuracy(pruned.module, data) / dense
        told = ", ".join(f"{what} {left}" for what, left in budget.items())
        found.setdefault(importance, {}).setdefault(told, []).append(round(share, 4))
        print(f"{name} {importance} {told} seed {seed}: {share:.3f} of {dense:.4f}", flush=True)
    return found


def _accuracy(module: torch.nn.Module, data: Data) -> float:
    return accuracy(outputs_of(Model(module.eval(), data.inputs), data.validation.take(SAMPLES))).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=("cnn", "mobilenetv2"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    for name in options.models:
        content = {
            "model": name,
            "samples": SAMPLES,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "share_of_accuracy_left": measure(name, options.checkpoints, options.seeds),
        }
        file = Path("benchmarks/results") / f"importance-{name}-seeds{options.seeds}.json"
        write_atomically(file, to_json(content))


if __name__ == "__main__":
    main()
