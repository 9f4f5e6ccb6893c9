"""Quantize trained models with this project and with its peers, on the same calibration inputs, and measure all files.

    python -m benchmarks.train cnn mobilenetv2 resnet18 mobilenetv3 vit lstm
    python -m benchmarks.quantization                                     # all of them
    python -m benchmarks.quantization --models cnn --again compress       # this project's part once more, and measure
    python -m benchmarks.quantization --models cnn --only-measure

Nothing is pruned: the dense float ONNX file that `compress export` writes goes to each quantizer, with the calibration
split as npz. Peers run in environments of their own (benchmarks/peers), one process a file; then one process, of this
project's onnxruntime, scores every file on the test split and times them all together. Files already made are kept in
--work, and made again when the model or the calibration inputs change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workloads
from benchmarks.peers.measured import Row, TestSet, markdown, measure
from benchmarks.peers.quantizers import OURS, Made, made_before, make_peer, peers_of, run
from benchmarks.workloads import LABELS, MODELS, Trained, model_flags, write_split
from compress.data import Data, DataOptions, load_data
from compress.files import write_atomically
from compress.measurement.environment import environment

MAX_DROP = 0.003  # of this project's run; peers are given none
NOT_MET = 3  # the status of `compress quantize` where the float file is what ships


@dataclass(frozen=True)
class Source:
    """What every quantizer of a model is given."""

    model: Path  # float ONNX
    calibration: Path  # npz, each input (N, …) by name
    test: Path  # the same, and the labels
    identity: str  # sha256 of the first two


def data_of(trained: Trained, checkpoint: Path, calibration: int) -> tuple[str, DataOptions]:
    """The data of a model: what `load_data` takes."""
    spec, options = workloads.data_of(trained, checkpoint)
    return spec, replace(options, calibration=calibration)


def data_flags(trained: Trained, checkpoint: Path, calibration: int) -> list[str]:
    """The same as options of the command line."""
    return [*workloads.data_flags(trained, checkpoint), "--set", f"preprocess.calibration={calibration}"]


def prepare(name: str, checkpoint: Path, folder: Path, calibration: int) -> Source:
    """Export a model and write its inputs, where that is not done yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file for file in ("float.onnx", "calibration.npz", "test.npz")]
    checkpoint_sha = hashlib.sha256((checkpoint / "model.pt").read_bytes()).hexdigest()
    done = folder / "prepared.json"
    wanted = json.dumps({"checkpoint": checkpoint_sha, "calibration": calibration})
    if not done.exists() or done.read_text() != wanted:
        trained = MODELS[name]
        flags = [*data_flags(trained, checkpoint, calibration), *model_flags(trained, checkpoint), "--overwrite"]
        command = [sys.executable, "-m", "compress", "export", str(checkpoint.absolute() / "model.pt"), *flags]
        exported = run(
            [*command, "--out", str(paths[0].absolute())], Made("export", "", checkpoint_sha), folder, paths[0].name
        )
        if exported.status != "ok":
            raise SystemExit(f"{name} cannot be exported: {exported.status}. See {folder / 'log.txt'}.")
        write_inputs(load_data(*data_of(trained, checkpoint, calibration)), paths[1], paths[2])
        done.write_text(wanted)
    return Source(paths[0], paths[1], paths[2], identity(paths[0], paths[1]))


def write_inputs(data: Data, calibration: Path, test: Path) -> None:
    """Write the two splits in their order, each input (N, …) in the type that the model takes."""
    write_split(calibration, data.calibration, data.inputs, labels=False)
    write_split(test, data.test, data.inputs)


def identity(model: Path, calibration: Path) -> str:
    """sha256 of a float model and of calibration inputs (not of their file: a zip holds the time it was made)."""
    digest = hashlib.sha256(model.read_bytes())
    with np.load(calibration) as stored:
        for name in sorted(stored.files):
            digest.update(f"{name} {stored[name].dtype} {stored[name].shape}".encode() + stored[name].tobytes())
    return digest.hexdigest()


