"""What is told of long work: nesting, time left, stages, the best so far; on a terminal and without one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from compress.cli.console import PLAIN_SECONDS, Display
from compress.cli.progress import Finished, Track, clock_text
from compress.values import StageName


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def display(clock: Clock, terminal: bool, width: int = 120, quiet: bool = False) -> tuple[Display, Console]:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None, _environ={}
    )
    return Display(quiet, console, clock), console


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def picture(shown: Display, width: int = 120) -> list[str]:
    """What is on the screen now, line by line."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(shown)
    return [line.rstrip() for line in text_of(console).splitlines()]


# The track


def test_work_that_is_told_while_another_is_unfinished_is_a_part_of_it(clock: Clock) -> None:
    track = Track(clock)
    track.tell("rounds", 0, 4)
    track.tell("training", 10, 100)
    assert [work.label for work in track.works] == ["rounds", "training"]
    track.tell("training", 100, 100)
    track.tell("scoring", 1, 9)
    assert [work.label for work in track.works] == ["rounds", "scoring"]


def test_when_the_outer_work_goes_on_its_parts_are_over_finished_or_not(clock: Clock) -> None:
    track = Track(clock)
    track.tell("rounds", 0, 4)
    track.tell("training", 10, 100)
    track.tell("rounds", 1, 4)
    assert [work.label for work in track.works] == ["rounds"]


def test_finished_work_makes_room_for_the_next(clock: Clock) -> None:
    track = Track(clock)
    track.tell("reading the model", 0, 0)
    track.tell("reading the data", 0, 0)
    track.tell("scoring", 9, 9)
    track.tell("timing", 1, 25)
    assert [work.label for work in track.works] == ["timing"]


def test_the_time_left_follows_from_the_mean_speed(clock: Clock) -> None:
    track = Track(clock)
    track.tell("training", 0, 100)
    assert track.works[0].left(clock()) is None
    clock.now = 20.0
    track.tell("training", 25, 100)
    assert track.works[0].left(clock()) == pytest.approx(60.0)


def test_work_that_was_done_before_the_start_is_no_measure_of_speed(clock: Clock) -> None:
    track = Track(clock)
    track.tell("points", 80, 100)
    clock.now = 10.0
    track.tell("points", 90, 100)
    assert track.works[0].left(clock()) == pytest.approx(10.0)


def test_the_same_work_once_more_starts_its_clock_anew(clock: Clock) -> None:
    track = Track(clock)
    track.tell("scoring", 0, 10)
    clock.now = 100.0
    track.tell("scoring", 9, 10)
    track.tell("scoring", 0, 10)
    clock.now = 101.0
    track.tell("scoring", 5, 10)
    assert track.works[0].left(clock()) == pytest.approx(1.0)


def test_a_stage_is_told_with_its_number_its_times_and_its_result(clock: Clock) -> None:
    track = Track(clock)
    assert track.tell(StageName("prune"), 0, 2) is None
    track.tell("rounds", 0, 4)
    clock.now = 60.0
    track.tell("rounds", 1, 4)
    assert track.headline() == "stage 1 of 2: prune, 1:00 so far, at least 3:00 left"
    assert track.tell(StageName("prune"), 1, 2, "half the channels") == Finished("prune", 60.0, "half the channels")
    track.tell(StageName("benchmark"), 1, 2)
    track.tell("timing", 0, 10)
    clock.now = 70.0
    track.tell("timing", 5, 10)
    assert track.headline() == "stage 2 of 2: benchmark, 1:10 so far, at least 0:10 left"


def test_a_stage_that_was_kept_from_an_earlier_run_has_no_time(clock: Clock) -> None:
    track = Track(clock)
    assert track.tell(StageName("prune"), 1, 2, "as it was") == Finished("prune", None, "as it was")
    assert track.headline() == ""


def test_the_best_so_far_stays_until_its_stage_is_over(clock: Clock) -> None:
    track = Track(clock)
    track.tell(StageName("sparsify"), 0, 1)
    track.tell("rounds", 1, 4, "best: 92.0% zeros")
    track.tell("training", 1, 100, "loss 0.31")
    assert track.best == "best: 92.0% zeros"
    track.tell(StageName("sparsify"), 1, 1, "92 %")
    assert track.best == ""


def test_times_are_minutes_and_seconds() -> None:
    assert [clock_text(s) for s in (0.4, 59.6, 252, 3723)] == ["0:00", "1:00", "4:12", "1:02:03"]


