"""Measured latency: what is timed and how it is put together, on a timer of the tests', and once for real."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from compress.errors import PruningError
from compress.measurement.sessions import open_session
from compress.pruning.latency import LatencyModel, LayerTable, measure_latency, share_of_rest
from compress.pruning.onnx_layers import Layer, layer_at, onnx_model, time_layer
from compress.pruning.values import ChannelGroup, LayerUse, Member, Role


def member(name: str, axis: int, role: Role, channels: int, each: int = 1) -> Member:
    index = torch.arange(channels * each)
    return Member(name, axis, role, index, index // each)


def chain(channels: int = 64) -> tuple[list[ChannelGroup], list[LayerUse], dict[str, tuple[int, ...]]]:
    """conv a (3 -> C), depthwise b, conv c (C -> C), linear d on 4 positions of C: two groups and the outputs."""
    c = channels
    one = (member("a", 0, "out", c), member("b", 0, "out", c), member("c", 1, "in", c))
    two = (member("c", 0, "out", c), member("d", 1, "in", c, each=4))
    groups = [
        ChannelGroup("a", c, one),
        ChannelGroup("c", c, two),
        ChannelGroup("d", 10, (member("d", 0, "out", 10),), frozen="makes the outputs"),
    ]
    geometry = {"stride": 1, "padding": 1, "dilation": 1}
    uses = [
        LayerUse("a", "conv2d", (2, 3, 4, 4), (2, c, 4, 4), (c, 3, 3, 3), 16 * c * 27, {**geometry, "groups": 1}),
        LayerUse("b", "conv2d", (2, c, 4, 4), (2, c, 4, 4), (c, 1, 3, 3), 16 * c * 9, {**geometry, "groups": c}),
        LayerUse("c", "conv2d", (2, c, 4, 4), (2, c, 4, 4), (c, c, 3, 3), 16 * c * c * 9, {**geometry, "groups": 1}),
        LayerUse("d", "linear", (2, 4 * c), (2, 10), (10, 4 * c), 40 * c),
    ]
    return groups, uses, {use.weight: use.weight_shape for use in uses}


def macs_of(layer: Layer) -> float:
    """MACs of a layer that keeps its resolution."""
    if layer.operator == "MatMul":
        return float(layer.data[0] * prod(layer.weight))
    return float(prod(layer.data[2:]) * layer.data[0] * prod(layer.weight))


class Timer:
    """Layers cost a microsecond a MAC, and a millisecond each; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Layer] = []

    def __call__(self, layer: Layer, threads: int) -> float:
        self.asked.append(layer)
        return 1 + macs_of(layer) / 1e3


def test_between_the_measured_widths_latency_follows_both_axes() -> None:
    groups, uses, shapes = chain()
    model = measure_latency(groups, uses, shapes, timer=Timer())

    def expected(a: int, c: int) -> float:
        return 4 + (16 * a * 27 + 16 * a * 9 + 16 * a * c * 9 + 40 * c) / 1e3

    for a, c in [(64, 64), (8, 64), (13, 41), (64, 9), (50, 50)]:
        assert model.milliseconds({"a": a, "c": c}) == pytest.approx(expected(a, c))


def test_below_the_shortest_measured_width_nothing_is_gained() -> None:
    groups, uses, shapes = chain()
    model = measure_latency(groups, uses, shapes, timer=Timer())
    assert model.milliseconds({"a": 1, "c": 1}) == model.milliseconds({"a": 8, "c": 8})


def test_only_axes_that_may_shrink_are_measured_at_several_widths() -> None:
    timer = Timer()
    measure_latency(*chain(), timer=timer)
    by_operator = {name: [x for x in timer.asked if x.operator == name] for name in ("Conv", "MatMul")}
    # a: 5 widths, b: 5 (whole groups), c: 5 x 5; d: 5 input widths, its outputs are frozen.
    assert len(by_operator["Conv"]) == 35
    assert [layer.weight[1] for layer in by_operator["MatMul"]] == [10] * 5
    depthwise = [dict(x.attributes)["group"] for x in by_operator["Conv"] if dict(x.attributes)["group"] > 1]
    assert depthwise == [8, 16, 32, 48, 64]
    assert all(layer.data[0] == 1 for layer in timer.asked)


def test_identical_layers_are_timed_once_and_never_again_with_a_cache(tmp_path: Path) -> None:
    groups, uses, shapes = chain()
    twice = [*uses, *uses]
    first, again, cache = Timer(), Timer(), tmp_path / "deep" / "latency.json"
    model = measure_latency(groups, twice, shapes, timer=first, cache=cache)
    assert len(first.asked) == len(set(first.asked)) == 40
    same = measure_latency(groups, twice, shapes, timer=again, cache=cache)
    assert again.asked == []
    assert same.milliseconds({"a": 20}) == model.milliseconds({"a": 20})
    stored = json.loads(cache.read_text())
    assert len(stored) == 40
    assert all(f"onnxruntime {onnxruntime.__version__} | threads 1 | " in key for key in stored)
    measure_latency(groups, uses, shapes, timer=again, cache=cache, threads=2)
    assert len(again.asked) == 40


