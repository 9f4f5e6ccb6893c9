"""Training with and without pruning in real time, side by side: what it saves, and whether it costs accuracy."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.data.splits import Data, Split
from compress.errors import RecipeError, SparsityError
from compress.files import write_atomically
from compress.measurement.accuracy import Accuracy, accuracy, outputs_of, top1
from compress.measurement.significance import McNemar, SeedTests, Verdict, decide, mcnemar, mcnemar_pooled, paired_tests
from compress.models.flops import effective_flops, flops_by_weight
from compress.models.state import save_state
from compress.sparsity.masks import sparsifiable, sparsity_of
from compress.sparsity.realtime import RealtimeConfig, RealtimePruner
from compress.training.finetune import FineTuneConfig, finetune, plan_steps, thaw
from compress.values import Context, Model

logger = logging.getLogger(__name__)

ArmName = Literal["dense", "sparse"]
ARMS: tuple[ArmName, ArmName] = ("dense", "sparse")
MakeModel = Callable[[int], Model]  # a seed -> the model to start from, the same each time


@dataclass(frozen=True)
class PlainTraining(FineTuneConfig):
    """Training on labels alone, with the usual settings of the literature on pruning in real time."""

    batch_size: int = 64
    optimizer: Literal["adamw", "adam", "sgd"] = "adam"
    learning_rate: float = 0.001
    schedule: Literal["cosine", "constant"] = "constant"
    warm_up: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """For each seed one training without pruning and one with it; all else is the same."""

    epochs: float = 15.0  # passes over the training split
    seeds: int = 5  # pairs of trainings: seed, seed + 1, …
    margin: float = 0.01  # fraction 0..1 of accuracy: the largest loss that does not matter ("no worse than")
    fresh: bool = False  # new weights for each seed, of the architecture of the model that was given
    interval: int | str = "1 epoch"  # between two decisions of the pruner: "0.5 epochs", or optimizer steps
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)  # its ``steps``: by default the whole training
    finetune: PlainTraining = field(default_factory=PlainTraining)

    def __post_init__(self) -> None:
        problems = []
        if not self.epochs > 0:
            problems.append(f"epochs={self.epochs} must be above 0")
        if self.seeds < 1:
            problems.append(f"seeds={self.seeds} must be at least 1")
        if not 0 < self.margin < 1:
            problems.append(f"margin={self.margin} must be within 0 < margin < 1 (one point is 0.01)")
        try:
            self.interval_steps(1.0)
        except RecipeError as error:
            problems.append(str(error))
        if self.realtime.interval != RealtimeConfig.interval:
            problems.append(f"realtime.interval={self.realtime.interval} is not used here: give interval itself")
        if problems:
            raise RecipeError("; ".join(problems))

    def interval_steps(self, per_epoch: float) -> int:
        """``interval`` in optimizer steps, at least 1, where an epoch has ``per_epoch`` of them."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|steps?|epochs?)", str(self.interval).strip())
        number = float(found[1]) if found else 0.0
        epochs = found is not None and found[2].startswith("epoch")
        if number <= 0 or not (epochs or number.is_integer()):
            raise RecipeError(f"interval={self.interval!r} is none: write 100 (steps), '1 epoch' or '0.5 epochs'")
        return max(1, round(number * per_epoch if epochs else number))


@dataclass(frozen=True)
class Moment:
    """A training at the end of an interval or of an epoch."""

    step: int  # optimizer steps done
    epoch: float  # passes over the training split done
    loss: float  # mean over the steps of the last interval
    accuracy: float | None  # on validation, 0..1; None within an epoch
    sparsity: float  # zeros / elements of the sparsifiable weights
    action: str | None = None  # what the pruner decided here: raise, pause, regrow or hold


