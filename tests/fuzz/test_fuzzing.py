"""The fuzzer itself: what it writes runs, and what is wrong does not pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from singlecard.faults import Faults
from singlecard.runtime import executable, runners
from tests.fuzz.campaign import Kind, Kinds, examine_script, genome_of_number
from tests.fuzz.checking import Answers, Finding, compare
from tests.fuzz.closeness import Rounded, tolerance_of
from tests.fuzz.composing import STEPS, script_of
from tests.fuzz.genome import genome_of, shrunk
from tests.fuzz.script import Script
from tests.fuzz.writer import Writer

#: The least options that evaluate a network for a program of any size.
REFERENCE = {"execution": "reference", "min_block_size": 1}

#: A value for whatever a step may look for.
EVERYTHING = (
    "torch.randint(0, 5, (4,))", "torch.rand(2, 5) > 0.5", "torch.randn(8)", "torch.randn(8, 8)",
    "torch.randn(2, 8, 8)", "torch.randn(2, 8, 8, 8)", "3", "0.5", "True",
)  # fmt: skip


def script(*body: str, returns: str = "v", **options: Any) -> Script:
    """Return a program of one tensor, called with two batches."""
    calls = ("(torch.randn(2, 8),)", "(torch.randn(3, 8),)")
    return Script((), ("x",), body, returns, calls, {**REFERENCE, **options})


def found_in(program: Script, direct: bool = True) -> str:
    """Return the kind of what is found, or ""."""
    checked = examine_script(program, direct)
    assert checked.evaluations, "the reference did not run"
    return "" if checked.finding is None else checked.finding.kind


@pytest.mark.parametrize("direct", (True, False))
def test_right_program_passes(direct: bool) -> None:
    """A fuzzer that reports what is right is switched off."""
    assert found_in(script("v = torch.tanh(x) @ x.mT", "x.mul_(2)"), direct) == ""


def test_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is off by a thousandth would pass."""
    evaluate = runners.evaluate

    def off(network: Any, feeds: Any) -> dict[str, Tensor]:
        return {name: value * 1.001 for name, value in evaluate(network, feeds).items()}

    monkeypatch.setattr(runners, "evaluate", off)
    assert found_in(script("v = x.sin() * 2")) == "wrong value"


def test_lost_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that stands still would pass: its first answer is right."""
    monkeypatch.setattr(executable.Executable, "_write_back", lambda *given: None)
    assert found_in(script("x.add_(1)", "v = x * 2")) == "wrong value"


def test_other_layout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a caller reads by strides would be another element."""
    monkeypatch.setattr(executable, "laid_out", lambda value, order: value.contiguous())
    assert found_in(script("v = (x * 2).t()")) == "other strides"


def test_what_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of ours in a user's call would pass, or one that PyTorch's answer hides."""

    def broken(self: Any, args: Sequence[Any]) -> Any:
        raise KeyError(7)

    def raised(self: Any, error: Exception, instead: Any) -> Any:
        raise error

    monkeypatch.setattr(executable.Executable, "__call__", broken)
    hidden = examine_script(script("v = x * 2"), True)
    assert hidden.finding is not None and "KeyError: N: please report" in hidden.finding.kind
    monkeypatch.setattr(Faults, "answer", raised)
    checked = examine_script(script("v = x * 2"), True)
    assert checked.finding is not None and checked.finding.kind.startswith("raised KeyError")


def answers(outputs: Any, memory: tuple[int, ...] = ()) -> Answers:
    return Answers(outputs, (), {}, memory)


def kind_of(got: Any, want: Any) -> str:
    found = compare(answers(got), answers(want), "fp32")
    return "" if found is None else found.kind


def test_answers_are_compared_in_all_that_a_caller_sees() -> None:
    """Each of these reaches the caller's next line."""
    x = torch.arange(6.0).view(2, 3)
    assert kind_of(x.clone(), x) == ""
    assert kind_of((x, None), [x, None]) == "another structure"
    assert kind_of((x, 2), (x, 3)) == "another number"
    assert kind_of(x.double(), x) == "another type"
    assert kind_of(x[:1], x) == "another shape"
    assert kind_of(x.t().contiguous().t(), x) == "other strides"
    assert kind_of(x.where(x != 5, torch.nan), x) == "wrong value"
    assert kind_of(x.long() + 1, x.long()) == "wrong value"
    shared = compare(answers((x, x), (0, 0)), answers((x, x), (0, 1)), "fp32")
    assert shared is not None and shared.kind == "other sharing of memory"


