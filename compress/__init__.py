"""Deployment compression: from a trained PyTorch model to the best ONNX file that keeps its accuracy."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.data import Data, DataOptions, Tokenizer, load_data
    from compress.errors import CompressError
    from compress.measurement import BenchmarkConfig, benchmark
    from compress.models import bind, load
    from compress.onnx_export import ExportConfig, export
    from compress.pipeline import run
    from compress.pruning import (
        ChannelGroup,
        PruneConfig,
        PrunedModel,
        ReduceConfig,
        Reduction,
        channel_groups,
        load_pruned,
        prune,
        prune_to_budget,
        reduce,
    )
    from compress.quantization import QuantizeConfig, quantize
    from compress.recipe import Recipe, load_recipe
    from compress.reporting import Report
    from compress.sparsity import SparsifyConfig, sparsify
    from compress.values import Context, InputSpec, Model, OnnxModel, StageRecord, Variant

# Where each public name lives. Imported at first use: `compress --help` must not wait for torch.
_HOMES = {
    "BenchmarkConfig": "compress.measurement",
    "ChannelGroup": "compress.pruning",
    "CompressError": "compress.errors",
    "Context": "compress.values",
    "Data": "compress.data",
    "DataOptions": "compress.data",
    "ExportConfig": "compress.onnx_export",
    "InputSpec": "compress.values",
    "Model": "compress.values",
    "OnnxModel": "compress.values",
    "PruneConfig": "compress.pruning",
    "PrunedModel": "compress.pruning",
    "QuantizeConfig": "compress.quantization",
    "Recipe": "compress.recipe",
    "ReduceConfig": "compress.pruning",
    "Reduction": "compress.pruning",
    "Report": "compress.reporting",
    "SparsifyConfig": "compress.sparsity",
    "StageRecord": "compress.values",
    "Tokenizer": "compress.data",
    "Variant": "compress.values",
    "benchmark": "compress.measurement",
    "bind": "compress.models",
    "channel_groups": "compress.pruning",
    "export": "compress.onnx_export",
    "load": "compress.models",
    "load_data": "compress.data",
    "load_pruned": "compress.pruning",
    "load_recipe": "compress.recipe",
    "prune": "compress.pruning",
    "prune_to_budget": "compress.pruning",
    "quantize": "compress.quantization",
    "reduce": "compress.pruning",
    "run": "compress.pipeline",
    "sparsify": "compress.sparsity",
}

__version__ = "0.1.0"

__all__ = [
    "BenchmarkConfig",
    "ChannelGroup",
    "CompressError",
    "Context",
    "Data",
    "DataOptions",
    "ExportConfig",
    "InputSpec",
    "Model",
    "OnnxModel",
    "PruneConfig",
    "PrunedModel",
    "QuantizeConfig",
    "Recipe",
    "ReduceConfig",
    "Reduction",
    "Report",
    "SparsifyConfig",
    "StageRecord",
    "Tokenizer",
    "Variant",
    "__version__",
    "benchmark",
    "bind",
    "channel_groups",
    "export",
    "load",
    "load_data",
    "load_pruned",
    "load_recipe",
    "prune",
    "prune_to_budget",
    "quantize",
    "reduce",
    "run",
    "sparsify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
