"""The trainers of the comparison: the same fine-tuning as this project's, honest searches, files with what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.peers import finetuning, prune_torch, reduce_recursively, search
from benchmarks.peers.exporting import export
from benchmarks.peers.finetuning import batches, distilling_mode, fast_layout, finetune, loss_of, rate
from benchmarks.peers.points import read_points
from benchmarks.peers.search import SHARE, Tried, climb, climb_again, write
from benchmarks.peers.task import Task, answers, flexible, read_task
from compress.models.reference import FineGrainedCNN, LSTMClassifier
from compress.training import FineTuneConfig
from compress.training.finetune import _batches, _rate
from compress.training.finetune import loss_of as own_loss

PEERS = Path(finetuning.__file__).parent


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The inputs of a task that an MLP has learnt perfectly: its own answers are the labels."""
    module, random = mlp().eval(), np.random.default_rng(0)
    torch.save(module, tmp_path / "model.pt")
    for split, count in (("train", 256), ("validation", 128)):
        x = random.normal(size=(count, 8)).astype(np.float32)
        labels = module(torch.from_numpy(x)).argmax(dim=1).numpy()
        np.savez(tmp_path / f"{split}.npz", x=x, labels=labels)
    budget = {"steps": 60, "batch_size": 32, "learning_rate": 0.01, "max_drop": 0.1, "seed": 0, "workload": "mlp"}
    budget |= {"input_names": ["x"], "baseline": {"validation": 1.0}}
    (tmp_path / "budget.json").write_text(json.dumps(budget))
    return tmp_path


