"""A way around a fault of Neural Compressor: it drops a ReLU that follows a pooling, and negative values come through.

Found in 2.6 and in ONNX Neural Compressor 1.0 (`RemovableActivationOperator`): a ReLU is left out wherever its input is
quantized, which is right where that input's range was taken after the ReLU, as it is for a convolution before it, and
wrong after a MaxPool, whose range is the one of the convolution.
"""

from __future__ import annotations

import onnx


def relu_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with each MaxPool -> Relu turned into Relu -> MaxPool; in place, and returned.

    The largest of max(x, 0) is max(largest of x, 0), so that no output changes. A pooling that others read too stays.
    """
    nodes = proto.graph.node
    readers: dict[str, int] = {}
    for name in (name for node in nodes for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    poolings = {node.output[0]: node for node in nodes if node.op_type == "MaxPool" and len(node.output) == 1}
    for relu in [node for node in nodes if node.op_type == "Relu"]:
        pooling = poolings.get(relu.input[0])
        if pooling is None or readers[relu.input[0]] > 1:
            continue
        first, between, last = pooling.input[0], pooling.output[0], relu.output[0]
        moved = onnx.NodeProto()
        moved.CopyFrom(relu)
        relu.CopyFrom(pooling)  # each takes the other's place, so that the order stays the one of execution
        pooling.CopyFrom(moved)
        pooling.input[0], pooling.output[0] = first, between
        relu.input[0], relu.output[0] = between, last
    return proto
