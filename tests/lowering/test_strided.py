"""Views of a tensor's memory."""

from __future__ import annotations

import torch

from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.session import Session
from tests.lowering.check import check


def test_overlapping_windows() -> None:
    """Longformer and older audio models cut windows by strides."""
    check(lambda x: x.as_strided((3, 4), (2, 1), 1) * 2, torch.arange(12.0).view(3, 4), build=True)
    # Of a permuted tensor the strides name places in memory, not in its order of axes.
    check(lambda x: (x * 2).mT.as_strided((5, 4), (2, 1)), torch.arange(12.0).view(3, 4))


def test_writes_by_strides() -> None:
    """The same places written to."""
    x, part = torch.zeros(3, 4), torch.rand(2, 2)
    check(lambda x, p: torch.as_strided_scatter(x, p, (2, 2), (5, 2), 1), x, part)


def test_offsets_count_from_the_start_of_the_memory() -> None:
    """A slice that an engine answers has memory of its own: other elements stand there."""
    x = torch.arange(10.0)
    check(lambda x: (x * 2)[2:].as_strided((2, 2), (1, 2), 0) + 1, x, build=True)
    check(lambda x: (x * 2)[2:].as_strided((2, 2), (1, 2)) + 1, x)
    check(lambda x: (x * 2).view(2, 5).mT[1:].as_strided((2, 2), (1, 2), 3) + 1, x)
    check(lambda x: (x * 2).split(5)[1].as_strided((2, 2), (1, 2), 1) + 1, x)


@torch.no_grad()
def test_memory_beyond_the_tensor_stays_in_pytorch() -> None:
    """An engine has no memory behind its tensors: reading there must not be attempted."""
    session = Session(Options(min_block_size=1), "reference", build=False)

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 4)[1].as_strided((2, 2), (1, 2), 0) + 1

    compiled = torch.compile(model, backend=lambda *args: compile_in(session, *args))
    part = torch.arange(12.0)[4:]
    assert torch.equal(compiled(part), model(part))
    ((item,),) = (graph.fallback for graph in session.graphs)
    assert "fills its memory" in item.reason and "[8]" in item.reason
