"""Public names are the field's words: none of those that docs/glossary.md lists as not used is the
name of a module, class, function, field, parameter or constant of instamap.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import instamap

ROOT = Path(instamap.__file__).parent
PAGE = ROOT.parent / "docs" / "glossary.md"
HEADING = "## Words that are not used"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
EARLIER = "cli/earlier.py"  # understands the command line of version 0.1
OTHER_FIELDS = {"look_at"}  # what computer graphics calls the point that a camera faces


@dataclass(frozen=True)
class Name:
    """A public name: what it is the name of, and where that is."""

    kind: str
    text: str
    path: str
    line: int

    @property
    def words(self) -> list[str]:
        return [word.lower() for word in WORD.findall(self.text)]


@dataclass(frozen=True)
class Rule:
    """A word that is not used: as what, and what to write instead."""

    word: str
    role: str
    instead: str

    def forbids(self, name: Name) -> bool:
        """Whether `name` uses the word in the role in which it is not used."""
        if name.text in OTHER_FIELDS:
            return False
        if self.role == "word":
            return self.word in name.words
        if self.role == "class":
            return name.kind == "class" and name.words == [self.word]
        if self.role in ("function", "callback"):
            return name.kind == self.role and name.text == self.word
        if self.role == "name":
            return name.kind != "module" and name.text == self.word
        raise ValueError(f"role '{self.role}' of '{self.word}' in {PAGE.name} is not a role")


def rules(page: str) -> list[Rule]:
    """The rows of the last table of the glossary."""
    table = page.split(HEADING)[1]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or not cells[0].startswith("`"):
            continue
        for word in re.findall(r"`(\w+)`", cells[0]):
            found.append(Rule(word, cells[1], cells[2]))
    return found


def public_names(root: Path) -> Iterator[Name]:
    """Every public name of the modules below `root`."""
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        if place == EARLIER:
            continue
        if not path.stem.startswith("_"):
            yield Name("module", path.stem, place, 1)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for kind, text, line in _names_of(tree.body, "constant"):
            yield Name(kind, text, place, line)


def _names_of(body: list[ast.stmt], assigned: str) -> Iterator[tuple[str, str, int]]:
    """Names that the statements of a module or class bind; `assigned` is the kind of variables."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _names_of(node.body + node.orelse, assigned)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield "class", node.name, node.lineno
            yield from _names_of(node.body, "field")
        elif isinstance(node, ast.FunctionDef):
            yield from _names_of_function(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    yield assigned, target.id, node.lineno


def _names_of_function(node: ast.FunctionDef) -> Iterator[tuple[str, str, int]]:
    special = node.name.startswith("__") and node.name.endswith("__")
    if node.name.startswith("_") and not special:
        return
    if node.name.startswith("test_"):  # a law: its name is a sentence
        return
    if not special:
        yield "function", node.name, node.lineno
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for argument in arguments:
        if not argument.arg.startswith("_"):
            yield _kind_of_parameter(argument), argument.arg, argument.lineno


def _kind_of_parameter(argument: ast.arg) -> str:
    """A parameter that is a function to be called back is a kind of its own."""
    annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
    return "callback" if re.search(r"\b(Callable|Watch|Say|Keep)\b", annotation) else "parameter"


def faults(root: Path, page: str) -> list[str]:
    """Names that use a word in a role in which it is not used, with what to write."""
    known = rules(page)
    lines = []
    for name in public_names(root):
        for rule in known:
            if rule.forbids(name):
                lines.append(
                    f"{name.path}:{name.line}: {name.kind} {name.text}; write {rule.instead}"
                )
    return lines


def test_public_names_are_the_words_of_the_field():
    found = faults(ROOT, PAGE.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


def test_the_index_lists_every_decision():
    folder = PAGE.parent / "decisions"
    index = (folder / "index.md").read_text(encoding="utf-8")
    missing = [path.name for path in folder.glob("0*.md") if f"({path.name})" not in index]
    assert not missing


def test_the_glossary_has_rules_and_each_says_what_to_write():
    found = rules(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 40
    assert all(rule.instead for rule in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("survey.py", ""),
        ("x.py", "class Evidence:\n    pass"),
        ("x.py", "class Fit:\n    last_look: int"),
        ("x.py", "class Fit:\n    LEAST = 3"),
        ("x.py", "def likelier(maps):\n    pass"),
        ("x.py", "class Field:\n    def at(self, z):\n        pass"),
        ("x.py", "class Field:\n    def __init__(self, judge):\n        pass"),
        ("x.py", "def fit(*, some):\n    pass"),
        ("x.py", "def fit(keep: Callable[[str], None]):\n    pass"),
        ("x.py", "CHUNK = 8"),
    ],
)
def test_a_planted_word_is_found(tmp_path, path, source):
    (tmp_path / path).write_text(source)
    assert len(faults(tmp_path, PAGE.read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def lookup(evidence_ratio):\n    pass",
        "def _judge():\n    pass",
        "class _Look:\n    look: int",
        "def fit(keep: int, done: int):\n    pass",
        "def fit(coarse: float):\n    some = 1",
        "class Camera:\n    look_at: int",
        "CHUNK_OF_POINTS = 8",
        "class Laws:\n    def test_what_is_wrong_is_said(self):\n        pass",
        "HIDDEN_UNITS = 8",
    ],
)
def test_other_names_are_let_through(tmp_path, source):
    (tmp_path / "x.py").write_text(source)
    assert not faults(tmp_path, PAGE.read_text(encoding="utf-8"))
