"""Inputs to try a Program with: sizes that its guards allow, ordinary and special values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.capture.ops import FUSED_ATTENTION, attention
from singlecard.capture.program import Program
from singlecard.capture.quantized import quantized_attention
from singlecard.lowering.call import Call

#: Elements of one input, at most: larger sizes are tried on a smaller scale.
_MOST = 1 << 20

#: What a usual size is multiplied with, or made larger by, until the guards hold.
_SMALLER: tuple[Callable[[int], int], ...] = (
    lambda size: 2,
    lambda size: 3,
    lambda size: size // 2,
    lambda size: size - 1,
    lambda size: size - size % 8 - 8,
)
_LARGER: tuple[Callable[[int], int], ...] = (
    lambda size: 2 * size,
    lambda size: size + 1,
    lambda size: size + 8 - size % 8,
    lambda size: 3 * size,
)


@dataclass(frozen=True)
class Sample:
    """Inputs in the order of a Program's placeholders, and what they are called in a message."""

    name: str
    inputs: tuple[Any, ...]


def samples_of(program: Program, seed: int = 0) -> Iterator[Sample]:
    """Yield seeded inputs: ordinary ones of three sizes, and special values of the usual size.

    Special values are zeros, large and negative numbers; minus infinities in what attention adds
    to its scores, one row of it hidden altogether; masks that are true, and false, for whole rows.
    Integers stay small, for most are places.
    """
    placeholders = program.placeholders
    fakes = [node.meta["val"] for node in placeholders]
    hiding = {node for node in placeholders if _reaches_mask(node)}
    for name, sizes in _sizes_of(fakes):
        for kind in ("ordinary", "special") if name == "usual sizes" else ("ordinary",):
            generator = torch.Generator().manual_seed(seed)
            inputs = [
                _value(node.meta["val"], sizes, kind == "special", node in hiding, generator)
                for node in placeholders
            ]
            yield Sample(f"{kind} values, {name}", tuple(inputs))


def _sizes_of(fakes: Sequence[Any]) -> Iterator[tuple[str, dict[sympy.Symbol, int]]]:
    sizes = [size for fake in fakes for size in _symbolic(fake)]
    if not sizes:
        yield "usual sizes", {}
        return
    environment = sizes[0].node.shape_env
    known = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
    symbols = sorted({s for size in sizes for s in size.node.expr.free_symbols}, key=str)
    usual = {symbol: int(known[symbol]) for symbol in symbols if symbol in known}
    if len(usual) < len(symbols):
        return  # a size that only a call can tell
    yield "usual sizes", usual
    for name, changes in (("smaller sizes", _SMALLER), ("larger sizes", _LARGER)):
        for change in changes:
            tried = {symbol: change(size) for symbol, size in usual.items()}
            if tried != usual and _holds(environment, tried) and _is_small(fakes, tried):
                yield name, tried
                break


def _symbolic(fake: Any) -> list[torch.SymInt]:
    extents = fake.shape if isinstance(fake, torch.Tensor) else [fake]
    return [size for size in extents if isinstance(size, torch.SymInt)]


def _holds(environment: Any, sizes: Mapping[sympy.Symbol, int]) -> bool:
    """Tell whether sizes are in their ranges, and all that PyTorch assumed of them holds."""
    for symbol, size in sizes.items():
        bounds = environment.bound_sympy(symbol)
        if not bounds.lower <= size <= bounds.upper:
            return False
    return all(
        guard.expr.xreplace(dict(sizes)) not in (sympy.false, False) for guard in environment.guards
    )


def _is_small(fakes: Sequence[Any], sizes: Mapping[sympy.Symbol, int]) -> bool:
    shapes = [shape_with(fake.shape, sizes) for fake in fakes if isinstance(fake, torch.Tensor)]
    return all(math.prod(shape) <= _MOST for shape in shapes)


def shape_with(shape: Sequence[Any], sizes: Mapping[sympy.Symbol, int]) -> list[int]:
    return [_number(size, sizes) for size in shape]


def _number(size: Any, sizes: Mapping[sympy.Symbol, int]) -> int:
    return int(size.node.expr.xreplace(dict(sizes))) if isinstance(size, torch.SymInt) else size


def _value(
    fake: Any,
    sizes: Mapping[sympy.Symbol, int],
    special: bool,
    hiding: bool,
    generator: torch.Generator,
) -> Any:
    if not isinstance(fake, torch.Tensor):
        return _number(fake, sizes)
    shape = shape_with(fake.shape, sizes)
    if fake.dtype == torch.bool:
        value = torch.rand(shape, generator=generator) < 0.7
        return _with_first_row(value, False) if special else value
    if not (fake.dtype.is_floating_point or fake.dtype.is_complex):
        if len(shape) == 1:  # places, each once
            return torch.arange(shape[0]).to(fake.dtype)
        return torch.randint(0, 2, shape, generator=generator).to(fake.dtype)
    value = torch.randn(shape, generator=generator)
    if special:
        chance = torch.rand(shape, generator=generator)
        value = torch.where(chance < 0.2, 0.0, torch.where(chance > 0.9, 50 * value, value))
        if hiding:
            value = _with_first_row(torch.where(chance > 0.6, -torch.inf, value), -torch.inf)
    return value.to(fake.dtype)


def _with_first_row(value: torch.Tensor, number: float) -> torch.Tensor:
    if value.ndim and value.numel():
        value.view(-1, value.shape[-1])[0] = number
    return value


def _reaches_mask(node: fx.Node) -> bool:
    """Tell whether an input becomes what attention adds to its scores, or part of it."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) < 64:
        value = waiting.pop()
        for user in value.users:
            if user in seen or user.op != "call_function":
                continue
            if user.target in (attention, quantized_attention, *FUSED_ATTENTION):
                given = Call.of(user).arguments
                if value in (given.get("attn_mask"), given.get("attn_bias")):
                    return True
                continue
            seen.add(user)
            waiting.append(user)
    return False
