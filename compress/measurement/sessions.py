"""Sessions of ONNX Runtime that are what was asked for, or an error: never quietly something else.

``PROVIDERS`` is the whole of what is known about execution providers: one more is one more row. The processes that are
timed import this module, so that it imports numpy and onnxruntime alone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from compress.errors import MeasurementError, first_line

logger = logging.getLogger(__name__)

Provider = str  # a key of PROVIDERS
Factory = Callable[..., Any]  # makes sessions: called as onnxruntime.InferenceSession is
Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ExecutionProvider:
    """One way to run a model.

    In option values ``{threads}`` stands for the number of threads that was asked for.
    """

    name: str  # ONNX Runtime's
    install: str  # how to get an ONNX Runtime that has it
    needs: str = ""  # what it wants besides
    options: Mapping[str, str] = field(default_factory=dict)  # the provider's own
    session: Mapping[str, str] = field(default_factory=dict)  # entries of the session's configuration
    rest: tuple[Provider, ...] = ()  # who runs operators that it does not take; without "cpu": the CPU only shape work
    device: str | None = None  # where inputs and outputs are bound, in ONNX Runtime's words; None: plain memory
    own_threads: bool = False  # it has a thread pool of its own, beside which ONNX Runtime's would only contend
    precision: str | None = None  # what float32 operators compute in, where it need not be float32
    suffix: str = ""  # tells rows of one provider with different options apart

    @property
    def label(self) -> str:
        """What reports call it: ONNX Runtime's name, and what is special about it."""
        return self.name + self.suffix


_GPU_BUILD = "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
_GPU_NEEDS = "an NVIDIA driver (see nvidia-smi), and CUDA and cuDNN of the versions of this onnxruntime"
# TF32 has 10 bits of mantissa: a float32 model would be timed in an arithmetic that its accuracy was not measured in.
# EXHAUSTIVE: cuDNN tries every convolution at the first call of a shape, and the shapes that are timed do not change.
_CUDA = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
# CUDA has no int8 kernels for QDQ graphs, and none that dequantizes int32 biases: so weights and biases become floats
# once, as the session opens. What else is quantized is rounded to int8 and back, between float operators.
_CUDA_SESSION = {"session.disable_quant_qdq": "1"}

