"""The prune stage: the strongest reduction whose fine-tuned model stays within its share of the accuracy budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from compress.errors import PruningError, RecipeError
from compress.pruning.pruned import Objective, Scope
from compress.pruning.rounds import MeasureSpeedup, Search
from compress.training import FineTuneConfig
from compress.values import Context, Model, StageRecord

Importance = Literal["l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "fisher", "random"]


@dataclass(frozen=True)
class PruneConfig:
    """How many channels leave, which, and how the rest is trained to make up for them."""

    ratio: float | None = None  # share 0..1 of the channels that leave at most
    macs: float | None = None  # share 0..1 of the multiply-accumulates that stays at most
    parameters: float | None = None  # share 0..1 of the parameters that stays at most
    speedup: float | None = None  # at least 1: how many times faster the float model becomes on this machine
    objective: Objective = "macs"  # what the search halves where none of the above is given: macs, parameters, latency
    start: float = 0.5  # share 0..1 of the objective that is left where the search begins
    scope: Scope = "uniform"  # with ratio: of every group, or global: of all together
    importance: Importance = "lamp"  # which channels leave first
    floor: float = 0.1  # share 0..1 of its channels that every group keeps at least
    round_to: int = 8  # kept counts are multiples of it where a group is wide enough; 1: any count
    blocks: bool = True  # whole residual blocks may leave too, in a search for as little as the budget allows
    keep: tuple[str, ...] = ()  # name patterns of groups or parameters that stay whole (fnmatch: "layer4.*")
    rounds: int = 5  # fine-tunings at most: of new widths, of a near miss again, what is left of the best model
    epochs: float = 3.0  # passes over the training split in each round
    min_steps: int = 400  # optimizer steps in each round at least
    budget: float = 0.5  # share 0..1 of max_drop that this stage may use on validation; what follows needs the rest
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value} must be within 0 < {name} < 1"
            for name in ("ratio", "macs", "parameters", "start")
            if (value := getattr(self, name)) is not None and not 0 < value < 1
        ]
        if self.speedup is not None and not self.speedup > 1:
            problems.append(f"speedup={self.speedup} must be above 1")
        given = [n for n in ("ratio", "macs", "parameters", "speedup") if getattr(self, n) is not None]
        if len(given) > 1:
            problems.append(f"give one of {', '.join(given)}, not several")
        for name in ("rounds", "round_to"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.epochs <= 0:
            problems.append(f"epochs={self.epochs} must be above 0")
        problems += [
            f"{name}={getattr(self, name)} must be within 0..1"
            for name in ("budget", "floor")
            if not 0 <= getattr(self, name) <= 1
        ]
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def goal(self) -> tuple[Objective | Literal["channels"], float | None]:
        """What is counted, and the share of it (0..1) that is to be left; None: as little as the budget allows."""
        if self.ratio is not None:
            return "channels", 1 - self.ratio
        if self.speedup is not None:
            return "latency", 1 / self.speedup
        if self.parameters is not None:
            return "parameters", self.parameters
        return ("macs", self.macs) if self.macs is not None else (self.objective, None)


def prune_to_budget(
    model: Model,
    config: PruneConfig,
    context: Context,
    measure: MeasureSpeedup | None = None,
    needed: Sequence[str] = (),
) -> tuple[Model, StageRecord]:
    """Take out as many channels as the accuracy budget allows.

    Each round cuts the least important channels of the best model so far, takes its normalisation statistics again,
    and distils it from the original. After a round within the budget the next one halves what is left. What is outside
    it by little is trained again (`worth_more`); after any other failure the next round backs off (on a logarithmic
    scale), from the last good model. A round may leave out residual blocks instead: that is trained which lost least
    for what it saves, before any training. Where nothing smaller is to be had, the rounds that are left train the best
    model further. What is returned is the smallest model that was within the budget on validation.

    Args:
        measure: For ``speedup``: how much faster a candidate really is; None: as the layers' timings predict, and no
            block leaves.
        needed: Layers and parameters, or patterns of them, that later stages are to find: their blocks stay.

    Returns:
        The smaller model (the given one is untouched; `Model.kept` says what it kept of it) and the record. Where no
        round was within the budget: the model as it came, and a record that says so.

    Raises:
        PruningError: there is no data to fine-tune on, nothing can be cut, or the goal is out of reach.
    """
    started = time.perf_counter()
    if context.data is None or context.original is None:
        raise PruningError("prune fine-tunes, so it needs a torch model and data: give --data.")
    plain = dataclasses.asdict(config)
    try:
        search = Search(model, config, context, measure, needed)
    except PruningError as error:
        if config.goal[1] is not None:
            raise
        return model, StageRecord("prune", plain, time.perf_counter() - started, skipped=str(error))
    search.tell(0)
    while search.run_round():
        search.tell(len(search.rounds))
    search.polish()
    search.tell(config.rounds)
    seconds = time.perf_counter() - started
    figures = search.figures()
    if search.best is None:
        tried = ", ".join(f"{r.left:.0%} left dropped {r.drop:.4f}" for r in search.rounds)
        reason = f"no reduction stayed within {search.allowed:.4f} on validation ({tried or search.refused})"
        return model, StageRecord("prune", plain, seconds, figures, skipped=reason)
    return (
        dataclasses.replace(model, module=search.best.module, kept=search.best.kept, skipped=search.best.skipped),
        StageRecord("prune", plain, seconds, figures, search.notes()),
    )
