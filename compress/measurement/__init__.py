"""Measuring models: answers, bytes and latency."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.measurement.accuracy import Accuracy, Outputs, Score, drop, fidelity, outputs_of, score, top1
    from compress.measurement.sessions import PROVIDERS, open_session
    from compress.measurement.size import SHIPPED_NAME, members, raw_bytes, write_zip, zip_bytes
    from compress.measurement.stage import BenchmarkConfig, Measurement, benchmark
    from compress.measurement.timing import Ratio, Timing, speedup
    from compress.measurement.turns import interleave

# Where each public name lives. Imported at first use: the processes that are timed come through this door, and must
# hold neither torch nor scipy. A name that is a module's too, as `accuracy`, is imported from there.
_HOMES = {
    "PROVIDERS": "sessions",
    "SHIPPED_NAME": "size",
    "Accuracy": "accuracy",
    "BenchmarkConfig": "stage",
    "Measurement": "stage",
    "Outputs": "accuracy",
    "Ratio": "timing",
    "Score": "accuracy",
    "Timing": "timing",
    "benchmark": "stage",
    "drop": "accuracy",
    "fidelity": "accuracy",
    "interleave": "turns",
    "members": "size",
    "open_session": "sessions",
    "outputs_of": "accuracy",
    "raw_bytes": "size",
    "score": "accuracy",
    "speedup": "timing",
    "top1": "accuracy",
    "write_zip": "size",
    "zip_bytes": "size",
}

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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'compress.measurement' has no attribute {name!r}")
    return getattr(import_module(f"compress.measurement.{_HOMES[name]}"), name)
