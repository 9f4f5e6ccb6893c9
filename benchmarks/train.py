"""Train the dense models that the recipes in pipelines/ compress.

    python -m benchmarks.train cnn            # checkpoints/cnn/model.pt, about 5 minutes on 2 cores
    python -m benchmarks.train mobilenetv2
    python -m benchmarks.train lstm
    python -m benchmarks.train lenet-300-100-fashion lenet-300-100-mnist lenet-5-fashion lenet-5-mnist
    python -m benchmarks.train resnet18 mobilenetv3 vit    # beside the three above: what quantization is tried on
    python -m benchmarks.train mlp-256 alexnet-half vgg16-quarter    # what iterative pruning and the curves start from
    python -m benchmarks.train mlp-3x2000     # and mlp-4x3000, alexnet: what `compress reduce` reduces

Only the training split is used; validation and test accuracy are printed at the end. Same seed, same weights (on one
machine with one thread count). Each checkpoint gets a folder of its own under --out, with what a model needs beside it.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.reviews import fetch_reviews
from benchmarks.three_classes import fetch_three_classes
from compress.data import Data, DataOptions, Tokenizer, load_data, read_texts
from compress.files import write_atomically
from compress.measurement import outputs_of
from compress.measurement.accuracy import accuracy
from compress.models.reference import (
    FineGrainedCNN,
    LSTMClassifier,
    alexnet,
    lenet_5,
    lenet_300_100,
    mlp,
    mnist_mlp,
    vgg16,
)
from compress.models.torchvision_compat import ensure_operators
from compress.training import FineTuneConfig, finetune, plan_steps
from compress.values import Model


@dataclass(frozen=True)
class Trained:
    """What is trained, on what, and how."""

    module: nn.Module
    data: Data
    config: FineTuneConfig
    epochs: float  # 0: its weights are trained already
    whole: bool  # save the module itself (torch's and torchvision's classes), else its state dict


def cnn(folder: Path, seed: int) -> Trained:
    """The fine-grained pruning CNN on Fashion-MNIST."""
    torch.manual_seed(seed)
    data = load_data("fashion-mnist", DataOptions())
    return Trained(FineGrainedCNN(), data, FineTuneConfig(batch_size=128, learning_rate=0.002), 5, whole=False)


def lenet_300_100_fashion(folder: Path, seed: int) -> Trained:
    """LeNet-300-100 on Fashion-MNIST."""
    return _small(lenet_300_100, "fashion-mnist", 12, seed)


def lenet_300_100_mnist(folder: Path, seed: int) -> Trained:
    """LeNet-300-100 on 5,000 images of MNIST."""
    return _small(lenet_300_100, "mnist-5k", 40, seed)


def lenet_5_fashion(folder: Path, seed: int) -> Trained:
    """LeNet-5 on Fashion-MNIST."""
    return _small(lenet_5, "fashion-mnist", 8, seed)


def lenet_5_mnist(folder: Path, seed: int) -> Trained:
    """LeNet-5 on 5,000 images of MNIST."""
    return _small(lenet_5, "mnist-5k", 30, seed)


def _small(make: Callable[[], nn.Module], source: str, epochs: float, seed: int) -> Trained:
    torch.manual_seed(seed)
    config = FineTuneConfig(batch_size=128, learning_rate=0.001)
    return Trained(make(), load_data(source, DataOptions()), config, epochs, whole=True)


def mobilenetv2(folder: Path, seed: int) -> Trained:
    """torchvision's MobileNetV2 with 10 classes on 12,800 images of Fashion-MNIST, grey repeated to three channels."""
    return _torchvision("mobilenet_v2", {}, 12_800, 8, 0.003, seed)


def resnet18(folder: Path, seed: int) -> Trained:
    """torchvision's ResNet-18 with 10 classes on 12,800 images of Fashion-MNIST."""
    return _torchvision("resnet18", {}, 12_800, 6, 0.002, seed)


def mobilenetv3(folder: Path, seed: int) -> Trained:
    """torchvision's MobileNetV3-Small with 10 classes on 25,600 images of Fashion-MNIST."""
    return _torchvision("mobilenet_v3_small", {}, 25_600, 10, 0.003, seed)


