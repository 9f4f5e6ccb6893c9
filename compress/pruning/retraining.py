"""Recursive reduction with this package's own training: every candidate is distilled from the original model."""

from __future__ import annotations

import dataclasses
import logging
import time

import torch
from torch import nn

from compress.errors import ModelError, PruningError
from compress.measurement import outputs_of, score
from compress.pruning.history import Round
from compress.pruning.reduction import ReduceConfig, Reduction, reduce
from compress.training import Recovery
from compress.training.finetune import loss_of
from compress.values import Context, Model, StageRecord

logger = logging.getLogger(__name__)


def reduce_model(model: Model, config: ReduceConfig, context: Context) -> tuple[Model, StageRecord, Reduction]:
    """Reduce ``model`` within the thresholds around the original, judged on the validation split.

    Candidates are trained on the training split by distillation from ``context.original``. The loss is the
    cross-entropy with the labels; without labels the divergence from the original, and accuracy is agreement with it.

    Returns:
        The reduced model (the given one is untouched), the record and the whole reduction. Where no candidate stayed
        within the thresholds: the model as it came, and a record that says so.

    Raises:
        PruningError: there is no data to train on, or no channels can leave.
    """
    started = time.perf_counter()
    if context.data is None or context.original is None:
        raise PruningError("reduce retrains every candidate, so it needs a torch model and data: give --data.")
    trainer = Distillation(config, context)
    example = context.data.calibration.fetch(context.data.calibration.indices[:2])[0]
    original = trainer.evaluate(context.original.module)
    reduction = reduce(
        model.module,
        trainer,
        example,
        config,
        original=original,
        seed=context.seed,
        progress=context.progress,
    )
    first, last = reduction.history.rounds[0], reduction.history.rounds[-1]
    record = StageRecord("reduce", dataclasses.asdict(config), time.perf_counter() - started, _figures(first, last))
    if not reduction.kept:
        reason = (
            f"no candidate stayed within loss {reduction.history.loss_limit:.4f} and accuracy "
            f"{reduction.history.accuracy_limit:.4f} on validation"
        )
        return model, dataclasses.replace(record, skipped=reason), reduction
    return dataclasses.replace(model, module=reduction.module), record, reduction


class Distillation:
    """Trains a module in place on the training split and evaluates it on the validation split."""

    def __init__(self, config: ReduceConfig, context: Context) -> None:
        assert context.data is not None
        assert context.original is not None
        self._original, self._config, self._context = context.original, config, context
        self._validation = context.data.validation
        self._recovery = Recovery(context.original, context.data, context, config.finetune)
        self._reference = outputs_of(context.original, self._validation, device=context.device)
        self._steps = self._recovery.steps(config.epochs, config.min_steps)
        self._trained = 0

    def __call__(self, module: nn.Module) -> tuple[float, float]:
        """Loss and accuracy on validation after training; infinite and 0 where training diverged."""
        self._trained += 1
        seed, label = self._context.seed * 1000 + self._trained, f"candidate {self._trained}"
        try:
            self._recovery.train(module, steps=self._steps, seed=seed, label=label)
        except ModelError as error:
            logger.warning("%s", error)
            module.to("cpu").eval()
            return float("inf"), 0.0
        return self.evaluate(module)

    def evaluate(self, module: nn.Module) -> tuple[float, float]:
        model = dataclasses.replace(self._original, module=module)
        outputs = outputs_of(model, self._validation, device=self._context.device)
        answers, theirs = torch.from_numpy(outputs.values), torch.from_numpy(self._reference.values)
        labels = None if outputs.labels is None else torch.from_numpy(outputs.labels)
        loss = loss_of(answers, theirs if labels is None else None, labels, self._config.finetune)
        return loss.item(), score(outputs, self._reference, self._context.metric).figure


def _figures(first: Round, last: Round) -> dict[str, object]:
    return {
        "widths": {name: [width, last.widths[name]] for name, width in first.widths.items()},
        "parameters": [first.parameters, last.parameters],
        "capacity_bits": [first.capacity, last.capacity],
        "validation_loss": [first.loss, last.loss],
        "validation_accuracy": [first.accuracy, last.accuracy],
        "rounds": last.number,
    }
