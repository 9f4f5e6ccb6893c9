"""Predicted zip bytes against files, and the laws that a search relies on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.data import synthetic
from compress.measurement.size import zip_bytes
from compress.models.reference import LSTMClassifier
from compress.onnx_export import export
from compress.onnx_export.stage import ExportConfig
from compress.quantization import quantize
from compress.quantization.stage import QuantizeConfig
from compress.reporting.gain import stored_as
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.sparsity.size_model import Stored, predict_all, predict_zip_bytes
from compress.values import Context, InputSpec, Model

BOUND = 0.1  # of the issue; benchmarks/results/size-model-seed0.md has the error of larger models


def convolutional() -> Model:
    """Every way to fold: a convolution with and without a bias, with a normalisation and without."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    module(torch.randn(64, 1, 8, 8))  # normalisation statistics that differ from channel to channel
    return Model(module.eval(), (InputSpec("input", (1, 8, 8)),))


def recurrent() -> Model:
    torch.manual_seed(0)
    return Model(LSTMClassifier(600, embedding=32, hidden=64).eval(), (InputSpec("ids", (6,), "int64"),))


def thin_out(module: nn.Module, sparsity: float) -> nn.Module:
    made = copy.deepcopy(module)
    parameters = sparsifiable(made)
    apply_masks(parameters, make_masks(parameters, sparsity))
    return made


@pytest.mark.parametrize("make", [convolutional, recurrent])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_every_form_of_file_is_predicted_within_ten_percent(make: object, sparsity: float, tmp_path: Path) -> None:
    assert callable(make)
    dense = make()
    module = thin_out(dense.module, sparsity)
    context = Context(data=synthetic(dense.inputs, count=40), directory=tmp_path)
    onnx, _ = export(Model(module, dense.inputs), ExportConfig(), context)
    # Whether there is a file with layers in float, and which they are, goes by what is timed: nobody predicts it.
    variants, _ = quantize(onnx, QuantizeConfig(fast="no"), context)
    files = {"fp32": onnx.path} | {variant.name: variant.onnx.path for variant in variants}
    assert len(files) >= 4
    predicted = predict_all(module)
    for name, path in files.items():
        assert predicted[stored_as(name)] == pytest.approx(zip_bytes(path), rel=BOUND), name


@pytest.fixture(scope="module")
def sampled() -> nn.Module:
    """Large enough that only a part of it is deflated."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 260), nn.ReLU(), nn.Linear(260, 10)).eval()


@pytest.mark.parametrize("stored", get_args(Stored))
@given(first=st.floats(0, 0.99), second=st.floats(0, 0.99))
@settings(max_examples=8, deadline=None)
def test_more_zeros_never_predict_more_bytes(stored: Stored, sampled: nn.Module, first: float, second: float) -> None:
    parameters = sparsifiable(sampled)
    fewer, more = (
        predict_zip_bytes(sampled, masks=make_masks(parameters, s), stored=stored) for s in sorted((first, second))
    )
    assert more <= fewer * 1.01  # of samples, whose error is below that


@pytest.mark.parametrize("stored", get_args(Stored))
def test_masks_are_predicted_as_if_they_were_applied(stored: Stored, sampled: nn.Module) -> None:
    before = {name: value.clone() for name, value in sampled.state_dict().items()}
    asked = predict_zip_bytes(sampled, masks=make_masks(sparsifiable(sampled), 0.8), stored=stored)
    assert asked == predict_zip_bytes(thin_out(sampled, 0.8), stored=stored)
    assert asked < 0.6 * predict_zip_bytes(sampled, stored=stored)
    assert all(torch.equal(before[name], value) for name, value in sampled.state_dict().items())


def test_the_same_module_gets_the_same_prediction(sampled: nn.Module) -> None:
    assert predict_all(sampled) == predict_all(copy.deepcopy(sampled))
    assert predict_all(sampled)["int8"] == predict_zip_bytes(sampled, stored="int8")


def test_fewer_bits_and_fewer_scales_are_fewer_bytes(sampled: nn.Module) -> None:
    sizes = predict_all(sampled)
    assert sizes["int8-reduced"] < sizes["int8"] < sizes["int8-per-channel"] < sizes["float32"]


def test_what_is_stored_is_told_from_the_name_of_a_variant() -> None:
    names = {
        "pruned-sparse-fp32": "float32",
        "sparse-int8": "int8",
        "sparse-int8-dynamic": "int8",
        "sparse-int8-reduced": "int8-reduced",
        "sparse-int8-per-channel": "int8-per-channel",
        "sparse-int8-dynamic-per-channel-reduced": "int8-per-channel",
        "sparse-int8-weights": "int8-weights",
    }
    assert {name: stored_as(name) for name in names} == names


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 3),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.ReLU(),
    ],
)
def test_the_smallest_modules_have_a_size(module: nn.Module) -> None:
    assert all(400 < size < 3000 for size in predict_all(module).values())


def test_tied_weights_are_stored_once() -> None:
    tied = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
    apart = predict_zip_bytes(tied)
    assert isinstance(tied[0], nn.Linear)
    tied[1].weight = tied[0].weight
    assert predict_zip_bytes(tied) < 0.6 * apart
