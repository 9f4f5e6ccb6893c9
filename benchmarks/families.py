"""Prune torchvision's families, each at its own resolution, and write what it took: the table of the README.

    python -m benchmarks.families                                 # all of them, about 15 minutes on 2 cores
    python -m benchmarks.families --peer torch-pruning            # and the same models cut by Torch-Pruning 1.6.1
    python -m benchmarks.families --only resnet18,vit_b_16 --out runs/families

Weights are random, with the traits of a trained network that an exactness test needs (see `enliven`). Groups are found
with one sample; half of each group leaves. Seconds of the cut hold the scores, the surgery and its proof. Exactness is
against the original with the removed channels' consumers zeroed, relative, in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import re
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.environments import Cut, cut_by_peer
from compress.errors import PruningError
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.models import ensure_operators
from compress.pruning import analyse, prune, relative_error
from compress.pruning.exactness import evaluate, no_fast_path, relative_effect, signature
from compress.pruning.groups import Structure
from compress.pruning.outputs import leaves
from compress.pruning.traced import TracedModule
from compress.pruning.values import ChannelGroup, Kept, Member
from compress.quiet import quiet

RATIO = 0.5

# Constructor of torchvision, and the attribute of it that is pruned -> pixels of a side.
FAMILIES = {
    "alexnet": 224,
    "vgg11": 224,
    "resnet18": 224,
    "resnet50": 224,
    "wide_resnet50_2": 224,
    "resnext50_32x4d": 224,
    "densenet121": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "squeezenet1_1": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_large": 224,
    "shufflenet_v2_x1_0": 224,
    "mnasnet1_0": 224,
    "efficientnet_b0": 224,
    "regnet_y_400mf": 224,
    "convnext_tiny": 224,
    "vit_b_16": 224,
    "swin_t": 224,
    "maxvit_t": 224,
    "fcn_resnet50": 224,
    "deeplabv3_mobilenet_v3_large": 224,
    "fasterrcnn_resnet50_fpn.backbone": 224,
    "ssdlite320_mobilenet_v3_large.backbone": 320,
}
_ENOUGH_S = 5.0  # what took less is timed three times, and the median told


@dataclass(frozen=True)
class Row:
    """One family, cut by this project and by a peer."""

    family: str
    parameters: int
    macs: int  # for one sample
    groups: int
    frozen: dict[str, int]  # why nothing can leave -> groups
    channels: int  # that can leave, of all groups
    find_s: float  # seconds to find the groups
    passes: int  # of the forward that this took
    cut: Cut
    peer: Cut | None = None


def build(name: str, **options: Any) -> nn.Module:
    """A model of torchvision by the name that `FAMILIES` has, with random weights."""
    ensure_operators()
    import torchvision

    constructor, _, part = name.partition(".")
    if constructor in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # minutes of scipy, and a warning
    if part or constructor.startswith(("fcn", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    module: nn.Module = torchvision.models.get_model(constructor, weights=None, **options)
    return module.get_submodule(part)


def enliven(module: nn.Module, inputs: Tensor) -> nn.Module:
    """Make an untrained network one whose outputs depend on all its channels, in place; left in eval mode.

    Parameters that are constant (zero heads, layer scales of 1e-6, normalisation scales of 1) get noise within ±0.2, no
    value twice, and batch normalisations the statistics of ``inputs`` (N, C, H, W).
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.randperm(parameter.numel()) / parameter.numel() - 0.5
                parameter.add_(noise.view_as(parameter), alpha=0.4)
        norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches: of this one
        if norms:
            module.train()(inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return module.eval()


def variation(outputs: Any) -> float:
    """How far two samples' outputs are apart, relative to the largest; the smallest of all output tensors.

    An error below it by orders of magnitude proves something; one beside constant outputs would not.
    """
    tensors = [tensor.double() for _, tensor in leaves(outputs)]
    return min(float((tensor[0] - tensor[1]).abs().amax() / tensor.abs().amax()) for tensor in tensors)


def trains(module: nn.Module, inputs: Tensor) -> str:
    """Whether a forward in train mode and a backward run: "yes", or the error's first line.

    Running statistics change; the module is in eval mode after.
    """
    try:
        with quiet():
            total = sum(t.float().square().mean() for _, t in leaves(module.train()(inputs)))
            assert isinstance(total, Tensor)
            total.backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # of a module that somebody cut
        return first_line(error)
    finally:
        module.zero_grad()
        module.eval()
    return "yes"


def count_macs(module: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulates of one sample, as torch counts them: linear layers, convolutions and attention."""
    with no_fast_path(), FlopCounterMode(display=False) as counter:
        module(inputs[:1])
    return int(counter.get_total_flops()) // 2


def measure(name: str, peer: bool) -> Row:
    """Prune one family, and have it pruned."""
    torch.manual_seed(0)
    size = FAMILIES[name]
    samples = torch.randn(4, 3, size, size)
    module = enliven(build(name), samples)
    inputs = samples[:2]
    structure, find_s = find(module, inputs[:1])
    reasons = [re.sub(r"\d.*", "…", group.frozen) for group in structure.groups if group.frozen]
    row = Row(
        family=name,
        parameters=sum(p.numel() for p in module.parameters()),
        macs=count_macs(module, inputs),
        groups=len(structure.groups),
        frozen={reason: reasons.count(reason) for reason in reasons},
        channels=sum(group.channels for group in structure.groups if group.frozen is None),
        find_s=find_s,
        passes=structure.passes,
        cut=cut_by_us(module, inputs, structure),
    )
    return dataclasses.replace(row, peer=by_peer(module, inputs, structure)) if peer else row


def find(module: nn.Module, inputs: Tensor) -> tuple[Structure, float]:
    """The groups, and the median of the seconds."""
    seconds: list[float] = []
    while len(seconds) < 3 and not (seconds and seconds[0] >= _ENOUGH_S):
        started = time.perf_counter()
        structure = analyse(module, inputs)
        seconds.append(time.perf_counter() - started)
    return structure, statistics.median(seconds)


def cut_by_us(module: nn.Module, inputs: Tensor, structure: Structure) -> Cut:
    started = time.perf_counter()
    try:
        pruned = prune(module, inputs[:1], ratio=RATIO, round_to=1, structure=structure)
    except PruningError as error:
        return Cut(status=first_line(error), seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    refused = [g.name for g in pruned.groups if g.frozen and "refused" in g.frozen]
    return judge(
        Cut(
            seconds=seconds,
            form="traced" if isinstance(pruned.module, TracedModule) else "class",
            status="ok" if not refused else f"{len(refused)} groups left whole: {refused[0]} …",
            effect=relative_effect(module, pruned.groups, pruned.kept, (inputs[:1],)),
        ),
        (module, pruned.module),
        pruned.groups,
        pruned.kept,
        inputs,
    )


def by_peer(module: nn.Module, inputs: Tensor, structure: Structure) -> Cut:
    hold = [group.name for group in structure.groups if group.frozen and "reaches the output" in group.frozen]
    cut, pruned = cut_by_peer(module, inputs.shape[-1], hold)
    if pruned is None:
        return cut
    kept = kept_by_values(module, pruned)
    return judge(cut, (module, pruned), [readers(module, kept)], kept, inputs)


def judge(
    cut: Cut, modules: tuple[nn.Module, nn.Module], groups: Sequence[ChannelGroup], kept: Kept, inputs: Tensor
) -> Cut:
    """What became of a module (before, after): the same questions whoever cut it."""
    before, after = modules
    try:
        outputs = evaluate(after, (inputs,))
    except Exception as error:  # of a module that somebody cut
        return dataclasses.replace(cut, status=f"does not run: {first_line(error)}")
    changed = signature(outputs) != signature(evaluate(before, (inputs,)))
    return dataclasses.replace(
        cut,
        status="outputs change their shape" if changed else cut.status,
        parameters=sum(p.numel() for p in after.parameters()),
        macs=count_macs(after, inputs),
        error=relative_error(before, after, groups, kept, (inputs[:1],)),
        variation=variation(outputs),
        trains=trains(after, inputs),
    )


def kept_by_values(before: nn.Module, after: nn.Module) -> Kept:
    """What a cut kept of each parameter, found by its values: in a network of random weights nearly all differ."""
    originals = dict(before.named_parameters())
    kept: dict[str, dict[int, Tensor]] = {}
    for name, smaller in after.named_parameters():
        whole = originals[name].detach()
        if whole.shape == smaller.shape or whole.ndim != smaller.ndim:
            continue
        values, order = whole.flatten().sort()
        places = order[torch.searchsorted(values, smaller.detach().flatten()).clamp_max(len(values) - 1)]
        for axis, index in enumerate(torch.unravel_index(places, whole.shape)):
            if whole.shape[axis] != smaller.shape[axis]:
                # The few values that occur twice are outvoted by the rest of their slice.
                found = index.view(smaller.shape).movedim(axis, 0).reshape(smaller.shape[axis], -1).median(dim=1).values
                kept.setdefault(name, {})[axis] = torch.unique(found)
    return kept


def readers(module: nn.Module, kept: Kept) -> ChannelGroup:
    """The columns of all weights that lost some, as one group: what the reference of somebody else's cut zeroes."""
    members = []
    for name in (name for name, axes in kept.items() if name.endswith("weight") and 1 in axes):
        columns = torch.arange(module.get_parameter(name).shape[1])
        members.append(Member(name, 1, "in", columns, columns))
    return ChannelGroup("readers", max((len(m.index) for m in members), default=0), tuple(members))


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:200]


def markdown(rows: list[Row], machine: dict[str, Any]) -> str:
    """The table, and the machine that it is of."""
    peer = any(row.peer for row in rows)
    head = ["family", "groups", "channels", "found in", "cut in", "as", "error", "trains", "parameters", "MACs"]
    head += ["Torch-Pruning: parameters", "MACs", "in", "error", "trains"] if peer else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row.family, f"{row.groups}", f"{row.channels:,}", f"{row.find_s:.1f} s", *_cells(row, row.cut)]
        if row.peer is not None:
            seconds, _, error, trained, parameters, macs = _cells(row, row.peer)
            cells += [parameters, macs, seconds, error, trained]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Half of every group. {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}."]
    return "\n".join(lines) + "\n"


