"""The one door to TensorRT: which of its two Python modules is installed, imported on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

from singlecard.errors import FlavourError

__all__ = ["CHOICE", "FLAVOURS", "flavour_name", "flavour_version", "tensorrt", "trt"]

#: Module names in order of preference: TensorRT for RTX builds without a GPU, the other does not.
FLAVOURS = ("tensorrt_rtx", "tensorrt")

#: Environment variable that names the module to take where both are installed.
CHOICE = "SINGLECARD_FLAVOUR"


@functools.cache
def tensorrt() -> ModuleType:
    """Return the TensorRT module, imported on the first call.

    Raises:
        FlavourError: no flavour is installed, the chosen one is not, or it does not load.
    """
    chosen = os.environ.get(CHOICE)
    if chosen and chosen not in FLAVOURS:
        raise FlavourError(
            f"{CHOICE}={chosen} names no flavour of TensorRT: set it to "
            f"{' or '.join(FLAVOURS)}, or do not set it"
        )
    for name in (chosen,) if chosen else FLAVOURS:
        if not _is_installed(name):
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise FlavourError(
                f"the Python module {name} is installed but does not load ({error}): "
                f"reinstall it with 'pip install --force-reinstall {_package(name)}'"
            ) from error
    if chosen:
        raise FlavourError(
            f"{CHOICE}={chosen}, and there is no such module: install it with "
            f"'pip install {_package(chosen)}', or do not set {CHOICE}"
        )
    raise FlavourError(
        "no TensorRT is installed (looked for the modules "
        f"{' and '.join(FLAVOURS)}): install it with 'pip install tensorrt-rtx'"
    )


def _is_installed(name: str) -> bool:
    """Tell whether a module can be imported. Type stubs alone leave a folder without code."""
    spec = importlib.util.find_spec(name)
    return spec is not None and (spec.origin is not None or not spec.submodule_search_locations)


def _package(name: str) -> str:
    return name.replace("_", "-")


def flavour_name() -> str:
    """Return ``tensorrt_rtx`` or ``tensorrt``."""
    return tensorrt().__name__


def flavour_version() -> str:
    """Return the version of the TensorRT module, such as ``1.7.1.116``."""
    return str(tensorrt().__version__)


if TYPE_CHECKING:
    import tensorrt as trt
else:

    class _Lazy:
        """Stands for the TensorRT module, which is imported when something of it is asked for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tensorrt(), name)

    trt = _Lazy()
