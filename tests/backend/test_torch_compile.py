"""``torch.compile(model, backend="singlecard")``: eager's answers, whatever a model does."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import singlecard.backend
import singlecard.session
from singlecard import BuildError, CacheError, LoweringError, OptionError, RuntimeFailure
from singlecard.backend import compile_graph
from singlecard.network.inspect import view_network
from singlecard.options import Options
from singlecard.session import Session
from singlecard.warning import SinglecardWarning
from tests.backend.harness import REFERENCE, Compiled, check, check_left, equal
from tests.graphs import program_of


@dataclasses.dataclass
class Answer:
    first: torch.Tensor
    rest: Any


def nested(x: torch.Tensor) -> Any:
    return {"sum": (x + 1, None, [x * 2, 3, True]), "name": "n", "empty": (), "third": 1.5}


CASES: dict[str, Callable[[torch.Tensor], Any]] = {
    "None": lambda x: (None, x + 1, None),
    "a nest": nested,
    "an input": lambda x: (x, x + 1),
    "a view of an input": lambda x: (x.t(), x[0], x + 1),
    "constants": lambda x: (torch.arange(4), torch.full((2,), 2.5), torch.tensor(3), x + 1),
    "only constants": lambda x: torch.arange(4) * 2,
    "integers and truth values": lambda x: (x.long() * 2, x > 0, (x > 0) & (x < 1), x.argmax()),
    "no dimensions": lambda x: (x.sum(), x.sum() * 2, x.mean().view(1)),
    "one value twice": lambda x: ((y := x + 1), y),
    "other types": lambda x: (x.double() * 2, (x > 0).to(torch.uint8) + 1, x.half() * 2),
    "complex parts": lambda x: torch.fft.fft(x).abs(),
    "an empty tensor": lambda x: (x[:0] + 1, x + 1),
    "a shape": lambda x: (x.shape[0] * 2, x + x.shape[1]),
    "a branch kept in the graph": lambda x: torch.cond(
        x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)
    ),
    "an unsupported op": lambda x: torch.special.bessel_j0(x * 2).t().reshape(-1) + 1,
    "nothing to compute": lambda x: x,
}


#: What no network computes any of.
LEFT = ("only constants", "complex parts", "nothing to compute")


@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str) -> None:
    """Whatever a model returns, its user's code gets what eager gives."""
    comparison = check_left if name in LEFT else check
    comparison(CASES[name], torch.randn(3, 4))


def test_dataclass_output() -> None:
    """Models of transformers answer with objects, and callers use their attributes."""

    def model(x: torch.Tensor) -> Answer:
        return Answer(x + 1, {"none": None, "more": x * 2})

    x = torch.randn(3)
    got = Compiled(model)(x)
    assert isinstance(got, Answer) and got.rest["none"] is None
    equal((got.first, got.rest["more"]), (x + 1, x * 2))


def test_identity_of_inputs_and_views() -> None:
    """Writing into an output that is an input changes the input, as in eager."""
    x = torch.randn(2, 3)
    same, view, plain = Compiled(lambda x: (x, x.t(), x + 0))(x)
    assert same is x and view.data_ptr() == x.data_ptr()
    assert plain.data_ptr() != x.data_ptr()


