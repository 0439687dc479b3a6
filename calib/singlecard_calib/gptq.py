"""Weights on the grid of weight-only quantization: the nearest values, or those of GPTQ."""

from __future__ import annotations

import torch

from singlecard.errors import CalibrationError

#: Largest code for each number of bits; grids are symmetric.
LARGEST = {4: 7, 8: 127}

#: Shares of the largest magnitude that a scale is tried for, beyond which values saturate.
_SHARES = tuple(1 - step / 40 for step in range(21))

#: Columns whose errors are collected before they are passed on to the columns behind. A multiple of
#: every block size, so that no block of weights crosses it.
_LAZY = 128


def best_scale(values: torch.Tensor, largest: int) -> torch.Tensor:
    """Return for each row the scale with the least squared error, of those tried.

    Args:
        values: FP32 [rows, columns] that share a scale by row.
        largest: code.

    Returns:
        FP32 [rows, 1], of values that FP16 holds: a code times a scale is then exact in FP32.
    """
    top = values.abs().amax(1, keepdim=True)
    best, least = torch.ones_like(top), torch.full_like(top, torch.inf)
    for share in _SHARES:
        scale = (top * (share / largest)).clamp(2.0**-24, 65504.0).half().float()
        codes = (values / scale).round_().clamp_(-largest, largest)
        error = codes.mul_(scale).sub_(values).square_().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def nearest(weight: torch.Tensor, largest: int, block: int) -> torch.Tensor:
    """Round each value to the nearest of its block's grid.

    Args:
        weight: FP32 [rows, columns]; ``block`` divides the columns.
        largest: code.
        block: columns that share a scale in each row.

    Returns:
        FP32 [rows, columns].
    """
    rows = weight.reshape(-1, block)
    scale = best_scale(rows, largest)
    return ((rows / scale).round().clamp(-largest, largest) * scale).reshape(weight.shape)


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, largest: int, block: int, damping: float
) -> torch.Tensor:
    """Round column by column, each column's error made up for by the columns behind it.

    Zeros stay zeros, so that a pruned weight keeps its pattern. In INT8 the element of largest
    magnitude in a row gets the largest code: whoever quantizes the row again, by its largest
    magnitude, then finds the same codes.

    Args:
        weight: FP32 [rows, columns]; ``block`` divides the columns.
        hessian: FP32 [columns, columns], twice the sum of x xᵀ over the layer's inputs x. A column
            that no input reaches is rounded to the nearest.
        largest: code.
        block: columns that share a scale in each row: all, or a divisor of 128. A scale is chosen
            when its first column is reached, with what the columns before it left.
        damping: share of the diagonal's mean that is added to the diagonal.

    Returns:
        FP32 [rows, columns].

    Raises:
        CalibrationError: the Hessian cannot be factored.

    Source: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", 2022, algorithm 1.
    """
    width = weight.shape[1]
    factor = _inverse_factor(hessian, damping)
    keeps = weight != 0
    pinned = weight.abs().argmax(1) if largest == LARGEST[8] else None
    rest = weight.clone()
    result = torch.empty_like(weight)
    scale = best_scale(weight, largest) if block == width else None
    for start in range(0, width, _LAZY):
        end = min(start + _LAZY, width)
        part, inverse = rest[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.empty_like(part)
        for column in range(end - start):
            place = start + column
            if block != width and place % block == 0:
                ahead = slice(column, column + block)
                scale = best_scale(part[:, ahead] * keeps[:, place : place + block], largest)
            assert scale is not None
            value, step = part[:, column], scale[:, 0]
            codes = (value / step).round_().clamp_(-largest, largest)
            if pinned is not None:
                codes = torch.where(pinned == place, weight[:, place].sign() * largest, codes)
            rounded = codes * step * keeps[:, place]
            error = (value - rounded) / inverse[column, column]
            part[:, column:] -= error[:, None] * inverse[column, column:]
            errors[:, column] = error
            result[:, place] = rounded
        rest[:, end:] -= errors @ factor[start:end, end:]
    return result


def squared_output_error(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return for each row d of a weight's change what dᵀ H d says of the layer's outputs.

    It is twice the sum of the squared change of that output over all inputs: FP32 [rows].
    """
    return ((difference @ hessian) * difference).sum(1).clamp_(min=0)


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped Hessian's inverse, FP32.

    It is worked out in FP64: inverting loses what FP32 has to spare.
    """
    matrix = hessian.double()
    live = matrix.diagonal()[matrix.diagonal() > 0]
    mean = float(live.mean()) if len(live) else 1.0
    while damping <= 1:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                factor: torch.Tensor = upper.float()
                return factor
        damping *= 10  # inputs that hardly differ: rounding made the matrix indefinite
    raise CalibrationError(
        "the inputs of a layer give a Hessian that cannot be factored: use more and more varied "
        "data, or method='round'"
    )