def test_order_of_axes_is_kept_where_an_output_has_gaps() -> None:
    """A view with gaps may come without them, but not turned."""
    wide = torch.arange(24.0).view(4, 6)
    assert kind_of(wide[:, ::2].contiguous(), wide[:, ::2]) == ""
    assert kind_of(wide[:, ::2].t().contiguous(), wide[:, ::2].t()) == "other strides"


def test_tolerance_follows_from_rounding() -> None:
    """A fixed one passes faults in tame programs, or reports the rounding of steep ones."""
    x = torch.linspace(1.0, 2.0, 50)

    def allowed(call: Any) -> float:
        others = []
        for seed in range(6):
            with Rounded("fp32", seed):
                others.append(call(x))
        return float(tolerance_of(call(x), others))

    assert allowed(lambda x: x * 3) < 1e-4
    steep = allowed(lambda x: (x * 3 + 1e4) - 1e4)
    assert 1e-3 < steep < 1.0
    flipped = [torch.tensor([1, 2]), torch.tensor([2, 2])]
    assert tolerance_of(torch.tensor([1, 2]), flipped) is None


def test_programs_differ_and_come_again() -> None:
    """A run that cannot be repeated, or that repeats itself, finds nothing that can be mended."""
    texts = [
        made.text() for n in range(30) if (made := script_of(genome_of_number(3, n))) is not None
    ]
    assert len(set(texts)) == len(texts) > 25
    again = script_of(genome_of_number(3, 0))
    assert again is not None and again.text() == texts[0]


def test_what_is_found_shrinks() -> None:
    """Thirty lines of noise hide which of them is wrong."""

    def fails(genome: Any) -> bool:
        made = script_of(genome)
        return made is not None and any("F.relu(" in line for line in made.body)

    genome = next(g for n in range(1000) if fails(g := genome_of(Random(n))) and len(g.steps) > 4)
    short = script_of(shrunk(genome, fails))
    assert short is not None and len(short.body) <= 3 and len(short.calls) == 1


def test_a_kind_is_known_again(tmp_path: Any) -> None:
    """One fault would fill the list a hundred times, or two would be counted as one."""
    kinds = Kinds(tmp_path)
    program = dataclasses.replace(script("v = x"), steps=("linear", "{x}[1:]", "norm"))
    name = kinds.add(Kind("wrong value", ("linear", "norm"), "text", 5))
    assert kinds.of(Finding("wrong value", ""), program) == name
    assert kinds.of(Finding("other strides", ""), program) is None
    assert (
        kinds.of(Finding("wrong value", ""), dataclasses.replace(program, steps=("norm",))) is None
    )


def can_be_written(name: str) -> bool:
    random = Random(name)
    for _ in range(60):
        writer = Writer(1, 1e5)
        for place, text in enumerate(EVERYTHING):
            writer.spaces[0][f"in{place}"] = eval(text, {"torch": torch})
            writer.values.append(f"in{place}")
        if writer.attempt(STEPS[name], random.randbytes(10)):
            return True
    return False


@pytest.mark.filterwarnings("ignore")  # PyTorch's, on degenerate sizes
def test_every_step_can_be_written() -> None:
    """A step with a slip in its text is left out of every program, and nobody notices."""
    assert [name for name in STEPS if not can_be_written(name)] == []
