"""The rounds of the prune stage: what share next, one cut and fine-tuning to it, and the best model so far."""

from __future__ import annotations

import copy
import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from compress.errors import PruningError
from compress.files import cache_directory
from compress.pruning.allocation import Allocation, candidate_widths, ranked, uniform
from compress.pruning.blocks import Answers, least_missed, removable, residual_blocks, skip, within, without
from compress.pruning.candidates import Candidate, Failure, Round
from compress.pruning.cost import CostModel
from compress.pruning.groups import Structure, analyse
from compress.pruning.importance import scores
from compress.pruning.latency import LatencyModel, share_of_rest
from compress.pruning.pruned import (
    Budget,
    PrunedModel,
    compose,
    cut_what_can,
    evidence_for,
    held,
    layer_latency,
    shapes_of,
)
from compress.pruning.shares import CLOSE, next_share
from compress.training import Outcome, Recovery, last_step, reestimate, way_back, worth_more
from compress.units import signed
from compress.values import Context, Model

if TYPE_CHECKING:
    from compress.pruning.stage import PruneConfig

logger = logging.getLogger(__name__)

# How many times faster the second model is than the first, both as float ONNX on this machine.
MeasureSpeedup = Callable[[Model, Model], float]

SAMPLES = 256  # that tell how much is lost before any training
MEASUREMENTS = 3  # of a model before it is trained, to find the widths that reach a speed-up


