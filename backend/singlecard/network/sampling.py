"""Layers of the network facade that read between elements: resize and grid sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from singlecard.network.flavour import trt
from singlecard.network.layers import Layers
from singlecard.network.shapes import known
from singlecard.network.tensor import Size, Tensor


@dataclass(frozen=True)
class Resampling:
    """How a resize layer finds its elements.

    Attributes:
        mode: an ``InterpolationMode``: NEAREST, LINEAR or CUBIC.
        placing: a ``ResizeCoordinateTransformation``: ALIGN_CORNERS, ASYMMETRIC or HALF_PIXEL.
        rounding: a ``ResizeRoundMode``, of NEAREST.
        cubic_coefficient: the coefficient of the cubic kernel.
    """

    mode: str
    placing: str
    rounding: str = "FLOOR"
    cubic_coefficient: float = -0.75


class Sampling(Layers):
    """Resize and grid sample."""

    def resize(
        self,
        x: Tensor,
        how: Resampling,
        *,
        sizes: Sequence[Size] | None = None,
        scales: Sequence[float] | None = None,
    ) -> Tensor:
        """Resize to ``sizes``, or by ``scales``, which then also place the elements."""
        layer = self.layer(self.definition.add_resize, x.handle)
        layer.resize_mode = getattr(trt.InterpolationMode, how.mode)
        layer.coordinate_transformation = getattr(trt.ResizeCoordinateTransformation, how.placing)
        layer.nearest_rounding = getattr(trt.ResizeRoundMode, how.rounding)
        if how.mode == "CUBIC":
            layer.cubic_coeff = how.cubic_coefficient
        if scales is not None:
            layer.scales = list(scales)
        elif sizes is not None:
            numbers = known(sizes)
            if numbers is not None:
                layer.shape = numbers
            else:
                layer.set_input(1, self.shape_tensor(sizes).handle)
        return self.output_of(layer)

    def grid_sample(
        self, x: Tensor, grid: Tensor, mode: str, border: str, align_corners: bool
    ) -> Tensor:
        """Read ``x`` [N, C, H, W] at the places of ``grid`` [N, h, w, 2], each from -1 to 1.

        ``mode`` is an ``InterpolationMode``, ``border`` a ``SampleMode``: FILL, CLAMP or REFLECT.
        """
        layer = self.layer(self.definition.add_grid_sample, x.handle, grid.handle)
        layer.interpolation_mode = getattr(trt.InterpolationMode, mode)
        layer.sample_mode = getattr(trt.SampleMode, border)
        layer.align_corners = align_corners
        return self.output_of(layer)
