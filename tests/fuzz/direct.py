"""A module through the real pipeline without Dynamo: the lane on which many programs run.

Dynamo takes most of a program's time and does not change what becomes of its ops. What this lane
cannot see is left to the other one: sizes that vary, numbers that change, breaks of the graph, and
attention by its name (AOTAutograd sees the op that PyTorch makes of it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.utils import _pytree as pytree

from singlecard.backend import compile_graph


def compiled_directly(
    module: nn.Module, options: Mapping[str, Any] | None, example: Sequence[Any]
) -> Callable[..., Any]:
    """Compile a module for arguments like the example's: sizes and numbers are constants.

    Without options PyTorch runs what AOTAutograd made of it.
    """
    leaves, spec = pytree.tree_flatten(tuple(example))
    tensors = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    structure: list[Any] = []

    def flat(*values: Tensor) -> list[Any]:
        filled = list(leaves)
        for place, value in zip(tensors, values[len(held) :], strict=True):
            filled[place] = value
        state = dict(zip(held, values, strict=False))
        outputs = torch.func.functional_call(module, state, pytree.tree_unflatten(filled, spec))
        results, out_spec = pytree.tree_flatten(outputs)
        structure[:] = [out_spec]
        return results

    graph = fx.Graph()
    nodes = []
    for name in held:
        node = graph.placeholder(name.replace(".", "_"))
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        nodes.append(node)
    nodes += [graph.placeholder(f"input_{place}") for place in tensors]
    graph.output(graph.call_function(flat, tuple(nodes)))
    values = [*held.values(), *tensors.values()]
    whole = fx.GraphModule({}, graph)
    if options is None:
        run = lookup_backend("aot_eager")(whole, values)
    else:
        run = compile_graph(whole, values, options=options)

    def call(*inputs: Any) -> Any:
        given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        results = run(*held.values(), *given)
        return pytree.tree_unflatten(list(results), structure[0])

    return call
