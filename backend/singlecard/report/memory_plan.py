"""Will a model fit on a card, and at which price? Computed from plans that are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from singlecard.checking import names_from, shown
from singlecard.engine.cards import Card
from singlecard.errors import BuildError, OptionError, TargetError
from singlecard.network.building import Progress
from singlecard.options import QUANTIZED, Options, types_of
from singlecard.report.arguments import arguments_of
from singlecard.report.card_memory import memory_from, memory_of_card
from singlecard.report.doors import Entrance, enter
from singlecard.report.footprint import Footprint, footprint_of
from singlecard.report.kv_cache import config_cache_bytes
from singlecard.report.memory_rows import MemoryPlan, PlanRow
from singlecard.report.origin import first_line
from singlecard.report.sized import Sizes, sized, sizes_of
from singlecard.targets import check_types

#: Best answers first: in this order precisions are recommended.
PRECISIONS = ("fp16", "int8-weight", "int4-weight")

#: Batches that are planned for beside that of the examples, where the caller names none.
BATCHES = (1, 8)

#: Shares of the weights that stay on the card, for plans that do not fit with all of them.
SHARES = (0.75, 0.5, 0.25)

#: An assumption: what the CUDA context, its kernels and PyTorch's own share of the card take.
RESERVE = 2**29


def plan_memory(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    card: str | int | Card,
    precisions: Sequence[str] = PRECISIONS,
    dynamic_shapes: Any = None,
    batches: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    reserve: str | int = RESERVE,
    options: Mapping[str, Any] | Options | None = None,
    progress: Progress | None = None,
) -> MemoryPlan:
    """Tell which precisions, batches and lengths fit on a card, without one.

    The plan of each precision, batch and length is really built, and read; only its sizes are kept.

    Args:
        module: a model, or any function of tensors.
        args: example arguments; they are copied, and not changed.
        kwargs: example keyword arguments.
        card: its memory, such as ``"12GiB"`` or bytes, or a card's name, such as ``"RTX 4070"``,
            whose type engines are then for, unless ``options`` names targets.
        precisions: best answers first. ``"int8"`` and ``"fp8"`` need ``calibration``.
        dynamic_shapes: axes that vary, as for `verify`: plans are then of the whole range.
        batches: extents of axis 0 of the inputs. None: that of the examples, 1 and 8; the first
            alone where ``dynamic_shapes`` is given.
        lengths: places of the model's cache, or else tokens. None: that of the examples.
        reserve: memory that is left to CUDA and PyTorch, half a GiB where it is not given.
        options: see `singlecard.Options`; ``precision`` and ``memory_budget`` are not looked at.
        progress: called with what is done, the plans that are known, and their number.

    Raises:
        OptionError: the card, a precision, a size or an option is not valid.
        SinglecardError: the model cannot be compiled at all.

    Example:
        >>> import torch, singlecard
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> plan = singlecard.plan_memory(model, (torch.ones(2, 8),), card="12GiB", batches=[2])
        >>> plan.recommended[0].precision
        'fp16'
    """
    name, memory, target = memory_of_card(card)
    kept = memory_from("reserve", reserve)
    if isinstance(precisions, str):
        precisions = names_from("precisions", precisions)
    if not precisions:
        raise OptionError(f"no precision to plan for: name some, such as {', '.join(PRECISIONS)}")
    chosen = _options_of(options, precisions, target)
    call = arguments_of(module, args, kwargs)
    work = _Work(module, call.args, call.kwargs, dynamic_shapes, memory, kept)
    wanted = list(_wanted(work, batches, lengths))
    if dynamic_shapes is None:
        work.entrance(chosen[0], sizes_of(call.args, call.kwargs))
    else:  # before any is built: each size must lie in its range
        for sizes in wanted:
            work.entrance(chosen[0], sizes)
    rows: list[PlanRow] = []
    for place, (options_, sizes) in enumerate((o, s) for o in chosen for s in wanted):
        if progress is not None:
            progress("plans", place, len(chosen) * len(wanted))
        rows += work.rows(options_, sizes)
    if progress is not None:
        progress("plans", len(chosen) * len(wanted), len(chosen) * len(wanted))
    rows.sort(key=lambda row: (row.batch or 0, row.length or 0))
    named = getattr(module, "__name__", type(module).__name__)
    return MemoryPlan(named, name, memory, kept, work.cache, tuple(_recommend(rows)))


#: Precisions that take a calibration table.
_CALIBRATED = ("fp16", *QUANTIZED)

#: Options that a plan goes through by itself.
_FOUND_OUT = ("precision", "memory_budget")


@dataclass
class _Work:
    """A model, the card, and what is found out on the way."""

    module: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    card_bytes: int
    reserve_bytes: int
    cache: str = ""

    def rows(self, options: Options, sizes: Sizes) -> Iterator[PlanRow]:
        """Give the row with all weights on the card, and those with fewer where it does not fit."""
        whole = self._row(options, sizes, 1.0)
        yield whole
        if whole.fits is not False or whole.problem:
            return
        if whole.least_bytes is None or whole.least_bytes > self.card_bytes:
            return
        streamed = self._row(dataclasses.replace(options, memory_budget=0), sizes, SHARES[0])
        for share in SHARES:
            yield dataclasses.replace(streamed, share=share)

    def _row(self, options: Options, sizes: Sizes, share: float) -> PlanRow:
        found, cache, problem = None, None, ""
        try:
            check_types(types_of(options.precision), options.targets or ())
            found = self._footprint(options, sizes)
            cache = self._cache_bytes(found, sizes)
            if not found.plans:
                problem = "no part of the model can become an engine"
        except (BuildError, TargetError, _NotTaken) as error:
            problem = str(error)
        return PlanRow(
            options.precision,
            sizes.batch,
            sizes.length,
            share,
            found,
            cache,
            self.card_bytes,
            self.reserve_bytes,
            problem,
        )

    def _footprint(self, options: Options, sizes: Sizes) -> Footprint:
        try:
            return footprint_of(self.entrance(options, sizes))
        except (BuildError, OptionError):
            raise
        except Exception as error:
            if sizes == sizes_of(self.args, self.kwargs):
                raise
            raise _NotTaken(f"{_named(sizes)}: {self._reason(error, sizes)}") from error

    def entrance(self, options: Options, sizes: Sizes) -> Entrance:
        """Return the model with its arguments in these sizes.

        Raises:
            OptionError: an argument or a range is not valid, or a size lies outside of its range.
        """
        args, kwargs = sized(self.module, self.args, self.kwargs, sizes)
        return enter(self.module, args, kwargs, self.dynamic_shapes, options)

    def _reason(self, error: Exception, sizes: Sizes) -> str:
        """Return why a size has no plan: in the model's own words, where it refuses the size."""
        try:
            args, kwargs = sized(self.module, self.args, self.kwargs, sizes)
            with torch.no_grad():
                self.module(*args, **kwargs)
        except Exception as own:
            return f"the model does not take it ({type(own).__name__}: {first_line(own)})"
        return f"it cannot be compiled ({type(error).__name__}: {first_line(error)})"

    def _cache_bytes(self, found: Footprint, sizes: Sizes) -> int | None:
        if found.cache_shapes:
            self.cache = "inputs"
            return found.cache_bytes
        if sizes.batch is None or sizes.length is None:
            return None
        size = config_cache_bytes(self.module, sizes.batch, sizes.length)
        self.cache = self.cache or ("" if size is None else "config")
        return size


