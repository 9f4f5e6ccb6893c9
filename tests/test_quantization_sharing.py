"""compress.quantization.sharing and clustering: layers with a few distinct weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy.cluster.vq import kmeans
from torch.nn import functional as F

from compress.data.splits import Split
from compress.errors import QuantizationError, RecipeError
from compress.models.counts import count, stored_weights, weight_zeros
from compress.models.onnx_file import run, serialize
from compress.quantization.clustering import cluster
from compress.quantization.graph import array, constants
from compress.quantization.sharing import SharingConfig, share_quantized, share_weights, store
from compress.training.finetune import FineTuneConfig

FLOAT = TensorProto.FLOAT


def _net(zeros: float = 0.0, opset: int = 18, features: int = 64) -> onnx.ModelProto:
    """Two layers on 64 features: (N, 64) to (N, 4); "small" has fewer elements than are worth sharing."""
    random = np.random.default_rng(0)
    large = random.normal(size=(32, features), scale=0.1).astype(np.float32)
    large[random.random(large.shape) < zeros] = 0
    values = {
        "large": large,
        "bias": random.normal(size=32).astype(np.float32),
        "small": random.normal(size=(4, 30)).astype(np.float32),
        "offset": np.array([0.5, 0, -0.5, 0], np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "large", "bias"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Slice", ["r", "zero", "thirty", "one"], ["s"]),
        helper.make_node("Gemm", ["s", "small", "offset"], ["y"], name="second", transB=1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    tensors += [numpy_helper.from_array(np.array([i]), n) for n, i in (("zero", 0), ("thirty", 30), ("one", 1))]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", features])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(batch, 64)).astype(np.float32)} for batch in (1, 5)]


def _error(weight: np.ndarray, values: int) -> float:
    return float(np.square(weight - cluster(weight, values).weight, dtype=np.float64).sum())


def _best_error(points: list[float], values: int) -> float:
    """Of every way to cut the sorted points into at most so many runs, each replaced by its mean."""
    ordered = np.sort(points)
    cuts = itertools.combinations(range(1, len(ordered)), min(values, len(ordered)) - 1)
    return min(sum(float(np.square(run - run.mean()).sum()) for run in np.split(ordered, cut)) for cut in cuts)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(2, 4))
def test_no_clustering_of_a_few_weights_is_better(points: list[int], values: int) -> None:
    weight = np.array(points, np.float32)
    assert _error(weight, values) == pytest.approx(_best_error([float(p) for p in points], values), abs=1e-3)


def test_many_weights_cluster_as_well_as_the_best_of_many_starts() -> None:
    weight = np.random.default_rng(3).laplace(size=2000).astype(np.float32)
    centers, _ = kmeans(weight.astype(np.float64), 12, iter=5, rng=0)
    nearest = np.square(weight[:, None] - centers).min(axis=1)
    assert _error(weight, 12) <= nearest.sum() * 1.001


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.floats(0, 0.95), st.sampled_from([None, 0, 1]), st.integers(0, 100))
def test_a_clustered_weight_has_few_values_and_every_zero(
    values: int, zeros: float, axis: int | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(12, 20)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    book = cluster(weight, values, axis)
    assert len(book.values) <= values
    assert not book.weight[weight == 0].any()
    assert book.weight.shape == weight.shape


def test_a_scale_for_each_channel_fits_channels_of_other_sizes() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    weight *= np.logspace(-2, 0, 16, dtype=np.float32)[:, None]
    relative = [np.abs(cluster(weight, 8, axis).weight / weight - 1)[0].mean() for axis in (None, 0)]
    assert relative[1] < relative[0] / 2


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("scope", ["layer", "channel"])
@pytest.mark.parametrize("values", [5, 16, 17, 200])
def test_the_stored_form_computes_what_the_shared_weights_do(values: int, scope: str, opset: int) -> None:
    shared = share_weights(_net(0.3, opset), SharingConfig(values, "channel" if scope == "channel" else "layer"))
    stored = store(shared)
    onnx.checker.check_model(stored, full_check=True)
    expected = list(run(serialize(shared.proto), _feeds()))
    for ours, theirs in zip(run(serialize(stored), _feeds()), expected, strict=True):
        assert np.array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("values", [16, 32])
def test_nothing_of_the_stored_form_is_left_once_it_is_loaded(values: int, tmp_path: Path) -> None:
    stored = store(share_weights(_net(), SharingConfig(values, "channel")))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(serialize(stored), options, providers=["CPUExecutionProvider"])
    loaded = {node.op_type for node in onnx.load(str(tmp_path / "loaded.onnx")).graph.node}
    assert loaded <= {"Gemm", "Relu", "Slice"}


def test_two_numbers_share_a_byte_up_to_16_values() -> None:
    sizes = {}
    for values in (16, 17):
        tensor = constants(store(share_weights(_net(), SharingConfig(values))))["large_quantized"]
        sizes[values] = len(numpy_helper.to_array(tensor).tobytes())
    assert sizes == {16: 32 * 64 // 2, 17: 32 * 64}


@pytest.mark.parametrize("values", [16, 32])
@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_a_stored_weight_counts_as_the_float_weight_does(values: int, scope: str, tmp_path: Path) -> None:
    proto = _net(zeros=0.6)
    shared = share_weights(proto, SharingConfig(values, "channel" if scope == "channel" else "layer"))
    (tmp_path / "float.onnx").write_bytes(serialize(shared.proto))
    (tmp_path / "stored.onnx").write_bytes(serialize(store(shared)))
    assert count(tmp_path / "stored.onnx") == count(tmp_path / "float.onnx")
    dense, stored = weight_zeros(tmp_path / "float.onnx"), weight_zeros(tmp_path / "stored.onnx")
    assert np.array_equal(stored["large_quantized"], dense["large"])
    assert stored.keys() == {"large_quantized", "small"}


def test_small_layers_biases_and_excluded_layers_keep_their_weights() -> None:
    proto = _net()
    shared = share_weights(proto, SharingConfig(4))
    before, after = constants(proto), constants(shared.proto)
    for name in ("small", "bias", "offset"):
        assert np.array_equal(array(before[name]), array(after[name]))
    assert len(np.unique(array(after["large"]))) == 4
    with pytest.raises(QuantizationError, match="no float32 weight has 128 elements or more"):
        share_weights(proto, SharingConfig(4, exclude=("first",)))


def test_the_graph_that_is_given_stays_as_it_is_and_the_bytes_are_the_same_twice() -> None:
    proto = _net()
    before = serialize(proto)
    stored = [serialize(store(share_weights(proto, SharingConfig()))) for _ in range(2)]
    assert stored[0] == stored[1]
    assert serialize(proto) == before


def _split(name: str, first: int, count: int) -> Split:
    samples = torch.randn(1000, 64, generator=torch.Generator().manual_seed(2))

    def fetch(indices: np.ndarray) -> tuple[tuple[torch.Tensor, ...], None]:
        return (samples[torch.from_numpy(indices)],), None

    return Split(name, fetch, np.arange(first, first + count), labelled=False)


def _learned(rate: float = 0.01) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, float]]:
    proto = _net(zeros=0.5)
    config = SharingConfig(4, steps=60, finetune=FineTuneConfig(32, learning_rate=rate, distillation=1.0))
    shared = share_weights(proto, config, _split("train", 0, 800), _split("validation", 800, 200))
    return proto, shared.proto, dict(shared.figures)


def test_learned_values_answer_more_as_the_float_graph_does_than_those_of_k_means() -> None:
    proto, learned, figures = _learned()
    assert figures["held_out_loss_learned"] < 0.9 * figures["held_out_loss_kmeans"]
    test = [{"x": np.random.default_rng(9).normal(size=(500, 64)).astype(np.float32)}]
    plain = share_weights(proto, SharingConfig(4)).proto
    exact, before, after = (next(run(serialize(p), test))[0] for p in (proto, plain, learned))
    expected = torch.from_numpy(exact).log_softmax(1)
    losses = [
        float(F.kl_div(torch.from_numpy(outputs).log_softmax(1), expected, reduction="batchmean", log_target=True))
        for outputs in (before, after)
    ]
    assert losses[1] < losses[0]


def test_zeros_stay_zero_and_values_stay_few_after_learning() -> None:
    proto, learned, _ = _learned()
    before, after = constants(proto), constants(learned)
    assert len(np.unique(array(after["large"]))) <= 4
    for name in ("large", "small", "bias", "offset"):
        assert not array(after[name])[array(before[name]) == 0].any()
    assert not np.array_equal(array(after["bias"]), array(before["bias"]))


def test_what_was_learned_is_dropped_where_it_is_worse() -> None:
    proto, learned, figures = _learned(rate=10.0)
    assert figures["held_out_loss_learned"] > figures["held_out_loss_kmeans"]
    assert serialize(learned) == serialize(share_weights(proto, SharingConfig(4)).proto)


def test_learning_twice_gives_the_same_bytes() -> None:
    assert serialize(_learned()[1]) == serialize(_learned()[1])


def _qdq(scale: np.ndarray) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weight = np.clip(np.rint(random.normal(size=(16, 40)) * 40), -127, 127).astype(np.int8)
    weight[random.random(weight.shape) < 0.4] = 0
    values = {"w_quantized": weight, "w_scale": scale, "w_zero_point": np.zeros(scale.shape, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero_point"], ["w"], axis=0),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", 40])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOAT, ["batch", 16])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("channels", [1, 16])
def test_int8_weights_keep_few_values_and_their_zeros(channels: int) -> None:
    scale = np.float32(0.1) if channels == 1 else np.linspace(0.01, 1, 16, dtype=np.float32)
    proto = _qdq(np.asarray(scale))
    shared = share_quantized(proto, 8)
    before, after = (array(constants(p)["w_quantized"]) for p in (proto, shared.proto))
    assert after.dtype == np.int8
    assert len(np.unique(after)) <= 8
    assert not after[before == 0].any()
    dense, stored = stored_weights(shared.proto), stored_weights(store(shared))
    assert list(stored.values()) == list(dense.values())
    assert dense["w_quantized"].shape == (16, 40)
    feeds = [{"x": np.random.default_rng(4).normal(size=(3, 40)).astype(np.float32)}]
    expected = next(run(serialize(shared.proto), feeds))[0]
    assert np.array_equal(next(run(serialize(store(shared)), feeds))[0], expected)


def test_the_channels_with_the_largest_scale_count_most() -> None:
    even, uneven = np.ones(16, np.float32), np.ones(16, np.float32)
    uneven[3] = 100
    errors = []
    for scale in (even, uneven):
        before, after = (
            array(constants(p)["w_quantized"])[3] for p in (_qdq(scale), share_quantized(_qdq(scale), 6).proto)
        )
        errors.append(int(np.square(before.astype(int) - after).sum()))
    assert errors[1] < errors[0]


def test_what_is_allowed_is_told() -> None:
    with pytest.raises(RecipeError, match=r"values=1: allowed are 2 to 256; steps=-1"):
        SharingConfig(values=1, steps=-1)
