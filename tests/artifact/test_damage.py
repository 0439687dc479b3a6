"""What was damaged, changed, or comes from elsewhere is refused, with the file and the way out."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from singlecard import __version__
from singlecard.artifact import archive, exporting, loading
from singlecard.artifact.archive import MANIFEST, PAGE, writing
from singlecard.artifact.loading import load
from singlecard.errors import ArtifactError, OptionError, RuntimeFailure
from tests.artifact.machine import Machine, same
from tests.artifact.models import Bessel

X = torch.ones(4, 8)


@pytest.fixture
def artifact(machine: Machine) -> Path:
    """An artifact with engines, and a part that stays in PyTorch."""
    machine.export(Bessel().eval(), X, fallback=True)
    return machine.path


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write an artifact's members anew; change them before."""
    with zipfile.ZipFile(path) as container:
        members = {info.filename: container.read(info) for info in container.infolist()}
    change(members)
    with zipfile.ZipFile(path, "w") as container:
        for name, content in members.items():
            container.writestr(name, content)
    return path


def with_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def change_members(members: dict[str, bytes]) -> None:
        manifest = json.loads(members[MANIFEST])
        change(manifest)
        members[MANIFEST] = json.dumps(manifest).encode()

    return rewritten(path, change_members)


def member(path: Path, ending: str) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as container:
        return next(info for info in container.infolist() if info.filename.endswith(ending))


