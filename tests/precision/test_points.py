"""A calibration table finds its ops by name: any capture of a model must give the same names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from singlecard.backend import compile_in
from singlecard.capture.program import Program
from singlecard.options import Options
from singlecard.precision.points import Point, is_named, names_of, points_of
from singlecard.report.arguments import arguments_of
from singlecard.report.measure import run_compiled
from singlecard.runtime.executable import Executable
from singlecard.session import Session


class Naming(Session):
    """Keeps the names of every graph that it is given."""

    def __init__(self) -> None:
        super().__init__(Options(), "reference", False)
        self.points: list[tuple[Point, ...]] = []
        self.ops: list[list[str]] = []
        self.signatures: list[dict[str, Any]] = []

    def compile(self, program: Program, spans: Any = None) -> Executable:
        self._name(program)
        points = points_of(program)
        self.points.append(points)
        self.signatures.append({point.name: point.signature() for point in points})
        self.ops.append(list(names_of(program).values()))
        return super().compile(program, spans)

    def backend(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(self, graph, examples)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query(x).view(x.shape[0], x.shape[1], 2, 8).transpose(1, 2)
        seen = F.scaled_dot_product_attention(heads, heads + 1, heads)
        y = self.norm(x + self.out(seen.transpose(1, 2).reshape(x.shape)))
        return y + self.out(torch.relu(y))  # called twice


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight  # tied

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class OddlyWritten(Model):
    def forward(this, tokens: Tensor) -> Tensor:
        return Model.forward(this, tokens)


TOKENS = torch.arange(10).reshape(2, 5)
NAMES = [
    "embedding:embedding",
    *(
        f"layers.{layer}{op}"
        for layer in (0, 1)
        for op in (".query:linear", ":attention", ".out:linear", ":residual", ".out:linear.1")
    ),
    "head:linear",
]


def in_closure(model: nn.Module) -> Callable[..., Any]:
    def call(tokens: Tensor) -> Any:
        return model(tokens)

    return call


def verified(session: Naming, model: Callable[..., Any], x: Tensor = TOKENS) -> Any:
    return run_compiled(session, arguments_of(model, (x,), {}), {})


def compiled_in_place(model: nn.Module, session: Naming) -> Any:
    model.compile(backend=session.backend)
    return model(TOKENS)


CAPTURES: dict[str, Callable[[nn.Module, Naming], Any]] = {
    "torch.compile": lambda m, s: torch.compile(m, backend=s.backend)(TOKENS),
    "another size": lambda m, s: torch.compile(m, backend=s.backend)(torch.ones_like(TOKENS[:1])),
    "dynamic": lambda m, s: torch.compile(m, backend=s.backend, dynamic=True)(TOKENS),
    "model.compile": compiled_in_place,
    "forward": lambda m, s: torch.compile(m.forward, backend=s.backend)(TOKENS),
    "closure": lambda m, s: torch.compile(in_closure(m), backend=s.backend)(TOKENS),
    "verify": lambda m, s: verified(s, m),
    "verify, closure": lambda m, s: verified(s, in_closure(m)),
    "verify, forward": lambda m, s: verified(s, m.forward),
    "verify, compiled": lambda m, s: verified(s, torch.compile(m)),
}


@pytest.mark.parametrize(
    ("kind", "capture"),
    [*((Model, name) for name in CAPTURES), (OddlyWritten, "torch.compile")],
)
def test_names_survive_another_capture(kind: type[Model], capture: str) -> None:
    """A table made by ``calibrate`` would be refused by ``torch.compile`` as another model's."""
    torch.manual_seed(0)
    model, session, first = kind().eval(), Naming(), Naming()
    with torch.no_grad():
        verified(first, model)
        torch._dynamo.reset()
        CAPTURES[capture](model, session)
    assert [point.name for point in session.points[0]] == NAMES
    assert session.ops == first.ops
    assert session.signatures == first.signatures


def test_tensors_have_the_name_of_their_first_reader() -> None:
    """A tensor that two ops read has one scale: with two, a kernel would round it twice."""
    session = Naming()
    with torch.no_grad():
        verified(session, Model().eval())
    tensors = {point.name: [name for name, _ in point.operands] for point in session.points[0]}
    attention = "layers.0:attention"
    assert tensors[attention] == [
        f"{attention}/query",
        f"{attention}/key",
        f"{attention}/query",  # the value is the query here
        f"{attention}/probabilities",
    ]
    assert tensors["layers.0.out:linear.1"] == ["layers.0.out:linear.1/input"]
    assert tensors["embedding:embedding"] == []


def test_changed_weights_change_the_signature() -> None:
    """Scales of weights that were trained further are wrong, and nothing else would tell."""
    first, second = Naming(), Naming()
    model = nn.Linear(4, 4).eval()
    with torch.no_grad():
        verified(first, model, torch.ones(2, 4))
        model.weight[0, 0] += 1e-3
        verified(second, model, torch.ones(2, 4))
    (a,), (b,) = first.signatures, second.signatures
    assert a.keys() == b.keys() == {"model:linear"}
    assert a["model:linear"]["weights"] != b["model:linear"]["weights"]


def test_modules_in_containers() -> None:
    """Two models in a dictionary of a function are told apart by their keys."""
    models = {"first": nn.Linear(4, 4).eval(), "second": nn.Sequential(nn.Linear(4, 4)).eval()}
    session = Naming()
    with torch.no_grad():
        verified(session, lambda x: models["second"](models["first"](x)), torch.ones(2, 4))
    assert [p.name for p in session.points[0]] == ["first:linear", "second.0:linear"]


def test_a_name_stands_for_an_op_or_a_module() -> None:
    """``keep_fp32=("layers.1",)`` must not reach ``layers.10``."""
    assert is_named("layers.1.out:linear", ("layers.1",))
    assert is_named("layers.1:add", ("layers.1",))
    assert is_named("layers.1:add", ("layers.1:add",))
    assert not is_named("layers.1:add.1", ("layers.1:add",))
    assert not is_named("layers.10.out:linear", ("layers.1",))
