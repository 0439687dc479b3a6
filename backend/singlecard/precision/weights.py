"""From a weight to codes and scales.

What is computed here follows from the weight alone, as constant folding does; scales of values that
only show while a model runs come from a calibration table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from singlecard.capture.quantized import KINDS, codes_of, expand_blocks

#: Elements of a row that may share a scale in INT4; the largest that divides the row is taken.
BLOCKS = (128, 64, 32)

#: The smallest gain that FP16 holds to full precision.
_LEAST_GAIN = 2.0**-14

#: Largest codes that a block's largest element may have: with 7, the block is used to its full
#: range; with fewer, a block that lies on a coarser grid already is taken as it is.
_CODES = (7, 6, 5, 4, 3, 2, 1)

#: Shares of a block's range that are tried, beyond which elements saturate.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight as codes.

    Attributes:
        codes: int8 or float8_e4m3fn, the shape of the weight.
        scale: FP32, no dimensions; or for blocks [rows, blocks], of values that FP16 holds.
        gains: FP32 [output channels], of values that FP16 holds: what the product's output is
            multiplied with; None where the scale says it all.
        kind: a key of `singlecard.capture.quantized.KINDS`.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    gains: torch.Tensor | None
    kind: str

    def value(self) -> torch.Tensor:
        """Return the weight that the codes stand for, in FP32."""
        result = self.codes.float() * expand_blocks(self.scale, self.codes.shape)
        return result if self.gains is None else result * by_row(self.gains, result.ndim)


def by_row(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Give one number for each output channel the rank of a weight."""
    return values.reshape(-1, *[1] * (ndim - 1))


def largest_of_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each output channel, FP32 [output channels]."""
    return weight.reshape(weight.shape[0], -1).abs().amax(1)


def by_gains(weight: torch.Tensor, kind: str, largest: float | None = None) -> Quantized:
    """Quantize by channel, with one scale for the builder and the rest as gains behind the product.

    TensorRT-RTX 1.7.1 lets a product with one weight scale for each channel write FP32, and reads
    such weights through memory where a single row is multiplied; with one scale for the whole
    tensor it does neither, and a multiplication of the result joins the kernel behind.

    Args:
        weight: FP32 [output channels, ...].
        kind: ``"int8"`` or ``"fp8"``.
        largest: the magnitude that the scale is for, where several weights share one.
    """
    rows = largest_of_rows(weight)
    top = float(rows.max()) if largest is None else largest
    top = top or 1.0  # all zeros
    gains = (rows / top).clamp(_LEAST_GAIN, 1.0)
    gains = _rounded_up(gains)
    scale = torch.tensor(top / KINDS[kind].largest)
    return Quantized(codes_of(weight / by_row(gains, weight.ndim), scale, kind), scale, gains, kind)


def by_row_scales(weight: torch.Tensor) -> Quantized:
    """Quantize to INT8 with a scale for each row: for tables that are looked into, row by row."""
    scale = _half(largest_of_rows(weight)[:, None] / KINDS["int8"].largest)
    return Quantized(codes_of(weight, scale, "int8"), scale, None, "int8")


def by_blocks(weight: torch.Tensor, block: int) -> Quantized:
    """Quantize to INT4 with a scale for each block of a row: of those tried, that of least error.

    Args:
        weight: FP32 [rows, columns]; ``block`` divides the columns.
        block: elements that share a scale.
    """
    count, width = weight.shape
    blocks = weight.reshape(count, width // block, block)
    largest = blocks.abs().amax(2, keepdim=True)
    best, least = torch.empty_like(largest), torch.full_like(largest, torch.inf)
    tried = [share / code for code in _CODES for share in _SHARES if code == 7 or share == 1.0]
    for factor in tried:
        scale = _half(largest * factor)
        codes = torch.round(blocks / scale).clamp(-8, 7)
        error = (codes * scale - blocks).square().sum(2, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    scale = best.squeeze(2)
    return Quantized(codes_of(weight, scale, "int4"), scale, None, "int4")


def _half(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to FP16, which blocks must have in an FP16 network; none becomes zero."""
    return scale.clamp(2.0**-24, 65504.0).half().float()


def _rounded_up(values: torch.Tensor) -> torch.Tensor:
    """Round to FP16 so that no value becomes smaller: nothing saturates that did not."""
    halves = values.half()
    above = torch.nextafter(halves, torch.tensor(torch.inf).half())
    return torch.where(halves.float() < values, above, halves).float()
