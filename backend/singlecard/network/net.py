"""The network facade that converters speak to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from singlecard.network.quantizing import Quantizing
from singlecard.network.tensor import Size


class Net(Quantizing):
    """A TensorRT network under construction, in terms of tensors.

    Of the op being lowered, ``given`` holds what PyTorch says of its arguments: fake tensors, by
    name; ``result`` the same of its result, or a tuple of them; ``used`` which entries of the tuple
    anything reads; ``size_of`` makes a size of the network of a symbolic one.
    """

    given: Mapping[str, Any] = {}
    result: Any = None
    used: frozenset[int] = frozenset()
    size_of: Callable[[Any], Size] = int

    def forget_op(self) -> None:
        """Let go of the op that was lowered last: sizes know the network that knows them."""
        self.given, self.result, self.used, self.size_of = {}, None, frozenset(), int
