"""Compression curves: the rates and methods that are understood, the dictionary at a total, points, areas, resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.cli.curve import _area_row, notes
from compress.data.splits import Split
from compress.errors import RecipeError, SparsityError
from compress.measurement import outputs_of, score
from compress.reporting.plot_curve import plot_curve
from compress.reporting.plots import picture
from compress.sparsity.curve_points import Curves, Run, summarise_runs, t_band, wilson_band
from compress.sparsity.curves import CurveConfig, measure_curves, parse_rates, suggest_layers
from compress.sparsity.layer_allocation import at_total
from compress.training import FineTuneConfig
from compress.values import Context, Model

Opened = tuple[Model, Context]
SIZES = {"conv": 72, "fc1": 4096, "fc2": 320}
FAST = {"epochs": 1.0, "finetune": FineTuneConfig(batch_size=32, learning_rate=0.005)}


def config(**options: Any) -> CurveConfig:
    return CurveConfig(**{"rates": "0,0.5,0.8", "seeds": 2, **FAST, **options})


# Rates and methods


def test_rates_are_exact_decimals_and_include_the_stop() -> None:
    assert parse_rates("0:0.9:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_single_rates_join_a_range_in_rising_order_each_once() -> None:
    assert parse_rates("0.999, 0:0.4:0.2,0.4,0.99") == (0.0, 0.2, 0.4, 0.99, 0.999)


@given(st.integers(0, 98), st.integers(0, 98), st.integers(1, 20))
def test_a_range_has_every_step_from_start_to_stop(start: int, steps: int, step: int) -> None:
    stop = start + steps * step
    if stop < 1000:
        expected = tuple(number / 1000 for number in range(start, stop + 1, step))
        assert parse_rates(f"{start / 1000}:{stop / 1000}:{step / 1000}") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0:1:0.1", "1.0 is not within 0 <= rate < 1"),
        ("-0.1,0.5", "-0.1 is not within"),
        ("0:0.95:0.1", "does not end at 0.95. Write 0:0.9:0.1, and 0.95 after a comma"),
        ("0:0.9:0", "a step above 0"),
        ("0.9:0:0.1", "start <= stop"),
        ("0:0.9:0.000001", "at most 1000 rates"),
        ("0:0.9", "neither a number nor start:stop:step"),
        ("many", "'many' is neither a number"),
        ("nan,0.5", "'nan' is neither a number"),
        ("", "'' is neither a number"),
        ("0.5", "at least two rates"),
    ],
)
def test_a_rate_that_cannot_be_used_is_told_with_what_can(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        CurveConfig(rates=text)
    assert told in str(refused.value)


def test_an_unknown_method_is_told_with_the_nearest_known_one() -> None:
    with pytest.raises(RecipeError, match=r"unknown method 'lamb': did you mean lamp\?"):
        CurveConfig(methods=("flat", "lamb"))
    with pytest.raises(RecipeError, match=r"unknown method 'flat\+finetun': did you mean flat\+finetune\?"):
        CurveConfig(methods=("flat+finetun",))
    with pytest.raises(RecipeError, match="known: random, layer, flat, lamp, taylor, custom"):
        CurveConfig(methods=("hessian",))


def test_all_problems_of_a_config_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as refused:
        CurveConfig(methods=("flat", "flat"), rates="2,3", seeds=0, epochs=0, ramp=1, budget=2, layers={"fc1": 1.0})
    for told in ("flat named twice", "rates=2,3", "seeds=0", "epochs=0", "ramp=1", "budget=2", "fc1=1.0"):
        assert told in str(refused.value)


# The dictionary of custom at a total


@given(
    st.dictionaries(st.sampled_from(list(SIZES)), st.floats(0.001, 0.999), min_size=1),
    st.floats(0, 0.999),
)
def test_custom_hits_the_total_exactly_or_says_how_far_it_can_go(layers: dict[str, float], rate: float) -> None:
    weights = sum(SIZES.values())
    able = sum(SIZES[name] - 1 for name in layers)
    if round(rate * weights) > able:
        with pytest.raises(SparsityError, match="can lose"):
            at_total(layers, SIZES, rate)
        return
    counts = {name: share * SIZES[name] for name, share in at_total(layers, SIZES, rate).items()}
    assert sum(round(count) for count in counts.values()) == round(rate * weights)
    assert all(0 <= round(count) < SIZES[name] for name, count in counts.items())
    assert all(count == pytest.approx(round(count), abs=1e-9) for count in counts.values())


def test_the_dictionary_itself_comes_back_at_its_own_total() -> None:
    layers = {"fc1": 0.75, "fc2": 0.25}
    total = (0.75 * 4096 + 0.25 * 320) / sum(SIZES.values())
    assert at_total(layers, SIZES, total) == layers


@given(st.floats(0.05, 0.95))
def test_of_two_layers_the_sparser_stays_the_sparser(rate: float) -> None:
    found = at_total({"conv": 0.2, "fc1": 0.9, "fc2": 0.5}, SIZES, rate)
    one_weight = 1 / SIZES["conv"]
    assert found["fc1"] + one_weight >= found["fc2"] >= found["conv"] - one_weight


def test_a_layer_that_the_dictionary_keeps_whole_stays_whole() -> None:
    assert at_total({"fc1": 0.9, "fc2": 0.0}, SIZES, 0.8)["fc2"] == 0.0


# Points and areas


def runs_of(method: str, values: dict[float, tuple[float, ...]]) -> list[Run]:
    return [
        Run(method, rate, seed, value, {"w": round(rate * 1000)})
        for rate, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]


def summary(*runs: Run) -> Curves:
    return summarise_runs(
        runs, dense=0.9, sizes={"w": 1000}, samples=100, split="test", measured_in="accuracy", layers={}
    )


def test_the_area_is_that_of_the_trapezoids_for_each_seed() -> None:
    curves = summary(
        *runs_of("flat", {0.0: (0.9,), 0.5: (0.8,), 0.9: (0.4,)}),
        *runs_of("random", {0.0: (0.9,), 0.5: (0.5, 0.7), 0.9: (0.1, 0.3)}),
    )
    flat, random = curves.areas
    assert flat.value == pytest.approx(0.5 * 0.85 + 0.4 * 0.6)
    assert (flat.low, flat.high) == (None, None)
    assert random.values == pytest.approx((0.5 * 0.7 + 0.4 * 0.3, 0.5 * 0.8 + 0.4 * 0.5))
    assert random.low is not None
    assert random.high is not None
    assert random.low < random.value < random.high
    assert curves.ceiling == pytest.approx(0.9 * 0.9)


def test_the_band_is_over_seeds_where_there_are_several_and_over_samples_else() -> None:
    curves = summary(*runs_of("random", {0.0: (0.9,), 0.5: (0.5, 0.7, 0.6)}))
    dense, half = curves.points
    assert (dense.band, half.band) == ("wilson", "t")
    assert (dense.low, dense.high) == wilson_band(0.9, 100)
    # t(0.975, 2 degrees of freedom) = 4.303, s = 0.1, n = 3
    assert (half.low, half.high) == pytest.approx((0.6 - 4.303 * 0.1 / 3**0.5, 0.6 + 4.303 * 0.1 / 3**0.5), abs=1e-3)
    assert half.values == (0.5, 0.7, 0.6)


def test_bands_stay_within_0_and_1_and_equal_seeds_have_none() -> None:
    low, high = t_band((0.01, 0.99))
    assert (low, high) == (0.0, 1.0)
    assert t_band((0.5, 0.5, 0.5)) == (0.5, 0.5)


def test_json_and_csv_hold_the_same_points() -> None:
    curves = summary(
        *runs_of("flat", {0.1: (0.9,), 0.3: (0.8,)}), *runs_of("random", {0.1: (0.5, 0.6), 0.3: (0.2, 0.4)})
    )
    plain = json.loads(json.dumps(curves.to_dict()))
    rows = list(csv.DictReader(io.StringIO(curves.to_csv())))
    assert plain["auc"] == {area.method: area.value for area in curves.areas}
    for point, row in zip(plain["points"], rows, strict=True):
        assert (row["method"], float(row["rate"]), float(row["accuracy"])) == (
            point["method"],
            point["rate"],
            point["value"],
        )
        assert (int(row["nonzero"]), float(row["low"]), row["band"]) == (point["nonzero"], point["low"], point["band"])
        assert [float(value) for value in row["values"].split()] == point["values"]


def test_the_picture_is_the_same_each_time_and_shows_rates_near_one() -> None:
    curves = summary(*runs_of("lamp+finetune", {0.0: (0.9,), 0.9: (0.8, 0.7), 0.999: (0.2, 0.1)}))
    assert picture(plot_curve(curves), "svg") == picture(plot_curve(curves), "svg")
    (axes,) = plot_curve(curves).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][-2:] == ["0.998", "0.999"]


def test_a_model_that_is_always_wrong_has_areas_without_a_share_of_the_ceiling() -> None:
    curves = dataclasses.replace(summary(*runs_of("flat", {0.0: (0.0,), 0.9: (0.0,)})), ceiling=0.0)
    assert _area_row(curves.areas[0], curves) == ("flat", "0.0000", "", "")


# Measured on the tiny model


def test_every_method_begins_at_the_dense_model_and_loses_what_it_should(opened: Opened) -> None:
    model, context = opened
    assert context.data is not None
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    methods = ("random", "layer", "flat", "lamp", "taylor", "custom", "flat+finetune")
    chosen = config(methods=methods, layers={"6": 0.9, "8": 0.5, "0": 0.3})
    curves = measure_curves(model, chosen, context)

    reference = outputs_of(model, context.data.test)
    dense = score(reference, reference).figure
    assert {point.value for point in curves.points if point.rate == 0} == {dense}
    areas = {area.method: area.value for area in curves.areas}
    assert areas["flat"] > areas["random"]
    assert areas["flat+finetune"] > areas["flat"]
    assert max(areas.values()) <= curves.ceiling + 0.02
    weights = sum(curves.sizes.values())
    for method in methods:
        points = curves.of(method)
        assert [p.nonzero for p in points] == sorted((p.nonzero for p in points), reverse=True)
        if method != "layer":  # rounds in each layer
            assert [weights - p.nonzero for p in points] == [round(p.rate * weights) for p in points]
    assert all(len(set(p.layers.values())) > 1 for p in curves.of("flat") if p.rate)
    assert {round(share, 1) for share in curves.of("layer")[1].layers.values()} == {0.5}
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the given model changed"


class Normed(nn.Module):
    """Divides each row of its weight by its norm: a row of zeros is answered with NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.flatten(1), self.w / self.w.norm(dim=1, keepdim=True))


