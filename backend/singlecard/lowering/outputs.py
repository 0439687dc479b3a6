"""Conditions on which results of an op are read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, when


def used_entries(call: Call) -> list[int]:
    """Return which entries of a tuple anything reads."""
    entries: set[Any] = {
        user.args[1] for user in call.node.users if user.target is operator.getitem
    }
    return sorted(entries)


def only_used(names: str, entries: Sequence[int]) -> Condition:
    """Only ``entries`` of the results, called ``names``, are read."""
    return when(
        f"only {names} of its results {'is' if len(entries) == 1 else 'are'} used",
        lambda call: set(used_entries(call)) <= set(entries),
        lambda call: f"a use of {[entry for entry in used_entries(call) if entry not in entries]}",
    )
