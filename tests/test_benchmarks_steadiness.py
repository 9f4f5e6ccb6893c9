"""The script that shows the benchmark to be steady: its files, its figures, its busy processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import steadiness


def ratio(value: float, low: float, high: float, significant: bool) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "significant": significant}


def test_the_cnn_without_other_widths_is_the_published_one(tmp_path: Path) -> None:
    shapes = {name: tuple(p.shape) for name, p in steadiness.CNN().named_parameters()}
    published = {name: tuple(p.shape) for name, p in steadiness.FineGrainedCNN().named_parameters()}
    assert shapes == published
    session = onnxruntime.InferenceSession(steadiness.written(tmp_path, 16, 16, 40))
    (answer,) = session.run(None, steadiness.FEEDS)
    assert np.asarray(answer).shape == (1, 10)


def test_a_run_compares_a_file_with_itself_and_with_a_slower_one(tmp_path: Path) -> None:
    base, slow = steadiness.written(tmp_path), steadiness.written(tmp_path, 32, 96, 64)
    options = argparse.Namespace(runs=1, seconds=0.05, launches=2, threads=1)
    found = steadiness.alike_and_slower(base, slow, options)
    assert found["slower"][0]["value"] < 0.9
    assert 0.5 < found["same"][0]["value"] < 2
    assert len(found["launch_spread"]) == 1


def test_the_verdict_counts_what_was_promised() -> None:
    found = {
        "same": [ratio(1.01, 0.99, 1.02, False), ratio(0.95, 0.92, 0.98, True)],
        "slower": [ratio(0.9, 0.88, 0.92, True), ratio(0.97, 0.93, 1.01, False)],
        "launch_spread": [0.01, 0.03],
    }
    loaded = {"0": [ratio(3.0, 2.9, 3.1, True)], "1": [ratio(3.3, 3.2, 3.4, True)]}
    told = steadiness.verdict(found, loaded, ratio(0.91, 0.9, 0.92, True))
    assert told["same_significant"] == 1
    assert told["same_largest_difference"] == pytest.approx(0.05)
    assert told["same_interval_holds_1"] == 1
    assert told["slower_found"] == 1
    assert told["slower_interval_holds_the_true"] == 1
    assert told["largest_distance_from_quiet"] == pytest.approx({"0": 0.0, "1": 0.1})


def test_busy_processes_are_gone_afterwards() -> None:
    with steadiness.busy(2) as started:
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode is not None for process in started)
