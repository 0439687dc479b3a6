"""Execute a built network with torch, on any device that torch has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.network.inspect import NetworkView, TensorView, view_network
from singlecard.observe.counters import count_one
from singlecard.reference.execution import Execution
from singlecard.reference.types import TORCH_DTYPES


def evaluate(
    network: Any, feeds: Mapping[str, Tensor], *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Run every layer of a network that its outputs need, and return the outputs by name.

    Types are those that the network declares: each layer's result is rounded to the type of its
    output tensor, so FP16 loses what it loses on the card, and quantization is exact. Inside one
    layer sums are kept in FP32. What an engine fuses, it may round less often.

    Args:
        network: an ``INetworkDefinition``, also one that the ONNX parser made, or a view of one.
        feeds: a tensor for each input of the network, in the input's type. INT4 is fed as int8, FP4
            and E8M0 as float32.
        device: where to compute; where the first feed lies by default, else on the CPU.

    Raises:
        EvaluationError: feeds do not fit, an assertion of the network does not hold, or a layer
            has no meaning outside of an engine.
    """
    view = network if isinstance(network, NetworkView) else view_network(network)
    if device is None:
        device = next((feed.device for feed in feeds.values()), "cpu")
    device = torch.device(device)
    unknown = feeds.keys() - {tensor.name for tensor in view.inputs}
    if unknown:
        raise EvaluationError(
            f"the network has no input {sorted(unknown)[0]!r}: its inputs are "
            f"{', '.join(tensor.name for tensor in view.inputs) or 'none'}"
        )
    values = {tensor.index: _feed(tensor, feeds, device) for tensor in view.inputs}
    with _declared_types_only(device):
        results = Execution(view, values, device).run()
    count_one("evaluations")
    # Copied, since a result may be a feed, a constant of the network, or a part of another result.
    return {
        output.name: result.clone(memory_format=torch.contiguous_format)
        for output, result in zip(view.outputs, results, strict=True)
    }


@contextlib.contextmanager
def _declared_types_only(device: torch.device) -> Iterator[None]:
    """Switch off what would round where the network does not: TF32, autocast."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _feed(tensor: TensorView, feeds: Mapping[str, Tensor], device: torch.device) -> Tensor:
    feed = feeds.get(tensor.name)
    if feed is None:
        raise EvaluationError(f"there is no value for the input {tensor.name!r}: add it to feeds")
    if feed.dtype != TORCH_DTYPES[tensor.dtype]:
        raise EvaluationError(
            f"the input {tensor.name!r} is {tensor.dtype} and was fed {feed.dtype}: convert it "
            f"with .to({TORCH_DTYPES[tensor.dtype]})"
        )
    sizes = zip(feed.shape, tensor.shape, strict=False)
    if feed.dim() != len(tensor.shape) or any(size not in (-1, n) for n, size in sizes):
        raise EvaluationError(
            f"the input {tensor.name!r} has the shape {tensor.shape} (-1 is free) and was fed "
            f"{tuple(feed.shape)}: feed a tensor of that shape"
        )
    return feed.detach().to(device)
