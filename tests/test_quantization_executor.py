"""compress.quantization.executor: ONNX graphs that run, and learn, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.errors import QuantizationError
from compress.models.onnx_file import graph_inputs, read, run, serialize
from compress.models.reference import FineGrainedCNN, LSTMClassifier
from compress.models.torchvision_compat import ensure_operators
from compress.onnx_export.stage import ExportConfig, export
from compress.quantization.executor import OnnxModule, check, with_weights_of
from compress.values import Context, InputSpec, Model

Feeds = list[dict[str, np.ndarray]]


def _feeds(proto: onnx.ModelProto, tokens: int = 20) -> Feeds:
    random = np.random.default_rng(0)

    def values(spec: InputSpec, batch: int) -> np.ndarray:
        shape = (batch, *spec.shape)
        whole = spec.dtype.startswith("int")
        return random.integers(0, tokens, shape) if whole else random.normal(size=shape).astype(spec.dtype)

    return [{spec.name: values(spec, batch) for spec in graph_inputs(proto)} for batch in (1, 3)]


def _torchvision(name: str, **options: Any) -> nn.Module:
    ensure_operators()
    import torchvision.models

    made: nn.Module = getattr(torchvision.models, name)(num_classes=5, **options)
    return made


def _vision_transformer() -> nn.Module:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return _torchvision("VisionTransformer", image_size=16, patch_size=8, **sizes)


def _shallow_resnet() -> nn.Module:
    ensure_operators()
    from torchvision.models.resnet import BasicBlock, ResNet

    made: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    return made


def _bidirectional_gru() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(6, 5, bidirectional=True, batch_first=True), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.gru(x)[0].mean(1))
            return result

    return Net()


NETS: dict[str, tuple[Callable[[], nn.Module], InputSpec]] = {
    "cnn": (FineGrainedCNN, InputSpec("input", (1, 28, 28))),
    "lstm": (lambda: LSTMClassifier(20, 6, 5), InputSpec("input", (7,), "int64")),
    "gru": (_bidirectional_gru, InputSpec("input", (4, 6))),
    "mobilenet_v3": (lambda: _torchvision("mobilenet_v3_small", width_mult=0.25), InputSpec("input", (3, 32, 32))),
    "resnet": (_shallow_resnet, InputSpec("input", (3, 32, 32))),
    "vit": (_vision_transformer, InputSpec("input", (3, 16, 16))),
}


@pytest.mark.parametrize("name", NETS)
def test_an_exported_network_gives_in_torch_what_it_gives_in_onnxruntime(name: str, tmp_path: Path) -> None:
    make, spec = NETS[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():  # some start at zero, and would hide what is wrong before them
            parameter.add_(0.05 * torch.randn_like(parameter))
    exported, _ = export(Model(module.eval(), (spec,)), ExportConfig(), Context(None, tmp_path))
    proto = read(exported.path)
    learner = OnnxModule(proto)
    assert check(learner, proto, _feeds(proto)) < 1e-5
    learner.from_feeds(_feeds(proto)[1])[0].square().sum().backward()
    gradients = {weight: p.grad for weight, p in learner.weights().items()}
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


def _graph(
    nodes: Sequence[onnx.NodeProto],
    shape: tuple[int, ...],
    constants: dict[str, Any] | None = None,
    opset: int = 18,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A graph with a float input "x" (batch, *shape)."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


node = helper.make_node

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

# name -> nodes from x to y, x's shape without the batch, constants
FORMS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Any]]] = {
    "same_upper": (
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        (3, 8, 7),
        {"w": _weights(4, 3, 3, 4)},
    ),
    "same_lower": ([node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER")], (3, 7, 7), {"w": _weights(4, 3, 2, 4)}),
    "uneven_pads": ([node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 0])], (3, 7, 7), {"w": _weights(4, 3, 3, 3)}),
    "grouped_transpose": (
        [node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        (4, 5, 5),
        {"w": _weights(4, 3, 3, 3)},
    ),
    "gemm": (
        [node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        (6,),
        {"w": _weights(6, 3), "b": _weights(3)},
    ),
    "max_pool": ([node("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], pads=[1, 0, 1, 1])], (2, 7, 7), {}),
    "average_pool": ([node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 0, 0])], (2, 6, 6), {}),
    "average_pool_with_pads": (
        [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)],
        (2, 6, 6),
        {},
    ),
    "batch_norm": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.01)],
        (3, 4, 4),
        {"s": _weights(3), "b": _weights(3), "m": _weights(3), "v": np.abs(_weights(3))},
    ),
    "slice_backwards": (
        [node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])],
        (7, 5),
        {"starts": _ints(-1, 0), "ends": _ints(-100, 2**62), "axes": _ints(1, 2), "steps": _ints(-2, 2)},
    ),
    "split": (
        [node("Split", ["x", "sizes"], ["a", "b"], axis=1), node("Concat", ["b", "a"], ["y"], axis=1)],
        (5,),
        {"sizes": _ints(2, 3)},
    ),
    "uneven_split": (
        [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Concat", ["b", "a"], ["y"], axis=1)],
        (5,),
        {},
    ),
    "gather": ([node("Gather", ["x", "i"], ["y"], axis=-1)], (3, 5), {"i": np.array([[0, -1], [2, 2]], np.int64)}),
    "pad": (
        [node("Pad", ["x", "pads", "value"], ["y"])],
        (2, 3, 3),
        {"pads": _ints(0, 1, 0, 2, 0, 0, 1, 1), "value": np.float32(0.5)},
    ),
    "pad_reflect": (
        [node("Pad", ["x", "pads"], ["y"], mode="reflect")],
        (2, 4, 4),
        {"pads": _ints(0, 0, 1, 2, 0, 0, 1, 0)},
    ),
    "whole_division": (
        [
            node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            node("Div", ["i", "three"], ["d"]),
            node("Mod", ["i", "three"], ["m"]),
            node("Add", ["d", "m"], ["s"]),
            node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        ],
        (5,),
        {"three": _ints(3)},
    ),
    "squeeze_excite": (
        [
            node("GlobalAveragePool", ["x"], ["g"]),
            node("HardSigmoid", ["g"], ["h"], alpha=1 / 6),
            node("PRelu", ["x", "slope"], ["p"]),
            node("Mul", ["p", "h"], ["y"]),
        ],
        (3, 4, 4),
        {"slope": _weights(3, 1, 1)},
    ),
    "reduce_all": ([node("ReduceSum", ["x"], ["s"]), node("Div", ["x", "s"], ["y"])], (3,), {}),
    "flatten": (
        [node("Flatten", ["x"], ["f"], axis=2), node("Relu", ["f"], ["y"])],
        (2, 3),
        {},
    ),
    "nearest": ([node("Resize", ["x", "", "s"], ["y"], **NEAREST)], (2, 3, 3), {"s": np.float32([1, 1, 2, 2])}),
    "bilinear": ([node("Resize", ["x", "", "s"], ["y"], mode="linear")], (2, 3, 4), {"s": np.float32([1, 1, 2, 2])}),
    "reverse_lstm": (
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("LSTM", ["t", "w", "r", "b"], ["y", "h", "c"], hidden_size=4, direction="reverse"),
        ],
        (5, 3),
        {"w": _weights(1, 16, 3), "r": _weights(1, 16, 4), "b": _weights(1, 32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_an_operator_is_onnxruntimes(name: str) -> None:
    nodes, shape, constants = FORMS[name]
    proto = _graph(nodes, shape, constants)
    assert check(OnnxModule(proto), proto, _feeds(proto)) < 1e-5


def test_older_opsets_have_their_axes_as_attributes() -> None:
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0), node("Relu", ["m"], ["y"])]
    proto = _graph(nodes, (3, 4), opset=13)
    assert check(OnnxModule(proto), proto, _feeds(proto)) < 1e-6


def test_every_output_is_compared() -> None:
    proto = _graph([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["z"])], (4,), outputs=("y", "z"))
    module = OnnxModule(proto)
    assert check(module, proto, _feeds(proto)) == 0
    wrong = _graph([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["z"])], (4,), outputs=("y", "z"))
    with pytest.raises(QuantizationError, match="other results in torch than in onnxruntime"):
        check(module, wrong, _feeds(proto))


def test_an_operator_that_torch_has_no_equal_of_is_named_before_anything_runs() -> None:
    nodes = [node("Det", ["x"], ["d"]), node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")]
    with pytest.raises(QuantizationError, match=r"Det, com\.microsoft\.FusedMatMul"):
        OnnxModule(_graph(nodes, (3, 3)))


def test_an_opset_with_other_meanings_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"its opset is 11, allowed are 13"):
        OnnxModule(_graph([node("Softmax", ["x"], ["y"])], (3, 3), opset=11))


def test_a_form_that_torch_has_no_equal_of_is_refused_by_name() -> None:
    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], ceil_mode=1)
    proto = _graph([pool], (2, 5, 5))
    with pytest.raises(QuantizationError, match="MaxPool with ceil_mode"):
        check(OnnxModule(proto), proto, _feeds(proto))


def test_what_is_measured_or_counts_elements_is_not_learned() -> None:
    nodes, shape, constants = FORMS["batch_norm"]
    nodes = [*nodes[:-1], node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"]), node("Mul", ["n", "k"], ["y"])]
    module = OnnxModule(_graph(nodes, shape, constants | {"k": np.float32(0.5)}))
    assert module.weights().keys() == {"s", "b"}
    assert len(list(module.buffers())) == 3


def test_learned_weights_go_back_into_the_graph() -> None:
    constants = {"fc.weight": _weights(3, 2), "fc.bias": _weights(2)}
    proto = _graph([node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"])], (3,), constants)
    before = serialize(proto)
    module = OnnxModule(proto)
    with torch.no_grad():
        module.weights()["fc.weight"].mul_(2)
    learned = with_weights_of(proto, module)
    assert serialize(proto) == before
    feeds = _feeds(proto)
    assert check(module, learned, feeds) < 1e-6
    assert not np.allclose(next(run(serialize(learned), feeds))[0], next(run(before, feeds))[0])
