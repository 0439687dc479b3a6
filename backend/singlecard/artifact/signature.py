"""What an artifact is called with: names, nesting, types, and the sizes that each axis takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from singlecard.artifact.structure import structure_from_text
from singlecard.capture.plain import from_plain, to_plain
from singlecard.errors import OptionError


@dataclass(frozen=True)
class Extent:
    """A size that varies: ``factor * symbol + offset``."""

    symbol: str
    factor: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Input:
    """One leaf of the arguments.

    Attributes:
        name: how a person names it, such as ``input_ids`` or ``batch.images``.
        kind: ``tensor``, ``number`` (an integer that varies), or ``constant``.
        dtype: of a tensor.
        shape: of a tensor: for each axis its size, an `Extent`, or None for any size.
        extent: of a number.
        value: of a constant: what it was when the model was exported.
    """

    name: str
    kind: str
    dtype: torch.dtype | None = None
    shape: tuple[int | Extent | None, ...] = ()
    extent: Extent | None = None
    value: Any = None


@dataclass(frozen=True)
class Signature:
    """How a model is called.

    Attributes:
        inputs: the leaves of the arguments.
        ranges: for each symbol of sizes, the smallest and the largest; None where there is none.
        arguments, results: how both are nested, as text.
        parameters: names of the parameters that can be given by position, in order.
        optional: names of parameters that were left out, and are None where nothing is given.
    """

    inputs: tuple[Input, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    arguments: str
    results: str
    parameters: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def describe(self, item: Input) -> str:
        """Return what an input takes, such as ``float32 [1 to 16, 8]``."""
        if item.kind == "constant":
            return f"{item.value!r}, as it was exported"
        if item.kind == "number":
            return f"an integer, {self._sizes(item.extent)}"
        sizes = ", ".join(self._sizes(size) for size in item.shape)
        return f"{str(item.dtype).removeprefix('torch.')} [{sizes}]"

    def _sizes(self, size: int | Extent | None) -> str:
        if size is None:
            return "any"
        if isinstance(size, int):
            return str(size)
        low, high = self.ranges[size.symbol]
        ends = [end if end is None else size.factor * end + size.offset for end in (low, high)]
        span = f"{ends[0]} or more" if ends[1] is None else f"{ends[0]} to {ends[1]}"
        return span if size.factor == 1 else f"{span} in steps of {size.factor}"


class Caller:
    """Checks calls against a signature.

    Raises:
        ArtifactError: the nesting needs a class that is not known here.
    """

    def __init__(self, signature: Signature, name: str) -> None:
        """Prepare to check.

        Args:
            signature: what calls must be like.
            name: of the artifact, for messages.
        """
        self.signature, self.name = signature, name
        self.spec = structure_from_text(signature.arguments, f"the arguments of {name}")
        args, kwargs = self.spec.children()
        self._count, self._named = args.num_children, tuple(map(str, kwargs.context))
        #: What the last call that was found right was like: most calls are like the one before.
        self._right: list[Any] = []

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of a call's arguments.

        Raises:
            OptionError: the arguments are not nested as they were exported.
        """
        placed, named = self._arranged(args, kwargs)
        try:
            return self.spec.flatten_up_to((placed, named))
        except ValueError as error:
            raise self._refused(f"are nested in another way ({error})") from error

    def _arranged(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bring arguments to the form, by position or by name, in which they were exported."""
        parameters = self.signature.parameters
        if len(args) == self._count and tuple(kwargs) == self._named:
            return tuple(args), dict(kwargs)
        if len(args) > len(parameters) and len(args) != self._count:
            raise self._refused(f"are {len(args)} by position instead of {self._count}")
        given = dict(zip(parameters, args, strict=False))
        twice = [name for name in given if name in kwargs]
        if twice:
            raise self._refused(f"give {twice[0]} twice")
        given |= kwargs
        wanted = (*parameters[: self._count], *self._named)
        missing = [name for name in wanted if name not in given]
        if missing:
            raise self._refused(f"lack {', '.join(missing)}")
        others = [
            name
            for name, value in given.items()
            if name not in wanted and not (name in self.signature.optional and value is None)
        ]
        if others:
            raise self._refused(f"give {', '.join(others)}, which was not given when exported")
        placed = tuple(given[name] for name in wanted[: self._count])
        return placed, {name: given[name] for name in self._named}

    def _refused(self, why: str) -> OptionError:
        takes = "; ".join(
            f"{item.name}: {self.signature.describe(item)}" for item in self.signature.inputs
        )
        return OptionError(
            f"the arguments of a call {why}. {self.name} takes {takes or 'none'}: call it so, or "
            "export the model with other examples"
        )

    def check(self, leaves: Sequence[Any], device: torch.device) -> None:
        """Verify types, sizes and devices.

        Raises:
            OptionError: names the input, what it takes, and what it was given.
        """
        facts = [device, *map(_facts, leaves)]
        if facts == self._right:
            return
        sizes: dict[str, int] = {}
        for item, value in zip(self.signature.inputs, leaves, strict=True):
            self._check(item, value, device, sizes)
        for item, value in zip(self.signature.inputs, leaves, strict=True):
            if item.kind == "tensor":
                for size, extent in zip(value.shape, item.shape, strict=True):
                    if isinstance(extent, Extent):
                        self._check_extent(item, value, int(size), extent, sizes)
            elif item.extent is not None:
                self._check_extent(item, value, int(value), item.extent, sizes)
        self._right = facts

    def _check(self, item: Input, value: Any, device: torch.device, sizes: dict[str, int]) -> None:
        if item.kind == "constant":
            if type(value) is not type(item.value) or value != item.value:
                raise self._wrong(item, value)
            return
        if item.kind == "number":
            if isinstance(value, bool) or not isinstance(value, int):
                raise self._wrong(item, value)
            sizes.setdefault(item.extent.symbol, value)  # type: ignore[union-attr]
            return
        if not isinstance(value, torch.Tensor) or value.dtype != item.dtype:
            raise self._wrong(item, value)
        if value.ndim != len(item.shape) or any(
            isinstance(extent, int) and extent != size
            for size, extent in zip(value.shape, item.shape, strict=False)
        ):
            raise self._wrong(item, value)
        if value.device != device:
            raise OptionError(
                f"{item.name} is on {value.device}, and {self.name} was loaded for {device}: move "
                f"it with .to({str(device)!r}), or load with device={str(value.device)!r}"
            )
        for size, extent in zip(value.shape, item.shape, strict=True):
            if isinstance(extent, Extent) and (extent.factor, extent.offset) == (1, 0):
                sizes.setdefault(extent.symbol, int(size))

    def _check_extent(
        self, item: Input, value: Any, size: int, extent: Extent, sizes: dict[str, int]
    ) -> None:
        number, rest = divmod(size - extent.offset, extent.factor)
        low, high = self.signature.ranges[extent.symbol]
        if rest or number < low or (high is not None and number > high):
            raise self._wrong(item, value)
        known = sizes.setdefault(extent.symbol, number)
        if known != number:
            wanted = extent.factor * known + extent.offset
            raise OptionError(
                f"{item.name} of {self.name} has a size of {size} where the other inputs make it "
                f"{wanted}: sizes that were equal when exported must be equal"
            )

    def _wrong(self, item: Input, value: Any) -> OptionError:
        return OptionError(
            f"{item.name} of {self.name} takes {self.signature.describe(item)}, got "
            f"{described(value)}: change the argument, or export the model with examples and "
            "dynamic_shapes that include it"
        )


def _facts(value: Any) -> tuple[Any, ...]:
    """Return all that is checked of a value."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.device
    return type(value), value


def described(value: Any) -> str:
    """Return what a value is: ``float32 [2, 8]``, ``a list``, ``3``."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"a {type(value).__name__}"


def signature_to_plain(signature: Signature) -> dict[str, Any]:
    """Return a signature as JSON has it."""
    return {
        "inputs": [_input_to_plain(item) for item in signature.inputs],
        "ranges": {symbol: list(ends) for symbol, ends in signature.ranges.items()},
        "arguments": signature.arguments,
        "results": signature.results,
        "parameters": list(signature.parameters),
        "optional": list(signature.optional),
    }


def signature_from_plain(held: Mapping[str, Any]) -> Signature:
    """Return the signature of plain values."""
    return Signature(
        tuple(_input_from_plain(item) for item in held["inputs"]),
        {
            str(symbol): (int(low), None if high is None else int(high))
            for symbol, (low, high) in held["ranges"].items()
        },
        str(held["arguments"]),
        str(held["results"]),
        tuple(map(str, held["parameters"])),
        tuple(map(str, held["optional"])),
    )


def _input_to_plain(item: Input) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "dtype": to_plain(item.dtype),
        "shape": [_size_to_plain(size) for size in item.shape],
        "extent": _size_to_plain(item.extent),
        "value": to_plain(item.value),
    }


def _input_from_plain(held: Mapping[str, Any]) -> Input:
    extent = _size_from_plain(held["extent"])
    assert not isinstance(extent, int)
    return Input(
        str(held["name"]),
        str(held["kind"]),
        from_plain(held["dtype"]),
        tuple(_size_from_plain(size) for size in held["shape"]),
        extent,
        from_plain(held["value"]),
    )


def _size_to_plain(size: int | Extent | None) -> Any:
    return [size.symbol, size.factor, size.offset] if isinstance(size, Extent) else size


def _size_from_plain(held: Any) -> int | Extent | None:
    if isinstance(held, list):
        return Extent(str(held[0]), int(held[1]), int(held[2]))
    return None if held is None else int(held)
