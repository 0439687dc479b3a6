"""Build files: what is wrong in them is told before anything is built, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from singlecard.axes import Range
from singlecard.errors import OptionError
from singlecard.offline.build_file import BuildFile, read_build_file
from singlecard.offline.jobs import jobs_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "build.toml"


def read(folder: Path, text: str) -> BuildFile:
    (folder / "models.py").write_text("def small(): ...\n")
    (folder / "build.toml").write_text(text)
    return read_build_file(folder / "build.toml")


def problems(folder: Path, text: str) -> str:
    with pytest.raises(OptionError) as refused:
        read(folder, text)
    assert str(folder / "build.toml") in str(refused.value)
    return str(refused.value)


def test_defaults_of_the_file_and_of_a_model(tmp_path: Path) -> None:
    """A model that says something of its own must not lose what the file says for all."""
    file = read(
        tmp_path,
        """
        cache_dir = "engines"
        precisions = ["fp16"]
        targets = ["sm89", ["sm86", "sm89"]]
        memory = "1.5GB"
        workers = 3
        options = {strict = true, min_block_size = 4}

        [[model]]
        model = "models.py:small"
        shapes = {input = "1:8:32,128"}
        options = {min_block_size = 2}

        [[model]]
        name = "portable"
        model = "models.py:small"
        precisions = ["fp32", "tf32"]
        targets = ["portable"]
        memory = "2GB"
        """,
    )
    assert (file.cache_dir, file.memory, file.workers) == (tmp_path / "engines", 15 * 10**8, 3)
    small, portable = file.entries
    assert small.name == "small"
    assert small.options == {"strict": True, "min_block_size": 2}
    assert small.shapes == {"input": {0: Range(1, 8, 32), 1: Range(128, 128, 128)}}
    assert portable.options == {"strict": True, "min_block_size": 4}
    assert portable.memory == 2 * 10**9
    assert [job.name for job in jobs_of(file)] == [
        "small fp16 sm89",
        "small fp16 sm86,sm89",
        "portable fp32 portable",
        "portable tf32 portable",
    ]
    assert len({job.key for job in jobs_of(file)}) == 4


def test_jobs_are_chosen_by_name(tmp_path: Path) -> None:
    """Who repairs one model of thirty does not build thirty."""
    names = ("bert", "bert_large", "resnet")
    tables = [f'[[model]]\nname = "{name}"\nmodel = "models.py:small"\n' for name in names]
    file = read(tmp_path, "".join(tables))
    assert [job.entry.name for job in jobs_of(file, ["bert*"])] == ["bert", "bert_large"]
    assert [job.entry.name for job in jobs_of(file, ["bert", "resnet"])] == ["bert", "resnet"]
    with pytest.raises(OptionError, match="did you mean resnet"):
        jobs_of(file, ["resnt"])


def test_a_calibration_table_goes_where_it_is_of_use(tmp_path: Path) -> None:
    """The backend refuses one for FP32: a list of precisions could not have both."""
    text = '[[model]]\nmodel = "models.py:small"\ncalibration = "t.json"\nprecisions = ["fp32"]\n'
    assert "none of fp32 uses it" in problems(tmp_path, text)
    text = text.replace('["fp32"]', '["fp32", "int8"]')
    assert "t.json" in problems(tmp_path, text)  # it is not there


#: What a table [[model]] says, or what stands at the top, and what the message must name.
WRONG = {
    'precison = ["fp16"]': ["'precison'", "the top", "did you mean 'precisions'?"],
    'precision = ["fp16"]': ["'precision'", "did you mean 'precisions'?"],
    'models = ["a"]': ["'models'", "did you mean 'model'?"],
    "colour = 1": ["'colour'", "valid are cache_dir, precisions"],
    "workers = 0": ["workers = 0", ">= 1"],
    "workers = true": ["workers = True", ">= 1"],
    'memory = "a lot"': ["'a lot'", "12GB"],
    "memory = -1": ["memory = -1", "12GB"],
    'precisions = "fp16"': ["precisions = 'fp16'", "a list"],
    'precisions = ["fp61"]': ["'fp61'", "did you mean 'fp16'?"],
    "precisions = []": ["precisions = []", "a list"],
    'targets = "sm86"': ["targets = 'sm86'", '["sm86", "sm89"]'],
    "targets = [86]": ["targets has 86"],
    'targets = ["sm85"]': ["'sm85'", "sm86"],
    "options = 3": ["[options] = 3", "a table"],
    "options = {strct = true}": ["'strct'", "[options]", "did you mean 'strict'?"],
    'options = {precision = "fp16"}': ["'precision'", "[options]", "key precisions"],
    "options = {strict = 1}": ["strict=1", "True or False"],
    "cache_dir = 3": ["cache_dir = 3", "a folder"],
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_at_the_top_is_named(tmp_path: Path, line: str) -> None:
    """A key that is silently ignored builds thirty models with the wrong options."""
    told = problems(tmp_path, f'{line}\n[[model]]\nmodel = "models.py:small"\n')
    for word in WRONG[line]:
        assert word in told
    assert "problems" not in told  # one mistake is told once


OF_MODEL = {
    'shapess = "x"': ["'shapess'", "[[model]] 'bert'", "did you mean 'shapes'?"],
    'shapes = "input=2"': ["shapes", "a table from inputs"],
    'shapes = {input = "4:2:1"}': ["'input'", "min <= opt <= max"],
    'files = "weights.bin"': ["files", "a list of files"],
    'files = ["weights.bin"]': ["'weights.bin'", "no file"],
    'precisions = ["bf16"]\ntargets = ["sm75"]': ["bf16", "sm75"],
    'precisions = ["int8"]': ["'int8'", "calibration"],
    "options = {min_block_size = 0}": ["min_block_size=0", ">= 1"],
    "name = 3": ["name = 3"],
}


@pytest.mark.parametrize("line", OF_MODEL)
def test_a_mistake_in_a_model_is_named_with_the_model(tmp_path: Path, line: str) -> None:
    """Thirty tables look alike."""
    name = "" if line.startswith("name") else 'name = "bert"\n'
    told = problems(tmp_path, f'[[model]]\n{name}model = "models.py:small"\n{line}\n')
    for word in ["[[model]]", *OF_MODEL[line]]:
        assert word in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workers = 2", ["lists no model", "[[model]]"]),
        ('[model]\nmodel = "models.py:small"', ["[[model]]", "two brackets"]),
        ("[[model]]\nname = 'x'", ["'x' lacks key model"]),
        ("[[model]]\nmodel = 'small'", ["names no function"]),
        ("[[model]]\nmodel = 'modles.py:small'", ["modles.py", "did you mean models.py?"]),
        ("[[model]]\nmodel = 'none.pt2'", ["none.pt2"]),
        ("[[model]]\nmodel = 'models.py:small'\n" * 2, ["2 models are called 'small'"]),
        ("[[model]\n", ["no TOML", "line 1"]),
        ("workers = 2\nworkers = 3\n", ["no TOML", "line 2"]),
    ],
)
def test_files_that_are_wrong_as_a_whole(tmp_path: Path, text: str, words: list[str]) -> None:
    """The first thing that a new user writes."""
    told = problems(tmp_path, text)
    for word in words:
        assert word in told


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """One round for each of five mistakes is five rounds of a CI queue."""
    told = problems(
        tmp_path,
        """
        precison = ["fp16"]
        workers = 0
        [[model]]
        model = "models.py:small"
        targets = ["sm1"]
        [[model]]
        model = "modles.py:small"
        name = "other"
        option = {strict = true}
        """,
    )
    assert "has 5 problems" in told
    for word in ("'precison'", "workers = 0", "'sm1'", "modles.py", "'option'"):
        assert word in told


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The message leads to the file that is meant."""
    read(tmp_path, '[[model]]\nmodel = "models.py:small"\n')
    with pytest.raises(OptionError, match=r"did you mean .*build\.toml"):
        read_build_file(tmp_path / "buld.toml")


def test_the_example_is_valid() -> None:
    """It is what users copy."""
    assert len(jobs_of(read_build_file(EXAMPLE))) >= 3
