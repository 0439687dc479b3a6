"""Where an input of Dynamo's graph comes from, in the caller's own terms."""

from __future__ import annotations

import re

from torch import fx

_PIECE = re.compile(r"\['?([^\[\]']+)'?\]|\.(\w+)")


def source_of(node: fx.Node) -> str:
    """Return Dynamo's words for an input, such as ``L['self']._modules['norm'].eps``, or ''."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)  # a method in older releases


def input_path(source: str) -> str:
    """Return how a person names an input.

    >>> input_path("L['batch']['images'][0]")
    'batch.images.0'
    >>> input_path("L['kwargs']['input_ids']"), input_path("L['args'][0]")
    ('input_ids', '0')
    """
    pieces = [first or second for first, second in _PIECE.findall(source)]
    if pieces[0] in ("args", "kwargs") and len(pieces) > 1:  # what Dynamo sees of a module's call
        pieces = pieces[1:]
    return ".".join(pieces)


def is_of_module(source: str) -> bool:
    """Tell whether a source is an attribute of the compiled module, or of one inside of it."""
    return source.startswith(("L['self'].", "L['fn']."))
