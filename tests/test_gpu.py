"""What only a CUDA device can show: `make test-gpu`. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from compress.measurement import open_session
from compress.measurement.environment import provider_states
from compress.measurement.placement import placement
from compress.measurement.sessions import bind, trial
from compress.pipeline import run
from compress.recipe import Recipe
from tests.test_measurement import FEATURES, write_linear

Quick = Callable[..., Recipe]

CUDA = "CUDAExecutionProvider"
BUILT = onnxruntime.get_available_providers()


SUMMED = 1024


def write_product(path: Path, weight: NDArray[np.float32]) -> Path:
    """y = x @ weight."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", SUMMED]) for name in "xy")
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([product], "product", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def why_not(provider: str, name: str) -> str:
    """Why a provider cannot be tested here; empty where it can."""
    return (trial(provider) or "") if name in BUILT else f"this onnxruntime has no {name}: pip install onnxruntime-gpu"


NO_CUDA, NO_TENSORRT = why_not("cuda", CUDA), why_not("tensorrt", "TensorrtExecutionProvider")

needs_torch_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
needs_cuda = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
needs_tensorrt = pytest.mark.skipif(bool(NO_TENSORRT), reason=NO_TENSORRT)

pytestmark = pytest.mark.gpu


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def rows(report: dict[str, Any], provider: str = CUDA) -> dict[str, dict[str, Any]]:
    """Variant -> its timing on a provider."""
    return {
        variant["name"]: next(timing for timing in variant["latency"] if timing["provider"] == provider)
        for variant in report["variants"]
    }


@needs_torch_cuda
def test_fine_tuning_on_the_gpu_gives_a_sparse_model_within_the_budget(quick: Quick) -> None:
    torch.cuda.reset_peak_memory_stats()
    report = run(quick(device="cuda"))
    sparse = next(m for m in report.measurements if m.variant.name == "pruned-sparse-fp32")
    assert sparse.sparsity > 0.55
    assert report.verdict.passed
    assert torch.cuda.max_memory_allocated() > 0  # it was not done on the CPU


@needs_torch_cuda
def test_no_memory_of_the_gpu_is_kept_after_fine_tuning(quick: Quick) -> None:
    before = torch.cuda.memory_allocated()
    run(quick(device="cuda", skip=("prune", "quantize")))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**22  # cuBLAS keeps its workspace; the model and its data are gone


@needs_cuda
def test_variants_are_timed_on_cuda_and_the_profile_proves_it(quick: Quick, tmp_path: Path) -> None:
    run(quick(skip=("sparsify", "quantize"), providers=("cpu", "cuda", "cuda-tf32")))
    report = report_of(tmp_path / "run")
    for timing in (*rows(report).values(), *rows(report, f"{CUDA} (TF32)").values()):
        assert timing["status"] == "ok"
        assert timing["p50_ms"] > 0
        assert timing["peak_bytes"] > 0
        assert list(timing["placement"]["nodes"]) == [CUDA]
        assert timing["placement"]["copies"] == 0
    assert {timing["precision"] for timing in rows(report).values()} == {"TF32 off"}
    assert {timing["precision"] for timing in rows(report, f"{CUDA} (TF32)").values()} == {"TF32 on"}
    assert report["environment"]["gpu"]


@needs_cuda
def test_float32_float16_and_int8_are_timed_side_by_side(quick: Quick, tmp_path: Path) -> None:
    run(quick(skip=("prune", "sparsify"), providers=("cpu", "cuda")))
    report = report_of(tmp_path / "run")
    found = rows(report)
    half = next(variant for variant in report["variants"] if variant["name"] == "baseline-float16")
    assert half["fidelity"] > 0.99
    for name in ("baseline-fp32", "baseline-float16", "baseline-int8"):
        assert found[name]["status"] == "ok", found[name]["status"]
        assert list(found[name]["placement"]["nodes"]) == [CUDA]
    # An int8 file is rounded between float operators: its nodes say so.
    operators = found["baseline-int8"]["placement"]["by_operator"][CUDA]
    assert operators["QuantizeLinear"] > 0
    assert operators.get("Conv", 0) + operators.get("FusedConv", 0) > 0


@needs_cuda
def test_a_bound_call_answers_as_the_cpu_does_and_copies_nothing(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(FEATURES, FEATURES)).astype(np.float32)
    path = write_linear(tmp_path / "m.onnx", weight).path
    feeds = {"x": np.random.default_rng(1).normal(size=(8, FEATURES)).astype(np.float32)}
    session = open_session(path, "cuda", 1)
    assert session.get_providers()[0] == CUDA
    bind(session, "cuda", feeds)()
    (answer,) = session.run(None, feeds)
    assert np.allclose(answer, feeds["x"] @ weight, rtol=1e-5, atol=1e-6)  # TF32 would be off by 1e-3
    found = placement(path, "cuda", 1, feeds)
    assert (found.nodes, found.copies) == ({CUDA: 1}, 0)


@needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no TF32 here")
def test_sums_are_exact_without_tf32_and_not_with_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, weight = (generator.normal(size=(SUMMED, SUMMED)).astype(np.float32) for _ in range(2))
    path = write_product(tmp_path / "m.onnx", weight)
    right = x.astype(np.float64) @ weight  # normal with a deviation of 32
    errors = {}
    for key in ("cuda", "cuda-tf32"):
        (answer,) = open_session(path, key, 1).run(None, {"x": x})
        errors[key] = float(np.abs(answer - right).max())
    # float32 rounds at 2^-24 of a term, TF32 at 2^-11: some 1e-5 and some 1e-1 over this many of both.
    assert errors["cuda"] < 1e-3 < errors["cuda-tf32"]


@needs_tensorrt
def test_tensorrt_takes_the_model_as_one_node(tmp_path: Path) -> None:
    found = placement(write_linear(tmp_path / "m.onnx").path, "tensorrt", 1, {"x": np.ones((4, FEATURES), np.float32)})
    assert next(iter(found.nodes)) == "TensorrtExecutionProvider"


@needs_cuda
def test_doctor_says_that_cuda_runs() -> None:
    state = next(state for state in provider_states() if state.key == "cuda")
    assert (state.runs, state.told) == (True, "runs, TF32 off")
