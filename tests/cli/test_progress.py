"""Progress: bars that fit into 80 columns on a terminal, one plain line a stage elsewhere."""

import contextlib
import io
import re

import pytest
from instamap.cli.progress import Stages

from instamap.fit.loop import Look


def work() -> str:
    """What a run of large numbers shows: reading, a fit that stops early, and two side by side that
    fail in the middle.
    """
    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        contextlib.suppress(KeyboardInterrupt),
        Stages() as stages,
    ):
        stages.read(70000, 131899)
        stages.read(131899, 131899)
        stages.say("likelihood      [gaussian] " + 30 * "word ")
        for step, held_out in ((5, -0.5), (10, 123.4), (15, 99.5)):
            stages.look("half1", Look(step, -1.0, held_out, held_out > 100, 0.1 * step), 2000)
            stages.look(
                "half2", Look(step, -1.0, 123456.789, True, 0.1 * step), 2000
            )  # at the same time
        stages.look("half1 again", Look(5, -1.0, 7.0, True, 0.5), 2000)
        raise KeyboardInterrupt
    return err.getvalue()


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Nothing of the surroundings decides whether there is a terminal."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_without_a_terminal_each_stage_is_one_line():
    read, said, fitted = work().splitlines()
    assert re.fullmatch(r"read 131899 images in \d+\.\d s", read)
    assert said == "likelihood      [gaussian] " + 30 * "word "
    assert fitted == "half1: 15 steps in 1.5 s, best at step 10"


def test_bars_fit_into_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", work()).replace("\r", "\n").splitlines()
    bars = [line for line in lines if re.match(r"(read|half\d) ", line)]
    assert bars and max(map(len, bars)) <= 80 and not any("…" in line for line in lines)
    last = {line.split()[0]: line for line in bars if "again" not in line}
    assert "131899/131899" in last["read"] and "15/15" in last["half1"], (
        "a fit that stopped early is done"
    )
    assert (
        "held-out +1.235e+05" in last["half2"]
        and "15/2000" in last["half2"]
        and "10.0 steps/s" in last["half2"]
    )
