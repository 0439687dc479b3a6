"""The attention ops that PyTorch chooses by device, brought to the one op that is lowered.

`scaled_dot_product_attention` becomes one of these where a device or autocast decides before
capture, and in exported programs. What each of them means, and where its meaning is not the one
of `singlecard::attention`, stands here and nowhere else.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.symbols import same_extents
from singlecard.lowering.call import Call
from singlecard.lowering.outputs import used_entries
from singlecard.lowering.table import REASON
from singlecard.passes.rule import is_call, rule, shape_of

aten = torch.ops.aten

#: Ops whose causal order is counted from the last key or from the first one, by version and
#: device, where there are more keys than queries; `scaled_dot_product_attention` never calls them
#: so. That on a CPU, that of xFormers and the plain one count from the first.
_UNCERTAIN_ORDER = (
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
)


@rule()
def name_attention(program: Program, node: fx.Node) -> bool:
    """Give attention one name.

    Before:  aten._scaled_dot_product_..._attention(q, k, v, bias, ..., is_causal, scale)[0]
    After:   singlecard::attention(q, k, v, mask, is_causal, scale, enable_gqa)

    A bias and causal order together become one mask.
    """
    if not is_call(node, *ops.FUSED_ATTENTION):
        return False
    call = Call.of(node)
    why = _refusal(call)
    if why is not None:
        node.meta[REASON] = f"{call.op} {why}"
        return False
    given = call.arguments
    query, key, value = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask", given.get("attn_bias"))
    causal = bool(given["is_causal"])
    if mask is not None and causal:
        mask, causal = _hide_later_keys(program, node, query, key, mask), False
    shared = given.get("enable_gqa")
    if shared is None:  # the kernels share heads wherever there are fewer
        shared = not same_extents(shape_of(query)[:-2], shape_of(key)[:-2])
    args = (query, key, value, mask, causal, given["scale"], shared)
    with program.graph.inserting_before(node):
        new = program.graph.call_function(ops.attention, args)
    new.meta = {key: item for key, item in node.meta.items() if key in PATH_KEYS}
    new.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        user.replace_all_uses_with(new)
        program.graph.erase_node(user)
    program.graph.erase_node(node)
    return True


def _refusal(call: Call) -> str | None:
    """Return why a call stays as it is, or None."""
    given, values = call.arguments, call.values
    if any(user.target is not operator.getitem for user in call.node.users):
        return "is lowered where only the attention of its results is used"
    used = [place for place in used_entries(call) if place]
    if used:
        return f"is lowered where only the attention of its results is used, got a use of {used}"
    if given["dropout_p"] != 0.0:
        return f"is lowered without dropout, got dropout_p = {given['dropout_p']}"
    if given.get("dropout_mask") is not None:
        return "is lowered without a dropout mask, got one"
    if not given["is_causal"]:
        return None
    queries, keys = values["query"].shape[-2], values["key"].shape[-2]
    if call.node.target in _UNCERTAIN_ORDER and not same_extents([queries], [keys]):
        return f"has no order that is sure for {queries} queries and {keys} keys with is_causal"
    mask = values.get("attn_mask", values.get("attn_bias"))
    if mask is None:
        return None
    if call.node.target is aten._scaled_dot_product_attention_math.default:
        return "takes no mask together with is_causal"
    if not isinstance(queries, int) or not isinstance(keys, int):
        return (
            "is lowered with a mask and is_causal together where the lengths are known, "
            f"got {queries} queries and {keys} keys"
        )
    return None


def _hide_later_keys(
    program: Program, node: fx.Node, query: fx.Node, key: fx.Node, mask: fx.Node
) -> fx.Node:
    """Add causal order to a mask."""
    lengths = int(shape_of(query)[-2]), int(shape_of(key)[-2])
    order = program.new_constant(node, torch.ones(lengths, dtype=torch.bool).tril(), query)
    fake: torch.Tensor = mask.meta["val"]
    target, args = aten.logical_and.default, (mask, order)
    if fake.dtype != torch.bool:
        hidden = program.new_constant(node, torch.tensor(-torch.inf, dtype=fake.dtype), query)
        target, args = aten.where.self, (order, mask, hidden)  # type: ignore[assignment]
    with program.graph.inserting_before(node):
        joined = program.graph.call_function(target, args)
    joined.meta = {key: item for key, item in node.meta.items() if key in PATH_KEYS}
    with fake.fake_mode:  # type: ignore[attr-defined]
        joined.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
    return joined