@dataclass(frozen=True)
class Arm:
    """One training that is done."""

    seed: int
    name: ArmName
    test: Accuracy
    validation: Accuracy
    parameters: int
    nonzero: int  # of all parameters
    sparsity: float  # zeros / elements of the sparsifiable weights
    flops: int  # of one sample, two a product; zeros counted
    effective_flops: int  # without the products with a zero weight
    started_from: str  # sha256 of the weights before the first step
    step_ms: tuple[float, ...]  # of every step but the first: data, forward, backward, optimizer, pruner
    predictions: tuple[int, ...]  # (N,) top-1 on the test split
    wrong: tuple[int, ...]  # which of them are wrong, by position
    history: tuple[Moment, ...]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,): whether each test sample was answered rightly."""
        answers = np.ones(self.test.n, np.bool_)
        answers[list(self.wrong)] = False
        return answers

    def summary(self) -> dict[str, Any]:
        """Plain values without what there is one of for each step or sample."""
        plain = dataclasses.asdict(self)
        del plain["step_ms"], plain["predictions"], plain["wrong"]
        plain["history"] = list(plain["history"])
        return plain | {
            "mean_step_ms": statistics.fmean(self.step_ms) if self.step_ms else None,
            "median_step_ms": statistics.median(self.step_ms) if self.step_ms else None,
            "steps_timed": len(self.step_ms),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Arm:
        """Read back what ``dataclasses.asdict`` and JSON made of an arm."""
        values = dict(stored)
        for name in ("test", "validation"):
            values[name] = Accuracy(**values[name])
        for name in ("step_ms", "predictions", "wrong"):
            values[name] = tuple(values[name])
        values["history"] = tuple(Moment(**moment) for moment in values["history"])
        return cls(**values)


@dataclass(frozen=True)
class Comparison:
    """Every pair of trainings, and what the tests say of them. Nothing was chosen by the test split."""

    dense: tuple[Arm, ...]  # one a seed
    sparse: tuple[Arm, ...]  # the same seeds
    tests: SeedTests  # over seeds, on test accuracy
    mcnemar: tuple[McNemar, ...]  # one a seed
    mcnemar_pooled: McNemar  # every test sample once, over all seeds
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in comparison.json: times in milliseconds, accuracies as fractions 0..1."""
        return {
            "arms": [arm.summary() for pair in zip(self.dense, self.sparse, strict=True) for arm in pair],
            "tests": dataclasses.asdict(self.tests),
            "mcnemar": [
                {"seed": arm.seed, **dataclasses.asdict(test)}
                for arm, test in zip(self.dense, self.mcnemar, strict=True)
            ],
            "mcnemar_pooled": dataclasses.asdict(self.mcnemar_pooled),
            "verdict": dataclasses.asdict(self.verdict),
        }


def compare(make_model: MakeModel, config: TrainConfig, context: Context, *, identity: str = "") -> Comparison:
    """Train every pair and test the differences.

    The two trainings of a seed start from the same weights and see the same samples in the same order with the same
    settings; they differ in the pruner alone. Which of them goes first alternates, so that a machine that slows down
    slows both. A finished training is written to ``context.directory`` at once, and one that is found there is not
    repeated: neither more seeds nor another margin make it another training.

    Args:
        make_model: Called with each seed. The same seed must give the same weights.
        config: See `TrainConfig`.
        context: Needs labelled data. Its seed is the first.
        identity: Of the model and the data: what was made from another one is trained again.

    Raises:
        SparsityError: there are no labels, the training is too short for any pruning, or the two trainings of a seed
            did not start from the same weights.
    """
    data = check(config, context.data)
    arms: dict[ArmName, list[Arm]] = {"dense": [], "sparse": []}
    for number in range(config.seeds):
        seed = context.seed + number
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            mark = _fingerprint(identity, data, seed, name, config)
            arm = _stored(context.directory, seed, name, mark)
            context.progress("trainings", sum(map(len, arms.values())), 2 * config.seeds)
            if arm is None:
                arm, trained = train_arm(make_model(seed), name, seed, config, context, f"seed {seed}, {name}")
                _store(context.directory, arm, trained, mark)
            arms[name].append(arm)
        if arms["dense"][-1].started_from != arms["sparse"][-1].started_from:
            raise SparsityError(
                f"seed {seed}: the trainings with and without pruning started from different weights. "
                "make_model must return the same weights for the same seed."
            )
    return conclude(tuple(arms["dense"]), tuple(arms["sparse"]), config.margin)


