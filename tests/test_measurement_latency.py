"""Latency over launches: driven within this process on a clock and sessions of the tests, and once for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.measurement import BenchmarkConfig
from compress.measurement.latency import Job, Plan, measure, time_together
from compress.measurement.process import Process
from compress.measurement.timing import speedup
from compress.measurement.worker import Worker
from compress.values import Context, Variant
from tests.test_measurement import FEATURES, write_linear
from tests.test_measurement_benchmark import data

MS = 1_000_000
FEEDS = {"x": np.zeros((1, FEATURES), np.float32)}
PLAN = Plan(seconds=0.05, min_samples=12, rounds=6, launches=3)


class Machine:
    """A clock, and sessions that take as long as their file's name says; it remembers who was called and opened."""

    def __init__(self) -> None:
        self.now = 10**18
        self.calls: list[str] = []
        self.opened: list[tuple[str, int]] = []
        self.pinned: list[int | None] = []
        self.closed = 0

    def session(self, path: str, options: Any, **given: Any) -> Session:
        self.now += 7 * MS
        self.opened.append((Path(path).stem, options.intra_op_num_threads))
        return Session(self, Path(path).stem)

    def launch(self) -> Bench:
        return Bench(self)


class Session:
    """Takes "3ms" for 3 ms a call, and one more for the first."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name, self.fresh = machine, name, True

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def run(self, outputs: None, feeds: Mapping[str, NDArray[Any]]) -> None:
        if self.name == "fails":
            raise RuntimeError("out of memory\nand more")
        self.machine.now += round(float(self.name.split("ms")[0]) * MS) + MS * self.fresh
        self.machine.calls.append(self.name)
        self.fresh = False


class Bench(Worker):
    """A worker without a process, whose sessions are the machine's."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.session, clock=lambda: machine.now)
        self.machine = machine

    def pin(self, core: int | None) -> int | None:
        self.machine.pinned.append(core)
        return 5

    def place(self) -> dict[str, Any]:
        return {"nodes": {"CPUExecutionProvider": 1}}

    def close(self) -> None:
        self.machine.closed += 1


def jobs(*names: str) -> list[Job]:
    return [Job(Path(f"{name}.onnx"), FEEDS) for name in names]


def test_every_launch_is_a_session_of_its_own_and_shares_the_rounds() -> None:
    machine = Machine()
    base, slow = time_together(jobs("2ms", "3ms"), PLAN, machine.launch)
    assert machine.opened == [("2ms", 1), ("3ms", 1)] * 3
    assert machine.closed == 6
    assert (base.launches, base.rounds, base.samples) == (3, 6, 24)  # 50 ms / 2 ms / 6 rounds: 4 calls each
    assert (slow.launches, slow.rounds, slow.samples) == (3, 6, 12)
    assert (base.p50_ms, slow.p50_ms) == (2.0, 3.0)
    assert speedup(base, slow).value == pytest.approx(2 / 3)


def test_load_and_first_call_stand_apart_from_the_samples() -> None:
    (found,) = time_together(jobs("2ms"), PLAN, Machine().launch)
    assert (found.load_ms, found.first_call_ms, found.quantiles_ms[-1]) == (7.0, 3.0, 2.0)
    assert found.placement == {"nodes": {"CPUExecutionProvider": 1}}
    assert found.peak_bytes is None or found.peak_bytes > 0


def test_no_model_is_loaded_before_all_processes_of_the_launch_are_there() -> None:
    asked: list[str] = []

    class Listed(Bench):
        def ask(self, request: str, *arguments: Any, limit_s: float = 0.0) -> Any:
            asked.append(request)
            return super().ask(request, *arguments)

    machine = Machine()
    time_together(jobs("2ms", "3ms", "4ms"), replace(PLAN, launches=1), lambda: Listed(machine))
    assert asked[:6] == ["start"] * 3 + ["open"] * 3


def test_a_job_can_have_a_runtime_of_its_own_beside_the_others() -> None:
    machine, other = Machine(), Machine()
    given = jobs("2ms", "3ms")
    base, own = time_together([given[0], replace(given[1], launch=other.launch)], PLAN, machine.launch)
    assert (set(machine.calls), set(other.calls)) == ({"2ms"}, {"3ms"})
    assert (base.rounds, own.rounds, own.p50_ms) == (6, 6, 3.0)


def test_in_each_round_every_variant_has_one_block_in_changing_order() -> None:
    machine = Machine()
    time_together(jobs("2ms", "2ms-b"), Plan(seconds=0.2, rounds=20, min_samples=1, launches=1), machine.launch)
    block = 3 + 5  # calls until 5 ms have passed since the switch; then 0.2 s / 2 ms / 20 rounds
    timed = machine.calls[-20 * 2 * block :]
    turns = [timed[i : i + block] for i in range(0, len(timed), block)]
    assert all(len(set(turn)) == 1 for turn in turns)
    orders = [(turns[i][0], turns[i + 1][0]) for i in range(0, len(turns), 2)]
    assert set(orders) == {("2ms", "2ms-b"), ("2ms-b", "2ms")}


