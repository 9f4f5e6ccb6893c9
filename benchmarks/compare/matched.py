"""Ours at the accuracy of the best peer: what that peer lost on validation is all that `compress pipeline` may lose.

Peers search in steps and stop well within what they may lose; ours goes to the end of it. Which is the smaller file at
one accuracy shows where both are allowed the same. The test split has no say in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.compare.entries import Entry
from benchmarks.compare.frontier import best_peer, name_of
from benchmarks.compare.row import Row
from compress.files import write_atomically

NO_PEER = "no peer was measured whose drop it could have: run it with --peers all"

_STEPS = 1_000_000  # a drop is rounded up to a millionth: validation splits have thousands of samples


def decided(entry: Entry, folder: Path, inputs: str) -> Entry | None:
    """The entry with its max_drop, as `decide` kept it; None: nothing was decided for these inputs.

    Args:
        entry: One that matches a measure.
        folder: Of the entry.
        inputs: Identity of the inputs.
    """
    try:
        told = json.loads(_beside(folder).read_text())
    except FileNotFoundError:
        return None
    return _with_drop(entry, told["max_drop"], told["peer"]) if told["inputs"] == inputs else None


def decide(entry: Entry, folder: Path, inputs: str, rows: Sequence[Row]) -> Entry | None:
    """The same from what was measured, and kept: later timings may find another peer the fastest.

    Args:
        rows: Of this seed, those of the peers among them.

    Returns:
        None: no file of a peer that kept its accuracy is among them.
    """
    assert entry.matches is not None
    if not any(row.kind == "peer" and row.eligible for row in rows):
        return None
    peer = best_peer(rows, entry.matches)
    if peer is None or peer.validation_drop is None:
        return None
    drop = math.ceil(max(0.0, peer.validation_drop) * _STEPS - 1e-6) / _STEPS
    told = {"inputs": inputs, "max_drop": drop, "peer": name_of(peer)}
    write_atomically(_beside(folder), json.dumps(told).encode())
    return _with_drop(entry, drop, told["peer"])


def _beside(folder: Path) -> Path:
    """Where it is kept: a folder is removed where its entry is made again."""
    return folder.with_name(f"{folder.name}.json")


def _with_drop(entry: Entry, drop: float, peer: str) -> Entry:
    return replace(entry, max_drop=drop, settings=f"{entry.settings}: --max-drop {drop:g}, of {peer}")
