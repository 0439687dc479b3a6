"""How much of a tensor's range goes to the weights that read it, channel by channel.

Dividing a channel of the tensor by a number, and multiplying the weights' column with it, changes
nothing before rounding, and much behind it: SmoothQuant (Xiao et al., 2023) takes range from
channels with outliers, AWQ (Lin et al., 2023) gives precision to weights that meet large values.
Both follow a formula with one exponent. Here the numbers themselves are looked for, by descent on
the expected squared error of the layers' outputs, with rounding errors taken as independent and
evenly spread over a step (Widrow, Kollár, "Quantization noise", 2008):

    error = step_x**2 / 12 * sum_oc (w_oc d_c)**2
          + sum_ob step_ob**2 / 12 * sum_c E[x_c**2] / d_c**2

with the step of the tensor from its largest quotient, and the steps of weights from the largest of
their rows, or blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Steps of descent, and their size in the logarithm of a divisor.
_STEPS, _RATE = 150, 0.06

#: Rows of a weight that are looked at, evenly spread: what they ask for holds for the others.
_ROWS = 512

#: The most that one channel's divisor may be of the others' geometric mean, and the least.
_LIMIT = 1e3


#: Rows of data from which on a channel's own largest magnitude is believed.
_BELIEVED = 1000


def with_headroom(moments: torch.Tensor, largest: torch.Tensor, rows: int) -> torch.Tensor:
    """Return what channels may reach on data that was not seen, FP32 [channels].

    Divisors bring the largest magnitudes of all channels together, and what few rows have shown of
    each alone is soon exceeded. A channel is taken to reach as far, against its root mean square,
    as that share of the channels did that the rows fall short of 1,000.

    Args:
        moments, largest: as `migrate` takes them.
        rows: how many each channel's largest magnitude was seen in.
    """
    deviation = moments.sqrt()
    peaks = (largest / deviation.clamp(min=1e-30))[largest > 0]
    if not len(peaks) or rows >= _BELIEVED:
        return largest
    share = 1.0 - rows / _BELIEVED
    return torch.maximum(largest, deviation * torch.quantile(peaks, share))


def migrate(
    moments: torch.Tensor,
    largest: torch.Tensor,
    weights: Sequence[torch.Tensor],
    precision: str,
    block: int | None = None,
) -> torch.Tensor:
    """Return what each channel is divided by for the least expected error.

    Args:
        moments: FP32 [channels], the mean square of each channel.
        largest: FP32 [channels], its largest magnitude.
        weights: FP32 [out, channels] each, of the layers that read the tensor.
        precision: ``"int8"``, where the tensor is rounded too, ``"int8-weight"`` or
            ``"int4-weight"``.
        block: columns of a row that share a scale; None for all.

    Returns:
        FP32 [channels], with a geometric mean of 1.
    """
    with torch.enable_grad():
        return _descend(moments, largest, weights, precision, block)


def _descend(
    moments: torch.Tensor,
    largest: torch.Tensor,
    weights: Sequence[torch.Tensor],
    precision: str,
    block: int | None,
) -> torch.Tensor:
    weights = [weight[:: max(1, len(weight) // _ROWS)] for weight in weights]
    levels = 7.0 if precision == "int4-weight" else 127.0
    energy = moments.clamp(min=float(moments.max()) * 1e-9 + 1e-30)
    whole = [float((weight.square() @ energy).sum()) or 1.0 for weight in weights]
    logarithm = torch.zeros(len(moments), requires_grad=True)
    descent = torch.optim.Adam([logarithm], lr=_RATE)
    best, least = torch.ones_like(moments), float("inf")
    for _ in range(_STEPS):
        divisor = logarithm.exp()
        error = torch.zeros(())
        for weight, norm in zip(weights, whole, strict=True):
            scaled = weight * divisor
            tops = scaled.abs().reshape(len(weight), -1, block or weight.shape[1]).amax(2)
            energies = (energy / divisor.square()).reshape(tops.shape[1], -1).sum(1)
            part = (tops.square() @ energies).sum() / levels**2
            if precision == "int8":
                step = (largest / divisor).amax() / 127.0
                part = part + step.square() * scaled.square().sum()
            error = error + part / norm
        if error.item() < least:
            least, best = error.item(), divisor.detach().clone()
        descent.zero_grad()
        error.log().backward()
        descent.step()
    best = best / best.log().mean().exp()
    return best.clamp(1 / _LIMIT, _LIMIT)
