"""The quantizers that are compared, and how each is made to write one ONNX file, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.peers.apart import run_apart
from benchmarks.peers.calibration import VERSIONS
from benchmarks.peers.environments import interpreter
from compress.files import write_atomically

OURS = "compress"  # the name of this project's row
FILE = "int8.onnx"  # what a peer writes
TIMEOUT_S = 1800

_RECORD = "made.json"
# Models for which documentations name settings of their own, and one that Neural Compressor breaks as it is.
_ATTENTION, _RECURRENT, _POOLED = ("vit",), ("lstm", "vit"), ("cnn",)


@dataclass(frozen=True)
class Quantizer:
    """One way to quantize: a script of this folder, and its flags."""

    name: str
    settings: str  # in words
    script: str  # benchmarks.peers.<script>
    flags: tuple[str, ...] = ()
    environment: str | None = None  # of requirements-<environment>.txt; None: this project's
    models: tuple[str, ...] = ()  # it is tried on these alone; empty: on all


_ORT, _NNCF = "quantize_onnxruntime", "quantize_nncf"
_INC, _ONC = "quantize_neural_compressor", "quantize_onnx_neural_compressor"
_INC_ENV, _ONC_ENV = "neural-compressor", "onnx-neural-compressor"

PEERS = (
    Quantizer("ort-static", "quantize_static, defaults: QDQ S8S8, per tensor", _ORT),
    Quantizer("ort-static-u8s8", "quantize_static, as recommended for x86: QDQ U8S8, per tensor", _ORT, ("--u8s8",)),
    Quantizer("ort-static-u8s8-channel", "the same, per channel", _ORT, ("--u8s8", "--per-channel")),
    Quantizer("ort-dynamic", "quantize_dynamic, defaults", _ORT, ("--dynamic",), models=_RECURRENT),
    Quantizer("nncf", "nncf.quantize, defaults", _NNCF, (), "nncf"),
    Quantizer("nncf-bias", "fast_bias_correction=False", _NNCF, ("--bias-correction",), "nncf"),
    Quantizer("nncf-transformer", "model_type=TRANSFORMER", _NNCF, ("--transformer",), "nncf", _ATTENTION),
    Quantizer("inc", "Neural Compressor static, defaults: QOperator", _INC, (), _INC_ENV),
    Quantizer("inc-qdq", "Neural Compressor static, QDQ", _INC, ("--qdq",), _INC_ENV),
    Quantizer("inc-relu-first", "the same, ReLU before pooling", _INC, ("--qdq", "--relu-first"), _INC_ENV, _POOLED),
    Quantizer("inc-dynamic", "Neural Compressor dynamic, defaults", _INC, ("--dynamic",), _INC_ENV, _RECURRENT),
    Quantizer("onc", "ONNX Neural Compressor static, defaults: QOperator", _ONC, (), _ONC_ENV),
    Quantizer("onc-relu-first", "the same, ReLU before pooling", _ONC, ("--relu-first",), _ONC_ENV, _POOLED),
    Quantizer("onc-dynamic", "ONNX Neural Compressor dynamic, defaults", _ONC, ("--dynamic",), _ONC_ENV, _RECURRENT),
)


@dataclass(frozen=True)
class Made:
    """What one quantizer made of one model."""

    name: str
    settings: str
    source: str  # sha256 of the float model and of the calibration inputs
    status: str = "ok"  # else what went wrong, in one line
    seconds: float | None = None  # of the whole process: imports, calibration, and whatever it measures
    cpu_seconds: float | None = None  # of all its cores: what a busy machine changes least
    versions: dict[str, str] = field(default_factory=dict)
    file: str | None = None  # in the quantizer's folder


def peers_of(model: str) -> tuple[Quantizer, ...]:
    return tuple(peer for peer in PEERS if not peer.models or model in peer.models)


def made_before(folder: Path, source: str) -> Made | None:
    """What is in ``folder`` already, where it was made from the same float model and calibration inputs."""
    record = folder / _RECORD
    if not record.exists():
        return None
    made = Made(**json.loads(record.read_text()))
    return made if made.source == source else None


def make_peer(peer: Quantizer, model: Path, calibration: Path, folder: Path, source: str, environments: Path) -> Made:
    """Have a peer write ``folder``/int8.onnx; what goes wrong, its environment included, becomes the status.

    Args:
        model: Float ONNX.
        calibration: npz, each input (N, …) by name.
        source: Identifies the two.
        environments: The folder that the peers' environments are in, or are made in.
    """
    made = Made(peer.name, peer.settings, source)
    try:
        python = Path(sys.executable) if peer.environment is None else interpreter(peer.environment, environments)
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [str(error)]
        return keep(Made(peer.name, peer.settings, source, f"no environment: {lines[-1]}"[:200]), folder)
    paths = [path.absolute() for path in (model, calibration, folder / FILE)]
    return run([str(python), "-m", f"benchmarks.peers.{peer.script}", *map(str, paths), *peer.flags], made, folder)


def run(command: list[str], made: Made, folder: Path, file: str = FILE, fine: tuple[int, ...] = (0,)) -> Made:
    """Run what writes ``folder``/``file`` and ends with a status of ``fine``; keep a record of it there."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = run_apart(command, folder, TIMEOUT_S, fine)
    if ran.status == "ok" and not (folder / file).exists():
        found = ", ".join(sorted(path.name for path in folder.glob("*.onnx"))) or "no ONNX file"
        ran = replace(ran, status=f"wrote no {file}, but {found}")
    told = folder / VERSIONS
    made = replace(
        made,
        status=ran.status,
        seconds=ran.seconds,
        cpu_seconds=ran.cpu_seconds,
        versions=json.loads(told.read_text()) if told.exists() else made.versions,
        file=file if ran.status == "ok" else None,
    )
    return keep(made, folder)


def keep(made: Made, folder: Path) -> Made:
    write_atomically(folder / _RECORD, (json.dumps(asdict(made), indent=1) + "\n").encode())
    return made
