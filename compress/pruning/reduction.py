"""Recursive reduction: channels leave group by group for as long as loss and accuracy stay near the original's."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import PruningError, RecipeError
from compress.models.capacity import capacity
from compress.pruning.evidence import from_weights
from compress.pruning.groups import channel_groups
from compress.pruning.history import History, Round, Trial
from compress.pruning.importance import scores as importance_of
from compress.pruning.pruned import as_tuple, held
from compress.pruning.surgery import cut, kept_of
from compress.pruning.values import ChannelGroup, Kept
from compress.training import FineTuneConfig
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

# Trains a module in place with the user's own loop; returns its loss and its accuracy (0..1) on held-out data.
TrainAndEvaluate = Callable[[nn.Module], tuple[float, float]]

ROUNDING = 1e-9  # a figure exactly on a threshold is within it
NOISE = 0.1  # share of the thresholds: smaller differences between candidates mean nothing


@dataclass(frozen=True)
class ReduceConfig:
    """How far each probe goes, what it may cost, and how the candidates are retrained."""

    step: float = 100  # channels that leave a group in its first probe; below 1: that share of its channels
    loss_threshold: float = 0.05  # how far the held-out loss may be above the original's
    accuracy_threshold: float = 0.003  # fraction 0..1: how far the held-out accuracy may be below the original's
    probes: int | None = None  # candidates retrained in a round, the least important first; None: all
    rounds: int = 100  # at most
    finest: float = 0.02  # share 0..1 of a group's channels: for fewer it is not probed (a single one always is)
    importance: Literal["l1", "l2", "bn_scale", "lamp", "random"] = "l2"  # what leaves first, judged by weights
    fresh: bool = (
        False  # re-initialise every candidate before it is retrained, as published: a baseline to compare with
    )
    keep: tuple[str, ...] = ()  # name patterns of groups or parameters that stay whole (fnmatch: "features.*")
    epochs: float = 1.0  # passes over the training split for each candidate
    min_steps: int = 200  # optimizer steps for each candidate at least
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        problems = [f"{name}={value} {allowed}" for name, value, broken, allowed in self._rules() if broken]
        if problems:
            raise RecipeError("; ".join(problems))

    def _rules(self) -> list[tuple[str, Any, bool, str]]:
        """(field, value, broken, what is allowed) for each rule."""
        whole = self.step < 1 or float(self.step).is_integer()
        return [
            ("step", self.step, not (self.step > 0 and whole), "must be a whole number, or a share between 0 and 1"),
            ("loss_threshold", self.loss_threshold, self.loss_threshold < 0, "must not be negative"),
            ("accuracy_threshold", self.accuracy_threshold, not 0 <= self.accuracy_threshold <= 1, "must be in 0..1"),
            ("probes", self.probes, self.probes is not None and self.probes < 1, "must be at least 1"),
            ("rounds", self.rounds, self.rounds < 0, "must not be negative"),
            ("finest", self.finest, not 0 <= self.finest < 1, "must be within 0 <= finest < 1"),
            ("epochs", self.epochs, not self.epochs > 0, "must be above 0"),
            ("min_steps", self.min_steps, self.min_steps < 0, "must not be negative"),
        ]


@dataclass(frozen=True)
class Reduction:
    """The smallest model that was within the thresholds, and how it was found."""

    module: nn.Module
    kept: Kept  # against the module that was given
    history: History


@dataclass(frozen=True)
class _Candidate:
    """A group with fewer channels, not yet cut."""

    group: ChannelGroup
    left: Tensor  # (kept,) channel numbers of the group, ascending
    removed: int
    importance: float  # share 0..1 of what the group has left


@dataclass(frozen=True)
class _Outcome:
    """A candidate that was cut, retrained and evaluated."""

    candidate: _Candidate
    module: nn.Module
    kept: Kept
    trial: Trial


def reduce(
    module: nn.Module,
    train_and_evaluate: TrainAndEvaluate,
    example_inputs: Any,
    config: ReduceConfig | None = None,
    *,
    original: tuple[float, float] | None = None,
    groups: Sequence[ChannelGroup] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **fields: Any,
) -> Reduction:
    """Reduce ``module`` for as long as a retrained candidate stays within thresholds around the original.

    In each round every group of channels that can leave is probed with its step of channels fewer, those of least
    importance. The ``probes`` candidates that lose the least importance are cut and retrained from their trained
    weights; of those within both thresholds the best is kept: the one that saves the most parameters for what it uses
    of the thresholds. Its group's step doubles; the step of a candidate outside the thresholds halves, and its group
    waits until the others have had their turn. A step is never more than half of what a group has left. It ends when
    no group is worth another probe, or after ``rounds``.

    Args:
        module: Stays as it is.
        train_and_evaluate: Trains the module it is given in place, and returns its loss and accuracy on held-out data.
        example_inputs: A tensor or a tuple of tensors (N, …), as the forward takes them.
        config: The options; its fields for ``train_and_evaluate`` (epochs, finetune) are not used here.
        original: Loss and accuracy of ``module`` as it is; None: a copy of it is trained and evaluated first, and is
            what gets reduced.
        groups: The result of `channel_groups`, where it is known.
        seed: Of torch's generator, set anew before every training.
        progress: Told after every candidate.
        fields: Fields of the config by name: step=100, loss_threshold=0.05, accuracy_threshold=0.003, …

    Returns:
        The reduced module; a copy of the (trained) original where no candidate stayed within the thresholds.

    Raises:
        PruningError: no channels can leave, or the original's own loss and accuracy are not finite.
    """
    config = dataclasses.replace(config or ReduceConfig(), **fields)
    inputs = as_tuple(example_inputs)
    found = _reducible(held(channel_groups(module, inputs) if groups is None else groups, config.keep))
    search = _Search(module, train_and_evaluate, inputs, config, found, seed, progress)
    search.start(original)
    while search.number < config.rounds and search.candidates():
        search.tell()
        search.run_round()
    progress(ROUNDS, config.rounds, config.rounds)
    history = History(search.loss_limit, search.accuracy_limit, tuple(search.rounds))
    return Reduction(search.best, search.kept, history)


def _reducible(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    chosen = [group for group in groups if group.frozen is None and group.channels > 1]
    if not chosen:
        reasons = "; ".join(f"{group.name}: {group.frozen or 'a single channel'}" for group in groups[:3])
        raise PruningError(f"none of the {len(groups)} channel groups can be reduced ({reasons}). See reduce.keep.")
    return chosen


ROUNDS = "rounds of reduce"


class _Search:
    """The best model so far, and where the next probes go."""

    def __init__(
        self,
        module: nn.Module,
        train_and_evaluate: TrainAndEvaluate,
        example_inputs: tuple[Tensor, ...],
        config: ReduceConfig,
        groups: Sequence[ChannelGroup],
        seed: int,
        progress: Progress,
    ) -> None:
        # The best weights at their places in the original: every candidate is cut from it, in the original's numbers.
        self.full = copy.deepcopy(module)
        self.best = copy.deepcopy(module)
        self.kept: Kept = {}
        self.rounds: list[Round] = []
        self.loss_limit = self.accuracy_limit = math.nan
        self._train, self._example, self._config, self._groups = train_and_evaluate, example_inputs, config, groups
        self._left = {g.name: torch.arange(g.channels) for g in groups}
        self._steps = {g.name: first_step(config.step, g.channels) for g in groups}
        self._failures = {g.name: 0 for g in groups}  # since the group was last reduced
        self._seed, self._progress = seed, progress
        self._trainings = 0
        self._scored: dict[str, Tensor] | None = None  # by group; of the weights in self.full

    @property
    def number(self) -> int:
        """Rounds run so far."""
        return len(self.rounds) - 1

    def start(self, original: tuple[float, float] | None) -> None:
        """Fix the thresholds by the original."""
        started = time.perf_counter()
        if original is None:
            original = self._trained(self.best)
            write_back(self.full, self.best, self.kept)
        loss, accuracy = original
        if not (math.isfinite(loss) and math.isfinite(accuracy)):
            raise PruningError(f"the original's loss is {loss} and its accuracy {accuracy}: train it first.")
        self.loss_limit = loss + self._config.loss_threshold
        self.accuracy_limit = accuracy - self._config.accuracy_threshold
        seconds = time.perf_counter() - started
        bits = capacity(self.best, self._example)
        self.rounds.append(Round(0, self._widths(), loss, accuracy, _parameters(self.best), bits, seconds))

    def tell(self) -> None:
        """How far the search is, and its best so far."""
        first, now = self.rounds[0], self.rounds[-1]
        share = now.parameters / first.parameters
        best = f"best: {share:.0%} of the parameters, accuracy {now.accuracy:.4f}, {first.accuracy:.4f} originally"
        self._progress(ROUNDS, self.number, self._config.rounds, best)

    def candidates(self) -> list[_Candidate]:
        """What is worth a retraining, in the order in which it is tried."""
        found = [self._candidate(group) for group in self._groups if self._removable(group) > 0]
        found.sort(key=lambda c: (self._failures[c.group.name], c.importance))
        return found[: self._config.probes]

    def run_round(self) -> None:
        """Retrain candidates and keep the best of those within the thresholds, where there is one."""
        started = time.perf_counter()
        outcomes = self._probe_each(self.candidates())
        for failed in (o for o in outcomes if not o.trial.within):
            name = failed.candidate.group.name
            self._steps[name] = failed.candidate.removed // 2
            self._failures[name] += 1
        within = [o for o in outcomes if o.trial.within]
        best = max(within, key=self._trade) if within else None
        if best is not None:
            self._keep(best)
        now = self.rounds[-1] if best is None else best.trial
        after = Round(
            number=self.number + 1,
            widths=self._widths(),
            loss=now.loss,
            accuracy=now.accuracy,
            parameters=now.parameters,
            capacity=now.capacity,
            seconds=time.perf_counter() - started,
            chosen=None if best is None else best.candidate.group.name,
            trials=tuple(outcome.trial for outcome in outcomes),
        )
        self.rounds.append(after)
        logger.info("round %d: %s", after.number, after.chosen or "no candidate within the thresholds")

    def _keep(self, outcome: _Outcome) -> None:
        name = outcome.candidate.group.name
        self.best, self.kept = outcome.module, outcome.kept
        write_back(self.full, outcome.module, outcome.kept)
        self._scored = None
        self._left[name] = outcome.candidate.left
        self._steps[name] = 2 * outcome.candidate.removed
        self._failures[name] = 0

    def _removable(self, group: ChannelGroup) -> int:
        """Channels that the next probe of a group takes; 0: it is not worth one."""
        left = len(self._left[group.name])
        step = min(self._steps[group.name], left // 2)
        return step if step >= max(1, round(self._config.finest * left)) else 0

    def _candidate(self, group: ChannelGroup) -> _Candidate:
        left, removed = self._left[group.name], self._removable(group)
        scores = self._scores()[group.name][left]
        order = scores.argsort(stable=True)
        stays = left[order[removed:].sort().values]
        share = scores[order[:removed]].sum() / scores.sum().clamp_min(torch.finfo(scores.dtype).tiny)
        return _Candidate(group, stays, removed, float(share))

    def _scores(self) -> dict[str, Tensor]:
        if self._scored is None:
            evidence = from_weights(self.full, self._seed)
            self._scored = importance_of(self._groups, evidence, self._config.importance)
        return self._scored

    def _probe_each(self, candidates: Sequence[_Candidate]) -> list[_Outcome]:
        outcomes = []
        for number, candidate in enumerate(candidates, start=1):
            outcome = self._probe(candidate)
            if outcome is None:
                continue
            outcomes.append(outcome)
            trial = outcome.trial
            note = f"{trial.group} -{trial.removed}: loss {trial.loss:.3f}, accuracy {trial.accuracy:.4f}"
            self._progress("candidates", number, len(candidates), f"{note}{'' if trial.within else ', outside'}")
        return outcomes

    def _probe(self, candidate: _Candidate) -> _Outcome | None:
        """Cut, retrain and evaluate one candidate; None where it cannot be cut: then its group is left alone."""
        started = time.perf_counter()
        name = candidate.group.name
        kept = kept_of(self.full, self._groups, {**self._left, name: candidate.left})
        try:
            module = cut(self.full, self._groups, kept, self._example)
        except PruningError as error:
            logger.warning("%s keeps its %d channels: %s", name, len(self._left[name]), error)
            self._steps[name] = 0
            return None
        if self._config.fresh:
            reinitialise(module, self._seed + self._trainings)
        loss, accuracy = self._trained(module)
        within = loss <= self.loss_limit + ROUNDING and accuracy >= self.accuracy_limit - ROUNDING
        trial = Trial(
            group=name,
            removed=candidate.removed,
            importance=candidate.importance,
            loss=loss,
            accuracy=accuracy,
            parameters=_parameters(module),
            capacity=capacity(module, self._example),
            within=within,
            seconds=time.perf_counter() - started,
        )
        return _Outcome(candidate, module, kept, trial)

    def _trained(self, module: nn.Module) -> tuple[float, float]:
        torch.manual_seed(self._seed + self._trainings)
        self._trainings += 1
        loss, accuracy = self._train(module)
        return float(loss), float(accuracy)

    def _trade(self, outcome: _Outcome) -> float:
        """Share of the parameters saved, for the larger share that is used of the two thresholds."""
        saved = 1 - outcome.trial.parameters / self.rounds[-1].parameters
        first, trial, config = self.rounds[0], outcome.trial, self._config
        used = max(
            (trial.loss - first.loss) / max(config.loss_threshold, ROUNDING),
            (first.accuracy - trial.accuracy) / max(config.accuracy_threshold, ROUNDING),
        )
        return saved / max(used, NOISE)

    def _widths(self) -> dict[str, int]:
        return {name: len(left) for name, left in self._left.items()}


def first_step(step: float, channels: int) -> int:
    """``step`` in channels, at least one."""
    return max(1, round(step * channels if step < 1 else step))


@torch.no_grad()
def write_back(full: nn.Module, reduced: nn.Module, kept: Kept) -> None:
    """Put the weights of ``reduced`` at their places in ``full``, the module that it was cut from by ``kept``.

    What has left becomes zero: it has no say any more in how important the rest is.
    """
    theirs = _tensors(reduced, every_name=True)
    for name, whole in _tensors(full).items():
        values = theirs[name].to(whole.device)
        if not kept.get(name):
            whole.copy_(values)
            continue
        axes = [kept[name].get(axis, torch.arange(size)) for axis, size in enumerate(whole.shape)]
        whole.zero_()
        whole[torch.meshgrid(*axes, indexing="ij")] = values


def _tensors(module: nn.Module, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers; of tied ones the first name, or every name."""
    return dict(module.named_parameters(remove_duplicate=not every_name)) | dict(
        module.named_buffers(remove_duplicate=not every_name)
    )


def reinitialise(module: nn.Module, seed: int) -> None:
    """Draw the weights of every layer anew, by its own ``reset_parameters``."""
    torch.manual_seed(seed)
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
