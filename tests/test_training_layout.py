"""Channels last while a model trains: the same answers, the same weights afterwards, and only where it can be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.data.splits import Batch, Split
from compress.training import FineTuneConfig, finetune
from compress.training.layout import fastest_layout

CONFIG = FineTuneConfig(batch_size=8, learning_rate=0.01)


class Viewing(nn.Module):
    """A grey-image CNN with a depthwise layer, that flattens by a written size as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        return self.head(x.view(-1, 4 * 4 * 4))


class Striding(nn.Module):
    """Reads the memory of what it computed, whatever its layout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.as_strided((len(x), 4 * 6 * 6), (4 * 6 * 6, 1)))


def images(count: int = 32) -> Split:
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = torch.arange(count) % 3

    def fetch(indices: np.ndarray) -> Batch:
        return (x[indices],), y[indices]

    return Split("train", fetch, np.arange(count))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def test_a_model_that_calls_view_answers_the_same_in_channels_last() -> None:
    module, (inputs, _) = made(Viewing), images().fetch(np.arange(8))
    plain = module(*inputs)
    with fastest_layout(module, images(), "cpu") as layout:
        assert layout.channels_last
        assert layout.reshaping
        found = layout.run(module, inputs)
    assert torch.allclose(found, plain, atol=1e-5)


def test_what_is_computed_lies_channels_last_even_from_images_of_one_channel() -> None:
    seen: list[tuple[int, ...]] = []
    module = made(Viewing)
    module.get_submodule("first").register_forward_hook(lambda _m, _i, out: seen.append(out.stride()))
    with fastest_layout(module, images(), "cpu") as layout:
        seen.clear()
        layout.run(module, images().fetch(np.arange(8))[0])
    assert seen == [(4 * 6 * 6, 1, 6 * 4, 4)]


def test_depthwise_weights_have_their_strides_back_after_training() -> None:
    module = made(Viewing)
    before = {name: p.stride() for name, p in module.named_parameters()}
    finetune(module, None, images(), CONFIG, steps=3, seed=0)
    assert {name: p.stride() for name, p in module.named_parameters()} == before


@pytest.mark.parametrize("kind", [Striding, nn.Flatten])
def test_a_model_that_would_answer_otherwise_or_has_no_convolution_stays_as_it_is(kind: type[nn.Module]) -> None:
    with fastest_layout(made(kind), images(), "cpu") as layout:
        assert not layout.channels_last


def test_training_in_channels_last_finds_the_weights_that_plain_steps_find() -> None:
    """Against a plain loop of torch's own optimizer: a fused step over other strides would mix weights up."""
    module, plain, split = made(Viewing), made(Viewing), images(8)
    finetune(module, None, split, FineTuneConfig(batch_size=8, schedule="constant", warm_up=0), steps=5, seed=0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.002, weight_decay=0, fused=False)
    inputs, labels = split.fetch(np.arange(8))
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(*inputs), labels).backward()
        optimizer.step()
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)


class OnlyInTraining(Viewing):
    """Flattens by `view` where there are gradients alone, as traced models do by the kernel that then runs."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        return self.head(torch.ops.aten.view.default(x, [-1, 64]) if torch.is_grad_enabled() else x.flatten(1))


def test_what_cannot_be_viewed_in_training_alone_is_copied_there() -> None:
    module = made(OnlyInTraining)
    with fastest_layout(module, images(), "cpu", batch=8) as layout:
        assert layout.channels_last
        assert layout.reshaping
    loss = finetune(module, None, images(), CONFIG, steps=2, seed=0)
    assert loss > 0
