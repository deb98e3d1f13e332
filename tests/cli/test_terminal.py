"""What is told cannot end a run: readers that leave, full disks, closed streams, odd encodings."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import instamap

from instamap.cli.terminal import SurvivingStream, show, surviving_streams, tell
from instamap.workflows.output import TEMPORARY

COMMAND = Path(sys.executable).with_name("instamap")
MANY = 20_000  # lines, more than a pipe holds


class Failing(io.StringIO):
    """A stream that fails as a full disk or a reader that left do."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(28, "no space"), BrokenPipeError(), ValueError("closed file")]
)
def test_a_stream_that_fails_falls_silent(error):
    stream = SurvivingStream(Failing(error))
    assert stream.write("one") == 3
    assert stream.write("two") == 3
    stream.flush()


def test_a_stream_that_never_was(monkeypatch):
    """Python has None where a descriptor is closed."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with surviving_streams():
        show("one")
        tell("two")
        assert not sys.stdout.isatty() and sys.stdout.encoding == "utf-8"
    assert sys.stdout is None


def test_what_an_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = SurvivingStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("2.5 Å ≤ 3")
    stream.flush()
    assert raw.getvalue() == b"2.5 \\xc5 \\u2264 3"


def test_control_characters_are_escaped(capsys):
    with surviving_streams():
        show("a\x1b[2Jb\nc")
        tell("d\x07")
    shown = capsys.readouterr()
    assert shown.out == "a\\x1b[2Jb\nc\n" and shown.err == "d\\x07\n"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """What a line of bash does, in which $instamap is the command."""
    surroundings = {**os.environ, "instamap": str(COMMAND), **environment}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "line",
    [
        "$instamap parts > /dev/full",
        "$instamap parts >&-",
        "$instamap parts 2>&-",
        "$instamap parts | head -1; exit ${PIPESTATUS[0]}",
        "$instamap describe representation hash-grid > /dev/full 2> /dev/full",
    ],
)
def test_listings_survive_their_reader(tmp_path, line):
    outcome = shell(line, tmp_path)
    assert outcome.returncode == 0 and not outcome.stderr, outcome


@pytest.mark.parametrize("end", ["2> /dev/full", "2>&-", "> /dev/full", "2>&1 | head -1"])
def test_the_work_is_done_whoever_listens(particles, tmp_path, end):
    command = f"$instamap accumulate {particles} -o a {end}; exit ${{PIPESTATUS[0]}}"
    outcome = shell(command, tmp_path)
    assert outcome.returncode == 0 and "Traceback" not in outcome.stderr, outcome
    assert (tmp_path / "a" / "accumulate.toml").exists()


def test_a_refusal_is_still_a_refusal(tmp_path):
    assert shell("$instamap fsc no.mrc no.mrc 2> /dev/full", tmp_path).returncode == 2


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Path:
    """The STAR file of the demo's particles."""
    folder = tmp_path_factory.mktemp("particles")
    from instamap.simulate import particle_set

    particle_set.demo(folder, seed=0)
    return folder / "particles.star"


def begun(particles: Path, folder: Path, **options) -> subprocess.Popen:
    """A long reconstruction, once it holds its folder."""
    words = ["reconstruct", str(particles), "-o", "out", "--objective", "images"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(COMMAND), *words, "-O", "steps=100000", "-O", "patience=100000"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    deadline = time.monotonic() + 60
    while not (folder / "out").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_run_with_one_line_and_nothing_left(particles, tmp_path, number):
    """As a batch system's time limit does, a terminal that goes, or Ctrl-C."""

    def usual() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = begun(particles, tmp_path, preexec_fn=usual)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not out
    last = err.splitlines()[-1]
    assert re.fullmatch(f"interrupted|ended by {number.name}; .*", last), err
    assert "Traceback" not in err
    left = [path.name for path in tmp_path.rglob("*")]
    assert not left or "is kept in 'out'" in err, "for --resume"
    assert ".instamap.lock" not in left
    assert not [name for name in left if name.startswith(TEMPORARY)]


def test_nohup_stays(particles, tmp_path):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = begun(particles, tmp_path, preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """Also where cleaning up takes its time."""
    code = (
        "import time, instamap.cli as cli\n"
        "def run(registry):\n"
        "    try:\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaning', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.application = lambda registry: lambda: run(registry)\n"
        "cli.main()\n"
    )

    def usual() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, preexec_fn=usual
    ) as process:
        assert process.stdout is not None
        for word in ("begun", "cleaning"):
            assert process.stdout.readline() == f"{word}\n"
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


def test_names_of_files_cannot_command_a_terminal(tmp_path):
    name = "\x1b]0;title\x07.mrc"
    refusal = instamap("fsc", tmp_path / name, tmp_path / name).refusal
    assert "\\x1b]0;title\\x07.mrc" in refusal and "\x1b" not in refusal
