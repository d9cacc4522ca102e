"""Rewrites of a converted network that make its OpenVINO model faster and leave its numbers, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from specpolicy.utils.extras import require

_FEW_POSITIONS = 4


def rational_mish(model: Any) -> None:
    """Write mish(x) = x tanh(ln(1 + eˣ)) as x q/(q + 2) with q = eˣ(eˣ + 2).

    OpenVINO 2026 has no fused kernel for Mish ("Supported precisions set is not available for Mish operation") and
    would fuse nothing around it either; of products and one exponential it makes one kernel with the group norm before
    it, which halves the time of a U-Net.

    Args:
        model: an ``openvino.Model``; it is changed.
    """
    ops: Any = require("openvino.opset13", "openvino")
    for node in model.get_ops():
        if node.get_type_name() == "Mish":
            x = node.input_value(0)
            power = ops.exp(ops.minimum(x, np.float32(20)))  # beyond 20 mish(x) is x to the last bit
            q = ops.multiply(power, ops.add(power, np.float32(2)))
            node.output(0).replace(ops.multiply(x, ops.divide(q, ops.add(q, np.float32(2)))).output(0))
    model.validate_nodes_and_infer_types()


def short_convolutions(model: Any) -> None:
    """Write convolutions over no more than four positions as one matrix product for all rows of the batch.

    OpenVINO's convolution takes the rows one by one and reads all weights for each. At the lowest level of a U-Net,
    which holds most of the weights, a chunk has four positions, and that reading is most of what a row costs: as one
    product Square's network takes .77 of the time with 16 rows (``benchmarks/bench_short_convolutions.py``).

    Args:
        model: for one batch size; it is changed.
    """
    ops: Any = require("openvino.opset13", "openvino")
    for node in model.get_ops():
        if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        x, weights, told = node.input_value(0), node.input_value(1).get_node().data, node.get_attributes()
        if weights.ndim != 3 or x.get_partial_shape().is_dynamic or x.get_shape()[2] > _FEW_POSITIONS:
            continue
        channels_out, channels_in, width = weights.shape
        length, margin = x.get_shape()[2], width // 2
        same = told["pads_begin"] == told["pads_end"] == [margin] and told["strides"] == told["dilations"] == [1]
        if width == 1 or not same or list(node.output(0).get_shape()[1:]) != [channels_out, length]:
            continue
        around, along = np.array([0, margin, 0]), np.array([1])
        padded = ops.pad(ops.transpose(x, np.array([0, 2, 1])), around, around, "constant", np.float32(0))
        taps = [ops.slice(padded, np.array([tap]), np.array([tap + length]), along, along) for tap in range(width)]
        matrix = np.ascontiguousarray(weights.transpose(2, 1, 0)).reshape(width * channels_in, channels_out)
        product = ops.matmul(ops.concat(taps, 2), ops.constant(matrix), False, False)
        node.output(0).replace(ops.transpose(product, np.array([0, 2, 1])).output(0))
    model.validate_nodes_and_infer_types()
