"""Compiled kernels: also where nothing can be cached; without a numba that works everything runs in
torch, and one line says so.
"""

import subprocess
import sys

import pytest
import torch

from instamap.fourier import central_slices
from instamap.geometry import compiled
from instamap.representations.encodings import grid
from instamap.statistics.accumulator import Accumulator

needs_numba = pytest.mark.skipif(
    not compiled.usable(), reason="numba is not installed: there is nothing to compile with"
)


@pytest.fixture
def forget():
    """What is known of numba is forgotten, before and after."""
    known = (compiled._fault, central_slices._numba)
    for each in known:
        each.cache_clear()
    yield
    for each in known:
        each.cache_clear()


@needs_numba
def test_kernels_are_compiled_also_where_nothing_can_be_written(monkeypatch):
    import numba

    compile = numba.njit
    asked = []

    def njit(*function, cache=False, **flags):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile(*function, **flags)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled.jit(fastmath=True)(lambda a: a + 1)(1) == 2 and asked[:2] == [True, False]


@needs_numba
def test_with_numba_there_is_nothing_to_say():
    assert compiled.usable() and compiled.note() is None
    assert grid.backend(torch.zeros(1, 3)) == "numba" and central_slices._numba()
    assert Accumulator(8, 1.0).backend == "numba"


@needs_numba
def test_compilation_is_told_once_and_only_where_there_is_some(monkeypatch, tmp_path):
    """A kernel of one's own is compiled on its first call alone."""
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))  # where no earlier run left it
    first = compiled.jit(fastmath=True)(lambda a: a + 1)
    second = compiled.jit(fastmath=True)(lambda a: a + 2)
    lines = []
    with compiled.reporting_compilation(lines.append):
        assert first(1) == 2 and second(1) == 3
    assert lines == [compiled.COMPILING]
    with compiled.reporting_compilation(lines.append):
        assert first(1) == 2 and second(1) == 3
    assert len(lines) == 1


@needs_numba
def test_kernels_on_disk_are_not_told_of(tmp_path):
    """The first process compiles and says so, the second one finds what it left."""
    (tmp_path / "kernel.py").write_text(
        "from instamap.geometry.compiled import jit\n\n\n@jit()\ndef twice(a):\n    return 2 * a\n"
    )
    script = (
        "from instamap.geometry.compiled import reporting_compilation\n"
        "import kernel\n"
        "with reporting_compilation(print):\n"
        "    assert kernel.twice(2.0) == 4.0\n"
    )
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said == [f"{compiled.COMPILING}\n", ""]


def assert_torch_alone() -> None:
    assert not compiled.usable() and central_slices._numba() is None
    assert Accumulator(8, 1.0).backend == "torch" and grid.backend(torch.zeros(1, 3)) == "torch"


def test_without_numba_torch_does_it_and_says_so(monkeypatch, forget):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "numba":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert (
        compiled.note().startswith("numba is not installed: ")
        and "pip install 'instamap[cpu]'" in compiled.note()
    )
    assert_torch_alone()


FAULTS = (
    "raise ImportError('Numba needs NumPy 2.3 or less.\\nGot 2.9')",
    "raise SystemError('no\\nway')",
    "import nothing_at_all",
)


@pytest.mark.parametrize("text", FAULTS)
def test_a_numba_that_fails_is_none(monkeypatch, forget, tmp_path, text):
    (tmp_path / "numba.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert compiled.note().startswith("numba cannot be imported (") and "\n" not in compiled.note()
    assert_torch_alone()


def test_numba_is_not_imported_before_it_is_needed():
    script = (
        "import sys, instamap.fourier.central_slices, instamap.statistics.accumulator;"
        " sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
