"""The parts beside a network's digest name what a person changed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch

from singlecard.network.digest import network_digest, network_parts
from singlecard.network.inspect import view_network
from singlecard.network.logger import Messages, new_logger
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
from singlecard.network.versions import new_builder

Make = Callable[[Net, Tensor], Tensor]


def parts(
    *outputs: Make, shape: tuple[int, ...] = (2, 4), dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    net = Net()
    x = net.input("x", dtype, shape)
    for place, output in enumerate(outputs):
        net.mark_output(output(net, x), f"y{place}")
    return network_parts(view_network(net.definition))


def changed(one: dict[str, str], two: dict[str, str]) -> set[str]:
    assert one.keys() == two.keys()
    return {name.removeprefix("network.") for name in one if one[name] != two[name]}


def matrix(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chain(first: int, second: int, kind: str = "RELU") -> Make:
    """Two matrices, one behind the other."""

    def make(net: Net, x: Tensor) -> Tensor:
        y = net.activation(kind, net.matmul(x, net.constant(matrix(first))))
        return net.matmul(y, net.constant(matrix(second)))

    return make


def fork(first: int, second: int) -> Make:
    """Two matrices side by side, as of queries and keys."""

    def make(net: Net, x: Tensor) -> Tensor:
        a, b = (net.matmul(x, net.constant(matrix(seed))) for seed in (first, second))
        return net.sub(a, b)

    return make


def test_parts_are_named_and_the_digest_is_among_them() -> None:
    """Code that reads the digest and a person who reads the parts must mean one network."""
    found = parts(chain(0, 1))
    assert set(found) == {
        "network",
        "network.inputs",
        "network.structure",
        "network.weights",
        "network.outputs",
    }
    assert found["network.inputs"] == found["network.outputs"] == "float32[2,4]"


def test_the_digest_is_that_of_the_parts() -> None:
    """Two ways to one digest would fill the cache under one and search it under the other."""
    net = Net()
    x = net.input("x", torch.float32, (2, 4))
    net.mark_output(chain(0, 1)(net, x), "y")
    view = view_network(net.definition)
    assert network_digest(view) == network_parts(view)["network"]


@pytest.mark.parametrize("model", [chain, fork])
def test_other_weights_are_weights(model: Callable[[int, int], Make]) -> None:
    """A fine-tuned model misses: nobody should look for a change in its code."""
    assert changed(parts(model(0, 1)), parts(model(0, 2))) == {"network", "weights"}


@pytest.mark.parametrize("model", [chain, fork])
def test_exchanged_weights_are_weights(model: Callable[[int, int], Make]) -> None:
    """The same matrices in exchanged places: a sum of all weights would not see it."""
    assert changed(parts(model(0, 1)), parts(model(1, 0))) == {"network", "weights"}


def test_another_op_is_structure() -> None:
    """The code changed, the checkpoint did not."""
    assert changed(parts(chain(0, 1)), parts(chain(0, 1, "TANH"))) == {"network", "structure"}


def test_wiring_is_structure() -> None:
    """a - b and b - a have the same layers and weights."""

    def difference(swap: bool) -> Make:
        def make(net: Net, x: Tensor) -> Tensor:
            a, b = net.unary("EXP", x), net.unary("ABS", x)
            return net.sub(b, a) if swap else net.sub(a, b)

        return make

    found = changed(parts(difference(True)), parts(difference(False)))
    assert found == {"network", "structure"}


def test_another_batch_is_inputs_and_outputs() -> None:
    """Nothing in the model changed, only what it is called with."""
    found = changed(parts(chain(0, 1)), parts(chain(0, 1), shape=(3, 4)))
    assert found == {"network", "inputs", "outputs"}


def test_another_input_type_is_seen_at_both_ends() -> None:
    """The layers are the same and compute in another type, which is a part of the structure."""

    def plain(net: Net, x: Tensor) -> Tensor:
        return net.unary("EXP", x)

    found = changed(parts(plain), parts(plain, dtype=torch.float16))
    assert found == {"network", "inputs", "structure", "outputs"}


def test_exchanged_outputs_are_structure() -> None:
    """Their types are the same: what computes which one is not."""
    one: Make = lambda net, x: net.unary("EXP", x)  # noqa: E731
    two: Make = lambda net, x: net.unary("ABS", x)  # noqa: E731
    assert changed(parts(one, two), parts(two, one)) == {"network", "structure"}


def test_order_of_layers_changes_no_part() -> None:
    """A part that held the order of capture would be blamed for every miss."""

    def made(reverse: bool) -> Make:
        def make(net: Net, x: Tensor) -> Tensor:
            seeds = (1, 0) if reverse else (0, 1)
            branch = {seed: net.matmul(x, net.constant(matrix(seed))) for seed in seeds}
            return net.sub(branch[0], branch[1])

        return make

    assert parts(made(False)) == parts(made(True))


def test_large_and_small_weights_count_to_the_last_element() -> None:
    """Large weights are hashed by several threads, and as whole as small ones."""

    def model(last: float, size: int) -> Make:
        weight = torch.zeros(4, size)
        weight[-1, -1] = last
        return lambda net, x: net.matmul(x, net.constant(weight))

    for size in (1, 1 << 18):
        found = changed(parts(model(0, size)), parts(model(1, size)))
        assert found == {"network", "weights"}


def counting_loop(factor: float, kind: str = "SUM") -> dict[str, str]:
    """Return the parts of a network that goes three times through a loop."""
    builder = new_builder(new_logger(Messages()), Messages())
    network = builder.create_network(0)
    x = network.add_input("x", trt.float32, (4,))
    three, step = np.array(3, np.int32), np.full(4, factor, np.float32)
    loop = network.add_loop()
    trips = network.add_constant((), trt.Weights(three)).get_output(0)
    loop.add_trip_limit(trips, trt.TripLimit.COUNT)
    state = loop.add_recurrence(x)
    constant = network.add_constant((4,), trt.Weights(step)).get_output(0)
    operation = getattr(trt.ElementWiseOperation, kind)
    changed_state = network.add_elementwise(state.get_output(0), constant, operation)
    state.set_input(1, changed_state.get_output(0))
    last = loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE)
    network.mark_output(last.get_output(0))
    return network_parts(view_network(network))


def test_a_loop_has_the_same_parts() -> None:
    """In a loop a layer reads what a later one makes: its network cannot be followed backwards."""
    base = counting_loop(1.0)
    assert counting_loop(1.0) == base
    assert changed(base, counting_loop(2.0)) == {"network", "weights"}
    assert changed(base, counting_loop(1.0, "PROD")) == {"network", "structure"}
