"""compress.quantization.options: every field has its effect, and what cannot be made is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compress.errors import RecipeError
from compress.models.onnx_file import read
from compress.quantization import QuantizeConfig, quantize
from compress.quantization import integer as integer_module
from compress.quantization import recovery as recovery_module
from compress.quantization import small as small_module
from compress.quantization import static as static_module
from compress.quantization.candidates import Candidate
from compress.quantization.graph import array, constants, name_nodes
from compress.quantization.integer import gemms_as_products, quantize_dynamic_range
from compress.shipping import write_shipped
from compress.values import Context, StageRecord, Variant
from tests.conftest import Call
from tests.test_quantization import GRAPHS, _data, _graph, _mlp, _normal, _quantize, _run, _samples, _saved

GENEROUS = {"max_drop": 1.0}  # no candidate needs recovery
STATIC = QuantizeConfig(method="static", types="u8s8", per_channel="no", reduce_range="no", short_names=False)
DYNAMIC = replace(STATIC, method="dynamic")
WEIGHTS = replace(STATIC, method="weights")


def _tensors(variant: Variant) -> dict[str, onnx.TensorProto]:
    return constants(read(variant.onnx.path))


def _sized(kind: str, folder: Path, config: QuantizeConfig, **options: Any) -> tuple[dict[str, Variant], StageRecord]:
    """As with --objective size."""
    context = Context(_data(kind), folder / "quantize", objective="size", **GENEROUS, **options)
    variants, record = quantize(_saved(kind, folder), config, context)
    return {variant.name: variant for variant in variants}, record


def _spied(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of a function, which still does its work."""
    calls, real = [], getattr(module, name)

    def spy(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return real(*args, **options)

    monkeypatch.setattr(module, name, spy)
    return calls


# What is made


@pytest.mark.parametrize(("types", "activation"), [("s8s8", TensorProto.INT8), ("u8u8", TensorProto.UINT8)])
def test_types_are_those_of_the_static_file(tmp_path: Path, types: Any, activation: int) -> None:
    variants, _ = _quantize("cnn", tmp_path, replace(STATIC, types=types), **GENEROUS)
    assert list(variants) == [f"int8-{types}"]
    tensors = _tensors(variants[f"int8-{types}"])
    assert tensors["input_zero_point"].data_type == activation
    assert tensors["conv.weight_quantized"].data_type == (TensorProto.UINT8 if types == "u8u8" else TensorProto.INT8)


@pytest.mark.parametrize("config", [STATIC, DYNAMIC])
def test_an_excluded_product_stays_float(tmp_path: Path, config: QuantizeConfig) -> None:
    variants, _ = _quantize("mlp", tmp_path, replace(config, exclude=("first",)), **GENEROUS)
    (variant,) = variants.values()
    tensors = _tensors(variant)
    assert tensors["0.weight"].data_type == TensorProto.FLOAT
    assert "0.weight_quantized" not in tensors
    assert "2.weight_quantized" in tensors


@pytest.mark.parametrize("node", ["Gather_0", "LSTM_2"])
def test_an_excluded_embedding_or_recurrent_layer_stays_float(tmp_path: Path, node: str) -> None:
    variants, _ = _quantize("lstm", tmp_path, replace(DYNAMIC, exclude=(node,)), **GENEROUS)
    tensors = _tensors(variants["int8-dynamic"])
    kept, stored = (("embedding",), ("w", "r")) if node == "Gather_0" else (("w", "r"), ("embedding",))
    assert all(tensors[name].data_type == TensorProto.FLOAT for name in kept)
    assert all(f"{name}_quantized" in tensors for name in stored)


def test_float16_leaves_excluded_nodes_in_float32(tmp_path: Path) -> None:
    config = replace(WEIGHTS, float16="yes", exclude=("fc",))
    variants, _ = _quantize("cnn", tmp_path, config, **GENEROUS)
    assert "float16" not in _quantize("cnn", tmp_path, replace(config, float16="no"), **GENEROUS)[0]
    tensors = _tensors(variants["float16"])
    assert tensors["conv.weight"].data_type == TensorProto.FLOAT16
    assert tensors["fc.weight"].data_type == TensorProto.FLOAT
    np.testing.assert_allclose(
        _run(variants["float16"].onnx.path, _samples("cnn")), _run(tmp_path / "model.onnx", _samples("cnn")), atol=0.02
    )


# Calibration


def test_calibration_takes_the_samples_and_the_method_that_are_asked_for(tmp_path: Path) -> None:
    config = replace(STATIC, calibration="percentile", calibration_samples=17)
    figures = _quantize("cnn", tmp_path, config, **GENEROUS)[1].figures["calibration"]
    assert (figures["samples"], figures["method"], list(figures["sqnr_db"])) == (17, "percentile", ["percentile"])
    figures = _quantize("cnn", tmp_path, STATIC, **GENEROUS)[1].figures["calibration"]
    assert figures["samples"] == 48
    assert figures["method"] == max(figures["sqnr_db"], key=figures["sqnr_db"].get)
    assert len(figures["sqnr_db"]) == 5


def test_calibration_goes_in_the_batches_and_the_passes_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _spied(monkeypatch, static_module, "calibrate")
    _quantize("cnn", tmp_path, replace(STATIC, passes=2, batch_size=5, equalize="no"), **GENEROUS)
    assert [(options["passes"], options["batch_size"]) for _, options in calls] == [(2, 5)]


def test_the_size_of_a_batch_decides_moving_averages(tmp_path: Path) -> None:
    config = replace(STATIC, calibration="moving-average", equalize="no", bias_correction="no")
    scales = [
        float(array(_tensors(_quantize("cnn", tmp_path, replace(config, batch_size=size), **GENEROUS)[0]["int8"])[
            "input_scale"])) for size in (4, 48)
    ]  # fmt: skip
    assert scales[0] < scales[1]  # the extremes of few samples are smaller than those of all


# Accuracy


def test_equalization_can_be_forced_and_forbidden(tmp_path: Path) -> None:
    pairs = {
        choice: _quantize("cnn", tmp_path, replace(STATIC, equalize=choice), **GENEROUS)[1]  # type: ignore[arg-type]
        .figures["calibration"]["equalized_pairs"]
        for choice in ("yes", "no")
    }  # fmt: skip
    assert pairs["no"] == 0
    assert pairs["yes"] > 0


def test_biases_are_corrected_unless_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _spied(monkeypatch, static_module, "correct_bias")
    _quantize("cnn", tmp_path, replace(STATIC, bias_correction="no"), **GENEROUS)
    assert not calls
    _quantize("cnn", tmp_path, STATIC, **GENEROUS)
    assert calls


@pytest.mark.parametrize("config", [STATIC, DYNAMIC])
def test_rounding_is_learned_where_it_is_asked_for_with_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizeConfig
) -> None:
    calls = _spied(monkeypatch, recovery_module, "learn_rounding")
    variants, record = _quantize("mlp", tmp_path, replace(config, rounding="learned", rounding_steps=60), **GENEROUS)
    assert [args[3].steps for args, _ in calls] == [60]
    plain, learned = list(variants)
    assert learned == f"{plain}-learned"
    assert set(record.figures["rounding"][plain]) == {"first", "second"}
    assert variants[plain].onnx.path.read_bytes() != variants[learned].onnx.path.read_bytes()