def test_a_cache_that_cannot_be_read_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "latency.json"
    cache.write_text('{"half": ')
    measure_latency(*chain(), timer=Timer(), cache=cache)
    assert "timed again" in caplog.text
    assert len(json.loads(cache.read_text())) == 40


def test_operators_that_are_not_measured_cost_what_their_macs_cost_elsewhere() -> None:
    groups, uses, shapes = chain()
    plain = measure_latency(groups, uses, shapes, timer=Timer())
    lstm = LayerUse("l.weight_ih_l0", "lstm", (7, 1, 64), (7, 1, 16), (64, 64), sum(use.macs for use in uses))
    reads = ChannelGroup("c", 64, (*groups[1].members, member("l.weight_ih_l0", 1, "in", 64)))
    more = {**shapes, "l.weight_ih_l0": (64, 64)}
    model = measure_latency([groups[0], reads, groups[2]], [*uses, lstm], more, timer=Timer())
    assert model.milliseconds({}) == pytest.approx(2 * plain.milliseconds({}))
    gained = model.milliseconds({"c": 64}) - model.milliseconds({"c": 32})
    measured = plain.milliseconds({"c": 64}) - plain.milliseconds({"c": 32})
    assert gained - measured == pytest.approx(plain.milliseconds({}) / 2)


def test_a_calibrated_model_takes_what_the_whole_was_measured_at() -> None:
    model = measure_latency(*chain(), timer=Timer())
    scaled = model.calibrated(7.0)
    assert scaled.milliseconds({}) == pytest.approx(7.0)
    ratio = model.milliseconds({"a": 16}) / model.milliseconds({})
    assert scaled.milliseconds({"a": 16}) == pytest.approx(7.0 * ratio)


def test_a_rest_is_the_same_at_all_widths() -> None:
    model = measure_latency(*chain(), timer=Timer())
    shares = model.calibrated(1.0, rest_ms=0.2)
    ratio = model.milliseconds({"a": 16}) / model.milliseconds({})
    assert shares.milliseconds({}) == pytest.approx(1.0)
    assert shares.milliseconds({"a": 16}) == pytest.approx(0.2 + 0.8 * ratio)
    assert shares.calibrated(2.0).milliseconds({"a": 16}) == pytest.approx(2 * ratio)


def test_a_negative_rest_never_leaves_less_than_nothing() -> None:
    model = measure_latency(*chain(), timer=Timer()).calibrated(1.0, rest_ms=-0.9)
    assert 0 < model.milliseconds({"a": 8, "c": 8}) < model.milliseconds({})


@pytest.mark.parametrize("rest", [0.2, 0.0, -0.05])
def test_the_rest_is_found_from_models_that_were_measured(rest: float) -> None:
    layers = [0.5, 0.3]
    assert share_of_rest(layers, [rest + (1 - rest) * share for share in layers]) == pytest.approx(rest)


def test_without_a_measured_model_there_is_no_rest() -> None:
    assert share_of_rest([], []) == 0.0
    assert share_of_rest([1.0], [0.9]) == 0.0


def test_below_a_block_powers_of_two_are_measured_down_to_the_floor() -> None:
    timer = Timer()
    measure_latency(*chain(), timer=timer, floor=0.03, block=16)
    widths = {layer.weight[0] for layer in timer.asked if layer.operator == "Conv" and layer.weight[1] == 3}
    assert sorted(widths) == [2, 4, 8, 16, 32, 48, 64]


def test_many_widths_at_once_are_the_same_as_one_at_a_time() -> None:
    model = measure_latency(*chain(), timer=Timer())
    widths = np.array([[64, 64], [8, 40], [30, 3]], np.float64)
    each = [model.milliseconds(dict(zip(model.names, map(int, row), strict=True))) for row in widths]
    assert model.many(widths).tolist() == each


def test_tables_of_different_sizes_stand_side_by_side() -> None:
    groups = [ChannelGroup("g", 10, (member("w", 0, "out", 10), member("v", 1, "in", 10)))]
    tables = [
        LayerTable("w", (10, 3), ((2, 5, 10), (3,)), np.array([[2.0], [5.0], [20.0]])),
        LayerTable("v", (4, 10), ((4,), (10,)), np.array([[100.0]])),
    ]
    model = LatencyModel(groups, tables)
    assert [model.milliseconds({"g": g}) for g in (1, 2, 3, 5, 9, 10)] == [102, 102, 103, 105, 117, 120]


