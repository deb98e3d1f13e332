"""Imports point one way, file by file: a room may import rooms above it in ORDER and nothing else
of instamap; no circles, also inside a room; nobody imports a plugin.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

import instamap

ROOT = Path(instamap.__file__).parent
PLUGINS = Path(instamap.__file__).parents[1] / "plugins"

# A room may import those of all lines above its own, and none of its own line but itself.
ORDER = """
version errors
scene progress files memory threads
toml_text mrc_format checksums
tensor_files
plugin geometry
fourier
parts data
maps
representations forward deform likelihoods model statistics simulate
fitting
motion poses
report
workflows
testing cli
__main__
"""
LINES = [line.split() for line in ORDER.strip().splitlines()]
ROOMS = {room for line in LINES for room in line}

LIGHT_AND_FILES = {"version", "errors", "progress", "files", "toml_text", "mrc_format", "plugin"}

# Narrower than ORDER: a part is told everything by its scene and its options.
PART = {"errors", "scene", "threads", "plugin.options", "geometry", "fourier", "parts"}
NARROWER = {
    "plugin": {"errors"},
    "parts": {"errors", "scene", "plugin.options", "geometry"},
    "data": {*LIGHT_AND_FILES, "scene", "geometry", "fourier.ctf", "fourier.aberrations"},
    "representations": PART,
    "forward": PART,
    "deform": PART,
    "likelihoods": PART,
}

# `instamap` itself imports what it offers when it is asked for; nothing inside imports it.
FRONT_DOOR = ""

# What answers `--help` and lists parts, in a fraction of a second.
TORCHLESS = {FRONT_DOOR, "version", "errors", "progress", "files", "toml_text", "plugin"}
HEAVY = {"torch", "numpy", "matplotlib", "pandas", "mrcfile", "starfile", "scipy", "numba"}

# Files that may share their name with others: a package's, and a command's with what it calls.
SHARED_NAMES = {"__init__"}
SHARED_ROOMS = {"cli"}


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its name in instamap: "" for instamap itself, "maps.fsc", ..."""
    named = {}
    for path in root.rglob("*.py"):
        words = path.relative_to(root).with_suffix("").parts
        if words[-1] == "__init__":
            words = words[:-1]
        named[".".join(words)] = path
    return named


def imported(path: Path, module: str, known: set[str]) -> set[str]:
    """What a module imports, by absolute names: "torch.nn", "instamap.maps.fsc", "instamap". Also
    inside functions, and for type checkers alone.
    """
    found = set()
    package = ["instamap", *filter(None, module.split("."))]
    if path.stem != "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            found |= {_target(base, alias.name, known) for alias in node.names}
    return found


def _base(node: ast.ImportFrom, package: list[str]) -> str:
    """The absolute name of what `from ... import` names first."""
    words = package[: len(package) + 1 - node.level] if node.level else []
    if node.module:
        words = [*words, node.module]
    return ".".join(words)


def _target(base: str, name: str, known: set[str]) -> str:
    """The module that `from base import name` reaches: a module of that name, or `base`."""
    inner = f"{base}.{name}"
    is_module = inner.removeprefix("instamap.") in known
    return inner if is_module else base


def edges(root: Path) -> dict[str, set[str]]:
    """What each module of instamap imports, of instamap's modules and of others."""
    named = modules(root)
    known = set(named)
    return {module: imported(path, module, known) for module, path in named.items()}


def inside(targets: set[str]) -> set[str]:
    """Those of absolute names that are in instamap, by their names in it."""
    ours = {target for target in targets if target.split(".")[0] == "instamap"}
    return {target.removeprefix("instamap").removeprefix(".") for target in ours}


def room_of(module: str) -> str:
    return module.split(".")[0]


def faults(root: Path) -> list[str]:
    """What breaks the order, in words."""
    said = []
    for module, targets in sorted(edges(root).items()):
        room = room_of(module)
        if room not in ROOMS and module != FRONT_DOOR:
            said.append(f"{module}: is in no room of the order")
            continue
        plugins = {target for target in targets if target.startswith("instamap_")}
        heavy = {target for target in targets if target.split(".")[0] in HEAVY}
        wrong = {target for target in inside(targets) if not may_import(room, target)}
        said += [f"{module}: imports the plugin {target}" for target in sorted(plugins)]
        if room in TORCHLESS:
            said += [f"{module}: imports {target}, though it is light" for target in sorted(heavy)]
        said += [f"{module}: imports {target or 'the front door'}" for target in sorted(wrong)]
    return said


def may_import(room: str, target: str) -> bool:
    """Whether modules of a room may import the module `target` of instamap."""
    if room == FRONT_DOOR:
        return True
    if room_of(target) == room:
        return True
    allowed = NARROWER.get(room, above(room))
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


def above(room: str) -> set[str]:
    """The rooms of all lines above that of `room`."""
    rooms = set()
    for line in LINES:
        if room in line:
            break
        rooms |= set(line)
    return rooms


def circles(root: Path) -> list[str]:
    """Modules that import one another, over one or several imports: "a -> b -> a"."""
    graph = {module: inside(targets) for module, targets in edges(root).items()}
    done = set()
    found = []

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
            return
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            follow(target, [*path, module])
        done.add(module)

    for module in sorted(graph):
        follow(module, [])
    return found


