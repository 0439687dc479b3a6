"""The backend's name in PyTorch's registry, for threads that ask for it at once.

PyTorch 2.13 looks a backend up, loads it and registers it without a lock, and refuses a name that
is registered already: of twenty threads whose first call comes at the same time, nineteen would
raise ``duplicate name: singlecard`` in the code of a user. Its dictionary is replaced by one that
takes the name again; loading the backend, which each of these threads does before it registers it,
sees to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._dynamo.backends import registry

#: What users write.
NAME = "singlecard"


class _Backends(dict[str, Any]):
    """PyTorch's registered backends, of which ours may be registered again."""

    def __init__(self, known: dict[str, Any], own: Callable[..., Any]) -> None:
        super().__init__(known)
        self._own = own

    def __contains__(self, name: object) -> bool:
        return name != NAME and super().__contains__(name)

    def __missing__(self, name: str) -> Any:
        if name == NAME:
            return self._own
        raise KeyError(name)


def allow_again(own: Callable[..., Any]) -> None:
    """Let the backend be registered by several threads, each with the same function."""
    known = getattr(registry, "_COMPILER_FNS", None)
    if type(known) is dict:
        registry._COMPILER_FNS = _Backends(known, own)
