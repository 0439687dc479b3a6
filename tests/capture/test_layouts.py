"""How a tensor lies in memory is told, and made again."""

from __future__ import annotations

import torch

from singlecard.capture.layouts import laid_out, layout_of, promised, reads_memory, restrided
from singlecard.passes import simplify
from tests.graphs import program_of

aten = torch.ops.aten


def again(want: torch.Tensor) -> torch.Tensor:
    return laid_out(want.contiguous(), layout_of(want))


def test_every_order_of_axes() -> None:
    """Code behind the model that views a result by its strides would read other elements."""
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1), (2, 1, 0)):
        want = torch.arange(24).view(2, 3, 4).permute(order)
        assert again(want).stride() == want.stride()
        assert torch.equal(again(want), want)
    assert layout_of(torch.empty(3, 1, 1)) is None


def test_axes_of_one_element_keep_their_strides() -> None:
    """PyTorch takes an image of one channel for channels-last, or not, by these strides."""
    want = torch.randn(2, 1, 4, 4).to(memory_format=torch.channels_last)
    want = torch.empty_strided((2, 1, 4, 4), (16, 1, 4, 1)).copy_(want)
    got = again(want)
    assert got.stride() == want.stride()
    source = torch.randn(2, 1, 4, 4)
    assert laid_out(source, layout_of(want)).data_ptr() == source.data_ptr()  # nothing is copied


def test_broadcast_axes_are_broadcast_again() -> None:
    """A result that takes one row of memory in PyTorch would take thousands."""
    want = torch.arange(3.0).view(1, 3).expand(1000, 3)
    assert again(want).stride() == (0, 1)
    assert again(want).untyped_storage().nbytes() == 12
    assert torch.equal(again(want), want)


def test_gaps_are_closed_in_results_and_kept_for_ops() -> None:
    """A copy of each sliced result would be a kernel more, and nobody reads what lies between."""
    want = torch.arange(24.0).view(4, 6).t()[:, ::2]
    assert again(want).stride() == (1, 6)
    exact = restrided(want.contiguous(), want.stride())
    assert exact.stride() == want.stride() and torch.equal(exact, want)


def test_looks_begin_where_memory_does() -> None:
    """An offset counts from the start of memory, which a part of a tensor does not lie at."""
    part = torch.arange(6.0)[2:]
    assert restrided(part, (1,)).storage_offset() == 2
    moved = restrided(part, (1,), from_start=True)
    assert moved.storage_offset() == 0 and torch.equal(moved, part)


def test_promise_survives_rewrites() -> None:
    """A copy that a rewrite drops would change what a kernel of the user's reads."""

    def look(x: torch.Tensor) -> torch.Tensor:
        rows = (x * 2).t().contiguous().neg()
        return torch.as_strided(rows, (2, 2), (1, 2))

    program = program_of(look, torch.arange(6.0).view(2, 3))
    simplify(program)
    (node,) = program.graph.find_nodes(op="call_function", target=aten.as_strided.default)
    assert promised(node) == ((2, 1),)


def test_most_ops_read_values_alone() -> None:
    """To lay out the arguments of every op would cost a copy at most ends of an engine."""
    assert not reads_memory(aten.sort.default)
    assert not reads_memory(torch.ops.singlecard.attention.default)
    assert reads_memory(aten.mkldnn_rnn_layer.default)
    assert reads_memory(torch.ops.higher_order.triton_kernel_wrapper_functional)
