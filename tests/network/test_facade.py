"""The facade that converters speak to: promotion, broadcasting, constants, names."""

from __future__ import annotations

import ctypes
import gc
import itertools
from typing import Any

import pytest
import torch

from singlecard.errors import LoweringError
from singlecard.network.flavour import tensorrt
from singlecard.network.inspect import view_network
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
from singlecard.reference import evaluate

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)
NUMBERS = (True, 3, 2.5)


def operands(net: Net) -> list[tuple[Tensor, torch.Tensor]]:
    """Every type, with one dimension and with none, and what PyTorch has for it."""
    pairs = []
    for place, (dtype, shape) in enumerate(itertools.product(TYPES, [(2,), ()])):
        pairs.append((net.input(f"x{place}", dtype, shape), torch.ones(shape, dtype=dtype)))
    return pairs


def test_promotion_of_tensors_is_pytorchs() -> None:
    """A type that differs from PyTorch's changes answers, or the type of a user's output."""
    net = Net()
    pairs = operands(net)
    for (a, x), (b, y) in itertools.product(pairs, pairs):
        assert net.result_type(a, b) == torch.result_type(x, y), (x.dtype, y.dtype)


def test_promotion_with_numbers_is_pytorchs() -> None:
    """x * 2.5 of integers is floating-point; x + 3 of half stays half."""
    net = Net()
    for (a, x), number in itertools.product(operands(net), NUMBERS):
        assert net.result_type(a, number) == torch.result_type(x, number), (x.dtype, number)
        assert net.result_type(number, a) == torch.result_type(number, x), (x.dtype, number)


