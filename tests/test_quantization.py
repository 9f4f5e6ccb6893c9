"""compress.quantization: int8 files that run, keep their zeros, and are small."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import from_numpy

from compress.data.splits import Batch, Data, Split
from compress.errors import QuantizationError, RecipeError
from compress.models.counts import count, stored_weights
from compress.models.onnx_file import read
from compress.quantization import QuantizeConfig, quantize
from compress.quantization import integer as integer_module
from compress.quantization.candidates import candidates, forms
from compress.quantization.check import check_zeros
from compress.quantization.isa import TARGETS, target
from compress.values import Context, InputSpec, OnnxModel, StageRecord, Variant

FLOAT = TensorProto.FLOAT


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...], element: int = FLOAT):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    inputs = [helper.make_tensor_value_info("input", element, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("output", FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _normal(seed: int, *shape: int, zeros: float = 0.0) -> np.ndarray:
    """Normal weights; the smallest ``zeros`` of them are 0."""
    array = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    array[np.abs(array) < np.quantile(np.abs(array), zeros)] = 0
    return array.astype(np.float32)


def _cnn(zeros: float = 0.0) -> onnx.ModelProto:
    """Conv, pool, Relu, depthwise Conv, Relu, Gemm: input (1, 8, 8), 3 outputs."""
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.bias"], ["c1"], name="conv"),
        helper.make_node("MaxPool", ["c1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["p1"], ["r1"]),
        helper.make_node("Conv", ["r1", "depthwise.weight"], ["c2"], group=16, name="depthwise"),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["output"], transB=1, name="fc"),
    ]
    constants = {
        "conv.weight": _normal(1, 16, 1, 3, 3, zeros=zeros), "conv.bias": _normal(2, 16),
        "depthwise.weight": _normal(3, 16, 1, 2, 2, zeros=zeros),
        "fc.weight": _normal(4, 3, 64, zeros=zeros), "fc.bias": _normal(5, 3),
    }  # fmt: skip
    return _graph(nodes, constants, (1, 8, 8))


def _mlp(zeros: float = 0.0) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["input", "0.weight", "0.bias"], ["h"], transB=1, name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "2.weight"], ["output"], name="second"),
    ]
    constants = {
        "0.weight": _normal(1, 32, 20, zeros=zeros), "0.bias": _normal(2, 32),
        "2.weight": _normal(3, 32, 3, zeros=zeros),
    }  # fmt: skip
    return _graph(nodes, constants, (20,))


def _lstm(zeros: float = 0.0) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["embedding", "input"], ["e"]),
        helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["", "h"], hidden_size=8),
        helper.make_node("Squeeze", ["h", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "fc"], ["output"]),
    ]
    constants = {
        "embedding": _normal(1, 50, 6, zeros=zeros), "w": _normal(2, 1, 32, 6, zeros=zeros),
        "r": _normal(3, 1, 32, 8, zeros=zeros), "b": _normal(4, 1, 64), "axis": np.int64([0]),
        "fc": _normal(5, 8, 3, zeros=zeros),
    }  # fmt: skip
    return _graph(nodes, constants, (5,), TensorProto.INT64)


GRAPHS = {"cnn": _cnn, "mlp": _mlp, "lstm": _lstm}
INPUTS = {
    "cnn": (InputSpec("input", (1, 8, 8)),),
    "mlp": (InputSpec("input", (20,)),),
    "lstm": (InputSpec("input", (5,), "int64"),),
}


def _samples(kind: str, count_: int = 48) -> np.ndarray:
    generator = np.random.default_rng(7)
    if kind == "lstm":
        return generator.integers(0, 50, (count_, 5))
    return generator.standard_normal((count_, *INPUTS[kind][0].shape)).astype(np.float32)


def _data(kind: str, samples: np.ndarray | None = None) -> Data:
    values = _samples(kind) if samples is None else samples

    def fetch(indices: np.ndarray) -> Batch:
        return (from_numpy(values[indices]),), None

    parts = [Split(name, fetch, np.arange(len(values)), False) for name in ("train", "calibration", "v", "t")]
    return Data("made", *parts, inputs=INPUTS[kind], sha256="")


def _saved(kind: str, folder: Path, zeros: float = 0.0) -> OnnxModel:
    path = folder / "model.onnx"
    path.write_bytes(GRAPHS[kind](zeros).SerializeToString())
    return OnnxModel(path, INPUTS[kind], 18)


def _quantize(
    kind: str,
    folder: Path,
    config: QuantizeConfig | None = None,
    zeros: float = 0.0,
    data: Data | None = None,
    max_drop: float = 0.05,
) -> tuple[dict[str, Variant], StageRecord]:
    context = Context(data=data or _data(kind), directory=folder / "quantize", max_drop=max_drop)
    variants, record = quantize(_saved(kind, folder, zeros), config or TIMELESS, context)
    return {variant.name: variant for variant in variants}, record


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def _signal_to_noise_db(kind: str, path: Path, folder: Path) -> float:
    x = _samples(kind)
    wanted, got = _run(folder / "model.onnx", x), _run(path, x)
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def _zip_bytes(path: Path) -> int:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(path, "model.onnx")
    return len(buffer.getvalue())


def _pretend(monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    """Let this machine be another processor."""
    monkeypatch.setattr("compress.quantization.stage.target", lambda name="host": TARGETS[name] or TARGETS[here])


@pytest.fixture
def exact_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "avx512-vnni")


CANDIDATES = {
    "cnn": {"int8", "int8-reduced", "int8-per-channel", "int8-s8s8", "int8-u8u8", "int8-weights"},
    "mlp": {"int8-dynamic", "int8-dynamic-reduced", "int8-dynamic-per-channel",
            "int8", "int8-reduced", "int8-per-channel", "int8-s8s8", "int8-u8u8", "int8-weights"},
    "lstm": {"int8-dynamic", "int8-dynamic-reduced", "int8-dynamic-per-channel", "int8-weights"},
}  # fmt: skip
TIMELESS = QuantizeConfig(fast="no")  # int8-fast goes by timings: no two runs have to agree about it
GENEROUS = {"max_drop": 1.0}  # no candidate needs recovery


@pytest.mark.usefixtures("exact_cpu")
@pytest.mark.parametrize("kind", GRAPHS)
def test_auto_makes_the_candidates_of_the_kind_of_net(tmp_path: Path, kind: str) -> None:
    variants, record = _quantize(kind, tmp_path, **GENEROUS)
    assert set(variants) == CANDIDATES[kind]
    files = {path.name for path in (tmp_path / "quantize").iterdir()}
    assert files == {f"{name}.onnx" for name in variants}
    assert {name: figures["bytes"] for name, figures in record.figures["files"].items()} == {
        name: variant.onnx.path.stat().st_size for name, variant in variants.items()
    }


def test_a_processor_that_saturates_gets_repaired_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "avx2")
    config = QuantizeConfig(method="static", types="u8s8")
    variants, record = _quantize("cnn", tmp_path, config, **GENEROUS)
    assert set(variants) == {
        "int8", "int8-repaired", "int8-reduced", "int8-per-channel-repaired", "int8-per-channel-reduced",
    }  # fmt: skip
    saturating = {name: figures["saturating_layers"] for name, figures in record.figures["files"].items()}
    assert saturating.pop("int8") > 0
    assert not any(saturating.values())


@pytest.mark.usefixtures("exact_cpu")
def test_a_file_for_another_processor_is_exact_there(tmp_path: Path) -> None:
    variants, record = _quantize("cnn", tmp_path, QuantizeConfig(target_isa="avx2"), **GENEROUS)
    assert "int8" not in variants
    assert "int8-repaired" in variants
    assert not any(figures["saturating_layers"] for figures in record.figures["files"].values())


@pytest.mark.usefixtures("exact_cpu")
def test_an_arm_target_gets_int8_activations(tmp_path: Path) -> None:
    variants, _ = _quantize("cnn", tmp_path, QuantizeConfig(target_isa="arm-dotprod", method="static"), **GENEROUS)
    assert list(variants) == ["int8-s8s8", "int8-s8s8-reduced", "int8-s8s8-per-channel"]


@pytest.mark.parametrize("kind", GRAPHS)
def test_every_candidate_is_close_to_the_float_file(tmp_path: Path, kind: str) -> None:
    variants, record = _quantize(kind, tmp_path)
    for name, variant in variants.items():  # 7 bits of normal weights reach 35 dB; the layers add up
        if target().saturates and record.figures["files"][name]["saturating_layers"]:
            continue  # this CPU may compute it wrongly, which is what the note of the record says
        assert _signal_to_noise_db(kind, variant.onnx.path, tmp_path) > 25, name


@pytest.mark.parametrize("kind", GRAPHS)
def test_zero_weights_stay_zero_and_the_counts_are_those_of_the_float_file(tmp_path: Path, kind: str) -> None:
    variants, _ = _quantize(kind, tmp_path, zeros=0.8)
    wanted = count(tmp_path / "model.onnx")
    for name, variant in variants.items():
        counts = count(variant.onnx.path)
        assert (counts.parameters, counts.macs) == (wanted.parameters, wanted.macs), name
        assert counts.nonzero <= wanted.nonzero, name
        assert counts.nonzero > 0.9 * wanted.nonzero, name


@pytest.mark.parametrize("kind", GRAPHS)
def test_files_are_equal_byte_by_byte_and_free_of_metadata(tmp_path: Path, kind: str) -> None:
    (tmp_path / "again").mkdir()
    first, second = _quantize(kind, tmp_path)[0], _quantize(kind, tmp_path / "again")[0]
    for name, variant in first.items():
        content = variant.onnx.path.read_bytes()
        assert content == second[name].onnx.path.read_bytes(), name
        proto = onnx.load_model_from_string(content)
        assert (proto.ir_version, proto.opset_import[0].version) == (10, 18)
        assert not proto.metadata_props
        assert not proto.graph.value_info
        assert b"onnx.infer" not in content


def test_short_names_shrink_the_zip_and_keep_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    short = _quantize("cnn", tmp_path)[0]
    long = _quantize("cnn", tmp_path / "long", dataclasses.replace(TIMELESS, short_names=False))[0]
    x = _samples("cnn")
    for name, variant in short.items():
        assert _zip_bytes(variant.onnx.path) < _zip_bytes(long[name].onnx.path), name
        np.testing.assert_array_equal(_run(variant.onnx.path, x), _run(long[name].onnx.path, x))


def test_equal_zero_points_are_stored_once_and_equal_weights_are_all_kept(tmp_path: Path) -> None:
    proto = _mlp()
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors["0.weight"].CopyFrom(numpy_helper.from_array(_normal(1, 20, 20), "0.weight"))
    tensors["0.bias"].CopyFrom(numpy_helper.from_array(_normal(2, 20), "0.bias"))
    tensors["2.weight"].CopyFrom(numpy_helper.from_array(_normal(1, 20, 20).T.copy(), "2.weight"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 20
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    config = QuantizeConfig(method="dynamic", per_channel="no", reduce_range="no")
    (variant,), _ = quantize(OnnxModel(path, INPUTS["mlp"], 18), config, Context(None, tmp_path))
    made = read(variant.onnx.path)
    assert count(variant.onnx.path).parameters == count(path).parameters == 20 * 20 * 2 + 20
    constants = [tensor for tensor in made.graph.initializer if tensor.name not in stored_weights(made)]
    assert sorted(tensor.data_type for tensor in constants) == [FLOAT, TensorProto.INT8]  # one scale, one zero point


def test_what_dynamic_quantization_leaves_float_is_stored_as_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["input"], ["t"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r"], ["", "h"], hidden_size=8),
        helper.make_node("Squeeze", ["h", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "fc"], ["output"]),
    ]
    constants = {"w": _normal(1, 1, 24, 6), "r": _normal(2, 1, 24, 8), "axis": np.int64([0]), "fc": _normal(3, 8, 3)}
    path = tmp_path / "model.onnx"
    path.write_bytes(_graph(nodes, constants, (5, 6)).SerializeToString())
    model = OnnxModel(path, (InputSpec("input", (5, 6)),), 18)
    variants, _ = quantize(model, QuantizeConfig(method="dynamic", short_names=False), Context(None, tmp_path))
    for variant in variants:
        tensors = {tensor.name: tensor.data_type for tensor in read(variant.onnx.path).graph.initializer}
        assert tensors["w_quantized"] == tensors["r_quantized"] == tensors["fc_quantized"] == TensorProto.INT8


def test_static_quantization_leaves_no_conversion_between_two_convolutions(tmp_path: Path) -> None:
    variants, _ = _quantize("cnn", tmp_path, QuantizeConfig(method="static", per_channel="no", reduce_range="no"))
    assert list(variants) == ["int8"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(variants["int8"].onnx.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("Relu") == 0
    assert kinds.count("QuantizeLinear") == 1


def test_weight_only_files_run_as_the_float_file_does(tmp_path: Path) -> None:
    variants, _ = _quantize("cnn", tmp_path, QuantizeConfig(method="weights"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(variants["int8-weights"].onnx.path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node}
    assert kinds.isdisjoint({"Cast", "Mul", "DequantizeLinear"})


def test_a_weight_with_one_large_channel_gets_a_scale_for_each(tmp_path: Path) -> None:
    proto = _mlp()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "0.weight")
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 300
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    config = QuantizeConfig(method="weights", short_names=False)
    (variant,), _ = quantize(OnnxModel(path, INPUTS["mlp"], 18), config, Context(None, tmp_path))
    scales = {tensor.name: list(tensor.dims) for tensor in read(variant.onnx.path).graph.initializer}
    assert scales["0.weight_scale"] == [32, 1]


def test_without_data_static_is_skipped_with_its_reason(tmp_path: Path) -> None:
    context = Context(data=None, directory=tmp_path)
    variants, record = quantize(_saved("cnn", tmp_path), QuantizeConfig(), context)
    assert [variant.name for variant in variants] == ["int8-weights"]
    assert "need calibration data" in record.notes[0]
    variants, record = quantize(_saved("cnn", tmp_path), QuantizeConfig(method="static"), context)
    assert not variants
    assert record.skipped is not None
    assert "need calibration data" in record.skipped


def test_nan_in_the_calibration_data_is_refused_with_its_sample(tmp_path: Path) -> None:
    samples = _samples("cnn")
    samples[37, 0, 3, 3] = np.nan
    with pytest.raises(QuantizationError, match=r"input 'input' of sample 37 .*calibration"):
        _quantize("cnn", tmp_path, QuantizeConfig(method="static", batch_size=16), data=_data("cnn", samples))
    assert not list((tmp_path / "quantize").glob("*"))


def test_ranges_do_not_depend_on_the_calibration_batch(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    one = _quantize("cnn", tmp_path, QuantizeConfig(method="static", batch_size=7))[0]
    all_ = _quantize("cnn", tmp_path / "b", QuantizeConfig(method="static", batch_size=48))[0]
    for name in one:
        assert one[name].onnx.path.read_bytes() == all_[name].onnx.path.read_bytes(), name


def test_an_excluded_node_stays_float(tmp_path: Path) -> None:
    variants, _ = _quantize("cnn", tmp_path, QuantizeConfig(exclude=("fc",), short_names=False, fast="no"))
    for name, variant in variants.items():
        tensors = {tensor.name: tensor.data_type for tensor in read(variant.onnx.path).graph.initializer}
        assert tensors["fc.weight"] == FLOAT, name
        assert "conv.weight" not in tensors, name


def test_an_unknown_node_to_exclude_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"names head.*It has .*conv"):
        _quantize("cnn", tmp_path, QuantizeConfig(exclude=("head",)))


def test_a_method_that_does_not_suit_the_graph_is_refused(tmp_path: Path) -> None:
    proto = _graph([helper.make_node("ReduceMean", ["input", "axes"], ["output"], keepdims=0)],
                   {"axes": np.int64([2])}, (3, 4))  # fmt: skip
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = OnnxModel(path, (InputSpec("input", (3, 4)),), 18)
    for method in ("dynamic", "weights"):
        with pytest.raises(QuantizationError, match=f"int8-{method}: "):
            quantize(model, QuantizeConfig(method=method), Context(None, tmp_path))  # type: ignore[arg-type]


def test_a_float_file_that_cannot_run_is_refused_with_its_name(tmp_path: Path) -> None:
    model = _saved("cnn", tmp_path)
    other = OnnxModel(model.path, (InputSpec("input", (1, 9, 9)),), 18)
    with pytest.raises(QuantizationError, match=r"model\.onnx"):
        quantize(other, QuantizeConfig(), Context(None, tmp_path))


def test_a_quantized_file_is_skipped(tmp_path: Path) -> None:
    variants, _ = _quantize("cnn", tmp_path)
    again, record = quantize(variants["int8"].onnx, QuantizeConfig(), Context(None, tmp_path))
    assert not again
    assert record.skipped == "the model is quantized already"


def test_a_quantizer_that_fails_in_auto_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("scale issue")

    monkeypatch.setattr(integer_module, "QDQQuantizer", broken)
    variants, record = _quantize("cnn", tmp_path)
    assert list(variants) == ["int8-weights"]
    assert "scale issue" in record.notes[0]
    with pytest.raises(QuantizationError, match="scale issue"):
        _quantize("cnn", tmp_path, QuantizeConfig(method="static"))


def test_a_quantizer_that_loses_zeros_is_refused_with_the_tensor() -> None:
    before, after = _mlp(zeros=0.5), _mlp(zeros=0.5)
    lost = next(tensor for tensor in after.graph.initializer if tensor.name == "0.weight")
    lost.CopyFrom(numpy_helper.from_array(np.ones((32, 20), np.float32), "0.weight_quantized"))
    after.graph.node[0].input[1] = "0.weight_quantized"
    check_zeros(before, before, "int8")
    with pytest.raises(QuantizationError, match=r"int8: 0\.weight has 640 nonzero weights of 640"):
        check_zeros(before, after, "int8")


def test_the_source_file_is_left_as_it_was(tmp_path: Path) -> None:
    model = _saved("cnn", tmp_path)
    before = model.path.read_bytes()
    quantize(model, QuantizeConfig(), Context(_data("cnn"), tmp_path / "out"))
    assert model.path.read_bytes() == before


def test_convolutional_nets_are_static_recurrent_ones_dynamic_and_others_both() -> None:
    assert forms(_cnn()) == ("static", "weights")
    assert forms(_mlp()) == ("dynamic", "static", "weights")
    assert forms(_lstm()) == ("dynamic", "weights")


def test_explicit_choices_leave_one_candidate() -> None:
    made = candidates("static", "yes", "yes", saturates=False)
    assert [candidate.name for candidate in made] == ["int8-per-channel-reduced"]


def test_the_reduced_range_cannot_saturate(tmp_path: Path) -> None:
    variants, record = _quantize("cnn", tmp_path)
    assert record.figures["files"]["int8-reduced"]["saturating_layers"] == 0
    largest = max(
        int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        for tensor in read(variants["int8-reduced"].onnx.path).graph.initializer
        if tensor.name in stored_weights(read(variants["int8-reduced"].onnx.path))
        and tensor.data_type == TensorProto.INT8
    )
    assert largest <= 64


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch_size=0"):
        QuantizeConfig(batch_size=0)