def test_answers_that_are_not_finite_count_as_wrong_and_do_not_end_the_curve(opened: Opened) -> None:
    model, context = opened
    normed = dataclasses.replace(model, module=Normed().eval())
    curves = measure_curves(normed, config(methods=("random",), rates="0,0.5,0.999", seeds=1), context)
    assert [point.value > 0 for point in curves.points] == [True, True, False]


def test_points_that_were_sparser_to_begin_with_are_no_rounding(opened: Opened) -> None:
    model, context = opened
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.get_submodule("6").weight[:20] = 0  # type: ignore[operator]
    curves = measure_curves(dataclasses.replace(model, module=module), config(methods=("flat",)), context)
    assert {point.rate for point in curves.sparser} == {0.0, 0.5}
    assert curves.rounding < 1 / sum(curves.sizes.values())
    assert "2 of 3 points have more zeros" in notes(curves)[-1]
    assert len(notes(measure_curves(model, config(methods=("flat",)), context))) == len(notes(curves)) - 1


def test_fine_tuning_ends_at_the_exact_number_of_zeros_whatever_ranks_them(opened: Opened) -> None:
    model, context = opened
    methods = ("random+finetune", "taylor+finetune", "custom+finetune")
    chosen = config(methods=methods, rates="0,0.8", seeds=1, layers={"*": 0.9, "8": 0.5})
    curves = measure_curves(model, chosen, context)
    weights = sum(curves.sizes.values())
    assert {weights - curves.of(method)[1].nonzero for method in methods} == {round(0.8 * weights)}
    custom = curves.of("custom+finetune")[1].layers
    assert custom["8.weight"] < custom["6.weight"]


