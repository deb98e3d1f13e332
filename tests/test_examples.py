"""Every example runs as its first lines say, and prints what they promise, numbers aside."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from instamap.simulate.particle_set import demo
from instamap.testing import ObjectiveLaws, RepresentationLaws

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = ("quick_start", "new_representation", "own_objective", "motion")
FAST = {"quick_start"}
JOB = "cluster_job.sh"
TASKS = (1, 2, 3, 4, 0)  # in the order in which a cluster runs them; 0 merges and fits
MAX_LINES_OF_CODE = 60

NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
CUT = "..."  # where a line goes on


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def promised(first_lines: str) -> list[str]:
    """The last block of indented lines: what is printed."""
    blocks = re.findall(r"(?:^ {4}.*\n?)+", first_lines, re.MULTILINE)
    return [line[4:] for line in blocks[-1].splitlines()]


def header(source: str) -> str:
    """The comment at the top of a shell script, without its marks."""
    lines = source.splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[2:] for line in lines[:end] if not line.startswith("#SBATCH"))


def matches(line: str, promise: str) -> bool:
    """Whether a line is the promised one up to its numbers, or up to where that is cut."""
    line = NUMBER.sub("#", line)
    start, cut, _ = NUMBER.sub("#", promise).partition(CUT)
    return line.startswith(start) if cut else line == start


def check(printed: str, promises: list[str]) -> None:
    lines = printed.splitlines()
    assert len(lines) == len(promises), printed
    for line, promise in zip(lines, promises, strict=True):
        assert matches(line, promise), f"printed '{line}', promised '{promise}'"


def call(folder: Path, *words: str, **environment: str) -> str:
    tools = Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, f"{words} exited with {done.returncode}:\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in SCRIPTS],
)
def test_a_script_prints_what_it_promises(name, tmp_path):
    script = FOLDER / f"{name}.py"
    printed = call(tmp_path, sys.executable, "-W", "error", str(script), "out")
    docstring = ast.get_docstring(ast.parse(text_of(script.name)), clean=False)
    check(printed, promised(docstring))
    named = re.findall(r"FOLDER/([\w/]+\.\w+)", docstring)
    assert all((tmp_path / "out" / file).is_file() for file in named)


@pytest.mark.slow
def test_the_job_does_the_same_in_every_task(tmp_path):
    star = demo(tmp_path, box=40, pixel_size=4.0, snr=0.02)
    for task in TASKS:
        words = ("bash", str(FOLDER / JOB), star.name, "out")
        printed = call(tmp_path, *words, SLURM_ARRAY_TASK_ID=str(task))
    promises = promised(header(text_of(JOB)))
    check("\n".join(printed.splitlines()[-len(promises) :]), promises)
    assert (tmp_path / "out" / "run" / "map.mrc").is_file()


def test_the_jobs_array_has_as_many_tasks_as_it_makes_pieces():
    source = text_of(JOB)
    pieces = re.search(r"^shards=(\d+)", source, re.MULTILINE)[1]
    assert f"#SBATCH --array=1-{pieces}\n" in source


def test_every_example_is_listed_and_tested():
    files = {path.name for path in FOLDER.iterdir() if path.is_file()} - {"README.md"}
    listed = re.findall(r"^\| \[(.+?)\]\((.+?)\) \|", text_of("README.md"), re.MULTILINE)
    assert [name for name, _ in listed] == [link for _, link in listed]
    assert {name for name, _ in listed} == files == {JOB, *(f"{name}.py" for name in SCRIPTS)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short(name):
    source = text_of(f"{name}.py")
    body = source.split('"""', 2)[2].splitlines()
    assert len([line for line in body if line.strip()]) <= MAX_LINES_OF_CODE


def test_a_broken_promise_is_found():
    """Or else the tests above are blind."""
    check("map 1 of 2.5 Å\nand -3e more", promised("It prints\n\n    map 7 of 8 Å\n    and 1e ..."))
    for printed in ("map one of 2 Å", "map 1 of 2 Å, and more", "map 1 of 2 Å\nmore", ""):
        with pytest.raises(AssertionError):
            check(printed, ["map 1 of 2 Å"])


def part_of(script: str, name: str) -> type:
    """A class of a script."""
    return runpy.run_path(str(FOLDER / script))[name]


class TestSineNetwork(RepresentationLaws):
    """The example's representation obeys the laws."""

    def make(self, scene):
        made = part_of("new_representation.py", "SineNetwork")
        return made(made.Options(width=8), scene)


class TestSparse(ObjectiveLaws):
    """The example's objective obeys the laws."""

    options = {"points": 64}

    def load(self):
        return part_of("own_objective.py", "Sparse")
