"""Every console and python block of the README and of the pages does what it says, in order, in an
empty folder; commands that need data of one's own can be carried out as far as their words go.
"""

import re
import shlex

import click
import pytest
from support.pages import (
    ROOT,
    RUN,
    Block,
    Folder,
    blocks,
    every_page,
    is_run,
    pages_beside,
    shown_lines,
    without_blocks,
)

from instamap.cli import OPEN_COMMANDS, application, run
from instamap.plugin.registry import installed
from instamap.workflows import relion_job

INLINE = re.compile(r"`(instamap [a-z][^`]*)`")
COMMAND = re.compile(r"\binstamap [a-z].*")
FLAG = re.compile(r"--[a-z][a-z-]*")
OPEN = {function.__name__.replace("_", "-") for function in OPEN_COMMANDS}


def commands_within(line: str) -> list[str]:
    """The commands of instamap that a line of a shell carries out: by itself, by `python -m` or
    torchrun, or as words that it hands on.
    """
    words = shlex.split(line, comments=True)
    if words[:1] == ["instamap"]:
        return [shlex.join(words)]
    if "-m" in words and words[words.index("-m") + 1] == "instamap":
        return [shlex.join(words[words.index("-m") + 1 :])]
    return [found[0] for word in words if (found := COMMAND.search(word)) and " " in word]


def check_options(line: str) -> None:
    """Fails where instamap has no such command, or the command no such option."""
    command, words = command_of(line)
    if command.name in OPEN:
        return
    context = command.make_context(command.name, [], resilient_parsing=True)
    context.resilient_parsing = False
    command.make_parser(context).parse_args(list(words))


def check_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a command would be refused before it reads a file: for its options, their values,
    what is missing, or for parts that do not exist or go together.
    """
    command, words = command_of(line)
    if command.name == "relion-external":
        relion_job.read(words)
        return
    context = command.make_context(command.name, list(words))
    if command.name == "reconstruct":
        reached = []
        monkeypatch.setattr(run, "run_settings", lambda *settings: reached.append(settings))
        command.invoke(context)
        assert reached


def command_of(line: str) -> tuple[click.Command, list[str]]:
    group = application(installed(points=[]))
    name, *words = shlex.split(line, comments=True)[1:]
    assert name in group.commands, f"'{line}': instamap has no command {name}"
    return group.commands[name], words


def check_module(line: str) -> None:
    """Fails where a module that Python is to run does not exist, or lacks an option."""
    words = shlex.split(line, comments=True)
    file = ROOT / (words[words.index("-m") + 1].replace(".", "/") + ".py")
    assert file.is_file(), f"'{line}': there is no module {file}"
    source = file.read_text(encoding="utf-8")
    for shared in (ROOT / "benchmarks" / "lib").glob("*.py"):
        if re.search(rf"\b{shared.stem}\b", source):
            source += shared.read_text(encoding="utf-8")
    for flag in filter(FLAG.fullmatch, words):
        assert f'"{flag}"' in source, f"'{line}': {file.name} has no option {flag}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in every_page() if is_run(page)])
def test_every_block_does_what_it_says(page, tmp_path):
    folder = Folder(tmp_path)
    for block in blocks(page):
        if block.language in RUN or block.file:
            folder.run(block)


def test_a_block_that_does_not_is_found(tmp_path):
    """Or else the test above is blind."""
    folder = Folder(tmp_path)
    folder.run(Block("python", "# file: below/there.py\nvalue = 1\n"))
    assert (tmp_path / "below" / "there.py").read_text() == "value = 1\n"
    folder.run(Block("console", "$ echo one   two  # a comment\none two\n$ echo three\n"))
    folder.run(Block("sh", "word=one  # kept\ntest $word = \\\n    one\n"))
    for wrong in ("$ false\n", "$ echo one\ntwo\n", "$ make gold\n", "one\n"):
        with pytest.raises(AssertionError):
            folder.run(Block("console", wrong))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        folder.run(Block("python", "1 / 0\n"))
    with pytest.raises(AssertionError, match="exited with"):
        folder.run(Block("sh", "false\ntrue\n"))


@pytest.mark.parametrize("page", [*every_page(), *pages_beside()])
def test_commands_that_are_shown_exist(page, monkeypatch):
    for line in INLINE.findall(without_blocks(page)):
        check_options(" ".join(line.split()))
    for line in shown_lines(page):
        if line.startswith("python -m benchmarks."):
            check_module(line)
        # parts of plugins need not be installed, and words in the environment are completed later
        partial = page.startswith("plugins/") or line.startswith("export ")
        for command in commands_within(line):
            if partial:
                check_options(command)
            else:
                check_command(command, monkeypatch)


@pytest.mark.parametrize("page", pages_beside())
def test_pages_beside_the_documentation_have_no_blocks_that_nobody_runs(page):
    """What a plugin's page shows is in blocks that are checked; indented ones would not be."""
    assert not re.search(r"^ {4}instamap ", without_blocks(page), re.MULTILINE)


def test_commands_within_a_line_are_found():
    assert commands_within('sbatch --wrap "instamap merge stats/* -o all"  # later') == [
        "instamap merge stats/* -o all"
    ]
    assert commands_within("torchrun --nproc-per-node=4 -m instamap fit stats -o out") == [
        "instamap fit stats -o out"
    ]
    assert commands_within("instamap doctor x.star  # instamap doctor --no") == [
        "instamap doctor x.star"
    ]
    assert not commands_within("pip install instamap")


def test_an_option_that_does_not_exist_is_found():
    check_options('instamap accumulate x.star -o stats/$ID --shard $ID/16  # "a shard')
    for wrong in ("instamap reconstructed x.star", "instamap fsc a.mrc b.mrc --masked m.mrc"):
        with pytest.raises(Exception, match="no command|No such option"):
            check_options(wrong)


def test_a_command_that_would_be_refused_is_found(monkeypatch):
    check_command("instamap reconstruct x.star -R levels=4", monkeypatch)
    check_command("instamap relion-external --o a/ --in_parts x.star --held_out 0.1", monkeypatch)
    wrong = {
        "instamap fsc a.mrc": "Missing parameter",
        "instamap reconstruct x.star --seed one": "valid integer",
        "instamap reconstruct x.star -R level=4": "did you mean levels",
        "instamap reconstruct x.star --deform bend": "is unknown",
        "instamap reconstruct x.star --held-out 2": "held.out",
        "instamap reconstruct x.star --deform rigid --workflow motion": "conformations",
        "instamap relion-external --o a/ --in_parts x.star --held_in 1": "held_in",
    }
    for line, words in wrong.items():
        with pytest.raises(Exception, match=words):
            check_command(line, monkeypatch)


def test_a_benchmark_that_does_not_exist_is_found():
    check_module("python -m benchmarks.accuracy.halves --data a --make b --out c")
    with pytest.raises(AssertionError, match="no module"):
        check_module("python -m benchmarks.accuracy.nothing --out x.json")
    with pytest.raises(AssertionError, match="no option --dataset"):
        check_module("python -m benchmarks.accuracy.halves --dataset a")


def test_the_readme_is_one_screen():
    """It has blocks of commands and not much else: 80 lines are what a screen shows, in the end."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
    console = [block for block in blocks("README.md") if block.language == "console"]
    assert sum(len(block.commands()) for block in console) >= 8
