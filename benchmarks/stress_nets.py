"""Networks built so that one known weakness of int8 shows, as float ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

_RIDGE = 1e-3  # of the last layer's least squares, on features of mean square 1


def saturating_net(images: Floats, labels: NDArray[np.int64], units: int = 256, seed: int = 0) -> onnx.ModelProto:
    """A classifier that is right in int8, and wrong where the int8 products saturate at 16 bits.

    Ink on paper: the image is inverted, so that most inputs of the first layer are at the end of their range (255),
    and every weight of that layer is as large as the others (127 or -127 in int8). Half of all neighbouring pairs then
    sum to twice that, and each image loses another amount in each unit. The first layer is random, the last one is
    fitted by least squares.

    Args:
        images: (N, C, H, W) of 0..1, bright on black.
        labels: (N,) of 0..classes - 1.
        units: Of the first layer.
        seed: Of the first layer.

    Returns:
        Input "image" (batch, C, H, W), output "scores" (batch, classes).
    """
    generator = np.random.default_rng(seed)
    size = int(np.prod(images.shape[1:]))
    paper = 1 - images.reshape(len(images), size)
    first = generator.choice([-1.0, 1.0], (units, size)).astype(np.float32) / np.float32(np.sqrt(size))
    middle = -(paper @ first.T).mean(0)
    features = np.maximum(paper @ first.T + middle, 0)
    last, offset = _least_squares(features, np.eye(labels.max() + 1)[labels])
    nodes = [
        helper.make_node("Sub", ["one", "image"], ["inverted"], name="invert"),
        helper.make_node("Flatten", ["inverted"], ["paper"], name="flatten"),
        helper.make_node("Gemm", ["paper", "first.weight", "first.bias"], ["sums"], transB=1, name="first"),
        helper.make_node("Relu", ["sums"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "last.weight", "last.bias"], ["scores"], transB=1, name="last"),
    ]
    constants = {
        "one": np.ones((), np.float32), "first.weight": first, "first.bias": middle.astype(np.float32),
        "last.weight": last, "last.bias": offset,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *images.shape[1:]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(offset)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _least_squares(features: Floats, targets: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Weights (classes, units) and biases (classes,) of ridge regression."""
    centre, mean = features.mean(0, dtype=np.float64), targets.mean(0)
    x = features - centre
    ridge = _RIDGE * len(x) * np.square(x).mean() * np.eye(x.shape[1])
    weight = np.linalg.solve(x.T @ x + ridge, x.T @ (targets - mean)).T
    return weight.astype(np.float32), (mean - weight @ centre).astype(np.float32)