def check(config: TrainConfig, data: Data | None) -> Data:
    """Refuse (SparsityError) what trains for nothing: no labels, or no decision to remove weights in all of it."""
    if data is None or not data.labelled:
        raise SparsityError("training with and without pruning needs labels, and there are none: give labelled --data.")
    realtime, interval = config.realtime, config.interval_steps(len(data.train) / config.finetune.batch_size)
    steps = plan_steps(data.train, config.finetune, config.epochs)
    first, last = (realtime.start + 1) * interval, (1 - realtime.recover) * (realtime.steps or steps)
    if first > min(steps, last):
        raise SparsityError(
            f"nothing would be removed: the first decision that may is after {first} steps, the last one within "
            f"{math.floor(min(steps, last))} of {steps} (interval={config.interval!r}, "
            f"realtime.start={realtime.start}, realtime.recover={realtime.recover:g}). "
            "Give more epochs, or a shorter interval."
        )
    return data


def conclude(dense: tuple[Arm, ...], sparse: tuple[Arm, ...], margin: float) -> Comparison:
    """The tests on pairs of trainings that are done. Where one of them removed nothing there is no verdict."""
    tests = paired_tests([a.test.value for a in dense], [a.test.value for a in sparse], margin)
    first, second = np.stack([a.right for a in dense]), np.stack([a.right for a in sparse])  # (S, N)
    each = tuple(mcnemar(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    whole = [str(arm.seed) for arm in sparse if all(moment.action != "raise" for moment in arm.history)]
    verdict = decide(tests)
    if whole:
        what = "Not decided: the loss let nothing be removed with seed"
        verdict = Verdict("undecided", f"{what} {', '.join(whole)}. Raise the threshold, or decide more often.")
    return Comparison(dense, sparse, tests, each, mcnemar_pooled(first, second), verdict)


def train_arm(
    model: Model, name: ArmName, seed: int, config: TrainConfig, context: Context, label: str
) -> tuple[Arm, nn.Module]:
    """One training, from the weights of ``model``, which stay as they are; returns its figures and the module."""
    assert context.data is not None
    if not sparsifiable(model.module):
        raise SparsityError("the model has no weight with two or more axes: there is nothing to sparsify.")
    module = thaw(copy.deepcopy(model.module)).to(context.device)
    started_from = hashlib.sha256(save_state(module)).hexdigest()
    watch = _Watch(dataclasses.replace(model, module=module), name, seed, config, context)
    finetune(
        module,
        None,
        context.data.train,
        config.finetune,
        steps=watch.steps,
        seed=seed,
        device=context.device,
        after_step=watch,
        progress=context.progress,
        label=label,
    )
    return _measured(dataclasses.replace(model, module=module), name, seed, started_from, watch, context), module


def _measured(model: Model, name: ArmName, seed: int, started_from: str, watch: _Watch, context: Context) -> Arm:
    """What there is to tell of ``model`` once it is trained."""
    assert context.data is not None
    data, module = context.data, model.module
    outputs = outputs_of(model, data.test, device=context.device)
    assert outputs.labels is not None
    predictions = top1(outputs.values)
    flops = flops_by_weight(module, data.calibration.fetch(data.calibration.indices[:1])[0])
    return Arm(
        seed=seed,
        name=name,
        test=accuracy(outputs),
        validation=_score(model, data.validation, context.device),
        parameters=sum(p.numel() for p in module.parameters()),
        nonzero=sum(int(p.count_nonzero()) for p in module.parameters()),
        sparsity=sparsity_of(sparsifiable(module)),
        flops=sum(flops.values()),
        effective_flops=effective_flops(module, flops),
        started_from=started_from,
        step_ms=tuple(watch.step_ms),
        predictions=tuple(predictions.tolist()),
        wrong=tuple(np.flatnonzero(predictions != outputs.labels).tolist()),
        history=tuple(watch.history),
    )


class _Watch:
    """Runs after every optimizer step: prunes where it has to, takes times, and notes the course of the training."""

    def __init__(self, model: Model, name: ArmName, seed: int, config: TrainConfig, context: Context) -> None:
        assert context.data is not None
        self._model, self._context, self._validation = model, context, context.data.validation
        self._per_epoch = len(context.data.train) / config.finetune.batch_size
        self.steps = plan_steps(context.data.train, config.finetune, config.epochs)
        self._interval = config.interval_steps(self._per_epoch)
        self._epoch = max(1, round(self._per_epoch))
        self._pruner: RealtimePruner | None = None
        if name == "sparse":
            options = {f.name: getattr(config.realtime, f.name) for f in dataclasses.fields(config.realtime)}
            options |= {"interval": self._interval, "steps": config.realtime.steps or self.steps}
            self._pruner = RealtimePruner(model.module, **options | {"seed": config.realtime.seed + seed})
        self.step_ms: list[float] = []
        self.history: list[Moment] = []
        self._losses: deque[float] = deque(maxlen=self._interval)
        self._since: float | None = None

    def __call__(self, step: int, loss: float) -> None:
        if self._pruner is not None:
            self._pruner.step(loss)
        if self._since is not None:
            self.step_ms.append(round(1e3 * (time.perf_counter() - self._since), 4))
        self._losses.append(loss)
        if self._pruner is not None and step == self.steps:
            self._pruner.finish()
        epoch_ends = step % self._epoch == 0 or step == self.steps
        if epoch_ends or step % self._interval == 0:
            self._note(step, self._accuracy() if epoch_ends else None)
        self._since = time.perf_counter()  # what was done for the record is no part of the next step

    def _note(self, step: int, accuracy: float | None) -> None:
        decisions = self._pruner.history if self._pruner is not None else ()
        self.history.append(
            Moment(
                step=step,
                epoch=step / self._per_epoch,
                loss=statistics.fmean(self._losses),
                accuracy=accuracy,
                sparsity=sparsity_of(sparsifiable(self._model.module)),
                action=decisions[-1].action if decisions and decisions[-1].step == step else None,
            )
        )

    def _accuracy(self) -> float:
        modes = [(layer, layer.training) for layer in self._model.module.modules()]
        self._model.module.eval()
        found = _score(self._model, self._validation, self._context.device)
        for layer, training in modes:
            layer.training = training
        return found.value


def _score(model: Model, split: Split, device: str) -> Accuracy:
    return accuracy(outputs_of(model, split, device=device))


def _fingerprint(identity: str, data: Data, seed: int, name: ArmName, config: TrainConfig) -> str:
    """sha256 of what decides one training. The dense one does not depend on how the other is pruned."""
    shared = ("epochs", "fresh", "interval")  # the interval is that of the history
    decides: dict[str, Any] = {key: getattr(config, key) for key in shared}
    decides["finetune"] = dataclasses.asdict(config.finetune)
    if name == "sparse":
        decides["realtime"] = dataclasses.asdict(config.realtime)
    text = json.dumps([identity, data.sha256, seed, name, decides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_name(seed: int) -> str:
    """The file, in the directory of a comparison, with the sparse weights of a seed."""
    return f"weights-seed{seed}.safetensors"


def _record(directory: Path, seed: int, name: ArmName) -> Path:
    return directory / "arms" / f"seed{seed}-{name}.json"


def _store(directory: Path, arm: Arm, module: nn.Module, mark: str) -> None:
    if arm.name == "sparse":
        write_atomically(directory / weights_name(arm.seed), save_state(module))
    # Last: a record says that the weights are there.
    content = json.dumps({"fingerprint": mark, **dataclasses.asdict(arm)}, allow_nan=False)
    write_atomically(_record(directory, arm.seed, arm.name), content.encode() + b"\n")


def _stored(directory: Path, seed: int, name: ArmName, mark: str) -> Arm | None:
    """The arm as an earlier run left it; None where there is none, or where it was made from something else."""
    path = _record(directory, seed, name)
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s is not valid JSON: this training runs again", path)
        return None
    if stored.pop("fingerprint", None) != mark or (name == "sparse" and not (directory / weights_name(seed)).is_file()):
        logger.warning("%s was made with other options, or from another model: this training runs again", path)
        return None
    return Arm.from_dict(stored)
