"""Programs of PyTorch's: without pickles, and looked through before PyTorch reads them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from singlecard.artifact.programs import UnknownOp, Unsafe, program_from_bytes, write_program
from singlecard.errors import ArtifactError
from tests.artifact.models import Bessel, Counting

CPU = torch.device("cpu")


def written(module: nn.Module, *args: Any, folder: Path, **given: Any) -> bytes:
    file = folder / "program.pt2"
    write_program(torch.export.export(module, args, strict=False, **given), file, "it")
    assert [path.name for path in folder.iterdir()] == [file.name]
    return file.read_bytes()


def run(content: bytes, *args: Any) -> Any:
    return program_from_bytes(content, CPU).module(check_guards=False)(*args)  # type: ignore[call-arg]


def test_round_trip(tmp_path: Path) -> None:
    """Sizes that vary, sizes that depend on values, constants, state."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.bessel = Counting(), Bessel()

        def forward(self, x: Tensor, n: int) -> tuple[Any, ...]:
            chosen = x[x[:, 0] > 0]
            y, calls = self.count(x[:, :4])
            return (
                self.bessel(x)[0],
                y,
                calls,
                chosen,
                (chosen.shape[0] + n) // 2,
                torch.split(x, 4, 1),
            )

    torch.manual_seed(0)
    dims = ({0: torch.export.Dim.DYNAMIC}, torch.export.Dim.DYNAMIC)
    model = Model().eval()
    with torch.no_grad():
        content = written(model, torch.rand(3, 8), 5, folder=tmp_path, dynamic_shapes=dims)
        x = torch.randn(5, 8)
        torch.testing.assert_close(run(content, x, 7), model(x, 7))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_branches(tmp_path: Path) -> None:
    """Control flow has graphs in its graph."""
    content = written(Branching(), torch.ones(3), folder=tmp_path)
    for x in (torch.ones(3), -torch.ones(3)):
        torch.testing.assert_close(run(content, x), Branching()(x))


def changed(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as container:
        members = {info.filename: container.read(info) for info in container.infolist()}
    change(members)
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as container:
        for name, inner in members.items():
            container.writestr(name, inner)
    return result.getvalue()


def in_model(change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def change_members(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("models/model.json"))
        model = json.loads(members[name])
        change(model)
        members[name] = json.dumps(model).encode()

    return change_members


def call(target: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda m: m["graph_module"]["graph"]["nodes"][0].update(target=target))


def size(text: str) -> Callable[[dict[str, bytes]], None]:
    def change(model: Any) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    return in_model(change)


def nest(text: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=text)
    )


def configured(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.endswith("model_weights_config.json"))
    config = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[name] = json.dumps(config).encode()


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "a function of PyTorch's": (call("torch.hub.load"), "torch.hub.load"),
    "a module of PyTorch's": (call("torch.os.system"), "torch.os.system"),
    "a library": (call("torch.ops.load_library"), "load_library"),
    "a library's op": (call("torch.ops.load_library.a.b"), "load_library"),
    "an op that writes files": (call("torch.ops.aten.from_file.default"), "from_file"),
    "another wrapper": (call("torch.ops.higher_order.call_torchbind"), "call_torchbind"),
    "an extension": (call("#ext:anything"), "#ext"),
    "an attribute": (call("_operator.__class__.__base__"), "__class__"),
    "a call in a size": (size("__import__('os').system('true')"), "__import__"),
    "a name in a size": (size("Symbol('os')"), "Symbol"),
    "an attribute in a size": (size("Integer(1).args"), "args"),
    "a function in a size": (size("lambdify(s0, s0)"), "lambdify"),
    "a comprehension in a size": (size("[s0 for s0 in (1,)]"), "for"),
    "no size": (size("("), "the size"),
    "an enumeration": (
        nest('[1, {"type": null, "context": "{\\"__enum__\\": 1}", "children_spec": []}]'),
        "names a module",
    ),
    "a default dictionary": (
        nest('[1, {"type": "collections.defaultdict", "context": "", "children_spec": []}]'),
        "names a module",
    ),
    "guards": (in_model(lambda m: m.update(guards_code=["exit()"])), "lines of Python"),
    "examples": (
        lambda members: members.update({"archive/data/sample_inputs/model.pt": b"x"}),
        "the pickle",
    ),
    "a pickled weight": (configured, "a pickled tensor"),
    "an object": (
        lambda members: members.update({"archive/data/constants/custom_obj_0": b"x"}),
        "custom_obj_0",
    ),
    "a compiled library": (
        lambda members: members.update({"archive/data/aotinductor/model/a.so": b"x"}),
        "a.so",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_could_be_code(tmp_path: Path, kind: str) -> None:
    """PyTorch's reader would call, import or evaluate it."""
    content = written(Bessel().eval(), torch.rand(3, 8), folder=tmp_path)
    run(changed(content, lambda members: None), torch.rand(3, 8))
    change, words = HOSTILE[kind]
    with pytest.raises(Unsafe, match=words.replace("(", r"\(")):
        program_from_bytes(changed(content, change), CPU)


def test_an_op_of_a_library_that_is_not_imported(tmp_path: Path) -> None:
    """Ops of torchvision are there once it is imported, and the message says so."""
    content = written(Bessel().eval(), torch.rand(3, 8), folder=tmp_path)
    with pytest.raises(UnknownOp, match="torch.ops.somewhere.op.default"):
        program_from_bytes(changed(content, call("torch.ops.somewhere.op.default")), CPU)


def test_no_program() -> None:
    """A member that is something else."""
    with pytest.raises(Unsafe, match="no program"):
        program_from_bytes(b"PK\3\4nothing", CPU)


def test_what_only_a_pickle_could_hold(tmp_path: Path) -> None:
    """Refused when it is written, with the way out."""
    module = nn.Linear(3, 3)
    strange = torch.rand(3, 3).to_sparse()

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = module
            self.register_buffer("held", strange)

        def forward(self, x: Tensor) -> Any:
            return torch.sparse.mm(self.held, self.linear(x))  # type: ignore[arg-type]

    program = torch.export.export(Held(), (torch.rand(3, 3),), strict=False)
    with pytest.raises(ArtifactError, match="keep weights in plain tensors|could not write it"):
        write_program(program, tmp_path / "a.pt2", "it")
