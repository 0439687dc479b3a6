"""A model that went through a file answers as it did before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.exporters.exporter_dynamo import register_pytree_node

from singlecard import backend
from singlecard.errors import ArtifactError, OptionError
from singlecard.options import Options
from singlecard.session import Session
from tests.artifact.machine import Evaluated, Machine, memory, same
from tests.artifact.models import LLAMA, Attending, Bessel, Cached, Counting, Net, bert, llama

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_convolutions(machine: Machine) -> None:
    """The engine of another graph, or outputs in another order."""
    model = Net().eval()
    loaded = machine.trip(model, IMAGES)
    assert loaded.refusal is None and len(loaded.engines) == 1
    same(loaded(IMAGES * 2), model(IMAGES * 2))
    same(loaded(x=IMAGES), model(x=IMAGES))


def digests(model: Any, *args: Any, **kwargs: Any) -> list[str]:
    """Return the engines that `torch.compile` builds for a model."""
    torch._dynamo.reset()
    session = Session(Options.parse({"targets": "sm89", "min_block_size": 1}), "reference", True)

    def compiler(graph: Any, examples: Any) -> Any:
        return backend.compile_in(session, graph, examples)

    torch.compile(model, backend=compiler, dynamic=False)(*args, **kwargs)
    return [engine.digest for graph in session.graphs for engine in graph.engines]


@pytest.mark.parametrize(
    "name",
    [
        "net",
        "attending",
        "bert",
        "llama",
    ],
)
def test_the_engine_is_that_of_torch_compile(machine: Machine, name: str) -> None:
    """What `singlecard build` filled the cache with would be built once more for an artifact."""
    kwargs: dict[str, Any] = {}
    args: tuple[Any, ...] = ()
    if name == "bert":
        model, kwargs = bert()
    elif name == "llama":
        model, kwargs = llama(), {"input_ids": torch.arange(12).reshape(2, 6), "use_cache": False}
    elif name == "net":
        model, args = Net().eval(), (IMAGES,)
    else:
        model, args = Attending().eval(), (torch.ones(2, 5, 16),)
    report = machine.export(model, *args, kwargs=kwargs)
    assert [engine.digest for engine in report.engines] == digests(model, *args, **kwargs)


def test_model_output(machine: Machine) -> None:
    """Callers of transformers use attributes."""
    model, given = bert()
    loaded = machine.trip(model, kwargs=given)
    got, want = loaded(**given), model(**given)
    assert type(got) is type(want)
    same(got.last_hidden_state, want.last_hidden_state)
    same(got.pooler_output, want.pooler_output)
    assert [name for name, _ in loaded.inputs] == ["input_ids", "attention_mask"]


def test_how_engines_run_is_said_when_loading(machine: Machine) -> None:
    """A card that is too small for the model would be found out when it runs full."""
    machine.export(Net().eval(), IMAGES, options={"memory_budget": 0})
    loaded = machine.load(memory_budget="1kB", cuda_graphs=True, specialization="none")
    same(loaded(IMAGES), Net().eval()(IMAGES))
    (made,) = Evaluated.made[-1:]
    assert made.settings.memory_budget == 1000 and made.settings.weight_budget == 1000
    assert made.settings.cuda_graphs and made.settings.specialization == "none"
    with pytest.raises(OptionError, match="memory_budget"):
        machine.load(memory_budget="much")


def test_sizes_that_vary(machine: Machine) -> None:
    """One artifact for all batches, also for a batch of one."""
    model = Net().eval()
    loaded = machine.trip(model, IMAGES, dynamic_shapes={"x": {0: (1, 6)}})
    for batch in (1, 2, 5, 6):
        x = torch.rand(batch, 3, 8, 8)
        same(loaded(x), model(x))
    with pytest.raises(OptionError, match=r"\[1 to 6, 3, 8, 8\], got float32 \[7, 3, 8, 8\]"):
        loaded(torch.rand(7, 3, 8, 8))


def test_state_stays_in_the_loaded_object(machine: Machine) -> None:
    """A counter that starts where another caller's ended, or never moves."""
    model = Counting().eval()
    x = torch.arange(8.0).reshape(2, 4)
    model(x)
    before = copy.deepcopy(model)
    first = machine.trip(model, x)
    same(model.total, before.total)
    second, other = machine.load(), copy.deepcopy(model)
    for _ in range(3):
        same(first(x), model(x))
    same(second(x), other(x))
    same(first.state_dict(), {"total": model.total, "part.calls": model.part.calls})
    first.reset()
    same(first(x), before(x))


