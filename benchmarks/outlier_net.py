"""A network with outlier channels: what plain int8 loses on it, and what brings it back.

    python -m benchmarks.train cnn
    python -m benchmarks.outlier_net --images 10000

Some output channels of each layer are made 100 times as large, and the weights of the next layer that take them 100
times as small: the float function stays, but one scale for a tensor no longer holds all of its channels. Every way
starts from the same graph, calibration images and ranges. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compress.data import Data, load_data
from compress.data.splits import Split
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.models import load
from compress.models.onnx_file import Array, read, run, serialize
from compress.onnx_export import ExportConfig, export
from compress.quantization.bias_correction import correct_bias
from compress.quantization.equalization import equalize, rescale
from compress.quantization.graph import copy_of, name_nodes, sqnr_db
from compress.quiet import quiet
from compress.values import Context, Model
from compress.workspace import to_json

FACTOR = 100.0
SHARE = 0.25  # of the channels of a layer
CALIBRATION = 256  # images for the ranges, and twice as many for the bias correction, which learns from one half
_BATCH = 64
_OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip"]

Feeds = Sequence[dict[str, Array]]


@dataclass(frozen=True)
class Given:
    """What every way starts from."""

    proto: onnx.ModelProto
    calibration: Feeds


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def with_outliers(
    proto: onnx.ModelProto, factor: float = FACTOR, share: float = SHARE, seed: int = 0
) -> onnx.ModelProto:
    """The same function, with some channels between two layers ``factor`` times as large."""
    generator = np.random.default_rng(seed)
    scales = {}
    for pair in equalize(proto)[1]:
        large = generator.permutation(pair.channels) < max(1, round(share * pair.channels))
        scales[pair.first] = np.where(large, 1 / factor, 1.0)
    return rescale(proto, scales)


def plain(proto: onnx.ModelProto, feeds: Feeds, per_channel: bool = False) -> onnx.ModelProto:
    """onnxruntime's `quantize_static`: uint8 activations by minimum and maximum, int8 weights, QDQ."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        with quiet():
            quantize_static(
                copy_of(proto),
                target,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=_OPERATORS,
                per_channel=per_channel,
                extra_options={"WeightSymmetric": True},
            )
        return onnx.load(str(target))


def _plain(given: Given) -> onnx.ModelProto:
    return plain(given.proto, given.calibration[: CALIBRATION // _BATCH])


def _per_channel(given: Given) -> onnx.ModelProto:
    return plain(given.proto, given.calibration[: CALIBRATION // _BATCH], per_channel=True)


def _corrected(given: Given) -> onnx.ModelProto:
    return correct_bias(given.proto, _plain(given), given.calibration)[0]


def _equalized(given: Given) -> onnx.ModelProto:
    return _plain(Given(equalize(given.proto)[0], given.calibration))


def _equalized_corrected(given: Given) -> onnx.ModelProto:
    return _corrected(Given(equalize(given.proto)[0], given.calibration))


WAYS: Mapping[str, Callable[[Given], onnx.ModelProto]] = {
    "int8 per tensor, plain": _plain,
    "int8 per channel, plain": _per_channel,
    "int8 per tensor, biases corrected": _corrected,
    "int8 per tensor, equalized": _equalized,
    "int8 per tensor, equalized, biases corrected": _equalized_corrected,
}


def measure(
    proto: onnx.ModelProto, name: str, calibration: Feeds, test: Feeds, labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Way -> accuracy (0..1), drop against the float graph, signal to noise of the outputs in dB."""
    given = Given(with_outliers(proto), calibration)
    exact = _outputs(proto, test)
    made: dict[str, Callable[[Given], onnx.ModelProto]] = {"float": lambda given: given.proto, **WAYS}
    found: dict[str, Any] = {}
    for way, build in made.items():
        outputs = _outputs(build(given), test)
        accuracy = float((outputs.argmax(axis=1) == labels).mean())
        drop = float((exact.argmax(axis=1) == labels).mean()) - accuracy
        found[way] = {"accuracy": accuracy, "drop": drop, "sqnr_db": sqnr_db(exact, outputs)}
        print(f"{name}, {way}: accuracy {accuracy:.4f}, drop {drop:+.4f}, {found[way]['sqnr_db']:.1f} dB", flush=True)
    return found


def _outputs(proto: onnx.ModelProto, feeds: Feeds) -> Array:
    return np.concatenate([outputs[0] for outputs in run(serialize(proto), feeds)])


def feeds_of(split: Split, name: str, images: int) -> tuple[Feeds, NDArray[np.int64]]:
    """Batches by input name, and the labels (N,)."""
    batches = list(split.take(images).batches(_BATCH))
    labels = [part.numpy() for _, part in batches if part is not None]
    return [{name: columns[0].numpy()} for columns, _ in batches], np.concatenate(labels)


def _exported(checkpoint: Path, data: Data) -> onnx.ModelProto:
    module = load(checkpoint, factory="compress.models.reference:FineGrainedCNN").module
    assert module is not None
    with tempfile.TemporaryDirectory() as folder:
        model, _ = export(Model(module, data.inputs), ExportConfig(), Context(data, Path(folder)))
        proto = read(model.path)
    name_nodes(proto)
    return proto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--images", type=int, default=10_000, help="of the test split")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    data = load_data("fashion-mnist")
    proto = _exported(options.checkpoints / "cnn" / "model.pt", data)
    calibration, _ = feeds_of(data.calibration, data.inputs[0].name, 2 * CALIBRATION)
    test, labels = feeds_of(data.test, data.inputs[0].name, options.images)
    content = {
        "command": f"python -m benchmarks.outlier_net --images {options.images}",
        "model": "the fine-grained pruning CNN on Fashion-MNIST",
        "images": len(labels),
        "calibration": CALIBRATION,
        "factor": FACTOR,
        "share": SHARE,
        "environment": environment(1),
        "ways": measure(proto, "cnn", calibration, test, labels),
    }
    write_atomically(options.out / f"outlier-net-cnn-images{len(labels)}.json", to_json(content))


if __name__ == "__main__":
    main()