# A terminal


def work(shown: Display, clock: Clock) -> None:
    shown(StageName("prune"), 0, 6)
    shown("rounds of prune", 0, 4)
    shown(StageName("prune"), 1, 6, "skipped: --skip asked for it")
    shown(StageName("sparsify"), 1, 6)
    shown("rounds of sparsify", 0, 4)
    clock.now += 100.0
    shown("rounds of sparsify", 1, 4, "best: 90.0% zeros, +0.0031 of 0.0050 lost")
    shown("sparsify 95.0%", 0, 400)
    clock.now += 10.0
    shown("sparsify 95.0%", 100, 400, "loss 0.310")


def test_a_terminal_shows_the_stage_each_level_of_work_and_the_best_so_far(clock: Clock) -> None:
    shown, _ = display(clock, terminal=True)
    with shown:
        work(shown, clock)
        lines = picture(shown)
    assert lines[0] == "stage 2 of 6: sparsify, 1:50 so far, at least 5:30 left"
    assert lines[1].startswith("rounds of sparsify ")
    assert "1/4" in lines[1]
    assert "5:30 left" in lines[1]
    assert lines[2].startswith("  sparsify 95.0% ")
    assert "100/400" in lines[2]
    assert "0:30 left" in lines[2]
    assert "loss 0.310" in lines[2]
    assert lines[3:] == ["best: 90.0% zeros, +0.0031 of 0.0050 lost"]


def test_stages_that_are_over_are_one_line_each_and_bars_do_not_pile_up(clock: Clock) -> None:
    shown, console = display(clock, terminal=True)
    with shown:
        for number in range(50):
            shown("scoring", 0, 10)
            shown(f"candidate {number}", 10, 10)
        assert len(picture(shown)) <= 3
        work(shown, clock)
        shown(StageName("sparsify"), 2, 6, "93 % zeros")
        assert picture(shown) == []
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text_of(console)).splitlines()
    over = [" ".join(line.split()) for line in printed if line.strip().startswith(("prune ", "sparsify  "))]
    assert over == ["prune 0:00 skipped: --skip asked for it", "sparsify 1:50 93 % zeros"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal_and_none_wraps(clock: Clock, width: int) -> None:
    shown, _ = display(clock, terminal=True, width=width)
    with shown:
        work(shown, clock)
        shown("a piece of work with a name that is much too long for it", 1, 1_000_000, "a note " * 30)
        lines = picture(shown, width)
    assert len(lines) == 5  # the stage, three levels of work, the best
    assert max(map(len, lines)) <= width


def test_no_color_is_asked_for_and_there_is_none(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    with Display(console=console, clock=clock) as shown:
        work(shown, clock)
    assert "\x1b[3" not in text_of(console)  # 30 to 37: colours


# No terminal


def test_without_a_terminal_there_is_a_line_now_and_then_with_the_time_left(clock: Clock) -> None:
    shown, console = display(clock, terminal=False)
    with shown:
        shown(StageName("sparsify"), 0, 6)
        for step in range(1, 401):
            clock.now += 0.125
            shown("training", step, 400, "loss 0.310")
        shown(StageName("sparsify"), 1, 6, "93 % zeros")
    lines = text_of(console).splitlines()
    assert lines[0] == "stage 1 of 6: sparsify, 0:00 so far"
    assert lines[1] == "training 1/400 loss 0.310"
    assert lines[2] == "training 121/400 loss 0.310, 0:35 left"
    assert lines[-1].split() == ["sparsify", "0:50", "93", "%", "zeros"]
    assert len(lines) == 3 + int(50 / PLAIN_SECONDS)
    assert "\x1b" not in text_of(console)


def test_pieces_that_alternate_are_not_told_each_time(clock: Clock) -> None:
    shown, console = display(clock, terminal=False)
    with shown:
        for candidate in range(100):
            shown("training", candidate, 100)
            shown("scoring", candidate, 100)
            clock.now += 0.01
    assert len(text_of(console).splitlines()) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(clock: Clock, terminal: bool) -> None:
    shown, console = display(clock, terminal, quiet=True)
    with shown:
        work(shown, clock)
    assert text_of(console) == ""


def test_a_dumb_terminal_gets_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    with Display(console=console, clock=clock) as display:
        display("timing", 0, 3)
    assert isinstance(console.file, io.StringIO)
    assert "timing" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()
