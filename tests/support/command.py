"""The command line as the tests call it: `instamap(...)` in this process, since importing torch
takes seconds.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from instamap.cli import main
from instamap.maps import mrc
from instamap.plugin.registry import default

# A fit of a second or two on the sets of these tests; each objective needs its own pace.
OBJECTIVES = {
    "normal": ("--objective", "normal", "-O", "steps=30"),
    "images": ("--objective", "images", "-O", "steps=24", "-O", "evaluate_every=8"),
}
QUICK = ("--objective", "normal", "-O", "steps=20")


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line that a refusal consists of."""
        assert self.code == 2 and not self.out, self
        [line] = self.err.splitlines()
        assert line.startswith("error: "), self
        return line


def instamap(*words) -> Outcome:
    """What `instamap` with these words does and says."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["instamap", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def maps(folder: Path) -> dict[str, Tensor]:
    """The maps of a run by name."""
    return {path.stem: mrc.read(path)[0] for path in folder.glob("*.mrc")}


def correlation(a: Tensor, b: Tensor, inside: Tensor) -> float:
    """The correlation of two maps over the voxels where `inside` is true."""
    return float(torch.corrcoef(torch.stack([a[inside], b[inside]]))[0, 1])


@contextlib.contextmanager
def plugin(module) -> Iterator[None]:
    """A plugin's hooks within the block, as if it were installed."""
    manager = default().manager
    manager.register(module, name="instamap-test")
    try:
        yield
    finally:
        manager.unregister(name="instamap-test")
