"""Ops and modules that the user keeps in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import fx

from singlecard.capture.ops import FUSED_ATTENTION
from singlecard.capture.program import module_path
from singlecard.lowering.call import op_name

#: Names that people know for ops of ours, which stand for them in the graph.
_KNOWN_AS = {
    "singlecard.attention": (
        "aten.scaled_dot_product_attention",
        *(f"aten.{target._schema.name.partition('::')[2]}" for target in FUSED_ATTENTION),
    ),
    "aten._native_batch_norm_legit_no_training": ("aten.batch_norm",),
    "singlecard.rms_norm": ("aten.rms_norm",),
    "singlecard.update_cache": ("aten.index_copy",),
    "singlecard.grouped_mm": ("aten._grouped_mm",),
}


def _public(name: str) -> str:
    """Return what people call an op that ATen has under a name of its own.

    >>> _public("aten._softmax"), _public("aten.native_layer_norm")
    ('aten.softmax', 'aten.layer_norm')
    """
    space, dot, op = name.partition(".")
    return f"{space}{dot}{op.lstrip('_').removeprefix('native_')}"


def exclusion(ops: Sequence[str], modules: Sequence[str]) -> Callable[[fx.Node], str | None]:
    """Return what says of an op why the user's options keep it in PyTorch, or None.

    Args:
        ops: names such as ``aten.softmax`` or ``aten._softmax.default``.
        modules: paths such as ``encoder.layer.3``, which hold all that lies in them; ``*`` stands
            for any text.
    """

    def reason(node: fx.Node) -> str | None:
        name = op_name(node)
        names = {name, str(node.target), *_KNOWN_AS.get(name, ()), _public(name)}
        for op in ops:
            if op in names:
                return f"{name} is named in exclude_ops"
        path = module_path(node)
        for pattern in modules:
            if path and (fnmatchcase(path, pattern) or fnmatchcase(path, pattern + ".*")):
                return f"{name} stands in {path}, which exclude_modules names by {pattern!r}"
        return None

    return reason
