"""The sparsify stage: the most weights set to zero whose fine-tuned model stays within its accuracy budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.errors import RecipeError, SparsityError
from compress.sparsity.masks import Scope, Score, check_pattern, sparsifiable
from compress.sparsity.schedules import Schedule
from compress.sparsity.search import Search
from compress.sparsity.size_model import predict_all
from compress.sparsity.weights_summary import summarise
from compress.training import FineTuneConfig
from compress.units import signed
from compress.values import Context, Model, StageRecord


@dataclass(frozen=True)
class SparsifyConfig:
    """How many weights become zero, which and when, and how the rest is trained to make up for them."""

    sparsity: float | None = None  # share 0..1 of the weights to remove; None: search the highest within the budget
    layers: Mapping[str, float] = field(default_factory=dict)  # instead: share 0..1 of each layer, by name or pattern
    pattern: str | None = None  # instead: N of each M weights stay, along the input axis: "2:4"
    zip_bytes: int | None = None  # instead: as sparse as it takes for the zipped model to be predicted no larger
    schedule: Schedule = "cubic"  # when: cubic and reactive while training, one-shot and iterative before it
    score: Score = "lamp"  # what is removed first: lamp, magnitude |w|, taylor |w * gradient|, random
    scope: Scope = "global"  # ranked among all weights together ("flat"), or layer by layer, the same share of each
    start: float = 0.9  # where the search begins; lower in a model that was cut before: see `search.start_after`
    initial: float = 0.0  # sparsity that the cubic schedule begins with: 0.5 for "50 % to 90 % while training"
    cut: float = 0.5  # iterative: share 0..1 of the weights left that each round removes
    tolerance: float = 0.01  # reactive: how far the smoothed loss may be above its best while sparsity rises
    rounds: int = 3  # fine-tunings at most: at new sparsities, of a near miss again, what is left of the best model
    epochs: float = 3.0  # passes over the training split in each round
    min_steps: int = 400  # optimizer steps in each round at least: small data sets need more passes
    ramp: float = 0.6  # cubic, reactive: share 0..1 of each round in which sparsity rises; the rest recovers
    budget: float = 0.75  # share 0..1 of max_drop that this stage may use on validation; quantization needs the rest
    keep: tuple[str, ...] = ()  # name patterns of parameters that stay dense (fnmatch: "fc2.*")
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        shares = {"sparsity": self.sparsity, "start": self.start, "initial": self.initial, "ramp": self.ramp}
        problems = [
            f"{name}={value} must be within 0 <= {name} < 1"
            for name, value in {**shares, **{f"layers.{k}": v for k, v in self.layers.items()}}.items()
            if value is not None and not 0 <= value < 1
        ]
        problems += [text for broken, text in self._rules() if broken]
        if self.pattern is not None:
            problems += check_pattern(self.pattern)
        if problems:
            raise RecipeError("; ".join(problems))

    def _rules(self) -> list[tuple[bool, str]]:
        """(broken, what was found and what is allowed) for each rule."""
        amounts = {
            "sparsity": self.sparsity is not None,
            "layers": bool(self.layers),
            "pattern": self.pattern is not None,
            "zip_bytes": self.zip_bytes is not None,
        }
        given = [name for name, there in amounts.items() if there]
        fixed = bool(self.layers) or self.pattern is not None
        return [
            (len(given) > 1, f"{' and '.join(given)} are given: name one of them"),
            (not 0 < self.cut < 1, f"cut={self.cut} must be within 0 < cut < 1"),
            (not self.tolerance >= 0, f"tolerance={self.tolerance} must not be negative"),
            (self.rounds < 1, f"rounds={self.rounds} must be at least 1"),
            (not self.epochs > 0, f"epochs={self.epochs} must be above 0"),
            (not 0 <= self.budget <= 1, f"budget={self.budget} must be within 0..1"),
            (self.zip_bytes is not None and self.zip_bytes < 1, f"zip_bytes={self.zip_bytes} must be at least 1"),
            (
                fixed and self.scope != "global",
                f"scope={self.scope} does not apply to layers and pattern: leave it out",
            ),
            (
                fixed and self.schedule in ("iterative", "reactive"),
                f"schedule={self.schedule} finds its own sparsity: leave out layers and pattern",
            ),
        ]


def sparsify(model: Model, config: SparsifyConfig, context: Context) -> tuple[Model, StageRecord]:
    """Make as many weights zero as the accuracy budget allows, or as many as was asked for.

    Each round removes weights on the schedule while the model is distilled from the original, then recovers. Without
    an amount that was asked for, a round within the budget is followed by a sparser one, starting from the weights
    just trained; one outside it by little is trained again (`worth_more`), any other followed by one some way back
    (`way_back`), from the last good weights. Rounds that the search does not need train the best model further. What
    is returned is the sparsest model that was within the budget on validation; where the objective is size, the one
    predicted to zip smallest.

    Returns:
        The sparse model (the given one is untouched) and the record. Where no round was within the budget, or none
        was needed: the model as it came, and a record that says so.

    Raises:
        SparsityError: there is no data to fine-tune on, a layer is not known, or zeros did not hold.
    """
    started = time.perf_counter()
    if context.data is None or context.original is None:
        raise SparsityError("sparsify fine-tunes, so it needs a torch model and data: give --data.")
    search = Search(model, config, context)
    search.run()
    seconds = time.perf_counter() - started
    plain = dataclasses.asdict(config)
    figures = _figures(model, search)
    if search.best is None:
        return model, StageRecord("sparsify", plain, seconds, figures, skipped=_nothing(search))
    return dataclasses.replace(model, module=search.best.module), StageRecord(
        "sparsify", plain, seconds, figures, _notes(search, figures)
    )


def _nothing(search: Search) -> str:
    """Why no weight was set to zero."""
    if not search.rounds:
        what = "needed" if search.config.zip_bytes is not None else "asked for"
        return f"{search.came:.2%} of the weights are zero already, and {search.asked or 0.0:.2%} are {what}"
    tried = ", ".join(f"{r.sparsity:.2%} dropped {r.drop:.4f}" for r in search.rounds)
    return f"no sparsity stayed within {search.allowed:.4f} on validation ({tried})"


def _figures(model: Model, search: Search) -> dict[str, Any]:
    config, best = search.config, search.best
    after = model.module if best is None else best.module
    return {
        "sparsity": 0.0 if best is None else best.sparsity,
        "weights": sum(p.numel() for p in sparsifiable(model.module, config.keep).values()),
        "rounds": [dataclasses.asdict(r) for r in search.rounds],
        "predicted_zip_bytes": {
            when: dict(predict_all(module)) for when, module in (("dense", model.module), ("sparse", after))
        },
        "layers": [layer.to_dict() for layer in summarise(model.module, after, config.keep)],
    }


def _notes(search: Search, figures: Mapping[str, Any]) -> tuple[str, ...]:
    assert search.best is not None
    stored = search.context.stored
    dense, sparse = (figures["predicted_zip_bytes"][when][stored] for when in ("dense", "sparse"))
    return (
        f"{search.best.sparsity:.2%} of the weights are zero: smaller when zipped, no faster",
        f"drops on validation, {search.allowed:.4f} allowed: "
        + ", ".join(f"{signed(r.drop)} at {r.sparsity:.2%}" for r in search.rounds),
        f"predicted to zip to {sparse:,} bytes as {stored}, {dense:,} before",
        *search.notes,
    )
