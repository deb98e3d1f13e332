"""Several processes that share the images of one reconstruction: the outcome of one, refusals, and
what is left where one of them ends before its time.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from support import swinging
from support.command import instamap, maps
from torch import distributed

from instamap.errors import OptionError
from instamap.simulate import particle_set
from instamap.workflows import processes, shared_statistics
from instamap.workflows.read_settings import Typed, read_settings

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this PyTorch was built without torch.distributed and gloo",
)

WORDS = ("--objective", "normal", "-O", "steps=10", "--quiet")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LONGEST = 240  # seconds


@pytest.fixture
def particles(tmp_path):
    """120 particles of the demo's molecule."""
    return particle_set.demo(tmp_path / "set", count=120, box=24, pixel_size=6.0)


def by_two(*words) -> subprocess.CompletedProcess:
    """What two processes of `instamap` with these words do."""
    return two_of("-m", "instamap", *words)


def two_of(*program) -> subprocess.CompletedProcess:
    """What two processes of a program do, with the words that torchrun is given for it."""
    command = [sys.executable, *TWO, *map(str, program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST, env=environment, check=False
    )


def test_two_processes_find_what_one_finds(particles, tmp_path):
    """To the order in which rounded numbers are summed, which ten steps do not amplify much. The
    second process says nothing.
    """
    done = by_two("reconstruct", particles, "-o", tmp_path / "two", *WORDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resolution") == 1
    assert instamap("reconstruct", particles, "-o", tmp_path / "one", *WORDS).code == 0
    one = maps(tmp_path / "one")
    two = maps(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, volume in one.items():
        assert (two[name] - volume).norm() < 1e-4 * volume.norm()


@pytest.mark.slow
def test_two_processes_find_the_motion_that_one_finds(tmp_path):
    """Rounding decides nothing; what it changes in a fit of a few steps stays small, but for the
    borders of masks, which a threshold finds.
    """
    swinging.write(tmp_path, 300, 60.0, snr=0.5)
    words = ["reconstruct", tmp_path / "particles.star", "--deform", "bending-field"]
    words += ["-O", "steps=5", "--quiet"]
    done = by_two(*words, "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("maps and records in") == 1
    assert instamap(*words, "-o", tmp_path / "one").code == 0
    one = np.load(tmp_path / "one" / "latents.npy")
    two = np.load(tmp_path / "two" / "latents.npy")
    assert np.abs(one - two).max() < 0.01 * one.std()
    before = maps(tmp_path / "one")
    after = maps(tmp_path / "two")
    for name in ("map", "half1", "half2"):
        assert (after[name] - before[name]).norm() < 5e-3 * before[name].norm()


@pytest.mark.slow
def test_the_benchmark_sees_what_each_process_uses(particles):
    benchmark = pytest.importorskip(
        "benchmarks.speed.processes",
        reason="benchmarks are imported from the project's root: python -m pytest",
    )
    for count in benchmark.COUNTS:
        turn = benchmark.started(particles, count)
        assert turn.wall > 0 and len(turn.processor) == count and min(turn.processor) > 0


def test_what_is_wrong_with_the_share_of_another_ends_all(particles, tmp_path):
    """An image of the second process is no image: it says so, and no folder is left."""
    with mrcfile.mmap(particles.with_name("particles.mrcs"), mode="r+") as stack:
        stack.data[101] = np.nan  # row 102
    done = by_two("reconstruct", particles, "-o", tmp_path / "out", *WORDS)
    assert done.returncode != 0
    assert "row 102" in done.stderr and "not finite" in done.stderr
    assert not (tmp_path / "out").exists()


LEAVING = """
import os, torch
from instamap.workflows import processes

with processes.joined() as both:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([weight])  # it imports much of torch
    weight.sum().backward()
    optimiser.step()
    both.tell_all("end") if both.leads else both.hear()
names = [open(f"/proc/self/task/{one}/comm").read() for one in os.listdir("/proc/self/task")]
assert not any("gloo" in name for name in names), names
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="threads are found in /proc")
def test_threads_that_connect_processes_end_with_the_connection(tmp_path):
    """One that is left when Python ends may need Python again, and aborts the program then."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    done = two_of(tmp_path / "leaving.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
def test_a_process_that_is_killed_ends_all(particles, tmp_path):
    """Whenever it dies, the others end, and no folder is left."""
    words = ["reconstruct", particles, "-o", tmp_path / "out", "--objective", "normal"]
    command = [sys.executable, *TWO, "-m", "instamap", *map(str, words)]
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        os.kill(_second_process(running.pid), signal.SIGKILL)
        _, told = running.communicate(timeout=LONGEST)
    finally:
        running.kill()
    assert running.returncode != 0
    assert "SIGKILL" in told or "has ended before" in told
    assert not (tmp_path / "out").exists()


def _second_process(parent: int) -> int:
    """The number of the second process that `parent` starts, once there is one."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                number = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if number == parent and b"RANK=1" in environment:
                return int(folder.name)
        time.sleep(0.05)
    raise AssertionError("torchrun has started no second process")


@pytest.fixture
def first_of_two(monkeypatch):
    """The environment that torchrun gives to the first of two processes."""
    values = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shares_are_equal_and_hold_each_row_once(count):
    """And few sets each: at most one more in all than there are borders."""
    rows = {
        "half1": torch.arange(0, 30, 2),
        "half2": torch.arange(1, 30, 2),
        "held_out": torch.arange(30, 33),
    }
    shares = [shared_statistics.share_of(rows, rank, count) for rank in range(count)]
    for name, whole in rows.items():
        assert torch.equal(torch.cat([one[name] for one in shares if name in one]), whole)
    sizes = [sum(len(some) for some in one.values()) for one in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
    assert sum(len(one) for one in shares) <= len(rows) + count - 1


def test_commands_that_are_not_shared(first_of_two, tmp_path):
    refusal = instamap("fsc", tmp_path / "a.mrc", tmp_path / "b.mrc").refusal
    assert "command 'fsc' runs in one process, and torchrun has started 2" in refusal
    assert "run it without torchrun" in refusal


def test_others_are_quiet(first_of_two, monkeypatch):
    """The first says what is wrong with what was typed."""
    monkeypatch.setenv("RANK", "1")
    outcome = instamap("fsc", "a.mrc", "b.mrc")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--deform", "rigid"), "and this is workflow 'poses'; run it without torchrun"),
        (("--objective", "images"), "and objective 'images' has none; choose --objective normal"),
        (("--resume",), "share no run that was stopped; leave out --resume"),
    ],
)
def test_runs_that_cannot_be_shared(words, said, tmp_path, particles):
    parts = {"--deform": "deformation", "--objective": "objective"}
    names = {parts[words[0]]: words[1]} if words[0] in parts else {}
    settings = read_settings({}, Typed(plain={"particles": particles}, names=names))
    two = processes.Processes(0, 2)
    with pytest.raises(OptionError, match=said):
        shared_statistics.check(settings, "--resume" in words, two)


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.from_environment() is None and processes.current() is None
    with processes.joined() as together:
        assert together is None
    assert not torch.distributed.is_initialized()
