"""Runs a program as a process of its own and measures it: clock, processor time, memory."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.memory import Memory

INSTAMAP = Path(sys.executable).with_name("instamap")


@dataclass(frozen=True)
class Run:
    """code: exit status. seconds: by the clock, start-up included. cpu_seconds: of all cores. rss,
    anonymous: bytes at most (see `memory`). output: what it wrote to both streams.
    """

    code: int
    seconds: float
    cpu_seconds: float
    rss: int | None
    anonymous: int | None
    output: str

    def __add__(self, other: "Run") -> "Run":
        """Both, one after the other."""

        def most(a, b):
            return max((x for x in (a, b) if x is not None), default=None)

        return Run(
            self.code or other.code,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            most(self.rss, other.rss),
            most(self.anonymous, other.anonymous),
            self.output + other.output,
        )

    def numbers(self) -> dict:
        """What is kept of it."""
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "rss": self.rss,
            "anonymous": self.anonymous,
        }


def measure(command: list, cwd: Path | None = None) -> Run:
    """Run `command` in the folder `cwd` to its end.

    The usage is that of this child alone (wait4): RUSAGE_CHILDREN is one maximum over all children
    so far, and a child's own ru_maxrss starts at what its parent held; so memory is watched
    instead.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(c) for c in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with Memory(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return Run(
            process.returncode,
            seconds,
            usage.ru_utime + usage.ru_stime,
            memory.rss,
            memory.anonymous,
            output.read(),
        )


def side_by_side(commands: list[list], cwd: Path | None = None) -> Run:
    """Run commands at the same time in the folder `cwd`, to the end of the last: one clock, the
    processor time and memory of all together.
    """
    started = [
        f"{shlex.join([str(word) for word in words])} & p{i}=$!" for i, words in enumerate(commands)
    ]
    awaited = [f"wait $p{i} || failed=$?" for i in range(len(commands))]
    script = "\n".join(["failed=0", *started, *awaited, "exit $failed"])
    return measure(["sh", "-c", script], cwd)


def succeeded(run: Run) -> Run:
    """The run; exits where the program did not end well."""
    if run.code:
        sys.exit(f"a program failed:\n{run.output[-800:]}")
    return run
