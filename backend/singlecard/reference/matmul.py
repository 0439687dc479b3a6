"""Layers that sum products."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("MATRIX_MULTIPLY")
def matrix_multiply(call: Call) -> Tensor:
    a, b = call[0], call[1]
    op_a, op_b = call.text("op0"), call.text("op1")
    # A vector is a row on the left and a column on the right; its unit dimension goes afterwards.
    a = a.unsqueeze(-2) if op_a == "VECTOR" else a.mT if op_a == "TRANSPOSE" else a
    b = b.unsqueeze(-1) if op_b == "VECTOR" else b.mT if op_b == "TRANSPOSE" else b
    product = torch.matmul(a, b)
    if op_b == "VECTOR":
        product = product.squeeze(-1)
    if op_a == "VECTOR":
        product = product.squeeze(-1 if op_b == "VECTOR" else -2)
    return product


@evaluates("EINSUM")
def einsum(call: Call) -> Tensor:
    operands = [call[index] for index in range(len(call.inputs))]
    return torch.einsum(call.text("equation"), operands)
