"""Masks: which weights stay, by the score of each weight."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch, fnmatchcase
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compress.errors import SparsityError
from compress.sparsity.lamp import smallest_by_layer
from compress.sparsity.selection import Opened, Scores, kth_smallest, not_finite, staying

logger = logging.getLogger(__name__)

Score = Literal["lamp", "magnitude", "taylor", "random"]
Scope = Literal["global", "layer"]
Masks = Mapping[str, Tensor]  # parameter name -> bool, the parameter's shape, True where the weight stays


def sparsifiable(module: nn.Module, keep: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """The parameters that sparsification may touch: floating point, two or more axes, no name pattern of ``keep``.

    Biases and normalisation scales have one axis: too few bytes to be worth what a missing one does to its channel.
    A tied parameter is listed once, under its first name; ``keep`` may use any of them.

    Raises:
        SparsityError: a pattern of ``keep`` that names no parameter.
    """
    names = dict(module.named_parameters(remove_duplicate=False))
    kept: set[int] = set()
    for pattern in keep:
        found = {id(parameter) for name, parameter in names.items() if fnmatch(name, pattern)}
        if not found:
            raise SparsityError(f"keep={pattern!r} names no parameter{_nearest(pattern, list(names))}")
        kept |= found
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and parameter.is_floating_point() and id(parameter) not in kept
    }


@torch.no_grad()
def make_masks(
    parameters: Mapping[str, Tensor],
    sparsity: float | Mapping[str, float],
    score: Score = "lamp",
    scope: Scope = "global",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Masks without the worst-scored weights: exactly ``round(sparsity * weights)`` of those ranked together go.

    Among equal scores the earlier weights go. A weight that is zero already has the lowest score, whatever the score
    is, so that a higher sparsity only ever removes more. Memory beyond the parameters and the masks does not grow
    with the model, but for LAMP, which holds the weights' magnitudes.

    Args:
        sparsity: Share 0 <= s < 1 of all weights, or parameter name -> share of that parameter; others stay whole.
        score: "lamp" (Lee et al. 2021), "magnitude" (Han et al. 2015), "taylor" (|w ∂L/∂w|: Molchanov et al. 2017,
            Lee et al. 2019) or "random" (of the seed, the parameter's name and the position alone).
        scope: "global" ranks all weights together; "layer" takes the same share of each parameter.
        gradients: Parameter name -> ∂L/∂w, the parameter's shape; for "taylor".

    Raises:
        SparsityError: nothing to rank, a share outside 0 <= s < 1, an unknown name, missing gradients, or a weight
            that is not finite.
    """
    if not parameters:
        raise SparsityError("there is nothing to sparsify: no weight with two or more axes may become zero.")
    if scope not in get_args(Scope):
        raise SparsityError(f"scope={scope!r} is not one of {', '.join(get_args(Scope))}.")
    # LAMP orders the weights of one layer as magnitude does.
    tensors = _scores(parameters, "magnitude" if score == "lamp" else score, gradients, seed)
    if isinstance(sparsity, Mapping) or scope == "layer":
        shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(parameters, sparsity)
        _check(shares, parameters)
        counts = [round(shares.get(name, 0.0) * p.numel()) for name, p in parameters.items()]
    else:
        _check_share("the weights", sparsity)
        total = round(sparsity * sum(t.count for t in tensors))
        if score != "lamp":
            return _shaped(staying(tensors, kth_smallest(tensors, total)), parameters)
        counts = list(_lamp_counts(parameters, total))
    masks = (next(staying([t], kth_smallest([t], count))) for t, count in zip(tensors, counts, strict=True))
    return _shaped(masks, parameters)


def _shaped(masks: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.reshape(p.shape) for (name, p), mask in zip(parameters.items(), masks, strict=True)}