def test_a_cache_in_buffers(machine: Machine) -> None:
    """A cache that is not written answers the first word right and all others wrong."""
    model = Cached().eval()
    loaded = machine.trip(copy.deepcopy(model), torch.ones(1, 1, 16), torch.tensor([0]))
    for place in range(5):
        x = torch.rand(1, 1, 16)
        same(loaded(x, torch.tensor([place])), model(x, torch.tensor([place])))
    same(loaded.state_dict()["keys"], model.keys)


def test_a_static_cache_is_written_in_place(machine: Machine) -> None:
    """A decoder whose caller hands the cache in, as `generate` does."""
    register_pytree_node(T.StaticCache)
    model = llama()

    def cache() -> T.StaticCache:
        made = T.StaticCache(config=LLAMA, max_cache_len=8)
        model(
            input_ids=torch.arange(6).reshape(2, 3),
            position_ids=torch.arange(3).expand(2, -1),
            past_key_values=made,
        )
        return made

    given = {"input_ids": torch.ones(2, 1, dtype=torch.int64)}
    held, kept = cache(), cache()

    def step(call: Any, place: int, past: Any) -> Any:
        places = torch.full((2, 1), place)
        return call(**given, position_ids=places, past_key_values=past)

    places = torch.full((2, 1), 3)
    kwargs = {**given, "position_ids": places, "past_key_values": cache()}
    loaded = machine.trip(model, kwargs=kwargs)
    for place in (3, 4):
        got, want = step(loaded, place, held), step(model, place, kept)
        same(got.logits, want.logits)
    for layer, other in zip(held.layers, kept.layers, strict=True):
        same((layer.keys, layer.values), (other.keys, other.values))


@pytest.mark.parametrize("dynamic", [None, {"x": {0: (2, 16)}}], ids=["fixed", "dynamic"])
def test_parts_that_stay_in_pytorch(machine: Machine, dynamic: Any) -> None:
    """Ops that TensorRT has not must come along, with the tensors that they read."""
    model = Bessel().eval()
    x = torch.rand(4, 8)
    report = machine.export(model, x, dynamic_shapes=dynamic)
    assert report.programs and report.engines
    loaded = machine.load()
    same(loaded(x), model(x))
    if dynamic:
        same(loaded(x[:3]), model(x[:3]))


def test_excluded_ops(machine: Machine) -> None:
    """`exclude_ops` leaves an op of a transformer, with sizes that vary, to PyTorch."""
    model, given = bert()
    axes = {0: (1, 4), 1: (2, 16)}
    report = machine.export(
        model,
        kwargs=given,
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        options={"exclude_ops": "aten.gelu"},
    )
    assert report.programs == 2
    loaded = machine.load()
    for sizes in ((2, 10), (1, 3), (4, 16)):
        other = {name: value.repeat(2, 2)[: sizes[0], : sizes[1]] for name, value in given.items()}
        same(loaded(**other).last_hidden_state, model(**other).last_hidden_state)


def test_only_pytorch(machine: Machine) -> None:
    """A model without any engine is a model still."""

    def bessel(x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)

    loaded = machine.trip(bessel, torch.rand(3))
    assert not loaded.engines
    x = torch.rand(3)
    same(loaded(x), bessel(x))


class Nested(nn.Module):
    """Answers of all kinds."""

    def forward(
        self, x: Tensor, pair: tuple[Tensor, list[Tensor]], *, scale: Tensor, note: str = "a"
    ) -> dict[str, Any]:
        y = x * scale
        return {"y": y, "none": None, "number": 3, "deep": [y.t(), (pair[1][0] + 1,)], "note": note}