def test_only_what_is_random_runs_once_a_seed(opened: Opened) -> None:
    model, context = opened
    ran: list[Run] = []
    measure_curves(model, config(methods=("flat", "random", "lamp+finetune"), seeds=2), context, after_run=ran.append)
    assert len([run for run in ran if run.method == "flat"]) == 3
    assert {run.seed for run in ran if run.method == "random"} == {0, 1}
    assert [run.seed for run in ran if run.rate == 0] == [0, 0, 0]
    tuned = [run for run in ran if run.method == "lamp+finetune" and run.rate == 0.8]
    assert [run.seed for run in tuned] == [0, 1]


def test_finished_runs_are_not_run_again_and_the_curves_are_the_same(opened: Opened) -> None:
    model, context = opened
    chosen = config(methods=("random", "flat+finetune"), rates="0,0.7")
    first: list[Run] = []
    whole = measure_curves(model, chosen, context, after_run=first.append)
    again: list[Run] = []
    resumed = measure_curves(model, chosen, context, finished=first[:3], after_run=again.append)
    assert resumed == whole
    assert again == first[3:]


def test_without_labels_the_curve_is_of_fidelity(opened: Opened) -> None:
    model, context = opened
    assert context.data is not None
    data = dataclasses.replace(
        context.data, classes=None, train=_unlabelled(context.data.train), test=_unlabelled(context.data.test)
    )
    unlabelled = dataclasses.replace(context, data=data)
    curves = measure_curves(model, config(methods=("flat", "taylor"), rates="0,0.8"), unlabelled)
    assert curves.measured_in == "fidelity"
    assert curves.dense == 1.0
    assert curves.to_csv().startswith("method,rate,sparsity,nonzero,fidelity,")


