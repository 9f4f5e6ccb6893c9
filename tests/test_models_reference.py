"""The reference architectures are the published ones, and export."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.models import load
from compress.models.reference import FineGrainedCNN, LSTMClassifier, digits_cnn, lenet_5, lenet_300_100


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_fine_grained_cnn_is_the_published_one() -> None:
    module = FineGrainedCNN().eval()
    shapes = [tuple(parameter.shape) for parameter in module.parameters() if parameter.ndim > 1]
    assert shapes == [(32, 1, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (256, 576), (10, 256)]
    assert parameters(module) == 228_010
    with torch.no_grad():
        output = module(torch.rand(3, 1, 28, 28))
    assert output.shape == (3, 10)
    torch.testing.assert_close(output.exp().sum(dim=1), torch.ones(3))


def test_the_dropout_of_the_fine_grained_cnn_is_off_in_eval_mode_only() -> None:
    torch.manual_seed(0)
    module, x = FineGrainedCNN(), torch.rand(2, 1, 28, 28)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_the_digits_cnn_is_small_and_loads_from_a_pickle_without_trust(tmp_path: Path) -> None:
    module = digits_cnn()
    assert parameters(module) == 46_650
    torch.save(module, tmp_path / "model.pt")
    source = load(tmp_path / "model.pt")
    assert source.module is not None
    assert source.module(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_padding_does_not_change_what_the_lstm_says_of_a_sentence() -> None:
    """The words are read before the padding, so their outputs cannot depend on it."""
    torch.manual_seed(0)
    module = LSTMClassifier(20, 8, 8).eval()
    ids = torch.randint(1, 20, (3, 6))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(module(padded), module(ids))


def test_a_sentence_of_padding_alone_gives_finite_logits() -> None:
    assert LSTMClassifier(20, 8, 8).eval()(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, onnxruntime.InferenceSession]:
    torch.manual_seed(0)
    module = LSTMClassifier(20, 8, 8).eval()
    path = tmp_path_factory.mktemp("onnx") / "lstm.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on torch's own LSTM
        torch.onnx.export(
            module,
            (torch.randint(0, 20, (2, 6)),),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            opset_version=20,
            verbose=False,
        )
    return module, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_exported_lstm_agrees_with_torch_for_every_batch(
    lstm: tuple[nn.Module, onnxruntime.InferenceSession], batch: int
) -> None:
    module, session = lstm
    ids = torch.randint(1, 20, (batch, 6), generator=torch.Generator().manual_seed(batch))
    ids[0, 3:] = 0
    (output,) = session.run(None, {"ids": ids.numpy()})
    with torch.no_grad():
        # 1e-5: an LSTM of six steps in float32, each within a few units of 2**-23
        np.testing.assert_allclose(output, module(ids).numpy(), atol=1e-5)


def test_the_lenets_have_the_parameters_that_deep_compression_counts() -> None:
    assert parameters(lenet_300_100()) == 266_610
    assert parameters(lenet_5()) == 431_080
    assert lenet_5()(torch.rand(2, 1, 28, 28)).shape == lenet_300_100()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
