"""What a source has read, and how it becomes the four splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from compress.data.options import DataOptions
from compress.data.partition import Indices, Pools, describe, partition
from compress.data.splits import Batch, Data, Fetch, Split
from compress.values import InputSpec


@dataclass(frozen=True)
class Samples:
    """A source that is read, checked, and not yet split."""

    name: str
    fetch: Fetch  # deterministic, over the sample numbers of all pools
    pools: Pools
    inputs: tuple[InputSpec, ...]
    content: str  # hex sha256 of the samples as read
    classes: int | None = None  # None: no labels
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def assemble(samples: Samples, options: DataOptions) -> Data:
    """Split ``samples``. The sha256 covers the samples, the options that change a batch, and the files."""
    parts = partition(samples.name, samples.pools, options)
    digest = hashlib.sha256(f"{samples.content} {options.fingerprint()}".encode())
    for name, content in sorted(samples.files.items()):
        digest.update(name.encode() + content)

    def split(name: str, indices: Indices) -> Split:
        return Split(name, samples.fetch, indices, labelled=samples.classes is not None)

    def unlabelled(indices: Indices) -> Batch:
        return samples.fetch(indices)[0], None

    def trains(name: str, indices: Indices) -> Split:
        """What is no class number can be scored by a metric, and not be learned from."""
        found = split(name, indices)
        return found if found.labelled else replace(found, fetch=unlabelled)

    return Data(
        name=samples.name,
        train=trains("train", parts.train),
        calibration=trains("calibration", parts.calibration),
        validation=split("validation", parts.validation),
        test=split("test", parts.test),
        inputs=samples.inputs,
        sha256=digest.hexdigest(),
        classes=samples.classes,
        class_names=samples.class_names,
        notes=(*samples.notes, describe(samples.pools, options)),
        files=samples.files,
    )
