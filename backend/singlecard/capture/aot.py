"""From the graph that Dynamo hands over to a Program, by way of AOTAutograd."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._dynamo.exc import TorchDynamoException
from torch._functorch._aot_autograd.schemas import OutputType, PlainTensorMeta
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext
from torch.utils._python_dispatch import _disable_current_modes

from singlecard.capture import ops
from singlecard.capture.composite import kept_whole, numbers_left_alone
from singlecard.capture.decompose import own_decompositions
from singlecard.capture.inlining import inline_regions
from singlecard.capture.layouts import promise_layouts
from singlecard.capture.narrowing import gather_narrowed
from singlecard.capture.numbers import freeze_numbers
from singlecard.capture.opaque import close_opaque
from singlecard.capture.program import Program
from singlecard.capture.results import describe_results
from singlecard.capture.statistics import has_batch_norm
from singlecard.capture.strided import read_owners
from singlecard.capture.symbols import read_sizes_from_inputs
from singlecard.capture.variants import Answers, Executable, Variants
from singlecard.capture.whole import keep_whole
from singlecard.errors import CaptureError

aten = torch.ops.aten

#: Ops that PyTorch would decompose and that we lower whole, or fold with their neighbours.
_KEPT_WHOLE = (
    aten._log_softmax.default,
    *ops.FUSED_ATTENTION,
    aten._softmax.default,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.default,
    aten._upsample_nearest_exact3d.vec,
    aten.addmm.default,
    aten.col2im.default,
    aten.elu.default,
    aten.embedding.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.index_copy.default,
    aten.leaky_relu.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.native_group_norm.default,
    aten.native_layer_norm.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.roll.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.select_scatter.default,
    aten.silu.default,
    aten.softplus.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.stack.default,
    aten.t.default,
    aten.transpose.int,
    aten.tril.default,
    aten.triu.default,
    aten.unbind.int,
    aten.upsample_bicubic2d.default,
    aten.upsample_bicubic2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_linear1d.default,
    aten.upsample_linear1d.vec,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.default,
    aten.upsample_nearest3d.vec,
    aten.upsample_trilinear3d.default,
    aten.upsample_trilinear3d.vec,
)


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return PyTorch's core ATen decompositions, less the ops kept whole."""
    table = dict(core_aten_decompositions())
    for target in _KEPT_WHOLE:
        table.pop(target, None)
    return table | own_decompositions()


def is_frozen(node: fx.Node, example: Any) -> bool:
    """Tell whether a graph input of Dynamo's is a parameter or buffer of the model."""
    if isinstance(example, torch.nn.Parameter):
        return True
    tensor_dict = node.meta.get("tensor_dict") or {}
    return "_dynamo_static_input_type" in tensor_dict


