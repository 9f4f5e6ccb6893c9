"""The three classes of Fashion-MNIST that AlexNet is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import three_classes
from compress.data import Data, DataOptions, load_data


def test_it_holds_the_wanted_classes_as_they_were_and_reads_as_a_data_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    whole = {"x_train": rng.integers(0, 256, (40, 1, 6, 6), np.uint8), "y_train": np.arange(40) % 10}
    whole |= {"x_test": rng.integers(0, 256, (20, 1, 6, 6), np.uint8), "y_test": np.arange(20) % 10}
    np.savez(tmp_path / "whole.npz", **whole)
    data = load_data(f"npz:{tmp_path / 'whole.npz'}", DataOptions(calibration=4))

    def fake(name: str, options: DataOptions) -> Data:
        assert name == "fashion-mnist"
        return data

    monkeypatch.setattr(three_classes, "load_data", fake)
    path = three_classes.fetch_three_classes(tmp_path)
    found = load_data(f"npz:{path}", DataOptions(calibration=2, channels=3, size=8))
    assert (len(found.train) + len(found.validation), len(found.test), found.classes) == (12, 6, 3)
    with np.load(path) as arrays:
        wanted = np.isin(whole["y_test"], three_classes.CLASSES)
        np.testing.assert_array_equal(arrays["x_test"], whole["x_test"][wanted])
        assert sorted(arrays["y_train"]) == [0] * 4 + [1] * 4 + [2] * 4


def test_it_is_made_once(tmp_path: Path) -> None:
    (tmp_path / three_classes.FILE_NAME).write_bytes(b"there")
    assert three_classes.fetch_three_classes(tmp_path).read_bytes() == b"there"
