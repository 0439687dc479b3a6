"""Quantize and dequantize layers against their formulas: what INT8, INT4 and FP8 do to answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def dequantize(sketch: Any, value: Any, scale: Any, axis: int | None = None) -> Any:
    layer = sketch.add("dequantize", value, scale, sketch.trt.float32)
    if axis is not None:
        layer.axis = axis
    return layer.get_output(0)


def quantize(sketch: Any, value: Any, scale: Any, dtype: Any, axis: int | None = None) -> Any:
    layer = sketch.add("quantize", value, scale, dtype)
    if axis is not None:
        layer.axis = axis
    return layer.get_output(0)


def packed_int4(values: Tensor) -> bytes:
    """Two to a byte, the first in the low bits."""
    low, high = (values.int().flatten() & 15).reshape(-1, 2).unbind(1)
    return bytes((low | high << 4).tolist())


def test_int8_rounds_half_to_even_and_saturates(sketch: Any) -> None:
    """A user would see other INT8 answers offline than on the card."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 127.4, 900.0, -128.4, -900.0])
    scale = sketch.constant(torch.tensor(1.0))
    got = sketch.run(quantize(sketch, sketch.input(x), scale, sketch.trt.int8))
    assert got.tolist() == [0, 2, 2, 0, -2, 127, 127, 127, -128, -128]


def test_int8_scales_of_channels_lie_along_the_axis(sketch: Any) -> None:
    """Weights quantized by output channel would be scaled along the wrong dimension."""
    weights, scale = torch.randn(3, 4), torch.tensor([0.01, 0.02, 0.03])
    scales = sketch.constant(scale)
    quantized = quantize(sketch, sketch.constant(weights), scales, sketch.trt.int8, axis=0)
    got = sketch.run(dequantize(sketch, quantized, scales, axis=0))
    steps = (weights / scale[:, None]).round().clamp(-128, 127)
    torch.testing.assert_close(got, steps * scale[:, None], rtol=0, atol=0)


def test_int8_matmul_is_the_integer_product_times_both_scales(sketch: Any) -> None:
    """Offline accuracy of a W8A8 model would not be that of the engine."""
    trt, x, weights = sketch.trt, torch.randn(4, 16), torch.randn(16, 8)
    x_scale, w_scale = torch.tensor(0.02), torch.tensor(0.03)
    operands = []
    for value, scale in ((sketch.input(x), x_scale), (sketch.constant(weights), w_scale)):
        constant = sketch.constant(scale)
        integers = quantize(sketch, value, constant, trt.int8)
        operands.append(dequantize(sketch, integers, constant))
    none = trt.MatrixOperation.NONE
    product = sketch.add("matrix_multiply", operands[0], none, operands[1], none)
    integer_x = (x / x_scale).round().clamp(-128, 127).long()
    integer_w = (weights / w_scale).round().clamp(-128, 127).long()
    expected = (integer_x @ integer_w).double() * x_scale * w_scale
    torch.testing.assert_close(sketch.run(product.get_output(0)), expected.float())


def test_fp8_is_the_nearest_value_and_saturates(sketch: Any) -> None:
    """FP8 activations above 448 would be called infinite, or not be clamped at all."""
    x = torch.tensor([0.3, 17.0, 19.0, 448.0, 464.0, 1e6, -1e6, 1e-9])
    scale = sketch.constant(torch.tensor(1.0))
    got = sketch.run(quantize(sketch, sketch.input(x), scale, sketch.trt.fp8))
    assert got.float().tolist() == [0.3125, 16.0, 20.0, 448.0, 448.0, 448.0, -448.0, 0.0]


@pytest.mark.parametrize("block", [4, 8])
def test_int4_weights_are_unpacked_and_scaled_by_block(sketch: Any, block: int) -> None:
    """The two weights of a byte would change places, or a block take its neighbour's scale."""
    values = torch.randint(-8, 8, (8, 6), dtype=torch.int8)
    scale = torch.rand(8 // block, 6) + 0.1
    weights = sketch.packed("INT4", packed_int4(values), (8, 6))
    got = sketch.run(dequantize(sketch, weights, sketch.constant(scale)))
    expected = values * scale.repeat_interleave(block, dim=0)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_an_odd_number_of_int4_weights_has_a_half_byte_at_the_end(sketch: Any) -> None:
    """The last weight of an odd number would be lost, or a byte too much be read."""
    weights = sketch.packed("INT4", bytes([0x21, 0x0F]), (3,))
    got = sketch.run(dequantize(sketch, weights, sketch.constant(torch.tensor(1.0))))
    assert got.tolist() == [1.0, 2.0, -1.0]


def test_half_precision_scales_round_the_dequantized_value(sketch: Any) -> None:
    """A weight-only model in FP16 would be judged with FP32 weights that it does not have."""
    scale = torch.tensor(0.1, dtype=torch.float16)
    weights = sketch.constant(torch.tensor([3, 127], dtype=torch.int8))
    layer = sketch.add("dequantize", weights, sketch.constant(scale), sketch.trt.float16)
    got = sketch.run(layer.get_output(0))
    assert got.dtype == torch.float16
    assert got.tolist() == (torch.tensor([3.0, 127.0]) * scale.float()).half().tolist()


def test_mxfp8_weights_are_scaled_by_powers_of_two(sketch: Any) -> None:
    """The exponent bias of E8M0 would be off, and each block by a factor of two or more."""
    values = torch.randn(2, 64).to(torch.float8_e4m3fn)
    weights = sketch.packed("FP8", bytes(values.view(torch.uint8).flatten().tolist()), (2, 64))
    scales = sketch.packed("E8M0", bytes([127, 128, 126, 130]), (2, 2))
    layer = sketch.add("dequantize", weights, scales, sketch.trt.float32)
    layer.block_shape = (1, 32)
    factors = torch.tensor([[1.0, 2.0], [0.5, 8.0]]).repeat_interleave(32, dim=1)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), values.float() * factors)


def test_fp4_constants_are_read_by_their_code(sketch: Any) -> None:
    """NVFP4 weights would decode to other values than the card's."""
    codes = bytes([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE])
    weights = sketch.packed("FP4", codes, (16,))
    got = sketch.run(dequantize(sketch, weights, sketch.constant(torch.tensor(1.0))))
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert got.tolist() == positive + [-value for value in positive]


def test_nvfp4_scales_come_from_the_largest_element_of_a_block(sketch: Any) -> None:
    """Dynamic quantization would use one scale for all blocks, or scales that are not FP8."""
    trt, x = sketch.trt, torch.randn(2, 32)
    layer = sketch.add("dynamic_quantize", sketch.input(x), 1, 16, trt.fp4, trt.fp8)
    scale_of_scales = torch.tensor(0.01)
    layer.set_input(1, sketch.constant(scale_of_scales))
    values, scales = sketch.run(layer.get_output(0), layer.get_output(1))
    largest = x.abs().reshape(2, 2, 16).amax(-1)
    expected = (largest / 6 / scale_of_scales).to(torch.float8_e4m3fn)
    torch.testing.assert_close(scales.float(), expected.float())
    restored = values * (expected.float() * scale_of_scales).repeat_interleave(16, dim=1)
    assert (restored - x).abs().max() <= largest.max() / 6  # half of the widest step of FP4
    assert set(values.abs().unique().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
