"""``npz:FILE``, and what happens to arrays on their way into a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from compress.data import DataOptions, load_data
from compress.data.arrays import About, Arrays, from_arrays
from compress.data.preprocessing import ImagePreprocessing
from compress.data.splits import Data
from compress.errors import DataError

FILE = "data.npz"


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / FILE, **arrays)
    return f"npz:{folder / FILE}"


def images(count: int = 20, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (1, 6, 6))), dtype=np.uint8)


def labels(count: int = 20) -> np.ndarray:
    return np.arange(count) % 3


def everything(data: Data) -> list[torch.Tensor]:
    return [x for split in (data.train, data.validation, data.test) for batch in split.batches(7) for x in batch[0]]


def test_8_bit_images_are_scaled_to_one_and_keep_their_labels(tmp_path: Path) -> None:
    x, y = images(), labels()
    data = load_data(saved(tmp_path, x=x, y=y))
    (batch,), found = data.train.fetch(np.array([4, 2]))
    assert found is not None
    assert torch.equal(batch, torch.from_numpy(x[[4, 2]]).float() / 255)
    assert found.tolist() == [1, 2]
    assert found.dtype == torch.int64
    assert (data.classes, data.inputs[0].name, data.inputs[0].shape) == (3, "input", (1, 6, 6))


def test_an_own_test_part_is_kept_in_order(tmp_path: Path) -> None:
    x, y = images(25), labels(25)
    data = load_data(saved(tmp_path, x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:]))
    (batch,), found = next(data.test.batches(5))
    assert torch.equal(batch, torch.from_numpy(x[20:]).float() / 255)
    assert found is not None
    assert found.tolist() == y[20:].tolist()


def test_arrays_without_y_are_unlabelled(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, x=images()))
    assert not data.labelled
    assert not data.train.labelled
    assert next(data.train.batches(2))[1] is None


def test_labels_can_be_ignored(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, x=images(), y=labels()), DataOptions(labels=False))
    assert data.classes is None


def test_floats_are_taken_as_they_are_and_integers_stay_integers(tmp_path: Path) -> None:
    floats = np.linspace(-3, 300, 40).reshape(20, 2)
    (batch,), _ = load_data(saved(tmp_path, x=floats)).train.fetch(np.arange(20))
    assert torch.equal(batch, torch.from_numpy(floats).float())
    tokens = load_data(saved(tmp_path, x=np.arange(40, dtype=np.int32).reshape(20, 2)))
    assert tokens.inputs[0].dtype == "int64"


def test_grey_images_without_channels_get_one_and_it_is_said(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, x=images(20, 6, 6)))
    assert data.inputs[0].shape == (1, 6, 6)
    assert "channel axis was added" in data.notes[0]


def test_channels_last_is_not_turned_in_silence(tmp_path: Path) -> None:
    spec = saved(tmp_path, x=images(20, 6, 6, 3))
    assert load_data(spec).inputs[0].shape == (6, 6, 3)
    with pytest.raises(DataError, match=r"\(6, 6, 3\).*transpose\(0, 3, 1, 2\)"):
        load_data(spec, DataOptions(channels=3))


def test_resizing_repeating_and_normalising_happen_in_this_order() -> None:
    x = torch.from_numpy(images(3, 1, 8, 8))
    options = DataOptions(size=4, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 2.0))
    small = functional.interpolate(x.float() / 255, (4, 4), mode="bilinear", align_corners=False, antialias=True)
    expected = torch.cat([(small - 0.1) / 0.5, (small - 0.2) / 0.5, (small - 0.3) / 2.0], dim=1)
    torch.testing.assert_close(ImagePreprocessing.of(options)(x), expected)


def test_colour_becomes_grey_by_luma() -> None:
    green = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    green[:, 1] = 255
    torch.testing.assert_close(ImagePreprocessing(channels=1)(green), torch.full((1, 1, 2, 2), 0.587))


def test_a_mean_for_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 values for 1 channels"):
        load_data(saved(tmp_path, x=images()), DataOptions(mean=(0.0, 0.0), std=(1.0, 1.0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nan_and_infinity_are_refused_with_the_first_sample_and_the_count(tmp_path: Path, bad: float) -> None:
    x = np.zeros((20, 4))
    x[[7, 9], 1] = bad
    with pytest.raises(DataError, match="2 samples hold NaN or infinity, the first is sample 7"):
        load_data(saved(tmp_path, x=x))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.linspace(0, 1, 20), "no class number"),
        (np.full(20, np.nan), "no class number"),
        (np.full(20, -1), "20 labels are no class number, the first is -1 of sample 0"),
        (np.zeros(19, int), "19 labels for 20 samples"),
        (np.eye(20, dtype=int), "argmax"),
        (np.array(["a"] * 20), "labels of type"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path: Path, y: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data(saved(tmp_path, x=images(), y=y))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros(3)}, "found the arrays z; needed are x and y"),
        ({}, "found the arrays none"),
        ({"x": np.zeros((0, 4))}, "samples of shape"),
        ({"x": np.zeros(5)}, "samples of shape"),
        ({"x": np.array(["a", "b"] * 10).reshape(10, 2)}, "numbers are needed"),
        ({"x": np.array([{}, 1], dtype=object)}, "not a readable .npz"),
        ({"x_train": np.zeros((9, 4)), "x_test": np.zeros((9, 5))}, "make them the same"),
        ({"x_train": np.zeros((9, 4)), "y_train": np.zeros(9), "x_test": np.zeros((9, 4))}, "only train has labels"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data(saved(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"<html>", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=FILE):
        load_data(f"npz:{tmp_path / FILE}")


def test_a_single_array_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images())
    with pytest.raises(DataError, match="a single array"):
        load_data(f"npz:{tmp_path / 'one.npy'}")
    with pytest.raises(DataError, match="no such file"):
        load_data(f"npz:{tmp_path / 'absent.npz'}")


def test_image_options_for_samples_that_are_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image: size cannot"):
        load_data(saved(tmp_path, x=np.zeros((20, 4))), DataOptions(size=8))


@given(count=st.integers(3, 40), seed=st.integers(0, 100), size=st.integers(1, 9))
def test_the_same_options_give_the_same_sha256_and_the_same_batches(count: int, seed: int, size: int) -> None:
    options = DataOptions(split_seed=seed, size=size)
    one, two = (from_arrays(About("any"), Arrays(images(count), labels(count)), None, options) for _ in range(2))
    assert one.sha256 == two.sha256
    assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(two), strict=True))


def test_other_samples_labels_or_options_give_another_sha256() -> None:
    def sha256(x: np.ndarray, y: np.ndarray, options: DataOptions) -> str:
        return from_arrays(About("any"), Arrays(x, y), None, options).sha256

    x, y = images(), labels()
    changed = x.copy()
    changed[0, 0, 0, 0] ^= 1
    found = {
        sha256(x, y, DataOptions()),
        sha256(changed, y, DataOptions()),
        sha256(x, y[::-1], DataOptions()),
        sha256(x, y, DataOptions(split_seed=1)),
        sha256(x, y, DataOptions(mean=(0.5,), std=(1.0,))),
    }
    assert len(found) == 5
