"""Read a built ``INetworkDefinition`` into plain values that hold no TensorRT object."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from singlecard.errors import LoweringError
from singlecard.network.flavour import trt
from singlecard.network.inspect_layers import ATTENTION_FIELDS, LAYER_FIELDS, LayerFields
from singlecard.network.inspect_weights import WeightView, view_weights
from singlecard.network.versions import check_typing

#: What an attribute of a layer can be; an enumeration's value is its name.
Plain = int | float | bool | str | tuple[int, ...] | tuple[float, ...] | None

_DTYPE_NAMES = MappingProxyType(
    {
        "FLOAT": "float32",
        "HALF": "float16",
        "BF16": "bfloat16",
        "INT8": "int8",
        "INT32": "int32",
        "INT64": "int64",
        "BOOL": "bool",
        "UINT8": "uint8",
        "FP8": "fp8",
        "INT4": "int4",
        "FP4": "fp4",
        "E8M0": "e8m0",
    }
)


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a network.

    Attributes:
        index: a number that no other tensor of the network has, counted in the order of first use.
        name: TensorRT's name; unique for inputs and outputs only.
        dtype: the type's name, such as ``float16``.
        shape: the declared dimensions, -1 where one is only known at run time.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of a network.

    Attributes:
        kind: the name of its ``LayerType``, such as ``CONVOLUTION``.
        name: the layer's name.
        attributes: every property that changes what the layer computes. Boundary layers have their
            ``loop``, ``conditional`` or ``attention`` as a number, counted from 0 in the network.
        inputs: the input tensors in place, None for an optional one that is not given.
        outputs: the output tensors.
        weights: by role; empty views where a role has no weights.
        opaque: TensorRT does not tell everything about this layer, so that two different layers
            can have the same view.
    """

    kind: str
    name: str
    attributes: Mapping[str, Plain]
    inputs: tuple[TensorView | None, ...]
    outputs: tuple[TensorView, ...]
    weights: Mapping[str, WeightView]
    opaque: bool


@dataclass(frozen=True, slots=True)
class NetworkView:
    """A whole network.

    Attributes:
        inputs: the network's inputs, in order.
        outputs: the network's outputs, in order.
        layers: all layers in the order in which they were added. That is not always an order in
            which they can run: a layer may be given an input that was made after it.
        flags: the network's creation flags, one bit each.
        dimension_names: for each input, the names of its dimensions; TensorRT takes dimensions of
            one name to be equal.
        allowed_formats: for each input and then each output, the memory layouts it may have, one
            bit each.
        output_marks: for each output, ``execution``, ``shape`` or ``execution and shape``: whether
            the engine leaves it on the card, on the host or in both places.
        debug_tensors: indices of the tensors that are marked as debug tensors.
    """

    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    layers: tuple[LayerView, ...]
    flags: int
    dimension_names: tuple[tuple[str | None, ...], ...]
    allowed_formats: tuple[int, ...]
    output_marks: tuple[str, ...]
    debug_tensors: tuple[int, ...]


def view_network(network: trt.INetworkDefinition) -> NetworkView:
    """Return a view of an ``INetworkDefinition``, with all layers, attributes and weights.

    Weights are not copied: the view is valid as long as the network and the arrays behind its
    weights are alive.

    Raises:
        LoweringError: the network is weakly typed, or holds a layer that TensorRT itself calls
            invalid, or one of a kind that singlecard does not know.
    """
    check_typing(network)
    return _Reader(network).read()


