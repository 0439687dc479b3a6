"""The stand-in has what the real classes have: what is tested against it is tested for them."""

from __future__ import annotations

import inspect
import re

import pytest
import tensorrt_rtx as real
import torch

from singlecard.network.card import Card
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime.engine import EngineRunner
from tests.runtime import stand_in
from tests.runtime.engines import X, doubling, runner
from tests.runtime.memory import CaptureError, HostCard
from tests.runtime.stand_in import CLASSES, Machine, Misuse


def _public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_member_is_one_of_the_real_class(kind: type) -> None:
    """A method that TensorRT does not have would pass here, and fail on the user's card."""
    genuine = getattr(real, kind.__name__)
    for name in _public(kind):
        assert hasattr(genuine, name), name
        ours, theirs = getattr(kind, name), getattr(genuine, name)
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if isinstance(ours, property):
            assert (ours.fset is None) == (theirs.fset is None), name


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_arguments_have_the_real_names_and_order(kind: type) -> None:
    """Addresses and sizes are all integers: exchanged, they would corrupt the card's memory."""
    genuine = getattr(real, kind.__name__)
    for name in _public(kind):
        if isinstance(getattr(kind, name), property):
            continue
        ours = [
            item for item in inspect.signature(getattr(kind, name)).parameters if item != "self"
        ]
        doc = getattr(genuine, name).__doc__
        overloads = [
            re.findall(r", (\w+): ", found)
            for found in re.findall(rf"{name}\((self: [^\n]*)\) ->", doc)
        ]
        assert ours in overloads, (name, ours, overloads)


def test_the_card_that_is_none_has_the_members_of_the_real_one() -> None:
    """What runs only here would be a runtime for tests."""
    ours, genuine = set(vars(HostCard)), set(_public(Card)) | {"stream", "empty"}
    assert {name for name in ours if not name.startswith("_")} - {
        "on",
        "elsewhere",
        "recording",
    } <= genuine
    assert set(_public(Card)) - {"device", "bytes"} <= ours


def test_enumerations_are_the_real_ones() -> None:
    """A strategy by a wrong name would be refused only on the card."""
    for name in stand_in.ENUMS:
        assert hasattr(real, name), name


def test_what_the_real_classes_lack_is_refused(machine: Machine) -> None:
    """The stand-in would let a typing error in a setting through."""
    config = stand_in.IRuntimeConfig(machine)
    with pytest.raises(Misuse, match="has no cuda_graphs"):
        config.cuda_graphs = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        config.cuda_graph_strategy = True


def _launched(
    machine: Machine,
) -> tuple[EngineRunner, stand_in.IExecutionContext, torch.Tensor, torch.Tensor]:
    """Return a runner, its context that ran on an input of two rows, the input and the result."""
    run = runner(machine, doubling((-1, 3)), RuntimeSettings(shared_scratch=False))
    x = machine.tensor(torch.ones(2, 3))
    (result,) = run([x])
    (context,) = machine.contexts
    return run, context, x, result


def test_a_graph_reads_and_writes_at_the_addresses_of_its_recording(machine: Machine) -> None:
    """A design that gives other memory to each call would pass here, and fail on the card."""
    run, context, x, result = _launched(machine)
    replay = machine.card.recorded(context.execute_async_v3)
    x.fill_(3)
    torch.testing.assert_close(result, torch.full((2, 3), 2.0))  # a recording does nothing
    replay()
    torch.testing.assert_close(result, torch.full((2, 3), 6.0))
    del x
    with pytest.raises(Misuse, match="lies in memory that was freed"):
        replay()


def test_what_cuda_refuses_in_a_recording_is_refused(machine: Machine) -> None:
    """It would end the recording on the card."""
    run, context, x, result = _launched(machine)
    refused = [
        lambda: machine.card.empty((1,), (1,), dtype=torch.float32),
        lambda: machine.card.mark(),
        lambda: context.execute_async_v3(0),
        lambda: context._engine.create_execution_context(context._config()),
        lambda: context._engine.unload_weights(),
        machine.card.mark().synchronize,
        machine.card.recorded(context.execute_async_v3),
    ]
    for work in refused:
        with pytest.raises((Misuse, CaptureError)):
            machine.card.recorded(lambda stream, work=work: work())


def test_a_graph_of_a_context_that_has_other_shapes_since_is_refused(machine: Machine) -> None:
    """NVIDIA: internal state changes with them, and the graph would use that."""
    run, context, x, result = _launched(machine)
    replay = machine.card.recorded(context.execute_async_v3)
    context.set_input_shape(X, (1, 3))
    with pytest.raises(Misuse, match="other shapes"):
        replay()
    with pytest.raises(Misuse, match="before a launch with the same shapes"):
        machine.card.recorded(context.execute_async_v3)
