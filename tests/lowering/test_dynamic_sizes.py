"""Ops on tensors whose extents change from call to call: one network, right for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import singlecard
from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.session import Session
from tests.lowering.check import check_sizes

Shapes = Sequence[Sequence[int]]

_SEQUENCES: tuple[Shapes, ...] = (((3, 6, 4),), ((5, 9, 4),), ((8, 16, 4),), ((4, 5, 4),))
_IMAGES: tuple[Shapes, ...] = (((3, 2, 8, 8),), ((2, 2, 12, 9),), ((4, 2, 7, 16),))


def _parts(x: torch.Tensor) -> Any:
    return x[:, 1:] * 2, x[:, :-1] * 2, x[:, -3:] * 2, x[:, -1] * 2, x[:, 1:-2] * 2


def _written(x: torch.Tensor) -> Any:
    y = x * 2
    y[:, 1:3] = 7
    y[:, -1] = x[:, 0]
    return y


def _scaled_by_ratios(x: torch.Tensor) -> Any:
    padded = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
    return padded * max(padded.shape[1] / x.shape[0], 1.0) + padded.shape[1] / 7


def _windows(x: torch.Tensor) -> Any:
    """Windows of three that overlap, by strides."""
    x = (x * 2).contiguous()
    whole, row, one = x.stride()
    return x.as_strided((x.shape[0], x.shape[1] - 2, 3, x.shape[2]), (whole, row, row, one)) + 1


def _put_back(x: torch.Tensor) -> Any:
    count = torch.arange(x.shape[0])
    order = (count + 2) % x.shape[0]
    places = torch.empty_like(order)
    places[order] = count
    return (x * 2)[order][places] + 1


_ON_SEQUENCES: dict[str, Callable[..., Any]] = {
    "parts": _parts,
    "pieces": lambda x: [piece * 2 for piece in (x * 2).split([2, x.shape[1] - 2], 1)],
    "views": lambda x: (x * 2).view(x.shape[0] * x.shape[1], 4).view(x.shape[0], -1, 2, 2) + 1,
    "heads": lambda x: (x * 2).unflatten(-1, (2, 2)).transpose(1, 2).flatten(0, 1) + 1,
    "moved": lambda x: (x.flip(1), x.roll(2, 1), x.roll((1, -3), (0, 1))),
    "repeated": lambda x: (x.repeat(1, 2, 1), x.repeat_interleave(2, 1)),
    "joined": lambda x: (torch.cat([x, x[:, 1:]], 1), torch.stack([x, x], 1)),
    "padded": lambda x: (F.pad(x, (0, 0, 1, 2)), F.pad(x, (1, 2), "reflect"), F.pad(x, (0, -1))),
    "triangle": lambda x: ((x @ x.mT).tril(1), (x @ x.mT).triu()),
    "windows": lambda x: x.unfold(2, 3, 1) * 2,
    "windows of an axis that varies": lambda x: (x.unfold(1, 3, 2) * 2, x.unfold(1, 2, 2) + 1),
    "padded around": lambda x: F.pad(x, (1, 2), "circular") + F.pad(x * 2, (1, 2), "circular"),
    "repeated by sizes": lambda x: x.repeat(2, x.shape[0], 1, 3) * 2,
    "indices": lambda x: x[:, torch.tensor([0, -1])] + x[torch.arange(x.shape[0])[:, None], -1:],
    "written": _written,
    "normalized": lambda x: (F.layer_norm(x, (4,)), F.group_norm(x.mT.contiguous(), 2)),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "picked": lambda x: x.topk(2, 1)[0],
    "counted": lambda x: torch.histc(x, 5, -1, 1) * 2,
    "windows by strides": _windows,
    "put back as experts do": _put_back,
    "scaled by ratios of sizes, as relative positions are": _scaled_by_ratios,
}

_ON_IMAGES: dict[str, Callable[..., Any]] = {
    "pooled": lambda x: (F.max_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.adaptive_avg_pool2d(x, 1)),
    "doubled": lambda x: (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, scale_factor=2.0, mode="bilinear"),
        F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    ),
    "to one size": lambda x: F.interpolate(x, size=(9, 9), mode="bilinear", align_corners=True),
    "to the size of another": lambda x: F.interpolate(
        F.avg_pool2d(x, 2), size=x.shape[-2:], mode="bilinear"
    ),
    "convolved": lambda x: (
        F.conv2d(x, torch.ones(3, 2, 3, 3), padding=1),
        F.conv_transpose2d(x, torch.ones(2, 3, 2, 2), stride=2),
    ),
}


def _degrees(x: torch.Tensor, messages: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    counts = torch.zeros(x.shape[0]).scatter_add(0, rows, torch.ones(rows.shape[0]))
    sums = x.new_zeros(x.shape[0], 6).index_add(0, rows, messages)
    return sums / counts.clamp(min=1)[:, None]


def _reduced(x: torch.Tensor, messages: torch.Tensor, rows: torch.Tensor, how: str) -> torch.Tensor:
    wide = rows[:, None].expand(-1, 6)
    nothing = x.new_zeros(x.shape[0], 6)
    return nothing.scatter_reduce(0, wide, messages, how, include_self=False)


#: How libraries for graphs combine the messages of edges at nodes.
_GATHERINGS: dict[str, Callable[..., Any]] = {
    "index_add": lambda x, m, rows: x.new_zeros(x.shape[0], 6).index_add(0, rows, m),
    "index_put": lambda x, m, rows: x.new_zeros(len(x), 6).index_put((rows,), m, accumulate=True),
    "scatter_add": lambda x, m, rows: x.new_zeros(x.shape[0], 6).scatter_add(
        0, rows[:, None].expand(-1, 6), m
    ),
    "scatter_add of places of their own": lambda x, m, rows: x.new_zeros(len(x), 6).scatter_add(
        0, (rows[:, None] + torch.arange(6)) % x.shape[0], m
    ),
    "put": lambda x, m, rows: x.new_zeros(x.shape[0], 6).put(rows, m[:, 0], accumulate=True),
    "degrees": _degrees,
    **{how: functools.partial(_reduced, how=how) for how in ("amax", "amin", "mean", "prod")},
}


@pytest.mark.parametrize("name", _GATHERINGS)
@torch.no_grad()
def test_messages_between_nodes(name: str) -> None:
    """Graph networks have other nodes and edges in every call, and sums at nodes were PyTorch's."""
    linear = torch.nn.Linear(4, 6)

    def model(x: torch.Tensor, edges: torch.Tensor) -> Any:
        return _GATHERINGS[name](x, linear(x[edges[0]]), edges[1]) * 2

    session = Session(Options.parse({"targets": "sm89", "min_block_size": 1}), "reference", True)
    compiled = torch.compile(
        model, backend=lambda *given: compile_in(session, *given), dynamic=True
    )
    for nodes, count in ((5, 9), (12, 40), (30, 3)):
        x, edges = torch.randn(nodes, 4), torch.randint(0, nodes, (2, count))
        torch.testing.assert_close(compiled(x, edges), model(x, edges), rtol=1e-4, atol=1e-5)
    (graph,) = session.graphs
    assert graph.fallback == [] and len(graph.engines) == 1