def test_rounding_that_changes_nothing_makes_no_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "learn_rounding", lambda _, quantized, *__, **___: (quantized, {}))
    variants, record = _quantize("mlp", tmp_path, replace(DYNAMIC, rounding="learned"), **GENEROUS)
    assert list(variants) == ["int8-dynamic"]
    assert record.figures["rounding"] == {"int8-dynamic": {}}


def test_too_few_samples_to_learn_from_leave_the_rest_of_recovery(tmp_path: Path) -> None:
    data = replace(_data("mlp"), calibration=_data("mlp").calibration.take(3))
    variants, record = _quantize("mlp", tmp_path, DYNAMIC, data=data, max_drop=-0.001)
    assert list(variants) == ["int8-dynamic"]
    assert record.notes[0].startswith("int8-dynamic: learned rounding was given 3 calibration samples")
    assert [step["layers_in_float"] for step in record.figures["fallback"]["int8-dynamic"]["steps"]] == [0, 1]


def test_a_dynamic_file_over_the_budget_gets_its_layers_back_in_float(tmp_path: Path) -> None:
    config = replace(DYNAMIC, rounding="nearest")
    fallback = _quantize("lstm", tmp_path, config, max_drop=-0.001)[1].figures["fallback"]["int8-dynamic"]
    assert {each["layer"] for each in fallback["sensitivity"]} == {"Gather_0", "LSTM_2", "MatMul_4"}
    assert all(np.isfinite(each["sqnr_db"]) for each in fallback["sensitivity"])
    macs = {each["operator"]: each["macs"] for each in fallback["sensitivity"]}
    assert macs == {"Gather": 0, "LSTM": 5 * (32 * 6 + 32 * 8), "MatMul": 8 * 3}
    steps = fallback["steps"]
    assert [step["layers_in_float"] for step in steps] == [0, 1, 2]
    assert steps[-1]["bytes"] > steps[0]["bytes"]