def namesakes(root: Path) -> list[str]:
    """Names that several files have."""
    named = modules(root)
    counted = Counter(
        path.stem for module, path in named.items() if room_of(module) not in SHARED_ROOMS
    )
    return sorted(name for name, count in counted.items() if count > 1 and name not in SHARED_NAMES)


def test_imports_point_one_way():
    assert not faults(ROOT)


def test_no_two_files_import_one_another():
    assert not circles(ROOT)


def test_no_two_files_have_one_name():
    assert not namesakes(ROOT)


def test_the_order_has_nothing_that_is_gone():
    there = {room_of(name) for name in modules(ROOT)}
    assert there - {FRONT_DOOR} == ROOMS


def test_what_is_narrower_is_within_the_order():
    for room, names in NARROWER.items():
        assert {room_of(name) for name in names} <= above(room), room


def test_the_plugins_import_no_private_part_of_instamap():
    known = set(modules(ROOT))
    for path in PLUGINS.rglob("*.py"):
        reached = inside(imported(path, "", known))
        private = {
            target for target in reached if any(word.startswith("_") for word in target.split("."))
        }
        assert not private, path


# The tests above find what is planted


@pytest.fixture
def plant(tmp_path):
    """plant({path: source}) is a folder with those files and some empty ones."""

    def write(sources: dict[str, str]) -> Path:
        empty = ("fitting/__init__.py", "fitting/loop.py", "forward/ray.py", "fourier/ctf.py")
        others = ("fourier/gridding.py", "plugin/options.py", "plugin/registry.py", "maps/y.py")
        for path, source in ({name: "" for name in (*empty, *others)} | sources).items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return tmp_path

    return write


IN_FUNCTION = "def f():\n    from instamap.fitting.loop import fit"
FOR_TYPES = (
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from instamap.fitting.loop import fit"
)


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("maps/x.py", "from instamap.fitting import loop", "maps.x: imports fitting.loop"),
        ("maps/x.py", "import instamap.fitting.loop", "maps.x: imports fitting.loop"),
        ("maps/x.py", "from instamap import fitting", "maps.x: imports fitting"),
        ("maps/x.py", "from ..fitting import loop", "maps.x: imports fitting.loop"),
        ("maps/__init__.py", "from ..fitting import loop", "maps: imports fitting.loop"),
        ("maps/x.py", IN_FUNCTION, "maps.x: imports fitting.loop"),
        ("maps/x.py", FOR_TYPES, "maps.x: imports fitting.loop"),
        ("maps/x.py", "from instamap import Component", "maps.x: imports the front door"),
        ("forward/x.py", "import instamap.deform", "forward.x: imports deform"),
        ("forward/x.py", "import instamap.maps.y", "forward.x: imports maps.y"),
        ("forward/x.py", "import instamap.plugin.registry", "forward.x: imports plugin.registry"),
        ("data/x.py", "from instamap.fourier import gridding", "data.x: imports fourier.gridding"),
        ("motion/x.py", "import instamap.poses", "motion.x: imports poses"),
        ("poses/x.py", "import instamap.motion", "poses.x: imports motion"),
        ("poses/x.py", "import instamap.workflows", "poses.x: imports workflows"),
        ("model.py", "from instamap.forward import ray", "model: imports forward.ray"),
        ("plugin/x.py", "import torch", "plugin.x: imports torch, though it is light"),
        ("__init__.py", "import numpy.linalg", ": imports numpy.linalg, though it is light"),
        ("cli/x.py", "import instamap_gaussians", "cli.x: imports the plugin instamap_gaussians"),
        ("novel/x.py", "", "novel.x: is in no room of the order"),
        ("novel.py", "", "novel: is in no room of the order"),
    ],
)
def test_a_planted_violation_is_found(plant, path, source, said):
    assert faults(plant({path: source})) == [said]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("maps/x.py", "from instamap.errors import DataError\nfrom . import y"),
        ("maps/x.py", "from instamap.maps.y import z\nimport instamap.maps.y"),
        ("model.py", "from instamap.fourier import ctf\nfrom instamap.fourier.ctf import apply"),
        ("data/x.py", "from instamap.fourier import ctf"),
        ("forward/x.py", "from instamap.plugin.options import option\nimport torch"),
        ("cli/x.py", "from instamap import fitting\nimport torch"),
        ("__init__.py", "def f():\n    from instamap.fitting.loop import fit"),
    ],
)
def test_what_is_allowed_is_let_through(plant, path, source):
    root = plant({path: source})
    assert not faults(root)
    assert not circles(root)


@pytest.mark.parametrize("there", ["from instamap.maps.y import z", "from . import y"])
@pytest.mark.parametrize(
    "back",
    [
        "import instamap.maps.x",
        "def f():\n    from instamap.maps import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from instamap.maps.x import z",
    ],
)
def test_a_planted_circle_is_found(plant, there, back):
    root = plant({"maps/x.py": there, "maps/y.py": back})
    assert circles(root) == ["maps.x -> maps.y -> maps.x"]


def test_a_planted_circle_of_three_is_found(plant):
    ring = {"maps/a.py": "from . import b", "maps/b.py": "from . import c"}
    root = plant({**ring, "maps/c.py": "from . import a"})
    assert circles(root) == ["maps.a -> maps.b -> maps.c -> maps.a"]


def test_a_planted_namesake_is_found(plant):
    assert namesakes(plant({"report/loop.py": "", "cli/ray.py": ""})) == ["loop"]
