"""The entry of the evaluator: feeds, names, types, memory, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from singlecard.errors import EvaluationError
from singlecard.network.inspect import view_network
from singlecard.reference import evaluate
from singlecard.reference.execution import Execution


def relu(sketch: Any, value: Any) -> Any:
    layer = sketch.add("activation", value, sketch.trt.ActivationType.RELU)
    return layer.get_output(0)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no value for the input 'input0'"),
        ({"input0": torch.zeros(2, 3), "mask": torch.zeros(1)}, "no input 'mask'"),
        ({"input0": torch.zeros(2, 3).double()}, r"convert it with .to\(torch.float32\)"),
        ({"input0": torch.zeros(2, 4)}, r"has the shape \(-1, 3\)"),
        ({"input0": torch.zeros(3)}, "feed a tensor of that shape"),
    ],
)
def test_feeds_that_do_not_fit_are_named(sketch: Any, feeds: Any, words: str) -> None:
    """A user would get a torch error from the middle of the network."""
    output = relu(sketch, sketch.input(torch.zeros(2, 3), (-1, 3)))
    sketch.network.mark_output(output)
    with pytest.raises(EvaluationError, match=words):
        evaluate(sketch.network, feeds)


def test_a_failing_layer_is_named(sketch: Any) -> None:
    """A user could not tell which of a thousand layers does not fit the feeds."""
    sizes = [torch.zeros(3), torch.zeros(4)]
    inputs = [sketch.input(value, (-1,)) for value in sizes]
    layer = sketch.add("elementwise", *inputs, sketch.trt.ElementWiseOperation.SUM)
    layer.name = "decoder.add"
    with pytest.raises(EvaluationError, match=r"layer 'decoder.add' \(ELEMENTWISE\)"):
        sketch.run(layer.get_output(0))


def test_random_numbers_are_refused(sketch: Any) -> None:
    """A comparison with eager would fail for no reason that a user can see."""
    layer = sketch.add("fill", (4,), sketch.trt.FillOperation.RANDOM_UNIFORM, sketch.trt.float32)
    with pytest.raises(EvaluationError, match="has no defined values"):
        sketch.run(layer.get_output(0))


def test_answers_belong_to_the_caller(sketch: Any) -> None:
    """Writing to an answer would change a weight of the model, or the input that was fed."""
    weight, fed = torch.ones(3), torch.ones(3)
    constant = sketch.constant(weight)
    passed = sketch.add("identity", sketch.input(fed)).get_output(0)
    for answer in sketch.run(sketch.add("identity", constant).get_output(0), passed):
        answer.zero_()
    assert weight.tolist() == fed.tolist() == [1.0, 1.0, 1.0]


def test_each_layer_rounds_to_the_type_it_declares(sketch: Any) -> None:
    """A long chain in FP16 would look better offline than it is on the card."""
    x, step = torch.tensor([2048.0]).half(), torch.tensor([1.0]).half()
    value, one = sketch.input(x), sketch.constant(step)
    for _ in range(4):
        layer = sketch.add("elementwise", value, one, sketch.trt.ElementWiseOperation.SUM)
        value = layer.get_output(0)
    assert sketch.run(value).tolist() == [2048.0]  # 2049 is not an FP16 number


def test_half_precision_sums_in_single(sketch: Any) -> None:
    """A matmul with a long inner dimension would lose digits that tensor cores keep."""
    trt, a, b = sketch.trt, torch.randn(4, 4096).half(), torch.randn(4096, 4).half()
    none = trt.MatrixOperation.NONE
    layer = sketch.add("matrix_multiply", sketch.input(a), none, sketch.input(b), none)
    assert torch.equal(sketch.run(layer.get_output(0)), (a.float() @ b.float()).half())


def test_settings_of_the_caller_do_not_reach_the_arithmetic(sketch: Any) -> None:
    """In a script that trains with autocast, the check would compare with rounded sums."""
    trt, a, b = sketch.trt, torch.randn(4, 64), torch.randn(64, 4)
    none = trt.MatrixOperation.NONE
    layer = sketch.add("matrix_multiply", sketch.input(a), none, sketch.input(b), none)
    precision = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16):
        got = sketch.run(layer.get_output(0))
    torch.testing.assert_close(got, a @ b)
    assert torch.get_float32_matmul_precision() == precision


def test_bfloat16_constants_are_read_without_numpy(sketch: Any) -> None:
    """BF16 models could not be checked at all, since NumPy has no such type."""
    values = torch.tensor([1.0, -2.5, 3.140625]).bfloat16()
    packed = bytes(values.view(torch.uint8).tolist())
    got = sketch.run(relu(sketch, sketch.packed("BF16", packed, (3,))))
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [1.0, 0.0, 3.140625]


def test_values_are_dropped_after_their_last_use(sketch: Any) -> None:
    """Checking a large model would need the memory of all its activations at once."""
    value = sketch.input(torch.randn(8))
    for _ in range(50):
        value = relu(sketch, value)
    sketch.network.mark_output(value)
    view = view_network(sketch.network)
    feeds = {view.inputs[0].index: sketch.feeds["input0"]}
    execution = Execution(view, feeds, torch.device("cpu"))
    execution.run()
    (frame,) = execution._frames
    assert frame.values.keys() == {view.outputs[0].index}


def test_deep_networks_do_not_exhaust_the_stack(sketch: Any) -> None:
    """A model of some thousand layers would end in a RecursionError."""
    value = sketch.input(torch.randn(2))
    for _ in range(3000):
        value = relu(sketch, value)
    assert sketch.run(value).shape == (2,)


def test_layers_may_be_added_in_any_order(sketch: Any) -> None:
    """A mask that was made after the attention it belongs to would not be found."""
    x = torch.tensor([[1.0, 2.0, 3.0]])
    layer = sketch.add("slice", sketch.input(x), (0, 0), (1, 2), (1, 1))
    layer.set_input(1, sketch.constant(torch.tensor([0, 1])))
    assert sketch.run(layer.get_output(0)).tolist() == [[2.0, 3.0]]


def test_a_view_can_be_evaluated_many_times(sketch: Any) -> None:
    """Every batch of a calibration would read the whole network again."""
    output = relu(sketch, sketch.input(torch.zeros(2)))
    sketch.network.mark_output(output)
    view = view_network(sketch.network)
    for value in ([1.0, -1.0], [-2.0, 2.0]):
        (answer,) = evaluate(view, {"input0": torch.tensor(value)}).values()
        assert answer.tolist() == [max(element, 0.0) for element in value]
