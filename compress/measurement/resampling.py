"""How sure a percentile of latencies is, and the ratio of two: 95 % intervals from launches and rounds drawn again.

Samples of one round are not independent of each other, and rounds of one launch share where its memory lies. So whole
launches are drawn, and within each drawn one whole rounds (a two-stage bootstrap: Davison and Hinkley 1997, "Bootstrap
methods and their application", 3.8), as timings ask for (Kalibera and Jones 2013, "Rigorous benchmarking in reasonable
time"). Launches are few, and a plain percentile interval of few is too narrow: its ends are moved out by as much as a t
interval is wider than a normal one (the expanded percentile interval of Hesterberg 2015, "What teachers should know
about the bootstrap"). No draw goes beyond the launches that there are, and of two or three these hold the truth too
seldom, however far the ends are moved: there it is a t interval with the bootstrap's standard error, of logarithms.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from compress.measurement.intervals import expanded_interval, normal_reach

RESAMPLES = 2000

_FEWEST = 4  # to whose range an interval may keep: of three it held the truth in 92 % of 300 trials, of two in 75 %


def draw(launches: int, rounds: int, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Draw launches with replacement, and for each of them rounds of it; of a single launch only its rounds.

    Returns:
        (resamples, launches · rounds): how often each round is in a resample; every row sums to the number of rounds.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.integers(launches, size=(resamples, launches))
    drawn = generator.multinomial(rounds, np.full(rounds, 1 / rounds), size=(resamples, launches))
    counts = np.zeros((resamples, launches, rounds), np.int64)
    np.add.at(counts, (np.arange(resamples)[:, None], chosen), drawn)
    return counts.reshape(resamples, -1)


def percentiles(samples: NDArray[np.float64], percent: float, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The percentile of every resample, as `numpy.percentile` of its samples put together.

    Args:
        samples: (rounds, calls).
        percent: 0..100.
        counts: (resamples, rounds) of `draw`.

    Returns:
        (resamples,)
    """
    values = samples.ravel()
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    before = np.zeros((len(values) + 1, len(samples)), np.int32)  # of each round among the first 0, 1, … samples
    np.cumsum(order[:, None] // samples.shape[1] == np.arange(len(samples)), axis=0, out=before[1:])
    place = percent / 100 * (len(values) - 1)
    low = ordered[_places(floor(place), before, counts)]
    high = ordered[_places(ceil(place), before, counts)]
    found: NDArray[np.float64] = low + (high - low) * (place - floor(place))
    return found


def _places(rank: int, before: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in the order the sample of that rank (from 0) of every resample lies: found by bisection, all at once."""
    low, high = np.zeros(len(counts), np.int64), np.full(len(counts), len(before) - 2)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (before[middle + 1] * counts).sum(axis=1) > rank
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def interval(found: NDArray[np.float64], independent: int) -> tuple[float, float]:
    """The expanded percentile interval of what the resamples gave; of two or three launches a t interval.

    Args:
        found: (resamples,) above 0.
        independent: What was drawn, launches or rounds: how many there are; of a single one the two ends are all there
            is to say.
    """
    if independent < 2:
        return float(found.min()), float(found.max())
    if independent >= _FEWEST:
        return expanded_interval(found, independent)
    logs = np.log(found)
    low, high = np.exp(logs.mean() + normal_reach(independent) * logs.std() * np.array([-1, 1]))
    return float(low), float(high)
