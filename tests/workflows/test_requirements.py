"""What a run is said to need: memory within a factor of 1.5 of what it takes, or a refusal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.command import instamap

from instamap.errors import OptionError
from instamap.geometry.cube import Cube
from instamap.maps import mrc
from instamap.simulate import particle_set
from instamap.workflows import requirements
from instamap.workflows.requirements import Requirements

# Linux's VmHWM, for what getrusage tells of a program begins at what its parent held.
PROGRAM = """
import sys
from instamap.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""
FACTOR = 1.5


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """A hundred images of 160 pixels."""
    folder = tmp_path_factory.mktemp("large")
    small = particle_set.demo(folder / "small", count=8, box=40, pixel_size=3.0, snr=1.0)
    truth, _ = mrc.read(small.with_name("truth.mrc"))
    wide = torch.zeros(160, 160, 160)
    wide[60:100, 60:100, 60:100] = truth
    mrc.write(folder / "wide.mrc", wide, 3.0)
    made = instamap("simulate", folder / "wide.mrc", "-n", 100, "--snr", 0.5, "-o", folder / "set")
    assert made.code == 0, made
    return folder / "set" / "particles.star"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_memory_is_told_within_a_factor(star, tmp_path):
    words = ["reconstruct", str(star), "-o", str(tmp_path / "out"), "-O", "steps=4"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = re.search(r"needs +about ([\d.]+) GB, \d+ s to read", done.stdout + done.stderr)
    assert told, done.stdout + done.stderr
    taken = int(done.stderr.split()[-1]) * 1024 / 1e9
    assert taken / FACTOR < float(told[1]) < taken * FACTOR


def test_what_cannot_fit_is_refused_before_work_starts(star, tmp_path, monkeypatch):
    monkeypatch.setattr(requirements, "_available", lambda: 1e8)
    outcome = instamap("reconstruct", star, "-o", tmp_path / "out", "-O", "steps=4")
    assert outcome.code == 2
    assert "GB of memory, and 0.1 GB are free; scale the images down (--box)" in outcome.err
    assert not (tmp_path / "out" / "map.mrc").exists()


def test_memory_grows_with_the_cube_and_with_the_box():
    small = requirements._memory(Cube(256, 80, 176))
    wide = requirements._memory(Cube(256, 20, 236))
    assert small < wide < requirements._memory(Cube(512, 20, 236))
    # A fit in 200 voxels needs little more in a larger box: the maps that are written.
    cube = requirements._memory(Cube(256, 28, 228))
    assert cube < requirements._memory(Cube(512, 156, 356)) < cube + 4e9


def test_nothing_is_refused_where_free_memory_is_not_known():
    Requirements(1e15, 1.0, 1.0, None).check()
    with pytest.raises(OptionError, match=r"needs about 1000\.0 GB of memory, and 2\.0 GB"):
        Requirements(1e12, 1.0, 1.0, 2e9).check()