def capture(
    module: fx.GraphModule,
    examples: Sequence[Any],
    compile_program: Callable[[Program], Executable],
    answer: Answers | None = None,
) -> Callable[..., Any]:
    """Return a callable for Dynamo, made by ``compile_program`` from the functional Program.

    AOTAutograd keeps what is around the Program right: aliasing outputs, views of inputs,
    duplicated inputs, the order of mutations. Weights that changed since they were frozen, or that
    belong to another instance of the same module, lead to another Program.

    Args:
        module: Dynamo's graph.
        examples: the tensors and sizes it was traced with.
        compile_program: makes what runs a Program.
        answer: see `Variants`.

    Raises:
        CaptureError: AOTAutograd cannot capture the graph, or a Program cannot be made of it.
        Exception: what ``compile_program`` raises.
    """
    copy = fx.GraphModule(module, copy_graph(module.graph))
    inline_regions(copy)
    freeze_numbers(copy.graph)
    gather_narrowed(copy.graph)
    keep_whole(copy.graph)
    copy.recompile()
    normalizes = has_batch_norm(copy.graph)
    placeholders = module.graph.find_nodes(op="placeholder")
    static = [
        example if is_frozen(node, example) else None
        for node, example in zip(placeholders, examples, strict=True)
    ]

    count = len(examples)
    ours: list[Exception] = []

    def inner(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            return compile_captured(gm, example_inputs)
        except Exception as error:
            ours.append(error)
            raise

    def compile_captured(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        frozen = _frozen_values(gm, copy, static)
        is_whole = count == len(example_inputs)
        passed = _passed(TracingContext.try_get()) if is_whole else None

        def compile_weights(weights: dict[int, torch.Tensor]) -> Executable:
            program = program_from_aot(gm, weights)
            program.passed, program.again = passed, _again(gm, weights)
            return compile_program(program)

        with _disable_current_modes():  # Dynamo calls inside a fake mode; weights are real
            variants = Variants(
                frozen, compile_weights, lambda args: list(gm(*args)), normalizes, answer
            )

        def run(args: Sequence[Any]) -> list[Any]:
            return variants(args)

        run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd hands over one list
        return run

    # Before ops are hidden: PyTorch keeps the list of ops that it collects here for `torch.export`.
    table = decompositions()
    try:
        with kept_whole(_KEPT_WHOLE), numbers_left_alone():
            return aot_module_simplified(
                copy,
                examples,
                fw_compiler=inner,
                inference_compiler=inner,
                decompositions=table,
                keep_inference_input_mutations=True,
            )
    except TorchDynamoException:
        raise  # Dynamo's own way to start over
    except Exception as error:
        if any(error is item for item in ours):
            raise
        raise CaptureError(f"PyTorch could not capture the graph ({error})") from error
    finally:
        ours.clear()  # their tracebacks lead back here
        static.clear()  # AOTAutograd keeps its compilers, and must not keep the model with them


def _again(gm: fx.GraphModule, weights: Mapping[int, torch.Tensor]) -> Callable[[], Program]:
    """Return what captures a graph once more with the same weights, which it does not keep."""
    held = {place: weakref.ref(weight) for place, weight in weights.items()}

    def again() -> Program:
        found = {place: item for place, weight in held.items() if (item := weight()) is not None}
        if len(found) < len(held):
            raise CaptureError(
                f"{len(held) - len(found)} weights of a graph are gone: it cannot be captured again"
            )
        return program_from_aot(gm, found)

    return again


def _passed(context: TracingContext | None) -> tuple[tuple[int, int], ...] | None:
    """Return which results are arguments; None if AOTAutograd does more around a call."""
    about = None if context is None else context.fw_metadata
    if about is None or not (
        not about.tokens
        and not about.num_intermediate_bases
        and not about.num_graphsafe_rng_states
        and not about.mutated_inp_runtime_indices
        and not about.is_rng_op_functionalized
        and all(item.output_type in _HANDED_OVER for item in about.output_info)
        and all(isinstance(item, PlainTensorMeta) for item in about.subclass_inp_meta)
        and all(isinstance(item, PlainTensorMeta) for item in about.subclass_fw_graph_out_meta)
    ):
        return None
    return tuple(
        (place, item.base_idx)
        for place, item in enumerate(about.output_info)
        if item.output_type is OutputType.is_input and item.base_idx is not None
    )


#: Results that AOTAutograd takes from the graph, or from the arguments, as they are.
_HANDED_OVER = (OutputType.non_alias, OutputType.unsafe_view_alias, OutputType.is_input)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph that shares no node with it."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _frozen_values(
    module: fx.GraphModule, owner: fx.GraphModule, static: Sequence[torch.Tensor | None]
) -> dict[int, torch.Tensor]:
    """Return the tensors that AOTAutograd's placeholders stand for, where they are weights."""
    written = {node.args[0] for node in module.graph.find_nodes(op="call_function", target=COPY)}
    frozen: dict[int, torch.Tensor] = {}
    for place, node in enumerate(module.graph.find_nodes(op="placeholder")):
        if node in written:
            continue
        value = _frozen_value(node.meta.get("desc"), owner, static)
        if value is not None and value.device.type != "meta":  # nothing to freeze there
            frozen[place] = value
    return frozen


def _frozen_value(desc: Any, owner: fx.GraphModule, static: Sequence[torch.Tensor | None]) -> Any:
    """Return the weight that AOTAutograd describes, or None for another input."""
    kind = type(desc).__name__
    if kind in ("ParamAOTInput", "BufferAOTInput"):
        return functools.reduce(getattr, desc.target.split("."), owner)
    if kind == "PlainAOTInput":
        return static[desc.idx]
    if kind == "SubclassGetAttrAOTInput":  # a tensor that a quantized weight, say, is made of
        outer = _frozen_value(desc.base, owner, static)
        return None if outer is None else getattr(outer, desc.attr)
    return None


COPY = aten.copy_.default

#: Checks of values at run time, such as one-hot's of its classes. An engine has no way to raise.
_ASSERTIONS = (
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
)


def program_from_aot(original: fx.GraphModule, frozen: dict[int, torch.Tensor]) -> Program:
    """Freeze weights and turn mutations into outputs; ``original`` is left as it is.

    Args:
        original: a graph of AOTAutograd's, functional but for copies into its inputs.
        frozen: by place among the placeholders, the tensors that become constants.

    Raises:
        CaptureError: the graph changes an input in a way that is not a plain copy.
    """
    module = fx.GraphModule(original, copy_graph(original.graph))
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=ops.linear):
        node.target = aten.linear.default  # kept whole: from here on PyTorch's own op says it
    for node in graph.find_nodes(op="call_function", target=ops.laid_attention):
        node.target, node.args = ops.attention, node.args[:-1]  # its value's strides say the rest
    close_opaque(module)
    read_owners(graph)
    placeholders = graph.find_nodes(op="placeholder")
    place = {node: index for index, node in enumerate(placeholders)}
    mutated: dict[int, fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=COPY):
        destination, value = node.args[:2]
        if destination not in place:
            raise CaptureError(f"{node.name} writes to {destination}, which is not an input")
        mutated[place[destination]] = value
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    for target in _ASSERTIONS:
        for node in graph.find_nodes(op="call_function", target=target):
            graph.erase_node(node)
    for index, value in frozen.items():
        node = placeholders[index]
        name = f"frozen_{index}"
        module.register_buffer(name, value.detach())
        with graph.inserting_before(node):
            attribute = graph.get_attr(name)
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)
    read_sizes_from_inputs(graph)
    promise_layouts(graph)
    positions = tuple(index for index in range(len(placeholders)) if index not in frozen)
    output = graph.output_node()
    computed, sizes, results = describe_results(list(output.args[0]))  # type: ignore[arg-type]
    output.args = ((*computed, *mutated.values(), *sizes),)
    program = Program(module, positions, frozen, tuple(mutated), results)
    program.check()
    return program
