"""How arguments and answers are nested, as text: what PyTorch's pytree writes, read with care.

PyTorch's own reader imports the modules that a text names, for enumerations and default
dictionaries, and so is not used. Here a text names containers of Python's, and classes that are
registered already or are in the modules below.
"""

from __future__ import annotations

import enum
import importlib
import json
from collections.abc import Iterator, Sequence
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

#: Modules whose classes register themselves when they are imported: answers of libraries' models.
_MODULES = ("transformers.modeling_outputs", "transformers.utils.generic")

#: Characters of a nest, and levels in it, at most.
MOST_TEXT, MOST_LEVELS = 1 << 20, 64


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
    """Return the nest that a text tells of: it is parsed first, then each part judged by its type.

    Raises:
        ArtifactError: a class in it is not known in this process.
        ValueError: it is no such text.
    """
    if len(text) > MOST_TEXT:
        raise ValueError(f"a nest of {len(text)} characters")
    version, tree = json.loads(text)
    if version != 1:
        raise ValueError(f"a nest of version {version!r}"[:200])
    return _spec(tree, what, 0)


def _spec(node: Any, what: str, depth: int) -> pytree.TreeSpec:
    if depth > MOST_LEVELS:
        raise ValueError(f"a nest more than {MOST_LEVELS} deep")
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        raise ValueError("a nest of another form")
    kind, children = node["type"], node["children_spec"]
    if not isinstance(children, list):
        raise ValueError("a nest of another form")
    if kind is None:
        if node["context"] is not None or children:
            raise ValueError("a leaf that holds something")
        return pytree.tree_structure(0)
    if not isinstance(kind, str):
        raise ValueError("a class without a name")
    inner = [_spec(child, what, depth + 1) for child in children]
    _check_class(kind, what)
    found = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[kind]
    return pytree.TreeSpec(found, _context(kind, node["context"], len(inner), what), inner)


def _context(kind: str, held: Any, count: int, what: str) -> Any:
    """Return what a container needs beside its items: keys, a length, or a class.

    Raises:
        ValueError: it is something else.
    """
    if kind == "collections.namedtuple":
        _check_class(str(held), what)
        named = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[held]
        if not pytree.is_namedtuple_class(named) or len(named._fields) != count:
            raise ValueError(f"{held!r} is no named tuple of {count}")
        return named
    context = json.loads(held) if isinstance(held, str) else held
    if kind in ("builtins.dict", "collections.OrderedDict"):
        if not isinstance(context, list) or len(context) != count or not _are_keys(context):
            raise ValueError("a dict without its keys")
    elif kind == "collections.deque":
        if context is not None and (type(context) is not int or context < 0):
            raise ValueError("a deque of another length")
    elif kind in _CONTAINERS:
        if context is not None:
            raise ValueError(f"a {kind} that is more")
    elif not _is_plain(context, 0):
        raise ValueError(f"a {kind} of another form")
    return context


def _are_keys(items: Sequence[Any]) -> bool:
    simple = all(item is None or isinstance(item, (bool, int, float, str)) for item in items)
    return simple and len(set(items)) == len(items)


def _is_plain(value: Any, depth: int) -> bool:
    """Tell whether a class's own context is made of texts, numbers and nests of these alone."""
    if isinstance(value, dict):
        value = list(value.values())  # JSON's keys are texts
    if isinstance(value, list) and depth < MOST_LEVELS:
        return all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


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
    """Refuse a class that this process does not know; only the modules below are imported for one.

    Raises:
        ArtifactError: names the class.
    """
    if kind in (*_CONTAINERS, "collections.namedtuple") or _is_known(kind):
        return
    module = kind.rpartition(".")[0]
    if module in _MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _unknown(
                kind, what, f"and its module cannot be imported here: {error}"
            ) from error
    if not _is_known(kind):
        raise _unknown(kind, what, "which nothing has registered in this process")


def _is_known(kind: str) -> bool:
    """Tell whether a class is registered, and made of its items and plain values alone."""
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(kind)
    if known is None or not isinstance(known, type) or issubclass(known, enum.Enum):
        return False
    return pytree.SUPPORTED_SERIALIZED_TYPES[known].from_dumpable_context is None


def _unknown(kind: str, what: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{what} are of the class {kind}, {why}. Install and import what defines it before "
        "singlecard.load, or export a model that returns tuples, lists and dicts (a transformers "
        "model does with return_dict=False)"
    )
