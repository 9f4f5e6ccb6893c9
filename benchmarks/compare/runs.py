"""One entry on one workload: run in a process of its own, once, and kept with a record of what it made."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.compare import own
from benchmarks.compare.entries import BY_NAME, DENSE, Entry
from benchmarks.compare.inputs import Inputs
from benchmarks.compare.made import OK, Made, Point, keep, made_before
from benchmarks.peers.apart import LOG, run_apart
from benchmarks.peers.environments import FOLDER as ENVIRONMENTS
from benchmarks.peers.environments import interpreter
from benchmarks.peers.points import POINTS
from benchmarks.peers.scripts import FOLDER, PACKAGE, files_of, user_lines

__all__ = ["LOG", "Made", "Place", "Point", "chain", "make"]

TIMEOUT_S = 2 * 3600  # of one entry


@dataclass(frozen=True)
class Place:
    """Where entries run, and for how long."""

    inputs: Inputs
    environments: Path = ENVIRONMENTS
    timeout_s: float = TIMEOUT_S

    def folder(self, entry: str) -> Path:
        """What an entry writes, or the inputs for the dense model."""
        return self.inputs.folder if entry == DENSE else self.inputs.work / entry


def chain(entry: Entry) -> tuple[Entry, ...]:
    """The entry and what it goes on from, first things first."""
    return (entry,) if entry.needs in (None, DENSE) else (*chain(BY_NAME[entry.needs]), entry)


def make(entry: Entry, place: Place, source: Made | None = None, again: bool = False) -> Made:
    """What an entry makes of a workload: what is there from before, else made now; a failure is a result too.

    A native entry makes nothing but its environment, which is looked at each time.

    Args:
        source: What the entry that it needs has made; None: it needs none.
        again: Make it once more, whatever is there.
    """
    folder = place.folder(entry.name)
    made = planned(entry, place, source)
    before = made_before(folder)
    if before is not None and before.identity == made.identity and not again and not entry.native:
        if before.versions.get("source") not in (None, made.versions.get("source")):
            _say(
                place, f"{entry.name}: kept, though this project's code has changed; --again {entry.name} makes it anew"
            )
        return before
    if again or entry.objective is None:  # a run of `compress pipeline` goes on after its last finished stage
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _say(place, f"{entry.name} …")
    made = keep(_made_now(entry, place, made, source), folder)
    spent = "" if made.process_seconds is None else f"{made.process_seconds:.0f} s, "
    _say(place, f"{entry.name}: {spent}{made.status}")
    return made


def _say(place: Place, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {place.inputs.work.name}: {text}", file=sys.stderr, flush=True)


def planned(entry: Entry, place: Place, source: Made | None) -> Made:
    """The record of an entry before it has run."""
    architecture = place.inputs.spec.architecture
    if entry.objective is not None:
        identity = own.identity(place.inputs, entry)
        return Made(entry.name, entry.settings, None, identity, versions=own.versions())
    digest = hashlib.sha256(json.dumps([place.inputs.identity, entry.flags_for(architecture)]).encode())
    for path in files_of(entry.script):
        digest.update(path.read_bytes())
    if entry.environment is not None:
        digest.update((FOLDER / f"requirements-{entry.environment}.txt").read_bytes())
    if source is not None:
        digest.update(result_of(source, place.folder(source.name)))
    lines = user_lines(one.script for one in chain(entry))
    return Made(entry.name, entry.settings, entry.needs, digest.hexdigest(), lines=lines)


def result_of(made: Made, folder: Path) -> bytes:
    """What tells one result of an entry from another."""
    digest = hashlib.sha256(json.dumps([made.status, [asdict(point) for point in made.points]]).encode())
    for point in made.points:
        digest.update((folder / point.file).read_bytes())
    return digest.digest()


def _made_now(entry: Entry, place: Place, made: Made, source: Made | None) -> Made:
    if source is not None and source.status != OK:
        return replace(made, status=f"{source.name}, which it goes on from, failed: {source.status}")
    if entry.objective is not None:
        return _run_own(entry, place, made)
    try:
        python = _interpreter(entry, place)
    except (subprocess.CalledProcessError, OSError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return replace(made, status=f"no environment: {lines[-1]}"[:300])
    command = (str(python), "-m", f"{PACKAGE}.{entry.script}")
    flags = entry.flags_for(place.inputs.spec.architecture)
    if entry.native:
        return replace(made, command=(*command, *flags))
    folders = [place.inputs.folder, *([place.folder(entry.needs)] if entry.needs else []), place.folder(entry.name)]
    return _run_peer(place, made, [*command, *(str(one.absolute()) for one in folders), *flags], source)


def _interpreter(entry: Entry, place: Place) -> Path:
    return Path(sys.executable) if entry.environment is None else interpreter(entry.environment, place.environments)


def _run_peer(place: Place, made: Made, command: Sequence[str], source: Made | None) -> Made:
    """Run a script; its cost is added to that of its source."""
    folder = place.folder(made.name)
    ran = run_apart(list(command), folder, place.timeout_s)
    made = replace(made, process_seconds=ran.seconds)
    made = replace(made, seconds=_sum(ran.seconds, source and source.seconds))
    made = replace(made, cpu_seconds=_sum(ran.cpu_seconds, source and source.cpu_seconds))
    if ran.status != OK:
        return replace(made, status=ran.status)
    try:
        told: dict[str, Any] = json.loads((folder / POINTS).read_text())
    except (OSError, ValueError) as error:
        return replace(made, status=f"wrote no {POINTS} that can be read: {error}"[:300])
    points = tuple(Point(**point) for point in told["points"])
    missing = [point.file for point in points if not (folder / point.file).exists()]
    return replace(
        made,
        status=f"{POINTS} tells of {', '.join(missing)}, which it did not write" if missing else OK,
        steps=_sum(told["steps"], source and source.steps),
        versions={**(source.versions if source else {}), **told["versions"]},
        points=() if missing else points,
    )


def _sum(mine: Any, before: Any) -> Any:
    return mine if before is None else round(mine + before, 2)


def _run_own(entry: Entry, place: Place, made: Made) -> Made:
    folder = place.folder(entry.name)
    resumed = any(stage.suffix != ".partial" for stage in (folder / own.RUN / "stages").glob("*"))
    ran = run_apart(own.command(place.inputs, entry, folder), folder, place.timeout_s, fine=(0, own.NOT_MET))
    if ran.status != OK:
        return replace(made, status=ran.status, process_seconds=ran.seconds)
    return own.read(made, entry, folder, ran, resumed)
