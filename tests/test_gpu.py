"""What only a CUDA device can show: `make test-gpu`. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch

from compress.measurement import open_session
from compress.pipeline import run
from compress.recipe import Recipe

Quick = Callable[..., Recipe]

needs_torch_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
needs_cuda_provider = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDAExecutionProvider: install the extra compress-pipeline[cuda]",
)


@pytest.mark.gpu
@needs_torch_cuda
def test_fine_tuning_on_the_gpu_gives_a_sparse_model_within_the_budget(quick: Quick, tmp_path: Path) -> None:
    report = run(quick(device="cuda"))
    sparse = next(m for m in report.measurements if m.variant.name == "pruned-sparse-fp32")
    assert sparse.sparsity > 0.55
    assert report.verdict.passed


@pytest.mark.gpu
@needs_cuda_provider
def test_variants_are_timed_on_the_cuda_provider_itself(quick: Quick, tmp_path: Path) -> None:
    run(quick(skip=("sparsify", "quantize"), providers=("cpu", "cuda")))
    variants = json.loads((tmp_path / "run" / "report.json").read_text())["variants"]
    rows = {timing["provider"]: timing for timing in variants[0]["latency"]}
    assert rows["CUDAExecutionProvider"]["status"] == "ok"
    assert rows["CUDAExecutionProvider"]["p50_ms"] > 0
    session = open_session(tmp_path / "run" / variants[0]["file"], "cuda", threads=1)
    assert session.get_providers()[0] == "CUDAExecutionProvider"


@pytest.mark.gpu
@needs_cuda_provider
def test_a_float16_file_runs_on_the_cuda_provider_close_to_float(quick: Quick, tmp_path: Path) -> None:
    run(quick(skip=("prune", "sparsify"), providers=("cpu", "cuda")))
    variants = json.loads((tmp_path / "run" / "report.json").read_text())["variants"]
    half = next(variant for variant in variants if variant["name"] == "baseline-float16")
    assert half["fidelity"] > 0.99
    assert {t["provider"]: t["status"] for t in half["latency"]}["CUDAExecutionProvider"] == "ok"
