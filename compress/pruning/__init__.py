"""Structured reduction: what can only leave together, how much of it goes, and the smaller model."""

from compress.pruning.allocation import candidate_widths, ranked, to_cost, uniform
from compress.pruning.cost import CostModel
from compress.pruning.evidence import Evidence, from_weights, gather
from compress.pruning.exactness import relative_error
from compress.pruning.groups import Structure, analyse, channel_groups
from compress.pruning.importance import IMPORTANCES, scores
from compress.pruning.lagrangian import knapsack
from compress.pruning.latency import LatencyModel, measure_latency
from compress.pruning.pruned import PrunedModel, load_pruned, prune
from compress.pruning.reduction import ReduceConfig, Reduction, reduce
from compress.pruning.retraining import reduce_model
from compress.pruning.saving import read_cut
from compress.pruning.saving import save as save_pruned
from compress.pruning.stage import PruneConfig, prune_to_budget
from compress.pruning.values import ChannelGroup, LayerUse, Member

__all__ = [
    "IMPORTANCES",
    "ChannelGroup",
    "CostModel",
    "Evidence",
    "LatencyModel",
    "LayerUse",
    "Member",
    "PruneConfig",
    "PrunedModel",
    "ReduceConfig",
    "Reduction",
    "Structure",
    "analyse",
    "candidate_widths",
    "channel_groups",
    "from_weights",
    "gather",
    "knapsack",
    "load_pruned",
    "measure_latency",
    "prune",
    "prune_to_budget",
    "ranked",
    "read_cut",
    "reduce",
    "reduce_model",
    "relative_error",
    "save_pruned",
    "scores",
    "to_cost",
    "uniform",
]
