"""The one door to TensorRT: which of its two Python modules is installed, imported on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

from singlecard.errors import FlavourError

#: Module names in order of preference: TensorRT for RTX builds without a GPU, the other does not.
FLAVOURS = ("tensorrt_rtx", "tensorrt")


@functools.cache
def tensorrt() -> ModuleType:
    """Return the TensorRT module, imported on the first call.

    Raises:
        FlavourError: no flavour is installed, or the installed one does not load.
    """
    for name in FLAVOURS:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise FlavourError(
                f"the Python module {name} is installed but does not load ({error}): "
                f"reinstall it with 'pip install --force-reinstall {name.replace('_', '-')}'"
            ) from error
    raise FlavourError(
        "no TensorRT is installed (looked for the modules "
        f"{' and '.join(FLAVOURS)}): install it with 'pip install tensorrt-rtx'"
    )


def flavour_name() -> str:
    """Return ``tensorrt_rtx`` or ``tensorrt``."""
    return tensorrt().__name__


def flavour_version() -> str:
    """Return the version of the TensorRT module, such as ``1.7.1.116``."""
    return str(tensorrt().__version__)