def _unlabelled(split: Split) -> Split:
    return dataclasses.replace(split, labelled=False, fetch=lambda numbers: (split.fetch(numbers)[0], None))


def test_the_validation_split_can_be_scored_instead(opened: Opened) -> None:
    model, context = opened
    assert context.data is not None
    curves = measure_curves(model, config(methods=("flat",), split="validation"), context)
    assert (curves.split, curves.n) == ("validation", len(context.data.validation))


def test_a_suggested_dictionary_names_every_layer_and_reaches_every_rate(opened: Opened) -> None:
    model, context = opened
    layers = suggest_layers(model, config(samples=100), context)
    sizes = {name: p.numel() for name, p in model.module.named_parameters() if p.ndim > 1}
    assert set(layers) == set(sizes)
    at_total(layers, sizes, 0.99)


def test_no_data_an_unknown_layer_and_an_unreachable_rate_are_told_before_the_first_point(opened: Opened) -> None:
    model, context = opened
    ran: list[Run] = []
    for chosen, told in (
        (config(methods=("flat", "custom"), layers={"nowhere": 0.5}), "nowhere"),
        (config(methods=("flat", "custom"), layers={"8": 0.5}), "can lose"),
        (config(methods=("flat",), keep=("*",)), "nothing to sparsify"),
    ):
        with pytest.raises(SparsityError, match=told):
            measure_curves(model, chosen, context, after_run=ran.append)
    with pytest.raises(SparsityError, match="give --data"):
        measure_curves(model, config(), dataclasses.replace(context, data=None))
    assert ran == []