@torch.no_grad()
def test_piece_that_begins_where_a_tensor_says() -> None:
    """PyTorch reads the place on the host: the layers around it were lost to the engine."""
    linear = torch.nn.Linear(4, 4)

    def model(x: torch.Tensor, start: torch.Tensor) -> Any:
        return linear(torch.narrow(linear(x), 1, start, 2)), linear(x).narrow(0, start, 1)

    session = Session(Options.parse({"min_block_size": 1}), "reference", False)
    compiled = torch.compile(
        model, backend=lambda *given: compile_in(session, *given), dynamic=True
    )
    for length, start in ((5, 3), (9, 0), (7, -3)):
        x, place = torch.randn(3, length, 4), torch.tensor(start % 3 if start >= 0 else start)
        torch.testing.assert_close(compiled(x, place), model(x, place), rtol=1e-4, atol=1e-5)
    for graph in session.graphs:
        assert graph.fallback == [] and graph.lowered_ops == graph.ops > 0


@pytest.mark.parametrize("name", _ON_SEQUENCES)
def test_sequences(name: str) -> None:
    """A size that is baked in answers the first batch right and every other one wrong."""
    check_sizes(_ON_SEQUENCES[name], _SEQUENCES, build=name in ("parts", "causal"))


@pytest.mark.parametrize("name", _ON_IMAGES)
def test_images(name: str) -> None:
    """One engine for all image sizes of a range."""
    check_sizes(_ON_IMAGES[name], _IMAGES, build=name == "to the size of another")


def test_number_of_the_caller_is_a_size() -> None:
    """A length that the caller gives, and no tensor has, would leave the op to PyTorch."""

    def model(x: torch.Tensor, count: int) -> torch.Tensor:
        return torch.arange(count) + x.new_ones(2 * count - 1).sum()

    session = Session(Options.parse({"targets": "sm89", "min_block_size": 1}), "reference", True)
    compiled = torch.compile(
        model, backend=lambda *given: compile_in(session, *given), dynamic=True
    )
    for count in (5, 9, 2, 30):
        torch.testing.assert_close(compiled(torch.ones(3), count), model(torch.ones(3), count))
    (graph,) = session.graphs
    assert graph.fallback == [] and len(graph.engines) == 1


@torch.no_grad()
def test_keys_and_values_are_as_many(tmp_path: Path) -> None:
    """Keys and values of a cache have symbols of their own, of which PyTorch asks nothing: with the
    usual sizes apart, TensorRT refused the engine, and later calls ran in PyTorch."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> Any:
        if k.shape[2] > mask.shape[3]:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * 2

    options = {"targets": "sm89", "min_block_size": 1, "cache_dir": str(tmp_path)}
    session = Session(Options.parse(options), "reference", True)
    compiled = torch.compile(
        attend, backend=lambda *given: compile_in(session, *given), dynamic=True
    )
    before = singlecard.counters()
    for words, room, seen in ((3, 16, 7), (5, 24, 10), (2, 9, 4)):
        q, k, v = (torch.randn(2, 2, count, 8) for count in (words, room, room))
        mask = torch.zeros(2, 1, words, seen)
        torch.testing.assert_close(compiled(q, k, v, mask), attend(q, k, v, mask))
    counted = singlecard.counters() - before
    assert counted.build_failures == 0 and counted.evaluations == 3
    assert all(not graph.fallback for graph in session.graphs)
