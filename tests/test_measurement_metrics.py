"""``--metric``: what a function of the user may return, what its interval is, and how its failures are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from compress.errors import MeasurementError
from compress.measurement.accuracy import Outputs
from compress.measurement.intervals import drop_interval, share_interval
from compress.measurement.metrics import Metric, load_metric

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 300)
GOOD = Outputs((np.eye(2)[LABELS] + RNG.normal(0, 0.5, (300, 2))).astype(np.float32), LABELS)
WORSE = Outputs((GOOD.values + RNG.normal(0, 0.8, (300, 2))).astype(np.float32), LABELS)


def metric(function: Any) -> Metric:
    return Metric("./mine.py:f", "f", function)


def right(outputs: Any, labels: Any) -> Any:
    return outputs.argmax(1) == labels


def auc(outputs: Any, labels: Any) -> float:
    """The area under the ROC curve, as the share of pairs of both classes in the right order."""
    ranks = stats.rankdata(outputs[:, 1] - outputs[:, 0])
    ones = int(labels.sum())
    return float((ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(labels) - ones)))


def f1(outputs: Any, labels: Any) -> float:
    found = outputs.argmax(1)
    return float(2 * (found & labels).sum() / (found.sum() + labels.sum()))


def test_one_value_a_sample_gives_their_mean_and_a_paired_interval() -> None:
    ours = metric(right)
    one, other = ours.rate(GOOD), ours.rate(WORSE)
    assert one.value == right(GOOD.values, LABELS).mean()
    told = one.told(0)
    assert (told.low, told.high) == share_interval(int(one.value * 300 + 0.5), 300)
    lost = int((right(GOOD.values, LABELS) & ~right(WORSE.values, LABELS)).sum())
    won = int((right(WORSE.values, LABELS) & ~right(GOOD.values, LABELS)).sum())
    assert other.drop_interval(one, 0) == drop_interval(lost, won, 300)


def test_a_single_number_is_resampled_as_scipy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.metrics.RESAMPLES", 400)
    monkeypatch.setattr("compress.measurement.metrics._SECONDS", 60.0)
    ours = metric(auc)
    told = ours.resample(ours.rate(WORSE), WORSE, 0).told(0)
    assert told.value == auc(WORSE.values, LABELS)
    assert told.resamples == 400
    theirs = stats.bootstrap(
        (np.arange(300),),
        lambda rows: auc(WORSE.values[rows], LABELS[rows]),
        n_resamples=400,
        method="percentile",
        vectorized=False,
    ).confidence_interval
    assert (told.low, told.high) == pytest.approx((theirs.low, theirs.high), abs=0.3 * (theirs.high - theirs.low))


def test_the_drop_of_a_single_number_is_resampled_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.metrics.RESAMPLES", 200)
    ours = metric(f1)
    base = ours.resample(ours.rate(GOOD), GOOD, 0)
    same = ours.resample(ours.rate(GOOD), GOOD, 0)
    assert same.drop_interval(base, 0) == (0.0, 0.0)  # the same samples are drawn for both
    worse = ours.resample(ours.rate(WORSE), WORSE, 0).drop_interval(base, 0)
    assert worse is not None
    assert 0 < worse[0] < base.value - ours.rate(WORSE).value < worse[1]


def test_a_function_too_slow_to_resample_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.metrics._SECONDS", 0.0)
    ours = metric(auc)
    rated = ours.resample(ours.rate(GOOD), GOOD, 0)
    assert (rated.told(0).low, rated.told(0).high, rated.told(0).resamples) == (None, None, 0)
    assert rated.drop_interval(rated, 0) is None


def test_samples_drawn_again_that_have_no_value_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.metrics.RESAMPLES", 400)
    few = Outputs(GOOD.values[:6], np.array([0, 0, 0, 0, 1, 1]))  # a draw without any 1 has no AUC

    def strict(outputs: Any, labels: Any) -> float:
        if len(set(labels)) < 2:
            raise ValueError("one class")
        return auc(outputs, labels)

    ours = metric(strict)
    told = ours.resample(ours.rate(few), few, 0).told(0)
    assert 300 < told.resamples < 400
    assert told.low is not None


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda o, y: 1 / 0, "failed with ZeroDivisionError: division by zero"),
        (lambda o, y: float("nan"), "returned nan; every value must be finite"),
        (lambda o, y: np.where(np.arange(len(o)) == 7, np.inf, 1.0), "returned inf for sample 7"),
        (lambda o, y: np.zeros((len(o), 2)), r"returned an array of shape \(300, 2\)"),
        (lambda o, y: "good", "failed with ValueError: could not convert"),
        (lambda o, y: o.sort(axis=1), "failed with ValueError.*read-only"),
    ],
)
def test_what_a_metric_must_not_do_is_told_with_its_name(function: Any, words: str) -> None:
    with pytest.raises(MeasurementError, match=rf"--metric \./mine\.py:f {words}"):
        metric(function).rate(GOOD)


def test_a_metric_is_loaded_from_a_file_or_a_package(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def near(outputs, labels):\n    return -abs(outputs[:, 0] - labels)\n")
    found = load_metric(f"{tmp_path}/mine.py:near")
    assert found.name == "near"
    assert found.rate(Outputs(np.ones((2, 1), np.float32), np.array([0.5, 1.0]))).value == -0.25
    assert load_metric("numpy:mean").name == "mean"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine", "--metric 'mine' is not of the form"),
        ("./nowhere.py:f", "--metric ./nowhere.py:f: there is no file"),
        ("numpy:nothing", "numpy has no 'nothing'"),
        ("numpy:pi", "--metric numpy:pi is a float; needed is a function"),
    ],
)
def test_a_metric_that_is_not_there_is_told(spec: str, words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        load_metric(spec)
