"""``images:DIR``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import DataOptions, load_data
from compress.errors import DataError


def write_image(path: Path, value: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 0, 0)).save(path)


def write_classes(folder: Path, names: tuple[str, ...] = ("cat", "ant"), each: int = 6) -> None:
    for label, name in enumerate(sorted(names)):
        for number in range(each):
            write_image(folder / name / f"{number}.png", 100 * label + number)


def test_each_folder_is_a_class_in_sorted_order(tmp_path: Path) -> None:
    write_classes(tmp_path)
    data = load_data(f"images:{tmp_path}")
    assert data.class_names == ("ant", "cat")
    assert data.inputs[0].shape == (3, 5, 6)
    (batch,), found = data.test.fetch(np.arange(12))
    assert found is not None
    assert found.tolist() == [0] * 6 + [1] * 6
    red = [*range(6), *range(100, 106)]
    torch.testing.assert_close(batch[:, 0, 0, 0], torch.tensor(red) / 255)


def test_train_and_val_and_test_folders_are_splits_of_their_own(tmp_path: Path) -> None:
    for part, each in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(tmp_path / part, each=each)
    data = load_data(f"images:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 6)


def test_a_train_folder_alone_is_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, ("train", "bus"))
    assert load_data(f"images:{tmp_path}").class_names == ("bus", "train")


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", ("ant", "dog"))
    with pytest.raises(DataError, match=r"dog are not among train's: ant, cat"):
        load_data(f"images:{tmp_path}")


def test_unequal_sizes_need_a_size(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(tmp_path / "cat" / "large.png", 3, (9, 9))
    with pytest.raises(DataError, match=r"large.png is 9x9 .* --size"):
        load_data(f"images:{tmp_path}")
    data = load_data(f"images:{tmp_path}", DataOptions(size=4, channels=1))
    assert data.inputs[0].shape == (1, 4, 4)
    assert next(data.train.batches(5))[0][0].shape == (5, 1, 4, 4)


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        load_data(f"images:{tmp_path}")


def test_an_image_that_is_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_classes(tmp_path)
    cut = tmp_path / "cat" / "cut.png"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    data = load_data(f"images:{tmp_path}", DataOptions(size=4))
    with pytest.raises(DataError, match=r"cut\.png: not a readable image"):
        data.train.fetch(np.arange(13))


def test_more_than_8_bits_are_refused_rather_than_cut_off(tmp_path: Path) -> None:
    write_image(tmp_path / "ant" / "deep.png", 1000, mode="I;16")
    with pytest.raises(DataError, match="more than 8 bits"):
        load_data(f"images:{tmp_path}")


@pytest.mark.parametrize("folder", ["absent", "empty", "hollow"])
def test_folders_without_images_are_refused_with_their_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=folder):
        load_data(f"images:{tmp_path / folder}")


def test_images_without_class_folders_can_be_used_without_labels(tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / f"{number}.png", number)
    with pytest.raises(DataError, match="--no-labels"):
        load_data(f"images:{tmp_path}")
    data = load_data(f"images:{tmp_path}", DataOptions(labels=False))
    assert not data.labelled
    assert next(data.train.batches(2))[1] is None


def test_the_sha256_covers_contents_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_classes(tmp_path / name)
    first, same = (load_data(f"images:{tmp_path / name}").sha256 for name in ("one", "two"))
    write_image(tmp_path / "two" / "cat" / "0.png", 77)
    assert first == same
    assert load_data(f"images:{tmp_path / 'two'}").sha256 != first
