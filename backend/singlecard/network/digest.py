"""The content digest of a network: equal for networks that compute the same in the same way.

Names do not count, nor does the order in which layers were added, so a model captured offline and
the same model captured at run time have one digest. Beside it stand parts that say what of two
networks differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import blake3

from singlecard.errors import LoweringError
from singlecard.hashing import hasher_for
from singlecard.network.inspect import LayerView, NetworkView, TensorView


def _digest(*parts: object) -> str:
    return _text_digest(repr(parts))


def _text_digest(text: str) -> str:
    return blake3.blake3(text.encode()).hexdigest()


def network_digest(view: NetworkView) -> str:
    """Return the digest of a network as 64 hexadecimal digits.

    Raises:
        LoweringError: the network holds a layer whose content cannot be read back.
    """
    return network_parts(view)["network"]


def network_parts(view: NetworkView) -> dict[str, str]:
    """Return the digest of a network as ``network``, and parts that explain it.

    The digest alone tells networks apart. A part explains where two digests differ, and no more:

    - ``network.inputs``: types and shapes, readable.
    - ``network.structure``: layers, their attributes, the types they compute with and their wiring,
      without shapes and without what constants hold.
    - ``network.weights``: what constants hold, in an order that follows from the wiring.
    - ``network.outputs``: types, shapes and marks, readable.

    Raises:
        LoweringError: the network holds a layer whose content cannot be read back.
    """
    weights = [_weights_digest(layer) for layer in view.layers]
    local = [_layer_text(layer) for layer in view.layers]
    is_ordered = _is_ordered(view)
    inputs = [
        _digest("input", position, tensor.dtype, tensor.shape, view.dimension_names[position])
        for position, tensor in enumerate(view.inputs)
    ]
    whole = _follow(
        view,
        is_ordered,
        inputs,
        [f"{text}, {content}" for text, content in zip(local, weights, strict=True)],
        lambda content, slot, tensor: _digest(content, slot, (tensor.dtype, tensor.shape)),
    )
    structure = _follow(
        view,
        is_ordered,
        [str(position) for position in range(len(view.inputs))],
        [
            f"{text}, {[role for role, _, count, _ in content if count]}"
            for text, content in zip(local, weights, strict=True)
        ],
        lambda content, slot, tensor: f"{content} {slot} {tensor.dtype}",
    )
    types = [(tensor.dtype, tensor.shape) for tensor in view.outputs]
    marks = (view.flags, view.allowed_formats, view.output_marks, whole.debug)
    order = _reached(view, whole) if is_ordered else range(len(view.layers))
    return {
        "network": _digest("network", inputs, whole.outputs, types, sorted(whole.sinks), *marks),
        "network.inputs": _inputs_text(view),
        "network.structure": _digest(
            structure.outputs, sorted(structure.sinks), structure.debug, view.flags
        ),
        "network.weights": _digest([weights[place] for place in order if weights[place]]),
        "network.outputs": _outputs_text(view),
    }


def _weights_digest(layer: LayerView) -> tuple[tuple[str, str, int, str], ...]:
    result = []
    for role, weights in sorted(layer.weights.items()):
        hasher = hasher_for(weights.nbytes)
        hasher.update(weights.data)
        result.append((role, weights.dtype, weights.count, hasher.hexdigest()))
    return tuple(result)


def _layer_text(layer: LayerView) -> str:
    if layer.opaque:
        raise LoweringError(
            f"TensorRT does not tell everything about the {layer.kind} layer {layer.name}, so that "
            "its network has no digest and its engine cannot be cached"
        )
    return f"{layer.kind!r}, {sorted(layer.attributes.items())}"


@dataclass(frozen=True)
class _Followed:
    """Digests that hold all that lies before them: of tensors by index, outputs and sinks.

    Attributes:
        known: of each tensor that can be followed back to the inputs.
        outputs: of what the network answers.
        sinks_by_place: of layers without outputs, by their place: conditions and assertions.
        debug: of tensors that are marked for debugging.
    """

    known: dict[int, str]
    outputs: list[str]
    sinks_by_place: dict[int, str]
    debug: list[str]

    @property
    def sinks(self) -> Iterable[str]:
        return self.sinks_by_place.values()


def _follow(
    view: NetworkView,
    is_ordered: bool,
    inputs: Sequence[str],
    facts: Sequence[str],
    name_of: Callable[[str, int, TensorView], str],
) -> _Followed:
    """Name tensors from the inputs on, each by all that it is made of.

    Args:
        inputs: names of the network's inputs.
        facts: of each layer, what counts beside its inputs and outputs.
        name_of: names a tensor by the layer's digest, its place among the outputs and its type.
    """
    known = {tensor.index: text for tensor, text in zip(view.inputs, inputs, strict=True)}
    sinks: dict[int, str] = {}
    if is_ordered:
        for place, (layer, text) in enumerate(zip(view.layers, facts, strict=True)):
            wiring = tuple(item and known[item.index] for item in layer.inputs)
            content = _text_digest(f"({text}, {wiring})")
            for slot, tensor in enumerate(layer.outputs):
                known[tensor.index] = name_of(content, slot, tensor)
            if not layer.outputs:
                sinks[place] = content
        outputs = [known[tensor.index] for tensor in view.outputs]
    else:  # a loop: tensors are told apart by where they stand
        content = _digest(
            [
                (
                    text,
                    tuple(item and item.index for item in layer.inputs),
                    [
                        (item.index, name_of("", slot, item))
                        for slot, item in enumerate(layer.outputs)
                    ],
                )
                for layer, text in zip(view.layers, facts, strict=True)
            ]
        )
        outputs = [content, *(str(tensor.index) for tensor in view.outputs)]
    debug = [known.get(index, str(index)) for index in view.debug_tensors]
    return _Followed(known, outputs, sinks, debug)


def _is_ordered(view: NetworkView) -> bool:
    made = {tensor.index for tensor in view.inputs}
    for layer in view.layers:
        if any(item is not None and item.index not in made for item in layer.inputs):
            return False
        made.update(tensor.index for tensor in layer.outputs)
    return True


def _reached(view: NetworkView, whole: _Followed) -> list[int]:
    """Return the places of layers in the order of first use, seen from the outputs backwards."""
    maker = {
        tensor.index: place for place, layer in enumerate(view.layers) for tensor in layer.outputs
    }
    ends = [maker.get(tensor.index) for tensor in view.outputs]
    ends += [maker.get(at) for at in sorted(view.debug_tensors, key=lambda at: whole.known[at])]
    ends += [place for _, place in sorted((text, at) for at, text in whole.sinks_by_place.items())]
    order: dict[int, None] = {}
    waiting = ends[::-1]
    while waiting:
        place = waiting.pop()
        if place is None or place in order:
            continue
        order[place] = None
        inputs = view.layers[place].inputs
        waiting += [maker.get(item.index) for item in reversed(inputs) if item is not None]
    return list(order)


def _inputs_text(view: NetworkView) -> str:
    """Return what the network is given, such as ``float32[2,8] int64[batch=-1]``."""
    formats = view.allowed_formats[: len(view.inputs)]
    parts = zip(view.inputs, view.dimension_names, formats, strict=True)
    return " ".join(_type_text(tensor, names) + _format_text(bits) for tensor, names, bits in parts)


def _outputs_text(view: NetworkView) -> str:
    formats = view.allowed_formats[len(view.inputs) :]
    parts = zip(view.outputs, view.output_marks, formats, strict=True)
    return " ".join(
        _type_text(tensor) + ("" if mark == "execution" else f"({mark})") + _format_text(bits)
        for tensor, mark, bits in parts
    )


def _type_text(tensor: TensorView, names: Sequence[str | None] = ()) -> str:
    sizes = [str(size) for size in tensor.shape]
    for axis, name in enumerate(names):
        if name:
            sizes[axis] = f"{name}={sizes[axis]}"
    return f"{tensor.dtype}[{','.join(sizes)}]"


def _format_text(bits: int) -> str:
    """Return the memory layouts that a tensor may have, or "" where it may have any."""
    return "" if bits & (bits + 1) == 0 else f"(formats {bits:#x})"