def test_a_model_without_layers_to_time_is_refused() -> None:
    use = LayerUse("e", "embedding", (1, 4), (1, 4, 8), (10, 8), 0)
    with pytest.raises(PruningError, match="the model has embedding"):
        measure_latency([], [use], {"e": (10, 8)}, timer=Timer())


CONVOLUTIONS = [
    ("conv1d", (6, 4, 3), (1, 4, 9), {"stride": (2,), "padding": (1,), "dilation": (1,), "groups": 1}),
    ("conv2d", (6, 2, 3, 5), (1, 4, 9, 9), {"stride": 1, "padding": "same", "dilation": 2, "groups": 2}),
    ("conv2d", (6, 4, 2, 2), (1, 4, 9, 9), {}),
    ("conv3d", (6, 4, 1, 2, 3), (1, 4, 3, 5, 5), {"stride": (1, 2, 2), "padding": "valid", "groups": 1}),
    ("conv_transpose1d", (4, 6, 3), (1, 4, 9), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 1}),
    ("conv_transpose2d", (4, 3, 3, 3), (1, 4, 5, 5), {"stride": (2, 2), "output_padding": (1, 0), "groups": 2}),
]


@pytest.mark.parametrize(("operator", "weight", "data", "arguments"), CONVOLUTIONS)
def test_the_onnx_layer_computes_what_the_torch_layer_does(
    operator: str, weight: tuple[int, ...], data: tuple[int, ...], arguments: dict[str, object]
) -> None:
    x = torch.randn(data, generator=torch.Generator().manual_seed(0))
    w = torch.from_numpy(np.random.default_rng(0).standard_normal(weight).astype(np.float32))
    expected = getattr(F, operator)(x, w, **arguments)
    positions = data[2:] if "transpose" in operator else expected.shape[2:]
    use = LayerUse(operator, operator, data, tuple(expected.shape), weight, prod(positions) * prod(weight), arguments)
    layer = layer_at(use, *weight[:2])
    assert layer.data == data
    onnx.checker.check_model(onnx.load_from_string(onnx_model(layer)))
    (found,) = open_session(onnx_model(layer), "cpu", threads=1).run(None, {"x": x.numpy()})
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_the_batch_of_a_folded_axis_and_the_rows_of_a_linear_layer_come_from_the_macs() -> None:
    # 5 steps of a sequence folded into the batch of 2.
    conv = LayerUse("w", "conv2d", (10, 3, 8, 8), (10, 4, 8, 8), (4, 3, 3, 3), 5 * 64 * 108, {"padding": 1})
    assert layer_at(conv, 4, 3).data == (5, 3, 8, 8)
    linear = LayerUse("w", "linear", (2, 7, 6), (2, 7, 4), (4, 6), 7 * 24)
    assert layer_at(linear, 2, 3) == Layer("MatMul", (7, 3), (3, 2))
    product = LayerUse("w", "matmul", (2, 7, 6), (2, 7, 4), (6, 4), 7 * 24)
    assert layer_at(product, 3, 2) == Layer("MatMul", (7, 3), (3, 2))


def test_grouped_convolutions_lose_whole_groups_or_one_place_in_every_group() -> None:
    use = LayerUse("w", "conv2d", (1, 32, 8, 8), (1, 64, 8, 8), (64, 8, 1, 1), 64 * 64 * 8, {"groups": 4})
    fewer = layer_at(use, 32, 8, whole_groups=True)
    assert (fewer.data[1], dict(fewer.attributes)["group"]) == (16, 2)
    thinner = layer_at(use, 32, 4)
    assert (thinner.data[1], dict(thinner.attributes)["group"]) == (16, 4)
    places = torch.arange(64)
    same_place = ChannelGroup("w", 16, (Member("w", 0, "out", places, places % 16),))
    timer = Timer()
    measure_latency([same_place], [use], {"w": (64, 8, 1, 1)}, timer=timer)
    assert [layer.weight[0] for layer in timer.asked] == [16, 32, 64]  # whole groups of 16
    for layer in timer.asked:
        onnx.checker.check_model(onnx.load_from_string(onnx_model(layer)), full_check=True)


def test_a_layer_with_a_hundred_times_the_work_takes_longer_for_real() -> None:
    small, large = Layer("MatMul", (8, 64), (64, 64)), Layer("MatMul", (64, 256), (256, 256))
    attributes = (("group", 1), ("strides", (1, 1)), ("pads", (1, 1, 1, 1)), ("dilations", (1, 1)))
    narrow = Layer("Conv", (1, 16, 16, 16), (16, 16, 3, 3), attributes)
    wide = Layer("Conv", (1, 128, 16, 16), (128, 128, 3, 3), attributes)
    assert 0 < time_layer(small, 1) < time_layer(large, 1)
    assert 0 < time_layer(narrow, 1) < time_layer(wide, 1)
