"""Benchmarks call what is there: nobody runs all of them with every change."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def imported(tree: ast.AST) -> dict[str, Any]:
    """Return what a file imports from singlecard, by the names that it has there."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("singlecard"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):  # a module of a package
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(module, name.name)
    return found


def calls(tree: ast.AST, known: dict[str, Any]) -> Iterator[tuple[ast.Call, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = known.get(node.func.id)
            is_error = isinstance(function, type) and issubclass(function, Exception)
            if callable(function) and not is_error:
                yield node, function


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_calls_takes_what_it_gives(file: Path) -> None:
    """A figure in the README that no command measures any more cannot be trusted."""
    tree = ast.parse(file.read_text())
    for call, function in calls(tree, imported(tree)):
        if any(isinstance(arg, ast.Starred) for arg in call.args):
            continue
        if any(keyword.arg is None for keyword in call.keywords):
            continue
        given = {str(keyword.arg): None for keyword in call.keywords}
        try:
            inspect.signature(function).bind(*[None] * len(call.args), **given)
        except TypeError as error:
            pytest.fail(f"{file.name}:{call.lineno}: {function.__name__}: {error}")


def test_there_are_benchmarks() -> None:
    assert len(FILES) > 10