def start(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def flip(path: Path, ending: str) -> None:
    place = start(path, member(path, ending)) + 100
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def refused(path: Path, *words: str, **given: Any) -> None:
    """Loading, and calling what was loaded, names the file and says these words."""
    with pytest.raises(ArtifactError) as caught:
        load(path, device="cpu", **given)(X)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_members_are_pages(artifact: Path) -> None:
    """TensorRT would read a copy of an engine instead of the mapped file."""
    with zipfile.ZipFile(artifact) as container:
        assert container.testzip() is None
        infos = container.infolist()
    assert len(infos) > 3
    for info in infos:
        assert info.compress_type == zipfile.ZIP_STORED
        assert start(artifact, info) % PAGE == 0


def pickles(content: bytes, where: str) -> tuple[list[str], int]:
    """Return the pickles in a ZIP file, and in those in it; and how many members there are."""
    found, count = [], 0
    with zipfile.ZipFile(io.BytesIO(content)) as container:
        for info in container.infolist():
            inner, name = container.read(info), f"{where}/{info.filename}"
            is_pickle = inner[:1] == b"\x80" and inner[-1:] == b"."
            if is_pickle or info.filename.endswith((".pkl", ".pickle")):
                found.append(name)
            more, members = pickles(inner, name) if inner[:2] == b"PK" else ([], 0)
            found, count = found + more, count + 1 + members
    return found, count


def test_nothing_in_it_is_a_pickle(machine: Machine, artifact: Path) -> None:
    """Whoever can write to a pickle runs code in every process that loads it."""
    found, count = pickles(artifact.read_bytes(), "")
    assert not found and count > 8
    whole = io.BytesIO()
    torch.export.save(torch.export.export(Bessel(), (X,)), whole)
    assert pickles(whole.getvalue(), "")[0]  # what PyTorch writes is not so


def test_cut_short(artifact: Path) -> None:
    """A download that broke off."""
    for length in (artifact.stat().st_size - 10, 5000, 0):
        with artifact.open("r+b") as file:
            file.truncate(length)
        refused(artifact, "is damaged", "cut short", "copy it again")


def test_special_files(artifact: Path, tmp_path: Path) -> None:
    """A pipe is waited for without end, and a device is read until the memory is full."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        refused(path, "is no regular file")


def test_a_manifest_without_measure(artifact: Path) -> None:
    """Read before anything can be checked, so its size has an end."""

    def grow(members: dict[str, bytes]) -> None:
        members[MANIFEST] += b" " * (archive.MOST_MANIFEST + 1 - len(members[MANIFEST]))

    rewritten(artifact, grow)
    refused(artifact, "manifest.json has", "at most")


def test_an_empty_key(artifact: Path) -> None:
    """A variable that is not set, in a script that checks signatures, would check none."""
    with pytest.raises(OptionError, match="signing_key is ''"):
        load(artifact, device="cpu", signing_key="")


def test_no_artifact(artifact: Path, tmp_path: Path) -> None:
    """A path to something else."""
    other = tmp_path / "notes.txt"
    other.write_text("hello" * 1000)
    refused(other, "no artifact at all")
    refused(tmp_path / "missing", "cannot be opened: No such file", "singlecard.export")
    refused(tmp_path, "cannot be opened")
    with zipfile.ZipFile(other, "w") as container:
        container.writestr("a", "b")
    refused(other, "no manifest")


@pytest.mark.parametrize("ending", [".plan", "eager/1.json", "manifest.json"])
def test_a_flipped_bit(artifact: Path, ending: str) -> None:
    """One bit of an engine is another answer, or a crash inside of TensorRT."""
    flip(artifact, ending)
    refused(artifact, "is damaged", "copy it again")


def test_a_flipped_bit_is_no_reason_to_fall_back(artifact: Path) -> None:
    """A damaged file that half answers is found out by nobody."""
    flip(artifact, ".plan")
    loaded = load(artifact, device="cpu")
    with pytest.raises(ArtifactError, match=r"the checksum of engines/\w+\.plan differs"):
        loaded(X)


def test_a_missing_member(artifact: Path) -> None:
    """Found when loading, not at the first call of a rare shape."""
    name = member(artifact, ".plan").filename
    rewritten(artifact, lambda members: members.pop(name) and None)
    refused(artifact, f"{name} is missing")


def test_a_shorter_member(artifact: Path) -> None:
    name = member(artifact, ".plan").filename
    rewritten(artifact, lambda members: members.update({name: members[name][:-1]}))
    refused(artifact, name, "bytes instead of")


def test_compressed(artifact: Path) -> None:
    """Somebody zipped it anew."""
    with zipfile.ZipFile(artifact) as container:
        members = {info.filename: container.read(info) for info in container.infolist()}
    with zipfile.ZipFile(artifact, "w", zipfile.ZIP_DEFLATED) as container:
        for name, content in members.items():
            container.writestr(name, content)
    refused(artifact, "is compressed")


def test_of_a_newer_release(artifact: Path) -> None:
    """The way out is another singlecard, not another file."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["format"] = 99
        manifest["versions"]["singlecard"] = "9.0"

    with_manifest(artifact, change)
    refused(artifact, "format 99", "9.0", __version__, "update singlecard, or export")


def test_of_another_tensorrt(machine: Machine, artifact: Path, caplog: Any) -> None:
    """Engines load only in the TensorRT that built them."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"]["tensorrt"] = "1.0.0"

    with_manifest(artifact, change)
    same(load(artifact, device="cpu")(X), Bessel()(X))  # the whole model is in it
    assert "tensorrt_rtx 1.0.0" in caplog.text

    def remove(manifest: dict[str, Any]) -> None:
        manifest["fallback"] = None

    with_manifest(artifact, remove)
    refused(artifact, "tensorrt_rtx 1.0.0", "install that one, or export")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["wiring"].pop("steps"),
        lambda manifest: manifest["wiring"].update(outputs=3),
        lambda manifest: manifest["signature"]["inputs"][0].update(dtype=7, shape="x"),
        lambda manifest: manifest.update(state=[{}]),
        lambda manifest: manifest.update(engines={"0" * 64: {}}),
        lambda manifest: manifest.update(steps=[]),
        lambda manifest: manifest["signature"].update(arguments="[1, {}]"),
        lambda manifest: manifest["signature"].update(
            results=json.dumps([1, {"type": "builtins.list", "context": '{"__enum__": 1}'}])
        ),
    ],
)
def test_a_manifest_without_sense(artifact: Path, change: Callable[[Any], Any]) -> None:
    """Whatever stands there, the answer is an error with the file's name."""
    with_manifest(artifact, change)
    refused(artifact, "is damaged")


def test_functions_by_name(artifact: Path) -> None:
    """A file that could name any function could run any."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["wiring"]["sizes"]["99"] = ["os.system", ["true"]]

    with_manifest(artifact, change)
    refused(artifact, "'os.system' is no op of this PyTorch")


@pytest.mark.parametrize(
    "kind",
    [
        "collections.defaultdict",
        "subprocess.Popen",
        "a.module.Class",
        "transformers.commands.serving.Output",
    ],
)
def test_classes_by_name(artifact: Path, kind: str) -> None:
    """A name in a file is no reason to import a module."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["signature"]["results"] = json.dumps(
            [1, {"type": kind, "context": "null", "children_spec": []}]
        )

    with_manifest(artifact, change)
    refused(artifact, kind, "import what defines it")


def test_an_enumeration_in_disguise(artifact: Path) -> None:
    """PyTorch's reader imports the module of an enumeration, however its mark is spelt."""

    def change(manifest: dict[str, Any]) -> None:
        mark = '{"\\u005f_enum__": true, "fqn": "antigravity:A", "name": "B"}'
        nest = {"type": "builtins.dict", "context": mark, "children_spec": []}
        manifest["signature"]["results"] = json.dumps([1, nest])

    with_manifest(artifact, change)
    refused(artifact, "a dict without its keys")
    assert "antigravity" not in sys.modules


def test_a_library_that_is_not_there(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of a class of transformers, where transformers is not installed."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["signature"]["results"] = json.dumps(
            [1, {"type": f"{module}.Nothing", "context": "[]", "children_spec": []}]
        )

    module = "transformers.modeling_outputs"
    monkeypatch.setitem(sys.modules, module, None)
    with_manifest(artifact, change)
    refused(artifact, f"{module}.Nothing", "cannot be imported", "return_dict=False")


