"""Sessions of ONNX Runtime that are what was asked for, or an error: never quietly something else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from compress.errors import MeasurementError

logger = logging.getLogger(__name__)

Provider = Literal["cpu", "cuda"]

PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}

# TF32 has 10 bits of mantissa: a float32 model would be timed in an arithmetic that its accuracy was not measured in.
_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"use_tf32": "0"},
}

_ERRORS_ONLY = 3  # onnxruntime's log severity


def open_session(model: Path | bytes, provider: str, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file on one execution provider.

    Args:
        model: The file, or its content.
        provider: A key of ``PROVIDERS``.
        threads: Of one operator (intra-op), at least 1; operators run one after the other.

    Raises:
        MeasurementError: the provider is not there, or cannot run the whole model.
    """
    name = PROVIDERS.get(provider)
    if name is None:
        raise MeasurementError(f"provider {provider!r} is not known; allowed are {', '.join(PROVIDERS)}.")
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise MeasurementError(
            f"not available: this onnxruntime has only {', '.join(available)}; "
            f"install the extra compress-pipeline[{provider}]"
        )
    options = _session_options(threads)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[(name, _OPTIONS[provider])])
    except Exception as error:  # onnxruntime's errors have no common base of their own
        told = "the model" if isinstance(model, bytes) else str(model)
        raise MeasurementError(f"{name} cannot run {told}: {_first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise MeasurementError(f"{name} could not be started, its libraries do not load; see `compress doctor`")
    return session


def runs(provider: str) -> bool:
    """Whether a tiny model runs on ``provider`` (a key of ``PROVIDERS``) and gives the right answer."""
    try:
        (result,) = open_session(_tiny_model(), provider, threads=1).run(None, {"x": np.array([-1.0, 2.0], np.float32)})
    except Exception as error:  # whatever it is, the provider cannot be used
        logger.debug("%s: %s", provider, error)
        return False
    return bool(np.array_equal(np.asarray(result), [0.0, 2.0]))


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # explicit: the default counts the cores of the machine, not of the cgroup
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return options


def _tiny_model() -> bytes:
    vector: list[Any] = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "tiny", vector[:1], vector[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