PROVIDERS: Mapping[Provider, ExecutionProvider] = {
    "cpu": ExecutionProvider("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": ExecutionProvider(
        "CUDAExecutionProvider",
        _GPU_BUILD,
        _GPU_NEEDS,
        options=_CUDA,
        session=_CUDA_SESSION,
        device="cuda",
        precision="TF32 off",
    ),
    "cuda-tf32": ExecutionProvider(
        "CUDAExecutionProvider",
        _GPU_BUILD,
        _GPU_NEEDS,
        options={**_CUDA, "use_tf32": "1"},
        session=_CUDA_SESSION,
        device="cuda",
        precision="TF32 on",
        suffix=" (TF32)",
    ),
    "tensorrt": ExecutionProvider(
        "TensorrtExecutionProvider",
        _GPU_BUILD,
        "what cuda needs, and TensorRT's libraries: pip install tensorrt",
        rest=("cuda",),
        device="cuda",
        precision="TF32 on",  # TensorRT's default, and ONNX Runtime has no option for it
    ),
    "openvino": ExecutionProvider(
        "OpenVINOExecutionProvider",
        "pip uninstall onnxruntime && pip install onnxruntime-openvino",
        "an x86-64 CPU",
        # Without the hint OpenVINO may choose bfloat16. Pinned, the processes of all variants would share one core and
        # wait there for each other, and for whatever else the scheduler put on it.
        options={
            "device_type": "CPU",
            "load_config": '{"CPU": {"INFERENCE_NUM_THREADS": {threads}, "INFERENCE_PRECISION_HINT": "f32", '
            '"ENABLE_CPU_PINNING": false}}',
        },
        rest=("cpu",),
        own_threads=True,
        precision="bfloat16 off",
    ),
    "coreml": ExecutionProvider(
        "CoreMLExecutionProvider",
        "pip install onnxruntime, on macOS",
        "macOS 12 or later",
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
        rest=("cpu",),
        precision="float16 where Core ML chooses the GPU or the Neural Engine",
    ),
    "xnnpack": ExecutionProvider(
        "XnnpackExecutionProvider",
        "build onnxruntime with --use_xnnpack, no wheel has it",
        "an ARM or x86-64 CPU",
        options={"intra_op_num_threads": "{threads}"},
        session={"session.intra_op.allow_spinning": "0"},
        rest=("cpu",),
        own_threads=True,
    ),
}

# Threads wait for the next call by spinning, by default for 50 ms and more: where sessions take turns they would take a
# core from each other. With 5 ms, calls in a row are as quick as by default (measured), and those that wait are quiet.
_BRIEF_SPIN = {"session.intra_op.spin_duration_us": "5000"}
_ERRORS_ONLY = 3  # onnxruntime's log severity


def open_session(
    model: Path | bytes,
    provider: Provider,
    threads: int,
    factory: Factory = onnxruntime.InferenceSession,
    *,
    profile: Path | None = None,
) -> Any:
    """Open an ONNX file on one execution provider.

    What is not there or does not start is refused here. Which operators the provider then takes only a profile tells:
    see `compress.measurement.placement`.

    Args:
        model: The file, or its content.
        provider: A key of ``PROVIDERS``.
        threads: Of one operator (intra-op), at least 1; operators run one after the other.
        factory: Makes the session; ONNX Runtime's own but in tests.
        profile: Where the profile's file begins; None: no profile is taken, which would slow every call.

    Returns:
        The session, with ``provider`` first among those that it runs on.

    Raises:
        MeasurementError: the provider is not there, or did not start, or cannot run the model.
    """
    row = provider_of(provider)
    if factory is onnxruntime.InferenceSession:
        _check_build(row)
    options = _session_options(row, threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source = model if isinstance(model, bytes) else str(model)
    try:
        with warnings.catch_warnings():
            # What it warns of, a provider that is not there, is an error below.
            warnings.simplefilter("ignore", UserWarning)
            # onnxruntime's Python retries on the CPU what fails, in a run too, unless it is told not to.
            session = factory(source, options, providers=_chain(row, threads), enable_fallback=False)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        told = "the model" if isinstance(model, bytes) else str(model)
        raise MeasurementError(f"{row.name} cannot run {told}: {first_line(error)}") from error
    found = list(session.get_providers())
    if found[:1] != [row.name]:
        raise MeasurementError(
            f"{row.name} could not be started: the session runs on {', '.join(found) or 'nothing'}, which is not what "
            "was asked for. Its libraries may not load; see `compress doctor`."
        )
    return session


def bind(session: Any, provider: Provider, feeds: Feeds) -> Callable[[], object]:
    """One inference on ``feeds``, as it is to be timed.

    Where the provider has a device, the inputs are copied there now, once, and the outputs stay there: what is timed is
    the model and not the bus. Each call returns when the device is done.

    Args:
        session: Of `open_session`.
        provider: The one it was opened on.
        feeds: Arrays by the names of the inputs.

    Raises:
        MeasurementError: the device does not take the inputs.
    """
    device = provider_of(provider).device
    if device is None:
        return partial(session.run, None, dict(feeds))
    try:
        return _bound(session, device, feeds)
    except Exception as error:  # as above
        raise MeasurementError(f"the inputs could not be bound on {device}: {first_line(error)}") from error


def _bound(session: Any, device: str, feeds: Feeds) -> Callable[[], object]:
    binding = session.io_binding()
    for name, array in feeds.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def trial(provider: Provider, factory: Factory = onnxruntime.InferenceSession) -> str | None:
    """Why ``provider`` (a key of ``PROVIDERS``) cannot be used here, or None: a tiny model ran and answered right."""
    try:
        session = open_session(_tiny_model(), provider, 1, factory)
        (result,) = session.run(None, {"x": np.array([-1.0, 2.0], np.float32)})
    except Exception as error:  # whatever it is, the provider cannot be used
        return first_line(error)
    right = np.array_equal(np.asarray(result), [0.0, 2.0])
    return None if right else f"{PROVIDERS[provider].name} answers {np.asarray(result).tolist()} to Relu([-1, 2])."


def provider_of(provider: Provider) -> ExecutionProvider:
    """The row of a key. Raises MeasurementError where there is none."""
    if provider not in PROVIDERS:
        raise MeasurementError(f"provider {provider!r} is not known; allowed are {', '.join(PROVIDERS)}.")
    return PROVIDERS[provider]


def _check_build(row: ExecutionProvider) -> None:
    """Refuse early what this onnxruntime lacks, and load what it does not find by itself."""
    available = onnxruntime.get_available_providers()
    if row.name not in available:
        raise MeasurementError(
            f"{row.name} is not available: this onnxruntime has only {', '.join(available)}. To get it: {row.install}"
        )
    if row.device == "cuda":
        _load_cuda()


@functools.cache
def _load_cuda() -> None:
    """Load the CUDA and cuDNN that pip installed, which no search path names: ONNX Runtime leaves it to torch's import.

    It tells on standard output what it cannot load; what then fails is told by the session.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            preload()
        logger.debug("CUDA libraries: %s", told.getvalue().strip() or "loaded")


def _chain(row: ExecutionProvider, threads: int) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session in their order, with their options."""
    return [
        (one.name, {key: value.replace("{threads}", str(threads)) for key, value in one.options.items()})
        for one in (row, *(PROVIDERS[key] for key in row.rest))
    ]


def _session_options(row: ExecutionProvider, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Explicit: the default counts the cores of the machine, not of the cgroup.
    options.intra_op_num_threads = 1 if row.own_threads else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    for key, value in {**_BRIEF_SPIN, **row.session}.items():
        options.add_session_config_entry(key, value)
    return options


def _tiny_model() -> bytes:
    # Here and not above: processes that are timed import this module, and their memory is measured.
    import onnx

    vector: list[Any] = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "tiny", vector[:1], vector[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
