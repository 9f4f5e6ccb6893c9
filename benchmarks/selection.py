"""Masks of many weights: compress against torch.nn.utils.prune.global_unstructured, in time and in extra memory.

    python -m benchmarks.selection

Both set the weights of smallest magnitude of all layers together to zero. Each measurement is a process of its own:
its time is that of the whole operation (masks made and applied), its memory the peak of resident memory beyond what
was resident with the weights in place. The two alternate. Their zeros are compared: the same number, and where the
positions differ, the weights there are of one magnitude, of which either may go. Linux only. Writes
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks.memory import reset_peak, status
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.workspace import to_json

SHARES = (0.55, 0.2, 0.15, 0.07, 0.03)  # of the weights, in layers as uneven as those of real models
COLUMNS = 100  # inputs of each layer


def layers(weights: int) -> nn.ModuleList:
    """Linear layers of about ``weights`` Gaussian weights together; the same for every call."""
    generator = torch.Generator().manual_seed(0)
    found = nn.ModuleList()
    for share in SHARES:
        layer = nn.Linear(COLUMNS, max(1, round(share * weights / COLUMNS)), bias=False)
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
        found.append(layer)
    return found


def ours(module: nn.ModuleList, sparsity: float) -> None:
    parameters = sparsifiable(module)
    apply_masks(parameters, make_masks(parameters, sparsity, "magnitude"))


def peer(module: nn.ModuleList, sparsity: float) -> None:
    chosen = [(layer, "weight") for layer in module]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=sparsity)


METHODS: dict[str, Callable[[nn.ModuleList, float], None]] = {"compress": ours, "torch": peer}


def once(method: str, weights: int, sparsity: float, zeros: Path) -> dict[str, Any]:
    """One measurement in this process; writes where the zeros are, a bit a weight, to ``zeros``."""
    METHODS[method](layers(10_000), sparsity)  # first calls load code
    module = layers(weights)
    started = time.perf_counter()
    for parameter in module.parameters():
        parameter.detach().amax()
    read = time.perf_counter() - started
    before = reset_peak()
    started = time.perf_counter()
    METHODS[method](module, sparsity)
    seconds = time.perf_counter() - started
    extra = status("VmHWM") - before
    # The peer's layers keep the weights in another parameter, and what is left of them in an attribute.
    flat = torch.cat([layer.weight.flatten() == 0 for layer in module if isinstance(layer, nn.Linear)])
    zeros.write_bytes(np.packbits(flat.numpy()).tobytes())
    return {"seconds": seconds, "extra_bytes": extra, "read_seconds": read, "weights": len(flat)}


def compare(weights: int, sparsity: float, repeats: int, threads: int) -> dict[str, Any]:
    """Samples of both, alternating, and whether they made the same zeros."""
    samples: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        files = {method: Path(folder) / method for method in METHODS}
        for _ in range(repeats):
            for method, file in files.items():
                samples[method].append(_spawn(method, weights, sparsity, threads, file))
        same = agree(weights, *(np.unpackbits(np.frombuffer(f.read_bytes(), np.uint8)) for f in files.values()))
    pairs = list(zip(samples["compress"], samples["torch"], strict=True))
    faster = [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs]
    memory = [mine["extra_bytes"] / theirs["extra_bytes"] for mine, theirs in pairs]
    return {
        "weights": samples["compress"][0]["weights"],
        "sparsity": sparsity,
        "samples": samples,
        "times_faster": {"median": median(faster), "low": min(faster), "high": max(faster)},
        "share_of_extra_memory": {"median": median(memory), "low": min(memory), "high": max(memory)},
        "same_zeros": same,
    }


def agree(weights: int, mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two sets of zeros are as many, and differ in nothing but weights of one and the same magnitude."""
    flat = nn.utils.parameters_to_vector(layers(weights).parameters()).detach().abs_()
    differ = flat[torch.from_numpy((mine != theirs)[: len(flat)])]
    return bool(mine.sum() == theirs.sum()) and bool((differ == differ[:1]).all())


def _spawn(method: str, weights: int, sparsity: float, threads: int, zeros: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.selection", "--once", method, "--weights", str(weights)]
    command += ["--sparsity", str(sparsity), "--threads", str(threads), "--zeros", str(zeros)]
    told = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Medians, and the ratios with their lowest and highest."""
    rows = ["| sparsity | | seconds | extra memory | times faster | share of the memory |", "|---|---|---|---|---|---|"]
    for result in results:
        for method, found in result["samples"].items():
            seconds = median(s["seconds"] for s in found)
            mib = median(s["extra_bytes"] for s in found) / 2**20
            ratios = "| |"
            if method == "compress":
                told = (result["times_faster"], result["share_of_extra_memory"])
                ratios = "| " + " | ".join(f"{r['median']:.3g} ({r['low']:.3g}–{r['high']:.3g})" for r in told) + " |"
            rows.append(f"| {result['sparsity']} | {method} | {seconds:.3f} | {mib:,.0f} MiB {ratios}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--once", choices=tuple(METHODS), help=argparse.SUPPRESS)  # what each process is told
    parser.add_argument("--zeros", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.once:
        print(json.dumps(once(options.once, options.weights, options.sparsity[0], options.zeros)))
        return
    results = [compare(options.weights, s, options.repeats, options.threads) for s in options.sparsity]
    print(table(results))
    machine = environment(options.threads)
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    command = f"python -m benchmarks.selection --weights {options.weights} --repeats {options.repeats}"
    content = {"schema": 1, "command": f"{command} --threads {options.threads}", "environment": machine}
    content |= {"load_average_15_min": os.getloadavg()[2], "results": results}  # of the machine: others were at work
    file = options.out / f"selection-weights{options.weights}-{cpu}-threads{options.threads}.json"
    write_atomically(file, to_json(content))
    if not all(result["same_zeros"] for result in results):
        raise SystemExit("the two did not make the same zeros: see same_zeros in " + str(file))


if __name__ == "__main__":
    main()
