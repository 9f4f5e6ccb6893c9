"""Sessions that are what was asked for: on ONNX files of a single multiplication, and with sessions that pretend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from compress.cli import options
from compress.data.splits import Data
from compress.errors import MeasurementError
from compress.measurement import BenchmarkConfig, Timing, benchmark, sessions
from compress.measurement.sessions import PROVIDERS, ExecutionProvider, Factory, bind, open_session, trial
from compress.measurement.worker import Worker
from compress.values import Context, OnnxModel, Variant
from tests.test_measurement import CLASSES, FEATURES, INPUTS, split, write_linear

BUILT = onnxruntime.get_available_providers()


def on_the_cpu(model: str | bytes, options: Any, **asked: Any) -> onnxruntime.InferenceSession:
    """What onnxruntime does where a provider is listed and cannot start: a CPU session, and a line in its log."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


class Pretender:
    """A session that runs on what it was asked for, and remembers how it was opened and called."""

    def __init__(self, model: str | bytes, options: onnxruntime.SessionOptions, **asked: Any) -> None:
        self.options, self.asked = options, asked

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.asked["providers"]]

    def setting(self, key: str) -> str | None:
        try:
            return str(self.options.get_session_config_entry(key))
        except RuntimeError:  # it was not set
            return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_linear(tmp_path / "m.onnx").path


def test_a_cpu_session_runs_with_the_threads_that_were_asked_for(path: Path) -> None:
    session = open_session(path, "cpu", threads=2)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_session_options().inter_op_num_threads == 1


@pytest.mark.parametrize("provider", [key for key, row in PROVIDERS.items() if row.name not in BUILT])
def test_a_provider_that_is_not_in_this_build_is_an_error_that_says_how_to_get_it(path: Path, provider: str) -> None:
    with pytest.raises(MeasurementError, match=r"has only .*CPUExecutionProvider.*To get it: ") as told:
        open_session(path, provider, threads=1)
    assert PROVIDERS[provider].name in str(told.value)
    assert PROVIDERS[provider].install in str(told.value)


@pytest.mark.parametrize("provider", [key for key in PROVIDERS if key != "cpu"])
def test_a_session_on_another_provider_than_asked_for_is_refused(path: Path, provider: str) -> None:
    with pytest.raises(MeasurementError, match=r"could not be started: the session runs on CPUExecutionProvider"):
        open_session(path, provider, 1, on_the_cpu)