def test_an_engine_with_a_library_in_it(artifact: Path) -> None:
    """TensorRT-RTX would run the code of a library that a plan carries."""
    import blake3

    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith(".plan"))
        plan = members[name].replace(b"THGW\0\0\0\0", b"NGLP\0\0\0\0", 1)
        assert plan != members[name]
        members[name] = plan
        manifest = json.loads(members[MANIFEST])
        manifest["members"][name]["blake3"] = blake3.blake3(plan).hexdigest()
        members[MANIFEST] = json.dumps(manifest).encode()

    rewritten(artifact, change)
    refused(artifact, "a plugin library, whose code would run")


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "key", tmp_path / "other"]
    for number, path in enumerate(made):
        path.write_text(f"{number}" * 40)
        path.chmod(0o600)
    return made


def test_signatures(machine: Machine, keys: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the shelf of artifacts must not decide what runs."""
    model = Bessel().eval()
    machine.export(model, X)
    refused(machine.path, "is not signed", "signing_key", signing_key=keys[0])
    assert machine.export(model, X, options={"signing_key": keys[0]}).signed
    same(machine.load(signing_key=keys[0])(X), model(X))
    same(machine.load()(X), model(X))
    refused(machine.path, "is signed with another key", signing_key=keys[1])
    monkeypatch.setenv("SINGLECARD_SIGNING_KEY", str(keys[1]))
    refused(machine.path, "is signed with another key")
    monkeypatch.delenv("SINGLECARD_SIGNING_KEY")
    with pytest.raises(OptionError, match="cannot be read"):
        machine.load(signing_key=keys[0].with_name("none"))
    with_manifest(machine.path, lambda manifest: manifest.update(precision="fp16"))
    refused(machine.path, "was changed after it was signed", signing_key=keys[0])
    rewritten(machine.path, lambda members: members.update(signature=b"{"))
    refused(machine.path, "cannot be read", signing_key=keys[0])


def test_an_interrupted_export(
    machine: Machine, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran yesterday must run after a failed export."""
    before = artifact.read_bytes()

    def broken(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "segment_to_plain", broken)
    with pytest.raises(KeyboardInterrupt):
        machine.export(Bessel().eval(), X)
    assert artifact.read_bytes() == before
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says that the old file is whole."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device.*is as it was"):
        with writing(tmp_path / "a") as writer:
            writer.add("b", b"c")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be(machine: Machine, tmp_path: Path) -> None:
    """Found before minutes of building."""
    with pytest.raises(ArtifactError, match="there is no folder"):
        exporting.export(nn.Identity(), (X,), path=tmp_path / "a" / "b")
    with pytest.raises(ArtifactError, match="it is a folder"):
        exporting.export(nn.Identity(), (X,), path=tmp_path)
    with pytest.raises(ArtifactError, match="give path="):
        exporting.export(nn.Identity(), (X,))


def test_a_file_that_is_replaced_while_it_is_loaded(machine: Machine, artifact: Path) -> None:
    """An update must not mix two models in a process that runs."""
    loaded = machine.load()
    shutil.copy(artifact, artifact.with_name("new"))
    flip(artifact.with_name("new"), ".plan")
    artifact.with_name("new").replace(artifact)
    same(loaded(X), Bessel()(X))


def test_without_a_card(machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """With the whole model in it PyTorch answers, and says so once; without it, why not."""
    monkeypatch.undo()
    model = Bessel().eval()
    machine.export(model, X, fallback=True)
    loaded = machine.load()
    same(loaded(X), model(X))
    loaded(X)
    assert caplog.text.count("runs in PyTorch") == 1
    machine.export(model, X)
    with pytest.raises(RuntimeFailure, match="cannot run: .*fallback=True"):
        machine.load()(X)


def test_another_card(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines for one card do not run on another."""
    machine.export(Bessel().eval(), X)
    monkeypatch.setattr(loading, "target_of", lambda device: "sm75")
    with pytest.raises(RuntimeFailure, match="engines are for sm89, and cpu is sm75"):
        machine.load()(X)


def test_a_size_outside_of_the_engine(machine: Machine, caplog: Any) -> None:
    """The model takes it, the engine does not: PyTorch does if it can."""
    model = Bessel().eval()
    given: dict[str, Any] = {
        "dynamic_shapes": {"x": {0: (1, 32)}},
        "options": {"profiles": {"x": {0: (1, 4, 8)}}},
    }
    machine.export(model, X, **given)
    x = torch.rand(16, 8)
    with pytest.raises(RuntimeFailure, match="has 16, the engine was built for 1 to 8.*fallback"):
        machine.load()(x)
    machine.export(model, X, fallback=True, **given)
    loaded = machine.load()
    same(loaded(x), model(x))
    same(loaded(X), model(X))
    assert caplog.text.count("runs in PyTorch") == 1
