"""The content digest of a network: equal for networks that compute the same in the same way.

Names do not count, nor does the order in which layers were added, so a model captured offline and
the same model captured at run time have one digest.
"""

from __future__ import annotations

from collections.abc import Iterable

import blake3

from singlecard.errors import LoweringError
from singlecard.network.inspect import LayerView, NetworkView, TensorView

#: Weights from this size on are hashed by several threads.
_LARGE = 1 << 20


def _digest(*parts: object) -> str:
    return blake3.blake3(repr(parts).encode()).hexdigest()


def _weights_digest(layer: LayerView) -> tuple[object, ...]:
    result = []
    for role, weights in sorted(layer.weights.items()):
        threads = blake3.blake3.AUTO if weights.nbytes >= _LARGE else 1
        content = blake3.blake3(weights.data, max_threads=threads).hexdigest()
        result.append((role, weights.dtype, weights.count, content))
    return tuple(result)


def _layer_digest(layer: LayerView, inputs: Iterable[object]) -> str:
    if layer.opaque:
        raise LoweringError(
            f"TensorRT does not tell everything about the {layer.kind} layer {layer.name}, so that "
            "its network has no digest and its engine cannot be cached"
        )
    attributes = sorted(layer.attributes.items())
    return _digest(layer.kind, attributes, _weights_digest(layer), tuple(inputs))


def network_digest(view: NetworkView) -> str:
    """Return the digest of a network as 64 hexadecimal digits.

    Raises:
        LoweringError: the network holds a layer whose content cannot be read back.
    """
    known: dict[int, str] = {}
    for position, tensor in enumerate(view.inputs):
        known[tensor.index] = _digest(
            "input",
            position,
            tensor.dtype,
            tensor.shape,
            view.dimension_names[position],
        )
    sinks: list[str] = []
    if _is_ordered(view, set(known)):
        for layer in view.layers:
            content = _layer_digest(layer, (item and known[item.index] for item in layer.inputs))
            _name_outputs(layer, content, known)
            if not layer.outputs:  # conditions and assertions act without a tensor of their own
                sinks.append(content)
        outputs = [known[tensor.index] for tensor in view.outputs]
    else:  # a loop: tensors are told apart by where they stand
        content = _digest(
            [
                _layer_digest(layer, (item and item.index for item in layer.inputs))
                + str([(item.index, item.dtype, item.shape) for item in layer.outputs])
                for layer in view.layers
            ]
        )
        outputs = [content, *(str(tensor.index) for tensor in view.outputs)]
    inputs = [known[tensor.index] for tensor in view.inputs]
    types = [(tensor.dtype, tensor.shape) for tensor in view.outputs]
    debug = [known.get(index, str(index)) for index in view.debug_tensors]
    marks = (view.flags, view.allowed_formats, view.output_marks, debug)
    return _digest("network", inputs, outputs, types, sorted(sinks), *marks)


def _is_ordered(view: NetworkView, made: set[int]) -> bool:
    made = set(made)
    for layer in view.layers:
        if any(item is not None and item.index not in made for item in layer.inputs):
            return False
        made.update(tensor.index for tensor in layer.outputs)
    return True


def _name_outputs(layer: LayerView, content: str, known: dict[int, str]) -> None:
    for place, tensor in enumerate(layer.outputs):
        known[tensor.index] = _digest(content, place, _type_of(tensor))


def _type_of(tensor: TensorView) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape
