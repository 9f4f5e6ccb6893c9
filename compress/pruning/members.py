"""From sets of nodes that leave together to channel groups: which entries of which parameters, and what is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from compress.pruning.codes import Numbers
from compress.pruning.values import ChannelGroup, Member, Role

if TYPE_CHECKING:
    from compress.pruning.search import Search

UNREAD = "no layer reads it"
ONE = "its channels can only leave all together"


def collect(search: Search) -> list[ChannelGroup]:
    """One group for each set of senders whose channels leave together, in the order of the forward."""
    component = search.components()
    makers = _makers(search, component)
    reasons = _reasons(search, component, makers)
    inexact = _inexact(search, component)
    kinds: dict[tuple[tuple[int, ...], str | None], list[int]] = {}
    for number, senders in makers.items():
        kinds.setdefault((senders, reasons.get(number)), []).append(number)
    slices = _slices(search, component)
    groups: list[ChannelGroup] = []
    names: dict[str, int] = {}
    for (senders, reason), numbers in kinds.items():
        name = _name(search, senders[0])
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        frozen = reason or (ONE if len(numbers) == 1 else None)
        exact = not any(number in inexact for number in numbers)
        groups.append(ChannelGroup(name, len(numbers), _members(slices, numbers), frozen, exact))
    return groups


def _makers(search: Search, component: Numbers) -> dict[int, tuple[int, ...]]:
    """Number of each set -> the layers that make it; sets in the order of their first channel."""
    found: dict[int, list[int]] = {}
    for index, sender in enumerate(search.senders):
        if sender.use >= 0:
            for number in component[sender.nodes]:
                makers = found.setdefault(int(number), [])
                if not makers or makers[-1] != index:
                    makers.append(index)
    return {number: tuple(makers) for number, makers in found.items()}


def _reasons(search: Search, component: Numbers, makers: dict[int, tuple[int, ...]]) -> dict[int, str]:
    found = dict.fromkeys(set(makers) - set(component[search.read_nodes].tolist()), UNREAD)
    # The first reason that was found is the one that is told: freeze() is called in order of weight.
    for reason, nodes in reversed(search.frozen.items()):
        for number in np.unique(component[np.concatenate(nodes)]):
            found[int(number)] = reason
    return found


def _inexact(search: Search, component: Numbers) -> set[int]:
    """Sets over which a normalisation takes its statistics."""
    nodes = [nodes for use, nodes in search.reads if search.uses[use].statistics]  # type: ignore[union-attr]
    return set(component[np.concatenate(nodes)].tolist()) if nodes else set()


def _name(search: Search, index: int) -> str:
    use = search.uses[search.senders[index].use]
    assert use is not None
    return use.weight.rpartition(".")[0] or use.weight


Entries = dict[int, list[tuple[str, int, Role, int]]]


def _slices(search: Search, component: Numbers) -> Entries:
    """Number of each set -> its entries (name, axis, role, index)."""
    roles = _roles(search)
    found: Entries = {}
    for one in search.prober.parameters.slices:
        role = roles.get((one.name, one.axis))
        if role is None:
            continue
        for index, number in enumerate(component[one.start : one.start + one.size]):
            found.setdefault(int(number), []).append((one.name, one.axis, role, index))
    return found


def _roles(search: Search) -> dict[tuple[str, int], Role]:
    """What each axis is for; a tied weight that both makes and reads channels counts as reading them."""
    owners = np.zeros(search.prober.parameters.count, dtype=np.int64)
    for number, one in enumerate(search.prober.parameters.slices):
        owners[one.start : one.start + one.size] = number
    found: dict[tuple[str, int], Role] = {}
    rank = {"in": 2, "out": 1, "along": 0}
    links = [link for use in search.uses if use is not None for port in use.ports for link in port.links]
    for link in links:
        for number in np.unique(owners[link.nodes]):
            one = search.prober.parameters.slices[number]
            known = found.get((one.name, one.axis))
            if known is None or rank[link.role] > rank[known]:
                found[one.name, one.axis] = link.role
    for sender in search.everyone:
        if sender.raw:
            found.setdefault((sender.raw, sender.axis), "along")
    return found


def _members(slices: Entries, numbers: list[int]) -> tuple[Member, ...]:
    entries: dict[tuple[str, int, Role], list[tuple[int, int]]] = {}
    for channel, number in enumerate(numbers):
        for name, axis, role, index in slices.get(number, ()):
            entries.setdefault((name, axis, role), []).append((index, channel))
    members = []
    for (name, axis, role), pairs in entries.items():
        pairs.sort()
        table = torch.tensor(pairs, dtype=torch.int64)  # (entries, 2)
        members.append(Member(name, axis, role, table[:, 0].contiguous(), table[:, 1].contiguous()))
    return tuple(members)
