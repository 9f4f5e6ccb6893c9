"""What the runner checks after every stage, whatever the stage claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import ExportError, ModelError, SparsityError
from compress.measurement import open_session
from compress.models.counts import weight_zeros
from compress.models.onnx_file import first_line
from compress.sparsity import sparsifiable
from compress.values import Model, OnnxModel, State

Inputs = tuple[torch.Tensor, ...]

BATCHES = (1, 2)
Zeros = dict[str, NDArray[np.bool_]]  # weight's name -> True where it is zero, the weight's shape

# Recurrent layers stack their gates along the axis before the last, torch in another order than ONNX: LSTM
# i f g o -> i o f c, GRU r z n -> z r h.
_GATES = ((0, 3, 1, 2), (1, 0, 2))
_GLANCE = 4096  # elements that most wrong pairs differ in


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
        check_zeros(_zeros_of(after, variant.onnx), weight_zeros(variant.onnx.path), variant.name)


def check_zeros(before: Zeros, after: Zeros, name: str) -> None:
    """Refuse ``after`` where a weight that was zero in ``before`` no longer is: places are compared, not only counts.

    Export, simplification and quantization may rename, transpose and duplicate tensors and reorder the gates of
    recurrent ones. A tensor is found by its name; else it must be one of those with as many elements, in one of these
    layouts. Where it has lost its name and their number changed too (a tied weight written twice, an unused head left
    out), it cannot be compared.

    Args:
        before: Of the torch model, or of the float file.
        after: Of the file made from it, float or int8 (where zero is the zero point).
        name: The variant's.

    Raises:
        SparsityError: names the tensor.
    """
    before = _both_directions(before)
    named = {w for w, zeros in before.items() if w in after and zeros.size == after[w].size}
    kept = {weight for weight in named if _holds(before[weight], after[weight])}
    ours = {weight: zeros for weight, zeros in before.items() if weight not in kept}
    theirs = {weight: zeros for weight, zeros in after.items() if weight not in kept}
    counts = Counter(zeros.size for zeros in theirs.values())
    counts.subtract(zeros.size for zeros in ours.values())
    # Those with the most zeros first: fewest others can take their place.
    for weight, zeros in sorted(ours.items(), key=lambda item: -np.count_nonzero(item[1])):
        if counts[zeros.size] and weight not in named:
            continue
        same = (other for other, found in theirs.items() if found.size == zeros.size and _holds(zeros, found))
        match = next(same, None)
        if match is None:
            raise _lost(name, weight, zeros)
        del theirs[match]


def _lost(name: str, weight: str, zeros: NDArray[np.bool_]) -> SparsityError:
    return SparsityError(
        f"{name}: {weight} has {np.count_nonzero(zeros):,} zeros among {zeros.size:,} weights, and no weight tensor of "
        "the file has zeros in all of their places: zeros were not kept. Leave the weight dense (sparsify.keep), and "
        "please report this model."
    )


def _both_directions(zeros: Zeros) -> Zeros:
    """The two directions of a recurrent layer as one tensor, as ONNX has them: (2, gates * hidden, inputs)."""
    joined = dict(zeros)
    for weight in zeros:
        if f"{weight}_reverse" in zeros:
            joined[weight] = np.stack([zeros[weight], joined.pop(f"{weight}_reverse")])
    return joined


def _holds(zeros: NDArray[np.bool_], found: NDArray[np.bool_]) -> bool:
    """Whether ``found`` is zero wherever ``zeros`` is, in one of the layouts."""
    if not zeros.any():
        return True
    flat = found.ravel()
    for layout in _layouts(zeros):
        ours = layout.ravel()
        if not (ours[:_GLANCE] & ~flat[:_GLANCE]).any() and not (ours & ~flat).any():
            return True
    return False


def _layouts(zeros: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """As it is, with its axes in every other order, and with its gates as ONNX orders them."""
    orders = list(permutations(range(zeros.ndim))) if zeros.ndim <= 4 else [tuple(range(zeros.ndim))]
    yield from (zeros.transpose(order) for order in orders)
    for gates in _GATES:
        if zeros.ndim in (2, 3) and zeros.shape[-2] % len(gates) == 0:  # 3: both directions
            blocks = np.split(zeros, len(gates), axis=-2)
            reordered = np.concatenate([blocks[gate] for gate in gates], axis=-2)
            yield from (reordered, reordered.swapaxes(-1, -2))


def _zeros_of(state: State, made: OnnxModel) -> Zeros:
    """Of the weights that ``made`` was made from: the float file's, or the torch model's where it is that file."""
    if state.onnx is not None and state.onnx.path != made.path:
        return weight_zeros(state.onnx.path)
    if state.model is None:
        return {}
    parameters = sparsifiable(state.model.module)
    return {name: (p.detach() == 0).cpu().numpy() for name, p in parameters.items()}


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
        try:
            output = run(tuple(x[:batch] for x in example))
        except Exception as failure:  # whatever torch or onnxruntime raises
            raise error(
                f"{name}: a batch of {batch} cannot be run: {first_line(failure)}. "
                "Axis 0 of every input must be the batch, of any size."
            ) from failure
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
