"""Calls of declared ops with real values, taken from the graphs of PyTorch's operator database."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from singlecard.capture.aot import capture
from singlecard.capture.program import Program
from singlecard.lowering.table import table
from singlecard.passes import simplify
from tests.ops.harness import copies, graph_of_call
from tests.ops.measure import function_of
from tests.ops.relevant import all_ops, dtypes_of
from tests.ops.samples import Sample, samples_of

#: Calls kept of one op and type, those among them from one source, and samples looked at of each
#: source in its first type (1 in the others).
KEPT, FROM_ONE, LOOKED_AT = 6, 2, 2

#: Types that are looked at. Float16 is left out: some of PyTorch's kernels give float16 on a CPU
#: where their declaration, and so our networks, say float32.
TYPES = (torch.float32, torch.int64, torch.bool)

#: Ops of the database whose graphs hold what bears another name.
SOURCES = (
    "nn.functional.linear nn.functional.conv1d nn.functional.conv2d nn.functional.conv3d "
    "nn.functional.conv_transpose2d nn.functional.layer_norm nn.functional.group_norm "
    "nn.functional.batch_norm nn.functional.instance_norm nn.functional.rms_norm "
    "nn.functional.embedding nn.functional.embedding_bag "
    "nn.functional.scaled_dot_product_attention "
    "softmax log_softmax cdist nn.functional.pdist nn.functional.bilinear nn.functional.elu "
    "nn.functional.selu std_mean var_mean var nn.functional.prelu __getitem__ index_put "
    "index_select scatter_reduce.sum zeros_like to contiguous all any max.reduction_with_dim "
    "matmul einsum chunk roll tile rot90 nn.functional.interpolate.nearest div.floor_rounding "
    "nn.functional.interpolate.bilinear nn.functional.interpolate.bicubic "
    "nn.functional.interpolate.trilinear nn.functional.interpolate.linear "
    "nn.functional.interpolate.nearest-exact nn.functional.interpolate.area "
    "nn.functional.grid_sample nn.functional.pad.reflect nn.functional.pad.replicate "
    "nn.functional.pad.circular nn.functional.pad.constant nn.functional.max_pool1d "
    "nn.functional.adaptive_avg_pool1d nn.functional.adaptive_avg_pool2d "
    "nn.functional.adaptive_avg_pool3d nn.functional.adaptive_max_pool2d __rsub__ __rpow__ linspace"
).split()


@dataclass(frozen=True, eq=False)
class RealCall:
    """A target with the values it was called with."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str = ""

    @property
    def types(self) -> list[torch.dtype]:
        """The element types of its tensors."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)]


class _Recorder(fx.Interpreter):
    """Runs a graph and notes the calls of declared ops."""

    def __init__(
        self, module: fx.GraphModule, source: str, found: dict[Any, list[RealCall]]
    ) -> None:
        super().__init__(module)
        self.source, self.found = source, found

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        calls = self.found.get(target)
        if calls is not None:
            call = RealCall(target, args, dict(kwargs), self.source)
            alike = [known.source for known in calls if known.types == call.types]
            if len(alike) < KEPT and alike.count(self.source) < FROM_ONE:
                calls.append(call)
        return super().call_function(target, args, kwargs)


def _names() -> Iterator[str]:
    """Yield the ops of the database that are named like a declared one, and then the others."""
    declared = {str(target).split(".")[1] for target in table()}
    for name, op in all_ops().items():
        plain = {op.name, op.aten_name or "", op.name.removeprefix("nn.functional.")}
        if plain & declared or name in SOURCES:
            yield name


@functools.cache
@torch.no_grad()
def real_calls() -> dict[Any, list[RealCall]]:
    """Return up to ``KEPT`` calls of each declared target and type."""
    found: dict[Any, list[RealCall]] = {target: [] for target in table()}
    for name in _names():
        op = all_ops()[name]
        for place, dtype in enumerate(dtype for dtype in TYPES if dtype in dtypes_of(op)):
            for args, kwargs in samples_of(op, dtype)[: LOOKED_AT if place == 0 else 1]:
                _record(name, (args, kwargs), found)
    return found


def _record(name: str, sample: Sample, found: dict[Any, list[RealCall]]) -> None:
    module, tensors, _ = graph_of_call(function_of(all_ops()[name]), *sample)

    def note(program: Program) -> Any:
        values = [tensors[place] for place in program.positions]
        for simplified in (False, True):
            if simplified:
                simplify(program)
            _Recorder(program.module, name, found).run(*copies(values))
        raise _Done

    try:
        capture(module, copies(tensors), note)
    except Exception:  # a sample that nothing can capture has no calls to give
        return


class _Done(Exception):
    """The graph was seen; there is nothing to compile."""
