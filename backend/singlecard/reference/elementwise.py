"""Layers that compute each element from the elements at the same place."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("ELEMENTWISE")
def elementwise(call: Call) -> Tensor:
    a, b = call[0], call[1]
    match call.text("op"):
        case "SUM":
            return a + b
        case "PROD":
            return a * b
        case "MAX":
            return torch.maximum(a, b)
        case "MIN":
            return torch.minimum(a, b)
        case "SUB":
            return a - b
        case "DIV":
            # Integers are divided as C does, towards zero.
            return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
        case "POW":
            return torch.pow(a, b)
        case "FLOOR_DIV":
            return torch.div(a, b, rounding_mode="floor")
        case "AND":
            return torch.logical_and(a, b)
        case "OR":
            return torch.logical_or(a, b)
        case "XOR":
            return torch.logical_xor(a, b)
        case "EQUAL":
            return a == b
        case "GREATER":
            return a > b
        case "LESS":
            return a < b
        case operation:
            raise NotImplementedError(f"elementwise operation {operation}")


@evaluates("UNARY")
def unary(call: Call) -> Tensor:
    x = call[0]
    match call.text("op"):
        case "EXP":
            return torch.exp(x)
        case "LOG":
            return torch.log(x)
        case "SQRT":
            return torch.sqrt(x)
        case "RECIP":
            return torch.reciprocal(x)
        case "ABS":
            return torch.abs(x)
        case "NEG":
            return torch.neg(x)
        case "SIN":
            return torch.sin(x)
        case "COS":
            return torch.cos(x)
        case "TAN":
            return torch.tan(x)
        case "SINH":
            return torch.sinh(x)
        case "COSH":
            return torch.cosh(x)
        case "ASIN":
            return torch.asin(x)
        case "ACOS":
            return torch.acos(x)
        case "ATAN":
            return torch.atan(x)
        case "ASINH":
            return torch.asinh(x)
        case "ACOSH":
            return torch.acosh(x)
        case "ATANH":
            return torch.atanh(x)
        case "CEIL":
            return torch.ceil(x)
        case "FLOOR":
            return torch.floor(x)
        case "ERF":
            return torch.erf(x)
        case "NOT":
            return torch.logical_not(x)
        case "SIGN":
            return torch.sign(x)
        case "ROUND":
            return torch.round(x)  # half to even
        case "ISINF":
            return torch.isinf(x)
        case "ISNAN":
            return torch.isnan(x)
        case operation:
            raise NotImplementedError(f"unary operation {operation}")


@evaluates("SELECT", widens=False)
def select(call: Call) -> Tensor:
    return torch.where(call[0], call[1], call[2])
