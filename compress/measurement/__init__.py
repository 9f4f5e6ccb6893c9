"""Measuring models: answers, bytes and latency."""

from compress.measurement.accuracy import Accuracy, Outputs, Score, accuracy, drop, fidelity, outputs_of, score, top1
from compress.measurement.sessions import PROVIDERS, open_session
from compress.measurement.size import SHIPPED_NAME, members, raw_bytes, write_zip, zip_bytes
from compress.measurement.stage import BenchmarkConfig, Measurement, benchmark
from compress.measurement.timing import Ratio, Timing, interleave, speedup

__all__ = [
    "PROVIDERS",
    "SHIPPED_NAME",
    "Accuracy",
    "BenchmarkConfig",
    "Measurement",
    "Outputs",
    "Ratio",
    "Score",
    "Timing",
    "accuracy",
    "benchmark",
    "drop",
    "fidelity",
    "interleave",
    "members",
    "open_session",
    "outputs_of",
    "raw_bytes",
    "score",
    "speedup",
    "top1",
    "write_zip",
    "zip_bytes",
]
