"""Memory of calibration: compress against onnxruntime's calibrators, as the number of images grows.

    python -m benchmarks.calibration_memory
    python -m benchmarks.calibration_memory --model checkpoints/mobilenetv2/model.onnx

Calibrates the fine-grained-pruning CNN (or an ONNX file) on training images of Fashion-MNIST. Each measurement is a
process of its own: its peak is the most that was resident while it calibrated, its extra the part of it beyond what
was resident with the graph and the data in place. Both libraries observe the tensors of the same operators in batches
of 32; compress takes the ranges of its five methods from one walk, onnxruntime has a calibrator for each of its own.
The seconds are those of the walk and of the ranges. onnxruntime's calibrators for percentiles and entropy keep every
value of every image: they are stopped at --largest images. Linux only. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from benchmarks.memory import reset_peak, status
from compress.data import DataOptions, load_data
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.models.onnx_file import graph_inputs, read
from compress.quantization.calibration import Feeds, calibrate
from compress.quantization.integer import STATIC_OPERATORS
from compress.quantization.observers import METHODS
from compress.values import Context, InputSpec, Model
from compress.workspace import to_json

BATCH = 32
LIMIT_BYTES = 12 << 30  # of address space: a calibrator that wants more is stopped
TARGET = 1.1  # peak with the most images, against the fewest
THEIRS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class Reader(CalibrationDataReader):
    """Our feeds, as onnxruntime reads them."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def once(library: str, method: str, model: Path, data: str, images: int) -> dict[str, Any]:
    """One measurement in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    proto = read(model)
    inputs = graph_inputs(proto)
    split = load_data(data, DataOptions(calibration=images, channels=_channels(inputs))).calibration
    before = reset_peak()
    started = time.perf_counter()
    if library == "compress":
        found = calibrate(proto, split, inputs, batch_size=BATCH)
        observed = time.perf_counter() - started
        ranges = len({each: found.ranges(each) for each in METHODS}["minmax"])
    else:
        calibrator = _calibrator(method, model)
        with contextlib.redirect_stdout(sys.stderr):  # they print
            calibrator.collect_data(Reader(Feeds(split, inputs, BATCH)))
            observed = time.perf_counter() - started
            ranges = len(calibrator.compute_data().data)
    seconds = time.perf_counter() - started
    peak = status("VmHWM")
    return {
        "peak_bytes": peak, "extra_bytes": peak - before, "seconds": seconds, "observing_seconds": observed,
        "images": len(split), "ranges": ranges,
    }  # fmt: skip


def _calibrator(method: str, model: Path) -> Any:
    """One of onnxruntime's, with its own defaults."""
    scratch = model.parent / f"augmented-{method}-{os.getpid()}.onnx"
    calibrator = create_calibrator(
        model, list(STATIC_OPERATORS), augmented_model_path=str(scratch), calibrate_method=THEIRS[method]
    )
    options = onnxruntime.SessionOptions()  # as its own session, but for the threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    calibrator.infer_session = onnxruntime.InferenceSession(scratch, options, providers=["CPUExecutionProvider"])
    return calibrator


def _channels(inputs: tuple[InputSpec, ...]) -> int | None:
    shape = inputs[0].shape
    return shape[0] if len(shape) == 3 else None


def spawn(library: str, method: str, model: Path, data: str, images: int) -> dict[str, Any]:
    """One measurement in a process of its own; ``failed`` tells why there is none."""
    command = [sys.executable, "-m", "benchmarks.calibration_memory", "--once", library, method]
    command += ["--model", str(model), "--data", data, "--images", str(images)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    result = {"library": library, "method": method, "asked": images}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return result | {"failed": lines[-1]}
    return result | json.loads(done.stdout.splitlines()[-1])


def compare(model: Path, data: str, ours: list[int], theirs: list[int], largest: int) -> list[dict[str, Any]]:
    """Every measurement: ours of all methods from one walk, theirs of each method by itself."""
    found = [spawn("compress", "all", model, data, count) for count in ours]
    for method in THEIRS:
        counts = theirs if method != "minmax" else sorted({*theirs, *ours})
        for count in counts:
            if method == "minmax" or count <= largest:
                found.append(spawn("onnxruntime", method, model, data, count))
    return found


def growth(results: list[dict[str, Any]]) -> float:
    """Our peak with the most images over that with the fewest."""
    peaks = {r["asked"]: r["peak_bytes"] for r in results if r["library"] == "compress"}
    return float(peaks[max(peaks)] / peaks[min(peaks)])


def table(results: list[dict[str, Any]]) -> str:
    rows = ["| | ranges | images | peak | of it calibration | seconds |", "|---|---|---|---|---|---|"]
    for r in results:
        told = f"| {r['library']} | {r['method']} | {r['asked']:,} "
        if "failed" in r:
            rows.append(f"{told}| {r['failed']} | | |")
        else:
            mib = [f"{r[key] / 2**20:,.0f} MiB" for key in ("peak_bytes", "extra_bytes")]
            rows.append(f"{told}| {mib[0]} | {mib[1]} | {r['seconds']:.1f} |")
    return "\n".join(rows)


def _exported(folder: Path) -> Path:
    """The CNN with random weights: memory does not depend on their values."""
    from compress.models.reference import FineGrainedCNN  # here: the processes that measure need not hold the exporter
    from compress.onnx_export import ExportConfig, export

    torch.manual_seed(0)
    model = Model(FineGrainedCNN().eval(), (InputSpec("input", (1, 28, 28)),))
    made, _ = export(model, ExportConfig(), Context(data=None, directory=folder))
    return made.path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file that takes images; default: the CNN")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--peers", type=int, nargs="*", default=[64, 256, 512], help="images for onnxruntime")
    parser.add_argument("--largest", type=int, default=512, help="images that its histogram calibrators are given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)  # what each process is told
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.once:
        print(json.dumps(once(*options.once, options.model, options.data, options.images[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _exported(Path(folder))
        results = compare(model, options.data, options.images, options.peers, options.largest)
    print(table(results))
    ratio = growth(results)
    print(f"compress, most against fewest images: {ratio:.3f} times the peak")
    machine = environment(1)
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    name = options.model.parent.name if options.model else "cnn"
    content = {"schema": 1, "command": "python -m benchmarks.calibration_memory", "environment": machine}
    content |= {"model": name, "data": options.data, "batch_size": BATCH, "growth": ratio, "results": results}
    content |= {"load_average_15_min": os.getloadavg()[2]}  # of the machine: it slows the times, not the memory
    most = max(options.images)
    write_atomically(options.out / f"calibration-memory-{name}-images{most}-{cpu}-threads1.json", to_json(content))
    if ratio > TARGET:
        raise SystemExit(f"the peak with {most:,} images is {ratio:.2f} times that with {min(options.images):,}")


if __name__ == "__main__":
    main()
