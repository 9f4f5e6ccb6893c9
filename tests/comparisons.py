"""Rows of a comparison that was never run: what the tests of its tables, pages and pictures are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.compare.row import Kind, Row
from compress.measurement import Accuracy, Ratio, Timing
from compress.measurement.intervals import share_interval
from compress.measurement.timing import summary

SAMPLES = 400
DENSE = 0.9  # accuracy, on both splits
BUDGET = {"steps": 3200, "max_drop": 0.01}
ENVIRONMENT = {
    "cpu": "A Processor",
    "isa": ["avx2", "vnni"],
    "threads": 1,
    "torch": "2.13.0",
    "onnxruntime": "1.31.1",
    "python": "3.11.2",
}


def answers(accuracy: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(SAMPLES,) of which that share is right: the same samples first for every accuracy, and few others by seed."""
    order = np.argsort(np.arange(SAMPLES) + np.random.default_rng(seed).normal(0, 20, SAMPLES))
    right = np.zeros(SAMPLES, np.bool_)
    right[order[: round(accuracy * SAMPLES)]] = True
    return right


def timing(p50_ms: float, launches: int = 4, rounds: int = 5, noise: float = 0.01) -> Timing:
    """Blocks of five calls; what disturbs a round disturbs every file of that round alike."""
    shared = np.random.default_rng(1).normal(1, noise, (launches, rounds, 1))
    own = np.random.default_rng(round(p50_ms * 1e6)).normal(1, noise / 10, (launches, rounds, 5))
    return summary(p50_ms * shared * own, provider="CPUExecutionProvider", batch=1, threads=1)


def share(value: float) -> Accuracy:
    count = round(value * SAMPLES)
    return Accuracy(count / SAMPLES, *share_interval(count, SAMPLES), SAMPLES)


def row(
    entry: str,
    zip_bytes: int | None,
    p50_ms: float | None,
    drop: float = 0.0,
    *,
    seed: int = 0,
    file: str | None = "model.onnx",
    test_drop: float | None = None,
    kind: Kind | None = None,
    **fields: Any,
) -> Row:
    """A row that was scored, and timed where it has a p50."""
    kind = kind or ("own" if entry.startswith("compress-") else "dense" if entry.startswith("dense") else "peer")
    on_test = drop if test_drop is None else test_drop
    latency = None if p50_ms is None else timing(p50_ms)
    given: dict[str, Any] = {
        "raw_bytes": None if zip_bytes is None else 4 * zip_bytes,
        "zip_bytes": zip_bytes,
        "nonzero": 1234,
        "validation": share(DENSE - drop),
        "validation_drop": drop,
        "test": share(DENSE - on_test),
        "test_drop": on_test,
        "drop_interval": (on_test - 0.02, on_test + 0.02),
        "p50_ms": None if latency is None else latency.p50_ms,
        "p50_interval": None if p50_ms is None else (p50_ms * 0.99, p50_ms * 1.01),
        "speedup": None if p50_ms is None else Ratio(1 / p50_ms, 0.98 / p50_ms, 1.02 / p50_ms, True),
        "latency": latency,
        "eligible": drop <= BUDGET["max_drop"],
        "seconds": 60.0,
        "cpu_seconds": 100.0,
        "steps": 3200,
        "lines": 40,
        "versions": {"torch": "2.13.0"},
        "right": answers(DENSE - on_test, seed),
    }
    return Row("cnn", seed, entry, kind, file, "its settings", **{**given, **fields})


def failed(entry: str, seed: int = 0, status: str = "ValueError: no scale | of a pipe") -> Row:
    return Row("cnn", seed, entry, "peer", None, "its settings", status, cpu_seconds=3.0)


def one_seed(seed: int = 0, bytes_of_ours: Sequence[int] = (8_000, 30_000, 9_000)) -> list[Row]:
    """Every kind of row: ours, peers within and beyond the budget, one that failed, one without a latency."""
    size, latency, balanced = bytes_of_ours
    return [
        row("dense", 800_000, 1.0, seed=seed, file="float.onnx"),
        row("compress-size", size, 0.5, 0.01, seed=seed, test_drop=0.005),
        row("compress-latency", latency, 0.1, 0.0, seed=seed),
        row("compress-balanced", balanced, 0.2, 0.005, seed=seed),
        row("torch-prune", 90_000, 1.0, 0.005, seed=seed, file="p1.onnx"),
        row("torch-prune-ort", 20_000, None, 0.0075, seed=seed, file="p1.onnx"),
        row("torch-pruning", 60_000, 0.25, 0.01, seed=seed, file="p2.onnx"),
        row("torch-pruning", 30_000, 0.15, 0.03, seed=seed, file="p3.onnx"),
        row("torch-pruning-ort", 16_000, 0.2, 0.01, seed=seed, file="p2.onnx"),
        row("torch-pruning-ort", 7_000, 0.1, 0.04, seed=seed, file="p3.onnx"),
        failed("torch-pruning-inc", seed),
        row("dense-openvino", None, 0.8, seed=seed, file=None, right=None),
    ]
