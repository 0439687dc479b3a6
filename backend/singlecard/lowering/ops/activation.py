"""Activation functions."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.relu.default)
@accepts(dtype("self").numeric)
def relu(net: Net, self: Tensor) -> Tensor:
    """max(self, 0)."""
    return net.activation("RELU", self)


@lowers(aten.sigmoid.default)
def sigmoid(net: Net, self: Tensor) -> Tensor:
    """1 / (1 + exp(-self))."""
    return net.activation("SIGMOID", net.cast(self, net.result.dtype))


@lowers(aten.tanh.default)
def tanh(net: Net, self: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return net.activation("TANH", net.cast(self, net.result.dtype))


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


@lowers(aten.hardsigmoid.default)
@accepts(dtype("self").floating)
def hardsigmoid(net: Net, self: Tensor) -> Tensor:
    """self / 6 + 1 / 2 between 0 and 1."""
    return net.activation("HARD_SIGMOID", self, 1 / 6, 0.5)


@lowers(aten.hardswish.default)
@accepts(dtype("self").floating)
def hardswish(net: Net, self: Tensor) -> Tensor:
    """self * hardsigmoid(self)."""
    return net.prod(self, net.activation("HARD_SIGMOID", self, 1 / 6, 0.5))


@lowers(aten.leaky_relu.default)
@accepts(dtype("self").floating, arg("negative_slope").known)
def leaky_relu(net: Net, self: Tensor, negative_slope: float = 0.01) -> Tensor:
    """self where it is positive, negative_slope * self elsewhere."""
    return net.activation("LEAKY_RELU", self, float(negative_slope))


@lowers(aten.elu.default)
@accepts(dtype("self").floating, arg("alpha").known, arg("scale").known, arg("input_scale").known)
def elu(
    net: Net, self: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1
) -> Tensor:
    """scale * self where positive, scale * alpha * (exp(input_scale * self) - 1) elsewhere."""
    if scale == input_scale == 1:
        return net.activation("ELU", self, float(alpha))
    bent = net.activation("ELU", net.times(self, input_scale), float(alpha * scale))
    positive = net.binary("GREATER", self, net.scalar(0.0, self.dtype))
    return net.where(positive, net.times(self, scale), bent)


@lowers(aten.softplus.default)
@accepts(dtype("self").floating, arg("beta").known, arg("threshold").known)
def softplus(net: Net, self: Tensor, beta: Number = 1, threshold: Number = 20) -> Tensor:
    """log(1 + exp(beta * self)) / beta, and self itself where beta * self > threshold."""
    smooth = net.activation("SOFTPLUS", self, 1 / beta, float(beta))
    is_linear = net.binary("GREATER", net.times(self, beta), net.scalar(threshold, self.dtype))
    return net.where(is_linear, self, smooth)
