"""The answers that an int8 file gives on processors that are not here, by emulation.

    apt-get install qemu-user
    python -m benchmarks.other_processors                          # the saturating net of benchmarks.stress_nets
    python -m benchmarks.other_processors cnn=cnn.onnx             # and nets of benchmarks.train, as float ONNX

Every file answers the same test images on this processor and on each emulated one. Integer arithmetic is exact or it
is not: where the static check of `compress.quantization.isa` says that a file is exact on a processor, its answers
must be those of this one. Emulation tells nothing about speed. qemu 7.2 emulates AVX2, but neither AVX-512 nor VNNI.

Any other Python with numpy and onnxruntime can be asked too, ARM's for example, by the command that starts it:

    --python 'arm-dotprod=qemu-aarch64 -cpu neoverse-n1 -L ROOT … ROOT/usr/bin/python3.11'

(ROOT holds Debian's arm64 packages of Python and the aarch64 wheels; onnxruntime reads ROOT/proc/cpuinfo, which must
tell of an ARM.) Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.stress_nets import saturating_net
from benchmarks.train import MODELS
from compress.data import Data, DataOptions, Split, load_data
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.models.onnx_file import graph_inputs, serialize
from compress.quantization.calibration import calibrate
from compress.quantization.candidates import Candidate
from compress.quantization.cpu import emulate_saturation, packed_rows, saturating_layers
from compress.quantization.graph import name_nodes, sqnr_db
from compress.quantization.isa import exact_on, target
from compress.quantization.static import build
from compress.workspace import to_json

RESULTS = Path("benchmarks/results")
CALIBRATION = 256  # samples
CANDIDATES = (
    Candidate("static", "no", False), Candidate("static", "no", False, repaired=True), Candidate("static", "no", True),
    Candidate("static", "yes", False), Candidate("static", "yes", False, repaired=True),
    Candidate("static", "no", False, "s8s8"), Candidate("static", "no", False, "u8u8"),
)  # fmt: skip

# What starts a Python of each processor. Nehalem has no AVX2: onnxruntime then widens, and cannot saturate.
EMULATED = {
    "avx2": ["qemu-x86_64", "-cpu", "Haswell", sys.executable],
    "sse4.1": ["qemu-x86_64", "-cpu", "Nehalem", sys.executable],
}
# The names above and of --python -> the target whose promises they must keep.
TARGETS = {"avx2": "avx2", "arm": "arm", "arm-dotprod": "arm-dotprod"}

RUNNER = """
import sys, numpy, onnxruntime
answers, *files = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
found = {}
for file in files:
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found[file] = session.run(None, {session.get_inputs()[0].name: numpy.load(file + ".npy")})[0]
numpy.savez(answers, **found)
"""

# What is checked to the bit: operator, weight, groups. Each takes another way through qlinearconv.cc or qgemm.h.
LAYERS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "conv-3-channels": ("Conv", (8, 3, 3, 3), 1),  # im2col and product
    "conv-4-channels": ("Conv", (16, 4, 3, 3), 1),  # the symmetric kernel
    "conv-1x1": ("Conv", (16, 32, 1, 1), 1),
    "conv-1d": ("Conv", (8, 5, 7), 1),
    "conv-3d": ("Conv", (8, 3, 2, 3, 3), 1),
    "conv-2-groups": ("Conv", (8, 3, 3, 3), 2),
    "conv-depthwise-multiplier-2": ("Conv", (16, 1, 5, 5), 8),
    "gemm": ("Gemm", (11, 101), 1),
    "matmul": ("MatMul", (102, 11), 1),
}
STEP = 4096.0  # of the output, a power of two: both sides round the same numbers

Answers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """One file on one processor, against the same file on this one."""

    net: str
    variant: str
    processor: str
    saturating_layers: int  # by the static check, on x86 without VNNI
    exact: bool | None  # what the static check promises for this processor; None: it is no target
    samples: int
    accuracy: float  # fraction 0..1
    accuracy_here: float
    same_top1: float  # share of the samples
    sqnr_db: float | None  # of the scores, against those of this processor; None: equal


def measure(net: str, proto: onnx.ModelProto, data: Data, samples: int, pythons: Mapping[str, list[str]]) -> list[Row]:
    """Quantize a float graph in every way, and ask every processor.

    Raises:
        RuntimeError: a processor gave other answers than the static check promises.
    """
    name_nodes(proto)
    ranges = calibrate(proto, data.calibration.take(CALIBRATION), graph_inputs(proto)).ranges("minmax")
    files = {"fp32": proto} | {candidate.name: build(proto, candidate, ranges) for candidate in CANDIDATES}
    images, labels = _samples(data.test, samples)
    with tempfile.TemporaryDirectory() as folder:
        for name, made in files.items():
            _put(Path(folder), name, made, images)
        here = _ask([sys.executable], Path(folder), list(files))
        rows = []
        for processor, python in pythons.items():
            there = _ask(python, Path(folder), list(files))
            rows += [_row(net, name, processor, files[name], labels, here[name], there[name]) for name in files]
    return rows


def check_kernels(python: list[str]) -> list[str]:
    """Ask for single layers of random full-range weights; each must answer as the numpy emulation does, to the bit.

    The images are as large as the kernels: a convolution is then one product, and its order of K is all that matters.

    Raises:
        RuntimeError: a layer answers otherwise, or does not saturate.
    """
    generator = np.random.default_rng(0)
    expected, checked = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, (operator, shape, group) in LAYERS.items():
            weight = generator.integers(-127, 128, shape).astype(np.int8)
            inputs = (shape[1] * group, *shape[2:]) if operator == "Conv" else (shape[1 if operator == "Gemm" else 0],)
            images = generator.choice(np.array([0, 9, 200, 254, 255], np.uint8), (64, *inputs))
            made = _one_layer(operator, weight, inputs, group)
            _put(Path(folder), name, made, images.astype(np.float32))
            rows = packed_rows(made.graph.node[3], weight)
            # (N, …, C) of each group, times the rows of that group
            parts = np.split(images.reshape(len(images), *inputs), group, axis=1)
            last = [np.moveaxis(part, 1, -1).reshape(len(part), -1) for part in parts]
            pairs = zip(last, np.split(rows, group), strict=True)
            sums = np.concatenate([emulate_saturation(a, w) for a, w in pairs], axis=1)
            expected[name] = np.clip(np.rint(sums / STEP), -128, 127) * STEP
        here, there = (_ask(command, Path(folder), list(LAYERS)) for command in ([sys.executable], python))
    for name, wanted in expected.items():
        answer = there[name].reshape(wanted.shape)
        if not np.array_equal(answer, wanted) or np.array_equal(answer, here[name].reshape(wanted.shape)):
            raise RuntimeError(f"{name}: the kernel of {shlex.join(python)} does not saturate as the emulation does.")
        checked.append(name)
    return checked


def _one_layer(operator: str, weight: NDArray[np.int8], inputs: tuple[int, ...], group: int) -> onnx.ModelProto:
    """Uint8 activations of scale 1, a layer of scale 1, an output in whole `STEP`s."""
    attributes = {"Conv": {"group": group}, "Gemm": {"transB": 1}}.get(operator, {})
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        onnx.helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "one", "zero_w"], ["wd"]),
        onnx.helper.make_node(operator, ["xd", "wd"], ["sum"], **attributes),
        onnx.helper.make_node("QuantizeLinear", ["sum", "step", "middle"], ["yq"]),
        onnx.helper.make_node("DequantizeLinear", ["yq", "step", "middle"], ["y"]),
    ]
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "zero_w": np.int8(0), "w": weight, "step": np.float32(STEP),
        "middle": np.uint8(128),
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes,
        "layer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def _put(folder: Path, name: str, proto: onnx.ModelProto, images: NDArray[np.float32]) -> None:
    (folder / name).write_bytes(serialize(proto))
    np.save(folder / f"{name}.npy", images)


def _samples(split: Split, samples: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    (x,), y = split.fetch(split.indices[:samples])
    assert y is not None
    return x.numpy(), y.numpy()


def _ask(python: list[str], folder: Path, files: list[str]) -> Answers:
    started = time.perf_counter()
    command = [*python, "-c", RUNNER, "answers.npz", *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(python)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    print(f"{shlex.join(python[:3])}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    with np.load(folder / "answers.npz") as answers:
        return {file: answers[file] for file in files}


def _row(
    net: str,
    variant: str,
    processor: str,
    proto: onnx.ModelProto,
    labels: NDArray[np.int64],
    here: NDArray[np.float32],
    there: NDArray[np.float32],
) -> Row:
    exact = exact_on(proto, target(TARGETS[processor])) if processor in TARGETS else None
    decibels = sqnr_db(here, there)
    row = Row(
        net=net,
        variant=variant,
        processor=processor,
        saturating_layers=len(saturating_layers(proto)),
        exact=exact,
        samples=len(labels),
        accuracy=float((there.argmax(1) == labels).mean()),
        accuracy_here=float((here.argmax(1) == labels).mean()),
        same_top1=float((there.argmax(1) == here.argmax(1)).mean()),
        sqnr_db=round(decibels, 1) if np.isfinite(decibels) else None,
    )
    # Float operators round differently on other processors, and a value on the edge may fall to the next integer.
    if exact and row.same_top1 < 1 - 1 / len(labels):
        raise RuntimeError(f"the static check calls it exact, the answers differ: {row}")
    return row


def table(rows: list[Row]) -> str:
    lines = ["| net | file | processor | can saturate | accuracy here | there | same top-1 | SQNR, dB |"]
    lines += ["|---|---|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {r.net} | {r.variant} | {r.processor} | {r.saturating_layers} layers | {r.accuracy_here:.4f} "
        f"| {r.accuracy:.4f} | {r.same_top1:.4f} | {'equal' if r.sqnr_db is None else r.sqnr_db} |"
        for r in rows
    ]
    return "\n".join(lines)


def nets(given: list[str]) -> dict[str, tuple[onnx.ModelProto, Data]]:
    """The saturating net, and NAME=FILE pairs."""
    digits = load_data("digits", DataOptions())
    images, labels = _samples(digits.train, len(digits.train))
    found = {"saturating-digits": (saturating_net(images, labels), digits)}
    for name, _, file in (pair.partition("=") for pair in given):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = (onnx.load(file), MODELS[name](Path(folder), 0).data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NAME=FILE", help="a float ONNX file of a net of benchmarks.train")
    parser.add_argument("--samples", type=int, default=500, help="test images (default 500)")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=COMMAND", help="another Python to ask")
    options = parser.parse_args()
    others = {name: shlex.split(command) for name, _, command in (entry.partition("=") for entry in options.python)}
    checked = check_kernels(EMULATED["avx2"])
    print(f"avx2 saturates as emulated, to the bit: {', '.join(checked)}\n")
    rows: list[Row] = []
    for name, (proto, data) in nets(options.nets).items():
        found = measure(name, proto, data, options.samples, EMULATED | others)
        print(table(found), flush=True)
        rows += found
    facts = {"environment": environment(1), "bit_exact_kernels": checked}
    file = RESULTS / f"other-processors-{'-'.join(EMULATED | others)}-samples{options.samples}-seed0.json"
    write_atomically(file, to_json({**facts, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
