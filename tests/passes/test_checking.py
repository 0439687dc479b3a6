"""The check of passes finds what a wrong rule does, and names the rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import singlecard
import singlecard.passes as passes
from singlecard.capture.program import Program
from singlecard.errors import OptionError, RewriteError
from singlecard.passes import FIRST, PASSES, SECOND, attention_bias, batch_norm, simplify
from singlecard.passes.checking import Checker, Pass, run_passes, run_program
from singlecard.passes.constants import fold_constants
from singlecard.passes.rule import EXACT, Exactness, exactness_of, rule
from singlecard.passes.samples import samples_of
from tests.graphs import program_of

aten = torch.ops.aten
X = torch.randn(2, 9, 32)


class Shared(nn.Module):
    """Attention whose keys are its values; its projections have a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, kv = (layer(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for layer in (self.a, self.b))
        return F.scaled_dot_product_attention(q, kv, kv)


def first_user(node: Any) -> fx.Node | None:
    """What a rule took for the only use of a value, once."""
    alone = isinstance(node, fx.Node) and len(node.users) == 1
    return next(iter(node.users)) if alone else None


def test_a_rule_that_counts_users_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """This fault was in a release: keys and values lost a bias that only the keys can spare."""
    program = program_of(Shared(), X)
    monkeypatch.setattr(attention_bias, "only_user", first_user)
    with pytest.raises(RewriteError, match="drop_key_bias at .*attention") as raised:
        simplify(program)
    assert (raised.value.rule, raised.value.in_pass) == ("drop_key_bias", "SECOND")
    assert raised.value.op is not None and "singlecard.attention" in raised.value.op
    assert "moved by" in raised.value.error


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_compiled_model_raises(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Other faults of ours end in PyTorch's answer: a test of a model would pass by it."""
    monkeypatch.setattr(attention_bias, "only_user", first_user)
    with pytest.raises(RewriteError, match="drop_key_bias at"):
        singlecard.verify(Shared().eval(), (X,), options={"precision": precision})


def test_nothing_is_checked_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user does not wait for checks that are there for us."""
    monkeypatch.delenv("SINGLECARD_CHECK")
    monkeypatch.setattr(attention_bias, "only_user", first_user)
    simplify(program_of(Shared(), X))
    monkeypatch.setenv("SINGLECARD_CHECK", "pass")
    with pytest.raises(OptionError, match="SINGLECARD_CHECK=passes"):
        simplify(program_of(Shared(), X))


def test_every_rule_says_how_exact_it_is() -> None:
    """What is not declared would be held to nothing."""
    for function in (*FIRST, *SECOND):
        assert isinstance(exactness_of(function), Exactness), function.__name__
    assert {item.name for item in PASSES} >= {"fold_constants", "merge_common"}


def replaced(target: Any, change: Callable[[fx.Node], None]) -> Callable[[Program, fx.Node], bool]:
    @rule()
    def fault(program: Program, node: fx.Node) -> bool:
        if node.target is not target:
            return False
        change(node)
        return True

    return fault


def operands_turned(node: fx.Node) -> None:
    node.args = (node.args[1], node.args[0], *node.args[2:])


def second_dropped(node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


def number_changed(node: fx.Node) -> None:
    node.args = (node.args[0], node.args[1] * 1.0001)  # type: ignore[operator]


def axis_changed(node: fx.Node) -> None:
    node.args = (node.args[0], 1, *node.args[2:])


FAULTS: dict[str, tuple[Callable[..., Any], Any, Callable[[fx.Node], None]]] = {
    "a difference the wrong way round": (
        lambda x: x.sin() - x.cos(),
        aten.sub.Tensor,
        operands_turned,
    ),
    "a term of a few millionths": (lambda x: x + 1e-6 * x.cos(), aten.add.Tensor, second_dropped),
    "a factor": (lambda x: x.sin() * 0.5, aten.mul.Tensor, number_changed),
    "an axis": (lambda x: x.softmax(2), aten._softmax.default, axis_changed),
    "a comparison": (lambda x: x > x.sin(), aten.gt.Tensor, operands_turned),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    """Tolerance for FP32 would let small ones through: programs run in float64."""
    function, target, change = FAULTS[name]
    fault = replaced(target, change)
    with pytest.raises(RewriteError) as raised:
        run_passes(program_of(function, X), [Pass.of_rules("list", [fault])])
    assert raised.value.rule == "fault" and str(target).partition(".")[0] in str(raised.value.op)


def test_masks_are_tried_with_rows_that_hide_all() -> None:
    """Values as they usually are would not tell zero from NaN, nor from a mean of all values."""

    def visible(program: Program, node: fx.Node) -> bool:
        if len(node.args) < 4 or "attention" not in str(node.target):
            return False
        with program.graph.inserting_before(node):
            held = program.graph.call_function(aten.clamp.default, (node.args[3], -1e4))
        held.meta = dict(node.args[3].meta)  # type: ignore[union-attr]
        node.update_arg(3, held)
        return True

    attend = lambda q, m: F.scaled_dot_product_attention(q, q.sin(), q.cos(), m)  # noqa: E731
    program = program_of(attend, torch.randn(1, 2, 5, 8), torch.randn(5, 5))
    run_passes(program, PASSES)
    with pytest.raises(RewriteError, match="special values"):
        run_passes(program, [Pass.of_rules("list", [rule()(visible)])])


def test_constants_may_be_rounded_where_a_rule_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folded batch norm differs by what its weights are rounded by, and by no more."""
    model = nn.Sequential(nn.Conv1d(9, 4, 3), nn.BatchNorm1d(4)).eval()
    model[1].running_mean = torch.randn(4)  # type: ignore[assignment]
    simplify(program_of(model, X))
    whole = batch_norm.Affine
    monkeypatch.setattr(
        batch_norm, "Affine", lambda mean, scale, bias: whole(mean * 1.01, scale, bias)
    )
    with pytest.raises(RewriteError, match="fold_batch_norm at"):
        simplify(program_of(model, X))


def test_sizes_that_vary_are_tried() -> None:
    """A rule that bakes the size of the example in is right for the example."""

    def baked(program: Program, node: fx.Node) -> bool:
        if node.target is not aten.view.default:
            return False
        node.update_arg(1, [int(size) if isinstance(size, int) else 18 for size in node.args[1]])  # type: ignore[union-attr]
        return True

    x = torch.randn(2, 9, 4)
    torch._dynamo.mark_dynamic(x, 1)
    program = program_of(lambda x: x.reshape(x.shape[0] * x.shape[1], 4) * 2, x)
    assert len({sample.inputs[-1].shape for sample in samples_of(program)}) == 3
    with pytest.raises(RewriteError):
        run_passes(program, [Pass.of_rules("list", [rule()(baked)])])


def test_guards_hold_for_the_sizes_that_are_tried() -> None:
    """Sizes that the graph was not captured for would raise, and blame a rule for it."""

    def halves(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] % 2 == 0
        return x.view(2, -1, 4).sum(0) + 1

    x = torch.randn(12, 4)
    torch._dynamo.mark_dynamic(x, 0)
    checker = Checker(program_of(halves, x))
    sizes = {tuple(sample.inputs[-1].shape) for sample, _, _ in checker.answers}
    assert len(sizes) > 1 and all(size[0] % 2 == 0 for size in sizes)


def test_what_cannot_be_tried_is_left_alone() -> None:
    """Random numbers are no fault of a rule."""
    program = program_of(lambda x: x + torch.rand_like(x), X)
    assert not Checker(program).answers
    run_passes(program, PASSES)


def test_a_fault_of_a_whole_pass_is_named() -> None:
    """Folding and merging are no rules: the pass is named."""

    def forget(program: Program) -> None:
        for node in list(program.calls()):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]

    broken = dataclasses.replace(PASSES[3], run=forget)
    assert broken.exactness != EXACT and passes.PASSES[3].name == "fold_constants"
    with pytest.raises(RewriteError, match="^fold_constants changed") as raised:
        run_passes(program_of(lambda x: x.sin(), X), [broken])
    assert raised.value.rule is None


def test_weights_that_are_rounded_once_are_told_from_a_changed_answer() -> None:
    """Signs of what rounded weights give were blamed on the pass that rounds them for good."""
    weight = nn.Parameter(torch.randn(32, 64))
    program = program_of(lambda x: x @ weight.bfloat16().float() > 0, X)
    samples = [
        (sample, run_program(program, sample.inputs, True)) for sample in samples_of(program)
    ]
    fold_constants(program)
    assert not [node for node in program.calls() if node.target is aten._to_copy.default]
    for sample, (before,) in samples:
        (after,) = run_program(program, sample.inputs, True)
        assert torch.equal(before, after), sample.name


def test_what_an_op_makes_is_of_the_type_that_is_tried() -> None:
    """PyTorch misreads a mask of float32 beside queries of float64: a rule was blamed for it."""

    def masked(x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((x.shape[2], x.shape[2]), float("-inf")).triu(1)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    program = program_of(masked, torch.randn(2, 2, 9, 8), dynamic=True)
    for sample in samples_of(program):
        (given,) = (value for value in sample.inputs if isinstance(value, torch.Tensor))
        (answer,) = run_program(program, sample.inputs, True)
        double = given.double()
        length = given.shape[2]
        mask = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)
        expected = F.scaled_dot_product_attention(double, double, double, attn_mask=mask)
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)
