"""Progress: bars that fit into 80 columns on a terminal, one plain line a thing elsewhere."""

import contextlib
import io
import re

import pytest

from instamap.cli import progress_bars
from instamap.cli.progress_bars import ProgressBars
from instamap.progress import Evaluation


def work() -> str:
    """What a run of large numbers shows: reading, a fit that stops early, and two side by side that
    fail in the middle.
    """
    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        contextlib.suppress(KeyboardInterrupt),
        ProgressBars() as bars,
    ):
        bars.images_read(70000, 131899)
        bars.images_read(131899, 131899)
        bars.message("likelihood      [gaussian] " + 30 * "word ")
        for number in (1, 2, 3):
            bars.counted("maps", number, 3)
        for step, held_out in ((5, -0.5), (10, 123.4), (15, 99.5)):
            seconds = 0.1 * step
            first = Evaluation(step, -1.0, held_out, held_out > 100, seconds)
            second = Evaluation(step, -1.0, 123456.789, True, seconds)
            bars.evaluated("half1", first, 2000)
            bars.evaluated("half2", second, 2000)  # at the same time
        bars.evaluated("half1 again", Evaluation(5, -1.0, 7.0, True, 0.5), 2000)
        raise KeyboardInterrupt
    return err.getvalue()


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Nothing of the surroundings decides whether there is a terminal."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_without_a_terminal_each_thing_is_one_line():
    read, message, maps, fitted = work().splitlines()
    assert re.fullmatch(r"read 131899 images in \d+\.\d s", read)
    assert message == ("likelihood      [gaussian] " + 30 * "word ")
    assert re.fullmatch(r"3 maps in \d+\.\d s", maps)
    assert fitted == "half1: 15 steps in 1.5 s, best at step 10"


def test_reading_is_timed_from_its_first_word_on(capsys, monkeypatch):
    """Not from the start of the program, and each pass by itself."""
    now = [100.0]
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now[0])
    with ProgressBars() as bars:
        for seconds in (7.0, 2.5):
            now[0] += 50
            bars.images_read(0, 30)
            now[0] += seconds
            bars.images_read(30, 30)
    said = capsys.readouterr().err.splitlines()
    assert said == ["read 30 images in 7.0 s", "read 30 images in 2.5 s"]


def test_fits_of_one_name_are_told_one_by_one(capsys):
    """Stages of a motion are called alike; each has its own steps and its own best."""
    with ProgressBars() as bars:
        for steps in ((10, 20, 30), (10, 20)):
            for step in steps:
                bars.evaluated("half1 bend", Evaluation(step, -1.0, 50 - step, True, 0.1), 150)
    assert capsys.readouterr().err.splitlines() == [
        "half1 bend: 30 steps in 0.1 s, best at step 10",
        "half1 bend: 20 steps in 0.1 s, best at step 10",
    ]


def test_bars_fit_into_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", work()).replace("\r", "\n").splitlines()
    bars = [line for line in lines if re.match(r"(read|maps|half\d) ", line)]
    assert bars and max(map(len, bars)) <= 80 and not any("…" in line for line in lines)
    last = {line.split()[0]: line for line in bars if "again" not in line}
    assert "131899/131899" in last["read"] and "3/3" in last["maps"]
    assert "15/15" in last["half1"], "a fit that stopped early is done"
    assert "held-out +1.235e+05" in last["half2"]
    assert "15/2000" in last["half2"] and "10.0 steps/s" in last["half2"]


def test_control_characters_are_told_as_escapes():
    """Names of files may hold commands to a terminal."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), ProgressBars() as bars:
        bars.message("read \x1b]0;title\x07.mrcs")
    assert err.getvalue() == "read \\x1b]0;title\\x07.mrcs\n"
