"""Whether two ways of training differ: over seeds, sample by sample, and "no worse than a margin".

Three questions, three tests. A paired t-test over seeds asks whether the *procedure* loses accuracy: each seed gives
one pair of models that differ in nothing else (Dietterich 1998, "Approximate statistical tests for comparing
supervised classification learning algorithms", on why the unit is the run and not the sample). McNemar's test (1947)
asks whether two *given models* answer a test set differently. Two one-sided tests (Schuirmann 1987) turn the burden of
proof round: a large p of the first two shows nothing, a small p of these shows that the loss is below a margin named
in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compress.errors import MeasurementError
from compress.units import signed

ALPHA = 0.05  # of every decision
CONFIDENCE = 1 - ALPHA
EQUAL = 1e-12  # differences between accuracies that are closer than this are the same

Outcome = Literal["loss", "small loss", "no worse", "undecided"]
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class SeedTests:
    """Paired tests over seeds of the drops d_i = reference_i - changed_i: above 0 is a loss.

    A p-value that cannot be computed is None, and ``reason`` says why; it is never NaN.
    """

    n: int  # seeds
    margin: float  # accuracy, as a fraction: the largest loss that does not matter
    mean: float  # of the drops
    sd: float | None  # of the drops, with n - 1; None: one seed
    low: float | None  # 95 % interval of the mean drop
    high: float | None
    p_different: float | None  # two-sided: H0 mean drop = 0
    p_no_worse: float | None  # one-sided: H0 mean drop >= margin; small: the loss is shown to be below the margin
    p_equivalent: float | None  # TOST: H0 |mean drop| >= margin; small: the two are shown to be within it
    reason: str | None = None  # why there are no p-values


@dataclass(frozen=True)
class McNemar:
    """Samples that exactly one of two models answers rightly, and how likely such an imbalance is by chance."""

    only_reference: int
    only_changed: int
    p: float  # exact, two-sided; 1 where no sample tells the two apart


@dataclass(frozen=True)
class Verdict:
    """What the tests over seeds say together, at a level of 5 % each."""

    outcome: Outcome
    sentence: str


def paired_tests(reference: Sequence[float], changed: Sequence[float], margin: float) -> SeedTests:
    """Paired t-test, its 95 % interval, non-inferiority and equivalence.

    Args:
        reference: Accuracy for each seed, 0..1.
        changed: The same seeds, in the same order.
        margin: Above 0.

    Raises:
        MeasurementError: no pairs, not the same number, a value that is not finite, or a margin of 0.
    """
    if not len(reference) or len(reference) != len(changed):
        raise MeasurementError(f"paired tests need a pair for each seed: got {len(reference)} and {len(changed)}.")
    if not margin > 0:
        raise MeasurementError(f"margin={margin} must be above 0: no number of seeds shows a loss of exactly nothing.")
    drops = np.subtract(reference, changed)
    if not np.isfinite(drops).all():
        raise MeasurementError("paired tests need finite accuracies; at least one of these is NaN or infinite.")
    n, mean = len(drops), float(drops.mean())
    if n < 2:
        reason = "one seed has no spread: give at least two, better five"
        return SeedTests(n, margin, mean, None, None, None, None, None, None, reason)
    if np.ptp(drops) < EQUAL:
        reason = f"the drop is {signed(mean)} for each of {n} seeds: without any spread there is no t-test"
        return SeedTests(n, margin, mean, 0.0, None, None, None, None, None, reason)
    paired = stats.ttest_rel(reference, changed)
    interval = paired.confidence_interval(CONFIDENCE)
    below = float(stats.ttest_1samp(drops, margin, alternative="less").pvalue)
    above = float(stats.ttest_1samp(drops, -margin, alternative="greater").pvalue)
    return SeedTests(
        n=n,
        margin=margin,
        mean=mean,
        sd=float(drops.std(ddof=1)),
        low=float(interval.low),
        high=float(interval.high),
        p_different=float(paired.pvalue),
        p_no_worse=below,
        p_equivalent=max(below, above),  # both one-sided tests must reject: no correction is needed (Schuirmann 1987)
    )


def mcnemar(reference: Right, changed: Right) -> McNemar:
    """McNemar's exact test on one pair of models: a binomial test on the samples where exactly one is right.

    Args:
        reference: (N,) whether the answer was right.
        changed: (N,) the same samples.
    """
    return mcnemar_pooled(reference[None], changed[None])


def mcnemar_pooled(reference: Right, changed: Right) -> McNemar:
    """The same over the pairs of several seeds, where every *sample* counts once.

    A sample counts for the side that answered it rightly in more seeds, and not at all where both did equally often.
    Adding up the pairs of all seeds instead would count a hard sample once a seed, as if these were independent, and
    make p too small. Exact where samples are independent; for one seed it is McNemar's test.

    Args:
        reference: (S, N) whether the answer was right, for each seed and sample.
        changed: (S, N) likewise.
    """
    if reference.shape != changed.shape or reference.ndim != 2:
        raise MeasurementError(
            f"McNemar's test needs both models' answers to the same samples: got {reference.shape} and {changed.shape}."
        )
    lead = reference.sum(axis=0) - changed.sum(axis=0)  # (N,)
    ours, theirs = int((lead > 0).sum()), int((lead < 0).sum())
    p = float(stats.binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0
    return McNemar(ours, theirs, p)


def decide(tests: SeedTests) -> Verdict:
    """One sentence on the tests over seeds: their unit is the training run, which is what is to be judged."""
    drop = f"mean drop {signed(tests.mean)}"
    if tests.p_different is None or tests.p_no_worse is None or tests.low is None or tests.high is None:
        return Verdict("undecided", f"Not decided: {tests.reason} ({drop}).")
    found = f"{drop}, 95 % interval {signed(tests.low)} to {signed(tests.high)}, n={tests.n}"
    differs, below = p_text(tests.p_different), p_text(tests.p_no_worse)
    lost = tests.p_different < ALPHA and tests.mean > 0
    within = tests.p_no_worse < ALPHA
    if lost and within:
        text = f"Significant loss ({differs}), shown to be below the margin of {tests.margin:g} ({below}): {found}."
        return Verdict("small loss", text)
    if lost:
        text = f"Significant loss ({differs}), not shown to be below the margin of {tests.margin:g} ({below}): {found}."
        return Verdict("loss", text)
    if within:
        gained = "Significant gain" if tests.p_different < ALPHA else "No significant loss"
        text = f"{gained} ({differs}), and shown to be no worse than the margin of {tests.margin:g} ({below}): {found}."
        return Verdict("no worse", text)
    text = (
        f"Not decided: no significant loss ({differs}), but not shown to be no worse than the margin of "
        f"{tests.margin:g} ({below}) either. Too few seeds for this spread: {found}."
    )
    return Verdict("undecided", text)


def p_text(p: float | None) -> str:
    """A p-value as people read it: p=0.012."""
    if p is None:
        return "–"
    return "p<0.0001" if p < 0.0001 else f"p={p:.4f}" if p < 0.01 else f"p={p:.3f}"
