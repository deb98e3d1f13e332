"""Memory that runs out ends in one line, and what was finished stays."""

import os
import resource
import subprocess
import sys

import pytest
from support.command import QUICK, instamap

from instamap.cli.memory import LEAST_SPACE, check_space, spare_threads, take_large_pages
from instamap.errors import DataError, is_out_of_memory, line_of
from instamap.simulate import particle_set
from instamap.workflows import api, resume


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("can't start new thread"),
        ImportError("_x.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kept", [False, True])
def test_a_shortage_is_told_in_one_line(tmp_path, monkeypatch, error, kept):
    star = particle_set.demo(tmp_path / "data", count=20, box=16, pixel_size=6.0)
    out = tmp_path / "out"

    def run(settings, progress):
        if kept:
            (out / resume.FOLDER / "half1-1.npz").write_bytes(b"a checkpoint")
        raise error

    if "allocate ..." in str(error):
        error.args = ("DefaultCPUAllocator: can't allocate memory",)
    monkeypatch.setattr(api, "run", run)
    outcome = instamap("reconstruct", star, "-o", out, *QUICK)
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2 and len(lines) == 1 and "Traceback" not in outcome.err
    assert "memory is exhausted" in lines[0] and "--box, --crop" in lines[0]
    assert "--mask" in lines[0]
    assert ("--resume goes on" in outcome.err) == kept
    if kept:
        assert (out / resume.FOLDER / "half1-1.npz").read_bytes() == b"a checkpoint"


def test_other_errors_are_no_shortage():
    assert not is_out_of_memory(RuntimeError("shape '[3]' is invalid"))
    assert not is_out_of_memory(OSError(2, "No such file"))
    assert not is_out_of_memory(KeyError("out of memory"))


def test_libraries_start_no_threads_that_they_have_no_room_for(monkeypatch):
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2 << 30, resource.RLIM_INFINITY))
    spare_threads()
    assert [os.environ[name] for name in names] == ["1", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    spare_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2", "what a person has set stays"


def test_commands_refuse_where_libraries_have_no_room(monkeypatch):
    limits = [LEAST_SPACE, resource.RLIM_INFINITY]
    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(limits))
    check_space()
    limits[0] = resource.RLIM_INFINITY
    check_space()
    limits[0] = LEAST_SPACE - 1
    with pytest.raises(MemoryError):
        check_space()


@pytest.mark.slow
@pytest.mark.parametrize("command", [("accumulate",), ("reconstruct", *QUICK)])
@pytest.mark.parametrize("megabytes", [500, 900, 1050, 1300, 1501])
def test_a_limit_of_addresses_ends_in_a_line_or_is_enough(tmp_path, megabytes, command):
    """Also where nothing is compiled yet: compilers abort where they get no memory."""
    star = particle_set.demo(tmp_path / "data", count=20, box=16, pixel_size=6.0)
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2);"
        " from instamap.cli import main; main()"
    )
    name, *options = command
    words = [name, str(star), "-o", str(tmp_path / "out"), *options]
    nothing_compiled = {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **nothing_compiled},
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "memory is exhausted" in done.stderr.splitlines()[-1]


def test_what_a_damaged_file_has_filled_is_told_without_its_middle():
    assert line_of(DataError("a\n b\x0c c")) == "a b c"
    line = line_of(DataError(f"x of 'y' is {'9' * 5000}; give a number"))
    assert line.startswith("x of 'y' is 999") and line.endswith("999; give a number")
    assert " ... " in line and len(line) < 700


def test_memory_comes_in_large_pages_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    take_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    take_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
