"""Activation layers: one function of one element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call, evaluates


@evaluates("ACTIVATION")
def activation(call: Call) -> Tensor:
    x, alpha, beta = call[0], call.number("alpha"), call.number("beta")
    match call.text("type"):
        case "RELU":
            return x.clamp(min=0)
        case "SIGMOID":
            return torch.sigmoid(x)
        case "TANH":
            return torch.tanh(x)
        case "LEAKY_RELU":
            return torch.where(x >= 0, x, alpha * x)
        case "ELU":
            return torch.where(x >= 0, x, alpha * torch.expm1(x))
        case "SELU":
            return beta * torch.where(x > 0, x, alpha * torch.expm1(x))
        case "SOFTSIGN":
            return x / (1 + x.abs())
        case "SOFTPLUS":
            # log(exp(b x) + 1), written so that it cannot overflow.
            return alpha * torch.logaddexp(beta * x, torch.zeros((), device=x.device))
        case "CLIP":
            return _clip(x, alpha, beta)
        case "HARD_SIGMOID":
            return (alpha * x + beta).clamp(0, 1)
        case "SCALED_TANH":
            return alpha * torch.tanh(beta * x)
        case "THRESHOLDED_RELU":
            return torch.where(x > alpha, x, torch.zeros_like(x))
        case "GELU_ERF":
            return functional.gelu(x)
        case "GELU_TANH":
            return functional.gelu(x, approximate="tanh")
        case kind:
            raise NotImplementedError(f"activation {kind}")


def _clip(x: Tensor, low: float, high: float) -> Tensor:
    if x.is_floating_point():
        return x.clamp(low, high)
    # An open end is the largest float, which no integer type can hold.
    limits = torch.iinfo(x.dtype)
    return x.clamp(max(int(low), limits.min), min(int(high), limits.max))


@evaluates("PARAMETRIC_RELU")
def parametric_relu(call: Call) -> Tensor:
    x, slopes = call[0], call[1]
    return torch.where(x >= 0, x, x * slopes)