def test_promotion_of_many_is_pytorchs() -> None:
    """torch.cat takes any number of types, tensors without dimensions among them."""
    net = Net()
    pairs = operands(net)[::3]
    for triple in itertools.product(pairs, pairs, pairs):
        handles = [a for a, _ in triple]
        if any(x.ndim == 0 for _, x in triple):
            continue  # cat refuses these
        values = [x for _, x in triple]
        assert net.result_type(*handles) == torch.cat(values).dtype


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3,)),
        ((2, 1, 3), (4, 1)),
        ((), (2, 3)),
        ((1,), (5, 1, 2)),
        ((2, 3), (2, 3)),
        ((), ()),
    ],
)
def test_broadcasting_is_pytorchs(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """TensorRT broadcasts equal ranks only; a wrong padding adds rows to columns."""
    torch.manual_seed(0)
    x, y = torch.randn(a), torch.randn(b)
    net = Net()
    result = net.sub(net.input("x", torch.float32, a), net.input("y", torch.float32, b))
    assert result.shape == torch.broadcast_shapes(a, b)
    net.mark_output(result, "z")
    torch.testing.assert_close(evaluate(net.definition, {"x": x, "y": y})["z"], x - y)


def test_broadcasting_of_dynamic_shapes() -> None:
    """Padding the rank of a shape with two unknown extents must keep both apart."""
    net = Net()
    x, y = torch.randn(2, 3), torch.randn(4, 1, 3)
    total = net.sum(
        net.input("x", torch.float32, (-1, -1)), net.input("y", torch.float32, (-1, 1, -1))
    )
    net.mark_output(total, "z")
    torch.testing.assert_close(evaluate(net.definition, {"x": x, "y": y})["z"], x + y)


def constants_of(net: Net) -> list[Any]:
    return [layer for layer in view_network(net.definition).layers if layer.kind == "CONSTANT"]


def test_constant_is_not_copied() -> None:
    """A copy of every weight doubles the memory of a build."""
    net = Net()
    weight = torch.randn(3, 4)
    net.constant(weight)
    (layer,) = constants_of(net)
    (view,) = layer.weights.values()
    assert ctypes.addressof(ctypes.c_char.from_address(view.address)) == weight.data_ptr()


def test_constants_outlive_their_makers() -> None:
    """TensorRT keeps a pointer: memory given back would be built into the engine as garbage."""
    net = Net()
    total = net.input("x", torch.float32, (1000,))
    for number in range(8):
        total = net.sum(total, net.constant(torch.full((2000,), float(number))[::2]))
        gc.collect()
        torch.full((1000,), -1.0)  # would reuse freed memory
    net.mark_output(total, "y")
    got = evaluate(net.definition, {"x": torch.zeros(1000)})["y"]
    torch.testing.assert_close(got, torch.full((1000,), 28.0))


def test_tied_constants_are_stored_once() -> None:
    """An embedding tied to the output layer is a third of a small language model."""
    net = Net()
    weight = torch.randn(3, 4)
    assert net.constant(weight) is net.constant(weight.view(3, 4))
    assert net.constant(weight) is not net.constant(weight.view(4, 3))
    assert net.constant(weight) is not net.constant(weight.t())
    assert len(constants_of(net)) == 3


def test_same_memory_with_other_types_or_strides_is_another_constant() -> None:
    """Two views of the same bytes are two values."""
    net = Net()
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for place, value in enumerate((square, square.t(), square.view(torch.int32))):
        net.mark_output(net.constant(value), f"y{place}")
    got = evaluate(net.definition, {})
    torch.testing.assert_close(got["y0"], square)
    torch.testing.assert_close(got["y1"], square.t())
    torch.testing.assert_close(got["y2"], square.view(torch.int32))


def test_scalars_keep_their_sign_and_type() -> None:
    """0, -0.0, False and 0.0 are equal keys to Python: shared, one would stand for the others."""
    net = Net()
    values = [0.0, -0.0, 0, False, float("nan"), float("inf")]
    for place, value in enumerate(values):
        dtype = (
            torch.int64 if type(value) is int else torch.bool if value is False else torch.float32
        )
        net.mark_output(net.scalar(value, dtype), f"y{place}")
    got = evaluate(net.definition, {})
    assert torch.signbit(got["y1"]) and not torch.signbit(got["y0"])
    assert got["y2"].dtype == torch.int64 and got["y3"].dtype == torch.bool
    assert got["y4"].isnan() and got["y5"].isinf()


def test_layers_are_named_after_modules() -> None:
    """A kernel in the plan leads back to a line of the model by its name and metadata."""
    net = Net()
    x = net.input("x", torch.float32, (2,))
    with net.scope("encoder.layer.0/aten.exp"):
        x = net.unary("EXP", x)
        x = net.unary("EXP", x)
        with net.scope("odd[name]\x1f"):
            x = net.unary("ABS", x)
        x = net.unary("EXP", x)
    net.mark_output(x, "y")
    layers = [net.definition.get_layer(place) for place in range(net.definition.num_layers)]
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names) == 4
    assert all(name.startswith("encoder.layer.0/aten.exp") for name in (names[0], names[3]))
    assert layers[0].metadata == layers[3].metadata == "[encoder.layer.0/aten.exp]"
    assert layers[2].metadata == "[oddname]"


def test_shared_constants_carry_nobodys_path() -> None:
    """A shared constant that names its first user would lead other kernels to that module."""
    net = Net()
    with net.scope("first/aten.add"):
        net.constant(torch.ones(2))
    assert net.definition.get_layer(0).metadata == ""


def test_output_that_is_an_input_or_an_output_already() -> None:
    """Models return their inputs, and one value twice; TensorRT allows neither by itself."""
    net = Net()
    x = net.input("x", torch.float32, (2,))
    y = net.unary("EXP", x)
    for place, value in enumerate((x, y, y)):
        net.mark_output(value, f"y{place}")
    got = evaluate(net.definition, {"x": torch.zeros(2)})
    assert [float(got[f"y{place}"][0]) for place in range(3)] == [0, 1, 1]


def test_refused_layer_is_an_error_with_tensorrts_words() -> None:
    """A refused layer is None: used further it crashes far from the op."""
    net = Net()
    x = net.input("x", torch.float32, (2, 3))
    with net.scope("head/aten.mm"), pytest.raises(LoweringError, match="head/aten.mm") as caught:
        net.wrap(
            net.add(
                "matrix_multiply",
                x.handle,
                tensorrt().MatrixOperation.NONE,
                x.handle,
                tensorrt().MatrixOperation.NONE,
            ).get_output(0)
        )
    assert "gave no reason" not in str(caught.value)
