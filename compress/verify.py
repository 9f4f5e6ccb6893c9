"""What the runner checks after every stage, whatever the stage claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import ExportError, ModelError, SparsityError
from compress.measurement import open_session
from compress.models.counts import count_weights
from compress.sparsity import sparsifiable
from compress.values import Model, OnnxModel, State

Inputs = tuple[torch.Tensor, ...]

BATCHES = (1, 2)
Weights = dict[str, tuple[int, int]]  # name -> elements, nonzero


def verify(before: State, after: State, original: Model | None, example: Inputs) -> None:
    """Check that what a stage made runs at batch sizes 1 and 2, gives finite outputs of the same shape, and kept zeros.

    Args:
        before: What the stage was given.
        after: What it returned.
        original: The model that the pipeline started from; None where that is an ONNX file.
        example: Two real samples, each input (2, …).

    Raises:
        ModelError, ExportError: it does not run, its output shape changed, or its outputs are not finite.
        SparsityError: weights that were zero are not zero any more.
    """
    shapes: list[tuple[int, ...]] = []
    if original is not None:
        shapes = _check(original, _run_module(original), example, [], "the original model")
    if after.model is not None and after.model is not before.model:
        _check(after.model, _run_module(after.model), example, shapes, "the model after this stage")
    for variant in after.variants[len(before.variants) :]:
        _check(variant.onnx, _run_onnx(variant.onnx), example, shapes, variant.name)
        source = _weights_of(after, variant.onnx)
        check_zeros(source, count_weights(variant.onnx.path), variant.name)


def check_zeros(before: Weights, after: Weights, name: str) -> None:
    """Refuse ``after`` where weights that were zero in ``before`` no longer are.

    Export may rename, transpose, fold and duplicate tensors, so they are compared in classes of equal element count;
    a class whose number of tensors changed (a tied weight written twice, an unused head left out) cannot be compared.
    """
    ours, theirs = _classes(before.values()), _classes(after.values())
    for elements, nonzero in ours.items():
        found = theirs.get(elements, [])
        if len(found) == len(nonzero) and sum(found) > sum(nonzero):
            raise SparsityError(
                f"{name}: weight tensors of {elements} elements have {sum(found)} nonzero weights, {sum(nonzero)} "
                "before: zeros were not kept. Please report this model."
            )


def _classes(weights: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = defaultdict(list)
    for elements, nonzero in weights:
        classes[elements].append(nonzero)
    return classes


def _weights_of(state: State, made: OnnxModel) -> Weights:
    """The weights that ``made`` was made from: the float file's, or the torch model's where it is that file."""
    if state.onnx is not None and state.onnx.path != made.path:
        return count_weights(state.onnx.path)
    if state.model is None:
        return {}
    parameters = sparsifiable(state.model.module)
    return {name: (p.numel(), int(torch.count_nonzero(p))) for name, p in parameters.items()}


def _check(
    like: Model | OnnxModel,
    run: Callable[[Inputs], NDArray[np.float32]],
    example: Inputs,
    shapes: list[tuple[int, ...]],
    name: str,
) -> list[tuple[int, ...]]:
    """Run at every batch size; return the output shapes, which must be ``shapes`` unless that is empty."""
    error = ModelError if isinstance(like, Model) else ExportError
    found = []
    for batch in BATCHES:
        output = run(tuple(x[:batch] for x in example))
        if not np.isfinite(output).all():
            raise error(f"{name}: outputs are not finite at batch size {batch}.")
        found.append(output.shape)
    if shapes and found != shapes:
        raise error(f"{name}: output shapes are {found} at batch sizes {BATCHES}, the original's {shapes}.")
    return found


def _run_module(model: Model) -> Callable[[Inputs], NDArray[np.float32]]:
    def run(inputs: Inputs) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model.module(*inputs).float().numpy()
        return result

    return run


def _run_onnx(onnx: OnnxModel) -> Callable[[Inputs], NDArray[np.float32]]:
    session = open_session(onnx.path, "cpu", threads=1)

    def run(inputs: Inputs) -> NDArray[np.float32]:
        feeds = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
        result: NDArray[np.float32] = session.run(None, feeds)[0]
        return result

    return run