def test_both_forms_of_one_net_keep_their_trade_off(tmp_path: Path) -> None:
    config = replace(STATIC, method="auto", rounding="nearest")
    figures = _quantize("mlp", tmp_path, config, max_drop=-0.001)[1].figures
    assert set(figures["fallback"]) == {"int8", "int8-dynamic"}
    for each in figures["fallback"].values():
        drops = [(step["layers_in_float"], step["bytes"]) for step in each["steps"]]
        assert [count for count, _ in drops] == [0, 1]
        assert drops[0][1] != drops[1][1]  # a layer really went back


# Size


def test_small_files_come_with_the_objective_and_can_be_forced_and_forbidden(tmp_path: Path) -> None:
    config = replace(WEIGHTS, shared_steps=0)
    assert {"int4-weights", "shared-16", "int8-weights-rounded"} <= set(_sized("mlp", tmp_path, config)[0])
    assert list(_sized("mlp", tmp_path, replace(config, compact="no"))[0]) == ["int8-weights"]
    forced = _quantize("mlp", tmp_path, replace(config, compact="yes"), **GENEROUS)[0]
    assert {"int4-weights", "shared-16", "int8-weights-rounded"} <= set(forced)


def test_shared_values_and_their_steps_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _spied(monkeypatch, small_module, "share_weights")
    variants, _ = _sized("mlp", tmp_path, replace(WEIGHTS, shared_values=(5,), shared_steps=2))
    assert [(args[1].values, args[1].steps) for args, _ in calls] == [(5, 2)]
    assert len(array(_tensors(variants["shared-5"])["0.weight_codebook"])) == 5


@pytest.mark.parametrize(("rounding", "learned"), [("nearest", []), ("auto", [30])])
def test_four_bits_are_rounded_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: Any, learned: list[int]
) -> None:
    calls = _spied(monkeypatch, recovery_module, "learn_rounding")
    _sized("mlp", tmp_path, replace(WEIGHTS, rounding=rounding, rounding_steps=30, shared_steps=0))
    assert [args[3].steps for args, _ in calls] == learned


@pytest.mark.parametrize("version", [8, 9])
def test_no_4_bit_file_is_made_of_one_that_older_runtimes_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    def old(zeros: float = 0.0) -> onnx.ModelProto:
        proto = _mlp(zeros)
        proto.ir_version, proto.opset_import[0].version = version, 17
        return proto

    monkeypatch.setitem(GRAPHS, "mlp", old)
    variants, record = _sized("mlp", tmp_path, replace(WEIGHTS, shared_steps=0))
    assert "shared-16" in variants
    assert "int8-weights-rounded" in variants
    for name, variant in variants.items():
        proto = read(variant.onnx.path)
        assert (proto.ir_version, proto.opset_import[0].version) == (version, 17), name
        assert all(tensor.data_type != TensorProto.INT4 for tensor in proto.graph.initializer), name
    [note] = record.notes
    assert note.startswith("int4-weights: ")
    assert f"IR version 10 (onnxruntime 1.18), the float file has {version}" in note


def test_a_small_file_that_cannot_be_made_is_a_note_with_an_explicit_method_too(tmp_path: Path) -> None:
    context = Context(_data("cnn"), tmp_path / "quantize", max_drop=0.0, objective="size")
    config = replace(STATIC, shared_values=(2,), shared_steps=0, rounding="nearest", fallback="no")
    variants, record = quantize(_saved("cnn", tmp_path), config, context)
    assert "int8" in {variant.name for variant in variants}
    assert any(note.startswith("shared: up to") for note in record.notes)


# What the graph is like


