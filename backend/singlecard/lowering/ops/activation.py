"""Activation functions."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.relu.default)
@accepts(dtype("self").floating)
def relu(net: Net, self: Tensor) -> Tensor:
    """max(self, 0)."""
    return net.activation("RELU", self)


@lowers(aten.sigmoid.default)
@accepts(dtype("self").floating)
def sigmoid(net: Net, self: Tensor) -> Tensor:
    """1 / (1 + exp(-self))."""
    return net.activation("SIGMOID", self)


@lowers(aten.tanh.default)
@accepts(dtype("self").floating)
def tanh(net: Net, self: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return net.activation("TANH", self)


@lowers(aten.gelu.default)
@accepts(dtype("self").floating, arg("approximate").one_of("none", "tanh"))
def gelu(net: Net, self: Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit, exact or by tanh."""
    return net.activation("GELU_ERF" if approximate == "none" else "GELU_TANH", self)


@lowers(aten.silu.default)
@accepts(dtype("self").floating)
def silu(net: Net, self: Tensor) -> Tensor:
    """self * sigmoid(self)."""
    return net.prod(self, net.activation("SIGMOID", self))
