"""The examples whose answer changed: which are shown first, and how they look."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from compress.data.splits import Batch, Data, Split
from compress.data.tokenizer import Tokenizer
from compress.measurement.accuracy import Outputs
from compress.measurement.answers import Kept
from compress.measurement.changes import changed_examples, most_changed, probabilities
from compress.values import InputSpec, OnnxModel


def split(samples: torch.Tensor) -> Split:
    def fetch(indices: NDArray[np.int64]) -> Batch:
        return (samples[torch.from_numpy(indices - 100)],), None

    return Split("test", fetch, np.arange(100, 100 + len(samples)))


def outputs(*rows: tuple[float, ...], labels: tuple[int, ...] | None = None) -> Outputs:
    return Outputs(np.array(rows, np.float32), None if labels is None else np.array(labels))


#          same      broken, a bit   broken, a lot   repaired    other and wrong
BEFORE = ((2.0, 0, 0), (0.1, 0, 0), (9.0, 0, 0), (0, 5.0, 0), (0, 9.0, 0))
AFTER = ((2.0, 0, 0), (0, 0.1, 0), (0, 0, 9.0), (5.0, 0, 0), (0, 0, 9.0))
LABELS = (0, 0, 0, 0, 0)


def test_what_broke_comes_first_and_there_what_fell_furthest() -> None:
    found = changed_examples(outputs(*BEFORE, labels=LABELS), outputs(*AFTER), split(torch.rand(5, 1, 8, 8)))
    assert [entry["index"] for entry in found] == [102, 101, 104, 103]
    assert [(e["label"], e["before"], e["after"]) for e in found] == [(0, 0, 2), (0, 0, 1), (0, 1, 2), (0, 1, 0)]
    assert found[0]["before_probability"] == pytest.approx(np.exp(9) / (np.exp(9) + 2))
    assert found[1]["after_probability"] == pytest.approx(np.exp(0.1) / (np.exp(0.1) + 2))


def test_no_more_than_asked_for_are_read_and_shown() -> None:
    found = changed_examples(outputs(*BEFORE, labels=LABELS), outputs(*AFTER), split(torch.rand(5, 1, 8, 8)), n=2)
    assert [entry["index"] for entry in found] == [102, 101]


def test_without_labels_all_that_changed_is_alike() -> None:
    found = changed_examples(outputs(*BEFORE), outputs(*AFTER), split(torch.rand(5, 1, 8, 8)))
    assert [entry["index"] for entry in found] == [102, 104, 103, 101]
    assert found[0]["label"] is None


def test_equal_answers_and_dense_outputs_have_no_examples() -> None:
    assert changed_examples(outputs(*BEFORE), outputs(*BEFORE), split(torch.rand(5, 4))) == []
    dense = Outputs(np.random.default_rng(0).random((5, 2, 3), np.float32), None)
    assert changed_examples(dense, Outputs(-dense.values, None), split(torch.rand(5, 4))) == []


def _picture(samples: torch.Tensor) -> Image.Image:
    (found,) = changed_examples(outputs((1, 0)), outputs((0, 1)), split(samples))
    assert found["image"].startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(found["image"].partition(",")[2])))


def test_a_small_grey_picture_is_enlarged_by_a_whole_number_without_smoothing() -> None:
    sample = torch.linspace(-3, 5, 28 * 28).reshape(1, 1, 28, 28)  # normalised as training wanted it
    picture = _picture(sample)
    assert (picture.size, picture.mode) == ((84, 84), "L")
    pixels = np.asarray(picture)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.array_equal(pixels[::3, ::3], pixels[1::3, 2::3])


def test_a_large_colour_picture_becomes_a_thumbnail_and_keeps_its_aspect() -> None:
    picture = _picture(torch.rand(1, 3, 192, 384))
    assert (picture.size, picture.mode) == ((96, 48), "RGB")
    assert _picture(torch.rand(1, 40, 20, 3)).mode == "RGB"  # channels last


def test_a_picture_of_one_value_is_dark_and_not_an_error() -> None:
    assert np.asarray(_picture(torch.full((1, 1, 8, 8), 7.0))).max() == 0


@pytest.mark.parametrize("shape", [(1, 64), (1, 5, 8, 8), (1, 1, 2, 2), (1, 1, 1, 40)])
def test_what_is_no_picture_has_none(shape: tuple[int, ...]) -> None:
    (found,) = changed_examples(outputs((1, 0)), outputs((0, 1)), split(torch.rand(*shape)))
    assert found["image"] is found["text"] is None


@pytest.mark.parametrize("labels", [np.array([0.5]), np.array([[0.0, 1.0]])])
def test_answers_that_a_metric_scores_against_no_class_have_no_examples(labels: Any) -> None:
    answered, samples = Outputs(np.array([(1, 0)], np.float32), labels), split(torch.rand(1, 1, 8, 8))
    assert changed_examples(answered, outputs((0, 1)), samples) == []
    assert len(changed_examples(replace(answered, labels=np.array([0])), outputs((0, 1)), samples)) == 1


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_a_sample_with_a_pixel_that_is_not_finite_is_no_picture(odd: float) -> None:
    samples = torch.rand(1, 1, 8, 8)
    samples[0, 0, 3, 3] = odd
    (found,) = changed_examples(outputs((1, 0)), outputs((0, 1)), split(samples))
    assert found["image"] is None


def test_tokens_are_told_as_words_where_the_vocabulary_is_at_hand() -> None:
    tokenizer = Tokenizer(("a", "good", "film"), max_tokens=6)
    tokens = torch.from_numpy(tokenizer.encode(["A good weird film"]))
    files = {"vocab.json": tokenizer.to_json()}
    (found,) = changed_examples(outputs((1, 0)), outputs((0, 1)), split(tokens), files=files)
    assert found["text"] == "a good … film"
    assert found["image"] is None
    (found,) = changed_examples(outputs((1, 0)), outputs((0, 1)), split(tokens))
    assert found["text"] is None


def test_probabilities_of_a_softmax_stay_and_a_single_logit_is_a_yes_or_no() -> None:
    shares = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(probabilities(shares), shares)
    np.testing.assert_allclose(probabilities(np.array([[0.0], [100.0]], np.float32)), [[0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(probabilities(2 * shares).sum(axis=1), 1)


def _flipped(path: Path, flip: bool) -> OnnxModel:
    node = helper.make_node("Neg" if flip else "Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "model", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return OnnxModel(path, (InputSpec("x", (2,)),), 17)


def test_only_samples_that_changed_are_run_again(tmp_path: Path) -> None:
    asked: list[int] = []
    samples = torch.rand(20, 2)

    def fetch(indices: NDArray[np.int64]) -> Batch:
        asked.extend(indices.tolist())
        return (samples[torch.from_numpy(indices)],), None

    part = Split("test", fetch, np.arange(20))
    data = Data("made", part, part, part, part, (InputSpec("x", (2,)),), "")
    top = samples.numpy().argmax(axis=1)
    changed = np.where(np.isin(np.arange(20), (4, 9)), 1 - top, top)
    models = _flipped(tmp_path / "a.onnx", False), _flipped(tmp_path / "b.onnx", True)
    kept = Kept(None, {"baseline-fp32": top, "int8": changed})
    found = most_changed(*models, ("baseline-fp32", "int8"), kept, data)
    assert sorted(entry["index"] for entry in found) == [4, 9]
    assert set(asked) == {4, 9}
    assert most_changed(*models, ("baseline-fp32", "gone"), kept, data) == []
    assert most_changed(*models, ("baseline-fp32", "baseline-fp32"), kept, data) == []
