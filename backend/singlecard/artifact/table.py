"""Tables of what was exported, and of what was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from singlecard.report.plan_rows import format_bytes, format_count
from singlecard.report.render import fallback_table
from singlecard.report.tables import (
    built_text,
    engines_text,
    facts_table,
    fallback_rows,
    lowered_text,
    size_rows,
)

if TYPE_CHECKING:
    from singlecard.artifact.exporting import ExportReport
    from singlecard.artifact.loading import Loaded


def export_table(report: ExportReport) -> RenderableType:
    """Return what was exported."""
    built = sum(engine.built for engine in report.engines)
    inputs = [("input", *item) for item in report.inputs]
    eager = f"{report.programs} run in PyTorch" if report.programs else ""
    rows = [
        ("file", format_bytes(report.bytes), "signed" if report.signed else "not signed"),
        ("ops lowered", *lowered_text(report.coverage, report.ops)),
        ("engines", *engines_text(len(report.engines), built)),
        *size_rows([engine.report for engine in report.engines]),
        *([("parts", eager, "")] if eager else []),
        ("without a card", "PyTorch" if report.fallback else "an error", ""),
        *inputs,
        ("time", f"{report.timings.get('total', 0.0):.1f} s", built_text(report.timings)),
    ]
    parts: list[RenderableType] = [facts_table(str(report.path), rows)]
    if report.left_out:
        left_out = [(item.op, item.reason, item.line) for item in report.left_out]
        parts.append(fallback_table(fallback_rows(left_out)))
    return Group(*parts, *map(Text, report.remarks))


def loaded_table(loaded: Loaded) -> RenderableType:
    """Return what an artifact holds, and whether its engines run here."""
    engines = [
        (
            "engine",
            engine.digest[:12],
            f"{format_count(engine.kernels)} kernels, {format_bytes(engine.bytes)}, scratch "
            f"{format_bytes(engine.scratch_bytes)}",
        )
        for engine in loaded.engines
    ]
    rows = [
        ("device", str(loaded.device), loaded.refusal or "engines run here"),
        ("targets", ", ".join(loaded.targets) or "portable", ""),
        ("precision", loaded.precision, ""),
        *engines,
        *(("input", *item) for item in loaded.inputs),
        *(("state", name, f"{list(value.shape)}") for name, value in loaded.state_dict().items()),
        *(("made with", name, version) for name, version in loaded.versions.items()),
    ]
    return facts_table(str(loaded.path), rows)