@torch.no_grad()
def pattern_masks(
    parameters: Mapping[str, Tensor],
    pattern: str = "2:4",
    score: Score = "magnitude",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Masks that keep the best N of every M consecutive weights along the input axis (Mishra et al. 2021, for 2:4).

    The input axis is axis 1: Linear (C_out, C_in), convolution (C_out, C_in / groups, kH, kW). A parameter in which it
    is no multiple of M stays whole: `off_pattern` lists them.

    Raises:
        SparsityError: as `make_masks`, and for a pattern that is not N:M with 0 < N < M.
    """
    n, m = _parsed(pattern)
    whole = off_pattern(parameters, pattern)
    if whole:
        logger.warning("%s: the input axis is no multiple of %d, so these stay whole: %s", pattern, m, ", ".join(whole))
    scores = _scores(parameters, "magnitude" if score == "lamp" else score, gradients, seed)
    return {
        name: torch.ones_like(p, dtype=torch.bool) if name in whole else _best(of_this, p.shape, n, m)
        for (name, p), of_this in zip(parameters.items(), scores, strict=True)
    }


def check_pattern(pattern: str) -> list[str]:
    """What is wrong with ``pattern``, one line at most."""
    match = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", pattern)
    if match and int(match[1]) < int(match[2]):
        return []
    return [f"pattern={pattern!r} must be N:M with 0 < N < M, as in 2:4: N of each M consecutive weights stay"]


def off_pattern(parameters: Mapping[str, Tensor], pattern: str = "2:4") -> tuple[str, ...]:
    """Names of the parameters that N:M does not fit, because their axis 1 is no multiple of M."""
    _, m = _parsed(pattern)
    return tuple(name for name, p in parameters.items() if p.ndim < 2 or p.shape[1] % m)


def resolve_layers(parameters: Mapping[str, Tensor], layers: Mapping[str, float]) -> dict[str, float]:
    """Parameter name -> share of it to remove, from names as people write them.

    Args:
        layers: A parameter ("conv1.weight"), a layer or block that holds some ("conv1", "features.0"), or an fnmatch
            pattern ("features.*") -> share. Where several name one parameter the most exact wins: its own name, then
            the innermost layer, then the last pattern.

    Raises:
        SparsityError: a name that matches nothing, with the nearest that would, or a share outside 0 <= s < 1.
    """
    found: dict[str, float] = {}
    known = list(dict.fromkeys(k for name in parameters for k in (name.rpartition(".")[0], name) if k))
    for key in sorted(layers, key=lambda key: _exactness(key, parameters)):
        names = [n for n in parameters if n == key or n.startswith(key + ".") or fnmatchcase(n, key)]
        if not names:
            raise SparsityError(_unknown(key, known))
        found.update(dict.fromkeys(names, layers[key]))
    _check(found, parameters)
    return {name: found[name] for name in parameters if name in found}


@torch.no_grad()
def apply_masks(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    """Set the weights that do not stay to zero, in place."""
    for name, mask in masks.items():
        weight = parameters[name]
        # Not a product, which leaves -0.0: other bytes than 0.0, and zip sees them.
        torch.where(mask.to(weight.device), weight, weight.new_zeros(()), out=weight)


def zeros_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks that hold what is zero already. A parameter of zeros alone is new, not pruned: it is left out."""
    stays = {name: p.detach() != 0 for name, p in parameters.items()}
    return {name: mask for name, mask in stays.items() if bool(mask.any()) and not bool(mask.all())}


def sparsity_of(parameters: Mapping[str, Tensor]) -> float:
    """Zeros over elements of all ``parameters`` together, 0..1."""
    elements = sum(p.numel() for p in parameters.values())
    return 1 - sum(int(torch.count_nonzero(p)) for p in parameters.values()) / max(1, elements)


def _lamp_counts(parameters: Mapping[str, Tensor], total: int) -> tuple[int, ...]:
    """How many weights of each parameter are among the ``total`` smallest by LAMP."""
    found = smallest_by_layer(list(parameters.values()), total)
    if found is None:
        raise not_finite(next(name for name, p in parameters.items() if not bool(p.detach().isfinite().all())))
    return found


def _magnitude(weight: Tensor) -> Opened:
    flat = weight.detach().reshape(-1)
    return lambda positions: flat[positions].abs()


def _taylor(weight: Tensor, gradient: Tensor) -> Opened:
    flat, slopes = weight.detach().reshape(-1), gradient.detach().reshape(-1)
    dtype = _precision(weight)

    def score(positions: slice) -> Tensor:
        weights = flat[positions].to(dtype)
        scores = (weights * slopes[positions].to(weights)).abs_().clamp_min_(torch.finfo(dtype).tiny)
        return scores.masked_fill_(weights == 0, 0.0)

    return score


def _random(weight: Tensor, key: int) -> Opened:
    """A hash of the position: the same for every chunk, device and order of calls."""
    flat = weight.detach().reshape(-1)
    limit = 0xFFFFFFFF

    def score(positions: slice) -> Tensor:
        weights = flat[positions].to(torch.float32)
        x = torch.arange(*positions.indices(len(flat)), device=flat.device).add_(key).bitwise_and_(limit)
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # lowbias32 (Wellons, "Prospecting for hash…", 2018)
            x.bitwise_xor_(x >> shift).mul_(factor).bitwise_and_(limit)
        x.bitwise_xor_(x >> 15)
        # Zero times the weight: NaN where it is not finite, as every other score tells it.
        scores = (x + 1).to(torch.float32).div_(limit + 1.0).add_(weights * 0).abs_()
        return scores.masked_fill_(weights == 0, 0.0)

    return score


def _scores(
    parameters: Mapping[str, Tensor], score: Score, gradients: Mapping[str, Tensor] | None, seed: int
) -> list[Scores]:
    """What ranks the weights of each parameter; nothing is computed yet."""
    openers: dict[Score, Callable[[str, Tensor], Callable[[], Opened]]] = {
        "magnitude": lambda name, weight: partial(_magnitude, weight),
        "taylor": lambda name, weight: partial(_taylor, weight, _gradient(name, weight, gradients)),
        "random": lambda name, weight: partial(_random, weight, _key(name, seed)),
    }
    if score not in openers:
        raise SparsityError(f"score={score!r} is not one of {', '.join(get_args(Score))}.")
    return [
        Scores(name, p.numel(), openers[score](name, p), _dtype(score, p), p.device) for name, p in parameters.items()
    ]


def _dtype(score: Score, weight: Tensor) -> torch.dtype:
    if score == "random":
        return torch.float32
    return _precision(weight)


def _precision(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _gradient(name: str, weight: Tensor, gradients: Mapping[str, Tensor] | None) -> Tensor:
    found = (gradients or {}).get(name)
    if found is None:
        raise SparsityError(f"score='taylor' needs the gradient of {name}: pass gradients={{name: p.grad}} of a step.")
    if found.shape != weight.shape:
        raise SparsityError(f"the gradient of {name} is {tuple(found.shape)}, the weight {tuple(weight.shape)}.")
    return found


def _key(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4])


def _best(scores: Scores, shape: torch.Size, n: int, m: int) -> Tensor:
    """True at the ``n`` best of each ``m`` along axis 1; among equal ones the later stay."""
    of_each = scores.open()(slice(0, scores.count)).reshape(shape).movedim(1, -1)  # (C_out, kH, kW, C_in)
    groups = of_each.reshape(-1, m)
    if not groups.isfinite().all():
        raise not_finite(scores.name)
    mask = torch.ones_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.argsort(dim=1, stable=True)[:, : m - n], False)
    return mask.reshape(of_each.shape).movedim(-1, 1).contiguous()


def _parsed(pattern: str) -> tuple[int, int]:
    problems = check_pattern(pattern)
    if problems:
        raise SparsityError(problems[0])
    n, m = pattern.split(":")
    return int(n), int(m)


def _exactness(key: str, parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    if key in parameters:
        return 2, 0
    layer = any(name.startswith(key + ".") for name in parameters)
    return (1, len(key)) if layer else (0, 0)


def _check(shares: Mapping[str, float], parameters: Mapping[str, Tensor]) -> None:
    for name, share in shares.items():
        if name not in parameters:
            raise SparsityError(_unknown(name, list(parameters)))
        _check_share(name, share)


def _check_share(of: str, share: float) -> None:
    if not 0 <= share < 1:
        raise SparsityError(f"sparsity={share} of {of} is not within 0 <= sparsity < 1.")


def _unknown(key: str, known: Sequence[str]) -> str:
    return f"there is no weight to sparsify at {key!r}{_nearest(key, known)}"


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f". There are: {', '.join(known[:8])}."