def test_a_weight_that_two_products_share_is_turned_once() -> None:
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["output"], transB=1),
    ]
    proto = _graph(nodes, {"w": _normal(1, 3, 3), "b": _normal(2, 3)}, (3,))
    name_nodes(proto)
    made = quantize_dynamic_range(gemms_as_products(proto), Candidate("dynamic", "no", False))
    x = _samples_of(3)
    wanted, found = (_outputs(each, x) for each in (proto, made))
    assert np.square(wanted).sum() > 300 * np.square(wanted - found).sum()


def test_a_product_is_turned_beside_the_embedding_that_it_shares_its_weight_with() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "index"], ["e"]),
        helper.make_node("Add", ["input", "e"], ["s"]),
        helper.make_node("Gemm", ["s", "w"], ["output"], transB=1),
    ]
    proto = _graph(nodes, {"w": _normal(1, 3, 4), "index": np.array(1)}, (4,))
    name_nodes(proto)
    made = gemms_as_products(proto)
    np.testing.assert_allclose(_outputs(made, _samples_of(4)), _outputs(proto, _samples_of(4)), rtol=1e-6)
    assert set(constants(made)) == {"w", "index", "w_turned"}


def _samples_of(features: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((64, features)).astype(np.float32)


def _outputs(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def test_one_layer_that_cannot_be_quantized_stays_float_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = integer_module.QDQQuantizer

    class Picky(real):  # type: ignore[misc, valid-type]
        def quantize_model(self) -> Any:
            if any(node.name == "depthwise" and self.should_quantize_node(node) for node in self.model.nodes()):
                raise AssertionError("scale issue")
            return super().quantize_model()

    monkeypatch.setattr(integer_module, "QDQQuantizer", Picky)
    variants, record = _quantize("cnn", tmp_path, replace(STATIC, rounding="nearest"), max_drop=-0.001)
    tensors = _tensors(variants["int8"])
    assert tensors["depthwise.weight"].data_type == TensorProto.FLOAT
    assert {"conv.weight_quantized", "fc.weight_quantized"} <= set(tensors)
    assert sum("layer depthwise stays float" in note for note in record.notes) == 1
    assert {s["layer"] for s in record.figures["fallback"]["int8"]["sensitivity"]} == {"conv", "fc"}


def test_the_outputs_of_samples_of_many_shapes_are_compared(tmp_path: Path) -> None:
    """The first output has a length of its own for each batch, and whole numbers."""
    from compress.quantization.judge import _flat

    batches = [[np.ones((2, 3, 5), np.int64)], [np.ones((1, 4, 5), np.int64)]]
    assert _flat(iter(batches)).shape == (50,)
    assert _flat(iter(batches[:1])).dtype == np.float64


def test_a_drop_of_exactly_the_budget_is_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.9 - 0.89 > 0.01  # in floats
    monkeypatch.setattr("compress.quantization.judge.drop", lambda *_: 0.9 - 0.89)
    _, record = _quantize("mlp", tmp_path, DYNAMIC, max_drop=0.01)
    assert record.figures["files"]["int8-dynamic"]["validation_drop"] == 0.01
    assert "fallback" not in record.figures


def test_a_file_that_is_quantized_already_is_told_by_the_command(compress: Call, tmp_path: Path) -> None:
    variants, _ = _quantize("mlp", tmp_path, DYNAMIC, **GENEROUS)
    quick = ("--input", "20", "--set", "benchmark.seconds=0.05")
    outcome = compress("quantize", variants["int8-dynamic"].onnx.path, "--out", tmp_path / "out", *quick)
    assert outcome.status == 3
    assert outcome.out.count("the model is quantized already") == 1


def test_a_model_ort_of_an_earlier_run_does_not_stay_beside_another_model(tmp_path: Path) -> None:
    onnx_model, out = _saved("mlp", tmp_path), tmp_path / "out"
    write_shipped(onnx_model, out, {}, ort=True)
    assert (out / "model.ort").exists()
    write_shipped(onnx_model, out, {})
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.zip"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("calibration_samples", -1), ("rounding_steps", 0), ("shared_steps", -1),
     ("shared_values", ()), ("shared_values", (1,)), ("shared_values", (257,)), ("target_isa", "z80")],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_refused_with_what_is(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"quantize\.{field}=.*(allowed are|known are)"):
        QuantizeConfig(**{field: value})
