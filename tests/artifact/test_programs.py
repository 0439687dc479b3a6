"""Programs in plain data: what PyTorch runs of a model, and what no file may make it run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from singlecard.artifact.allowed import refusal_of_op
from singlecard.artifact.programs import Interpreter, NotTrusted, UnknownOp, program_to_plain
from singlecard.capture.plain import NotPlain, number_function
from singlecard.capture.pure import SPACES, impurity
from singlecard.lowering.table import table

aten = torch.ops.aten
CPU = torch.device("cpu")


class Kept:
    """Tensors that were added, by number."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def add(self, value: Tensor) -> int:
        self.tensors.append(value.clone())
        return len(self.tensors) - 1

    def read(self, held: Any) -> Tensor:
        return self.tensors[held]


def graph_of(function: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    """Return the ATen ops of a function of tensors, which returns a tuple."""
    return torch.export.export(Module(function), args, strict=False).run_decompositions({}).module()  # type: ignore[return-value]


class Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def call(place: int, name: Any, args: Any = (), kwargs: Any = None) -> list[Any]:
    return [place, name, list(args), kwargs or {}]


def program(*calls: Any, inputs: int = 1, outputs: Any = None, tensors: Any = ()) -> dict[str, Any]:
    last = calls[-1][0] if calls else 0
    return {
        "inputs": inputs,
        "tensors": list(tensors),
        "calls": list(calls),
        "outputs": [{"at": last}] if outputs is None else outputs,
    }


def read(held: Any, *, also: tuple[str, ...] = ()) -> Interpreter:
    kept = Kept()
    kept.add(torch.arange(6.0))
    return Interpreter(json.loads(json.dumps(held)), kept.read, CPU, also)


X = {"at": 0}


def test_calls_run_in_turn() -> None:
    """Numbers, lists, types, several results, and a tensor that the file holds."""
    run = read(
        program(
            call(2, "aten.add.Tensor", [X, {"at": 1}], {"alpha": 2}),
            call(3, "aten.split.Tensor", [{"at": 2}, 4]),
            call(4, "operator.getitem", [{"at": 3}, 1]),
            call(5, "aten.cat.default", [{"list": [{"at": 4}, {"at": 4}]}]),
            call(6, "aten._to_copy.default", [{"at": 5}], {"dtype": {"torch": "torch.float64"}}),
            tensors=[[1, 0]],
        )
    )
    (answer,) = run([torch.ones(6)])
    expected = torch.cat([(torch.ones(6) + 2 * torch.arange(6.0))[4:]] * 2).double()
    torch.testing.assert_close(answer, expected, rtol=0, atol=0)


def test_branches_and_loops() -> None:
    """Control flow has programs in its program."""
    twice = program(call(1, "aten.mul.Tensor", [X, 2]))
    less = program(call(1, "aten.sub.Tensor", [X, 1]))
    run = read(
        program(
            call(1, "aten.sum.default", [X]),
            call(2, "aten.gt.Scalar", [{"at": 1}, 0]),
            call(3, "cond", [{"at": 2}, X], {"graphs": [twice, less]}),
            call(4, "operator.getitem", [{"at": 3}, 0]),
        )
    )
    for x in (torch.ones(3), -torch.ones(3)):
        torch.testing.assert_close(run([x])[0], x * 2 if x.sum() > 0 else x - 1)
    small = program(
        call(1, "aten.sum.default", [X]),
        call(2, "aten.lt.Scalar", [{"at": 1}, {"float": (50.0).hex()}]),
    )
    loop = read(
        program(
            call(1, "while_loop", [X], {"graphs": [small, twice], "carried": 1}),
            call(2, "operator.getitem", [{"at": 1}, 0]),
        )
    )
    torch.testing.assert_close(loop([torch.ones(3)])[0], torch.full((3,), 32.0))


def test_what_a_graph_calls_is_written_and_read_again() -> None:
    """The answer of the program is the model's."""
    weight = nn.Parameter(torch.rand(4, 4))

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.special.bessel_j0(x @ weight)
        return y.sort(1).values, torch.view_as_real(aten._fft_r2c(y, [1], 0, True))

    module = graph_of(model, torch.rand(3, 4))
    module.graph.eliminate_dead_code()
    kept = Kept()
    held = json.loads(json.dumps(program_to_plain(module, kept.add)))
    x = torch.rand(3, 4)
    for got, want in zip(Interpreter(held, kept.read, CPU)([x]), model(x), strict=True):
        torch.testing.assert_close(got, want)


def test_memory_that_nobody_wrote_is_zero() -> None:
    """What the process had there before would be an answer to the author of the file."""
    run = read(program(call(1, "aten.empty.memory_format", [{"list": [4096]}])))
    for _ in range(4):
        torch.full((4096,), 7.0)  # freed, to be found
        assert not run([torch.ones(1)])[0].any()


#: What a file must not make anybody's process do, each as a call.
HOSTILE: dict[str, Any] = {
    "writes a file": call(1, "aten.from_file.default", ["/tmp/x", True, 4]),
    "writes to an argument": call(1, "aten.copy_.default", [X, X]),
    "writes to a result": call(1, "aten.add.out", [X, X], {"out": X}),
    "takes a storage": call(1, "aten.set.source_Storage", [X, X]),
    "draws random numbers": call(1, "aten.rand.default", [{"list": [2]}]),
    "prints": call(1, "aten._print.default", ["text"]),
    "an op that is on no list": call(1, "aten._make_dual.default", [X, X, 0]),
    "raw weights by address": call(1, "aten._weight_int4pack_mm.default", [X, X, 32, X]),
    "a function of Python": call(1, "os.system", ["true"]),
    "a function of PyTorch": call(1, "torch.hub.load", ["a", "b"]),
    "a library": call(1, "load_library.a.b", []),
    "an attribute": call(1, "aten.__class__.__base__", []),
    "a method": call(1, "aten.add.__call__", [X, X]),
    "an op of another library": call(1, "somewhere.op.default", [X]),
    "a name that is none": call(1, ["aten.add.Tensor"], [X, X]),
    "a value that is not made yet": call(1, "aten.add.Tensor", [X, {"at": 7}]),
    "a place twice": call(0, "aten.add.Tensor", [X, X]),
    "a place below all": call(-1, "aten.add.Tensor", [X, X]),
    "a place that is true": call(True, "aten.add.Tensor", [X, X]),
    "a bare list": call(1, "aten.cat.default", [[X, X]]),
    "a function as a value": call(1, "aten.add.Tensor", [X, {"function": "aten.add.Tensor"}]),
    "another kind of value": call(1, "aten.add.Tensor", [X, {"pickle": "gA=="}]),
    "two kinds in one": call(1, "aten.add.Tensor", [X, {"at": 0, "size": 1}]),
    "a type that is none": call(1, "aten._to_copy.default", [X], {"dtype": {"torch": "os"}}),
    "half a call": [1, "aten.add.Tensor"],
    "a branch without graphs": call(1, "cond", [X, X], {"graphs": []}),
    "a graph that is none": call(1, "cond", [X, X], {"graphs": [1, 2]}),
    "a hostile branch": call(
        1, "cond", [X, X], {"graphs": [program(call(1, "os.system", ["true"]))] * 2}
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_no_file_may_name(kind: str) -> None:
    """Refused while it is read: nothing of it has run."""
    with pytest.raises(NotPlain):
        read(program(HOSTILE[kind]))


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("calls"),
        lambda held: held.update(calls={}),
        lambda held: held.update(inputs="1"),
        lambda held: held.update(inputs=-1),
        lambda held: held.update(inputs=10**40),
        lambda held: held.update(tensors=[[1]]),
        lambda held: held.update(outputs=[{"at": 99}]),
    ],
)
def test_no_program(change: Callable[[Any], Any]) -> None:
    """A member that is something else."""
    held = program(call(1, "aten.add.Tensor", [X, X]))
    read(copy.deepcopy(held))
    change(held)
    with pytest.raises(NotPlain):
        read(held)
    with pytest.raises(NotPlain):
        read([])


def test_nests_have_an_end() -> None:
    """Python's own stack would be the first to give way."""
    arg: Any = X
    for _ in range(500):
        arg = {"list": [arg]}
    with pytest.raises(NotPlain, match="deep"):
        Interpreter(program(call(1, "aten.cat.default", [arg])), Kept().read, CPU)
    held = program(call(1, "aten.neg.default", [X]))
    for _ in range(50):
        held = program(call(1, "cond", [X, X], {"graphs": [held, held]}))
    with pytest.raises(NotPlain, match="deep"):
        Interpreter(held, Kept().read, CPU)


def test_ops_of_libraries_are_named_by_who_loads(tmp_path: Path) -> None:
    """Their code would run on what the file says."""
    library = torch.library.Library("door", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.define("spoil(Tensor(a!) x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
    held = program(call(1, "door.double.default", [X]))
    with pytest.raises(NotTrusted, match="door.double.default"):
        read(held)
    (answer,) = read(held, also=("door.double.default",))([torch.ones(2)])
    torch.testing.assert_close(answer, torch.full((2,), 2.0))
    with pytest.raises(UnknownOp, match="door.treble.default"):
        read(program(call(1, "door.treble.default", [X])), also=("door.treble.default",))
    with pytest.raises(NotPlain, match="writes"):
        read(program(call(1, "door.spoil.default", [X])), also=("door.spoil.default",))


def test_numbers_stay_sizes() -> None:
    """``9 ** 9 ** 9 ** 9`` would never end, nor a product of products."""
    power, product = number_function("operator.pow"), number_function("operator.mul")
    assert power(3, 4) == 81 and product(-3, 2**40) == -3 * 2**40
    for base, exponent in ((9, 9**9), (2**63, 2), (10, 10**18)):
        with pytest.raises(NotPlain, match="no size"):
            power(base, exponent)
    with pytest.raises(NotPlain, match="no size"):
        product(2**62, 2)
    with pytest.raises(NotPlain, match="in the place of a number"):
        product([0], 10**9)


def all_ops() -> list[torch._ops.OpOverload]:
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if space in SPACES:
            packet_of = getattr(getattr(torch.ops, space), packet)
            found.append(getattr(packet_of, overload or "default"))
    return found


def test_the_list_over_all_of_pytorch() -> None:
    """Whatever PyTorch adds with its next release must be asked for, and never come by itself."""
    allowed = [op for op in all_ops() if not refusal_of_op(op)]
    assert 500 < len(allowed) < 1000
    for op in allowed:
        schema = op._schema
        assert not schema.is_mutable and not impurity(op), op
        kinds = {str(argument.real_type) for argument in schema.arguments}
        assert not any(
            word in kind
            for kind in kinds
            for word in ("Generator", "Storage", "Stream", "torch.classes", "Dict", "Any")
        ), op
        assert not {"filename", "source", "path", "name"} & {
            argument.name for argument in schema.arguments if "str" in str(argument.real_type)
        }, op
    for name in ("from_file", "set_", "copy_", "resize_", "record_stream", "_print", "rand"):
        assert not any(op._schema.name == f"aten::{name}" for op in allowed), name


def test_whatever_is_lowered_may_be_named() -> None:
    """A model whose last op stays in PyTorch, for its size, could not be exported."""
    refused = {
        str(op): refusal_of_op(op)
        for op in table()
        if isinstance(op, torch._ops.OpOverload) and refusal_of_op(op)
    }
    assert not refused
