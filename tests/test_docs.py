"""Every console and python block of the README and of the pages does what it says, in order, in an
empty folder; commands that need data of one's own have the options that they are shown with.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from instamap.cli import OPEN_COMMANDS, application
from instamap.plugin.registry import installed

ROOT = Path(__file__).parents[1]
RUN = ("console", "python")  # languages of blocks that are run
SHOWN = ("sh", "bash")  # languages of blocks that need data of one's own
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")
INLINE = re.compile(r"`(instamap [a-z][^`]*)`")
CONTINUED = re.compile(r"\\\n\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """Where it is to be saved, if its first line is `# file: name`."""
        found = FILE.match(self.text)
        return found and found[1]

    def commands(self) -> list[tuple[str, list[str]]]:
        """Lines after "$ " without their comments, each with the beginnings of the lines that it
        prints.
        """
        found = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:].split("  #")[0].split(" # ")[0].strip(), []))
            elif line.strip():
                assert found, f"'{line}' is printed by no command; begin commands with '$ '"
                found[-1][1].append(line.strip())
        return found


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(text_of(page))]


def every_page() -> list[str]:
    """The README and all pages of docs/, also those that were written since."""
    below = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(path.relative_to(ROOT).as_posix() for path in below)]


def is_run(page: str) -> bool:
    return any(block.language in RUN for block in blocks(page))


def shown_commands(page: str) -> list[str]:
    """Lines of blocks that are not run, and commands within sentences and tables."""
    text = text_of(page)
    lines = INLINE.findall(BLOCK.sub("", text))
    for block in blocks(page):
        if block.language in SHOWN:
            lines += CONTINUED.sub(" ", block.text).splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines]


def check_options(line: str) -> None:
    """Fails where instamap has no such command, or the command no such option."""
    group = application(installed(points=[]))
    name, *words = shlex.split(line, comments=True)[1:]
    assert name in group.commands, f"'{line}': instamap has no command {name}"
    command = group.commands[name]
    if name in {function.__name__.replace("_", "-") for function in OPEN_COMMANDS}:
        return
    context = command.make_context(name, [], resilient_parsing=True)
    context.resilient_parsing = False
    command.make_parser(context).parse_args(list(words))


def check_module(line: str) -> None:
    """Fails where the module that Python is to run does not exist."""
    words = shlex.split(line, comments=True)
    module = words[words.index("-m") + 1]
    assert importlib.util.find_spec(module), f"'{line}': there is no module {module}"


class Folder:
    """A folder in which blocks are run one after the other, as a reader would."""

    def __init__(self, path: Path):
        self.path = path
        self.site = path / ".site"
        tools = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "120",
            "PYTHONPATH": f"{self.site}{os.pathsep}{path}",
        }

    def run(self, block: Block) -> None:
        if block.file:
            target = self.path / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(FILE.sub("", block.text, count=1), encoding="utf-8")
        elif block.language == "python":
            self._call([sys.executable, "-W", "error", "-c", block.text])
        elif block.language == "console":
            for command, expected in block.commands():
                self._command(command, expected)

    def _command(self, command: str, expected: list[str]) -> None:
        words = shlex.split(command)
        if words[0] == "cd":
            self.path = self.path / words[1]
        elif words[0] == "make":
            self._has_target(words[1])
        elif "install" in words[:4] and any("pip" in word for word in words[:3]):
            self._install(words[words.index("install") + 1 :])
        else:
            printed = self._call(["bash", "-c", command]).splitlines()
            for start in expected:
                assert any(
                    " ".join(line.split()).startswith(" ".join(start.split())) for line in printed
                ), (command, start, printed)

    def _has_target(self, target: str) -> None:
        """What make does is left to continuous integration: it sets up an environment and runs
        these tests.
        """
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
            f"the Makefile has no target {target}"
        )

    def _install(self, words: list[str]) -> None:
        """Of a folder below this one, without a network, to where only these commands look; of
        instamap itself nothing.
        """
        [name] = [re.sub(r"\[.*\]$", "", word) for word in words if not word.startswith("-")]
        if (self.path / name / "pyproject.toml").is_file():
            self._call(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-index",
                    "--no-deps",
                    "--no-build-isolation",
                    "--disable-pip-version-check",
                    "--upgrade",
                    "--target",
                    str(self.site),
                    name,
                ]
            )

    def _call(self, words: list[str]) -> str:
        done = subprocess.run(
            words,
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=900,
        )
        assert done.returncode == 0, (
            f"{words[-1]} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in every_page() if is_run(page)])
def test_every_block_does_what_it_says(page, tmp_path):
    folder = Folder(tmp_path)
    for block in blocks(page):
        folder.run(block)


def test_a_block_that_does_not_is_found(tmp_path):
    """Or else the test above is blind."""
    folder = Folder(tmp_path)
    folder.run(Block("python", "# file: below/there.py\nvalue = 1\n"))
    assert (tmp_path / "below" / "there.py").read_text() == "value = 1\n"
    folder.run(Block("console", "$ echo one   two  # a comment\none two\n$ echo three\n"))
    for wrong in ("$ false\n", "$ echo one\ntwo\n", "$ make gold\n", "one\n"):
        with pytest.raises(AssertionError):
            folder.run(Block("console", wrong))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        folder.run(Block("python", "1 / 0\n"))


@pytest.mark.parametrize("page", every_page())
def test_commands_that_are_shown_exist(page):
    for line in shown_commands(page):
        if line.startswith("instamap "):
            check_options(line)
        elif line.startswith("python -m benchmarks."):
            check_module(line)


def test_a_command_that_does_not_exist_is_found():
    check_options('instamap accumulate x.star -o stats/$ID --shard $ID/16  # "a shard')
    for wrong in ("instamap reconstructed x.star", "instamap fsc a.mrc b.mrc --masked m.mrc"):
        with pytest.raises(Exception, match="no command|No such option"):
            check_options(wrong)
    with pytest.raises(AssertionError, match="no module"):
        check_module("python -m benchmarks.accuracy.nothing --out x.json")


def test_the_readme_is_one_screen():
    """It has blocks of commands and not much else: 80 lines are what a screen shows, in the end."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
    console = [block for block in blocks("README.md") if block.language == "console"]
    assert sum(len(block.commands()) for block in console) >= 8
