"""Train the dense models of the workloads whose data does not come with a package: CIFAR-10, IMDB, ImageNet.

    python -m benchmarks.larger resnet18-cifar10 --data-root DIR     # of cifar-10-batches-py
    python -m benchmarks.larger lstm-imdb --data-root DIR            # of imdb.csv, with columns review and sentiment
    python -m benchmarks.larger resnet50-imagenet --data-root DIR    # of train/<class>/ and val/<class>/

As benchmarks.train does it, which see. ResNet-50 is not trained: torchvision's published weights are taken, as anyone
who prunes it would, and downloaded by torchvision where they are not in torch's cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.train import Trained, fit
from benchmarks.workloads import VOCABULARY, WORKLOADS, data_of
from compress.data import Data, Tokenizer, load_data, read_texts
from compress.files import write_atomically
from compress.models import ensure_operators
from compress.models.reference import LSTMClassifier
from compress.training import FineTuneConfig

WORDS = 200  # of a review: IMDB's median is 174


def resnet18_cifar10(folder: Path, seed: int, root: Path) -> Trained:
    """torchvision's ResNet-18 with a stem for 32 px: a 3x3 convolution, no stride, no pooling (He et al. 2015)."""
    ensure_operators()
    import torchvision

    data = _data("resnet18-cifar10", folder, root)
    torch.manual_seed(seed)
    module = torchvision.models.resnet18(num_classes=10)
    module.conv1, module.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return Trained(module, data, FineTuneConfig(batch_size=128, learning_rate=0.002), 30, whole=True)


def lstm_imdb(folder: Path, seed: int, root: Path) -> Trained:
    """A two-layer LSTM on movie reviews: positive or negative?"""
    trained = WORKLOADS["lstm-imdb"].trained
    texts = read_texts(root / "imdb.csv", trained.options)
    tokenizer = Tokenizer.build(texts, max_tokens=WORDS)
    write_atomically(folder / VOCABULARY, tokenizer.to_json())
    torch.manual_seed(seed)
    config = FineTuneConfig(batch_size=64, learning_rate=0.004, weight_decay=0.1)
    module = LSTMClassifier(len(tokenizer), dropout=0.5)
    return Trained(module, _data("lstm-imdb", folder, root), config, 4, whole=False)


def resnet50_imagenet(folder: Path, seed: int, root: Path) -> Trained:
    """torchvision's ResNet-50 with its second weights."""
    ensure_operators()
    import torchvision

    module = torchvision.models.resnet50(weights=torchvision.models.ResNet50_Weights.IMAGENET1K_V2)
    return Trained(module, _data("resnet50-imagenet", folder, root), FineTuneConfig(), 0, whole=True)


def _data(name: str, folder: Path, root: Path) -> Data:
    return load_data(*data_of(WORKLOADS[name].trained, folder, root))


MODELS: dict[str, Callable[[Path, int, Path], Trained]] = {
    "resnet18-cifar10": resnet18_cifar10,
    "lstm-imdb": lstm_imdb,
    "resnet50-imagenet": resnet50_imagenet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    fit(options.model, MODELS[options.model](folder, options.seed, options.data_root), folder, options.seed)


if __name__ == "__main__":
    main()
