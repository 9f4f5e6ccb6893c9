"""Zeros that export, simplification or quantization lose are noticed, wherever they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compress.data import synthetic
from compress.errors import ModelError, SparsityError
from compress.models.counts import weight_zeros
from compress.models.reference import LSTMClassifier
from compress.onnx_export import export, stage
from compress.onnx_export.stage import ExportConfig
from compress.onnx_export.trace import from_export
from compress.onnx_export.weights import Traced
from compress.quantization import quantize
from compress.quantization import stage as quantization_stage
from compress.quantization.stage import QuantizeConfig
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.values import Context, InputSpec, Model, State, Variant
from compress.verify import check_zeros, verify
from tests.conftest import tiny_cnn

Damage = Callable[[onnx.ModelProto], None]


def sparse(module: nn.Module, *inputs: InputSpec) -> Model:
    """Half of the weights are zero; one weight a tensor is so small that no output tells where it is."""
    parameters = sparsifiable(module)
    apply_masks(parameters, make_masks(parameters, 0.5))
    for parameter in parameters.values():
        flat = parameter.detach().reshape(-1)
        flat[int(flat.nonzero()[0])] = 1e-12
    return Model(module.eval(), inputs)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return sparse(tiny_cnn(), InputSpec("input", (1, 8, 8)))


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> State:
    return export_verified(model, tmp_path_factory.mktemp("exported"))


def context_of(model: Model, directory: Path) -> Context:
    return Context(data=synthetic(model.inputs, count=40), directory=directory)


def export_verified(model: Model, directory: Path) -> State:
    context = context_of(model, directory)
    before = State(model)
    made, _ = export(model, ExportConfig(), context)
    after = replace(before, onnx=made, variants=(Variant("sparse-fp32", "export", made),))
    verify(before, after, model, example_of(context))
    return after


def quantize_verified(state: State, config: QuantizeConfig, context: Context) -> State:
    assert state.onnx is not None
    variants, _ = quantize(state.onnx, config, context)
    after = replace(state, variants=(*state.variants, *variants))
    verify(state, after, state.model, example_of(context))
    return after


def example_of(context: Context) -> tuple[torch.Tensor, ...]:
    assert context.data is not None
    return context.data.calibration.fetch(context.data.calibration.indices[:2])[0]


def move_a_zero(proto: onnx.ModelProto) -> None:
    """Swap a zero of the largest weight with its smallest other one: the number of zeros stays."""
    tensor = max(proto.graph.initializer, key=lambda t: np.prod(t.dims) if len(t.dims) >= 2 else 0)
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    nonzero = np.flatnonzero(flat)
    other, zero = nonzero[np.abs(flat[nonzero].astype(float)).argmin()], np.flatnonzero(flat == 0)[-1]
    flat[zero], flat[other] = flat[other], 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def then(function: Any, damage: Damage) -> Any:
    def damaged(*args: Any, **kwargs: Any) -> onnx.ModelProto:
        proto: onnx.ModelProto = function(*args, **kwargs)
        damage(proto)
        return proto

    return damaged


def test_a_zero_that_the_exporter_moves_is_noticed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*args: Any) -> Traced:
        traced = from_export(*args)
        move_a_zero(traced.proto)
        return traced

    monkeypatch.setattr(stage, "from_export", moved)
    with pytest.raises(SparsityError, match=r"sparse-fp32: 6\.weight has .* zeros were not kept"):
        export_verified(model, tmp_path)


def test_a_zero_that_the_simplifier_moves_is_noticed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxslim, "slim", then(onnxslim.slim, move_a_zero))
    with pytest.raises(SparsityError, match="zeros were not kept"):
        export_verified(model, tmp_path)


@pytest.mark.parametrize(("method", "function"), [("static", "build"), ("weights", "quantize_weights")])
def test_a_zero_that_the_quantizer_moves_is_noticed(
    method: Any, function: str, exported: State, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization_stage, function, then(getattr(quantization_stage, function), move_a_zero))
    with pytest.raises(SparsityError, match=r"int8.*zeros were not kept"):
        quantize_verified(exported, QuantizeConfig(method, per_channel="no"), context_of(model, tmp_path))


@pytest.mark.parametrize("per_channel", ["yes", "no"])
def test_an_untouched_network_passes_in_every_int8_form(
    per_channel: Any, exported: State, model: Model, tmp_path: Path
) -> None:
    context = context_of(model, tmp_path)
    for method in ("static", "dynamic", "weights"):
        after = quantize_verified(exported, QuantizeConfig(method, per_channel=per_channel), context)
        assert after.variants[-1].name.startswith("int8")


def test_the_reordered_gates_of_an_lstm_are_compared_place_by_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = sparse(LSTMClassifier(30, embedding=8, hidden=16), InputSpec("ids", (6,), "int64"))
    state = export_verified(model, tmp_path)
    after = quantize_verified(state, QuantizeConfig("dynamic"), context_of(model, tmp_path))
    ours = {name: (p == 0).numpy() for name, p in sparsifiable(model.module).items()}
    moved = ours | {"lstm.weight_hh_l0": np.flip(ours["lstm.weight_hh_l0"], 1)}
    for variant in after.variants:  # float, and int8 with its gates transposed too
        stored = weight_zeros(variant.onnx.path)
        check_zeros(ours, stored, variant.name)
        with pytest.raises(SparsityError, match="lstm"):
            check_zeros(moved, stored, variant.name)


@pytest.mark.parametrize("embedding", [8, 32])  # 32: a direction of one layer has the size of two of another
def test_both_directions_of_an_lstm_are_compared_as_the_one_tensor_that_onnx_has(
    embedding: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layers = (nn.Embedding(30, embedding), nn.LSTM(embedding, 8, 2, batch_first=True, bidirectional=True))
    model = sparse(LastOf(*layers), InputSpec("ids", (6,), "int64"))
    state = export_verified(model, tmp_path)
    after = quantize_verified(state, QuantizeConfig("dynamic"), context_of(model, tmp_path))
    ours = {name: (p == 0).numpy() for name, p in sparsifiable(model.module).items()}
    moved = ours | {"1.weight_hh_l1_reverse": np.flip(ours["1.weight_hh_l1_reverse"], 1)}
    for variant in after.variants:
        stored = weight_zeros(variant.onnx.path)
        check_zeros(ours, stored, variant.name)
        with pytest.raises(SparsityError, match="weight_hh_l1"):
            check_zeros(moved, stored, variant.name)


class LastOf(nn.Sequential):
    """An embedding and a recurrent layer: what the latter puts out last."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedding, recurrent = self
        states: torch.Tensor = recurrent(embedding(ids))[0]
        return states[:, -1]


