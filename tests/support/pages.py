"""The pages of documentation: their blocks, and a folder in which a reader would run these."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("console", "python")  # languages of blocks that are run
SHOWN = ("sh", "bash")  # languages of blocks that need data of one's own
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")
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


def pages_beside() -> list[str]:
    """Pages whose commands need more than an empty folder."""
    plugins = sorted((ROOT / "plugins").glob("*/README.md"))
    own = [path.relative_to(ROOT).as_posix() for path in plugins]
    return ["CONTRIBUTING.md", "examples/README.md", *own]


def is_run(page: str) -> bool:
    return any(block.language in RUN for block in blocks(page))


def without_blocks(page: str) -> str:
    """The page's sentences and tables."""
    return BLOCK.sub("", text_of(page))


def shown_lines(page: str) -> list[str]:
    """Lines of the blocks that need data of one's own."""
    lines = []
    for block in blocks(page):
        if block.language in SHOWN:
            lines += CONTINUED.sub(" ", block.text).splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines]


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
        elif block.language in SHOWN:
            self._call(["bash", "-e", "-c", block.text])

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
            f"{words[-1]}\nexited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout + done.stderr
