"""Memory of exporting a model above 2 GB: peak at most 2.5 times the bytes of its weights.

    python -m benchmarks.large_export --width 8192 --depth 12 --folder large

Makes an MLP with random weights (12 x 8192 x 8192: 3.2 GB) and exports it in a process of its own. Where the peak comes
from is told by part, each with its own high-water mark (VmHWM, reset between the parts; Linux only): the model itself,
torch's answers, tracing, writing, checking and comparing. Then its weights are stored as int8, as `compress quantize`
does with such files. Pages of a file that is mapped into memory count, though the
system may take them back. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.memory import reset_peak, status
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.onnx_export import ExportConfig, export, finishing, stage
from compress.quantization import QuantizeConfig, quantize
from compress.values import Context, InputSpec, Model
from compress.workspace import to_json

LIMIT = 2.5  # times the bytes of the weights


class Parts:
    """Seconds and peak memory of the parts of a run."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        reset_peak()
        started = time.perf_counter()
        yield
        row = {"seconds": round(time.perf_counter() - started, 2), **_memory()}
        before = self.rows.get(name, row)
        self.rows[name] = {key: max(value, before[key]) for key, value in row.items()}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.measured(name):
                return function(*args, **kwargs)

        return wrapped


def _memory() -> dict[str, float]:
    """Bytes: the high-water mark, and what is in use, of its own and of mapped files."""
    fields = {"peak_bytes": "VmHWM", "anonymous_bytes": "RssAnon", "mapped_bytes": "RssFile"}
    return {name: status(field) for name, field in fields.items()}


def mlp(width: int, depth: int) -> nn.Sequential:
    """``depth`` layers of (width, width), filled in place."""
    layers: list[nn.Module] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(depth):
        layer = nn.utils.skip_init(nn.Linear, width, width)
        with torch.no_grad():
            layer.weight.uniform_(-1, 1, generator=generator).mul_((3 / width) ** 0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers).eval()


def measure(width: int, depth: int, external_above_bytes: int, folder: Path) -> dict[str, Any]:
    """Export in this process."""
    torch.set_num_threads(1)
    parts = Parts()
    with parts.measured("imports"):
        pass
    base = parts.rows["imports"]["peak_bytes"]
    with parts.measured("model"):
        module = mlp(width, depth)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    watched = (
        (stage, "torch_cases", "torch answers"),
        (stage, "from_export", "trace"),
        (finishing, "write_external", "write"),
        (finishing, "_checked", "check and compare"),
    )
    config = ExportConfig(external_above_bytes=external_above_bytes)
    model = Model(module, (InputSpec("input", (width,)),), "other")
    started = time.perf_counter()
    with ExitStack() as stack:
        for where, name, label in watched:
            stack.enter_context(mock.patch.object(where, name, parts.around(label, getattr(where, name))))
        made, record = export(model, config, Context(data=None, directory=folder))
    seconds = time.perf_counter() - started
    peak = max(row["peak_bytes"] for row in parts.rows.values())
    del module, model  # their memory is given back before the next part is measured
    gc.collect()
    with parts.measured("quantize"):  # int8 weights: beside the export, and no part of its peak
        (variant,), _ = quantize(made, QuantizeConfig(method="weights"), Context(data=None, directory=folder))
    return {
        "width": width,
        "depth": depth,
        "weight_bytes": weights,
        "imports_bytes": base,
        "peak_bytes": peak,
        "peak_over_weights": round(peak / weights, 3),
        "limit": LIMIT,
        "export_seconds": round(seconds, 1),
        "file_bytes": {file.name: file.stat().st_size for file in sorted(made.path.parent.glob(f"{made.path.name}*"))},
        "parts": parts.rows,
        "int8_bytes": variant.onnx.path.stat().st_size,
        "figures": record.figures,
        "notes": record.notes,
        "environment": environment(1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--external-above-bytes", type=int, default=ExportConfig().external_above_bytes)
    parser.add_argument("--folder", type=Path, help="where the files stay; default: a temporary folder")
    parser.add_argument("--here", action="store_true", help="measure in this process and print the result")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.width, options.depth, options.external_above_bytes, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        numbers = {"width": options.width, "depth": options.depth, "external-above-bytes": options.external_above_bytes}
        given = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "benchmarks.large_export", "--here", "--folder", str(folder), *given]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = f"large-export-mlp-{options.width}x{options.depth}-threads1.json"
    write_atomically(Path(__file__).parent / "results" / name, to_json(result))
    print(f"{result['weight_bytes']:,} bytes of weights, peak {result['peak_over_weights']} times that (limit {LIMIT})")
    for part, row in result["parts"].items():
        print(f"  {part:18} {row['peak_bytes'] / result['weight_bytes']:.2f}x  {row['seconds']:.1f} s")


if __name__ == "__main__":
    main()
