"""Small models, each with one thing that makes pruning hard. Inputs have a batch of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 50


class HardCodedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.drop = nn.Conv2d(16, 16, 3, stride=2), nn.Dropout(0.3)
        self.fc1, self.fc2 = nn.Linear(576, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(self.conv2(x)).view(-1, 576)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class FunctionalMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(32, 20) * 0.1), nn.Parameter(torch.zeros(32))
        self.w2, self.w3 = nn.Parameter(torch.randn(24, 32) * 0.1), nn.Parameter(torch.randn(10, 24) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x, self.w1, self.b1))
        return F.linear(F.relu(hidden @ self.w2.t()), self.w3)


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 5, padding=2)
        self.mix, self.head = nn.Conv2d(20, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(F.relu(self.mix(F.relu(both))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.scale * self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(TOKENS, 16), nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(x))[0][:, -1])


class BidirectionalLstm(nn.Module):
    def __init__(self, projected: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 16)
        self.lstm = nn.LSTM(
            16, 20, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2, proj_size=projected
        )
        self.head = nn.Linear(2 * (projected or 20), 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(x))
        return self.head(torch.cat([hidden[-2], hidden[-1]], -1))


class Attention(nn.Module):
    """A transformer encoder with attention written by hand, and the number of heads written into its forward."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.heads, self.each, self.packed = 4, 8, packed
        self.embed, self.position = nn.Embedding(TOKENS, 32), nn.Parameter(torch.randn(1, 12, 32) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        if packed:
            self.qkv = nn.Linear(32, 96)
        else:
            self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out, self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape
        h = self.embed(x) + self.position
        z = self.norm1(h)
        parts = self.qkv(z).chunk(3, -1) if self.packed else (self.q(z), self.k(z), self.v(z))
        q, k, v = (part.view(batch, length, self.heads, self.each).transpose(1, 2) for part in parts)
        a = (q @ k.transpose(-1, -2) / self.each**0.5).softmax(-1) @ v
        h = h + self.out(a.transpose(1, 2).reshape(batch, length, self.heads * self.each))
        h = h + self.down(F.gelu(self.up(self.norm2(h))))
        return self.head(h.mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(TOKENS, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(F.relu(self.up(self.embed(x)))))


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.trunk(x))
        return {"a": self.a(x), "b": self.b(x)}


class Excited(nn.Module):
    """Squeeze-excite, group normalisation, PReLU, a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.next, self.act = nn.Conv2d(16, 8, 3), nn.PReLU(8)
        self.up, self.head = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head(self.up(self.act(self.next(x * torch.sigmoid(gate)))).mean((2, 3)))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.norm, self.head = nn.InstanceNorm3d(8, affine=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.depthwise(self.conv(x)))).mean((2, 3, 4)))


class Gated(nn.Module):
    """A gated linear unit over channels, then a plain recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv1d(2, 16, 3), nn.Conv1d(8, 6, 3)
        self.rnn, self.head = nn.RNN(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(F.glu(self.conv(x), 1))
        return self.head(self.rnn(x.permute(2, 0, 1))[0][-1])


class Shuffled(nn.Module):
    """Half of the channels pass by, then all are shuffled: both halves must stay of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x).mean((2, 3))


class Cells(nn.Module):
    """Recurrent cells in a loop of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.lstm = nn.Embedding(TOKENS, 8), nn.GRUCell(8, 12), nn.LSTMCell(12, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.gru.hidden_size, dtype=self.head.weight.dtype)
        a = b = torch.zeros(len(x), self.lstm.hidden_size, dtype=self.head.weight.dtype)
        for step in range(x.shape[1]):
            h = self.gru(self.embed(x[:, step]), h)
            a, b = self.lstm(h, (a, b))
        return self.head(a)


class PackedSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(TOKENS, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(padded[:, -1])


class RotaryGroupedQuery(nn.Module):
    """Two heads of keys and values for four of queries, rotated by tables that all heads share; gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(TOKENS, 32), nn.RMSNorm(32)
        self.q, self.kv, self.out = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False), nn.Linear(32, 32)
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, 3)
        self.register_buffer("cos", torch.randn(12, 8))
        self.register_buffer("sin", torch.randn(12, 8))

    def rotated(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        z = self.norm(h)
        batch, length, _ = z.shape
        q = self.rotated(self.q(z).view(batch, length, 4, 8).transpose(1, 2))
        k, v = self.kv(z).view(batch, length, 2, 2, 8).permute(2, 0, 3, 1, 4)
        k, v = self.rotated(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
        h = h + self.out(a)
        h = h + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(h.mean(1))


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.mix = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1)
        self.mask, self.fine, self.edge = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(self.down(x))
        b = F.relu(self.deep(F.max_pool2d(a, 2)))
        c = F.relu(self.mix(torch.cat([a, self.up(b)], 1)))
        return self.mask(c), self.edge(F.pixel_shuffle(self.fine(c), 2))


class HardCodedSlices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.trunk(x))
        return self.head(torch.cat([self.left(x[:, :16]), self.right(x[:, 16:])], 1).mean((2, 3)))


def tokens() -> Tensor:
    return torch.arange(24).reshape(2, 12) % TOKENS


def images(channels: int, size: int) -> Tensor:
    return torch.linspace(-1, 1, 2 * channels * size * size).reshape(2, channels, size, size).sin()


Make = Callable[[], tuple[nn.Module, Any]]

MODELS: dict[str, Make] = {
    "hard-coded view": lambda: (HardCodedView(), images(1, 16)),
    "functional mlp": lambda: (FunctionalMlp(), torch.linspace(-1, 1, 40).reshape(2, 20)),
    "two branches": lambda: (TwoBranches(), images(3, 8)),
    "residual": lambda: (Residual(), images(3, 8)),
    "gru": lambda: (Gru(), tokens()),
    "bidirectional lstm": lambda: (BidirectionalLstm(), tokens()),
    "projected lstm": lambda: (BidirectionalLstm(6), tokens()),
    "attention": lambda: (Attention(), tokens()),
    "packed attention": lambda: (Attention(packed=True), tokens()),
    "encoder": lambda: (Encoder(), tokens()),
    "tied": lambda: (Tied(), tokens()),
    "used twice": lambda: (UsedTwice(), torch.linspace(-1, 1, 12).reshape(2, 6)),
    "dict output": lambda: (DictOutput(), torch.linspace(-1, 1, 12).reshape(2, 6)),
    "excited": lambda: (Excited(), images(3, 10)),
    "volume": lambda: (Volume(), torch.linspace(-1, 1, 432).reshape(2, 1, 6, 6, 6)),
    "gated": lambda: (Gated(), torch.linspace(-1, 1, 80).reshape(2, 2, 20)),
    "cells": lambda: (Cells(), tokens()),
    "packed sequence": lambda: (PackedSequence(), tokens()),
    "rotary": lambda: (RotaryGroupedQuery(), tokens()),
    "unet": lambda: (Unet(), images(3, 8)),
    "hard-coded slices": lambda: (HardCodedSlices(), images(3, 8)),
    "shuffled": lambda: (Shuffled(), images(3, 6)),
}


def make(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model in eval mode with seeded weights and statistics that are not those of a fresh layer, and its inputs."""
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    return module.eval(), (inputs,)
