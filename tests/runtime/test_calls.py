"""What a call of an engine does: bindings, results, and what it does not do again."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.lowering.lower import output_name
from singlecard.network.runtime_settings import RuntimeSettings
from tests.runtime.engines import F32, OUT, X, Y, caching, doubling, positives, runner
from tests.runtime.stand_in import IExecutionContext, Machine, Spec


def _calls(machine: Machine) -> Counter[str]:
    return Counter(name for kind, name, _ in machine.calls if kind == "IExecutionContext")


def test_a_call_gives_the_engines_answer(machine: Machine) -> None:
    """Nothing else matters if the answer is another."""
    x = machine.tensor(torch.randn(2, 3))
    (result,) = runner(machine, doubling())([x])
    torch.testing.assert_close(result, x * 2)
    assert result.data_ptr() != x.data_ptr()


def test_a_repeated_call_sets_only_the_outputs_address_and_launches(machine: Machine) -> None:
    """Host time: a decoder calls an engine for each token, and would wait for Python."""
    run = runner(machine, doubling())
    x = machine.tensor(torch.randn(2, 3))
    kept = run([x])
    machine.calls.clear()
    again = run([x])
    assert _calls(machine) == {"set_tensor_address": 1, "execute_async_v3": 1}
    assert len(machine.calls) == 2
    del again
    for _ in range(3):  # the allocator gives the same memory again, or other memory
        run([x])
    assert set(_calls(machine)) == {"set_tensor_address", "execute_async_v3"}
    del kept


def test_nothing_is_set_again_where_nothing_changed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whose results land in the same memory pays for the launch alone."""
    run = runner(machine, doubling())
    x, out = machine.tensor(torch.randn(2, 3)), machine.tensor(torch.zeros(2, 3))
    run([x])
    monkeypatch.setattr(machine.card, "empty", lambda shape, strides, dtype: out)
    run([x])
    machine.calls.clear()
    run([x])
    assert [name for _, name, _ in machine.calls] == ["execute_async_v3"]


def test_another_shape_is_set_and_its_outputs_are_remembered(machine: Machine) -> None:
    """A dynamic engine would ask for shapes at each call, or run with those of another."""
    run = runner(machine, doubling((-1, 3)))
    for rows in (2, 5, 2, 5, 2):
        x = machine.tensor(torch.randn(rows, 3))
        torch.testing.assert_close(run([x])[0], x * 2)
    assert _calls(machine)["set_input_shape"] == 5
    assert _calls(machine)["get_tensor_shape"] == 2
    machine.calls.clear()
    run([machine.tensor(torch.randn(2, 3))])
    assert _calls(machine)["set_input_shape"] == 0


def test_only_the_shape_that_changed_is_set(machine: Machine) -> None:
    """An engine of a hundred inputs would set them all when one grows."""
    spec = Spec(
        {X: (F32, (-1,)), Y: (F32, (4,))},
        {OUT: F32},
        lambda shapes: [shapes[0]],
        lambda values: [values[0] + values[1].sum()],
    )
    run, y = runner(machine, spec), machine.tensor(torch.ones(4))
    run([machine.tensor(torch.ones(3)), y])
    machine.calls.clear()
    run([machine.tensor(torch.ones(5)), y])
    names = [args[0] for _, name, args in machine.calls if name == "set_input_shape"]
    assert names == [X]


