"""Operations by weight: against hand counts, and what zeros save."""

from __future__ import annotations

import torch
from torch import nn

from compress.models.flops import ACTIVATIONS, effective_flops, flops_by_weight
from compress.models.reference import FineGrainedCNN, LSTMClassifier


def test_convolutions_and_linear_layers_have_two_operations_a_product() -> None:
    flops = flops_by_weight(FineGrainedCNN(), (torch.rand(3, 1, 28, 28),))
    assert flops == {
        "conv1.weight": 2 * 24 * 24 * 32 * 1 * 25,
        "conv2.weight": 2 * 20 * 20 * 32 * 32 * 25,
        "conv3.weight": 2 * 6 * 6 * 64 * 32 * 25,
        "fc1.weight": 2 * 576 * 256,
        "fc2.weight": 2 * 256 * 10,
    }


def test_every_step_of_a_recurrent_layer_counts() -> None:
    model = LSTMClassifier(50, embedding=3, hidden=4, layers=1)
    flops = flops_by_weight(model, (torch.ones(2, 7, dtype=torch.int64),))
    assert flops == {
        "lstm.weight_ih_l0": 2 * 7 * 16 * 3,
        "lstm.weight_hh_l0": 2 * 7 * 16 * 4,
        "head.weight": 2 * 4 * 2,
    }


def test_attention_has_products_that_belong_to_no_weight() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=6, batch_first=True)
    flops = flops_by_weight(layer, (torch.rand(1, 5, 8),))
    assert flops["self_attn.in_proj_weight"] == 2 * 5 * 8 * 24
    assert flops[ACTIVATIONS] == 2 * 2 * 5 * 5 * 8  # queries by keys, and the weighted sum of values
    assert effective_flops(layer, flops) == sum(flops.values())


def test_a_zero_saves_the_operations_of_its_own_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    flops = flops_by_weight(model, (torch.rand(1, 4),))
    with torch.no_grad():
        model[0].weight[:4] = 0  # half of 2*32
    assert effective_flops(model, flops) == 32 + 2 * 16


def test_a_tied_weight_counts_each_time_it_is_used_and_the_module_stays_as_it_was() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.head(self.embedding(ids)).softmax(-1) @ self.head.weight)
            return out

    model = Tied().train()
    assert flops_by_weight(model, (torch.ones(1, 3, dtype=torch.int64),)) == {"embedding.weight": 3 * 3 * 2 * 40}
    assert model.training
    assert model.head.weight.dtype is torch.float32
