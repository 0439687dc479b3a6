"""Reading a network back: what the engine cache and the reference evaluator both stand on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from singlecard.errors import LoweringError
from singlecard.network.flavour import tensorrt
from singlecard.network.inspect import LayerView, view_network
from singlecard.network.inspect_layers import ATTENTION_FIELDS, LAYER_FIELDS, LEFT_OUT_EVERYWHERE
from singlecard.network.logger import Messages
from singlecard.network.versions import new_builder

trt = tensorrt()


class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
    """Keeps what TensorRT says."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def network(recorder: Recorder) -> Any:
    builder = new_builder(recorder, Messages())
    definition = builder.create_network()
    yield definition


def own_properties(cls: type) -> set[str]:
    """What a layer class has beyond what every layer has."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base in (trt.ILayer, object):
            break
        names.update(name for name in vars(base) if not name.startswith("_"))
    return names


@pytest.mark.parametrize("kind", sorted(trt.LayerType.__members__))
def test_the_table_knows_every_property_of_every_layer(kind: str) -> None:
    """A property that is not read is not in the digest: the cache would load a wrong engine."""
    fields = LAYER_FIELDS[kind]
    known = {*fields.attributes, *fields.weights, *fields.left_out, "set_input"}
    if fields.owner is not None:
        known.add(fields.owner)
    cls = getattr(trt, fields.class_name, None)
    if cls is None:  # The kind is left from a plugin interface that is gone.
        assert fields.opaque
        return
    assert own_properties(cls) <= known
    assert {name for name in vars(trt.ILayer) if not name.startswith("_")} <= LEFT_OUT_EVERYWHERE


def test_the_table_knows_every_property_of_an_attention() -> None:
    """Two models that differ in their causal kind would share one engine."""
    known = {*ATTENTION_FIELDS.attributes, *ATTENTION_FIELDS.left_out}
    assert {name for name in vars(trt.IAttention) if not name.startswith("_")} <= known


def test_the_table_has_no_property_that_was_never_there() -> None:
    """A misspelt property would be skipped on every version without a word."""
    only_older = {("NORMALIZATION", "compute_precision"), ("PLUGIN", "plugin")}
    missing = {
        (kind, name)
        for kind, fields in LAYER_FIELDS.items()
        for name in (*fields.attributes, *fields.weights, *fields.left_out)
        if not hasattr(getattr(trt, fields.class_name, None), name)
    }
    assert missing <= only_older


def only(network: Any) -> LayerView:
    """The view of the layer that was added last."""
    return view_network(network).layers[-1]


def test_attributes_are_plain_values(network: Any) -> None:
    """A digest of TensorRT objects would differ from one process to the next."""
    x = network.add_input("x", trt.float32, (1, 2, -1, 8))
    kernel, bias = np.ones((4, 2, 3, 3), np.float32), np.ones(4, np.float32)
    layer = network.add_convolution_nd(x, 4, (3, 3), kernel, bias)
    layer.stride_nd, layer.post_padding = (2, 1), (0, 1)
    view = only(network)
    assert view.kind == "CONVOLUTION"
    assert view.attributes == {
        "kernel_size_nd": (3, 3),
        "dilation_nd": (1, 1),
        "num_groups": 1,
        "num_output_maps": 4,
        "padding_mode": "EXPLICIT_ROUND_DOWN",
        "pre_padding": (0, 0),
        "post_padding": (0, 1),
        "stride_nd": (2, 1),
    }
    assert view.outputs[0].shape == (1, 4, -1, 7)
    assert view.weights["kernel"].count == 72


def test_weights_are_not_copied(network: Any) -> None:
    """Reading a model of some gigabytes would need its memory twice."""
    values = np.arange(6, dtype=np.float32)
    network.add_constant((2, 3), values)
    weights = only(network).weights["weights"]
    assert weights.address == values.ctypes.data
    assert weights.data.tobytes() == values.tobytes()
    assert weights.data.readonly


@pytest.mark.parametrize(
    ("dtype", "name", "count"),
    [
        ("BF16", "bfloat16", 8),
        ("FP8", "fp8", 16),
        ("E8M0", "e8m0", 16),
        ("INT4", "int4", 32),
        ("FP4", "fp4", 32),
    ],
)
def test_weights_that_numpy_cannot_hold(network: Any, dtype: str, name: str, count: int) -> None:
    """A low-precision model could neither be cached nor checked."""
    raw = np.arange(16, dtype=np.uint8)
    member = trt.DataType.__members__[dtype]
    network.add_constant((count,), trt.Weights(member, raw.ctypes.data, count))
    weights = only(network).weights["weights"]
    assert (weights.dtype, weights.count, weights.nbytes) == (name, count, 16)
    assert weights.data.tobytes() == raw.tobytes()


def test_half_a_byte_at_the_end_counts_as_one(network: Any) -> None:
    """The last of an odd number of INT4 weights would be missing in the digest."""
    raw = np.array([0x21, 0x03], np.uint8)
    network.add_constant((3,), trt.Weights(trt.int4, raw.ctypes.data, 3))
    assert only(network).weights["weights"].data.tobytes() == b"\x21\x03"


def test_a_layer_without_a_bias_has_no_elements_there(network: Any) -> None:
    """An empty array has no address, and reading one would end the process."""
    x = network.add_input("x", trt.float32, (1, 2, 4, 4))
    network.add_convolution_nd(x, 2, (1, 1), np.ones((2, 2, 1, 1), np.float32))
    bias = only(network).weights["bias"]
    assert (bias.dtype, bias.count, bytes(bias.data)) == ("float32", 0, b"")


def test_what_an_input_gives_is_none_among_the_attributes(network: Any) -> None:
    """A slice with a run-time start would look like one that starts at 0."""
    x = network.add_input("x", trt.float32, (4, 4))
    start = network.add_input("start", trt.int32, (2,))
    layer = network.add_slice(x, (0, 0), (2, 2), (1, 1))
    assert only(network).attributes["start"] == (0, 0)
    layer.set_input(1, start)
    view = only(network)
    assert view.attributes["start"] is None
    assert [tensor and tensor.name for tensor in view.inputs] == ["x", "start"]


def test_optional_inputs_that_are_not_given_keep_their_place(network: Any) -> None:
    """The fill value of a padding would be read as the start of a slice."""
    x = network.add_input("x", trt.float32, (4, 4))
    layer = network.add_slice(x, (0, 0), (2, 5), (1, 1))
    layer.mode = trt.SampleMode.FILL
    layer.set_input(4, network.add_input("fill", trt.float32, ()))
    inputs = only(network).inputs
    assert [tensor and tensor.name for tensor in inputs] == ["x", None, None, None, "fill"]


def test_permutations_have_the_rank_of_their_tensor(network: Any) -> None:
    """Networks that are equal would differ in entries that mean nothing."""
    x = network.add_input("x", trt.float32, (2, 3, 4))
    layer = network.add_shuffle(x)
    layer.first_transpose, layer.reshape_dims = (2, 0, 1), (4, 6)
    attributes = only(network).attributes
    assert attributes["first_transpose"] == (2, 0, 1)
    assert attributes["second_transpose"] == (0, 1)


def test_one_tensor_has_one_index(network: Any) -> None:
    """Wiring would be read by names, which TensorRT lets two tensors share."""
    x = network.add_input("x", trt.float32, (2,))
    first = network.add_unary(x, trt.UnaryOperation.EXP).get_output(0)
    second = network.add_unary(x, trt.UnaryOperation.NEG).get_output(0)
    first.name = second.name = "same"
    total = network.add_elementwise(first, second, trt.ElementWiseOperation.SUM).get_output(0)
    network.mark_output(total)
    view = view_network(network)
    exp, neg, add = view.layers
    assert add.inputs == (exp.outputs[0], neg.outputs[0])
    assert exp.inputs[0] is neg.inputs[0] is view.inputs[0]
    assert len({tensor.index for layer in view.layers for tensor in layer.outputs}) == 3
    assert view.outputs == add.outputs


def test_attention_shows_its_settings_and_all_its_inputs(network: Any) -> None:
    """A masked and an unmasked attention would share one engine."""
    query = network.add_input("query", trt.float16, (1, 4, 3, 8))
    key = network.add_input("key", trt.float16, (1, 2, 5, 8))
    kinds = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    attention = network.add_attention_v2(query, key, key, *kinds)
    attention.mask = network.add_input("mask", trt.bool, (1, 1, 3, 5))
    attention.decomposable = True
    view = view_network(network)
    boundary, output = view.layers
    names = [tensor and tensor.name for tensor in boundary.inputs]
    assert names[:4] == ["query", "key", "key", "mask"]
    assert boundary.attributes["decomposable"] is True
    assert boundary.attributes["causal_kind"] == "NONE"
    assert boundary.attributes["normalization_quantize_to_type"] is None
    assert boundary.attributes["attention"] == output.attributes["attention"] == 0


def test_loops_and_conditionals_are_numbered(network: Any) -> None:
    """The layers of two loops would be taken for those of one."""
    x = network.add_input("x", trt.float32, (4, 2))
    condition = network.add_input("condition", trt.bool, ())
    trips = network.add_input("trips", trt.int32, ())
    for _ in range(2):
        loop = network.add_loop()
        loop.add_trip_limit(trips, trt.TripLimit.COUNT)
        loop.add_iterator(x)
    choice = network.add_if_conditional()
    choice.set_condition(condition)
    choice.add_input(x)
    layers = view_network(network).layers
    assert [layer.attributes.get("loop") for layer in layers] == [0, 0, 1, 1, None, None]
    assert [layer.attributes.get("conditional") for layer in layers[4:]] == [0, 0]


def test_inputs_show_what_the_builder_is_promised(network: Any) -> None:
    """Two inputs that must be equally long would not be told from two that need not."""
    x = network.add_input("x", trt.float32, (-1, 2))
    x.set_dimension_name(0, "batch")
    x.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
    y = network.add_unary(x, trt.UnaryOperation.EXP).get_output(0)
    network.mark_output(y)
    network.mark_debug(y)
    view = view_network(network)
    assert view.dimension_names == (("batch", None),)
    assert view.allowed_formats[0] == 1
    assert view.debug_tensors == (view.outputs[0].index,)


def test_outputs_for_the_host_are_told_from_those_for_the_card(network: Any) -> None:
    """An engine that leaves its shapes on the card would be loaded for one that hands them out."""
    x = network.add_input("x", trt.float32, (-1, 2))
    first, second = (network.add_shape(x).get_output(0) for _ in range(2))
    network.mark_output(first)
    network.mark_output_for_shapes(second)
    assert view_network(network).output_marks == ("execution", "shape")


def test_a_layer_that_is_not_valid_is_named(network: Any) -> None:
    """A user would get 'Could not get tensor shape' and no layer."""
    a = network.add_input("a", trt.float32, (2, 3))
    b = network.add_input("b", trt.float32, (4, 5))
    layer = network.add_elementwise(a, b, trt.ElementWiseOperation.SUM)
    layer.name = "decoder.add"
    with pytest.raises(LoweringError, match=r"decoder\.add|Unnamed"):
        view_network(network)


def test_reading_says_nothing_in_the_log(network: Any, recorder: Recorder) -> None:
    """Every start would print errors of TensorRT about properties that are not set."""
    x = network.add_input("x", trt.float32, (1, 4, 8, 8))
    shape = network.add_input("shape", trt.int32, (4,))
    network.add_shuffle(x).set_input(1, shape)
    network.add_resize(x).set_input(1, shape)
    network.add_fill((2,), trt.FillOperation.LINSPACE, trt.int32)
    network.add_slice(x, (0,) * 4, (1,) * 4, (1,) * 4)
    network.add_softmax(x)
    network.add_topk(x, trt.TopKOperation.MAX, 2, 0b10)
    network.add_pooling_nd(x, trt.PoolingType.MAX, (2, 2))
    kinds = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    network.add_attention_v2(x, x, x, *kinds)
    scale = network.add_constant((), np.ones((), np.float32)).get_output(0)
    quantized = network.add_quantize(x, scale, trt.int8).get_output(0)
    network.add_dequantize(quantized, scale, trt.float32)
    view_network(network)
    assert recorder.errors == []
