"""Imports point one way: each package may import those named here, and nothing else of instamap;
nobody imports a plugin.
"""

import ast
from pathlib import Path

import pytest

import instamap

ROOT = Path(instamap.__file__).parent
PLUGINS = Path(instamap.__file__).parents[1] / "plugins"

NAMES = {"components", "hookspecs", "options", "builtins", "registry"}
TENSORS = {"geometry", "scene", "protocols"}
PART = {*TENSORS, "options"}
ALLOWED = {
    "": set(),  # instamap/__init__.py
    "errors": set(),
    "components": set(),
    "hookspecs": {"components"},
    "options": {"components"},
    "builtins": {"components", "hookspecs"},
    "registry": NAMES,
    "geometry": set(),
    "scene": {"geometry"},
    "protocols": {"geometry", "scene", "options"},
    "representations": PART,
    "forward": PART,
    "deform": PART,
    "likelihoods": PART,
    "data": {"geometry", "scene"},
    "maps": {"geometry", "scene"},
    "compose": {
        *NAMES,
        *TENSORS,
        "forward.ctf",
    },  # the transfer function is no part to be chosen, but belongs to every one
    "fit": {*NAMES, *TENSORS, "forward.ctf", "data", "maps", "compose"},
    "motion": {*NAMES, *TENSORS, "forward.ctf", "data", "maps", "compose", "fit"},
    "poses": {*NAMES, *TENSORS, "data", "maps", "compose", "fit", "motion.coarse"},
    "testing": {*NAMES, *TENSORS, "forward", "data", "maps", "compose", "fit"},
    "cli": {*NAMES, *TENSORS, "forward.ctf", "data", "maps", "compose", "fit", "motion", "poses"},
}
EVERYONE = {"", "errors"}
TORCHLESS = {"", "errors", *NAMES}
HEAVY = {"torch", "numpy", "matplotlib", "pandas", "mrcfile", "starfile"}


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its name in instamap: "" for instamap itself, "maps.fsc", ..."""
    named = {}
    for path in root.rglob("*.py"):
        words = path.relative_to(root).with_suffix("").parts
        named[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return named


def imported(source: str, module: str, known: set[str], is_package: bool = False) -> set[str]:
    """What a module imports, anywhere in it, under absolute names: "torch.nn", "instamap.maps.fsc",
    "instamap".
    """
    found = set()
    package = ["instamap", *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            keep = len(package) - node.level + is_package
            base = ".".join([*(package[:keep] if node.level else []), *filter(None, [node.module])])
            for alias in (
                node.names
                # `from instamap import options` names a module, `from instamap import __version__` does
                # not
            ):
                inner = f"{base}.{alias.name}"
                found.add(inner if inner.removeprefix("instamap.") in known else base)
    return found


def faults(root: Path) -> list[str]:
    """What breaks the table, in words."""
    named = modules(root)
    said = []
    for module, path in sorted(named.items()):
        own = module.split(".")[0]
        if own not in ALLOWED:
            said.append(f"{module}: is not in the table")
            continue
        for target in sorted(
            imported(path.read_text(encoding="utf-8"), module, set(named), path.stem == "__init__")
        ):
            top, _, inner = target.partition(".")
            if top.startswith("instamap_"):
                said.append(f"{module}: imports the plugin {target}")
            if own in TORCHLESS and top in HEAVY:
                said.append(f"{module}: imports {target}, though it is a name")
            if top == "instamap" and not _may(own, inner):
                said.append(f"{module}: imports {inner}")
    return said


def _may(own: str, target: str) -> bool:
    allowed = {own, *ALLOWED[own]}
    return target in EVERYONE or any(
        target == a or target.startswith(a + ".") for a in allowed - {""}
    )


def test_imports_point_one_way():
    assert not faults(ROOT)


def test_the_table_has_nothing_that_is_gone():
    assert set(ALLOWED) == {name.split(".")[0] for name in modules(ROOT)}


def test_the_table_has_no_circles():
    done = set(EVERYONE)
    while waiting := {name for name in ALLOWED if name not in done}:
        ready = {
            name for name in waiting if {a.split(".")[0] for a in ALLOWED[name]} - {name} <= done
        }
        assert ready, f"{waiting} import one another"
        done |= ready


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("maps/x.py", "from instamap.fit import loop", "maps.x: imports fit.loop"),
        ("maps/x.py", "import instamap.fit.loop", "maps.x: imports fit.loop"),
        ("maps/x.py", "from instamap import fit", "maps.x: imports fit"),
        ("maps/x.py", "from ..fit import loop", "maps.x: imports fit.loop"),
        ("maps/__init__.py", "from ..fit import loop", "maps: imports fit.loop"),
        (
            "maps/x.py",
            "def f():\n    from instamap.fit.loop import fit",
            "maps.x: imports fit.loop",
        ),
        (
            "forward/x.py",
            "from instamap.representations import y",
            "forward.x: imports representations",
        ),
        ("compose.py", "from instamap.forward import ray", "compose: imports forward.ray"),
        ("options.py", "import torch", "options: imports torch, though it is a name"),
        (
            "registry.py",
            "from numpy.linalg import norm",
            "registry: imports numpy.linalg, though it is a name",
        ),
        ("cli/x.py", "import instamap_gaussians", "cli.x: imports the plugin instamap_gaussians"),
        ("novel/x.py", "", "novel.x: is not in the table"),
        ("novel.py", "", "novel: is not in the table"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, source, said):
    for other in ("fit/__init__.py", "fit/loop.py", "forward/ray.py"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    assert faults(tmp_path) == [said]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "maps/x.py",
            (
                "from instamap.errors import DataError\nfrom instamap import __version__\nfrom ."
                " import y"
            ),
        ),
        ("maps/x.py", "from instamap.maps.y import z\nimport instamap.maps.y"),
        ("compose.py", "from instamap.forward import ctf\nfrom instamap.forward.ctf import apply"),
        ("cli/x.py", "from instamap import compose\nimport torch"),
    ],
)
def test_what_is_allowed_is_let_through(tmp_path, path, source):
    for made in ("maps/y.py", "forward/ctf.py", path):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_text("")
    (tmp_path / path).write_text(source)
    assert not faults(tmp_path)


def test_the_plugins_import_no_private_part_of_instamap():
    for path in PLUGINS.rglob("*.py"):
        reached = {
            t
            for t in imported(path.read_text(encoding="utf-8"), "", set(modules(ROOT)))
            if t.split(".")[0] == "instamap"
        }
        assert not {t for t in reached if any(word.startswith("_") for word in t.split("."))}, path