def test_all_of_a_launch_stay_on_the_core_that_the_first_was_given() -> None:
    machine = Machine()
    time_together(jobs("2ms", "3ms", "4ms"), PLAN, machine.launch)
    assert machine.pinned == [None, 5, 5] * 3


def test_several_threads_are_not_kept_on_one_core() -> None:
    machine = Machine()
    time_together(jobs("2ms"), replace(PLAN, threads=2), machine.launch)
    assert machine.pinned == []


def test_one_that_fails_says_why_and_the_others_go_on() -> None:
    machine = Machine()
    base, failed = time_together(jobs("2ms", "fails"), PLAN, machine.launch)
    assert base.status == "ok"
    assert (failed.status, failed.p50_ms, failed.samples) == ("open failed: out of memory", None, 0)
    assert [name for name, _ in machine.opened].count("fails") == 1  # not tried again


def test_one_whose_nodes_run_elsewhere_is_refused_after_its_first_launch_and_asked_once() -> None:
    machine = Machine()
    placed: list[str] = []

    class Placed(Bench):
        def place(self) -> dict[str, Any]:
            placed.append(self._asked[0].stem)
            if placed[-1] == "3ms":
                raise MeasurementError("runs none of this model's nodes")
            return super().place()

    base, refused = time_together(jobs("2ms", "3ms"), PLAN, lambda: Placed(machine))
    assert (refused.status, refused.p50_ms, refused.placement) == ("runs none of this model's nodes", None, None)
    assert (base.status, base.launches) == ("ok", 3)
    assert machine.opened == [("2ms", 1), ("3ms", 1), ("2ms", 1), ("2ms", 1)]
    assert placed == ["2ms", "3ms"]


class Dying(Bench):
    """Its process goes after some requests."""

    left = 11

    def ask(self, request: str, *arguments: Any, limit_s: float = 0.0) -> Any:
        Dying.left -= 1
        if Dying.left < 0:
            raise MeasurementError("its process was ended by SIGKILL")
        return super().ask(request, *arguments)


def test_one_that_dies_in_a_later_launch_has_no_numbers() -> None:
    machine = Machine()
    (found,) = time_together(jobs("2ms"), PLAN, lambda: Dying(machine))
    assert (found.status, found.p50_ms) == ("its process was ended by SIGKILL", None)
    assert len(machine.opened) == 2


