"""How scales are chosen: what a caller may ask for, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from singlecard.errors import OptionError
from singlecard_calib.choose import Method, Smoothing, method_from
from singlecard_calib.methods import METHODS


@dataclass(frozen=True)
class Settings:
    """What `singlecard.calibrate` is asked for; see there."""

    method: str = "min-max"
    percentile: float = 99.99
    smoothing: Smoothing | None = "search"
    weights: str | None = None
    bias_correction: bool = True
    keep_statistics: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise OptionError(
                f"method={self.method!r} is not valid: it takes one of {', '.join(METHODS)}"
            )
        if self.weights not in (None, "int8", "int4"):
            raise OptionError(
                f"weights={self.weights!r} is not valid: it takes 'int8' or 'int4', or None"
            )
        if not _is_number(self.percentile) or not 0 < self.percentile <= 100:
            raise OptionError(
                f"percentile={self.percentile!r} is not valid: it takes a number above 0 and at "
                "most 100"
            )
        if self.smoothing not in (None, "search") and not (
            _is_number(self.smoothing) and 0 < self.smoothing < 1  # type: ignore[operator]
        ):
            raise OptionError(
                f"smoothing={self.smoothing!r} is not valid: it takes None, 'search', or a number "
                "between 0 and 1"
            )
        for name in ("bias_correction", "keep_statistics"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is not valid: True or False")

    @property
    def threshold(self) -> Method:
        """The method, with its share where it is the percentile."""
        return method_from(self.method, self.percentile)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
