"""What the steps of one call of the quantize stage share, and the files that they have made so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import onnx

from compress.errors import QuantizationError
from compress.files import write_atomically
from compress.models.onnx_file import opset
from compress.quantization.calibration import Feeds
from compress.quantization.cpu import saturating_layers
from compress.quantization.graph import Layer, layers
from compress.quantization.isa import portability, target
from compress.quantization.judge import Judge
from compress.quantization.kernels import int8_share
from compress.quantization.options import QuantizeConfig
from compress.quantization.source import Source, finish, without_failing
from compress.values import Context, OnnxModel, Variant

logger = logging.getLogger(__name__)

_PROBE = 256  # calibration samples that ways to quantize are compared on

Make = Callable[[tuple[str, ...]], onnx.ModelProto]  # layers that stay float -> the graph


class Workbench:
    """The source, what judges it, and what came of it.

    Args:
        source: The float file.
        config: Of the stage.
        context: Where there is no data there is no judge, and nothing that needs one.
    """

    def __init__(self, source: Source, config: QuantizeConfig, context: Context) -> None:
        self.source = source
        self.config = config
        self.context = context
        self.judge: Judge | None = None
        if context.data is not None:
            self.probe = Feeds(context.data.calibration.take(_PROBE), source.model.inputs, config.batch_size)
            self.judge = Judge(source.model, list(self.probe), context)
        self.variants: list[Variant] = []
        self.files: dict[str, dict[str, Any]] = {}  # a variant's name -> its figures
        self.figures: dict[str, Any] = {}  # of the stage
        self.notes: list[str] = []
        self.bases: dict[str, onnx.ModelProto] = {}  # the plainest graph of each form, by its variant's name
        self.in_float: dict[str, tuple[str, ...]] = {}  # a candidate's name -> nodes excluded, or that failed

    def build(self, name: str, make: Make) -> onnx.ModelProto:
        """A graph with every layer quantized but those that are excluded, or that fail even alone: told in a note."""

        def checked(float_layers: tuple[str, ...]) -> onnx.ModelProto:
            made = make(float_layers)
            finish(self.source, made, name, self.config)
            return made

        made, failed = without_failing(self.source, checked, self.config.exclude)
        self.in_float[name] = (*self.config.exclude, *failed)
        for layer, reason in failed.items():
            self.note(f"{name}: layer {layer} stays float: {reason}")
        return made

    def add(self, name: str, proto: onnx.ModelProto, **figures: Any) -> None:
        """Write a graph as a variant, with what is known of it on this and on other processors."""
        data = finish(self.source, proto, name, self.config)
        path = self.context.directory / f"{name}.onnx"
        write_atomically(path, data)
        model = self.source.model
        self.variants.append(Variant(name, "quantize", OnnxModel(path, model.inputs, opset(proto), model.task)))
        self.files[name] = {
            "bytes": len(data),
            "saturating_layers": len(saturating_layers(proto)),
            "int8_mac_share": int8_share(data, self.source.feeds[0]).macs,
            "portability": list(portability(proto, target())),
            **({} if self.judge is None else {"sqnr_db": self.judge.sqnr_db(proto)}),
            **figures,
        }

    def tell(self, kind: str, name: str, figures: Mapping[str, Any]) -> None:
        """Keep what one kind of step found for one candidate."""
        self.figures.setdefault(kind, {})[name] = figures

    def attempt(self, names: Sequence[str], step: Callable[[], object], required: bool = False) -> None:
        """Run one step; what it cannot make is a note, and an error only where it is required."""
        try:
            step()
        except QuantizationError as error:
            if required:
                raise
            self.note(str(error) if str(error).startswith(tuple(names)) else f"{', '.join(names)}: {error}")

    def note(self, text: str) -> None:
        logger.warning("%s", text)
        self.notes.append(text)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return layers(self.source.proto)

    def all_figures(self) -> Mapping[str, Any]:
        """What the record tells, as plain values."""
        figures: dict[str, Any] = _finite({"files": self.files, **self.figures})
        return figures


def _finite(value: Any) -> Any:
    """Without infinities, which JSON does not know: no noise at all is None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