def test_nests_and_keywords(machine: Machine) -> None:
    """Arguments that end in one another's places."""
    model = Nested()
    x, y, z, scale = torch.rand(2, 3), torch.rand(2), torch.rand(4), torch.rand(3)
    loaded = machine.trip(model, x, (y, [z]), kwargs={"scale": scale, "note": "b"})
    want = model(x, (y, [z]), scale=scale, note="b")
    same(loaded(x, (y, [z]), scale=scale, note="b"), want)
    same(loaded(note="b", scale=scale, pair=(y, [z]), x=x), want)
    assert [name for name, _ in loaded.inputs] == ["x", "pair.0", "pair.1.0", "scale", "note"]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "lack x, pair, scale, note"),
        ((torch.ones(2, 3), torch.ones(2)), {"scale": torch.ones(3), "note": "b"}, "nested in"),
        ((torch.ones(2, 3),) * 4, {}, "4 by position instead of 2"),
        ((torch.ones(2, 3),), {"x": 1}, "give x twice"),
        (
            (torch.ones(2, 3), (torch.ones(2), [torch.ones(4)])),
            {"scale": torch.ones(3), "note": "b", "more": 1},
            "give more, which was not given",
        ),
        (
            (torch.ones(2, 3), (torch.ones(2), [torch.ones(4)])),
            {"scale": torch.ones(3), "note": "c"},
            "note of .* takes 'b', as it was exported, got 'c'",
        ),
        (
            (torch.ones(2, 3), (torch.ones(2), [torch.ones(4)])),
            {"scale": torch.ones(3).half(), "note": "b"},
            r"scale of .* takes float32 \[3\], got float16 \[3\]",
        ),
        (
            (torch.ones(2, 3), (torch.ones(2), [torch.ones(4, device="meta")])),
            {"scale": torch.ones(3), "note": "b"},
            r"pair\.1\.0 is on meta, and .* was loaded for cpu",
        ),
        (
            (torch.ones(2, 3), (torch.ones(2), [None])),
            {"scale": torch.ones(3), "note": "b"},
            r"pair\.1\.0 of .* takes float32 \[4\], got None",
        ),
    ],
)
def test_wrong_calls(
    machine: Machine, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """An engine that reads memory of another size answers anything, or crashes."""
    example = torch.rand(2, 3), (torch.rand(2), [torch.rand(4)])
    right = {"scale": torch.rand(3), "note": "b"}
    loaded = machine.trip(Nested(), *example, kwargs=right)
    with pytest.raises(OptionError, match=message):
        loaded(*args, **kwargs)
    loaded(*example, **right)
    with pytest.raises(OptionError, match=message):
        loaded(*args, **kwargs)


def test_results_that_share_memory(machine: Machine) -> None:
    """Views of inputs, and of each other, are views, as in eager PyTorch."""

    def views(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp()
        return y, y.t(), x[1:], x, x.t()[0]

    loaded = machine.trip(views, torch.rand(3, 4))
    x = torch.rand(3, 4)
    got = loaded(x)
    same(got, views(x))
    assert got[3] is x
    assert memory(got[2]) == memory(got[4]) == memory(x) != memory(got[0]) == memory(got[1])


def test_inputs_that_are_written_to(machine: Machine) -> None:
    """The caller finds the new values in his own tensors."""

    def write(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x.add_(y)
        y.mul_(2)
        return x, x * y

    loaded = machine.trip(write, torch.rand(3), torch.rand(3))
    x, y = torch.rand(3), torch.rand(3)
    held, other = x.clone(), y.clone()
    got = loaded(x, y)
    same(got, write(held, other))
    same((x, y), (held, other))
    assert got[0] is x


def test_numbers_that_vary(machine: Machine) -> None:
    """A number is an input like any other."""

    def scaled(x: Tensor, n: int) -> tuple[Tensor, int]:
        return (x * n).reshape(-1), x.shape[0] + n

    loaded = machine.trip(
        scaled, torch.rand(3, 4), 5, dynamic_shapes={"x": {0: (1, 8)}, "n": (2, 50)}
    )
    x = torch.rand(4, 4)
    same(loaded(x, 7), scaled(x, 7))
    with pytest.raises(OptionError, match="n of .* takes an integer, 2 to 50, got 51"):
        loaded(x, 51)


def test_sizes_that_follow_from_another(machine: Machine) -> None:
    """Pairs come in even numbers, beginning at one pair."""

    def pairs(x: Tensor) -> Tensor:
        return x.reshape(-1, 2).sum(1)

    half = torch.export.Dim("half", min=1, max=8)
    loaded = machine.trip(pairs, torch.rand(8), dynamic_shapes=({0: 2 * half},))
    for size in (2, 4, 16):
        x = torch.rand(size)
        same(loaded(x), pairs(x))
    with pytest.raises(OptionError, match="2 to 16 in steps of 2.*, got float32 .5."):
        loaded(torch.rand(5))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: (x.nonzero(), x[x > 0.5].exp().sum()),
        lambda x: torch.view_as_real(torch.fft.fft(x)) * 2,
        lambda x: (x.double().sqrt().float() + 1).relu(),
        lambda x: (x.exp().expand(2, -1, -1), x.shape[0] * 2, None),
    ],
    ids=["sizes from values", "complex", "float64", "expanded"],
)
def test_more_parts(machine: Machine, model: Any) -> None:
    """What TensorRT has no types or sizes for goes through programs of PyTorch's."""
    loaded = machine.trip(model, torch.rand(5, 4), dynamic_shapes=({0: (1, 9)},))
    for size in (5, 9, 2):
        x = torch.rand(size, 4)
        same(loaded(x), model(x))


class Casting(nn.Module):
    """Regions that are not inferred from the ops in them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.linear(x)
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            z = self.linear(y.float()).exp()
        return y, z


def test_autocast(machine: Machine) -> None:
    """A model that answers in another type than it did."""
    model, x = Casting(), torch.rand(2, 4)
    same(machine.trip(model, x)(x), model(x), 2e-2)


def test_sizes_that_must_be_equal(machine: Machine) -> None:
    """Two inputs of one batch each, which the engine takes for one."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    axes = {0: (1, 8)}
    loaded = machine.trip(
        add, torch.rand(3, 2), torch.rand(3, 2), dynamic_shapes={"x": axes, "y": axes}
    )
    same(loaded(torch.ones(5, 2), torch.ones(5, 2)), torch.full((5, 2), 2.0))
    with pytest.raises(OptionError, match="y of .* has a size of 4 where the other inputs make"):
        loaded(torch.ones(5, 2), torch.ones(4, 2))


class Cache:
    """What a decoder keeps its words in."""

    def __init__(self, words: Tensor, count: int) -> None:
        self.words, self.count = words, count


def append(cache: Cache, x: Tensor) -> Tensor:
    cache.words = torch.cat([cache.words, x])
    return cache.words * 2


def count(cache: Cache, x: Tensor) -> Tensor:
    cache.count += 1
    cache.words.add_(x[0])
    return cache.words * cache.count


@pytest.mark.parametrize("step", [append, count])
def test_objects_that_a_model_changes(machine: Machine, step: Any) -> None:
    """A caller who goes on with an object that stayed behind gets old words again."""
    name = f"{__name__}.Cache"
    if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        pytree.register_pytree_node(
            Cache,
            lambda cache: ([cache.words], cache.count),
            lambda leaves, number: Cache(leaves[0], number),
            serialized_type_name=name,
            flatten_with_keys_fn=lambda cache: (
                [(pytree.GetAttrKey("words"), cache.words)],
                cache.count,
            ),
        )
    report = machine.export(step, Cache(torch.zeros(2, 3), 4), torch.ones(1, 3))
    assert "into its argument cache" in report.remarks[0]
    assert "into its argument cache" in str(report)
    cache, x = Cache(torch.rand(2, 3), 4), torch.rand(1, 3)
    other = Cache(cache.words.clone(), 4)
    same(machine.load()(cache, x), step(other, x))
    if step is count:
        same(cache.words, other.words)
        with pytest.raises(OptionError, match="nested in another way"):
            machine.load()(other, x)  # its count went on
    assert not machine.export(Net().eval(), IMAGES).remarks


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(x.sum().item() > 0 and "positive")
        return x if x.sum() > 0 else -x


def returns_view_of_written(x: Tensor) -> Tensor:
    x.add_(1)
    return x[0]


class Sharing(nn.Module):
    """A buffer that is written to, and another that looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: Tensor
        self.register_buffer("whole", torch.ones(4))
        self.register_buffer("part", self.whole[:2])

    def forward(self, x: Tensor) -> Tensor:
        self.whole += 1
        return x.sum() + self.part


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Noisy(), "torch.export could not capture the model"),
        (returns_view_of_written, "returns a view of a tensor that it writes to"),
        (lambda x: torch.linalg.inv(x.reshape(1, 3).T @ x[None]), "singular"),
        (Sharing(), "shares memory with another"),
    ],
)
def test_what_no_artifact_can_say(machine: Machine, model: Any, message: str) -> None:
    """Refused when exporting, with the reason, instead of answering wrongly later."""
    with pytest.raises(ArtifactError, match=message):
        machine.export(model, torch.rand(3))
    assert not machine.path.exists()


def test_control_flow_stays_in_pytorch(machine: Machine) -> None:
    """A branch that was taken for the example would be taken for every call."""

    def choose(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    loaded = machine.trip(choose, torch.rand(3))
    for sign in (1, -1):
        x = sign * torch.rand(3)
        same(loaded(x), choose(x))


def test_what_is_no_model(machine: Machine) -> None:
    """Told before a file is begun."""
    with pytest.raises(OptionError, match="got int as the model"):
        machine.export(3, torch.rand(3))
    assert not machine.path.exists()


def test_an_input_of_another_shape_afterwards(machine: Machine) -> None:
    """The caller's own tensor would keep the shape that it had."""

    def turn(x: Tensor) -> Tensor:
        return x.t_() * 2

    with pytest.raises(ArtifactError, match="changes the shape or the memory of an input"):
        machine.export(turn, torch.rand(2, 3))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": {0: (1, 2)}}, "names 'y', which is not among the arguments"),
        ({"x": {4: (1, 2)}}, "has 4 axes, none is 4"),
        ({"x": {0: (3, 2)}}, "has min 3 > max 2"),
        (({}, {}), "has 2 entries, args 1"),
        (7, "does not fit args"),
    ],
)
def test_wrong_dynamic_shapes(machine: Machine, shapes: Any, message: str) -> None:
    """A misspelt axis that is silently fixed is found out by the first customer."""
    with pytest.raises(OptionError, match=message):
        machine.export(Net().eval(), IMAGES, dynamic_shapes=shapes)
