"""A quantizer for torchao's PT2E flow that asks for what TensorRT computes well::

    exported = torch.export.export(model, args).module()
    prepared = prepare_pt2e(exported, SinglecardQuantizer())
    prepared(*more_args)                      # calibrate
    quantized = convert_pt2e(prepared)
    compiled = torch.compile(quantized, backend="singlecard", options={"precision": "fp16"})

`docs/quantized_models.md` has an example that runs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import module_path
from singlecard.errors import OptionError

try:
    from torchao.quantization.pt2e import (
        HistogramObserver,
        MinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
    )
except ImportError as error:
    raise ImportError(
        "singlecard_calib.pt2e is for torchao's PT2E flow, and torchao cannot be imported "
        f"({error}): pip install torchao"
    ) from error

__all__ = ["SinglecardQuantizer"]

aten = torch.ops.aten

#: Ops with a weight whose output channels come first.
_WEIGHTED = (
    aten.linear.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)
_OBSERVERS = {"histogram": HistogramObserver, "min-max": MinMaxObserver}
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)

#: The smallest scale: INT8 steps below it are noise, and FP16 would lose them.
_EPS = 2.0**-14


class SinglecardQuantizer(Quantizer):  # type: ignore[misc, unused-ignore]
    """Symmetric INT8: inputs by tensor, weights by output channel.

    Linear layers and convolutions in one, two and three dimensions are quantized, with products of
    two values that are both computed at run time. Batch norm is folded by ``prepare_pt2e`` itself;
    ReLU and what else lies between is left as it is, for the builder fuses it. Biases and outputs
    stay in floating point.

    Args:
        observer: how the range of a tensor is found: ``"histogram"`` for the least squared error,
            or ``"min-max"``, which takes the largest magnitude.
        products: quantize ``matmul`` and ``bmm`` of two run-time values too.
        exclude_modules: paths of modules that stay in floating point with all that lies in them;
            ``*`` stands for any text.

    Raises:
        OptionError: ``observer`` is unknown.
    """

    def __init__(
        self,
        *,
        observer: str = "histogram",
        products: bool = True,
        exclude_modules: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if observer not in _OBSERVERS:
            raise OptionError(f"observer={observer!r} is not valid: it takes histogram or min-max")
        self.products = products
        self.exclude_modules = tuple(exclude_modules)
        self._activation = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=_OBSERVERS[observer].with_args(eps=_EPS),
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_symmetric,
        )
        self._weight = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2.0**-24),
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark in the graph what ``prepare_pt2e`` shall observe; called by it."""
        for node in model.graph.nodes:
            specs = self._specs(node)
            if specs and not self._is_excluded(node):
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=specs, _annotated=True
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Check nothing: whatever was annotated can be lowered."""

    def _specs(self, node: fx.Node) -> dict[Any, Any]:
        if node.target in _WEIGHTED:
            x, weight = node.args[:2]
            if _is_float(x) and _is_float(weight) and weight.op == "get_attr":  # type: ignore[union-attr]
                return {x: self._activation, weight: self._weight}
        if self.products and node.target in _PRODUCTS:
            operands = [arg for arg in node.args[:2] if _is_float(arg)]
            if len(operands) == 2 and all(arg.op != "get_attr" for arg in operands):  # type: ignore[union-attr]
                return dict.fromkeys(operands, self._activation)
        return {}

    def _is_excluded(self, node: fx.Node) -> bool:
        path = module_path(node)
        return any(
            fnmatch.fnmatchcase(path, name) or fnmatch.fnmatchcase(path, f"{name}.*")
            for name in self.exclude_modules
        )


def _is_float(value: Any) -> bool:
    fake = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(fake, torch.Tensor) and fake.dtype in _FLOATING
