"""Memory-equivalent capacity, by hand and through a module's own forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.capacity import LayerSize, capacity, layer_sizes, memory_equivalent_capacity
from compress.models.reference import FineGrainedCNN, LSTMClassifier, alexnet, mlp

FIRST = 784 * 2000 + 2000


def test_the_published_mlp_by_hand() -> None:
    """784-2000-2000-2000-10: each later layer has more parameters than the 2,000 values it is given."""
    layers = [
        LayerSize(FIRST, 2000),
        LayerSize(2000 * 2000 + 2000, 2000),
        LayerSize(2000 * 2000 + 2000, 2000),
        LayerSize(2000 * 10 + 10, 10),
    ]
    assert memory_equivalent_capacity(layers) == FIRST + 2000 + 2000 + 2000 == 1_576_000


def test_a_later_layer_with_few_parameters_counts_those() -> None:
    assert memory_equivalent_capacity([LayerSize(100, 50), LayerSize(7, 3), LayerSize(40, 2)]) == 100 + 7 + 3


def test_no_layers_hold_nothing() -> None:
    assert memory_equivalent_capacity([]) == 0
    assert capacity(nn.ReLU(), (torch.rand(2, 3),)) == 0


def test_the_published_mlp_as_a_module() -> None:
    sizes = [(layer.parameters, layer.outputs) for layer in layer_sizes(mlp(20, 3), (torch.rand(2, 1, 28, 28),))]
    assert sizes == [(784 * 20 + 20, 20), (420, 20), (420, 20), (210, 10)]
    assert capacity(mlp(2000, 3), (torch.rand(2, 1, 28, 28),)) == 1_576_000


def test_a_convolution_passes_on_its_units_at_every_position() -> None:
    conv1, conv2, *_ = layer_sizes(FineGrainedCNN(), (torch.rand(3, 1, 28, 28),))
    assert conv1 == LayerSize(32 * 25 + 32, 32 * 24 * 24)
    assert conv2 == LayerSize(32 * 32 * 25 + 32, 32 * 20 * 20)


def test_alexnet_has_the_asked_units_in_its_classifier() -> None:
    """torchvision's five convolutions, then 9,216-30-30-3."""
    module = alexnet(classes=3, fc_parameter=30)
    sizes = layer_sizes(module, (torch.rand(2, 3, 64, 64),))
    assert sizes[0] == LayerSize(64 * 3 * 121 + 64, 64 * 15 * 15)
    assert [s.parameters for s in sizes[5:]] == [9216 * 30 + 30, 30 * 30 + 30, 30 * 3 + 3]
    assert sum(s.parameters for s in sizes) == sum(p.numel() for p in module.parameters())


def test_a_recurrent_layer_is_one_layer() -> None:
    sizes = layer_sizes(LSTMClassifier(20, 8, 6), (torch.randint(0, 20, (2, 5)),))
    lstm = 4 * 6 * (8 + 6 + 2) + 4 * 6 * (6 + 6 + 2)
    assert [s.parameters for s in sizes] == [20 * 8, lstm, 6 * 2 + 2]
    assert sizes[1].outputs == 5 * 6


class Functional(nn.Module):
    """Weights without layers around them, one of them used twice and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(6, 4))
        self.b = nn.Parameter(torch.rand(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.a) @ self.b.t()
        return F.linear(x @ self.b, self.a.t())


def test_functional_weights_count_where_they_are_used_first() -> None:
    assert layer_sizes(Functional(), (torch.rand(3, 4),)) == [LayerSize(24, 6), LayerSize(36, 6)]


def test_an_exported_program_has_the_capacity_of_its_module() -> None:
    module, x = mlp(12, 2), torch.rand(2, 784)
    assert capacity(torch.export.export(module, (x,)).module(), (x,)) == capacity(module, (x,))


def test_attention_counts_all_of_its_projections() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    weights = sum(p.numel() for name, p in module.named_parameters() if "norm" not in name)
    assert sum(layer.parameters for layer in layer_sizes(module, (torch.rand(2, 3, 8),))) in (
        weights,
        sum(p.numel() for p in module.parameters()),  # torch's fast path is one call, normalisation included
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(training)
    module[0].eval()
    capacity(module, (torch.rand(2, 3),))
    assert [part.training for part in module.modules()] == [training, False, training]
