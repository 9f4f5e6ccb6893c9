"""The options of the quantize stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.errors import RecipeError
from compress.quantization.candidates import Choice, Types
from compress.quantization.isa import TARGETS
from compress.quantization.observers import METHODS, Method

_BITS = 8


@dataclass(frozen=True)
class QuantizeConfig:
    """Which quantized files are made. "auto" makes those that are worth measuring; which one ships is measured.

    The methods: "static" computes in int8 with ranges from calibration data (convolutional nets), "dynamic" with
    ranges taken at run time (Linear and LSTM nets), "weights" stores int8 and computes in float (all nets).
    """

    method: Literal["auto", "static", "dynamic", "weights"] = "auto"
    types: Literal["auto"] | Types = "auto"  # of static activations and weights; auto: the fast ones of the target
    per_channel: Choice = "auto"  # a scale for each output channel, not one a tensor: more exact, more bytes
    reduce_range: Choice = "auto"  # weights of 7 bits: exact on CPUs without VNNI too, and fewer zipped bytes
    target_isa: str = "host"  # the processor that the file is for: host, or a name of `compress.quantization.isa`
    calibration: Literal["auto"] | Method = "auto"  # how ranges are taken; auto: the best in dB on calibration samples
    calibration_samples: int = 0  # of the calibration split, 1 or more; 0: all
    passes: Literal[1, 2] = 1  # over the calibration data; 2: histograms of exact width
    batch_size: int = 32  # samples in a calibration batch, 1 or more
    equalize: Choice = "auto"  # even out the channels of neighbouring layers; auto: where it gains
    bias_correction: Choice = "auto"  # take the mean error of a channel out of its bias; auto: where it gains
    rounding: Literal["auto", "nearest", "learned"] = "auto"  # auto: learned where the budget is not kept otherwise
    rounding_steps: int = 400  # of learning, for each layer; 1 or more
    fast: Choice = "auto"  # small layers that int8 makes slower stay in float; auto: with method auto, but not for size
    fallback: Choice = "auto"  # layers return to float, worst first, while the drop is over the budget; yes is auto
    float16: Choice = "auto"  # a float16 file for GPUs; auto: where onnxruntime has a CUDA provider
    compact: Choice = "auto"  # shared and 4-bit weights, rounding for the zip; auto: with --objective size
    shared_values: tuple[int, ...] = (16, 32, 64)  # of one weight tensor; the fewest that keep the budget; 2 to 256
    shared_steps: int = 300  # of the optimizer, to fine-tune shared values; 0: as k-means found them
    exclude: tuple[str, ...] = ()  # names of nodes of the float graph that stay float32
    short_names: bool = True  # inner values get short names, for a smaller zip

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "calibration_samples": 0, "rounding_steps": 1, "shared_steps": 0}
        problems = [
            f"quantize.{name}={getattr(self, name)}: allowed are whole numbers from {low}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if not self.shared_values or not all(2 <= values <= 2**_BITS for values in self.shared_values):
            problems.append(f"quantize.shared_values={self.shared_values}: allowed are whole numbers from 2 to 256")
        if self.target_isa not in TARGETS:
            problems.append(f"quantize.target_isa={self.target_isa!r}: known are {', '.join(TARGETS)}")
        if problems:
            raise RecipeError("; ".join(problems) + ".")

    def methods(self) -> tuple[Method, ...]:
        """The ways to take ranges that are tried."""
        return METHODS if self.calibration == "auto" else (self.calibration,)
