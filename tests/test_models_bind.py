"""Binding says whether a module runs on its data, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError, DataError, ModelError
from compress.models import FirstOutput, Source, bind, check_labels, wanted_channels
from compress.models.reference import FineGrainedCNN, LSTMClassifier, digits_cnn
from compress.values import InputSpec

IMAGE = (InputSpec("x", (1, 8, 8)),)


def refusal(module: nn.Module, shape: tuple[int, ...], example: Tensor | None = None) -> CompressError:
    batch = torch.rand(2, *shape) if example is None else example
    with pytest.raises(CompressError) as caught:
        bind(module, (InputSpec("x", shape),), (batch,))
    assert str(caught.value).count("\n") <= 1
    return caught.value


def test_a_classifier_is_recognised_and_its_module_kept_in_eval_mode() -> None:
    module = digits_cnn().train()
    model = bind(module, IMAGE, (torch.rand(5, 1, 8, 8),))
    assert model.module is module
    assert model.task == "classification"
    assert not module.training


def test_one_sample_is_enough() -> None:
    assert bind(digits_cnn(), IMAGE, (torch.rand(1, 1, 8, 8),)).inputs == IMAGE


def test_a_network_that_returns_images_or_one_number_does_not_classify() -> None:
    assert bind(nn.Conv2d(1, 3, 1), IMAGE, (torch.rand(2, 1, 8, 8),)).task == "other"
    assert bind(nn.Linear(8, 1), (InputSpec("x", (8,)),), (torch.rand(2, 8),)).task == "other"


def test_several_inputs_are_passed_in_order() -> None:
    example = (torch.rand(3, 4), torch.rand(3, 5))
    inputs = (InputSpec("a", (4,)), InputSpec("b", (5,)))
    assert bind(nn.Bilinear(4, 5, 2), inputs, example).task == "classification"


class Several(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        return {"tuple": (x, x + 1), "dict": {"out": x, "aux": x + 1}, "nested": ([x], x), "nothing": "text"}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_of_several_outputs_the_first_tensor_is_the_model_s_output(kind: str) -> None:
    x = torch.rand(2, 4)
    model = bind(Several(kind), (InputSpec("x", (4,)),), (x,))
    assert isinstance(model.module, FirstOutput)
    assert torch.equal(model.module(x), x)


def test_a_model_without_a_tensor_output_is_refused() -> None:
    assert "returns a str without a tensor" in str(refusal(Several("nothing"), (4,)))


def test_channels_last_is_recognised_with_the_transpose_that_mends_it() -> None:
    error = refusal(FineGrainedCNN(), (28, 28, 1))
    assert isinstance(error, DataError)
    assert str(error) == (
        "(28, 28, 1) looks channels-last; this model's first convolution wants 1 channel first: "
        "transpose the samples to (1, 28, 28)."
    )


def test_a_wrong_number_of_channels_is_told_with_both_numbers() -> None:
    assert "layer '0' (Conv2d) wants 1 input channels and got 3" in str(refusal(digits_cnn(), (3, 8, 8)))


def test_a_wrong_image_size_is_told_at_the_linear_layer() -> None:
    assert "layer '6' (Linear) expected 512 features, got 288" in str(refusal(digits_cnn(), (1, 6, 6)))


def test_a_wrong_dtype_is_told_with_the_one_that_is_wanted() -> None:
    integers = torch.ones(2, 1, 8, 8, dtype=torch.int64)
    assert "wants float32 values and got int64" in str(refusal(digits_cnn(), (1, 8, 8), integers))
    assert "wants integer ids and got float32" in str(refusal(LSTMClassifier(10), (5,)))


def test_ids_beyond_the_embedding_are_told_with_its_size() -> None:
    ids = torch.full((2, 5), 12)
    assert "holds 10 ids (0 to 9), the data has ids from 12 to 12" in str(refusal(LSTMClassifier(10), (5,), ids))


def test_a_failure_of_another_kind_names_the_layer_and_the_shape() -> None:
    error = refusal(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 5))), (4,))
    assert isinstance(error, ModelError)
    assert "in layer '1' (Unflatten) on inputs of shape (2, 4)" in str(error)


def test_a_wrong_number_of_inputs_is_refused() -> None:
    with pytest.raises(DataError, match="at least one sample for each of 1 inputs"):
        bind(digits_cnn(), IMAGE, ())
    with pytest.raises(DataError, match="at least one sample"):
        bind(digits_cnn(), IMAGE, (torch.rand(0, 1, 8, 8),))


class Squeezes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


class Folds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 4)


class Diverges(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_an_output_that_loses_or_folds_the_batch_is_refused() -> None:
    assert "does not keep the batch: (1, 4) gives (4,)" in str(refusal(Squeezes(), (4,)))
    assert "does not keep the batch: (2, 8) gives (4, 4)" in str(refusal(Folds(), (8,)))


def test_an_output_that_is_not_finite_is_refused() -> None:
    assert "NaN or infinity for real samples (8 of 8 values)" in str(refusal(Diverges(), (4,)))


def test_an_onnx_source_has_nothing_to_bind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no torch module"):
        bind(Source(tmp_path / "m.onnx", "onnx", ""), IMAGE, (torch.rand(2, 1, 8, 8),))


def test_labels_beyond_the_outputs_are_refused_and_fewer_are_fine() -> None:
    example = (torch.rand(2, 1, 8, 8),)
    model = bind(digits_cnn(), IMAGE, example)
    check_labels(model, example, 10)
    check_labels(model, example, 3)
    with pytest.raises(DataError, match="labels go up to 11, but the model has 10 outputs"):
        check_labels(model, example, 12)


def test_the_wanted_channels_are_those_of_the_first_convolution() -> None:
    assert wanted_channels(FineGrainedCNN()) == 1
    assert wanted_channels(nn.Sequential(nn.ReLU(), nn.Conv1d(7, 2, 3), nn.Conv1d(2, 2, 3))) == 7
    assert wanted_channels(nn.Linear(3, 3)) is None


def test_no_hook_stays_on_a_module_after_a_failure() -> None:
    module = digits_cnn()
    refusal(module, (3, 8, 8))
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in module.modules())
