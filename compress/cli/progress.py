"""What is known of long work: which stage, which pieces of work within each other, how long they will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from compress.values import StageName

BEST = "best"  # a note that begins so tells the best result so far: it stays on show until its stage is over
DEEPEST = 3  # pieces of work within each other that are shown; of more, the innermost


@dataclass
class Work:
    """One piece of work; its clock starts when it is first told."""

    label: str
    started: float
    first: int  # done already when it was first told: resumed work is no measure of speed
    done: int
    total: int  # 0: not known
    note: str = ""

    @property
    def open(self) -> bool:
        return self.done < self.total

    def left(self, now: float) -> float | None:
        """Seconds that remain at the mean speed so far; None where nothing tells."""
        if self.done <= self.first or not self.total:
            return None
        return (now - self.started) * (self.total - self.done) / (self.done - self.first)


@dataclass
class Stage:
    """One stage of a run."""

    name: str
    number: int  # from 1
    count: int
    started: float


@dataclass(frozen=True)
class Finished:
    """A stage that is over."""

    name: str
    seconds: float | None  # None: it had nothing to do
    result: str


@dataclass
class Track:
    """Follows `compress.values.Progress` calls. Work that is told while another piece is open is a part of it."""

    clock: Callable[[], float]
    works: list[Work] = field(default_factory=list)  # the outermost first
    stage: Stage | None = None
    best: str = ""
    over: int = 0  # stages

    def __post_init__(self) -> None:
        self.started = self.clock()

    def tell(self, label: str, done: int, total: int, note: str = "") -> Finished | None:
        """Take one call in; a stage that ended by it is returned."""
        if isinstance(label, StageName):
            return self._tell_stage(label, done, total, note)
        if note.startswith(BEST):
            self.best = note
        known = next((i for i, work in enumerate(self.works) if work.label == label), None)
        if known is None:
            self.works = [*(work for work in self.works if work.open), Work(label, self.clock(), done, done, total)]
            known = len(self.works) - 1
        del self.works[known + 1 :]  # what was a part of it is over, finished or not
        work = self.works[known]
        if done < work.done:  # the same work, once more
            work.started, work.first = self.clock(), done
        work.done, work.total, work.note = done, total, note
        return None

    def _tell_stage(self, name: str, done: int, total: int, result: str) -> Finished | None:
        now = self.clock()
        self.works, self.best = [], ""
        if done == self.over:
            self.stage = Stage(name, done + 1, total, now)
            return None
        began = self.stage.started if self.stage is not None and self.stage.name == name else None
        self.stage, self.over = None, done
        return Finished(name, None if began is None else now - began, result)

    @property
    def shown(self) -> list[Work]:
        return self.works[-DEEPEST:]

    def headline(self) -> str:
        """The stage, how long the run takes already, and for how long at least; "" where there are no stages."""
        if self.stage is None:
            return ""
        now, stage = self.clock(), self.stage
        left = next((seconds for work in self.works if (seconds := work.left(now)) is not None), 0.0)
        # What else a stage will have to do, and those after it, nobody knows yet.
        least = f", at least {clock_text(left)} left" if left >= 1 else ""
        return f"stage {stage.number} of {stage.count}: {stage.name}, {clock_text(now - self.started)} so far{least}"


def left_text(seconds: float | None) -> str:
    """ ", 1:30 left", or nothing."""
    return "" if seconds is None else f", {clock_text(seconds)} left"


def clock_text(seconds: float) -> str:
    """4:12, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
