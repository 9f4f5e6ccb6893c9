"""How much faster one model is than another, as float ONNX files on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.measurement import interleave, open_session
from compress.onnx_export import ExportConfig, export
from compress.values import Context, Model

SECONDS = 2.0  # of timing for each of the two
ROUNDS = 20


def measured_speedup(before: Model, after: Model, config: ExportConfig, context: Context, threads: int = 1) -> float:
    """Time of ``before`` over that of ``after`` at batch size 1, of undisturbed calls, timed in turns on the CPU.

    Both in this process, once: a search asks for this many times over. What ships is timed by the benchmark stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = []
        for number, model in enumerate((before, after)):
            file = export(model, config, replace(context, directory=Path(folder)), f"{number}.onnx")[0]
            session = open_session(file.path, "cpu", threads)
            feeds = {s.name: np.ones((1, *s.shape), s.dtype) for s in file.inputs}
            calls.append(lambda session=session, feeds=feeds: session.run(None, feeds))
        taken = interleave(calls, seconds=SECONDS, min_samples=ROUNDS, rounds=ROUNDS, seed=context.seed)
    return taken[0].undisturbed_ms / taken[1].undisturbed_ms
