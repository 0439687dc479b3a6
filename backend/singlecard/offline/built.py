"""What became of one model, as plain values and for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from singlecard.report.verify import Compiled


def built_document(
    name: str, compiled: Compiled, targets: str, remarks: Sequence[str] = ()
) -> dict[str, Any]:
    """Return everything that a program may want to know of a build."""
    return {
        "model": name,
        "targets": targets,
        "ops": compiled.ops,
        "coverage": compiled.coverage,
        "fallback": [[item.op, item.reason, item.line] for item in compiled.fallback],
        "engines": [
            {
                "digest": engine.digest,
                "built": engine.built,
                "seconds": engine.seconds,
                "plan": str(engine.plan),
                "kernels": engine.report.kernel_count,
                "engine_bytes": engine.report.engine_bytes,
                "scratch_bytes": engine.report.scratch_bytes,
            }
            for engine in compiled.engines
        ],
        "timings": compiled.timings,
        "remarks": list(remarks),
    }


def built_table(
    name: str, compiled: Compiled, targets: str, remarks: Sequence[str] = ()
) -> RenderableType:
    """Return the same as tables."""
    from singlecard.report import tables
    from singlecard.report.render import fallback_table

    built = sum(engine.built for engine in compiled.engines)
    rows = [
        ("ops lowered", *tables.lowered_text(compiled.coverage, compiled.ops)),
        ("engines", *tables.engines_text(len(compiled.engines), built)),
        ("time", f"{compiled.timings['total']:.1f} s", tables.built_text(compiled.timings)),
    ]
    parts: list[RenderableType] = [tables.facts_table(name, rows)]
    if compiled.fallback:
        left_out = [(item.op, item.reason, item.line) for item in compiled.fallback]
        parts.append(fallback_table(tables.fallback_rows(left_out)))
    if compiled.engines:
        parts.append(tables.engines_table(compiled.engines, targets))
    return Group(*parts, *map(Text, remarks))
