"""What each of our stages and choices is: a literal table of what `benchmarks.ablations` switches off or exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# budget: as much is removed as max_drop allows, so that what is worse costs bytes.
# amount: as much is removed as the full run removed, so that what is worse costs accuracy; read off the float file.
# weights: the full run's weights, quantized; read off one int8 file, before anything is done about what it lost.
Mode = Literal["budget", "amount", "weights"]

FULL = "full"  # the name of what all are compared with


@dataclass(frozen=True)
class Ablation:
    """One thing done otherwise; all else is as `compress pipeline --objective size` does it."""

    name: str
    change: str  # in words
    sets: tuple[str, ...] = ()  # --set of the run
    skip: tuple[str, ...] = ()  # stages
    left_out: tuple[str, ...] = ()  # of the full run's variants, by pattern: those that may not ship; takes no run
    amount: tuple[str, ...] | None = None  # --set besides at a fixed amount; None: not run there
    file: str | None = None  # at the same weights, the int8 file that is looked at, by pattern; None: not looked at

    @property
    def first(self) -> str | None:
        """The first stage whose result is another than the full run's; None: no stage's."""
        touched = {*self.skip, *(key.partition(".")[0] for key in self.sets)}
        return next((stage for stage in ("prune", "sparsify", "quantize") if stage in touched), None)

    @property
    def modes(self) -> tuple[Mode, ...]:
        found: tuple[tuple[Mode, bool], ...] = (
            ("budget", True),
            ("amount", self.amount is not None),
            ("weights", self.file is not None),
        )
        return tuple(mode for mode, asked in found if asked)


def _both(*options: str) -> tuple[str, ...]:
    """Options of the fine-tuning of both stages that train."""
    return tuple(f"{stage}.finetune.{option}" for stage in ("prune", "sparsify") for option in options)


_PLAIN = "*-int8"  # static, one scale a tensor, the full range
# A ratio of 0.9 is where this search begins: after a round outside the budget it backs off to half-way.
_RATIO = "prune.ratio=0.9"
# Four cuts of equal share reach any sparsity; at a fixed one they share the steps of the one round of all others.
_CUTS = ("sparsify.rounds=4", "sparsify.cut={cut}", "sparsify.epochs={epochs}", "sparsify.min_steps={min_steps}")

ABLATIONS = (
    Ablation(FULL, "as it is", amount=(), file=_PLAIN),
    # -- stages
    Ablation("no-prune", "channels stay", skip=("prune",)),
    Ablation("no-sparsify", "no weight becomes zero", skip=("sparsify",)),
    Ablation("no-quantize", "float weights", skip=("quantize",)),
    # -- which channels, and how many of each layer
    Ablation("prune-l1", "importance l1", ("prune.importance=l1",), amount=()),
    Ablation("prune-taylor", "importance taylor", ("prune.importance=taylor",), amount=()),
    Ablation("prune-fisher", "importance fisher", ("prune.importance=fisher",), amount=()),
    Ablation("prune-random", "importance random", ("prune.importance=random",), amount=()),
    Ablation("prune-uniform", "the same share of every layer", (_RATIO, "prune.scope=uniform")),
    Ablation("prune-global", "one ranking of all channels, whatever they cost", (_RATIO, "prune.scope=global")),
    Ablation("prune-macs", "MACs halved, not parameters", ("prune.objective=macs",)),
    Ablation("prune-any-width", "widths that are no multiple of 8 too", ("prune.round_to=1",), amount=()),
    Ablation("no-blocks", "residual blocks stay", ("prune.blocks=false",)),
    # -- which weights, how many of each layer, and when
    Ablation("sparsify-magnitude", "score magnitude", ("sparsify.score=magnitude",), amount=()),
    Ablation("sparsify-taylor", "score taylor: weight × gradient", ("sparsify.score=taylor",), amount=()),
    Ablation("sparsify-random", "score random", ("sparsify.score=random",), amount=()),
    Ablation("sparsify-per-layer", "the same share of every layer", ("sparsify.scope=layer",), amount=()),
    Ablation("sparsify-one-shot", "all at once, then training", ("sparsify.schedule=one-shot",), amount=()),
    Ablation(
        "sparsify-iterative",
        "70 % of what is left, training, again",
        ("sparsify.schedule=iterative", "sparsify.cut=0.7"),
        amount=_CUTS,
    ),
    Ablation("sparsify-reactive", "as fast as the loss allows", ("sparsify.schedule=reactive",)),
    # -- training and the search
    Ablation("no-distillation", "labels alone", _both("distillation=0"), amount=()),
    Ablation("distillation-alone", "no labels", _both("distillation=1"), amount=()),
    Ablation("one-round", "a single amount tried", ("prune.rounds=1", "sparsify.rounds=1")),
    Ablation("more-to-prune", "prune may use 0.75 of max_drop", ("prune.budget=0.75",)),
    Ablation("less-to-prune", "prune may use 0.25 of max_drop", ("prune.budget=0.25",)),
    Ablation("more-to-sparsify", "sparsify may use all of max_drop", ("sparsify.budget=1",)),
    Ablation("less-to-sparsify", "sparsify may use half of max_drop", ("sparsify.budget=0.5",)),
    # -- int8
    Ablation("per-tensor", "no file with a scale a channel", ("quantize.per_channel=no",)),
    Ablation("per-channel", "a scale a channel always", ("quantize.per_channel=yes",), file="*-int8-per-channel"),
    Ablation("full-range", "no 7-bit weights", ("quantize.reduce_range=no",)),
    Ablation("reduced-range", "7-bit weights always", ("quantize.reduce_range=yes",), file="*-int8-reduced"),
    Ablation("minmax", "ranges minmax", ("quantize.calibration=minmax",), file=_PLAIN),
    Ablation("no-equalization", "channels not evened out", ("quantize.equalize=no",), file=_PLAIN),
    Ablation("no-bias-correction", "biases as they are", ("quantize.bias_correction=no",), file=_PLAIN),
    Ablation("nearest", "no learned rounding", ("quantize.rounding=nearest",)),
    Ablation("learned", "learned rounding always", ("quantize.rounding=learned",), file="*-int8-learned"),
    # -- smaller than int8
    Ablation("no-compact", "int8 alone", ("quantize.compact=no",)),
    Ablation("no-sharing", "no shared values", left_out=("*-shared-*",)),
    Ablation("no-int4", "no 4-bit weights", left_out=("*-int4-*",)),
    Ablation("no-zip-rounding", "no rounding for the zip", left_out=("*-rounded",)),
    Ablation(
        "no-weights-only", "no file that computes in float", left_out=("*-int8-weights*", "*-int4-*", "*-shared-*")
    ),
)
NAMES = tuple(ablation.name for ablation in ABLATIONS)
