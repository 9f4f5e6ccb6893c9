"""Paired tests, McNemar and equivalence: against values worked out by hand, and where there is no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import MeasurementError
from compress.measurement.significance import SeedTests, decide, mcnemar, mcnemar_pooled, p_text, paired_tests
from compress.units import signed

# Drops .01, .02, .03: mean .02, sd .01, standard error .01 / sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom.
# The t distribution with 2 degrees has F(t) = 1/2 + t / (2 sqrt(2 + t²)), so all p-values have closed forms.
REFERENCE, CHANGED = (0.91, 0.92, 0.93), (0.90, 0.90, 0.90)


def upper_tail(t: float) -> float:
    """P(T > t) for Student's t with 2 degrees of freedom."""
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def test_the_paired_t_test_is_that_of_the_formula() -> None:
    tests = paired_tests(REFERENCE, CHANGED, margin=0.05)
    assert (tests.n, tests.reason) == (3, None)
    assert tests.mean == pytest.approx(0.02)
    assert tests.sd == pytest.approx(0.01)
    assert tests.p_different == pytest.approx(2 * upper_tail(2 * math.sqrt(3)))  # .0742
    assert tests.p_different == pytest.approx(0.0742, abs=1e-4)


def test_the_interval_has_the_quantile_of_the_table_as_its_half_width() -> None:
    tests = paired_tests(REFERENCE, CHANGED, margin=0.05)
    half = 4.302653 * 0.01 / math.sqrt(3)  # t(0.975, 2) of any table
    assert tests.low == pytest.approx(0.02 - half, abs=1e-7)
    assert tests.high == pytest.approx(0.02 + half, abs=1e-7)


def test_equivalence_is_the_worse_of_two_one_sided_tests() -> None:
    se = 0.01 / math.sqrt(3)
    tests = paired_tests(REFERENCE, CHANGED, margin=0.05)
    assert tests.p_no_worse == pytest.approx(upper_tail((0.05 - 0.02) / se))
    assert tests.p_equivalent == tests.p_no_worse  # a loss: the upper side is the harder one
    gain = paired_tests(CHANGED, REFERENCE, margin=0.05)
    assert gain.p_no_worse == pytest.approx(upper_tail((0.05 + 0.02) / se))
    assert gain.p_equivalent == pytest.approx(upper_tail((0.05 - 0.02) / se))


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=8))
def test_swapping_the_two_turns_the_drop_round_and_leaves_equivalence(pairs: list[tuple[int, int]]) -> None:
    first, second = [a / 1000 for a, _ in pairs], [b / 1000 for _, b in pairs]
    one, other = paired_tests(first, second, 0.01), paired_tests(second, first, 0.01)
    assert one.mean == pytest.approx(-other.mean)
    if one.p_different is None:
        assert one.reason
        assert other.p_different is None
    else:
        assert one.p_different == pytest.approx(other.p_different)
        assert one.p_equivalent == pytest.approx(other.p_equivalent)
        assert one.p_no_worse is not None
        assert one.p_equivalent is not None
        assert one.p_no_worse <= one.p_equivalent  # equivalence asks for more


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=6))
def test_no_worse_is_shown_where_the_90_percent_interval_ends_below_the_margin(pairs: list[tuple[int, int]]) -> None:
    from scipy import stats

    tests = paired_tests([a / 500 for a, _ in pairs], [b / 500 for _, b in pairs], 0.02)
    if tests.p_no_worse is not None and tests.sd is not None:
        high = tests.mean + stats.t.ppf(0.95, tests.n - 1) * tests.sd / math.sqrt(tests.n)
        if abs(high - 0.02) > 1e-9:
            assert (tests.p_no_worse < 0.05) == (high < 0.02)


@pytest.mark.parametrize(
    ("reference", "changed", "reason"),
    [((0.9,), (0.8,), "one seed"), ((0.9, 0.8, 0.7), (0.8, 0.7, 0.6), "without any spread")],
)
def test_without_spread_there_is_no_p_value_but_a_reason(
    reference: tuple[float, ...], changed: tuple[float, ...], reason: str
) -> None:
    tests = paired_tests(reference, changed, 0.01)
    assert tests.mean == pytest.approx(0.1)
    assert tests.p_different is tests.p_no_worse is tests.p_equivalent is None
    assert tests.reason is not None
    assert reason in tests.reason
    verdict = decide(tests)
    assert verdict.outcome == "undecided"
    assert reason in verdict.sentence