def test_every_process_is_closed_when_the_user_interrupts() -> None:
    machine = Machine()

    def interrupt(label: str, done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_together(jobs("2ms", "3ms"), PLAN, machine.launch, interrupt)
    assert machine.closed == 2


def test_energy_is_measured_after_the_latencies_and_told_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()

    class Power:
        """1 W."""

        def start(self) -> None:
            self.began = machine.now
            self.calls = len(machine.calls)

        def stop(self) -> float:
            return (machine.now - self.began) / MS

    monkeypatch.setattr("compress.measurement.latency.meter", lambda energy: Power())
    (found,) = time_together(
        jobs("2ms"), Plan(seconds=0.05, rounds=2, launches=2, batch=4, energy="auto"), machine.launch
    )
    assert found.energy_mj == pytest.approx(0.5)  # 1 mJ a millisecond, 2 ms a call, 4 samples a call


def test_there_is_a_timing_for_each_provider_number_of_threads_and_batch_size(tmp_path: Path) -> None:
    machine = Machine()
    config = BenchmarkConfig(batches=(1, 3), threads=(1, 2), seconds=0.01, min_samples=2, rounds=2, launches=1)
    files = [write_linear(tmp_path / f"{name}.onnx") for name in ("2ms", "4ms")]
    variants = [Variant(model.path.stem, "test", model) for model in files]
    told: list[str] = []
    context = Context(data(), tmp_path, progress=lambda label, done, total, note="": told.append(label))
    base, slow = measure(variants, data(), config, context, machine.launch)
    assert [(t.provider, t.threads, t.batch, t.p50_ms) for t in base] == [
        ("CPUExecutionProvider", 1, 1, 2.0),
        ("CPUExecutionProvider", 1, 3, 2.0),
        ("CPUExecutionProvider", 2, 1, 2.0),
        ("CPUExecutionProvider", 2, 3, 2.0),
    ]
    assert [t.p50_ms for t in slow] == [4.0] * 4
    assert base[1].throughput == pytest.approx(1500)
    assert {threads for _, threads in machine.opened} == {1, 2}
    assert told[-1] == "timing cpu, 2 threads, batch 3"


def test_samples_are_read_once_for_all_that_take_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    given = data()
    plain = type(given.calibration).batches

    def batches(split: Any, size: int) -> Any:
        read.append(size)
        return plain(split, size)

    monkeypatch.setattr(type(given.calibration), "batches", batches)
    config = BenchmarkConfig(batches=(1, 3), threads=(1, 2), seconds=0.01, min_samples=2, rounds=2, launches=1)
    variants = [Variant(name, "test", write_linear(tmp_path / f"{name}.onnx")) for name in ("2ms", "3ms", "4ms")]
    measure(variants, given, config, Context(given, tmp_path), Machine().launch)
    assert read == [1, 3]


# With real processes


def test_a_file_is_timed_in_a_process_that_holds_neither_torch_nor_scipy(tmp_path: Path) -> None:
    job = Job(write_linear(tmp_path / "model.onnx").path, FEEDS)
    (found,) = time_together([job], Plan(seconds=0.01, min_samples=4, rounds=2, launches=1))
    assert found.status == "ok"
    assert found.p50_ms is not None
    assert found.load_ms is not None
    assert found.peak_bytes is not None
    assert 20e6 < found.peak_bytes < 150e6  # torch alone takes more
    assert found.placement is not None
    assert sum(found.placement["nodes"].values()) >= 1


def test_the_workers_module_imports_only_numpy_and_onnxruntime() -> None:
    code = (
        "import sys, compress.measurement.worker\n"
        "heavy = {'torch', 'scipy', 'sklearn', 'onnx', 'pydantic', 'matplotlib', 'cpuinfo'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_other_runtimes_serve_with_imports_numpy_alone() -> None:
    code = (
        "import sys, compress.measurement.serving\n"
        "heavy = {'onnxruntime', 'onnx', 'torch', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def scripted(code: str) -> Callable[[], Process]:
    """Processes that run ``code`` in place of the worker."""
    return lambda: Process((sys.executable, "-c", code))


ANSWERS = "import pickle, sys\npickle.load(sys.stdin.buffer)\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"was ended by SIGSEGV during 'start'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL \(the system does so where memory runs"),
        ("import sys; sys.exit('no such library\\nlibx.so')", r"ended with status 1 during 'start': libx.so"),
        (ANSWERS + "print('hello', flush=True); sys.stdin.read()", "answered what cannot be read"),
        ("print('cos\\nnothing_of_this_name\\n.', flush=True); import sys; sys.stdin.read()", "what cannot be read"),
        (ANSWERS + "pickle.dump((False, 'no GPU'), sys.stdout.buffer)", "^no GPU$"),
    ],
)
def test_a_process_that_goes_wrong_is_told_in_one_line(code: str, told: str) -> None:
    launch = scripted(code)
    (found,) = time_together(jobs("2ms"), PLAN, launch)
    assert found.p50_ms is None
    assert "\n" not in found.status
    assert re.search(told, found.status), found.status


def test_a_process_that_does_not_answer_is_ended() -> None:
    process = scripted("import time; time.sleep(60)")()
    started = time.perf_counter()
    with pytest.raises(MeasurementError, match="gave no answer to 'open' within 0 s"):
        process.ask("open", limit_s=0.3)
    assert time.perf_counter() - started < 10
    assert process._process.wait(5) == -signal.SIGKILL
    process.close()


def test_closing_ends_a_process_that_is_busy() -> None:
    process = scripted("while True: pass")()
    process.close()
    assert process._process.returncode == -signal.SIGKILL


def test_a_worker_ends_when_its_parent_does() -> None:
    code = (
        "import os\nfrom compress.measurement.process import Process\n"
        "print(Process()._process.pid, flush=True)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    ended = time.perf_counter() + 10
    while Path(f"/proc/{done.stdout.strip()}/exe").exists() and time.perf_counter() < ended:
        time.sleep(0.05)
    assert not Path(f"/proc/{done.stdout.strip()}/exe").exists()


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="the system has no such order")
def test_where_memory_runs_out_a_worker_goes_before_its_parent() -> None:
    process = Process()
    process.ask("start")
    assert Path(f"/proc/{process._process.pid}/oom_score_adj").read_text().strip() == "1000"
    process.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen on this system")
def test_a_worker_can_be_kept_on_a_core() -> None:
    process = Process()
    core = process.ask("pin", None)
    assert process.ask("pin", core) == core
    assert os.sched_getaffinity(process._process.pid) == {core}
    process.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time of other processes is not told here")
def test_a_worker_with_several_threads_does_not_spin_while_others_have_their_turn(tmp_path: Path) -> None:
    process = Process()
    process.ask("open", str(write_linear(tmp_path / "model.onnx").path), "cpu", 4, FEEDS)
    process.ask("block", 50)
    time.sleep(0.02)  # threads spin on for 5 ms; by default for 50 and more

    def cpu_ticks() -> int:
        fields = Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = cpu_ticks()
    time.sleep(0.3)
    assert cpu_ticks() - before <= 2  # of 10 ms; by default it is 4 to 7
    process.close()


def test_what_libraries_print_does_not_reach_the_answers(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from compress.measurement import serving, worker\n"
        "plain = worker.Worker.open\n"
        "def noisy(self, *given):\n"
        "    print('a library says hello', flush=True)\n"
        "    os.write(1, b'and so does another')\n"
        "    return plain(self, *given)\n"
        "worker.Worker.open = noisy\n"
        "serving.serve(worker.Worker)"
    )
    process = scripted(code)()
    load_ms, first_ms = process.ask("open", str(write_linear(tmp_path / "model.onnx").path), "cpu", 1, FEEDS)
    process.close()
    assert load_ms > 0
    assert first_ms > 0