def read_test(path: Path) -> TestSet:
    with np.load(path) as stored:
        return TestSet({name: stored[name] for name in stored.files if name != LABELS}, stored[LABELS])


def make_ours(name: str, source: Source, checkpoint: Path, folder: Path, calibration: int, file: str) -> Made:
    """`compress quantize` for the least latency within MAX_DROP; ``file`` is what it says is best."""
    out = folder / "quantized"
    settings = f"compress quantize, objective latency, max drop {MAX_DROP}"
    command = [sys.executable, "-m", "compress", "quantize", str(source.model.absolute())]
    command += [*data_flags(MODELS[name], checkpoint, calibration), "--objective", "latency"]
    command += ["--max-drop", str(MAX_DROP), "--out", str(out.absolute()), "--overwrite"]
    made = Made(OURS, settings, source.identity, versions=_versions())
    return run(command, made, folder, f"{out.name}/{file}", fine=(0, NOT_MET))


def _versions() -> dict[str, str]:
    known = environment(threads=1)
    return {package: str(known[package]) for package in ("compress", "onnxruntime", "onnx")}


def make_all(name: str, source: Source, work: Path, options: argparse.Namespace) -> list[Made]:
    """Every quantizer's file of a model, ours first: those that are there from before, else made now."""
    made = []
    for peer in (None, *peers_of(name)):
        label = OURS if peer is None else peer.name
        folder = work / label
        before = made_before(folder, source.identity)
        if options.only_measure and before is None:
            continue
        if before is None or (label in options.again and not options.only_measure):
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{name}: {label}", file=sys.stderr, flush=True)
            if peer is None:
                checkpoint = options.checkpoints / name
                before = make_ours(name, source, checkpoint, folder, options.calibration, options.ours)
            else:
                before = make_peer(peer, source.model, source.calibration, folder, source.identity, options.peers)
        made.append(before)
    return made


def report_of(results: Mapping[str, Sequence[Row]], options: argparse.Namespace, machine: dict[str, Any]) -> None:
    """Write what is known so far."""
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    models = "-".join(options.models)
    target = options.out / f"quantization-{models}-calibration{options.calibration}-seed0-{cpu}-threads1.json"
    command = ["python", "-m", "benchmarks.quantization", "--models", *options.models]  # without this machine's folders
    command += ["--calibration", str(options.calibration), "--seconds", f"{options.seconds:g}"]
    report = {
        "schema": 1,
        "command": shlex.join(command),
        "seed": 0,
        "calibration_samples": options.calibration,
        "max_drop": MAX_DROP,
        "environment": machine,
        "models": {name: [row.to_dict() for row in rows] for name, rows in results.items()},
    }
    write_atomically(target, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    table = "\n".join(markdown(name, rows) for name, rows in results.items())
    table += f"\n{options.calibration} calibration samples. {machine['cpu']} ({', '.join(machine['isa'])}), 1 thread, "
    table += f"batch 1; onnxruntime {machine['onnxruntime']} runs every file.\n"
    write_atomically(target.with_suffix(".md"), table.encode())
    print(target)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--calibration", type=int, default=512, help="samples that all quantizers are given")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="of benchmarks.train")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="the peers' environments")
    parser.add_argument("--work", type=Path, default=Path("runs/quantization"), help="files that are made, and kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--ours", default="model.onnx", help="the file of `compress quantize` that is measured")
    parser.add_argument("--again", nargs="+", default=[], help="quantizers whose files are made again")
    parser.add_argument("--only-measure", action="store_true", help="measure what is there, make nothing")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for each file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    machine = environment(threads=1)
    results: dict[str, list[Row]] = {}
    for name in options.models:
        folder = options.work / f"{name}-{options.calibration}"
        source = prepare(name, options.checkpoints / name, folder, options.calibration)
        made = make_all(name, source, folder, options)
        files = {one.name: folder / one.name / one.file for one in made if one.file is not None}
        results[name] = measure(source.model, made, files, read_test(source.test), options.seconds)
        report_of(results, options, machine)


if __name__ == "__main__":
    main()
