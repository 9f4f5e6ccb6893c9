"""Float16 files, for GPUs: onnxruntime's CUDA provider has no int8 kernels for QDQ graphs, and fast float16 ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from compress.errors import QuantizationError
from compress.models.onnx_file import first_line
from compress.quantization.graph import copy_of
from compress.quiet import quiet

_LARGEST = float(np.finfo(np.float16).max)


def has_cuda() -> bool:
    """Whether this onnxruntime brings the CUDA provider."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def to_float16(proto: onnx.ModelProto, exclude: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph with float16 weights and computation; inputs and outputs keep their types.

    Args:
        proto: A float graph whose nodes have names.
        exclude: Names of nodes that stay float32.

    Raises:
        QuantizationError: a weight is too large for float16, or onnxruntime's converter refuses the graph.
    """
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > _LARGEST:
                raise QuantizationError(
                    f"float16: {tensor.name} reaches {largest:.3g}, float16 ends at {_LARGEST:.0f}. Ship float32."
                )
    # Here and not above: the package brings its own fusions, which take a second to import.
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with quiet():
            converted: onnx.ModelProto = convert_float_to_float16(
                copy_of(proto), keep_io_types=True, node_block_list=list(exclude)
            )
    except Exception as error:  # the converter raises ValueError and what onnx raises
        raise QuantizationError(f"float16: onnxruntime cannot convert the graph: {first_line(error)}.") from error
    return converted
