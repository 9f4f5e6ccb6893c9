"""Group finding, mask selection and calibration beside the least that each could take. See own_cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.selection import layers
from compress.data import synthetic
from compress.measurement import open_session
from compress.models.onnx_file import read
from compress.models.reference import FineGrainedCNN, mlp
from compress.models.torchvision_compat import ensure_operators
from compress.onnx_export import ExportConfig, export
from compress.pruning.groups import analyse
from compress.quantization.calibration import Feeds, calibrate
from compress.quantization.observers import METHODS
from compress.sparsity.masks import Score, apply_masks, make_masks, sparsifiable
from compress.values import Context, InputSpec, Model

REPEATS = 3
SAMPLES = 512  # that ranges are taken from, as a run does
BATCH = 32
SPARSITY = 0.9
SCORES: tuple[Score, ...] = ("lamp", "magnitude")
FLOAT = 4  # bytes


def measure(weights: int) -> dict[str, Any]:
    """Each of the three, with what it is held against."""
    return {
        "groups": [finding(name, make) for name, make in MODELS.items()],
        "masks": [selecting(weights, score) for score in SCORES],
        "calibration": [calibrating(name, make) for name, make in MODELS.items()],
    }


def _timed(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median seconds of some calls; one before them loads code."""
    work()
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def _mobilenet() -> Model:
    ensure_operators()
    import torchvision

    return Model(torchvision.models.mobilenet_v2(num_classes=10).eval(), (InputSpec("input", (3, 224, 224)),))


def _grey(make: Callable[[], nn.Module]) -> Callable[[], Model]:
    return lambda: Model(make().eval(), (InputSpec("input", (1, 28, 28)),))


MODELS: Mapping[str, Callable[[], Model]] = {
    "cnn": _grey(FineGrainedCNN),
    "mlp-3x2000": _grey(mlp),
    "mobilenet_v2 at 224": _mobilenet,
}


def finding(name: str, make: Callable[[], Model]) -> dict[str, Any]:
    """Groups of a model, beside a forward pass of one sample."""
    torch.manual_seed(0)
    model = make()
    example = torch.zeros(1, *model.inputs[0].shape)
    with torch.inference_mode():
        forward = _timed(lambda: model.module(example), 10)
    seconds = _timed(lambda: analyse(model.module, example))
    found = analyse(model.module, example)
    return {"model": name, "s": seconds, "forward_s": forward, "passes": found.passes, "groups": len(found.groups)}


def selecting(weights: int, score: Score) -> dict[str, Any]:
    """Masks of the lowest weights of all layers, made and applied, beside a read of their bytes."""
    parameters = sparsifiable(layers(weights))
    count = sum(p.numel() for p in parameters.values())
    make_masks(sparsifiable(layers(10_000)), SPARSITY, score)  # first calls load code
    read_s = _timed(lambda: [p.detach().amax() for p in parameters.values()])
    # Once: the next time, most weights are zero already.
    started = time.perf_counter()
    apply_masks(parameters, make_masks(parameters, SPARSITY, score))
    seconds = time.perf_counter() - started
    speeds = {"gb_per_s": FLOAT * count / seconds / 1e9, "read_gb_per_s": FLOAT * count / read_s / 1e9}
    return {"score": score, "weights": count, "sparsity": SPARSITY, "s": seconds, "read_s": read_s, **speeds}


def calibrating(name: str, make: Callable[[], Model]) -> dict[str, Any]:
    """Ranges of all methods from one walk over the samples, beside onnxruntime's run of the same in equal batches."""
    torch.manual_seed(0)
    model = make()
    large = model.inputs[0].shape[-1] > 32
    split = synthetic(model.inputs, count=2 * (SAMPLES // 8 if large else SAMPLES)).train
    split = split.take(SAMPLES // 8 if large else SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        made, _ = export(model, ExportConfig(), Context(data=None, directory=Path(folder)))
        proto, session = read(made.path), open_session(made.path, "cpu", threads=1)
    feeds = list(Feeds(split, model.inputs, BATCH))

    def ranges() -> None:
        found = calibrate(proto, split, model.inputs, batch_size=BATCH)
        for method in METHODS:
            found.ranges(method)

    inference = _timed(lambda: [session.run(None, feed) for feed in feeds])
    return {"model": name, "samples": len(split), "s": _timed(ranges, 1), "inference_s": inference}


def table(found: Mapping[str, Any]) -> str:
    """What each takes, in units of what it cannot do without."""
    rows = ["| | work | seconds | beside | seconds | ratio |", "|---|---|---|---|---|---|"]
    rows += [
        f"| group finding | {g['model']}: {g['groups']} groups in {g['passes']} passes | {g['s']:.3f} "
        f"| a forward pass | {g['forward_s']:.4f} | {g['s'] / g['forward_s']:.0f} |"
        for g in found["groups"]
    ]
    rows += [
        f"| mask selection | {m['weights']:,} weights by {m['score']}, {m['sparsity']:.0%} zeros, {m['gb_per_s']:.2f} "
        f"GB/s | {m['s']:.3f} | a read at {m['read_gb_per_s']:.1f} GB/s | {m['read_s']:.3f} "
        f"| {m['s'] / m['read_s']:.1f} |"
        for m in found["masks"]
    ]
    rows += [
        f"| calibration | {c['model']}, {c['samples']} samples, {len(METHODS)} methods | {c['s']:.2f} "
        f"| inference in onnxruntime | {c['inference_s']:.2f} | {c['s'] / c['inference_s']:.1f} |"
        for c in found["calibration"]
    ]
    return "\n".join(rows)
