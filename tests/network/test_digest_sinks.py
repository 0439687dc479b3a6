"""Layers that have no output still count in a network's digest."""

from __future__ import annotations

import pytest
import tensorrt_rtx as trt

from singlecard.network.digest import network_digest
from singlecard.network.inspect import view_network
from singlecard.network.logger import Messages, new_logger
from singlecard.network.versions import new_builder


@pytest.fixture
def builder() -> trt.Builder:
    return new_builder(new_logger(Messages()), Messages())


def conditional_digest(builder: trt.Builder, chosen: int) -> str:
    """Digest of: two flags come in, one of them chooses between x and x + x."""
    network = builder.create_network(0)
    flags = [network.add_input(f"flag{index}", trt.bool, ()) for index in range(2)]
    x = network.add_input("x", trt.float32, (4,))
    branch = network.add_if_conditional()
    branch.set_condition(flags[chosen])
    inside = branch.add_input(x).get_output(0)
    twice = network.add_elementwise(inside, inside, trt.ElementWiseOperation.SUM).get_output(0)
    same = network.add_identity(inside).get_output(0)
    network.mark_output(branch.add_output(twice, same).get_output(0))
    return network_digest(view_network(network))


def test_the_flag_that_drives_a_conditional_counts(builder: trt.Builder) -> None:
    """An engine that looks at another flag would be loaded from the cache."""
    assert conditional_digest(builder, 0) == conditional_digest(builder, 0)
    assert conditional_digest(builder, 0) != conditional_digest(builder, 1)
