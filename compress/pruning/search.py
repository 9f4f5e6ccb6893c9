"""The search for what is coupled: passes with NaN, and edges between what can only leave together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from compress.pruning.codes import NOBODY, SEVERAL, Bits, Numbers, compatible, constant_weight, decode, digits
from compress.pruning.probing import Injection, Prober
from compress.values import Progress

UNPROVED = "its coupling could not be established"
SMALL = 8  # a digit of at most so many values has a probe for each of them


@dataclass(frozen=True)
class Sender:
    """Channels that a probe can set to NaN: those of one port of a layer, or one axis of a raw parameter."""

    size: int
    nodes: Numbers  # (size,)
    use: int = -1
    port: int = -1
    raw: str = ""
    axis: int = -1


class Search:
    """The graph of what leaves together, as edges between nodes.

    Nodes are numbered: first the slices of the parameters, then the positions of the ports, then those of the reads.
    """

    def __init__(self, prober: Prober, progress: Progress, remember: bool = True) -> None:
        self.prober, self.progress, self.remember = prober, progress, remember
        self.uses = prober.seen.uses
        self.edges: list[tuple[Numbers, Numbers]] = []
        self.count = prober.parameters.count
        self.ports: dict[tuple[int, int], Numbers] = {}
        self.senders: list[Sender] = []
        self.reads: list[tuple[int, Numbers]] = []  # (use, nodes)
        for number, use in enumerate(self.uses):
            if use is not None:
                self._add_use(number)
        self.offsets = np.cumsum([0, *(len(nodes) for _, nodes in self.reads)])
        self.read_nodes = np.concatenate([nodes for _, nodes in self.reads] or [np.zeros(0, dtype=np.int64)])
        self.frozen: dict[str, list[Numbers]] = {}  # reason -> nodes
        self._add_vectors()

    def _new(self, size: int) -> Numbers:
        nodes = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return nodes

    def _add_use(self, number: int) -> None:
        use = self.uses[number]
        assert use is not None
        for index, port in enumerate(use.ports):
            self.ports[number, index] = self._new(port.size)
            for link in port.links:
                self.join(self.ports[number, index][link.positions], link.nodes)
        for read in use.reads:
            nodes = self._new(len(read.positions))
            self.join(nodes, self.ports[number, read.port][read.positions])
            self.reads.append((number, nodes))
        for port_number in sorted({write.port for write in use.writes}):
            nodes = self.ports[number, port_number]
            self.senders.append(Sender(len(nodes), nodes, number, port_number))

    def _add_vectors(self) -> None:
        """Raw parameters with one axis longer than one, such as a layer scale, send like a layer."""
        self.tables: list[str] = []
        for name in sorted(self.prober.seen.raw):
            shape = self.prober.parameters.tensors[name].shape
            long = [axis for axis, size in enumerate(shape) if size > 1]
            if len(long) == 1:
                self.senders.append(self._along(name, long[0]))
            elif long:
                self.tables.append(name)

    def _along(self, name: str, axis: int) -> Sender:
        nodes = self.prober.parameters.nodes(name, axis)
        return Sender(len(nodes), nodes, raw=name, axis=axis)

    def join(self, left: Numbers, right: Numbers) -> None:
        self.edges.append((left, right))

    def freeze(self, reason: str, nodes: Numbers) -> None:
        self.frozen.setdefault(reason, []).append(nodes)

    def components(self) -> Numbers:
        """(nodes,) -> number of the set of nodes that leave together."""
        left = np.concatenate([a for a, _ in self.edges] or [np.zeros(0, dtype=np.int64)])
        right = np.concatenate([b for _, b in self.edges] or [np.zeros(0, dtype=np.int64)])
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.count, self.count))
        found: Numbers = connected_components(graph, directed=False)[1].astype(np.int64)
        return found

    # -- passes ------------------------------------------------------------------------------------------------------

    def send(self, flags: Iterable[tuple[Sender, Bits]], **how: bool) -> Bits:
        """One pass: which positions hear NaN, (reads + 1,), the last being the outputs of the model."""
        inputs = how.pop("inputs", False)
        channels: dict[tuple[int, int], Bits] = {}
        raw: dict[str, Tensor] = {}
        for sender, on in flags:
            if sender.raw:
                tensor = raw.get(sender.raw, self.prober.parameters.tensors[sender.raw].detach().clone())
                raw[sender.raw] = tensor.index_fill(sender.axis, torch.from_numpy(np.flatnonzero(on)), float("nan"))
            else:
                channels[sender.use, sender.port] = on
        arrivals = self.prober.run(Injection(channels, raw, inputs), **how)
        self.progress("channel groups", self.prober.passes, 0)
        heard = [flags for reads in arrivals.reads for flags in reads]
        self.last_splits = arrivals.splits
        return np.concatenate([*heard, np.array([arrivals.output])])

    def run(self) -> None:
        """Fill ``edges`` and ``frozen``."""
        self.everyone = self._first_steps()
        self._tables()
        self._inputs()
        self._prove()

    def _first_steps(self) -> list[Sender]:
        senders = self.senders
        if not senders:
            return []
        by_channel = constant_weight(max(sender.size for sender in senders))
        by_sender = constant_weight(len(senders))
        heard_channel = self._coded([by_channel[: s.size] for s in senders])
        heard_sender = self._coded([np.tile(by_sender[i], (s.size, 1)) for i, s in enumerate(senders)])
        channel, sender = decode(heard_channel, by_channel), decode(heard_sender, by_sender)
        suspects = compatible(heard_sender[sender == SEVERAL], by_sender).any(axis=0)
        reach = {int(i): self._reach(senders[i]) for i in np.flatnonzero(suspects)}
        left: dict[int, Bits] = {}
        for index, one in enumerate(senders):
            here = reach.get(index, sender == index)
            if here[-1]:
                self.freeze("reaches the output of the model", one.nodes)
            clear = here[:-1] & (channel[:-1] >= 0)
            at = np.flatnonzero(clear)
            self.join(one.nodes[channel[at]], self.read_nodes[at])
            if (unclear := here[:-1] & (channel[:-1] == SEVERAL)).any():
                left[index] = unclear
        self._decode_each([(senders[i], unclear) for i, unclear in left.items()])
        return list(senders)

    def _reach(self, sender: Sender) -> Bits:
        """Where any channel of it is heard."""
        return self.send([(sender, np.ones(sender.size, dtype=np.bool_))], remember=self.remember)

    def _coded(self, codes: Sequence[Bits]) -> Bits:
        """A pass for each bit of the codes, one (sender size, m) each: (reads + 1, m)."""
        length = codes[0].shape[1]
        return np.stack(
            [
                self.send([(s, code[:, bit]) for s, code in zip(self.senders, codes, strict=True)])
                for bit in range(length)
            ],
            axis=1,
        )

    # -- senders one by one ------------------------------------------------------------------------------------------

    def _decode_each(self, unclear: Sequence[tuple[Sender, Bits]]) -> None:
        """Join each sender's channels with the positions given for it; those of one colour share no position."""
        for colour in _colours(unclear):
            for (sender, where), heard in zip(colour, self._members(colour), strict=True):
                at = np.flatnonzero(where)
                channels, columns = np.nonzero(heard)
                self.join(sender.nodes[channels], self.read_nodes[at][columns])

    def _members(self, colour: Sequence[tuple[Sender, Bits]]) -> list[Bits]:
        """For each sender: (size, positions given for it), true where a channel may be heard."""
        found = self._by_digits(colour, odd_first=False)
        if any((heard.sum(axis=0) > 1).any() for heard in found):
            again = self._by_digits(colour, odd_first=True)
            found = [first & second for first, second in zip(found, again, strict=True)]
        return found

    def _by_digits(self, colour: Sequence[tuple[Sender, Bits]], odd_first: bool) -> list[Bits]:
        codes = [_digit_code(sender.size, odd_first) for sender, _ in colour]
        heard: list[list[Bits]] = [[] for _ in colour]
        for bit in range(max(code.shape[1] for code in codes)):
            flags = [(s, code[:, bit]) for (s, _), code in zip(colour, codes, strict=True) if bit < code.shape[1]]
            arrived = self.send(flags, remember=self.remember)
            for own, (_, where) in zip(heard, colour, strict=True):
                own.append(arrived[:-1][where])
        return [
            compatible(np.stack(own[: code.shape[1]], axis=1), code).T for own, code in zip(heard, codes, strict=True)
        ]

    # -- raw parameters, inputs --------------------------------------------------------------------------------------

    def _tables(self) -> None:
        """Raw parameters with several long axes (position embeddings): which axis runs along the channels, if any."""
        reach: dict[str, Bits] = {}
        for name in self.tables:
            shape = self.prober.parameters.tensors[name].shape
            everything = self._along(name, next(a for a, size in enumerate(shape) if size > 1))
            reach[name] = self._reach(everything)[:-1]
        left = {n: [a for a, s in enumerate(self.prober.parameters.tensors[n].shape) if s > 1] for n in reach}
        crossed: set[str] = set()  # a set of channels hears some entries of them only, and along no axis
        while left:
            batch = [(self._along(name, axes.pop()), reach[name]) for name, axes in left.items()]
            for colour in _colours(batch):
                for (sender, where), heard in zip(colour, self._members(colour), strict=True):
                    if where.any() and (heard.sum(axis=0) == 1).all():
                        self.join(sender.nodes[heard.argmax(axis=0)], self.read_nodes[np.flatnonzero(where)])
                        self.everyone.append(sender)
                        del left[sender.raw]
                    elif not self._hears_all(heard, np.flatnonzero(where)):
                        crossed.add(sender.raw)
            for name in [name for name, axes in left.items() if not axes]:
                if name in crossed:
                    reason = f"meets {name}, none of whose axes runs along the channels"
                    self.freeze(reason, self.read_nodes[reach[name]])
                del left[name]

    def _hears_all(self, heard: Bits, at: Numbers) -> bool:
        """Whether every set of channels hears all entries of an axis, as heads hear a table that all of them share.

        Args:
            heard: (entries, positions).
            at: (positions,) of the reads.
        """
        sets = self.components()[self.read_nodes[at]]
        order = np.argsort(sets, kind="stable")
        starts = np.flatnonzero(np.diff(sets[order], prepend=-1))
        return bool(np.logical_or.reduceat(heard[:, order], starts, axis=1).all())

    def _inputs(self) -> None:
        heard = self.send([], inputs=True)[:-1]
        self.freeze("meets an input of the model", self.read_nodes[heard])

    # -- the proof ---------------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Every position hears its own set of channels and no other; splits of an axis join what must stay even."""
        if not self.everyone:
            return
        component = self.components()
        numbers = np.unique(np.concatenate([component[s.nodes] for s in self.everyone]))
        code = constant_weight(len(numbers))
        own = [np.searchsorted(numbers, component[sender.nodes]) for sender in self.everyone]
        heard, at_splits = [], []
        for bit in range(code.shape[1]):
            flags = [(s, code[which, bit]) for s, which in zip(self.everyone, own, strict=True)]
            heard.append(self.send(flags, splits=True)[:-1])
            at_splits.append(self.last_splits)
        seen = np.stack(heard, axis=1)
        found = decode(seen, code)
        expected = np.searchsorted(numbers, component[self.read_nodes]).clip(max=len(numbers) - 1)
        wrong = (found != NOBODY) & (found != expected)
        for position in np.flatnonzero(wrong):
            among = numbers[np.flatnonzero(compatible(seen[position : position + 1], code)[0])]
            self.freeze(UNPROVED, np.flatnonzero(np.isin(component, among)))
        _, some = np.unique(component, return_index=True)  # one node of each set
        at_split = [
            [np.stack(bits, axis=1) for bits in zip(*call, strict=True)] for call in zip(*at_splits, strict=True)
        ]
        self._even(at_split, code, some[numbers])

    def _even(self, heard: Sequence[Sequence[Bits]], code: Bits, some: Numbers) -> None:
        """Channels on an axis that a reshape cuts into factors leave along one of the factors, or all together."""
        labels = [
            (split, decode(seen, code))
            for call, splits in zip(heard, self.prober.seen.splits, strict=True)
            for split, seen in zip(splits, call, strict=True)
        ]
        labels = [(s, found) for s, found in labels if (found >= 0).any() and (found != SEVERAL).all()]
        tables = [
            (np.where(found >= 0, some[found], NOBODY).reshape(split.factors), 1 if split.equal else None)
            for split, found in labels
            if len(np.unique(found)) > 1
        ]
        uneven = True
        while uneven:  # joining for one of them can upset another; there are only so many channels to join
            component = self.components()
            uneven = sum(self._along_one(table, component, axis) for table, axis in tables) > 0

    def _along_one(self, table: Numbers, component: Numbers, forced: int | None) -> bool:
        """Join what it takes for the channels in ``table`` to leave along one axis of it. Whether that was news."""
        axes = range(table.ndim) if forced is None else (forced,)
        lines = [np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1) for axis in axes]
        if any((component[line] == component[line[:, :1]]).all() for line in lines):
            return False
        joined = False
        for entries in max(lines, key=len):
            known = entries[entries != NOBODY]
            if 0 < len(known) < len(entries):
                self.freeze("shares an axis that is reshaped with what cannot leave", known)
            if len(np.unique(component[known])) > 1:
                self.join(np.repeat(known[:1], len(known)), known)
                joined = True
        return joined


def _colours(wanted: Sequence[tuple[Sender, Bits]]) -> list[list[tuple[Sender, Bits]]]:
    """Greedy colouring: senders of one colour are never heard at the same position."""
    colours: list[tuple[Bits, list[tuple[Sender, Bits]]]] = []
    for sender, where in wanted:
        for taken, members in colours:
            if not (taken & where).any():
                taken |= where
                members.append((sender, where))
                break
        else:
            colours.append((where.copy(), [(sender, where)]))
    return [members for _, members in colours]


def _digit_code(size: int, odd_first: bool) -> Bits:
    """A probe for each value of each small digit of a channel's number, and a code for the larger ones."""
    blocks = []
    for digit in digits(size, odd_first):
        values = int(digit.max()) + 1
        code = np.eye(values, dtype=np.bool_) if values <= SMALL else constant_weight(values)
        blocks.append(code[digit])
    return np.concatenate(blocks, axis=1)
