"""Layers whose options the ONNX parser does not reach, against formulas written out in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional


def test_every_kind_of_layer_is_evaluated_or_known_to_have_no_meaning() -> None:
    """A layer of a new TensorRT would be met by a user first."""
    from singlecard.network.flavour import tensorrt
    from singlecard.reference.table import evaluations

    flow = {"LOOP_OUTPUT", "RECURRENCE", "ITERATOR", "TRIP_LIMIT", "CONDITION"}
    flow |= {"CONDITIONAL_OUTPUT"}
    without = {"PLUGIN", "PLUGIN_V2", "PLUGIN_V3", "MOE", "DIST_COLLECTIVE"}
    kinds = set(tensorrt().LayerType.__members__)
    assert kinds == evaluations().keys() | flow | without


@pytest.mark.parametrize("mode", ["EXPLICIT_ROUND_UP", "SAME_UPPER", "SAME_LOWER"])
def test_padding_modes_of_a_convolution(sketch: Any, mode: str) -> None:
    """A model from another framework would be off by one element at the borders."""
    x, kernel = torch.randn(1, 4, 7, 8), torch.randn(6, 2, 4, 3)
    layer = sketch.add("convolution_nd", sketch.input(x), 6, (4, 3), sketch.weights(kernel))
    layer.num_groups, layer.stride_nd = 2, (2, 2)
    layer.pre_padding, layer.post_padding = (0, 1), (1, 0)
    layer.padding_mode = sketch.trt.PaddingMode.__members__[mode]
    # Left, right, top, bottom: worked out by hand for 7 rows with 4 taps and 8 columns with 3.
    sides = {
        "EXPLICIT_ROUND_UP": (1, 0, 0, 1),
        "SAME_UPPER": (0, 1, 1, 2),
        "SAME_LOWER": (1, 0, 2, 1),
    }[mode]
    expected = functional.conv2d(functional.pad(x, sides), kernel, stride=2, groups=2)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_kernel_may_be_an_input(sketch: Any) -> None:
    """An INT8 convolution takes its weights from a dequantize layer, not from its own."""
    x, kernel, bias = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3), torch.randn(3)
    empty = sketch.trt.Weights(sketch.trt.float32)
    layer = sketch.add("convolution_nd", sketch.input(x), 3, (3, 3), empty, sketch.weights(bias))
    layer.set_input(1, sketch.input(kernel))
    layer.dilation_nd = (2, 2)
    expected = functional.conv2d(x, kernel, bias, dilation=2)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_convolution_in_three_dimensions(sketch: Any) -> None:
    """Video and volume models could not be checked."""
    x, kernel = torch.randn(1, 2, 5, 6, 7), torch.randn(4, 2, 3, 3, 3)
    layer = sketch.add("convolution_nd", sketch.input(x), 4, (3, 3, 3), sketch.weights(kernel))
    layer.padding_nd = (1, 1, 1)
    expected = functional.conv3d(x, kernel, padding=1)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


@pytest.mark.parametrize(("mode", "sides"), [("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0))])
def test_padding_modes_of_a_deconvolution(sketch: Any, mode: str, sides: tuple[int, int]) -> None:
    """A decoder would put its feature maps one element to the side."""
    x, kernel, bias = torch.randn(1, 4, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(6)
    weights = sketch.weights(kernel), sketch.weights(bias)
    layer = sketch.add("deconvolution_nd", sketch.input(x), 6, (3, 3), *weights)
    layer.stride_nd, layer.num_groups = (2, 2), 2
    layer.padding_mode = sketch.trt.PaddingMode.__members__[mode]
    whole = functional.conv_transpose2d(x, kernel, bias, stride=2, groups=2)
    first, last = sides[0], 11 - sides[1]  # 11 elements are cut to 5 * 2
    expected = whole[:, :, first:last, first:last]
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_deconvolution_is_cut_on_each_side(sketch: Any) -> None:
    """Uneven padding of a decoder would be cut off on the wrong side."""
    x, kernel = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 4, 4)
    layer = sketch.add("deconvolution_nd", sketch.input(x), 3, (4, 4), sketch.weights(kernel))
    layer.dilation_nd = (2, 2)
    layer.pre_padding, layer.post_padding = (1, 0), (2, 3)
    whole = functional.conv_transpose2d(x, kernel, dilation=2)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), whole[:, :, 1:-2, :-3])


@pytest.mark.parametrize("excludes", [True, False])
def test_average_pooling_divides_by_what_counts(sketch: Any, excludes: bool) -> None:
    """Borders of average-pooled feature maps would be too dark, or too bright."""
    x = torch.randn(1, 2, 6, 6)
    layer = sketch.add("pooling_nd", sketch.input(x), sketch.trt.PoolingType.AVERAGE, (3, 3))
    layer.stride_nd, layer.padding_nd = (2, 2), (1, 1)
    layer.padding_mode = sketch.trt.PaddingMode.EXPLICIT_ROUND_UP
    layer.average_count_excludes_padding = excludes
    expected = functional.avg_pool2d(x, 3, 2, 1, True, count_include_pad=not excludes)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_blended_pooling(sketch: Any) -> None:
    """The share of maximum and average would be exchanged."""
    x, kind = torch.randn(1, 2, 6, 6), sketch.trt.PoolingType.MAX_AVERAGE_BLEND
    layer = sketch.add("pooling_nd", sketch.input(x), kind, (2, 2))
    layer.blend_factor = 0.25
    expected = 0.75 * functional.max_pool2d(x, 2, 1) + 0.25 * functional.avg_pool2d(x, 2, 1)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


@pytest.mark.parametrize(
    ("mode", "name"), [("WRAP", "wrap"), ("CLAMP", "edge"), ("REFLECT", "reflect")]
)
def test_slices_beyond_the_ends(sketch: Any, mode: str, name: Any) -> None:
    """Circular, replicated and reflected padding would be taken for one another."""
    x = torch.randn(2, 4)
    layer = sketch.add("slice", sketch.input(x), (0, -3), (2, 10), (1, 1))
    layer.mode = sketch.trt.SampleMode.__members__[mode]
    expected = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (3, 3)), mode=name))
    assert torch.equal(sketch.run(layer.get_output(0)), expected)


def test_a_slice_fills_what_lies_outside_with_its_value(sketch: Any) -> None:
    """Constant padding would always be zero."""
    x = torch.randn(2, 4)
    layer = sketch.add("slice", sketch.input(x), (-1, 1), (4, 5), (1, 1))
    layer.mode = sketch.trt.SampleMode.FILL
    layer.set_input(4, sketch.constant(torch.tensor(7.0)))
    expected = functional.pad(x[:, 1:], (0, 2, 1, 1), value=7.0)
    assert torch.equal(sketch.run(layer.get_output(0)), expected)


def test_slices_step_backwards_and_stand_still(sketch: Any) -> None:
    """``flip`` and ``expand`` are slices with a negative and with no stride."""
    x = torch.randn(1, 5)
    layer = sketch.add("slice", sketch.input(x), (0, 4), (3, 3), (0, -2))
    assert torch.equal(sketch.run(layer.get_output(0)), x[:, [4, 2, 0]].expand(3, 3))


def test_indices_out_of_bounds_read_zero(sketch: Any) -> None:
    """A padding index would crash the check of a model that runs on the card."""
    x, indices = torch.randn(3, 2), torch.tensor([0, 5, -1], dtype=torch.int32)
    layer = sketch.add("gather", sketch.input(x), sketch.input(indices), 0)
    expected = torch.stack((x[0], torch.zeros(2), x[2]))
    assert torch.equal(sketch.run(layer.get_output(0)), expected)


@pytest.mark.parametrize("axis", [1, 2])
def test_each_element_of_a_batch_gathers_with_its_own_indices(sketch: Any, axis: int) -> None:
    """All sequences of a batch would pick what the first one picks."""
    x, indices = torch.randn(3, 4, 5), torch.randint(0, 4, (3, 2, 2), dtype=torch.int32)
    trt = sketch.trt
    layer = sketch.add("gather_v2", sketch.input(x), sketch.input(indices), trt.GatherMode.DEFAULT)
    layer.axis, layer.num_elementwise_dims = axis, 1
    rows = [x[i, indices[i]] if axis == 1 else x[i][:, indices[i]] for i in range(3)]
    assert torch.equal(sketch.run(layer.get_output(0)), torch.stack(rows))


def test_zero_in_a_shape_is_the_dimension_after_the_first_transpose(sketch: Any) -> None:
    """A fused transpose and reshape would copy the wrong dimension."""
    x = torch.randn(2, 3, 4)
    layer = sketch.add("shuffle", sketch.input(x, (2, -1, 4)))
    layer.first_transpose, layer.reshape_dims, layer.second_transpose = (2, 0, 1), (0, -1), (1, 0)
    assert torch.equal(sketch.run(layer.get_output(0)), x.permute(2, 0, 1).reshape(4, 6).T)


def test_squeeze_without_axes_keeps_open_dimensions(sketch: Any) -> None:
    """The rank of an answer would depend on the batch size that is fed."""
    x = torch.randn(1, 1, 4)
    layer = sketch.add("squeeze", sketch.input(x, (1, -1, 4)))
    assert sketch.run(layer.get_output(0)).shape == (1, 4)


def group_norm(sketch: Any, kind: str, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    inputs = [sketch.input(x), sketch.constant(scale), sketch.constant(bias)]
    layer = sketch.add(kind, *inputs, 0b1100)
    layer.num_groups, layer.epsilon = 2, 1e-3
    return layer.get_output(0)


def test_version_two_of_normalization_scales_each_channel(sketch: Any) -> None:
    """GroupNorm would use one scale for a whole group."""
    x, scale, bias = torch.randn(2, 6, 4, 4), torch.randn(1, 6, 1, 1), torch.randn(1, 6, 1, 1)
    got = sketch.run(group_norm(sketch, "normalization_v2", x, scale, bias))
    expected = functional.group_norm(x, 2, scale.flatten(), bias.flatten(), 1e-3)
    torch.testing.assert_close(got, expected)


def test_version_one_of_normalization_scales_each_group(sketch: Any) -> None:
    """A network that the ONNX parser made would be scaled by the wrong vector."""
    x, scale, bias = torch.randn(2, 6, 4, 4), torch.randn(1, 2, 1, 1), torch.randn(1, 2, 1, 1)
    got = sketch.run(group_norm(sketch, "normalization", x, scale, bias))
    wide_scale, wide_bias = (vector.flatten().repeat_interleave(3) for vector in (scale, bias))
    torch.testing.assert_close(got, functional.group_norm(x, 2, wide_scale, wide_bias, 1e-3))


def test_half_precision_normalizes_in_single(sketch: Any) -> None:
    """Squares of large FP16 activations would overflow in the check, and not on the card."""
    x = (300 * torch.randn(2, 8)).half()
    ones, zeros = (sketch.constant(make((1, 8)).half()) for make in (torch.ones, torch.zeros))
    layer = sketch.add("normalization_v2", sketch.input(x), ones, zeros, 0b10)
    got = sketch.run(layer.get_output(0))
    assert torch.equal(got, functional.layer_norm(x.float(), (8,)).half())


@pytest.mark.parametrize("mode", ["UNIFORM", "CHANNEL", "ELEMENTWISE"])
def test_scale_layers(sketch: Any, mode: str) -> None:
    """Normalization folded into a scale layer would scale the wrong dimension."""
    x = torch.rand(2, 3, 4, 5)
    shape = {"UNIFORM": (1,), "CHANNEL": (3, 1, 1), "ELEMENTWISE": (3, 4, 5)}[mode]
    shift, scale, power = torch.rand(shape), torch.rand(shape), 1 + torch.rand(shape)
    weights = [sketch.weights(value) for value in (shift, scale, power)]
    kind = sketch.trt.ScaleMode.__members__[mode]
    layer = sketch.add("scale_nd", sketch.input(x), kind, *weights, 1)
    expected = (x * scale + shift) ** power
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_ragged_softmax_ends_at_the_bound(sketch: Any) -> None:
    """The padding of short rows would take a share of the probability."""
    x, bounds = torch.randn(1, 2, 4), torch.tensor([[[2], [4]]], dtype=torch.int32)
    layer = sketch.add("ragged_softmax", sketch.input(x), sketch.input(bounds))
    short = functional.pad(x[0, 0, :2].softmax(-1), (0, 2))
    expected = torch.stack((short, x[0, 1].softmax(-1)))[None]
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_fill_counts_along_every_dimension(sketch: Any) -> None:
    """Positions and masks made by a fill would count along the wrong dimension."""
    trt = sketch.trt
    layer = sketch.add("fill", (2, 3), trt.FillOperation.LINSPACE, trt.int32)
    layer.set_input(1, sketch.constant(torch.tensor(1, dtype=torch.int32)))
    layer.set_input(2, sketch.constant(torch.tensor([100, 10], dtype=torch.int32)))
    assert sketch.run(layer.get_output(0)).tolist() == [[1, 11, 21], [101, 111, 121]]


def test_fill_with_a_start_and_a_step_of_its_own(sketch: Any) -> None:
    """``arange`` with Python numbers would start at 0 and step by 1."""
    trt = sketch.trt
    layer = sketch.add("fill", (4,), trt.FillOperation.LINSPACE, trt.float32)
    layer.alpha, layer.beta = 0.5, 0.25
    assert sketch.run(layer.get_output(0)).tolist() == [0.5, 0.75, 1.0, 1.25]


def test_padding_layers_cut_where_padding_is_negative(sketch: Any) -> None:
    """Cropping layers of older models would pad instead."""
    x = torch.randn(1, 2, 4, 5)
    layer = sketch.add("padding_nd", sketch.input(x), (1, -1), (0, 2))
    expected = functional.pad(x, (-1, 2, 1, 0))
    assert torch.equal(sketch.run(layer.get_output(0)), expected)


def test_integers_are_divided_towards_zero_or_down(sketch: Any) -> None:
    """Positions computed with negative numbers would be off by one."""
    a = torch.tensor([7, -7, 7, -7], dtype=torch.int32)
    b = torch.tensor([2, 2, -2, -2], dtype=torch.int32)
    x, y, operations = sketch.input(a), sketch.input(b), sketch.trt.ElementWiseOperation
    layers = [sketch.add("elementwise", x, y, op) for op in (operations.DIV, operations.FLOOR_DIV)]
    towards_zero, down = sketch.run(*(layer.get_output(0) for layer in layers))
    assert towards_zero.tolist() == [3, -3, -3, 3]
    assert down.tolist() == [3, -4, -4, 3]


@pytest.mark.parametrize(("value", "expected"), [(3e9, 2**31 - 1), (-2.7, -2), (float("nan"), 0)])
def test_casts_to_integers_drop_the_fraction_and_saturate(
    sketch: Any, value: float, expected: int
) -> None:
    """An index computed in floats would be rounded, or wrap around."""
    layer = sketch.add("cast", sketch.input(torch.tensor([value])), sketch.trt.int32)
    assert sketch.run(layer.get_output(0)).tolist() == [expected]


def test_of_equal_elements_the_first_is_the_largest(sketch: Any) -> None:
    """Greedy decoding would choose another token than PyTorch where two are as likely."""
    x, trt = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), sketch.trt
    tensor = sketch.input(x)
    layers = [sketch.add("topk", tensor, trt.TopKOperation.MAX, k, 2) for k in (1, 4)]
    best, four = sketch.run(*(layer.get_output(1) for layer in layers))
    assert best.tolist() == [[1]]
    assert four.tolist() == [[1, 2, 4, 3]]


def test_boxes_of_one_class_do_not_suppress_those_of_another(sketch: Any) -> None:
    """Objects that lie over one another would be lost, or come in another order."""
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [5.0, 5.0, 6.0, 6.0]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.95], [0.2, 0.7]]])
    limit = sketch.constant(torch.tensor(2, dtype=torch.int32))
    layer = sketch.add("nms", sketch.input(boxes), sketch.input(scores), limit)
    layer.set_input(3, sketch.constant(torch.tensor(0.5)))
    layer.set_input(4, sketch.constant(torch.tensor(0.15)))
    rows, number = sketch.run(layer.get_output(0), layer.get_output(1))
    assert rows.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 2], [0, 0, 2]]
    assert number.item() == 4


def test_non_zero_lists_the_places(sketch: Any) -> None:
    """The indices of a mask would come as rows instead of columns."""
    x = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    layer = sketch.add("non_zero", sketch.input(x))
    assert sketch.run(layer.get_output(0)).tolist() == [[0, 1, 2], [1, 0, 1]]
