"""compress.quantization.fallback and recovery: layers return to float, worst first, until the budget is kept."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import QuantizationError
from compress.quantization import QuantizeConfig
from compress.quantization.fallback import return_to_float
from compress.quantization.graph import array, constants, replace_constants
from tests.test_quantization import GRAPHS, _cnn, _quantize

ORDER = [f"layer{number}" for number in range(20)]


class Scale:
    """A judge that knows what each number of layers in float costs; the file is that number."""

    def __init__(self, drops: dict[int, float]) -> None:
        self.drops = drops

    def drop(self, data: bytes) -> float:
        return self.drops[int(data)]

    def p50_ms(self, data: bytes) -> tuple[float, float]:
        return 1.0 + int(data), 30.0


def build(float_layers: tuple[str, ...]) -> tuple[onnx.ModelProto, bytes]:
    return onnx.ModelProto(producer_name=str(len(float_layers))), str(len(float_layers)).encode()


@given(st.integers(0, 19))
def test_the_fewest_layers_that_are_enough_are_found(needed: int) -> None:
    judge = Scale({count: 0.0 if count >= needed else 0.1 for count in range(20)})
    found = return_to_float(ORDER, build, judge, budget=0.01)
    assert found.within
    assert found.layers == tuple(ORDER[:needed])
    assert found.proto.producer_name == str(needed)


def test_every_trial_is_kept_with_its_figures() -> None:
    found = return_to_float(ORDER, build, Scale({count: 0.1 - count / 100 for count in range(20)}), budget=0.035)
    steps = {step.layers_in_float: step for step in found.steps}
    assert {0, 1, 2, 3, 4, 6, 7} <= steps.keys()
    assert steps[6].drop == pytest.approx(0.04)
    assert (steps[6].p50_ms, steps[6].float_p50_ms, steps[6].bytes) == (7.0, 30.0, 1)
    assert found.drop == steps[len(found.layers)].drop


def test_where_no_number_is_enough_the_smallest_drop_is_kept() -> None:
    drops = dict.fromkeys(range(20), 0.2) | {6: 0.05}
    found = return_to_float(ORDER, build, Scale(drops), budget=0.01)
    assert not found.within
    assert len(found.layers) == 6
    assert found.drop == 0.05


def test_one_layer_at_least_stays_quantized() -> None:
    tried = []

    def counted(float_layers: tuple[str, ...]) -> tuple[onnx.ModelProto, bytes]:
        tried.append(len(float_layers))
        return build(float_layers)

    return_to_float(ORDER, counted, Scale(dict.fromkeys(range(20), 1.0)), budget=0.0)
    assert max(tried) < len(ORDER)


def test_a_file_that_cannot_be_built_at_all_is_an_error() -> None:
    def broken(float_layers: tuple[str, ...]) -> tuple[onnx.ModelProto, bytes]:
        raise QuantizationError("nothing")

    with pytest.raises(QuantizationError, match="nothing"):
        return_to_float(ORDER, broken, Scale({}), budget=0.0)


def test_a_candidate_over_the_budget_is_learned_then_mixed_and_all_of_it_is_told(tmp_path: Path) -> None:
    config = QuantizeConfig(method="static", per_channel="no", reduce_range="no", rounding_steps=20)
    variants, record = _quantize("cnn", tmp_path, config, max_drop=-0.001)  # nothing can keep that: fidelity ends at 1
    assert "int8" in variants
    fallback = record.figures["fallback"]["int8"]
    assert not fallback["within"]
    assert [step["layers_in_float"] for step in fallback["steps"]] == [0, 1, 2]
    assert {s["layer"] for s in fallback["sensitivity"]} == {"conv", "depthwise", "fc"}
    assert set(record.figures["rounding"]["int8"]) == {"conv", "depthwise", "fc"}
    assert any("no number of layers in float" in note for note in record.notes)


def test_poisoned_layers_return_to_float_and_the_other_stays_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel between two layers is 3,000 times as large as the others, which then round to nothing."""

    def poisoned(zeros: float = 0.0) -> onnx.ModelProto:
        proto = _cnn(zeros)
        weights = {name: array(tensor) for name, tensor in constants(proto).items()}
        weights["depthwise.weight"][0] *= 3000
        weights["fc.weight"][:, :4] /= 3000  # the four positions of that channel
        replace_constants(proto, weights)
        return proto

    monkeypatch.setitem(GRAPHS, "cnn", poisoned)
    config = QuantizeConfig(
        method="static", per_channel="no", reduce_range="no", rounding="nearest", equalize="no", bias_correction="no"
    )
    variants, record = _quantize("cnn", tmp_path, config, max_drop=0.1)
    files, fallback = record.figures["files"], record.figures["fallback"]["int8"]
    assert files["int8"]["validation_drop"] > 0.1
    assert fallback["within"]
    assert set(fallback["layers"]) == {"depthwise", "fc"}
    assert files["int8-mixed"]["validation_drop"] <= 0.1
    kinds = [node.op_type for node in onnx.load(str(variants["int8-mixed"].onnx.path)).graph.node]
    assert "QuantizeLinear" in kinds


def test_fallback_and_learned_rounding_can_be_switched_off(tmp_path: Path) -> None:
    config = QuantizeConfig(
        method="static", per_channel="no", reduce_range="no", rounding="nearest", fallback="no", bias_correction="no"
    )
    variants, record = _quantize("cnn", tmp_path, config, max_drop=-0.001)
    assert list(variants) == ["int8"]
    assert "fallback" not in record.figures
