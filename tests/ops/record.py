"""The record of what is lowered, `lowered.json`: by type, the ops lowered in all samples."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.ops.harness import LOWERED
from tests.ops.measure import Measured

RECORD = Path(__file__).with_name("lowered.json")

#: Measured by op, then by type.
Table = Mapping[str, Mapping[torch.dtype, Measured]]


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def recorded() -> Mapping[str, frozenset[str]]:
    """Return the recorded ops by type."""
    content = json.loads(RECORD.read_text())
    return {name: frozenset(ops) for name, ops in content.items()}


def is_recorded(name: str, dtype: torch.dtype) -> bool:
    return name in recorded().get(type_name(dtype), frozenset())


def write_record(table: Table) -> None:
    """Replace the record by what was measured."""
    content: dict[str, list[str]] = {}
    for name, row in sorted(table.items()):
        for dtype, measured in row.items():
            if measured.state == LOWERED:
                content.setdefault(type_name(dtype), []).append(name)
    RECORD.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
