"""Torch-Pruning 1.6.1 cuts half of all channels of one model. `benchmarks.families` runs it in its own environment.

    python torch_pruning_families.py model.pt pruned.pt --size 224 --hold fc

Settings are those of its torchvision examples: one step of GroupNormPruner at 0.5 in every layer with group magnitude
(p=2) as importance, no rounding, the heads of each nn.MultiheadAttention told (each loses half of its dimensions),
``hidden_dim`` of a VisionTransformer mended after. The layers to hold are listed by hand there; here
`benchmarks.families` names those that make the outputs.

model.pt and pruned.pt are pickled modules; the second lies in a dict with the seconds that it took.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

MEMORY_BYTES = 12 * 2**30  # address space: on swin_t its dependency graph grows for minutes, until the machine is full


def ensure_operators() -> list[torch.library.Library]:
    """As compress.models.torchvision_compat, which cannot be imported here: its package wants more than this has."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return []
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [library]


def halve(module: nn.Module, example: torch.Tensor, hold: list[str]) -> None:
    """Cut half of the channels of every layer but the held ones, in place."""
    heads = {m: m.num_heads for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = tp.pruner.GroupNormPruner(
        module,
        example_inputs=example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        iterative_steps=1,
        pruning_ratio=0.5,
        round_to=None,
        out_channel_groups=heads,  # the example's `channel_groups`; with `num_heads` only feed-forward units leave
        ignored_layers=[module.get_submodule(name) for name in hold],
    )
    pruner.step()
    if hasattr(module, "conv_proj") and hasattr(module, "hidden_dim"):
        module.hidden_dim = module.conv_proj.out_channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--hold", nargs="*", default=[])
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    libraries = ensure_operators()  # kept while the module is used
    module: Any = torch.load(options.model, weights_only=False).eval()
    example = torch.rand(1, 3, options.size, options.size)
    started = time.perf_counter()
    halve(module, example, options.hold)
    seconds = time.perf_counter() - started
    module.zero_grad()
    torch.save({"module": module, "seconds": seconds}, options.pruned)
    del libraries


if __name__ == "__main__":
    main()
