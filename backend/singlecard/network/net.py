"""The network facade that converters speak to."""

from __future__ import annotations

from typing import Any

from singlecard.network.layers import Layers


class Net(Layers):
    """A TensorRT network under construction, in terms of tensors.

    ``result`` holds what PyTorch says of the op being lowered: a fake tensor, or a tuple of them.
    """

    result: Any = None