@pytest.mark.parametrize(
    ("reference", "changed", "margin", "word"),
    [((), (), 0.01, "pair"), ((0.9,), (0.9, 0.8), 0.01, "pair"), ((0.9,), (0.8,), 0.0, "margin"),
     ((0.9, math.nan), (0.8, 0.8), 0.01, "finite")],
)  # fmt: skip
def test_what_cannot_be_tested_is_refused(
    reference: tuple[float, ...], changed: tuple[float, ...], margin: float, word: str
) -> None:
    with pytest.raises(MeasurementError, match=word):
        paired_tests(reference, changed, margin)


def answers(*counts: tuple[bool, int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.concatenate([np.full(n, right) for right, n in counts])


def test_mcnemar_looks_at_discordant_pairs_alone_and_is_exact() -> None:
    # 6 samples only the first answers rightly, 1 only the second, 50 both, 10 neither: 2 * (1 + 7) / 2^7 = .125.
    first = answers((True, 6), (False, 1), (True, 50), (False, 10))
    second = answers((False, 6), (True, 1), (True, 50), (False, 10))
    test = mcnemar(first, second)
    assert (test.only_reference, test.only_changed) == (6, 1)
    assert test.p == pytest.approx(0.125)
    assert mcnemar(second, first).p == test.p


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_of_scipy(ours: int, theirs: int, both: int) -> None:
    from scipy import stats

    test = mcnemar(answers((True, ours), (False, theirs), (True, both)), answers((False, ours), (True, theirs + both)))
    assert (test.only_reference, test.only_changed) == (ours, theirs)
    assert test.p == pytest.approx(stats.binomtest(ours, ours + theirs, 0.5).pvalue if ours + theirs else 1.0)


def test_mcnemar_on_models_that_answer_alike_is_certain_of_nothing() -> None:
    assert mcnemar(answers((True, 5)), answers((True, 5))).p == 1.0


def test_pooling_counts_a_sample_once_however_many_seeds_there_are() -> None:
    first, second = answers((True, 6), (False, 4)), answers((False, 6), (False, 4))
    one = mcnemar(first, second)
    five = mcnemar_pooled(np.stack([first] * 5), np.stack([second] * 5))
    assert five == one
    assert one.p == pytest.approx(2 / 2**6)


def test_a_sample_that_both_sides_win_equally_often_has_no_vote() -> None:
    first = np.array([[True, True, True], [False, True, True]])
    second = np.array([[False, False, True], [True, False, True]])
    assert mcnemar_pooled(first, second).only_reference == 1
    assert mcnemar_pooled(first, second).only_changed == 0


def test_mcnemar_refuses_answers_to_different_samples() -> None:
    with pytest.raises(MeasurementError, match="same samples"):
        mcnemar(answers((True, 5)), answers((True, 4)))


def spread(mean: float, sd: float, margin: float = 0.01) -> SeedTests:
    """Tests on five drops of this mean and standard deviation."""
    unit = np.array([-2, -1, 0, 1, 2]) / math.sqrt(2.5)
    return paired_tests(0.9 + mean + sd * unit, np.full(5, 0.9), margin)


@pytest.mark.parametrize(
    ("mean", "sd", "outcome", "words"),
    [
        (0.03, 0.005, "loss", "not shown to be below"),
        (0.004, 0.001, "small loss", "shown to be below the margin of 0.01"),
        (0.0, 0.003, "no worse", "No significant loss"),
        (-0.01, 0.003, "no worse", "Significant gain"),
        (0.005, 0.01, "undecided", "Too few seeds"),
    ],
)
def test_the_verdict_weighs_both_questions(mean: float, sd: float, outcome: str, words: str) -> None:
    verdict = decide(spread(mean, sd))
    assert verdict.outcome == outcome
    assert words in verdict.sentence
    assert signed(mean) in verdict.sentence
    assert "n=5" in verdict.sentence


def test_a_p_value_is_told_with_the_digits_that_matter() -> None:
    assert [p_text(p) for p in (None, 0.00001, 0.00345, 0.0456)] == ["–", "p<0.0001", "p=0.0034", "p=0.046"]
