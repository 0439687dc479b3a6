"""Ways to change a call so that some limit of its op is passed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

#: Numbers, texts and absences beyond what any op takes.
ODD_VALUES = (10**6, -(10**6), 100, 7, 2, 1, 0, -7, 2.5, "nonsense", None, True, False)

TYPES = (torch.bool, torch.int64, torch.int32, torch.float16, torch.float32)


@functools.cache
def _symbolic(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of a rank and type whose extents are not known."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    return mode.from_tensor(torch.empty([size + 2 for size in shape], dtype=dtype))


def _odd_shapes(rank: int) -> Iterator[tuple[int, ...]]:
    """Yield shapes of few, of many and of very large dimensions."""
    yield from ((), (1,), (6000, 2)[: max(rank, 1)], (5000,) * min(rank, 2))
    yield from ((2,) * max(rank - 1, 0), (2,) * (rank + 1), (1, 5000) + (2,) * max(rank - 2, 0))


def _changed(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield from (value.to(dtype) for dtype in TYPES)
        yield value.reshape((1,) * 9 + tuple(value.shape))
        for shape in _odd_shapes(value.ndim):
            yield torch.zeros((), dtype=value.dtype).expand(shape)
        yield _symbolic(tuple(value.shape), value.dtype)
    else:
        yield from ODD_VALUES
        yield _symbolic((3,), torch.float32).shape[0]
        yield torch.zeros(())
        if isinstance(value, (list, tuple)):
            for odd in (*ODD_VALUES, _symbolic((3,), torch.float32).shape[0]):
                yield [odd] * len(value)
            for place, item in enumerate(value):
                for other in _changed(item):
                    yield [*value[:place], other, *value[place + 1 :]]


def mutations(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield a call as it is, then with one argument changed at a time, defaults included."""
    yield args, kwargs
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for argument in target._schema.arguments:
        value = given.get(argument.name, argument.default_value)
        for other in _changed(value):
            yield (), {**given, argument.name: other}
