"""How sure a share, a mean or a drop is: 95 % intervals from the samples that it was measured on."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
RESAMPLES = 2000  # of a bootstrap: its two ends then vary by about 2 % of the interval's width

_CHUNK = 2**22  # sample numbers drawn at once: 32 MB

Interval = tuple[float, float]  # low, high


def share_interval(count: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The Wilson interval of a share (Wilson 1927): ``count`` of ``n`` samples, n at least 1."""
    found = stats.binomtest(count, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(found.low), float(found.high)


def drop_interval(lost: int, won: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of the drop (lost - won) / n between two models that answered the same samples.

    Only samples that one model answers rightly and the other not tell anything, and of a good compression there are
    few: the normal approximations fall short there. Of those of Agresti and Min (2005), Bonett and Price (2012),
    Newcombe (1998, method 10) and Tango, this is the one whose upper end, which a gate relies on, holds its level
    throughout (tests/test_measurement_intervals.py). Tango 1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design".

    Args:
        lost: Samples that only the first model answers rightly.
        won: Samples that only the second does.
        n: All samples, at least 1.
        confidence: Two-sided; of 0.9 the upper end is a one-sided bound of 95 %.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    drop = (lost - won) / n

    def beyond(true: float, end: float) -> float:
        return _score(true, lost, won, n) + end

    low = -1.0 if drop == -1 else float(optimize.brentq(beyond, -1, drop, args=(-z,)))
    high = 1.0 if drop == 1 else float(optimize.brentq(beyond, drop, 1, args=(z,)))
    return low, high


def _score(true: float, lost: int, won: int, n: int) -> float:
    """How many standard deviations the drop lies above ``true``, were that the drop of all samples there are."""
    linear = (2 * n - lost + won) * true - lost - won
    constant = -won * true * (1 - true)
    # The share of won samples that makes the counts most likely, given the drop.
    share = (sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    distance, variance = lost - won - n * true, n * (2 * share + true * (1 - true))
    if distance == 0:
        return 0.0
    return distance / sqrt(max(variance, np.finfo(float).tiny))


def mean_interval(values: NDArray[np.float64], seed: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of one value a sample: that of a share where all are 0 or 1, else a bootstrap.

    Args:
        values: (N,) at least one.
    """
    if np.isin(values, (0, 1)).all():
        return share_interval(int(values.sum()), len(values), confidence)
    return _bootstrap_mean(values, seed, confidence)


def mean_drop_interval(
    reference: NDArray[np.float64], changed: NDArray[np.float64], seed: int, confidence: float = CONFIDENCE
) -> Interval:
    """The interval of the mean of reference - changed, sample by sample: `drop_interval` where all are 0 or 1."""
    if np.isin(reference, (0, 1)).all() and np.isin(changed, (0, 1)).all():
        lost, won = int((reference > changed).sum()), int((changed > reference).sum())
        return drop_interval(lost, won, len(reference), confidence)
    return _bootstrap_mean(reference - changed, seed, confidence)


def percentile_interval(found: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of what a bootstrap found (Efron 1979): between its tails.

    Args:
        found: (R,) the figure, for each resample.
    """
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _bootstrap_mean(values: NDArray[np.float64], seed: int, confidence: float) -> Interval:
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // len(values))
    means = [
        values[generator.integers(0, len(values), (min(rows, RESAMPLES - done), len(values)))].mean(axis=1)
        for done in range(0, RESAMPLES, rows)
    ]
    return percentile_interval(np.concatenate(means), confidence)