def _cells(row: Row, cut: Cut) -> list[str]:
    """Seconds, form, error, training, parameters and MACs."""
    if cut.parameters is None or cut.macs is None or cut.error is None:
        return ["–", cut.form, "–", "–", cut.status, "–"]
    note = "" if cut.status == "ok" else f" ({cut.status})"
    return [
        f"{cut.seconds:.1f} s",
        cut.form,
        f"{cut.error:.0e}",
        "yes" if cut.trains == "yes" else "no",
        f"{row.parameters / 1e6:.2f} → {cut.parameters / 1e6:.2f} M{note}",
        f"{row.macs / 1e9:.2f} → {cut.macs / 1e9:.2f} G",
    ]


def earlier(target: Path) -> dict[str, Row]:
    """Rows of an earlier run: those that are not measured again stay, and so does a peer's part without --peer."""
    if not target.exists():
        return {}
    rows = json.loads(target.read_text())["families"]
    return {
        row["family"]: Row(**{**row, "cut": Cut(**row["cut"]), "peer": Cut(**row["peer"]) if row["peer"] else None})
        for row in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["torch-pruning"])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    machine = environment(torch.get_num_threads())
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    target = options.out / f"families-torchvision-ratio{RATIO}-seed0-{cpu}-threads{machine['threads']}.json"
    known = earlier(target)
    for name in options.only:
        row = measure(name, peer=options.peer is not None)
        before = known.get(name)
        known[name] = dataclasses.replace(row, peer=row.peer or (before.peer if before else None))
        gc.collect()
        rows = [known[family] for family in FAMILIES if family in known]
        print(f"{name}: groups in {row.find_s:.1f} s, error {row.cut.error}", file=sys.stderr, flush=True)
        command = shlex.join(["python", "-m", "benchmarks.families", *sys.argv[1:]])
        report = {"schema": 1, "command": command, "seed": 0, "ratio": RATIO, "environment": machine}
        report["families"] = [dataclasses.asdict(row) for row in rows]
        write_atomically(target, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
        write_atomically(target.with_suffix(".md"), markdown(rows, machine).encode())
    print(target)


if __name__ == "__main__":
    main()
