"""How arguments and answers are nested, as text: what PyTorch's pytree writes, read with care.

PyTorch's own reader imports the modules that a text names, for enumerations and default
dictionaries. Here a text names containers of Python's, and classes that are registered already or
belong to the libraries below, whose modules are imported.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from torch.utils import _pytree as pytree

from singlecard.errors import ArtifactError

#: Containers that carry no code. `collections.defaultdict` would name a function.
_CONTAINERS = (
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "collections.deque",
)

#: Libraries whose answers are classes of their own; these register themselves when imported.
_LIBRARIES = ("diffusers", "transformers")


def structure_to_text(spec: pytree.TreeSpec, what: str) -> str:
    """Return a nest as text.

    Args:
        spec: the nest.
        what: of which it is, for messages.

    Raises:
        ArtifactError: a class in it cannot be written.
    """
    try:
        text = pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError) as error:
        raise ArtifactError(
            f"{what} of the model hold a class that files cannot name ({error}). Register it with "
            "torch.export.register_dataclass(..., serialized_type_name=...), or use tuples, lists "
            "and dicts"
        ) from error
    for kind in classes_of(text):
        if kind == "collections.defaultdict":
            raise ArtifactError(
                f"{what} of the model hold a defaultdict, whose function is code, which artifacts "
                "do not have: use a dict"
            )
    return text


def structure_from_text(text: str, what: str) -> pytree.TreeSpec:
    """Return the nest that a text tells of.

    Raises:
        ArtifactError: a class in it is not known in this process.
        ValueError: it is no such text.
    """
    if "__enum__" in text:
        raise ValueError("an enumeration, which only a module could tell of")
    for kind in classes_of(text):
        _check_class(kind, what)
    return pytree.treespec_loads(text)


def classes_of(text: str) -> list[str]:
    """Return the names of the containers and classes in a nest, each once."""
    return list(dict.fromkeys(_types(json.loads(text)[1])))


def _types(node: Any) -> Iterator[str]:
    if node["type"] is not None:
        yield str(node["type"])
    if node["type"] == "collections.namedtuple":  # the context names its class
        yield str(node["context"])
    for child in node["children_spec"]:
        yield from _types(child)


def _check_class(kind: str, what: str) -> None:
    if kind in (*_CONTAINERS, "collections.namedtuple") or _is_known(kind):
        return
    module = kind.rpartition(".")[0]
    if module.partition(".")[0] in _LIBRARIES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _unknown(
                kind, what, f"and its module cannot be imported here: {error}"
            ) from error
    if not _is_known(kind):
        raise _unknown(kind, what, "which nothing has registered in this process")


def _is_known(kind: str) -> bool:
    if kind == "collections.defaultdict":
        return False
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(kind)
    return known is not None and known.__module__ != "enum"


def _unknown(kind: str, what: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{what} are of the class {kind}, {why}. Install and import what defines it before "
        "singlecard.load, or export a model that returns tuples, lists and dicts (a transformers "
        "model does with return_dict=False)"
    )