class Search:
    """The rounds so far, and the best model among them."""

    def __init__(
        self,
        model: Model,
        config: PruneConfig,
        context: Context,
        measure: MeasureSpeedup | None,
        needed: Sequence[str] = (),
    ) -> None:
        assert context.data is not None
        assert context.original is not None
        self.model, self.config, self.context, self.measure = model, config, context, measure
        self.data = context.data
        calibration = context.data.calibration
        self.example = calibration.fetch(calibration.indices[:1])[0]
        self.structure = self._analyse(model.module)
        if all(group.frozen for group in self.structure.groups):
            raise PruningError("no channels can leave this model; `compress inspect` tells why.")
        self.refused = ""  # why no narrower model could be had
        self.dense = Candidate(model.module, {}, 1.0, _widths(self.structure))
        self.whole = self.dense  # what predictions of latency start from: the dense model, or the last shorter one
        self._analysed = [(self.dense, self.structure)]  # and the last ones, for several questions ask for them
        self.staying = (*config.keep, *needed)
        # Residual blocks that leave in one round at most.
        searched = config.goal[1] is None and (measure is not None or config.goal[0] != "latency")
        self.most_blocks = sys.maxsize if config.blocks and searched else 0
        self.allowed = config.budget * context.max_drop
        self.best: Candidate | None = None
        self.drop = 0.0  # of the best
        self.failures: list[Failure] = []
        self.near: tuple[Candidate, float] | None = None  # outside the budget by little, and its drop: trained again
        self.rounds: list[Round] = []
        self.timed: list[tuple[float, float]] = []  # shares of the latency: of the layers alone, and as measured
        self.recovery = Recovery(context.original, context.data, context, config.finetune)

    def run_round(self) -> bool:
        """Train and score one candidate; False where there is none, or no round left."""
        candidate = self._next() if len(self.rounds) < self.config.rounds else None
        if candidate is None:
            return False
        near, self.near = self.near, None
        if near is None:
            reestimate(candidate.module, self.data.train, seed=self.context.seed, device=self.context.device)
        outcome = self._train(candidate, 1)
        base = self.best or self.dense
        fewer = len(candidate.skipped) - len(base.skipped)
        if self.rounds[-1].within:
            self.best, self.drop = candidate, outcome.drop
            if fewer:
                self.whole, self.timed = candidate, []
            return True
        if worth_more(outcome.drop, None if near is None else near[1], self.allowed, self.recovery.reach):
            self.near = candidate, outcome.drop
        if not fewer:
            self.failures.append(Failure(candidate.left, outcome.drop, base.left))
        elif self.near is None:  # tells nothing about widths
            self.most_blocks = fewer // 2
        return True

    def polish(self) -> None:
        """Train the best model for the rounds that are left, where as little as possible was to be left.

        They are part of what the user allowed, and what later stages take needs all the accuracy there is.
        """
        rest = self.config.rounds - len(self.rounds)
        if self.best is None or rest < 1 or self.config.goal[1] is not None:
            return
        longer = dataclasses.replace(self.best, module=copy.deepcopy(self.best.module))
        outcome = self._train(longer, rest)
        if outcome.drop <= self.drop:
            self.best, self.drop = longer, outcome.drop

    def _next(self) -> Candidate | None:
        """What to train: of a narrower model and a shorter one that which lost least for what it saves."""
        if self.near is not None:
            return self.near[0]
        base = self.best or self.dense
        narrower = self._narrower(base)
        shorter = self._shorter(base, narrower) if self.most_blocks else None
        if narrower is None or shorter is None:
            return narrower or shorter
        lost = {one.left: self._answers.divergence(one.module) / (base.left - one.left) for one in (shorter, narrower)}
        return min(shorter, narrower, key=lambda one: lost[one.left])

    def _narrower(self, base: Candidate) -> Candidate | None:
        """A share at which no narrower model is to be had counts as a failure without training."""
        while (target := self._target()) is not None:
            candidate = self._reach(base, target)
            if candidate is not None:
                return candidate
            self.failures.append(Failure(target, None, base.left))
        return None

    def _shorter(self, base: Candidate, narrower: Candidate | None) -> Candidate | None:
        """Without the residual blocks that are missed least, about as many as save what a narrower model does."""
        blocks = removable(residual_blocks(base.module, self.example), base.module, self.staying)
        saves = {name: base.left * share for name in blocks if (share := self._share_of(base, name)) > 0}
        if not saves:
            return None
        lost = {}
        for number, name in enumerate(saves, start=1):
            lost[name] = self._answers.divergence(skip(base.module, [name]))
            self.context.progress("leaving out blocks", number, len(saves), name)
        wanted = 0.0 if narrower is None else base.left - narrower.left
        chosen = least_missed(saves, lost, wanted, self.most_blocks)
        skipped = (*base.skipped, *chosen)
        widths = {name: width for name, width in base.widths.items() if not within(name, skipped)}
        left = base.left - sum(saves[name] for name in chosen)
        candidate = Candidate(skip(base.module, chosen), without(base.kept, chosen), left, widths, skipped)
        if self.config.goal[0] == "latency":
            candidate = dataclasses.replace(candidate, left=self._measured(candidate))
        return candidate if candidate.left < base.left / CLOSE else None

    def _share_of(self, base: Candidate, block: str) -> float:
        """The share of what is counted that lies within a block."""
        structure = self._structure_of(base)
        if self.config.goal[0] == "latency":
            return self._layers(base, structure).share_of(f"{block}.")
        if self.config.goal[0] == "macs":
            counts = [(use.weight, use.macs) for use in structure.layers]
        else:
            counts = [(name, parameter.numel()) for name, parameter in base.module.named_parameters()]
        return sum(count for name, count in counts if within(name, [block])) / sum(count for _, count in counts)

    @cached_property
    def _answers(self) -> Answers:
        assert self.context.original is not None
        return Answers(self.context.original.module, self.data.calibration.take(SAMPLES))

    def _target(self) -> float | None:
        """The share to leave next; None: there is none."""
        left = None if self.best is None else self.best.left
        # What failed above the best was refuted by it.
        failures = [failure for failure in self.failures if left is None or failure.left < left]
        for failure in sorted(failures, key=lambda failure: -failure.left):
            # Half-way back where it could not even be cut.
            way = 0.5 if failure.drop is None else way_back(self.drop, failure.drop, self.allowed)
            target = next_share(left, failure.left, self.config, way)
            # Too near the best to try between them. Cut from a wider model, which had been trained for fewer rounds, it
            # tells little about one with accuracy to spare: what bounds the search then is the next failure below it.
            stale = left is not None and failure.base > left * CLOSE and self.drop <= self.allowed / 2
            if target is not None or not stale or self.config.goal[1] is not None:
                return target
        base = self.best or self.dense
        least = min(self._least(base), base.left)
        goods = [(max(r.left - least, 1e-9), r.drop) for r in self.rounds if r.within]
        last = goods and len(self.rounds) == self.config.rounds - 1
        step = last_step(goods, self.allowed) if last else 0.5
        return next_share(left, None, self.config, step=step, least=least)

    def _train(self, candidate: Candidate, rounds: int) -> Outcome:
        """Train it for as many rounds, and note what came of it."""
        steps = self.recovery.steps(self.config.epochs, self.config.min_steps)
        outcome = self.recovery.train(
            candidate.module,
            steps=rounds * steps,
            seed=self.context.seed * 1000 + 500 + len(self.rounds),  # other batches than those of sparsify
            label=f"prune to {candidate.left:.0%} of the {self.config.goal[0]}",
        )
        within = outcome.drop <= self.allowed + 1e-9
        macs, parameters = self._cost(candidate)
        self.rounds.append(Round(candidate.left, macs, parameters, outcome.drop, outcome.loss, outcome.steps, within))
        logger.info("prune: %.3f left, drop %.4f, %.4f allowed", candidate.left, outcome.drop, self.allowed)
        return outcome

    def tell(self, done: int) -> None:
        """How far the search is, and its best so far."""
        counted, best = self.config.goal[0], ""
        if self.best is not None:
            best = f"best: {self.best.left:.0%} of the {counted}, {signed(self.drop)} of {self.allowed:.4f} lost"
        self.context.progress("rounds of prune", done, self.config.rounds, best)

    def figures(self) -> dict[str, Any]:
        last = self.best or self.dense
        macs, parameters = self._cost(last)
        full_macs, full_parameters = self._cost(self.dense)
        return {
            "macs": [full_macs, macs],
            "parameters": [full_parameters, parameters],
            "widths": {
                name: [full, 0 if within(name, last.skipped) else last.widths.get(name, full)]
                for name, full in self.dense.widths.items()
            },
            "skipped": list(last.skipped),
            "frozen": {g.name: g.frozen for g in self.structure.groups if g.frozen is not None},
            "rounds": [dataclasses.asdict(r) for r in self.rounds],
        }

    def notes(self) -> tuple[str, ...]:
        assert self.best is not None
        (macs, parameters), (full_macs, full_parameters) = self._cost(self.best), self._cost(self.dense)
        blocks = (f"left out: {', '.join(self.best.skipped)}",) if self.best.skipped else ()
        return (
            f"{parameters:,} of {full_parameters:,} parameters and {macs:,} of {full_macs:,} multiply-accumulates left",
            f"drops on validation, {self.allowed:.4f} allowed: "
            + ", ".join(f"{signed(r.drop)} at {r.left:.1%} of the {self.config.goal[0]}" for r in self.rounds),
            *blocks,
        )

    # -- one candidate -----------------------------------------------------------------------------------------------

    def _reach(self, base: Candidate, target: float) -> Candidate | None:
        """A candidate that leaves ``target``, of the latency as measured on the exported model; None: there is none."""
        counted, goal = self.config.goal
        asked, reached = target, None
        for _ in range(MEASUREMENTS):
            try:
                candidate = self._cut(base, asked)
            except PruningError as error:
                if goal is not None and not self.rounds and reached is None:
                    raise  # what was asked for cannot be had, however it would score
                self.refused = str(error)
                break
            timed = candidate is not None and counted == "latency" and self.measure is not None
            if candidate is not None and timed:
                candidate = self._timed(candidate)
            reached = candidate or reached
            if candidate is None or not timed or candidate.left <= target * CLOSE:
                break
            # What was measured corrects the predictions already; this is for what no rest explains.
            asked = target * self._share(base, candidate.widths) / candidate.left
        return reached if reached is not None and reached.left < base.left / CLOSE else None

    def _timed(self, candidate: Candidate) -> Candidate:
        """The same with what it really leaves of the latency, which all later predictions go by."""
        left, layers = self._measured(candidate), self._layers(self.whole, self._structure_of(self.whole))
        share = layers.milliseconds(candidate.widths) / layers.milliseconds({})
        self.timed.append((share, left / self.whole.left))
        return dataclasses.replace(candidate, left=left)

    def _measured(self, candidate: Candidate) -> float:
        """The share of the original's latency that it takes, as exported models."""
        assert self.measure is not None
        return 1 / self.measure(self.model, dataclasses.replace(self.model, module=candidate.module))

    def _cut(self, base: Candidate, target: float) -> Candidate | None:
        structure = self._structure_of(base)
        allocation = self._allocate(base, structure, target / base.left)
        pruned: PrunedModel = cut_what_can(base.module, structure.groups, allocation, self.example)
        if not pruned.kept:
            return None
        left = target if self.config.goal[0] == "channels" else self._share(base, pruned.widths)
        # A group can be down to one channel, and then has no width of its own any more.
        widths = {**base.widths, **pruned.widths}
        return Candidate(pruned.module, compose(base.kept, pruned.kept), left, widths, base.skipped)

    def _allocate(self, base: Candidate, structure: Structure, share: float) -> Allocation:
        config = self.config
        groups = structure.groups
        evidence = evidence_for(
            base.module,
            groups,
            config.importance,
            self.data.calibration,
            seed=self.context.seed,
            device=self.context.device,
            progress=self.context.progress,
        )
        ranking = scores(groups, evidence, config.importance)
        counted = config.goal[0]
        if counted == "channels":
            if config.scope == "uniform":
                return uniform(groups, ranking, 1 - share, config.round_to)
            return ranked(groups, ranking, 1 - share, config.floor, config.round_to)
        latency = self._latency(base, structure) if counted == "latency" else None
        return Budget(base.module, structure, ranking, counted, latency).allocate(share, config.floor, config.round_to)

    def _least(self, base: Candidate) -> float:
        """The share that is left at the narrowest widths; 0 where channels are counted, of which a share is asked."""
        config = self.config
        counted = config.goal[0]
        if counted == "channels":
            return 0.0
        free = [group for group in self._structure_of(base).groups if group.frozen is None]
        floors = (candidate_widths(g, config.floor, config.round_to, narrow=counted == "latency") for g in free)
        return self._share(base, {group.name: widths[0] for group, widths in zip(free, floors, strict=True)})

    def _share(self, base: Candidate, widths: Mapping[str, int]) -> float:
        """The share of multiply-adds, parameters or milliseconds that is left where ``base`` is cut to ``widths``."""
        counted, structure = self.config.goal[0], self._structure_of(base)
        if counted == "latency":
            return self._latency(base, structure).milliseconds(widths)
        cost = CostModel(structure.groups, structure.layers, shapes_of(base.module))
        count = cost.macs if counted == "macs" else cost.parameters
        return base.left * count(widths) / count({})

    def _latency(self, base: Candidate, structure: Structure) -> LatencyModel:
        """Shares of the original's latency at the widths of a structure."""
        rest = share_of_rest([layers for layers, _ in self.timed], [left for _, left in self.timed]) * self.whole.left
        return self._layers(base, structure).calibrated(base.left, min(rest, base.left / 2))

    def _layers(self, base: Candidate, structure: Structure) -> LatencyModel:
        """Milliseconds of the layers alone."""
        return layer_latency(
            base.module,
            structure,
            floor=self.config.floor,
            cache=cache_directory() / "layer-latency.json",
            progress=self.context.progress,
        )

    def _analyse(self, module: nn.Module) -> Structure:
        found = analyse(module, self.example, self.context.progress)
        return dataclasses.replace(found, groups=held(found.groups, self.config.keep))

    def _structure_of(self, base: Candidate) -> Structure:
        """Of a model that was cut before, floors and rounding go by the original's widths."""
        known = next((structure for one, structure in self._analysed if one is base), None)
        if known is None:
            found = self._analyse(base.module)
            groups = [dataclasses.replace(g, before=self.dense.widths.get(g.name)) for g in found.groups]
            known = dataclasses.replace(found, groups=groups)
            self._analysed = [(one, old) for one, old in self._analysed if one in (self.dense, self.whole)]
            self._analysed.append((base, known))
        return known

    def _cost(self, candidate: Candidate) -> tuple[int, int]:
        """MACs of a sample and parameters."""
        layers = [use for use in self.structure.layers if not within(use.weight, candidate.skipped)]
        cost = CostModel(self.structure.groups, layers, shapes_of(self.model.module))
        return cost.macs(candidate.widths), sum(p.numel() for p in candidate.module.parameters())


def _widths(structure: Structure) -> dict[str, int]:
    return {group.name: group.channels for group in structure.groups if group.frozen is None}