def test_what_onnxruntime_refuses_is_told_in_one_line(path: Path) -> None:
    def broken(*arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError("\nlibcudnn.so.9: cannot open shared object file" + "x" * 1000 + "\nstack\nstack")

    with pytest.raises(MeasurementError, match=r"CUDAExecutionProvider cannot run .*m\.onnx: libcudnn\.so\.9") as told:
        open_session(path, "cuda", 1, broken)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_session_is_never_opened_with_the_silent_retry_of_onnxruntime(path: Path, provider: str) -> None:
    asked = open_session(path, provider, 1, Pretender).asked
    assert asked["enable_fallback"] is False
    assert asked["providers"][0][0] == PROVIDERS[provider].name


def test_onnxruntime_does_not_try_again_with_another_provider(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Left to itself, it would: its Python catches what a provider raises as it starts, and opens a CPU session.
    tried = []

    def failing(self: object, providers: Any, *rest: Any) -> NoReturn:
        tried.append(providers)
        raise RuntimeError("no device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", failing)
    with pytest.raises(MeasurementError, match="no device"):
        open_session(path, "cpu", 1)
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("provider", "chain"),
    [
        ("cuda", ["CUDAExecutionProvider"]),
        ("tensorrt", ["TensorrtExecutionProvider", "CUDAExecutionProvider"]),
        ("openvino", ["OpenVINOExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_a_provider_comes_with_those_that_run_what_it_leaves(path: Path, provider: str, chain: list[str]) -> None:
    assert open_session(path, provider, 1, Pretender).get_providers() == chain


def test_tf32_is_off_where_it_is_not_asked_for_and_every_row_says_which(path: Path) -> None:
    for provider, tf32, label in (
        ("cuda", "0", "CUDAExecutionProvider"),
        ("cuda-tf32", "1", "CUDAExecutionProvider (TF32)"),
    ):
        ((_, options),) = open_session(path, provider, 1, Pretender).asked["providers"]
        assert options["use_tf32"] == tf32
        assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
        assert PROVIDERS[provider].precision == f"TF32 {'on' if tf32 == '1' else 'off'}"
        assert PROVIDERS[provider].label == label


def test_a_provider_with_threads_of_its_own_gets_them_and_onnxruntime_one(path: Path) -> None:
    for provider, option in (("xnnpack", "intra_op_num_threads"), ("openvino", "load_config")):
        session = open_session(path, provider, 3, Pretender)
        assert session.options.intra_op_num_threads == 1
        assert "3" in session.asked["providers"][0][1][option]
        assert "{threads}" not in session.asked["providers"][0][1][option]
    config = open_session(path, "openvino", 3, Pretender).asked["providers"][0][1]
    assert json.loads(config["load_config"])["CPU"]["INFERENCE_NUM_THREADS"] == 3


def test_threads_that_wait_spin_briefly_and_not_at_all_beside_another_pool(path: Path) -> None:
    briefly, at_all = "session.intra_op.spin_duration_us", "session.intra_op.allow_spinning"
    assert open_session(path, "cpu", 1, Pretender).setting(briefly) == "5000"
    assert open_session(path, "cpu", 1, Pretender).setting(at_all) is None
    assert open_session(path, "xnnpack", 1, Pretender).setting(at_all) == "0"


def test_rows_of_reports_can_be_told_apart_and_the_rest_is_known() -> None:
    labels = [row.label for row in PROVIDERS.values()]
    assert len(set(labels)) == len(labels)
    assert all(key in PROVIDERS for row in PROVIDERS.values() for key in row.rest)
    assert all(row.install for row in PROVIDERS.values())


def test_the_command_line_offers_every_provider() -> None:
    assert tuple(PROVIDERS) == options.PROVIDERS


def test_on_cuda_the_weights_of_an_int8_file_become_floats_as_the_session_opens(path: Path) -> None:
    disabled = "session.disable_quant_qdq"
    assert open_session(path, "cuda", 1, Pretender).setting(disabled) == "1"
    assert open_session(path, "cpu", 1, Pretender).setting(disabled) is None


def test_an_unknown_provider_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="'tpu' is not known; allowed are cpu, cuda"):
        open_session(tmp_path / "m.onnx", "tpu", threads=1)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff")
    with pytest.raises(MeasurementError, match=r"cannot run .*broken\.onnx"):
        open_session(tmp_path / "broken.onnx", "cpu", threads=1)


def eye(batch: int = 2) -> dict[str, NDArray[np.float32]]:
    return {"x": np.eye(batch, FEATURES, dtype=np.float32)}


def test_on_the_cpu_a_bound_call_is_a_plain_run(path: Path) -> None:
    (answer,) = bind(open_session(path, "cpu", 1), "cpu", eye())()  # type: ignore[misc]
    assert np.array_equal(answer, np.eye(2, FEATURES))


def test_on_a_device_inputs_are_copied_once_and_outputs_stay_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The device is the CPU here, through the same binding of onnxruntime that a GPU's memory goes through.
    row = ExecutionProvider("CPUExecutionProvider", "", device="cpu")
    monkeypatch.setattr(sessions, "PROVIDERS", {**PROVIDERS, "device": row})
    session, steps = open_session(path, "cpu", 1), []

    class Recorded:
        def __init__(self) -> None:
            self.binding = session.io_binding()

        def __getattr__(self, name: str) -> Any:
            def record(*arguments: Any) -> Any:
                steps.append(name)
                return getattr(self.binding, name)(*arguments)

            return record

    class Watched:
        recorded = Recorded()

        def io_binding(self) -> Recorded:
            return self.recorded

        def get_outputs(self) -> Any:
            return session.get_outputs()

        def run_with_iobinding(self, binding: Recorded) -> None:
            steps.append("run")
            session.run_with_iobinding(binding.binding)

    call = bind(Watched(), "device", eye())
    call()
    call()
    bound, called = ["bind_ortvalue_input", "bind_output"], ["run", "synchronize_outputs"]
    assert steps == bound + called + called
    assert np.array_equal(Watched.recorded.binding.copy_outputs_to_cpu()[0], np.eye(2, FEATURES))


@pytest.mark.skipif("CUDAExecutionProvider" in BUILT, reason="this onnxruntime has CUDA")
def test_inputs_that_a_device_does_not_take_are_an_error(path: Path) -> None:
    with pytest.raises(MeasurementError, match="could not be bound on cuda"):
        bind(open_session(path, "cpu", 1), "cuda", eye())


def benched(path: Path, provider: str, factory: Factory) -> Timing:
    """The timing of one file on one provider, measured by the benchmark stage with sessions of ``factory``."""
    train = split("train", range(100))
    given = Data(
        "made", train, train.take(20), split("validation", range(100, 120)), split("test", range(200, 220)),
        INPUTS, "0" * 64, CLASSES,
    )  # fmt: skip
    config = BenchmarkConfig(
        providers=(provider,), threads=(1,), seconds=0.01, min_samples=4, rounds=2, launches=1, sensitivity_seconds=0.0
    )
    variants = (Variant("baseline-fp32", "test", OnnxModel(path, INPUTS, 17)),)
    (measured,), _ = benchmark(variants, config, Context(given, path.parent), launch=lambda: Worker(factory))
    return measured.latency[0]


def test_the_benchmark_refuses_a_session_on_another_provider_than_asked_for(path: Path) -> None:
    timing = benched(path, "cuda", on_the_cpu)
    assert timing.provider == "CUDAExecutionProvider"
    assert "the session runs on CPUExecutionProvider, which is not what was asked for" in timing.status
    assert timing.p50_ms is None
    assert timing.samples == 0


def test_the_benchmark_refuses_a_provider_that_started_and_runs_nothing(path: Path) -> None:
    class Idle:
        """On the list of providers, and not one node of the profile is its own."""

        def __init__(self, model: str, options: onnxruntime.SessionOptions, **asked: Any) -> None:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

    timing = benched(path, "openvino", Idle)
    assert "runs none of this model's nodes (CPUExecutionProvider 1)" in timing.status
    assert timing.p50_ms is None


def test_the_benchmark_proves_the_provider_of_what_it_times(path: Path) -> None:
    timing = benched(path, "cpu", onnxruntime.InferenceSession)
    assert timing.status == "ok"
    assert timing.placement == {
        "nodes": {"CPUExecutionProvider": 1},
        "copies": 0,
        "by_operator": {"CPUExecutionProvider": {"MatMul": 1}},
    }


def test_a_trial_tells_why_a_provider_cannot_be_used(path: Path) -> None:
    assert trial("cpu") is None
    assert "could not be started" in str(trial("cuda", on_the_cpu))


def test_a_provider_that_answers_wrong_is_not_usable() -> None:
    class Wrong(Pretender):
        def run(self, outputs: None, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
            return [feeds["x"]]

    assert trial("coreml", Wrong) == "CoreMLExecutionProvider answers [-1.0, 2.0] to Relu([-1, 2])."


def test_sessions_import_numpy_and_onnxruntime_alone() -> None:
    # They are part of every process that is timed, whose memory is measured. The package is not: it imports the rest.
    code = (
        "import sys, types, compress\n"
        "package = types.ModuleType('compress.measurement')\n"
        "package.__path__ = [compress.__path__[0] + '/measurement']\n"
        "sys.modules['compress.measurement'] = package\n"
        "import compress.measurement.placement\n"
        "print(*sorted({'torch', 'onnx', 'scipy', 'PIL', 'pydantic'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
