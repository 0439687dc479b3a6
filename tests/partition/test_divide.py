"""A model is cut in as few places as its unsupported ops allow."""

from __future__ import annotations

import torch
from torch import fx

from singlecard.partition import Partition
from tests.graphs import divided, program_of

aten = torch.ops.aten


def is_sin(node: fx.Node) -> bool:
    return node.target is aten.sin.default


def is_cos(node: fx.Node) -> bool:
    return node.target is aten.cos.default


def names(partition: Partition) -> list[tuple[bool, int]]:
    return [(segment.lowered, len(segment.nodes)) for segment in partition.segments]


def check_order(partition: Partition) -> None:
    """Every value is made before it is used, and crosses into a segment once."""
    made: set[fx.Node] = set()
    for segment in partition.segments:
        assert len(set(segment.inputs)) == len(segment.inputs)
        assert len(set(segment.outputs)) == len(segment.outputs)
        for node in segment.inputs:
            assert node.op == "placeholder" or node in made
        assert not made & set(segment.nodes)
        made.update(segment.nodes)


def test_everything_supported_is_one_segment() -> None:
    """Each extra engine costs a launch and memory of its own."""
    partition = divided(program_of(lambda x: (x + 1) * (x - 1), torch.ones(2)), lambda node: False)
    assert names(partition) == [(True, 3)]
    assert partition.ops == partition.lowered_ops == 3


def test_nothing_supported_is_one_eager_segment() -> None:
    """A graph without engines is run once by PyTorch, op by op in order."""
    partition = divided(program_of(lambda x: (x + 1).sin().cos(), torch.ones(2)), lambda node: True)
    assert names(partition) == [(False, 3)]
    assert partition.lowered_ops == 0


def test_op_between_parallel_branches_costs_one_boundary() -> None:
    """The branch that passes by must not be cut too: two engines and not four."""

    def branches(x: torch.Tensor) -> torch.Tensor:
        left = (x + 1).sin() + 1
        right = ((x * 2) * 3) * 4
        return left + right

    partition = divided(program_of(branches, torch.ones(2)), is_sin)
    assert [lowered for lowered, _ in names(partition)] == [True, False, True]
    check_order(partition)


def test_two_branches_with_one_op_each_share_the_boundary() -> None:
    """Two ops left out at the same depth are one visit to PyTorch."""

    def branches(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).sin() * 2 + (x * 3).cos() * 4

    program = program_of(branches, torch.ones(2))
    partition = divided(program, lambda node: is_sin(node) or is_cos(node))
    assert names(partition) == [(True, 2), (False, 2), (True, 3)]
    assert [fallback.op for fallback in partition.fallback] == ["aten.sin", "aten.cos"]
    check_order(partition)


def test_what_pytorch_can_do_first_splits_nothing() -> None:
    """An op on an input of its own, before all engines: one engine after it, and not two."""

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + 1) * 2 + y.sin() * 3

    partition = divided(program_of(model, torch.ones(2), torch.ones(2)), is_sin)
    assert names(partition) == [(False, 1), (True, 4)]
    check_order(partition)


def test_no_value_crosses_twice() -> None:
    """Written in FP16 for the next engine and in FP32 for PyTorch, a value costs three times."""

    def model(x: torch.Tensor) -> torch.Tensor:
        half = (x + 1).half()
        return (half.float().sin() + 1).half() * half

    partition = divided(program_of(model, torch.ones(2)), is_sin)
    check_order(partition)
    first, eager, _ = partition.segments
    assert [node.meta["val"].dtype for node in first.outputs] == [torch.float16]
    assert not eager.lowered
    assert [fallback.op for fallback in partition.fallback] == ["aten.sin"]


def test_segments_do_not_wait_for_each_other() -> None:
    """An op that depends on both sides of a boundary must come after both: no cycle."""

    def crossing(x: torch.Tensor) -> torch.Tensor:
        a = x + 1
        b = a.sin()
        c = b + a
        d = c.cos()
        return d * a + b * c

    program = program_of(crossing, torch.ones(2))
    partition = divided(program, lambda node: is_sin(node) or is_cos(node))
    assert [lowered for lowered, _ in names(partition)] == [True, False, True, False, True]
    check_order(partition)


def test_items_stay_with_their_tuple() -> None:
    """A tuple cannot cross into an engine: its items must be taken where it is made."""

    def pieces(x: torch.Tensor) -> torch.Tensor:
        a, b = x.split(2)
        return a.sin() + b

    partition = divided(program_of(pieces, torch.ones(4)), is_sin)
    check_order(partition)
    for segment in partition.segments:
        assert all(isinstance(node.meta["val"], torch.Tensor) for node in segment.outputs)


def test_small_blocks_stay_in_pytorch() -> None:
    """A block of one op is dearer as an engine than as the op."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).sin() * 2 * 3 * 4

    partition = divided(program_of(model, torch.ones(2)), is_sin, min_block_size=2)
    assert names(partition) == [(False, 2), (True, 3)]
    assert "min_block_size = 2" in [f.reason for f in partition.fallback if f.op == "aten.add"][0]


def test_blocks_that_become_small_are_found_too() -> None:
    """Once a small block is gone its neighbours move apart, and may be small themselves."""

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = x.sin() + 1
        left = left.cos() + 2
        right = ((x + 1) * 2).sin()
        right = ((right + 1) * 2).cos() + 3
        return left, right

    program = program_of(model, torch.ones(2))
    partition = divided(program, lambda n: is_sin(n) or is_cos(n), min_block_size=2)
    for segment in partition.segments:
        assert not segment.lowered or len(segment.nodes) >= 2
    check_order(partition)


def test_reason_names_the_users_line() -> None:
    """A reason without a place sends the user looking through the whole model."""
    partition = divided(program_of(lambda x: x.sin(), torch.ones(2)), is_sin)
    (fallback,) = partition.fallback
    assert "test_divide.py" in fallback.line and "x.sin()" in fallback.line