def zeros(*rows: str) -> Any:
    return np.array([[c == "0" for c in row] for row in rows])


def test_a_transposed_weight_without_its_name_is_found() -> None:
    check_zeros({"a": zeros("001", "101")}, {"b": zeros("01", "00", "11")}, "x")


def test_two_weights_of_one_shape_cannot_both_be_the_same_tensor() -> None:
    ours = {"a": zeros("0011", "1111"), "b": zeros("0011", "0111")}
    check_zeros(ours, {"p": zeros("0011", "1111"), "q": zeros("0011", "0111")}, "x")
    with pytest.raises(SparsityError, match="a has 2 zeros among 8"):
        check_zeros(ours, {"p": zeros("1111", "1111"), "q": zeros("0011", "0111")}, "x")


def test_more_zeros_than_before_are_no_loss() -> None:
    check_zeros({"a": zeros("01")}, {"a": zeros("00")}, "x")


def test_a_weight_that_took_the_name_of_another_is_no_loss() -> None:
    ours = {"a": zeros("0011"), "b": zeros("1101")}
    check_zeros(ours, {"b": zeros("0011"), "a": zeros("1101")}, "x")


def test_a_tied_weight_that_is_written_twice_is_checked_by_its_name() -> None:
    check_zeros({"a": zeros("0011")}, {"a": zeros("0011"), "copy": zeros("1111")}, "x")
    with pytest.raises(SparsityError):
        check_zeros({"a": zeros("0011")}, {"a": zeros("1111"), "copy": zeros("1111")}, "x")


def test_what_lost_its_name_and_changed_in_number_cannot_be_compared() -> None:
    check_zeros({"a": zeros("0011")}, {"p": zeros("1111"), "q": zeros("1111")}, "x")


def test_a_model_that_cannot_run_a_batch_is_refused_with_the_batch_and_the_reason(model: Model) -> None:
    class OneAtATime(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, -1)[:, : 8 * 8].reshape(len(x), 64)

    example = tuple(torch.zeros(2, *spec.shape) for spec in model.inputs)
    after = State(replace(model, module=OneAtATime()))
    with pytest.raises(ModelError, match="a batch of 2 cannot be run: shape"):
        verify(State(model), after, None, example)