@pytest.mark.parametrize(
    "change",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.expand(3, *x.shape[1:]).t()],
    ids=["transposed", "strided", "expanded"],
)
def test_what_is_not_contiguous_is_copied(
    machine: Machine, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """TensorRT reads memory in order: it would compute with other items."""
    x = change(machine.tensor(torch.randn(1, 6)))
    run = runner(machine, doubling(x.shape))
    torch.testing.assert_close(run([x])[0], x * 2)


def test_what_is_not_aligned_is_copied(machine: Machine) -> None:
    """TensorRT takes addresses of 256 bytes; a slice of a batch lies anywhere."""
    x = machine.tensor(torch.randn(7, 3))[1:]
    assert x.is_contiguous() and x.data_ptr() % 256
    torch.testing.assert_close(runner(machine, doubling(x.shape))([x])[0], x * 2)


def test_the_same_memory_in_another_order_is_copied(machine: Machine) -> None:
    """An address that was right at the last call would be taken for the same input."""
    run = runner(machine, doubling((3, 3)))
    x = machine.tensor(torch.randn(3, 3))
    for given in (x, x.t(), x):
        torch.testing.assert_close(run([given])[0], given * 2)


@pytest.mark.parametrize("refused", [X, OUT])
def test_an_address_that_was_refused_is_told_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The engine would go on with the memory of an earlier call."""
    run = runner(machine, doubling())
    x, other, out = (machine.tensor(torch.randn(2, 3)) for _ in range(3))
    run([x])
    monkeypatch.setattr(machine.card, "empty", lambda shape, strides, dtype: out)
    tell = IExecutionContext.set_tensor_address
    with monkeypatch.context() as patch:
        patch.setattr(
            IExecutionContext,
            "set_tensor_address",
            lambda self, name, address: name != refused and tell(self, name, address),
        )
        with pytest.raises(RuntimeFailure, match="takes no memory"):
            run([other])
    torch.testing.assert_close(run([other])[0], other * 2)


def test_what_is_contiguous_and_aligned_is_bound_as_it_is(machine: Machine) -> None:
    """A copy of each input would cost what the engine saves."""
    x = machine.tensor(torch.randn(2, 3))
    runner(machine, doubling())([x])
    bound = [args for _, name, args in machine.calls if name == "set_tensor_address"]
    assert (X, x.data_ptr()) in bound


def test_inputs_and_results_without_items(machine: Machine) -> None:
    """An empty batch has no address, and TensorRT takes none that is null."""
    run = runner(machine, doubling((-1, 3)))
    assert run([machine.tensor(torch.randn(0, 3))])[0].shape == (0, 3)


def test_a_cache_is_written_where_it_lies(machine: Machine) -> None:
    """A decoder's cache would stay as it was, or be copied at each token."""
    x, cache = machine.tensor(torch.randn(2, 4)), machine.tensor(torch.randn(2, 4))
    expected, version = x + cache, cache._version
    run = runner(machine, caching())
    allocations = machine.memory.allocations
    written, total = run([x, cache])
    assert written is cache
    torch.testing.assert_close(cache, expected)
    torch.testing.assert_close(total, expected.sum(1))
    assert cache._version > version  # autograd, and we ourselves, must see that it changed
    assert machine.memory.allocations - allocations <= 2  # the sum, and scratch


def test_a_cache_that_is_a_view_is_copied_back(machine: Machine) -> None:
    """What was written to a copy would be lost without a word."""
    x, whole = machine.tensor(torch.randn(2, 4)), machine.tensor(torch.randn(4, 2))
    cache = whole.t()
    expected = x + cache
    written, _ = runner(machine, caching())([x, cache])
    assert written is cache
    torch.testing.assert_close(whole.t(), expected)


def test_results_whose_size_only_the_run_tells(machine: Machine) -> None:
    """They would have the size of the upper bound, or of the call before."""
    run = runner(machine, positives())
    for items in ([1, -2, 3, 4, -5, 6, 7, -8], [-1.0] * 8, [2.0] * 8):
        x = machine.tensor(torch.tensor(items, dtype=F32))
        found, more = run([x])
        torch.testing.assert_close(found, x[x > 0])
        torch.testing.assert_close(more, x + 1)
    assert _calls(machine)["set_output_allocator"] == 1


def test_several_results_come_in_order(machine: Machine) -> None:
    """Results would be exchanged."""
    names = [output_name(at) for at in range(3)]
    spec = doubling(
        outputs=dict.fromkeys(names, F32),
        shapes=lambda shapes: [shapes[0], (3, 2), ()],
        compute=lambda values: [values[0] * 2, values[0].t(), values[0].sum()],
    )
    x = machine.tensor(torch.randn(2, 3))
    doubled, turned, total = runner(machine, spec)([x])
    torch.testing.assert_close(doubled, x * 2)
    torch.testing.assert_close(turned, x.t())
    torch.testing.assert_close(total, x.sum())


def test_a_thousand_calls_take_no_more_memory_than_one(machine: Machine) -> None:
    """A service runs for weeks."""
    run = runner(machine, doubling((-1, 3)))
    batches = [machine.tensor(torch.randn(rows, 3)) for rows in (1, 2, 3)]
    for x in batches:
        run([x])
    used = machine.memory.used
    for at in range(1000):
        run([batches[at % 3]])
    assert machine.memory.used == used


def test_all_goes_with_the_runner(machine: Machine) -> None:
    """A model that is replaced would leave its weights and scratch on the card."""
    run = runner(machine, positives(weights=4096))
    run([machine.tensor(torch.ones(8))])
    assert machine.memory.used and machine.contexts and machine.engines
    del run
    gc.collect()
    assert not machine.contexts and not machine.engines and not machine.memory.used


def test_settings_reach_tensorrt(machine: Machine) -> None:
    """An option that does nothing."""
    settings = RuntimeSettings(cuda_graphs=True, specialization="eager")
    run = runner(machine, doubling(), settings)
    run([machine.tensor(torch.ones(2, 3))])
    (context,) = machine.contexts
    config = context._config()
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    plain = runner(machine, doubling())
    plain([machine.tensor(torch.ones(2, 3))])
    (other,) = set(machine.contexts) - {context}
    assert other._config().cuda_graph_strategy.name == "DISABLED"


def test_full_tensorrt_runs_with_what_it_has(make_machine: Callable[..., Machine]) -> None:
    """It has no header check, no runtime cache and no CUDA graphs of its own."""
    machine = make_machine(full=True)
    run = runner(machine, doubling(), RuntimeSettings(cuda_graphs=True), held=machine)
    x = machine.tensor(torch.ones(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)
    machine.check()
