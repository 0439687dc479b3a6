"""A network's digest sees all that a plan is made of, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from singlecard.network.digest import network_digest
from singlecard.network.inspect import view_network
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor


def digest(*outputs: Callable[[Net, Tensor], Tensor], shape: tuple[int, ...] = (2, 4)) -> str:
    net = Net()
    x = net.input("x", torch.float32, shape)
    for place, output in enumerate(outputs):
        net.mark_output(output(net, x), f"y{place}")
    return network_digest(view_network(net.definition))


def times(factor: float, name: str = "") -> Callable[[Net, Tensor], Tensor]:
    def make(net: Net, x: Tensor) -> Tensor:
        with net.scope(name):
            return net.prod(x, net.constant(torch.full((1, 4), float(factor))))

    return make


def test_same_network_has_same_digest() -> None:
    """An engine that was built yesterday must be found today."""
    assert digest(times(2)) == digest(times(2))


def test_names_and_metadata_do_not_count() -> None:
    """Renamed modules would build everything again."""
    assert digest(times(2, "encoder/aten.mul")) == digest(times(2, "decoder/aten.mul"))


def test_order_of_layers_does_not_count() -> None:
    """The same graph written in another order is the same graph."""

    def first(net: Net, x: Tensor) -> Tensor:
        a = net.unary("EXP", x)
        return net.sum(a, net.unary("ABS", x))

    def second(net: Net, x: Tensor) -> Tensor:
        b = net.unary("ABS", x)
        return net.sum(net.unary("EXP", x), b)

    assert digest(first) == digest(second)


@pytest.mark.parametrize("factor", [2.0000002, -2.0, 0.0, float("nan")])
def test_every_bit_of_a_constant_counts(factor: float) -> None:
    """A fine-tuned model differs from its base in the last bits of its weights."""
    assert digest(times(factor)) != digest(times(2))


def test_bits_are_hashed_and_not_values() -> None:
    """0.0 and -0.0 are equal, and 1 / x tells them apart."""
    assert digest(times(0.0)) != digest(times(-0.0))


def test_large_weights_count_to_the_last_element() -> None:
    """Weights beyond a threshold are hashed by several threads, and as whole as small ones."""

    def model(last: float) -> Callable[[Net, Tensor], Tensor]:
        weight = torch.zeros(4, 1 << 19)
        weight[-1, -1] = last
        return lambda net, x: net.matmul(x, net.constant(weight))

    assert digest(model(0)) != digest(model(1))
    assert digest(model(1)) == digest(model(1))


def test_wiring_counts() -> None:
    """a - b and b - a have the same layers and the same constants."""

    def difference(swap: bool) -> Callable[[Net, Tensor], Tensor]:
        def make(net: Net, x: Tensor) -> Tensor:
            a, b = net.unary("EXP", x), net.unary("ABS", x)
            return net.sub(b, a) if swap else net.sub(a, b)

        return make

    assert digest(difference(True)) != digest(difference(False))


def test_attributes_types_and_shapes_count() -> None:
    """Each of these changes answers or what the engine accepts."""
    keys = {
        digest(lambda net, x: net.unary("EXP", x)),
        digest(lambda net, x: net.unary("ABS", x)),
        digest(lambda net, x: net.softmax(x, 0)),
        digest(lambda net, x: net.softmax(x, 1)),
        digest(lambda net, x: net.softmax(x, 1), shape=(3, 4)),
        digest(lambda net, x: net.softmax(x, 1), shape=(-1, 4)),
        digest(lambda net, x: net.cast(net.softmax(x, 1), torch.float16)),
        digest(lambda net, x: net.activation("LEAKY_RELU", x, 0.1)),
        digest(lambda net, x: net.activation("LEAKY_RELU", x, 0.2)),
        digest(lambda net, x: net.reduce("SUM", x, [0], True)),
        digest(lambda net, x: net.reduce("SUM", x, [0], False)),
        digest(lambda net, x: net.reduce("SUM", x, [1], True)),
        digest(lambda net, x: net.permute(x, [1, 0])),
        digest(lambda net, x: net.reshape(x, [4, 2])),
    }
    assert len(keys) == 14


def test_outputs_count_in_order() -> None:
    """Outputs are told apart by their place: exchanged, every answer is another's."""
    one, two = times(1.5), times(2.5)
    assert digest(one, two) != digest(two, one)
    assert digest(one) != digest(one, two)