def vit(folder: Path, seed: int) -> Trained:
    """torchvision's vision transformer, small: 4 blocks, 4 heads, 64 wide, patches of 4 pixels; 25,600 images."""
    shape = {"image_size": 28, "patch_size": 4, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return _torchvision("VisionTransformer", shape, 25_600, 10, 0.002, seed)


def _torchvision(name: str, arguments: dict[str, int], limit: int, epochs: int, rate: float, seed: int) -> Trained:
    """A model of torchvision's with 10 classes, on Fashion-MNIST at 28 px, grey repeated to three channels."""
    ensure_operators()
    import torchvision

    torch.manual_seed(seed)
    data = load_data("fashion-mnist", DataOptions(channels=3, limit=limit))
    module = getattr(torchvision.models, name)(num_classes=10, **arguments)
    return Trained(module, data, FineTuneConfig(batch_size=128, learning_rate=rate), epochs, whole=True)


def lstm(folder: Path, seed: int) -> Trained:
    """A two-layer LSTM on movie-review sentences: is the mean rating above 0?"""
    reviews = fetch_reviews(folder)
    options = DataOptions(text_column="2", label_column="1", label_threshold=0.0)
    tokenizer = Tokenizer.build(read_texts(reviews, options))
    vocabulary = folder / "vocab.json"
    write_atomically(vocabulary, tokenizer.to_json())
    torch.manual_seed(seed)
    data = load_data(f"csv:{reviews}", DataOptions(**{**vars(options), "vocabulary": vocabulary}))
    # Of three settings tried, the best on validation: the set is small, and an LSTM learns it by heart.
    config = FineTuneConfig(batch_size=64, learning_rate=0.004, weight_decay=0.1)
    return Trained(LSTMClassifier(len(tokenizer), dropout=0.5), data, config, 6, whole=False)


def mlp_3x2000(folder: Path, seed: int) -> Trained:
    """Three hidden layers of 2,000 units on Fashion-MNIST."""
    return _mlp(2000, 3, seed)


def mlp_4x3000(folder: Path, seed: int) -> Trained:
    """Four hidden layers of 3,000 units on Fashion-MNIST."""
    return _mlp(3000, 4, seed, epochs=2)


def _mlp(width: int, depth: int, seed: int, epochs: float = 6) -> Trained:
    torch.manual_seed(seed)
    data = load_data("fashion-mnist", DataOptions())
    return Trained(mlp(width, depth), data, FineTuneConfig(batch_size=128, learning_rate=0.0005), epochs, whole=True)


def alexnet_3000(folder: Path, seed: int) -> Trained:
    """torchvision's AlexNet with hidden layers of 3,000 units, on 6,000 images of three Fashion-MNIST classes."""
    images = fetch_three_classes(folder)
    torch.manual_seed(seed)
    data = load_data(f"npz:{images}", DataOptions(channels=3, size=64, limit=6000))
    return Trained(alexnet(), data, FineTuneConfig(batch_size=64, learning_rate=0.0003), 4, whole=True)


def mlp_256(folder: Path, seed: int) -> Trained:
    """The sigmoid MLP 784-256-10 on 4,096 images of MNIST; another seed is another split too, since test is small."""
    torch.manual_seed(seed)
    data = load_data("mnist-5k", DataOptions(test=0.09, limit=4096, split_seed=seed))
    config = FineTuneConfig(optimizer="sgd", learning_rate=0.01, schedule="constant", warm_up=0, batch_size=32)
    return Trained(mnist_mlp(), data, config, 40, whole=True)


def alexnet_half(folder: Path, seed: int) -> Trained:
    """AlexNet with half of its channels and hidden layers of 1,024 units, 25,600 images of Fashion-MNIST at 64 px."""
    torch.manual_seed(seed)
    data = load_data("fashion-mnist", DataOptions(channels=3, size=64, limit=25_600))
    config = FineTuneConfig(batch_size=128, learning_rate=0.001)
    return Trained(alexnet(10, 1024, width=0.5), data, config, 8, whole=True)


def vgg16_quarter(folder: Path, seed: int) -> Trained:
    """VGG-16 with a quarter of its channels, hidden layers of 1,024 units, 25,600 images of Fashion-MNIST at 32 px."""
    torch.manual_seed(seed)
    data = load_data("fashion-mnist", DataOptions(channels=3, size=32, limit=25_600))
    config = FineTuneConfig(batch_size=128, learning_rate=0.001)
    return Trained(vgg16(10, 1024, width=0.25), data, config, 8, whole=True)


MODELS: dict[str, Callable[[Path, int], Trained]] = {
    "cnn": cnn,
    "lenet-300-100-fashion": lenet_300_100_fashion,
    "lenet-300-100-mnist": lenet_300_100_mnist,
    "lenet-5-fashion": lenet_5_fashion,
    "lenet-5-mnist": lenet_5_mnist,
    "mobilenetv2": mobilenetv2,
    "resnet18": resnet18,
    "mobilenetv3": mobilenetv3,
    "vit": vit,
    "lstm": lstm,
    "mlp-256": mlp_256,
    "alexnet-half": alexnet_half,
    "vgg16-quarter": vgg16_quarter,
    "mlp-3x2000": mlp_3x2000,
    "mlp-4x3000": mlp_4x3000,
    "alexnet": alexnet_3000,
}


def train(name: str, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fit(name, MODELS[name](folder, seed), folder, seed)


def fit(name: str, trained: Trained, folder: Path, seed: int) -> None:
    """Train a model, write ``folder``/model.pt, and print its accuracy on validation and test."""
    started, told = time.perf_counter(), 0.0

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        nonlocal told
        if time.perf_counter() - told > 15 or done == total:
            told = time.perf_counter()
            print(f"{label} {done}/{total} {note}", file=sys.stderr, flush=True)

    split, config = trained.data.train, trained.config
    if trained.epochs > 0:
        steps = plan_steps(split, config, trained.epochs)
        finetune(trained.module, None, split, config, steps=steps, seed=seed, progress=progress, label=name)
    content = io.BytesIO()
    torch.save(trained.module if trained.whole else trained.module.state_dict(), content)
    write_atomically(folder / "model.pt", content.getvalue())
    model = Model(trained.module, trained.data.inputs)
    for split in (trained.data.validation, trained.data.test):
        found = accuracy(outputs_of(model, split))
        print(f"{name} {split.name}: {found.value:.4f} ({found.low:.4f}-{found.high:.4f}, n={found.n})")
    print(f"{folder / 'model.pt'}: {time.perf_counter() - started:.0f} s, torch {torch.__version__}, seed {seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--out", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.models:
        train(name, options.out / name, options.seed)


if __name__ == "__main__":
    main()
