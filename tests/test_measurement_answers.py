"""Every variant's answers against the baseline's: figures, pairs, classes, and what is kept of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.data.splits import Batch, Data, Split
from compress.errors import MeasurementError
from compress.measurement import BenchmarkConfig
from compress.measurement.accuracy import Outputs, Score, score, sqnr_db, top5
from compress.measurement.answers import Answers, class_scores, load_answers, score_all
from compress.measurement.intervals import drop_interval, share_interval
from compress.measurement.metrics import Metric, MetricValue
from compress.measurement.significance import mcnemar
from compress.values import Context, InputSpec, OnnxModel, Variant

CLASSES, SAMPLES = 7, 120
INPUTS = (InputSpec("x", (CLASSES,)),)
POINTS = np.random.default_rng(0).standard_normal((SAMPLES, CLASSES)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((CLASSES, CLASSES)).astype(np.float32)
LABELS = (POINTS @ (np.eye(CLASSES, dtype=np.float32) + 0.1 * NOISE)).argmax(axis=1)


def variant(folder: Path, name: str, weight: NDArray[np.float32]) -> Variant:
    path = folder / f"{name}.onnx"
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CLASSES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return Variant(name, "baseline", OnnxModel(path, INPUTS, 17))


def split(labels: NDArray[Any] | None = LABELS) -> Split:
    def fetch(indices: NDArray[np.int64]) -> Batch:
        return (torch.from_numpy(POINTS[indices]),), None if labels is None else torch.from_numpy(labels[indices])

    return Split("test", fetch, np.arange(SAMPLES), labels is not None)


def context(folder: Path, part: Split, metric: Metric | None = None) -> Context:
    return Context(Data("made", part, part, part, part, INPUTS, ""), folder, metric=metric)


@pytest.fixture
def variants(tmp_path: Path) -> tuple[Variant, ...]:
    eye = np.eye(CLASSES, dtype=np.float32)
    return variant(tmp_path, "baseline-fp32", eye), variant(tmp_path, "int8", eye + 0.3 * NOISE)


def score_both(variants: tuple[Variant, ...], part: Split, **options: Any) -> list[Answers]:
    folder = variants[0].onnx.path.parent
    return score_all(variants, part, BenchmarkConfig(), context(folder, part, **options), folder / "answers.npz")


def test_a_variant_is_compared_with_the_baseline_sample_by_sample(variants: tuple[Variant, ...]) -> None:
    base, ours = score_both(variants, split())
    before = POINTS.argmax(1) == LABELS
    after = (POINTS @ (np.eye(CLASSES, dtype=np.float32) + 0.3 * NOISE)).argmax(1) == LABELS
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    assert lost > won > 0
    assert ours.drop == pytest.approx((lost - won) / SAMPLES)
    assert (ours.drop_low, ours.drop_high) == drop_interval(lost, won, SAMPLES)
    assert ours.mcnemar == mcnemar(before, after)
    assert ours.to_dict()["mcnemar"] == {"only_baseline": lost, "only_variant": won, "p": mcnemar(before, after).p}
    assert ours.score.top5 is not None
    assert ours.score.accuracy is not None
    assert ours.score.top5.value > ours.score.accuracy.value
    assert ours.score.sqnr_db == pytest.approx(
        10 * np.log10((POINTS**2).sum() / ((0.3 * POINTS @ NOISE) ** 2).sum()), abs=1e-3
    )
    assert (base.drop, base.drop_low, base.drop_high) == (0.0, None, None)
    assert base.mcnemar is base.classes is base.score.sqnr_db is None


def test_classes_are_sorted_by_what_they_lost_and_add_up(variants: tuple[Variant, ...]) -> None:
    _, ours = score_both(variants, split())
    assert ours.classes is not None
    assert [entry.drop for entry in ours.classes] == sorted((e.drop for e in ours.classes), reverse=True)
    assert sum(entry.n for entry in ours.classes) == SAMPLES
    assert sum(entry.n * entry.drop for entry in ours.classes) / SAMPLES == pytest.approx(ours.drop)


def test_of_many_classes_those_that_changed_most_are_kept() -> None:
    labels = np.repeat(np.arange(6), 2)
    before = np.ones(12, np.bool_)
    after = np.ones(12, np.bool_)
    before[4:6], after[6:8], after[8] = False, False, False  # class 2 wins both, class 3 loses both, class 4 one
    assert [(s.label, s.drop) for s in class_scores(before, after, labels, most=3)] == [(3, 1.0), (4, 0.5), (2, -1.0)]


def test_without_labels_the_drop_is_the_share_of_changed_answers(variants: tuple[Variant, ...]) -> None:
    _, ours = score_both(variants, split(None))
    changed = round(SAMPLES * ours.drop)
    assert changed > 0
    assert (ours.drop_low, ours.drop_high) == share_interval(changed, SAMPLES)
    assert ours.score.accuracy is ours.score.top5 is ours.mcnemar is ours.classes is None
    assert ours.score.sqnr_db is not None


def test_what_is_kept_is_read_back_and_the_same_bytes_each_time(
    variants: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    score_both(variants, split())
    path = variants[0].onnx.path.with_name("answers.npz")
    first = path.read_bytes()
    kept = load_answers(path)
    assert kept.labels is not None
    assert np.array_equal(kept.labels, LABELS)
    assert np.array_equal(kept.top1["baseline-fp32"], POINTS.argmax(1))
    assert set(kept.top1) == {"baseline-fp32", "int8"}
    monkeypatch.setattr("time.time", lambda: 2e9)
    score_both(variants, split())
    assert path.read_bytes() == first


def test_a_file_of_answers_that_is_broken_is_told(tmp_path: Path) -> None:
    (tmp_path / "answers.npz").write_bytes(b"PK\x03\x04 no")
    with (tmp_path / "other.npz").open("wb") as stream:  # an array, and no archive of arrays
        np.save(stream, np.zeros(3))
    np.savez_compressed(tmp_path / "damaged.npz", **{"top1/a": np.arange(1000)})
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[100:110] = b"\xff" * 10
    (tmp_path / "damaged.npz").write_bytes(content)
    for name in ("answers.npz", "missing.npz", "other.npz", "damaged.npz"):
        with pytest.raises(MeasurementError, match=name):
            load_answers(tmp_path / name)


def test_a_metric_steers_the_drop_and_accuracy_is_told_beside_it(variants: tuple[Variant, ...]) -> None:
    def margin(outputs: Any, labels: Any) -> Any:
        return outputs[np.arange(len(outputs)), labels]

    _, ours = score_both(variants, split(), metric=Metric("m:margin", "margin", margin))
    assert ours.score.metric is not None
    assert (ours.score.measured_in, ours.score.figure) == ("margin", ours.score.metric.value)
    assert ours.score.accuracy is not None
    each = POINTS[np.arange(SAMPLES), LABELS] - (POINTS + 0.3 * POINTS @ NOISE)[np.arange(SAMPLES), LABELS]
    assert ours.drop == pytest.approx(each.mean(), abs=1e-5)
    assert ours.drop_low is not None
    assert ours.drop_high is not None
    assert ours.drop_low < ours.drop < ours.drop_high
    kept = load_answers(variants[0].onnx.path.with_name("answers.npz"))
    assert kept.values["int8"].mean() == pytest.approx(ours.score.metric.value)


@pytest.mark.parametrize("labels", [POINTS.copy(), POINTS.argmax(1) / 2, np.zeros((SAMPLES, 3, 3), np.int64)])
def test_with_a_metric_labels_may_be_anything_and_without_one_they_are_refused(
    variants: tuple[Variant, ...], labels: NDArray[Any]
) -> None:
    seen: list[Any] = []

    def near(outputs: Any, labels: Any) -> float:
        seen.append(labels)
        return -float(np.square(outputs).mean())

    base, _ = score_both(variants[:1] * 2, split(labels), metric=Metric("m:near", "near", near))
    assert base.score.accuracy is None
    assert seen[0].shape == labels.shape
    assert seen[0].dtype == labels.dtype
    if labels.ndim > 1:
        with pytest.raises(MeasurementError, match="give --metric for others, or --no-labels"):
            score_both(variants, split(labels))


def test_a_failing_metric_names_itself_and_the_variant(variants: tuple[Variant, ...]) -> None:
    def fails(outputs: Any, labels: Any) -> float:
        raise KeyError("boxes")

    with pytest.raises(MeasurementError, match="baseline-fp32: --metric m:f failed with KeyError: 'boxes'"):
        score_both(variants, split(), metric=Metric("m:f", "f", fails))


def test_answers_survive_json(variants: tuple[Variant, ...]) -> None:
    for metric in (None, Metric("m:f", "f", lambda o, y: 0.5)):
        for found in score_both(variants, split(), metric=metric):
            assert Answers.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_two_sets_of_outputs_are_in_memory_at_a_time(
    variants: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from compress.measurement import answers

    alive: list[weakref.ref[Any]] = []
    most = 0
    plain = answers.outputs_of

    def watched(*arguments: Any) -> Outputs:
        nonlocal most
        found = plain(*arguments)
        alive.append(weakref.ref(found.values))
        most = max(most, sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(answers, "outputs_of", watched)
    score_both((variants[0], *[replace(variants[1], name=f"v{n}") for n in range(4)]), split())
    assert len(alive) == 5
    assert most == 2


# Figures


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 12), st.integers(1, 30), st.integers(0, 99), st.booleans())
def test_top5_is_that_of_a_stable_sort(classes: int, n: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (n, classes)) if ties else rng.standard_normal((n, classes))
    outputs = Outputs(values.astype(np.float32), rng.integers(0, classes, n))
    found = top5(outputs)
    order = np.argsort(-outputs.values, axis=1, kind="stable")[:, :5]
    assert found is not None
    assert outputs.labels is not None
    assert found.value == (order == outputs.labels[:, None]).any(axis=1).mean()


def test_top5_of_five_classes_or_of_none_is_not_told() -> None:
    assert top5(Outputs(np.zeros((3, 5), np.float32), np.zeros(3, np.int64))) is None
    assert top5(Outputs(np.zeros((3, 9), np.float32), None)) is None


def test_the_noise_of_equal_outputs_has_no_decibels() -> None:
    reference = Outputs(POINTS, None)
    assert sqnr_db(reference, reference) is None
    assert sqnr_db(Outputs(POINTS.copy(), None), reference) is None
    assert sqnr_db(reference, Outputs(np.zeros_like(POINTS), None)) is None
    assert sqnr_db(Outputs(0.9 * POINTS, None), reference) == pytest.approx(20, abs=1e-4)


def test_a_score_tells_what_it_is_measured_in() -> None:
    labelled = score(Outputs(POINTS, LABELS), Outputs(POINTS, LABELS))
    assert labelled.measured_in == "accuracy"
    assert score(Outputs(POINTS, None), Outputs(POINTS, None)).measured_in == "fidelity"
    rated = replace(labelled, metric=MetricValue("f1", 0.25, None, None, SAMPLES))
    assert (rated.measured_in, rated.figure) == ("f1", 0.25)
    assert Score.from_dict(rated.to_dict()) == rated
