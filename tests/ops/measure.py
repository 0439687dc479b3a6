"""What became of an op: all its samples, type by type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.ops.harness import EAGER, LOWERED, RAISED, RANDOM, WRONG, Outcome, run_call
from tests.ops.samples import samples_of

PARTLY = "partly"


@dataclass(frozen=True)
class Measured:
    """The outcomes of an op's samples in one type."""

    outcomes: tuple[Outcome, ...]

    @property
    def state(self) -> str:
        """``lowered`` where all samples are, ``partly`` or ``eager``; bad states win."""
        states = [outcome.state for outcome in self.outcomes]
        for bad in (WRONG, RAISED):
            if bad in states:
                return bad
        if EAGER in states:
            return PARTLY if LOWERED in states else EAGER
        return LOWERED if LOWERED in states else next(iter(states), RANDOM)

    @property
    def reason(self) -> str:
        """The most frequent reason among the samples that decide the state."""
        deciding = EAGER if self.state == PARTLY else self.state
        reasons = Counter(item.reason for item in self.outcomes if item.state == deciding)
        return reasons.most_common(1)[0][0] if reasons else ""


def function_of(op: Any) -> Callable[..., Any]:
    """Return what an op calls; attention without the wrapper that hides its name."""
    if op.name == "nn.functional.scaled_dot_product_attention":
        return torch.nn.functional.scaled_dot_product_attention
    return picked(op.op, FREE_INDICES[op.name]) if op.name in FREE_INDICES else op.op


#: Of equal elements PyTorch promises none in particular: what stands at an index must be right. By
#: name, the place of the axis among the arguments behind the first.
FREE_INDICES = {"topk": 1, "kthvalue": 1, "sort": 0, "argsort": 0, "mode": 0}


def picked(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Return a function that gives, in place of indices, the elements they point to."""

    def values_at_indices(x: torch.Tensor, *args: Any, **named: Any) -> Any:
        found = function(x, *args, **named)
        if named.get("stable") or not x.ndim:
            return found
        dim = args[place] if len(args) > place else named.get("dim", -1)
        indices = found if isinstance(found, torch.Tensor) else found[1]
        places = indices if indices.ndim == x.ndim else indices.unsqueeze(dim)
        chosen = x.gather(dim, places)
        return chosen if isinstance(found, torch.Tensor) else (found[0], chosen)

    return values_at_indices


def measure(op: Any, dtype: torch.dtype, *, build: bool = True) -> Measured:
    """Run the samples of an op in one type; ``build`` builds the first lowered one too."""
    function = function_of(op)
    outcomes = []
    for args, kwargs in samples_of(op, dtype):
        outcome = run_call(function, args, kwargs)
        if outcome.state == LOWERED and build:
            outcome, build = run_call(function, args, kwargs, build=True), False
        outcomes.append(outcome)
    return Measured(tuple(outcomes))