class _NotTaken(Exception):
    """A model refuses a size that is not its examples'."""


def _named(sizes: Sizes) -> str:
    length = "" if sizes.length is None else f", length {sizes.length}"
    return f"batch {sizes.batch}{length}"


def _wanted(
    work: _Work, batches: Sequence[int] | None, lengths: Sequence[int] | None
) -> Iterator[Sizes]:
    own = sizes_of(work.args, work.kwargs)
    if batches is None and own.batch is not None and work.dynamic_shapes is None:
        batches = sorted({own.batch, *BATCHES})
    _check_sizes("batches", batches)
    _check_sizes("lengths", lengths)
    rows: Sequence[int | None] = batches or [own.batch]
    columns: Sequence[int | None] = lengths or [own.length]
    for batch in dict.fromkeys(rows):
        for length in dict.fromkeys(columns):
            yield Sizes(batch, length, own.cached)


def _check_sizes(name: str, sizes: Sequence[int] | None) -> None:
    if sizes is not None and (isinstance(sizes, str) or not isinstance(sizes, Sequence)):
        raise OptionError(f"{name}: got {shown(sizes)}, it takes a list of integers >= 1")
    for size in sizes or ():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"{name}: got {shown(size)}, it takes integers >= 1")


def _recommend(rows: Sequence[PlanRow]) -> Iterator[PlanRow]:
    """Mark for each batch and length the first that fits whole, else the least streaming."""
    best: dict[tuple[Any, Any], PlanRow] = {}
    for row in rows:
        if row.fits:
            size = row.batch, row.length
            if size not in best or row.streamed_bytes < best[size].streamed_bytes:
                best[size] = row
    taken = {id(row) for row in best.values()}
    return (dataclasses.replace(row, recommended=id(row) in taken) for row in rows)


def _options_of(
    given: Mapping[str, Any] | Options | None, precisions: Sequence[str], target: str | None
) -> list[Options]:
    """Return the options of each precision; a calibration table goes to what takes one."""
    values = dict(vars(given)) if isinstance(given, Options) else dict(given or {})
    values = {key: value for key, value in values.items() if key not in _FOUND_OUT}
    if values.get("targets") is None and target is not None:
        values["targets"] = (target,)
    table = values.pop("calibration", None)
    used = any(precision in _CALIBRATED for precision in precisions)
    return [
        Options.parse(
            values
            | {
                "precision": precision,
                "calibration": table if precision in _CALIBRATED or not used else None,
            }
        )
        for precision in dict.fromkeys(precisions)
    ]