@pytest.fixture
def task(folder: Path) -> Task:
    return read_task(folder)


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are empty: exporting takes seconds."""
    monkeypatch.setattr(search, "export", lambda module, example, names, path: path.touch())


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], folder: Path) -> Path:
    out = folder / "out"
    monkeypatch.setattr("sys.argv", ["script", str(folder), str(out)])
    main()
    return out


def test_the_loss_is_that_of_this_projects_fine_tuning() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 5, generator=generator)
    labels = torch.randint(5, (16,), generator=generator)
    for kind in (lambda x: x, lambda x: x.log_softmax(dim=1)):
        expected = own_loss(kind(student), kind(teacher), labels, FineTuneConfig())
        torch.testing.assert_close(loss_of(kind(student), kind(teacher), labels), expected)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_learning_rate_follows_this_projects_curve(steps: int) -> None:
    expected = [_rate(step, steps, FineTuneConfig()) for step in range(steps + 1)]
    assert [rate(step, steps) for step in range(steps + 1)] == pytest.approx(expected)


def test_the_batches_are_those_of_this_projects_fine_tuning() -> None:
    theirs = _batches(50, 16, torch.Generator().manual_seed(3))
    for mine in batches(50, 16, 9, seed=3):
        torch.testing.assert_close(mine, next(theirs))


def test_dropout_is_off_and_batch_normalisation_follows_the_data() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), FineGrainedCNN())
    distilling_mode(module)
    assert [layer.training for layer in module] == [False, True, False, False]


def test_fine_tuning_repairs_a_damaged_model_and_repeats_itself(task: Task) -> None:
    drops: list[float] = []
    for _ in range(2):
        module = mlp()
        with torch.no_grad():
            module[4].weight.neg_()
        before = search.score(task, 1.0, module, "damaged").drop
        finetune(task, module, 60)
        drops.append(search.score(task, 1.0, module, "repaired").drop)
    assert drops[0] == drops[1]
    assert drops[0] < before / 2
    assert not module.training


def attempts(task: Task, limit: float) -> tuple[list[float], Callable[[nn.Module, float], Tried]]:
    """A tool whose models are good up to the factor ``limit``, and the factors it was asked for."""
    asked: list[float] = []

    def attempt(module: nn.Module, factor: float) -> Tried:
        asked.append(factor)
        return Tried(factor, module, f"{factor:g}", 0.0 if factor <= limit else 1.0, 0.0)

    return asked, attempt


def test_factors_rise_until_one_is_too_much_then_it_goes_half_way_back(task: Task) -> None:
    asked, attempt = attempts(task, limit=10)
    tried = climb(task, [4, 16, 64], 4, attempt)
    assert asked == pytest.approx([4, 16, 8, math.sqrt(8 * 16)])
    asked, attempt = attempts(task, limit=7)
    climb_again(task, tried, 3, attempt)
    assert asked == pytest.approx([8, math.sqrt(4 * 8), math.sqrt(math.sqrt(32) * 8)])


def test_a_first_factor_that_is_too_much_is_followed_by_smaller_ones(task: Task) -> None:
    asked, attempt = attempts(task, limit=1.5)
    tried = climb(task, [4, 16], 3, attempt)
    assert asked == pytest.approx([4, 2, math.sqrt(2)])
    climb_again(task, tried[:2], 1, attempt)
    assert asked[3:] == pytest.approx([math.sqrt(2)])


def test_without_a_failure_factors_double_after_the_last(task: Task) -> None:
    asked, attempt = attempts(task, limit=100)
    climb(task, [4, 16], 4, attempt)
    assert asked == [4, 16, 32, 64]


def test_each_attempt_starts_from_the_best_so_far(task: Task) -> None:
    given: list[nn.Module] = []

    def attempt(module: nn.Module, factor: float) -> Tried:
        given.append(module)
        return Tried(factor, nn.Linear(1, 1), "", 0.0 if factor < 5 else 1.0, 0.0)

    tried = climb(task, [4, 16], 3, attempt)
    assert given == [task.module, tried[0].module, tried[0].module]


@pytest.mark.usefixtures("unexported")
def test_the_smallest_files_are_written_and_a_finisher_is_told_which_leave_it_room(task: Task, tmp_path: Path) -> None:
    share = SHARE * task.max_drop
    drops = {2.0: 0.0, 4.0: share, 8.0: share + 0.01, 16.0: task.max_drop + 0.01}
    free = [Tried(factor, task.module, f"{factor:g}", drop, 0.0) for factor, drop in drops.items()]
    rounded = [Tried(3.0, task.module, "rounded", 0.0, 0.0)]
    write(task, [free, rounded], tmp_path, 7)
    points = read_points(tmp_path)
    assert [(point.settings, point.within) for point in points] == [("8", False), ("rounded", True), ("4", True)]
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["p0.onnx", "p1.onnx", "p2.onnx"]
    assert json.loads((tmp_path / "points.json").read_text())["steps"] == 7


@pytest.mark.usefixtures("unexported")
def test_where_nothing_kept_its_accuracy_the_most_accurate_is_told_as_such(task: Task, tmp_path: Path) -> None:
    write(task, [[Tried(2.0, task.module, "a", 0.9, 0.0), Tried(3.0, task.module, "b", 0.8, 0.0)]], tmp_path, 1)
    assert [(point.settings, point.within) for point in read_points(tmp_path)] == [("b", False)]


def test_magnitude_pruning_writes_files_with_the_zeros_that_it_tells(
    folder: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_torch, "FACTORS", (2.0, 4.0))
    out = run(monkeypatch, prune_torch.main, folder)
    for point in read_points(out):
        amount = float(point.settings.split()[1].rstrip(","))
        initializers = [numpy_helper.to_array(tensor) for tensor in onnx.load(out / point.file).graph.initializer]
        weights = np.concatenate([array.ravel() for array in initializers if array.ndim > 1])
        assert np.mean(weights == 0) == pytest.approx(amount, abs=1 / weights.size)
        assert task.baseline - scored(out / point.file, task) == pytest.approx(point.validation_drop, abs=1e-6)
    assert json.loads((out / "points.json").read_text())["steps"] <= task.steps


def scored(path: Path, task: Task) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": task.validation.inputs[0].numpy()})
    return float(np.mean(outputs.argmax(axis=1) == task.validation.labels.numpy()))


def test_zeros_stay_in_recurrent_embedded_and_attending_weights() -> None:
    lstm = LSTMClassifier(vocabulary=20, embedding=4, hidden=8)
    attending = nn.TransformerEncoderLayer(8, 2, 16)
    found = {name for module in (lstm, attending) for _, name in prune_torch.weights(module)}
    recurrent = {f"weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)}
    assert found == {"weight", "in_proj_weight", *recurrent}
    for module in (lstm, attending):
        prune_torch.zero(module, 0.5)
        targets = prune_torch.weights(module)
        masks = [getattr(layer, name) != 0 for layer, name in targets]
        with torch.no_grad():
            for layer, name in targets:
                getattr(layer, name).add_(1.0)
        prune_torch.hold(module, masks)
        zeros = sum(int((getattr(layer, name) == 0).sum()) for layer, name in targets)
        assert zeros / sum(mask.numel() for mask in masks) == pytest.approx(0.5, abs=0.01)


@pytest.mark.usefixtures("unexported")
def test_recursive_reduction_halves_a_layer_of_the_last_net_that_passed_with_fresh_weights(
    folder: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce_recursively, "LOSS", math.inf)
    monkeypatch.setattr(reduce_recursively, "ACCURACY", 1.0)
    monkeypatch.setattr(reduce_recursively, "TRAININGS", 3)
    tried = reduce_recursively.reduce(task, steps=2)
    assert [reduce_recursively.widths_of(one.module) for one in tried] == [[16, 16], [8, 16], [4, 16]]
    monkeypatch.setattr(reduce_recursively, "LOSS", -math.inf)
    tried = reduce_recursively.reduce(task, steps=1)
    assert [reduce_recursively.widths_of(one.module) for one in tried] == [[16, 16], [32, 8], [24, 16]]
    assert not torch.equal(tried[1].module[0].weight, task.module[0].weight)
    out = run(monkeypatch, reduce_recursively.main, folder)
    assert read_points(out)


@pytest.mark.parametrize("recurrent", [False, True])
def test_an_exported_model_answers_as_torch_for_every_batch_and_tells_nothing_of_its_origin(
    tmp_path: Path, recurrent: bool
) -> None:
    torch.manual_seed(0)
    module: nn.Module = LSTMClassifier(vocabulary=20, embedding=4, hidden=8) if recurrent else FineGrainedCNN()
    x = torch.randint(20, (5, 6)) if recurrent else torch.randn(5, 1, 28, 28)
    export(module.eval(), (x[:2],), ["x"], tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert (proto.ir_version, [opset.version for opset in proto.opset_import if opset.domain == ""]) == (10, [18])
    assert not any(len(node.metadata_props) or node.doc_string for node in proto.graph.node)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        (found,) = session.run(None, {"x": x[:count].numpy()})
        np.testing.assert_allclose(found, module(x[:count]).detach().numpy(), atol=1e-5)


def test_the_cnn_with_a_hard_coded_view_runs_with_fewer_channels_once_it_is_flattened() -> None:
    torch.manual_seed(0)
    dense, x = FineGrainedCNN().eval(), torch.randn(2, 1, 28, 28)
    module = flexible(dense)
    torch.testing.assert_close(module(x), dense(x))
    module.conv3, module.fc1 = nn.Conv2d(32, 8, 5), nn.Linear(3 * 3 * 8, 256)
    assert module(x).shape == (2, 10)


def test_the_layout_in_which_a_model_is_trained_changes_no_answer_and_is_left_where_it_does_not_run() -> None:
    torch.manual_seed(0)
    free = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 2))
    hard_coded = FineGrainedCNN().eval()
    for module, x, fast in ((free, torch.randn(2, 3, 4, 4), True), (hard_coded, torch.randn(2, 1, 28, 28), False)):
        before = module(x)
        fast_layout(module, (x,))
        torch.testing.assert_close(module(x), before)
        kernel = next(p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1)
        assert kernel.is_contiguous() is not fast


def test_answers_come_in_the_order_of_the_samples(task: Task) -> None:
    few = replace(task.validation, inputs=(task.validation.inputs[0][:3],), labels=task.validation.labels[:3])
    torch.testing.assert_close(answers(task.module, few), answers(task.module, task.validation)[:3])


def test_a_peers_script_is_short() -> None:
    names = ("prune_torch", "prune_torch_pruning", "reduce_recursively")
    for name in (*names, "task", "finetuning", "search", "exporting", "points"):
        assert len((PEERS / f"{name}.py").read_text().splitlines()) < 100, name
