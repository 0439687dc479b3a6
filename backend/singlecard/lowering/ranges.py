"""The smallest, usual and largest values of all sizes of a graph, chosen together.

TensorRT checks a network at the three ends of its profile. So each of them must be sizes that the
model can meet at once: heights that are even, windows that divide, positions that a table has.
PyTorch knows what the model asks, as guards. Where they leave each size a range of its own, ranges
do not depend on the example, so that any first call finds the same engine. Where the sizes at hand
would be outside of that, ranges go from them as far as the guards allow.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils._sympy.printers import PythonPrinter

from singlecard.capture.spans import Triple
from singlecard.errors import LoweringError
from singlecard.warning import warn_once

#: Largest extent of a dynamic dimension whose range PyTorch does not bound.
UNBOUNDED = 4096

#: How many values of each size are tried around the wanted one: few at first.
_NEAR = (1, 4, 16, 64)
#: Combinations of them that are tried, at most.
_TRIALS = 512
#: Steps on the way from one end of all ranges to the other.
_STEPS = 48
#: Turns in which sizes go from there to where they are wanted.
_TURNS = 64
#: Values of one size that are looked through for one that the model takes.
_SCAN = 1 << 14

#: A value for each size.
Point = tuple[int, ...]


def choose_ranges(
    symbols: Iterable[sympy.Symbol],
    environment: Any,
    spans: Mapping[sympy.Symbol, Triple],
    limits: Mapping[sympy.Symbol, int],
    extents: Collection[sympy.Symbol] | None = None,
) -> dict[sympy.Symbol, Triple]:
    """Return smallest, usual and largest values of symbols; each of the three meets all guards.

    Args:
        symbols: of which ranges are wanted; those that they hang together with come with them.
        environment: PyTorch's ``ShapeEnv``.
        spans: the ranges that the user gave. They are narrowed to what the guards allow, which is
            warned of.
        limits: largest values of symbols whose end PyTorch does not know.
        extents: symbols that are extents of tensors, at least 1; others are numbers of any sign.
            None: all are.

    Raises:
        LoweringError: no sizes within a range that the user gave meet the guards.
    """
    found: dict[sympy.Symbol, Triple] = {}
    hints = _hints(environment)
    guards = [expr for expr in guards_of(environment) if not _is_of_tracing(expr, spans)]
    for together in _components(symbols, guards):
        wanted = [
            _wanted(
                symbol,
                environment,
                spans,
                limits,
                hints,
                extents is None or symbol in extents,
            )
            for symbol in together
        ]
        hint = tuple(hints[symbol] for symbol in together if symbol in hints)
        constraints = _placed(guards, together)
        asked = tuple(spans[symbol][1] if symbol in spans else None for symbol in together)
        known = hint if len(hint) == len(together) else None
        chosen = _choose(constraints, wanted, asked, known)
        if chosen is None:
            guarded = ", ".join(map(str, dict.fromkeys(item.expr for item in constraints)))
            raise LoweringError(
                f"no sizes from {[low for low, *_ in wanted]} to {[high for *_, high in wanted]} "
                f"meet what the model asks of {together}: {guarded}. Give ranges that have some"
            )
        for symbol, before, after in zip(together, wanted, chosen, strict=True):
            if symbol in spans and before != after and (1, *after[1:]) != (before[0], *after[1:]):
                _tell(environment, symbol, before, after, constraints)
            found[symbol] = after
    return found


def ranges_around(
    ranges: Mapping[sympy.Symbol, Triple], environment: Any, share: float
) -> dict[sympy.Symbol, Triple] | None:
    """Return narrower ranges, around the sizes of the example.

    Args:
        ranges: which TensorRT refused.
        environment: PyTorch's ``ShapeEnv``.
        share: how much is left of the ways from the example's sizes to the ends; 0: nothing.

    Returns:
        None where no example is known, or it is not in the ranges.
    """
    hints, guards = _hints(environment), guards_of(environment)
    found: dict[sympy.Symbol, Triple] = {}
    for together in _components(ranges, guards):
        lows, _, highs = zip(*(ranges[symbol] for symbol in together), strict=True)
        hint = tuple(
            hints.get(symbol, high + 1) for symbol, high in zip(together, highs, strict=True)
        )
        if not _is_in(hint, lows, highs):
            return None
        constraints = _placed(guards, together)
        low, high = (
            _Search(constraints, *_box(hint, end)).along(_between(hint, end, share), hint) or hint
            for end in (lows, highs)
        )
        found.update(zip(together, zip(low, hint, high, strict=True), strict=True))
    return found


def guards_of(environment: Any) -> list[sympy.Basic]:
    """Return what PyTorch found that a model asks of its sizes.

    PyTorch's choice among its kernels for a convolution is no matter of the model's: it differs
    between CPUs and cards, and would cut the range of an image's sizes in two on the former.
    """
    found: dict[sympy.Basic, None] = {}
    asserted = itertools.chain.from_iterable(environment.deferred_runtime_asserts.values())
    for guard in (*environment.guards, *asserted):
        if not _chooses_kernel(guard):
            found[environment.replace(guard.expr)] = None
    for symbol in environment.replacements:  # what stands for it has its range
        bounds, stands = environment.var_to_range.get(symbol), environment.replace(symbol)
        if bounds is not None and bounds.lower.is_Integer:
            found[sympy.Ge(stands, bounds.lower)] = None
        if bounds is not None and bounds.upper.is_Integer:
            found[sympy.Le(stands, bounds.upper)] = None
    return [expr for expr in found if expr.free_symbols]


def _is_of_tracing(expr: sympy.Basic, spans: Mapping[sympy.Symbol, Triple]) -> bool:
    """Tell whether a guard only says that PyTorch traces a size of 1 apart.

    Where the user's range begins at 1 all the same, one program serves 1 as well.
    """
    if len(expr.free_symbols) != 1 or not isinstance(expr, (sympy.Ne, sympy.Ge, sympy.Gt)):
        return False
    (symbol,) = expr.free_symbols
    if symbol not in spans or spans[symbol][0] != 1:
        return False
    holds = [expr.xreplace({symbol: sympy.Integer(size)}) == sympy.true for size in (1, 2)]
    return holds == [False, True]


def _chooses_kernel(guard: Any) -> bool:
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    name, file = getattr(place, "name", ""), str(getattr(place, "filename", ""))
    compares = isinstance(guard.expr, (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge))
    return compares and name == "conv" and file.endswith("fake_impls.py")


def _hints(environment: Any) -> dict[sympy.Symbol, int]:
    known = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
    return {symbol: int(value) for symbol, value in known.items() if value == int(value)}


def _components(
    symbols: Iterable[sympy.Symbol], guards: Sequence[sympy.Basic]
) -> Iterator[list[sympy.Symbol]]:
    """Yield the symbols that hang together by guards, always in one order."""
    left = set(symbols)
    while left:
        together = {min(left, key=str)}
        while True:
            linked = [expr.free_symbols for expr in guards if expr.free_symbols & together]
            wider = together.union(*linked)
            if wider == together:
                break
            together = wider
        left -= together
        yield sorted(together, key=str)


def _wanted(
    symbol: sympy.Symbol,
    environment: Any,
    spans: Mapping[sympy.Symbol, Triple],
    limits: Mapping[sympy.Symbol, int],
    hints: Mapping[sympy.Symbol, int],
    is_extent: bool,
) -> Triple:
    """Return the range that a symbol would have alone."""
    limit = limits.get(symbol, UNBOUNDED)
    if symbol in spans:  # what the user gave stands, but for what fits into no cache
        low, usual, high = spans[symbol]
        limit = max(low, limits.get(symbol, high))
        return low, min(usual, limit), min(high, limit)
    bounds, hint = environment.bound_sympy(symbol), hints.get(symbol, 0)
    low = int(bounds.lower) if bounds.lower > -limit else -limit
    while low > hint:
        low *= 2
    high = int(bounds.upper) if bounds.upper < limit else limit
    while high < hint:
        high *= 2
    if is_extent:
        low = min(max(1, low), high)
    return low, min(max(_middle(low, high), low), high), high


def _middle(low: int, high: int) -> int:
    return round(math.sqrt(low * high)) if low > 0 else (low + high) // 2


def _between(start: Point, end: Point, share: float) -> Point:
    """Return what lies on the way from one point to another: by ratios, where these mean much."""
    return tuple(
        round(a * (b / a) ** share) if a > 0 and b > 0 else round(a + (b - a) * share)
        for a, b in zip(start, end, strict=True)
    )


def _box(a: Point, b: Point) -> tuple[Point, Point]:
    return tuple(map(min, a, b)), tuple(map(max, a, b))


def _is_in(point: Point, lows: Point, highs: Point) -> bool:
    return all(low <= at <= high for low, at, high in zip(lows, point, highs, strict=True))


@dataclass(frozen=True)
class _Constraint:
    """What a model asks of sizes, which are given by their places."""

    expr: sympy.Basic
    places: tuple[int, ...]
    holds: Callable[..., bool]

    def is_met(self, point: Mapping[int, int] | Sequence[int]) -> bool:
        try:
            return bool(self.holds(*[point[place] for place in self.places]))
        except (ArithmeticError, ValueError):
            return False


def _placed(guards: Sequence[sympy.Basic], symbols: Sequence[sympy.Symbol]) -> list[_Constraint]:
    places = {symbol: place for place, symbol in enumerate(symbols)}
    found = []
    for expr in guards:
        names = sorted(expr.free_symbols, key=str)
        if names[0] in places:
            text = f"lambda {', '.join(map(str, names))}: {PythonPrinter().doprint(expr)}"
            # As PyTorch does itself with its guards.
            holds = eval(text, {"math": math, "torch": torch})
            found.append(_Constraint(expr, tuple(places[name] for name in names), holds))
    return found


def _choose(
    constraints: Sequence[_Constraint],
    wanted: Sequence[Triple],
    asked: Sequence[int | None],
    hint: Point | None,
) -> list[Triple] | None:
    """Return a range for each size; None where none was found.

    Args:
        constraints: what they must meet together.
        wanted: the range that each would have alone.
        asked: usual sizes that the user gave.
        hint: the sizes of the example.
    """
    lows, _, highs = zip(*wanted, strict=True)
    whole = _Search(constraints, lows, highs)
    smallest, largest = whole.along(lows, highs), whole.along(highs, lows)
    if hint is not None and _is_in(hint, lows, highs) and whole.are_met(hint):
        if smallest is None or largest is None or not _is_in(hint, smallest, largest):
            smallest = _Search(constraints, *_box(lows, hint)).along(lows, hint)
            largest = _Search(constraints, *_box(hint, highs)).along(highs, hint)
    if smallest is None or largest is None or not _is_in(smallest, smallest, largest):
        return None
    inside = _Search(constraints, smallest, largest)
    middle = tuple(
        min(max(_middle(low, high) if usual is None else usual, low), high)
        for low, usual, high in zip(smallest, asked, largest, strict=True)
    )
    most_likely = inside.along(middle, smallest) or smallest
    return list(zip(smallest, most_likely, largest, strict=True))


class _Search:
    """Looks for sizes within ranges that meet all constraints."""

    def __init__(self, constraints: Sequence[_Constraint], lows: Point, highs: Point) -> None:
        self.constraints, self.lows, self.highs = constraints, lows, highs
        alone: list[list[_Constraint]] = [[] for _ in lows]
        #: Those that can be asked once the size at a place is known, and those before it.
        self._due: list[list[_Constraint]] = [[] for _ in lows]
        for item in constraints:
            self._due[max(item.places)].append(item)
            if len(item.places) == 1:
                alone[item.places[0]].append(item)
        self._takes = [functools.cache(functools.partial(_takes, items)) for items in alone]

    def are_met(self, point: Sequence[int]) -> bool:
        return all(item.is_met(point) for item in self.constraints)

    def along(self, start: Point, end: Point) -> Point | None:
        """Return sizes that meet all constraints, on the way between two points, near the start."""
        if self.are_met(start):
            return start
        for count in _NEAR:
            for step in range(_STEPS + 1):
                found = self._near(_between(start, end, step / _STEPS), count)
                if found is not None:
                    closer = self._closer(found, start, end, step, count) if step else found
                    return self._outward(closer, start)
        return None

    def _closer(self, found: Point, start: Point, end: Point, step: int, count: int) -> Point:
        """Look again between the step that had some and the one before."""
        near, far = (step - 1) / _STEPS, step / _STEPS
        for _ in range(8):
            middle = (near + far) / 2
            better = self._near(_between(start, end, middle), count)
            if better is None:
                near = middle
            else:
                found, far = better, middle
        return found

    def _outward(self, point: Point, goal: Point) -> Point:
        """Move sizes towards their goals, in turns and as far as constraints allow.

        In turns, because a product that has an end leaves less to one the more another takes.
        """
        moved = list(point)
        for left in range(_TURNS, 0, -1):
            seen = _SCAN if left == 1 else _NEAR[-1]
            wishes = list(enumerate(_between(tuple(moved), goal, 1 / left)))
            for place, wanted in wishes if left % 2 else reversed(wishes):
                here = moved[place]
                step = 1 if wanted < here else -1
                for value in itertools.islice(range(wanted, here, step), seen):
                    moved[place] = value
                    if self._takes[place](value) and self.are_met(moved):
                        break
                else:
                    moved[place] = here
        return tuple(moved)

    def _near(self, target: Point, count: int) -> Point | None:
        """Return sizes that meet all constraints, of so many of the nearest for each size."""
        self._trials = _TRIALS
        values = [list(self._values(place, at, count)) for place, at in enumerate(target)]
        return self._complete([], values)

    def _values(self, place: int, at: int, count: int) -> Iterator[int]:
        """Yield the values of one size that it can take for itself, the nearest first."""
        low, high = self.lows[place], self.highs[place]
        at = min(max(at, low), high)
        both = itertools.zip_longest(
            itertools.islice(range(at, high + 1), _SCAN),
            itertools.islice(range(at - 1, low - 1, -1), _SCAN),
        )
        takes = self._takes[place]
        each = (value for pair in both for value in pair if value is not None and takes(value))
        return itertools.islice(each, count)

    def _complete(self, point: list[int], values: Sequence[Sequence[int]]) -> Point | None:
        place = len(point)
        if place == len(values):
            return tuple(point)
        for value in values[place]:
            self._trials -= 1
            if self._trials < 0:
                return None
            point.append(value)
            if all(item.is_met(point) for item in self._due[place]):
                found = self._complete(point, values)
                if found is not None:
                    return found
            point.pop()
        return None


def _takes(constraints: Sequence[_Constraint], value: int) -> bool:
    return all(bool(item.is_met({item.places[0]: value})) for item in constraints)


def _tell(
    environment: Any,
    symbol: sympy.Symbol,
    before: Triple,
    after: Triple,
    constraints: Sequence[_Constraint],
) -> None:
    """Say that a range of the user's was narrowed."""
    sources = getattr(environment, "var_to_sources", {}).get(symbol) or [symbol]
    asked = [str(item.expr) for item in constraints if symbol in item.expr.free_symbols]
    name = getattr(sources[0], "name", sources[0])
    warn_once(
        f"option profiles: {name() if callable(name) else name} was given "
        f"{before[0]} to {before[2]} (usually {before[1]}), but the model asks for "
        f"{', '.join(asked[:3])}{', ...' if len(asked) > 3 else ''}: its engine takes "
        f"{after[0]} to {after[2]} (usually {after[1]})"
    )
