"""Programs of ``torch.export`` without pickles, and without anything else that could be code.

PyTorch's format keeps the example inputs as a pickle, and guards as lines of Python; neither is
needed to run a program, and both are left out. What is read is looked through before PyTorch gets
it: its reader would look functions up by any name and evaluate the texts of sizes.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils._sympy import functions as sympy_functions

from singlecard.artifact.structure import classes_of
from singlecard.errors import ArtifactError
from singlecard.report.origin import first_line

_MODEL = "models/model.json"
_EXAMPLES = "data/sample_inputs/"

#: What a program consists of; other members are pickles, or libraries of compiled code.
_MEMBERS = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/\w+"
    r"|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)

_OP = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.(\w+))?")
_FUNCTION = re.compile(r"(_operator|math)\.[a-z]\w*|torch\.sym_\w+|torch\._sym_\w+")

#: Control flow, and what wraps a part of a graph.
_HIGHER_ORDER = (
    "associative_scan",
    "cond",
    "map_impl",
    "scan",
    "while_loop",
    "with_effects",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
)

#: Ops that open files by a name.
_OF_FILES = ("from_file",)

_SYMBOL = re.compile(r"[a-z]+\d+|[-+]?\d+(\.\d*)?(e[-+]?\d+)?|int_oo|-int_oo")


class Unsafe(ValueError):
    """A program holds what is not read."""


class UnknownOp(ValueError):
    """A program calls an op that nothing has registered in this process."""


def write_program(program: ExportedProgram, path: Path, what: str) -> None:
    """Write a program as a file of PyTorch's format that holds no pickle.

    Args:
        program: what to write.
        path: the file; beside it, for a while, lies another.
        what: it is, for messages.

    Raises:
        ArtifactError: something in it can only be pickled.
    """
    whole = path.with_suffix(".whole.pt2")
    try:
        torch.export.save(program, whole)
    except OSError:
        raise
    except Exception as error:  # fails in many ways
        raise ArtifactError(f"PyTorch could not write {what}: {first_line(error)}") from error
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            inside = info.filename.partition("/")[2]
            with target.open(info.filename, "w", force_zip64=True) as copy:
                if inside == _MODEL:
                    model = json.loads(source.read(info))
                    copy.write(json.dumps({**model, "guards_code": []}).encode())
                elif not inside.startswith(_EXAMPLES):
                    with source.open(info) as member:
                        shutil.copyfileobj(member, copy, 1 << 22)
    whole.unlink()
    try:
        _check(path)
    except Unsafe as error:
        raise ArtifactError(
            f"{what} cannot be written without code in it ({error}): keep weights in plain tensors "
            "and use ops of PyTorch"
        ) from error


def program_from_bytes(content: bytes, device: torch.device) -> ExportedProgram:
    """Return a program, on a device.

    Raises:
        Unsafe: it holds what could be code.
        UnknownOp: an op in it is not registered.
        Exception: PyTorch cannot read it.
    """
    from singlecard.capture import ops  # noqa: F401  # programs may call our own

    _check(io.BytesIO(content))
    program = torch.export.load(io.BytesIO(content))
    return move_to_device_pass(program, device)


def _check(file: Path | io.BytesIO) -> None:
    """Look through a program for what could be code.

    Raises:
        Unsafe: names what was found.
    """
    try:
        with zipfile.ZipFile(file) as container:
            for info in container.infolist():
                inside = info.filename.partition("/")[2]
                if not _MEMBERS.fullmatch(inside):
                    raise Unsafe(f"the member {info.filename}")
                if inside.startswith(_EXAMPLES) and info.file_size:
                    raise Unsafe(f"the pickle {info.filename}")
                if inside.endswith(".json"):
                    _check_json(json.loads(container.read(info)))
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Unsafe(f"what is no program: {error}") from error


def _check_json(document: Any) -> None:
    for key, value in _items(document):
        if key == "use_pickle" and value is not False:
            raise Unsafe("a pickled tensor")
        if key == "guards_code" and value:
            raise Unsafe("guards, which are lines of Python")
        if key in ("target", "as_operator") and isinstance(value, str):
            _check_target(value)
        if key == "expr_str":
            _check_expression(value)
        if key in ("in_spec", "out_spec", "treespec") and value:
            _check_structure(value)
        if key == "as_custom_obj":
            raise Unsafe("an object that is no tensor")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _items(item)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item)


def _check_target(target: str) -> None:
    """Refuse what is no op; names of weights and of branches are targets as well."""
    if not target.startswith(("torch", "_operator", "math", "#")):
        return
    op = _OP.fullmatch(target)
    if op is None:
        if _FUNCTION.fullmatch(target):
            return
    elif op[1] == "higher_order":
        if op[3] is None and op[2] in _HIGHER_ORDER:
            return
    elif op[2] not in _OF_FILES and op[1] not in vars(torch._ops._Ops):
        packet = getattr(getattr(torch.ops, op[1]), op[2], None)
        if isinstance(getattr(packet, op[3] or "", None), torch._ops.OpOverload):
            return
        raise UnknownOp(target)
    raise Unsafe(f"the function {target}")


def _check_expression(text: Any) -> None:
    """Refuse a text of sizes that is more than sympy's classes, symbols and numbers."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise Unsafe(f"the size {text!r}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found = getattr(sympy_functions, node.id, None) or getattr(sympy, node.id, None)
            known = isinstance(found, type) and issubclass(found, sympy.Basic)
            if not known and not _SYMBOL.fullmatch(node.id):
                raise Unsafe(f"the size {text!r}")
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value):
                raise Unsafe(f"the size {text!r}")
        elif not isinstance(node, _ARITHMETIC):
            raise Unsafe(f"the size {text!r}")


_ARITHMETIC = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.Tuple,
)


def _check_structure(text: Any) -> None:
    if "__enum__" in text or "collections.defaultdict" in classes_of(text):
        raise Unsafe("a nest of values that names a module")