class _Reader:
    """Reads one network; holds the TensorRT objects met, so that one object means one tensor."""

    def __init__(self, network: trt.INetworkDefinition) -> None:
        self._network = network
        self._tensors: dict[int, tuple[Any, TensorView]] = {}
        self._owners: dict[str, dict[int, tuple[Any, int]]] = {}
        self._debug: list[int] = []

    def read(self) -> NetworkView:
        network = self._network
        raw_inputs = [network.get_input(i) for i in range(network.num_inputs)]
        inputs = tuple(map(self._tensor, raw_inputs))
        layers = tuple(self._layer(network.get_layer(i)) for i in range(network.num_layers))
        raw_outputs = [network.get_output(i) for i in range(network.num_outputs)]
        return NetworkView(
            inputs=inputs,
            outputs=tuple(map(self._tensor, raw_outputs)),
            layers=layers,
            flags=int(network.flags),
            dimension_names=tuple(
                tuple(raw.get_dimension_name(axis) or None for axis in range(len(view.shape)))
                for raw, view in zip(raw_inputs, inputs, strict=True)
            ),
            allowed_formats=tuple(int(raw.allowed_formats) for raw in raw_inputs + raw_outputs),
            output_marks=tuple(map(_mark, raw_outputs)),
            debug_tensors=tuple(self._debug),
        )

    def _tensor(self, raw: trt.ITensor) -> TensorView:
        known = self._tensors.get(id(raw))
        if known is not None:
            return known[1]
        try:
            shape = raw.shape[:]
        except (RuntimeError, ValueError) as error:
            raise LoweringError(
                f"TensorRT has no shape for the tensor {raw.name!r}, so the layer that makes it is "
                "not valid: TensorRT's log, printed above, says why"
            ) from error
        view = TensorView(len(self._tensors), raw.name, _dtype_name(raw.dtype), shape)
        self._tensors[id(raw)] = (raw, view)
        if self._network.is_debug_tensor(raw):
            self._debug.append(view.index)
        return view

    def _layer(self, raw: Any) -> LayerView:
        kind = raw.type.name
        fields = LAYER_FIELDS.get(kind)
        name = raw.name
        if fields is None:
            raise LoweringError(
                f"layer {name!r} is of kind {kind}, which TensorRT {trt.__version__} has "
                "and singlecard does not know: use a TensorRT named in the documentation"
            )
        inputs = tuple(
            None if tensor is None else self._tensor(tensor)
            for tensor in map(raw.get_input, range(raw.num_inputs))
        )
        outputs = tuple(self._tensor(raw.get_output(i)) for i in range(raw.num_outputs))
        raw.__class__ = getattr(trt, fields.class_name)
        attributes = {
            role: None if _is_given(inputs, place) else _plain(_get(raw, role))
            for role, place in _readable(fields)
        }
        weights = {}
        for role in fields.weights:
            value = getattr(raw, role)
            weights[role] = view_weights(value, _weights_dtype(value))
        if fields.owner is not None:
            owner = self._number(raw, fields.owner, attributes)
            if kind == "ATTENTION_INPUT":
                attributes.update(_attention_attributes(owner, inputs))
        if kind == "SHUFFLE":
            _cut_permutations(attributes, inputs, outputs)
        return LayerView(kind, name, attributes, inputs, outputs, weights, fields.opaque)

    def _number(self, raw: Any, role: str, attributes: dict[str, Plain]) -> Any:
        """Number the loop, conditional or attention of a boundary layer, and return it."""
        owner = getattr(raw, role)
        known = self._owners.setdefault(role, {})
        attributes[role] = known.setdefault(id(owner), (owner, len(known)))[1]
        return owner


def _mark(output: trt.ITensor) -> str:
    marks = {"execution": output.is_execution_tensor, "shape": output.is_shape_tensor}
    return " and ".join(mark for mark, is_set in marks.items() if is_set)


def _is_given(inputs: tuple[TensorView | None, ...], place: int | None) -> bool:
    return place is not None and place < len(inputs) and inputs[place] is not None


def _attention_attributes(
    attention: Any, inputs: tuple[TensorView | None, ...]
) -> dict[str, Plain]:
    attributes: dict[str, Plain] = {}
    for role, _ in _readable(ATTENTION_FIELDS):
        # Without a scale there is no type to quantize to, and asking for it writes to the log.
        unset = role == "normalization_quantize_to_type" and not _is_given(inputs, 4)
        attributes[role] = None if unset else _plain(_get(attention, role))
    return attributes


@functools.cache
def _readable(fields: LayerFields) -> tuple[tuple[str, int | None], ...]:
    """The attributes that the installed TensorRT has, with the input that can replace each.

    Older versions lack some.
    """
    layer_class, by_input = getattr(trt, fields.class_name), dict(fields.by_input)
    return tuple(
        (role, by_input.get(role)) for role in fields.attributes if hasattr(layer_class, role)
    )


def _get(raw: Any, role: str) -> Any:
    try:
        value = getattr(raw, role)
    except RuntimeError:  # A block shape that is not set.
        return None
    return value() if callable(value) else value


def _plain(value: Any) -> Plain:
    """A property's value without TensorRT types."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, trt.DataType):
        return _dtype_name(value)
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name
    if isinstance(value, trt.Dims):
        dims: tuple[int, ...] = value[:]
        return dims
    return tuple(value)


def _cut_permutations(
    attributes: dict[str, Plain],
    inputs: tuple[TensorView | None, ...],
    outputs: tuple[TensorView, ...],
) -> None:
    """Cut the permutations of a shuffle, which always have eight entries, to those that count."""
    ranks = {"first_transpose": inputs[0], "second_transpose": outputs[0]}
    for role, tensor in ranks.items():
        value = attributes[role]
        if isinstance(value, tuple) and tensor is not None:
            attributes[role] = value[: len(tensor.shape)]


def _weights_dtype(value: Any) -> str:
    dtype = value.dtype
    return _dtype_name(dtype) if isinstance(dtype, trt.DataType) else str(dtype)


def _dtype_name(dtype: Any) -> str:
    return _dtype_table()[int(dtype)]


@functools.cache
def _dtype_table() -> Mapping[int, str]:
    """Type names by TensorRT's number: looking a member's name up costs several times more."""
    members = trt.DataType.__members__
    return {int(member): _DTYPE_NAMES[name] for name, member in members.items()}
