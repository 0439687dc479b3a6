"""Everything that touches TensorRT must fit TensorRT 10.13, as its published type stubs show it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import singlecard
from singlecard.network.flavour import flavour_name, trt
from singlecard.network.versions import ELSEWHERE, NEWER

BACKEND = Path(singlecard.__file__).parent
INSTALL = "pip install --no-deps tensorrt-stubs==10.13.0.35.1"

#: Rooms that call TensorRT, or call what does.
ROOMS = ("network", "engine", "runtime")

#: May use names that TensorRT 10.13 lacks: the first asks for them, the second is a table of what
#: to read of layers, from which inspection takes what the installed TensorRT has.
EXCEPTED = {"network/versions.py", "network/inspect_layers.py"}

_MYPY = """\
[mypy]
check_untyped_defs = true
ignore_missing_imports = true
follow_imports = silent
explicit_package_bases = true

[mypy-tensorrt.*,tensorrt_bindings.*]
ignore_errors = true

[mypy-torch.*,numpy.*]
follow_imports = skip
"""


def _published() -> dict[str, str]:
    """Return the files of the stubs by their paths."""
    try:
        files = distribution("tensorrt-stubs").files or ()
    except PackageNotFoundError:
        pytest.skip(f"the type stubs of TensorRT are not installed: {INSTALL}")
    return {str(file): file.read_text() for file in files if file.suffix == ".pyi"}


def _repaired(text: str) -> str:
    """Make valid Python of what the generator of the stubs took from docstrings.

    Beside that, say what pybind11 does and annotations do not: a tuple is taken where ``Dims`` or a
    ``Permutation`` is wanted, and a stream writer of Python's gets bytes, which know their size.
    """
    text = re.sub(r"= <[^<>]*>(?=[,)])", "= ...", text)
    text = re.sub(r"\bin: ", "in_: ", text)
    text = text.replace("channel_axis: int)", "channel_axis: int = ...)")
    text = re.sub(r"(: |-> )bool\b", r"\1builtins.bool", text)  # the module has a variable bool
    text = text.replace("def write(self, data: capsule, size: int)", "def write(self, data: bytes)")
    text = re.sub(r"(?<=: )(Dims|Permutation)\b(?= *[,)\n=])", "tuple[int, ...]", text)
    text = re.sub(r"class (Dims|Permutation):", r"class \1(tuple[int, ...]):", text)
    return text.replace("import typing\n", "import builtins\nimport typing\n", 1)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    for path, text in _published().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_repaired(text))
    return folder


@pytest.fixture(scope="module")
def names_of_10_13(stubs: Path) -> dict[str, set[str]]:
    """The members of each class of TensorRT 10.13, those of its bases among them."""
    tree = ast.parse((stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text())
    members: dict[str, set[str]] = {}
    for item in tree.body:
        if isinstance(item, ast.ClassDef):
            own = {name for statement in item.body for name in _names(statement)}
            bases = {base.id for base in item.bases if isinstance(base, ast.Name)}
            members[item.name] = own.union(*(members.get(base, set()) for base in bases))
    assert len(members) > 150
    return members


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return set()


def _check(stubs: Path, folder: Path, *sources: Path) -> str:
    """Run mypy and return what it found in the sources."""
    config = folder / "mypy.ini"
    config.write_text(_MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", folder, *sources],
        env={"MYPYPATH": f"{stubs}:{BACKEND.parent}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return "" if done.returncode == 0 else done.stdout


def test_calls_fit_the_published_stubs(stubs: Path, tmp_path: Path) -> None:
    """A call that full TensorRT 10.13 does not have would only fail on the user's machine."""
    assert _check(stubs, tmp_path, *(BACKEND / room for room in ROOMS)) == ""


#: Mistakes, and a word of what mypy says to each.
MISTAKES = {
    "config.num_compute_capabilities = 1": "num_compute_capabilities",
    "config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)": "REQUIRE_USER_ALLOCATION",
    "net.layer(net.definition.add_attention_v2, x)": "add_attention_v2",
    "net.layer(net.definition.add_unary, x, trt.UnaryOperation.FLOR)": "FLOR",
    "net.layer(net.definition.add_unary, trt.UnaryOperation.ABS, x)": "incompatible type",
    "net.layer(net.definition.add_topk, x, trt.TopKOperation.MAX, 1)": "Missing positional",
    "net.layer(net.definition.add_shuffle, x).reshape = (1,)": "reshape",
    "net.builder.create_network('typed')": "incompatible type",
}


def test_a_mistake_is_found(stubs: Path, tmp_path: Path) -> None:
    """A check that lets mistakes through would be worth nothing: each of these must be seen."""
    head = [
        "from singlecard.network.flavour import trt",
        "from singlecard.network.net import Net",
        "def make(net: Net, config: trt.IBuilderConfig, x: trt.ITensor) -> None:",
    ]
    source = tmp_path / "mistakes.py"
    source.write_text("\n".join([*head, *(f"    {line}" for line in MISTAKES)]))
    found = _check(stubs, tmp_path, source)
    for number, (line, complaint) in enumerate(MISTAKES.items(), len(head) + 1):
        assert re.search(rf"mistakes.py:{number}: error: .*{complaint}", found), (line, found)


def _newer_names(members: dict[str, set[str]]) -> set[str]:
    """Return the names of the installed TensorRT that version 10.13 has nowhere."""
    classes = {
        name: kind for name, kind in vars(trt.tensorrt_rtx).items() if isinstance(kind, type)
    }
    here = set(classes).union(*(dir(kind) for kind in classes.values()))
    known = set(members).union(*members.values())
    return {name for name in here - known if not name.startswith("_")}


def _used_names(source: Path) -> dict[str, int]:
    """Return attributes and texts of a source that could be names of TensorRT, with their lines."""
    found = {}
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Attribute):
            found[node.attr] = node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in (node.value, "add_" + node.value):
                found[name] = node.lineno
    return found


@pytest.mark.skipif(flavour_name() != "tensorrt_rtx", reason="compares with TensorRT for RTX")
def test_newer_names_are_used_in_one_file_alone(names_of_10_13: dict[str, set[str]]) -> None:
    """mypy sees nothing of ``getattr`` and of untyped values: a newer name there would slip by."""
    newer = _newer_names(names_of_10_13)
    assert {"set_compute_capability", "add_attention_v2", "CausalMaskKind"} <= newer
    uses: dict[str, dict[str, int]] = {}
    for room in ROOMS:
        for source in sorted((BACKEND / room).glob("*.py")):
            found = {name: at for name, at in _used_names(source).items() if name in newer}
            path = str(source.relative_to(BACKEND))
            if found and path not in EXCEPTED:
                uses[path] = found
    slips = [
        f"{path}:{line} uses {name}"
        for path, found in uses.items()
        for name, line in found.items()
        if name not in ELSEWHERE.get(path, ())
    ]
    assert not slips, f"TensorRT 10.13 lacks these, ask network/versions.py for them: {slips}"
    unused = {path: names - set(uses.get(path, ())) for path, names in ELSEWHERE.items()}
    assert not any(unused.values()), f"nothing uses these names any more: {unused}"


def test_the_table_names_what_is_newer(names_of_10_13: dict[str, set[str]]) -> None:
    """A feature that 10.13 has needs no detour; one that no version has is never found."""
    for feature in NEWER:
        owner, _, member = feature.partition(".")
        assert (
            member not in names_of_10_13.get(owner, set())
            if member
            else (owner not in names_of_10_13)
        )
        assert hasattr(getattr(trt, owner), member) if member else hasattr(trt, owner)
