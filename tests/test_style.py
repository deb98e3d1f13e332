"""The code reads easily: one thought a line, lines that fit, no formatting of one's own, and parts
asked for what they are by their class.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from instamap.plugin.registry import installed

ROOT = Path(__file__).parents[1]
FOLDERS = ("instamap", "tests", "benchmarks", "plugins", "examples", "docs")

# Syntax nodes per line that holds code: what nested calls and one-line tricks drive up.
MAX_DENSITY = 9.0
MAX_COLUMNS = 100

# Rooms that work with any part, so that they may not know one by its name or by what it has.
PARTS_ARE_UNKNOWN_IN = ("fitting", "motion", "poses", "workflows")
PARTS = {"model", "representation", "deformation", "forward", "likelihood"}
NAMES_OF_PARTS = {part.name for part in installed(points=[]).parts()}

# What is neither code nor a place of its own in a line.
BLANK = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders: str) -> Iterator[Path]:
    """The Python files in folders of the project; a folder that is not there has none."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(word.startswith(".") for word in path.relative_to(ROOT).parts):
                yield path


def lines_of_code(source: str, tree: ast.Module) -> int:
    """How many lines hold code: no docstring, no comment, not blank."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in BLANK:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(tree))


def docstring_lines(tree: ast.Module) -> set[int]:
    lines = set()
    for node in ast.walk(tree):
        if not isinstance(node, DOCUMENTED) or ast.get_docstring(node) is None:
            continue
        docstring = node.body[0]
        lines |= set(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def density(texts: list[str]) -> float:
    """Syntax nodes per line of code of all texts together."""
    nodes = 0
    lines = 0
    for source in texts:
        tree = ast.parse(source)
        nodes += sum(1 for _ in ast.walk(tree))
        lines += lines_of_code(source, tree)
    return nodes / lines


def long_lines(source: str) -> list[int]:
    return [number for number, line in enumerate(source.splitlines(), 1) if len(line) > MAX_COLUMNS]


def unformatted(source: str) -> list[int]:
    """Lines that the formatter is told to leave alone, but for tables of numbers."""
    tree = ast.parse(source)
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("# ").replace(" ", "")
        if words.startswith("fmt:") and not _ends_table_of_numbers(tree, token.start[0]):
            lines.append(token.start[0])
    return lines


def _ends_table_of_numbers(tree: ast.Module, line: int) -> bool:
    """Whether a statement that ends at a line assigns mostly numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.end_lineno == line:
            leaves = [leaf for leaf in ast.walk(node.value) if isinstance(leaf, ast.Constant)]
            numbers = [leaf for leaf in leaves if isinstance(leaf.value, int | float)]
            return len(numbers) > len(leaves) / 2
    return False


def asked_of_parts(source: str) -> list[int]:
    """Lines that ask a part what it is by the name that it or one of its attributes has."""
    tree = ast.parse(source)
    return sorted(
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and _asks_for_attribute(node))
        or (isinstance(node, ast.Compare) and _compares_name(node))
    )


def _asks_for_attribute(call: ast.Call) -> bool:
    """hasattr always; getattr of an attribute that is spelt out, or of a part."""
    if not isinstance(call.func, ast.Name):
        return False
    if call.func.id == "hasattr":
        return True
    if call.func.id != "getattr":
        return False
    asked, attribute = call.args[:2]
    return isinstance(attribute, ast.Constant) or _last_word(asked) in PARTS


def _last_word(node: ast.expr) -> str | None:
    """`c` of `a.b.c`."""
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word):
            return word
    return None


def _compares_name(comparison: ast.Compare) -> bool:
    """`x.name` beside names of parts that are spelt out, either way round."""
    sides = [comparison.left, *comparison.comparators]
    named = any(isinstance(side, ast.Attribute) and side.attr == "name" for side in sides)
    constants = [
        node for side in sides for node in ast.walk(side) if isinstance(node, ast.Constant)
    ]
    words = {node.value for node in constants if isinstance(node.value, str)}
    return named and bool(words & NAMES_OF_PARTS)


def everywhere(check, *folders: str) -> list[str]:
    """What a check of one source finds in folders, as "path:line"."""
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(*folders)
        for line in check(path.read_text(encoding="utf-8"))
    ]


def test_code_is_not_dense():
    texts = [path.read_text(encoding="utf-8") for path in sources("instamap")]
    assert density(texts) <= MAX_DENSITY


def test_lines_fit():
    assert not everywhere(long_lines, *FOLDERS)


def test_only_tables_of_numbers_are_formatted_by_hand():
    assert not everywhere(unformatted, *FOLDERS)


def test_parts_are_known_by_their_class():
    rooms = [f"instamap/{room}" for room in PARTS_ARE_UNKNOWN_IN]
    assert not everywhere(asked_of_parts, *rooms)


# The tests above find what is planted


def test_planted_density_is_found():
    dense = "x = f(g(h(a[i], b[j]), k(c)), [y * z for y in d if y])\n"
    documented = f'"""{"word " * 9}\n\n{"more " * 9}\n"""\n# why\n\n'
    assert density([dense]) > MAX_DENSITY
    assert density([documented + dense]) == pytest.approx(density([dense]), rel=0.1)
    assert density(["a = f(b)\nc = g(a)\n"]) <= MAX_DENSITY


def test_a_planted_long_line_is_found():
    fits = "#" * MAX_COLUMNS
    assert long_lines(f"{fits}\n{fits}#\n") == [2]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a = f( b )  # fmt: skip\n", [1]),
        ("a = ['x',\n 'y']  # fmt:skip\n", [2]),
        ("# fmt: off\na = [1,2]\n# fmt: on\n", [1, 3]),
        ("a = [\n  [1, 0],  [-2.5, 3],\n]  # fmt: skip\n", []),
        ("a = ['H', 1.0, 2.0]  # fmt: skip\n", []),
    ],
)
def test_planted_formatting_is_found(source, lines):
    assert unformatted(source) == lines


@pytest.mark.parametrize(
    "source",
    [
        "hasattr(half.model.deformation, table)",
        "getattr(options, 'source', 'table')",
        "getattr(half.model.deformation, name)",
        "settings.engine.name == 'normal'",
        "'rigid' != choice.name",
        "deformation.name in ('rigid', 'bending-field')",
    ],
)
def test_a_planted_question_to_a_part_is_found(source):
    assert asked_of_parts(source) == [1]


@pytest.mark.parametrize(
    "source",
    [
        "getattr(settings, spec.field)",
        "engine.name == 'auto'",
        "a.name == b.name",
        "x == 'rigid'",
        "f.name == 'device'",
    ],
)
def test_other_questions_are_let_through(source):
    assert not asked_of_parts(source)