MUTATIONS: dict[str, Callable[..., Any]] = {
    "add_": lambda x, y: x.add_(y),
    "copy_": lambda x, y: x.copy_(y) * 2,
    "a slice": lambda x, y: x[1:].mul_(2).sum() + y,
    "an element": lambda x, y: (x.__setitem__((0, 0), 7.0), y + 1)[1],
    "index_copy_": lambda x, y: x.index_copy_(0, torch.tensor([1]), y[:1]).sum(),
    "two inputs": lambda x, y: (x.add_(1), y.mul_(2), x + y),
    "an input and its own view": lambda x, y: (x.t().add_(1), x + y),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutated_inputs(name: str) -> None:
    """An in-place change that is lost shows at the second call, in wrong answers."""
    model = MUTATIONS[name]
    args = torch.randn(3, 3), torch.randn(3, 3)
    ours, theirs = [a.clone() for a in args], [a.clone() for a in args]
    compiled = Compiled(model)
    with torch.no_grad():
        for _ in range(2):
            equal(compiled(*ours), model(*theirs))
            equal(ours, theirs)


class Counter(nn.Module):
    """Counts its calls in a buffer, and keeps a running sum in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.total.add_(x)
        return self.total / self.count


def test_mutated_buffers() -> None:
    """A state that does not advance gives the first answer for ever."""
    ours, theirs = Counter(), Counter()
    compiled = Compiled(ours)
    for _ in range(3):
        x = torch.randn(3)
        equal(compiled(x), theirs(x))
    assert int(ours.count) == 3 and compiled.graphs == 1
    equal(ours.total, theirs.total)


def test_training_statistics() -> None:
    """A batch norm left in training mode updates its statistics under no_grad too."""
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    compiled = Compiled(ours)
    for _ in range(2):
        x = torch.randn(8, 4)
        with torch.no_grad():
            equal(compiled(x), theirs(x), 1e-4)
    equal(ours.running_var, theirs.running_var)
    assert int(ours.num_batches_tracked) == 2


def test_python_numbers_in_and_out() -> None:
    """Numbers that change from call to call must not stay what they were in the first."""

    def model(x: torch.Tensor, a: Any, name: str) -> Any:
        return x * a, a + 1, name, x.shape[0] * a

    compiled = Compiled(model)
    for number in (1, 2, 3, 2.5, 3.5, True):
        equal(compiled(torch.ones(2), number, "n"), model(torch.ones(2), number, "n"))


def test_keyword_arguments_and_defaults() -> None:
    """Most models of transformers are called by keyword."""

    def model(x: torch.Tensor, *, scale: Any = 2, mask: torch.Tensor | None = None) -> Any:
        return x * scale if mask is None else x * scale + mask

    compiled = Compiled(model)
    x = torch.randn(3)
    for kwargs in ({}, {"scale": 3}, {"mask": torch.ones(3), "scale": torch.tensor(2.0)}):
        equal(compiled(x, **kwargs), model(x, **kwargs))


def test_layouts_of_inputs() -> None:
    """An engine reads memory in order: a transposed input taken as it lies is another one."""
    x = torch.randn(2, 3, 4, 4)
    conv = nn.Conv2d(3, 4, 3).eval()
    for value in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2], x.transpose(2, 3)):
        check(conv, value) if value.shape[2] > 2 else check(lambda v: v * 2, value)
    check(lambda x: x @ x.t(), torch.randn(6, 4)[::2].t())
    check(lambda x: x + 1, torch.ones(1).expand(3))


def test_shapes_become_dynamic_by_themselves() -> None:
    """The second batch size must be right, and the third must not compile again."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    compiled = Compiled(model)
    for batch in (2, 5, 3, 9, 7):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            equal(compiled(x), model(x))
    assert compiled.graphs == 2


def test_dynamic_from_the_start() -> None:
    """dynamic=True compiles once for all sizes; two sizes that were equal may part."""

    def model(x: torch.Tensor, y: torch.Tensor) -> Any:
        return x.sum(0)[:, None] * y, x.shape[1] + y.shape[0], x.reshape(-1).mean()

    compiled = Compiled(model, dynamic=True)
    for a, b in ((4, 5), (6, 6), (7, 3)):  # Dynamo takes sizes that are equal at first for one
        x, y = torch.randn(3, a), torch.randn(b)
        equal(compiled(x, y), model(x, y))
    assert compiled.graphs == 1


def test_marked_dynamic() -> None:
    """A range that the user gives holds at both of its ends."""
    model = nn.Linear(4, 2).eval()
    compiled = Compiled(model)
    x = torch.randn(3, 4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    for value in (x, torch.randn(2, 4), torch.randn(64, 4)):
        with torch.no_grad():
            equal(compiled(value), model(value))
    assert compiled.graphs == 1


def test_graph_breaks() -> None:
    """What Dynamo cannot trace cuts the model; the parts still give its answers."""
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        if y.sum() > 0:
            seen.append(1)
            return y + 1
        return y - 1

    compiled = Compiled(model)
    for x in (torch.ones(3), -torch.ones(3)):
        equal(compiled(x), model(x))
    assert compiled.graphs >= 2


def changed(layer: nn.Linear, how: str) -> None:
    """Change a layer's weights in one of the ways that user code does."""
    new = torch.full((4, 4), 0.5)
    if how == "copy_":
        layer.weight.copy_(new)
    elif how == "data":
        layer.weight.data = new
    elif how == "parameter":
        layer.weight = nn.Parameter(new)
    elif how == "state":
        layer.load_state_dict({"weight": new, "bias": torch.ones(4)})
    elif how == "assign":
        layer.load_state_dict({"weight": new, "bias": torch.ones(4)}, assign=True)
    elif how == "optimizer":
        layer.weight.grad, layer.bias.grad = torch.ones(4, 4), torch.ones(4)
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
    elif how == "half and back":
        layer.half().float()
        layer.weight.mul_(2)


@pytest.mark.parametrize(
    "how", ["copy_", "data", "parameter", "state", "assign", "optimizer", "half and back"]
)
def test_changed_weights_are_noticed(how: str) -> None:
    """An engine of the old weights answers as the model before its last training step."""
    layer = nn.Linear(4, 4)
    compiled, x = Compiled(layer), torch.randn(2, 4)
    before = compiled(x)
    with torch.no_grad():
        changed(layer, how)
        equal(compiled(x), layer(x))
        assert not torch.allclose(compiled(x), before)


def test_replaced_buffers_and_plain_tensors() -> None:
    """Tensors that are no parameters can be replaced and changed as well."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.ones(2))
            self.plain = torch.ones(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.plain + self.shift

    module, x = Holder(), torch.ones(2)
    compiled = Compiled(module)
    equal(compiled(x), module(x))
    module.shift = torch.zeros(2)
    equal(compiled(x), module(x))
    module.plain.mul_(3)
    equal(compiled(x), module(x))


def test_unchanged_weights_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building again on each call would make every call take seconds."""
    compiles = []
    original = Session.compile
    monkeypatch.setattr(
        Session, "compile", lambda self, *given: compiles.append(1) or original(self, *given)
    )
    compiled, x = Compiled(nn.Linear(4, 4)), torch.randn(2, 4)
    for _ in range(5):
        compiled(x)
    assert len(compiles) == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


def test_two_instances_of_one_class() -> None:
    """Dynamo reuses the code of a class: the second instance must not get the first's weights."""
    blocks, x = [Block() for _ in range(3)], torch.randn(2, 4)
    compiled = [Compiled(block) for block in blocks]
    for _ in range(2):
        for ours, theirs in zip(compiled, blocks, strict=True):
            with torch.no_grad():
                equal(ours(x), theirs(x))

    def shared(block: Block, x: torch.Tensor) -> torch.Tensor:
        return block(x)

    one = Compiled(shared)
    for block in (*blocks, *blocks):
        with torch.no_grad():
            equal(one(block, x), block(x))


def test_inference_mode() -> None:
    """Weights and inputs made under inference_mode have no version to look at."""
    with torch.inference_mode():
        model, x = nn.Linear(4, 4), torch.randn(2, 4)
        compiled = Compiled(model)
        equal(compiled.call(x), model(x))
        equal(compiled.call(x), model(x))
    outside = nn.Linear(4, 4)
    compiled = Compiled(outside)
    with torch.inference_mode():
        equal(compiled.call(torch.ones(2, 4)), outside(torch.ones(2, 4)))


def warned(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(item.message) for item in caught if issubclass(item.category, SinglecardWarning)]


def test_gradients_stay_in_eager_with_one_warning() -> None:
    """A training step through an engine would have no gradients, and train nothing."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    compiled = Compiled(model)

    def train() -> None:
        for _ in range(3):
            compiled.call(x).sum().backward()
        compiled.call(torch.randn(5, 4)).sum().backward()

    assert len(messages := warned(train)) == 1 and "inference only" in messages[0]
    weight = model[0].weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_no_gpu_is_eager_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop the model just runs: same answers, one warning, no time lost on a capture."""
    monkeypatch.setattr(singlecard.backend, "capture", lambda *_: pytest.fail("captured"))
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    compiled = Compiled(model, execution="auto")

    def run() -> None:
        with torch.no_grad():
            equal(compiled(x), model(x))
            equal(compiled(torch.randn(7, 4)).shape, torch.Size((7, 4)))

    if not torch.cuda.is_available():
        assert len(messages := warned(run)) == 1 and "no CUDA GPU" in messages[0]


@pytest.mark.parametrize("targets", ["sm89", "portable"])
def test_targets_are_built_without_a_gpu(tmp_path: Path, targets: str) -> None:
    """A CI box fills the cache for cards that it does not have, and still gets answers."""
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    compiled = Compiled(model, execution="eager", targets=targets, cache_dir=tmp_path / "c")
    with torch.no_grad():
        equal(compiled(x), model(x))
    assert len([path for path in (tmp_path / "c").iterdir() if path.is_dir()]) == 1


def test_insisting_on_the_card_without_one() -> None:
    """execution="engine" must not quietly run on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(BackendCompilerFailed) as caught:
        Compiled(nn.Linear(4, 4), execution="engine")(torch.ones(1, 4))
    assert isinstance(caught.value.inner_exception, RuntimeFailure)
    assert "no CUDA GPU" in str(caught.value)


def test_options_are_validated_through_torch_compile() -> None:
    """The error that the user sees names the option and the nearest valid one."""
    compiled = torch.compile(nn.Linear(4, 4), backend=compile_graph, options={"precison": "fp16"})
    with pytest.raises(BackendCompilerFailed, match="did you mean 'precision'") as caught:
        compiled(torch.ones(1, 4))
    assert isinstance(caught.value.inner_exception, OptionError)


def test_modes_are_refused_by_name() -> None:
    """Dynamo's own TypeError would say that compile_graph got an unexpected argument."""
    compiled = torch.compile(nn.Linear(4, 4), backend="singlecard", mode="max-autotune")
    with pytest.raises(BackendCompilerFailed, match="mode='max-autotune' is of TorchInductor"):
        compiled(torch.ones(1, 4))


def test_by_name() -> None:
    """``backend="singlecard"`` works with no import, from the installed entry point."""
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "singlecard" not in points.names:
        pytest.skip("the package is not installed, only on the path")
    model, x = nn.Linear(4, 4).eval(), torch.randn(2, 4)
    compiled = torch.compile(model, backend="singlecard", options=REFERENCE)
    with torch.no_grad():
        equal(compiled(x), model(x))


def middle(x: torch.Tensor) -> torch.Tensor:
    return torch.special.bessel_j0(x * 2) + 1


def test_strict_names_op_and_line() -> None:
    """The user wants to know which op of which line keeps the model from one engine."""
    with pytest.raises(BackendCompilerFailed) as caught:
        Compiled(middle, strict=True)(torch.ones(3))
    assert isinstance(caught.value.inner_exception, LoweringError)
    assert "bessel_j0" in str(caught.value) and "test_torch_compile.py" in str(caught.value)


def test_unsupported_op_is_left_out_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    """One op that TensorRT lacks must not cost the engines around it, nor go unnoticed."""
    with caplog.at_level(logging.WARNING, "singlecard"):
        check(middle, torch.randn(3))
    reasons = [record.getMessage() for record in caplog.records]
    assert len(reasons) == 1 and "bessel_j0" in reasons[0] and "stays in PyTorch" in reasons[0]
    session = Session(Options(min_block_size=1), build=False)
    session.compile(program_of(middle, torch.ones(3)))
    (graph,) = session.graphs
    assert (graph.ops, graph.lowered_ops, len(graph.fallback)) == (3, 2, 1)


@pytest.mark.parametrize("error", [BuildError("no tactic"), LoweringError("opaque layer")])
def test_failing_build_is_eager(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An engine that cannot be built must not take the model down."""

    def fail(*_: Any) -> Any:
        raise error

    name = "get_engine" if isinstance(error, BuildError) else "key_parts"
    monkeypatch.setattr(singlecard.session, name, fail)
    session = Session(Options(cache_dir=tmp_path))
    run = session.compile(program_of(nn.Linear(4, 4), torch.ones(2, 4)))
    assert [item.reason for item in session.graphs[0].fallback] == [str(error)]
    assert session.graphs[0].engines == [] and run is not None
    model = nn.Linear(4, 4)
    compiled = Compiled(model, targets="sm89", cache_dir=tmp_path)
    with torch.no_grad():
        equal(compiled(torch.ones(2, 4)), model(torch.ones(2, 4)))
    with pytest.raises(BackendCompilerFailed, match=str(error)):
        Compiled(nn.Linear(4, 5), targets="sm89", cache_dir=tmp_path, strict=True)(torch.ones(2, 4))


def test_fault_in_a_converter_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is a slower model and a line to report, not a crash."""

    def broken(*_: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(singlecard.session, "lower", broken)
    session = Session(Options(), build=False)
    session.compile(program_of(lambda x: x + 1, torch.ones(2)))
    assert "please report" in session.graphs[0].fallback[0].reason
    check_left(lambda x: x + 1, torch.ones(2))


def test_unusable_cache_is_an_error(tmp_path: Path) -> None:
    """Engines that are built again in every process are worse than an error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendCompilerFailed, match="cache_dir") as caught:
        Compiled(nn.Linear(4, 4), targets="sm89", cache_dir=tmp_path / "file")(torch.ones(1, 4))
    assert isinstance(caught.value.inner_exception, CacheError)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), ("tf32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)]
)
def test_precisions(precision: str, tolerance: float) -> None:
    """Each precision gives eager's answers to its own digits, and eager's types."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).eval()
    x = torch.randn(3, 16)
    with torch.no_grad():
        equal(Compiled(model, precision=precision)(x), model(x), tolerance)


def test_models_in_their_own_precision() -> None:
    """A model that is half already stays so, whatever ``precision`` says of FP32 parts."""
    for dtype in (torch.float16, torch.bfloat16):
        model, x = nn.Linear(8, 8).to(dtype), torch.randn(2, 8).to(dtype)
        with torch.no_grad():
            equal(Compiled(model)(x), model(x), 2e-2)
            equal(Compiled(model, precision="fp16")(x), model(x), 2e-2)


def test_autocast() -> None:
    """Autocast inside and around a model decides the types that its user sees."""
    linear = nn.Linear(8, 8).eval()

    def inside(x: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = linear(x)
            z = F.scaled_dot_product_attention(y[None], x[None], x[None])
        return y, z, y.float() + x

    x = torch.randn(4, 8)
    with torch.no_grad():
        equal(Compiled(inside)(x), inside(x), 3e-2)

    def outside(x: torch.Tensor) -> Any:
        return linear(x), F.scaled_dot_product_attention(x[None], linear(x)[None], x[None])

    compiled = Compiled(outside)
    for context in (torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext()):
        with context, torch.no_grad():
            equal(compiled(x), outside(x), 3e-2)


def test_several_threads() -> None:
    """A server calls one model from many threads, each of which must get its own answer."""
    blocks = [Block() for _ in range(4)]
    shared = Compiled(lambda block, x: block(x))
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        torch.manual_seed(seed)
        try:
            for round_ in range(6):
                block, x = blocks[(seed + round_) % 4], torch.randn(2, 4)
                with torch.no_grad():
                    equal(shared(block, x), block(x))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems


def test_tied_weights_are_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding tied to the last layer is a third of a small language model's memory."""
    lowered = []
    original = singlecard.session.lower
    monkeypatch.setattr(
        singlecard.session, "lower", lambda *a: lowered.append(original(*a)) or lowered[-1]
    )

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))  # type: ignore[no-any-return]

    for precision in ("fp32", "fp16"):
        lowered.clear()
        Compiled(Tied(), precision=precision)(torch.tensor([1, 2, 3]))
        layers = view_network(lowered[0].net.definition).layers
        large = [x for x in layers if any(w.count == 32 * 8 for w in x.weights.values())]
        assert len(large) == 1


def test_attention_rows_that_see_nothing() -> None:
    """Left-padded batches have rows whose mask is empty: eager answers zero there."""
    q = torch.randn(1, 2, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    check(lambda q, m: F.scaled_dot_product_attention(q, q, q, m), q, mask)


def test_attention_rows_that_an_additive_mask_hides() -> None:
    """A mask made by hand with minus infinities would poison a padded batch."""
    q = torch.randn(1, 2, 4, 8)
    added = torch.zeros(4, 4).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf)
    added[0] = -torch.inf
    check(lambda q, m: F.scaled_dot_product_attention(q, q, q, m), q, added)
