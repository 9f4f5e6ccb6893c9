"""Trained models and their data: how both are read, and what may be spent on compressing them.

The dense models are those of benchmarks.train. A workload is one of them with a training budget, the same for every
tool that is compared on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from compress.data import DataOptions, Split, Tokenizer
from compress.values import InputSpec

Architecture = Literal["mlp", "cnn", "transformer", "recurrent"]
VOCABULARY = "vocab.json"  # beside a model of texts
LABELS = "labels"  # the array of an npz that is no input

_FLAGS = ("root", "channels", "size", "limit", "text_column", "label_column", "label_threshold", "vocabulary")
_NAMED = {"root": "data_root"}  # those whose name on the command line is another


@dataclass(frozen=True)
class Trained:
    """How a model of benchmarks.train and its data are read."""

    data: str = "fashion-mnist"  # {folder}: of the checkpoint; {root}: of the data
    options: DataOptions = field(default_factory=DataOptions)  # as in its training
    text: bool = False  # vocab.json is beside the model
    factory: str | None = None  # of a state dict; None: model.pt is the module itself
    root: str | None = None  # what has to be in the folder that the user names; None: nothing has to be named


@dataclass(frozen=True)
class Workload:
    """A trained model, and what every tool may spend on it."""

    architecture: Architecture
    trained: Trained
    epochs: float  # of one round of fine-tuning
    min_steps: int  # of one round at least
    learning_rate: float
    batch_size: int = 128
    seeds: tuple[int, ...] = (0,)  # of the dense training and of everything after it
    overrides: tuple[str, ...] = ()  # --set of this project's runs besides


_REVIEWS = DataOptions(text_column="2", label_column="1", label_threshold=0.0)
_LSTM = "compress.models.reference:LSTMClassifier"
_GREY = DataOptions(channels=3, limit=12_800)
_MLP_4X3000 = Trained(
    options=DataOptions(limit=12_800)
)  # its dense training saw all images; the other splits are equal
_CIFAR10 = Trained("cifar10", root="cifar-10-batches-py")
_IMDB = Trained(
    "csv:{root}/imdb.csv",
    DataOptions(text_column="review", label_column="sentiment"),
    text=True,
    factory=_LSTM,
    root="imdb.csv, a row a review, with columns review and sentiment",
)
_IMAGENET = Trained(
    "images:{root}",
    DataOptions(size=224, limit=25_600, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    root="train/<class>/ and val/<class>/ of ImageNet",
)

# What is quantized without pruning (benchmarks.quantization), and what workloads share with it.
MODELS: Mapping[str, Trained] = {
    "cnn": Trained(factory="compress.models.reference:FineGrainedCNN"),
    "mobilenetv2": Trained(options=_GREY),
    "resnet18": Trained(options=_GREY),
    "mobilenetv3": Trained(options=replace(_GREY, limit=25_600)),
    "vit": Trained(options=replace(_GREY, limit=25_600)),
    "lstm": Trained("csv:{folder}/movie_reviews.tsv", _REVIEWS, text=True, factory=_LSTM),
}

_SEEDS = (0, 1, 2)
WORKLOADS: Mapping[str, Workload] = {
    "lenet-300-100-mnist": Workload("mlp", Trained("mnist-5k"), 3, 400, 0.001, seeds=_SEEDS),
    "lenet-5-mnist": Workload("cnn", Trained("mnist-5k"), 3, 400, 0.001, seeds=_SEEDS),
    "lenet-300-100-fashion": Workload("mlp", Trained(), 3, 400, 0.001, seeds=_SEEDS),
    "lenet-5-fashion": Workload("cnn", Trained(), 3, 400, 0.001, seeds=_SEEDS),
    "cnn": Workload("cnn", MODELS["cnn"], 2, 200, 0.002),
    "mlp-4x3000": Workload("mlp", _MLP_4X3000, 1, 100, 0.0005),
    "mobilenetv2": Workload("cnn", MODELS["mobilenetv2"], 2, 200, 0.002),
    "resnet18": Workload("cnn", MODELS["resnet18"], 2, 200, 0.001),
    "vit": Workload("transformer", MODELS["vit"], 1.5, 300, 0.002),
    "lstm": Workload("recurrent", MODELS["lstm"], 2, 200, 0.005, 64, overrides=("sparsify.start=0.8",)),
    "resnet18-cifar10": Workload("cnn", _CIFAR10, 3, 400, 0.002),
    "lstm-imdb": Workload("recurrent", _IMDB, 2, 200, 0.005, 64, overrides=("sparsify.start=0.8",)),
    "resnet50-imagenet": Workload("cnn", _IMAGENET, 1, 200, 0.001, 64),
}


def data_of(trained: Trained, checkpoint: Path, root: Path | None = None) -> tuple[str, DataOptions]:
    """The data of a model: what `load_data` takes.

    Args:
        checkpoint: The folder of model.pt.
        root: The folder that ``trained.root`` asks for.
    """
    folder, place = checkpoint.absolute(), None if root is None else root.absolute()
    vocabulary = folder / VOCABULARY if trained.text else None
    spec = trained.data.format(folder=folder, root=place)
    named = None if spec != trained.data else place  # a spec that tells the folder needs no --data-root
    return spec, replace(trained.options, vocabulary=vocabulary, root=named or trained.options.root)


def data_flags(trained: Trained, checkpoint: Path, root: Path | None = None) -> list[str]:
    """The same as options of the command line."""
    spec, options = data_of(trained, checkpoint, root)
    flags = ["--data", spec]
    for name in options.given(_FLAGS):
        flags += [f"--{_NAMED.get(name, name).replace('_', '-')}", str(getattr(options, name))]
    for name in options.given(("mean", "std")):
        flags += [f"--{name}", ",".join(map(str, getattr(options, name)))]
    return flags


def factory_args(trained: Trained, checkpoint: Path) -> dict[str, int]:
    """Keyword arguments of ``trained.factory``: what the weights alone do not tell."""
    if not trained.text:
        return {}
    return {"vocabulary": len(Tokenizer.from_json((checkpoint / VOCABULARY).read_bytes()))}


def model_flags(trained: Trained, checkpoint: Path) -> list[str]:
    """Options of the command line that load model.pt."""
    if trained.factory is None:
        return []
    arguments = factory_args(trained, checkpoint)
    return ["--factory", trained.factory, *(["--factory-args", json.dumps(arguments)] if arguments else [])]


def write_split(path: Path, split: Split, inputs: Sequence[InputSpec], labels: bool = True) -> None:
    """Write a split in its order as npz: each input (N, …) by name, in the type that the model takes, and labels (N,).

    Args:
        labels: False: leave them out.
    """
    columns, found = split.fetch(split.indices)
    arrays = {
        spec.name: column.numpy().astype(spec.dtype, copy=False) for spec, column in zip(inputs, columns, strict=True)
    }
    if labels and found is not None:
        arrays[LABELS] = found.numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its other argument is a flag
