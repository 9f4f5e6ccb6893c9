"""Architectures that the demo, the recipes and the benchmarks train, as they were published."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.models.torchvision_compat import ensure_operators


class FineGrainedCNN(nn.Module):
    """The CNN of the fine-grained pruning example for MNIST and Fashion-MNIST; 228,010 parameters.

    Kept as published, with what makes it awkward to compress: functional dropout, a hard-coded view, log-softmax.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5)
        self.conv2 = nn.Conv2d(32, 32, kernel_size=5)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=5)
        self.fc1 = nn.Linear(3 * 3 * 64, 256)
        self.fc2 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) to log-probabilities (N, 10)."""
        x = F.relu(self.conv1(x))  # (N, 32, 24, 24)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 32, 10, 10)
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(F.max_pool2d(self.conv3(x), 2))  # (N, 64, 3, 3)
        x = F.dropout(x, p=0.5, training=self.training)
        x = x.view(-1, 3 * 3 * 64)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


def digits_cnn() -> nn.Sequential:
    """A small CNN for the 8×8 digits: (N, 1, 8, 8) to logits (N, 10); 46,650 parameters.

    Made of torch's own classes alone, so that the whole model can be saved and loaded without trusting anything.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (N, 32, 4, 4)
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 80),
        nn.ReLU(),
        nn.Linear(80, 10),
    )


def mlp(width: int = 2000, depth: int = 3, features: int = 28 * 28, classes: int = 10) -> nn.Sequential:
    """``depth`` hidden layers of ``width`` units with ReLU: samples of ``features`` values, of any shape, to logits."""
    widths = [features, *[width] * depth]
    hidden = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


def lenet_300_100() -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998) with ReLU: images (N, 1, 28, 28) to logits (N, 10); 266,610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(28 * 28, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Sequential:
    """Caffe's LeNet-5, 20-50-500, which Han et al. 2015 prune: (N, 1, 28, 28) to logits (N, 10); 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, kernel_size=5),
        nn.MaxPool2d(2),  # (N, 20, 12, 12)
        nn.Conv2d(20, 50, kernel_size=5),
        nn.MaxPool2d(2),  # (N, 50, 4, 4)
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def mnist_mlp(hidden: int = 256, dropout: float = 0.15) -> nn.Sequential:
    """One hidden layer with sigmoid and dropout: (N, 1, 28, 28) to logits (N, 10); 203,530 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(28 * 28, hidden), nn.Sigmoid(), nn.Dropout(dropout), nn.Linear(hidden, 10)
    )


def alexnet(classes: int = 3, fc_parameter: int = 3000, width: float = 1.0) -> nn.Module:
    """torchvision's AlexNet (Krizhevsky 2014) with ``fc_parameter`` units in both hidden layers of its classifier.

    Images (N, 3, S, S) with S >= 63 to logits (N, classes). The convolutions have ``width`` times their channels.
    """
    ensure_operators()
    from torchvision.models import AlexNet

    model: nn.Module = AlexNet()
    _widen(model, width)
    model.classifier = _classifier(round(256 * width) * 6 * 6, fc_parameter, classes)
    return model


def vgg16(classes: int = 10, fc_parameter: int = 1024, width: float = 0.25) -> nn.Module:
    """torchvision's VGG-16 (Simonyan & Zisserman 2015), ``width`` times as wide, on small images.

    Images (N, 3, 32, 32) to logits (N, classes). The classifier sees the last 1 x 1 map as it is, where torchvision
    repeats it to 7 x 7: that would be 49 copies of every weight. Batch normalisation after every convolution (its
    VGG-16-BN), without which a net as deep does not start to learn in a few epochs.
    """
    ensure_operators()
    from torchvision.models.vgg import VGG, cfgs, make_layers

    channels = [entry if entry == "M" else round(int(entry) * width) for entry in cfgs["D"]]
    model: nn.Module = VGG(make_layers(channels, batch_norm=True), num_classes=classes)
    model.avgpool = nn.Identity()
    model.classifier = _classifier(int(channels[-2]), fc_parameter, classes)
    return model


def _classifier(features: int, hidden: int, classes: int) -> nn.Sequential:
    """The three fully connected layers that AlexNet and VGG end with."""
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )


def _widen(model: nn.Module, width: float) -> None:
    """Replace every convolution of ``model.features`` by one with ``width`` times the channels."""
    if width == 1.0:
        return
    channels, features = 3, model.get_submodule("features")
    for name, layer in list(features.named_children()):
        if isinstance(layer, nn.Conv2d):
            wider = round(layer.out_channels * width)
            new = nn.Conv2d(channels, wider, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
            setattr(features, name, new)
            channels = wider


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, mean of the outputs over the words, linear head."""

    def __init__(
        self,
        vocabulary: int,
        embedding: int = 64,
        hidden: int = 128,
        layers: int = 2,
        classes: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Word ids (N, T) int64, 0 = padding at the end, to logits (N, classes).

        The mean over a mask exports as four plain operators; packed sequences do not export with a dynamic batch.
        """
        outputs, _ = self.lstm(self.embedding(ids))  # (N, T, hidden)
        words = (ids != 0).unsqueeze(-1).to(outputs.dtype)  # (N, T, 1)
        mean = (outputs * words).sum(dim=1) / torch.clamp(words.sum(dim=1), min=1.0)  # an all-padding row gives 0
        logits: Tensor = self.head(self.dropout(mean))
        return logits
