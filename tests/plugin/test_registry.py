"""Parts by name: built-in ones cannot be shadowed, a sick plugin harms nobody else, and listing
them imports no torch.
"""

import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest

import instamap
from instamap.errors import PartError
from instamap.plugin import builtin
from instamap.plugin import registry as registry_module
from instamap.plugin.component import KINDS, Component
from instamap.plugin.hooks import hookimpl
from instamap.plugin.options import Options
from instamap.plugin.registry import Broken, Registry, default, installed

WAVELETS = Component("representation", "wavelets", "some.module:Wavelets", "a sum of wavelets")


def module(**hooks) -> ModuleType:
    """A module with some functions in it."""
    made = ModuleType("some_plugin")
    vars(made).update(hooks)
    return made


def plugin(*parts, **hooks) -> ModuleType:
    """A plugin module that announces `parts`."""

    @hookimpl
    def instamap_components():
        return list(parts)

    return module(instamap_components=instamap_components, **hooks)


class Point:
    """An entry point of a distribution that is called `provider`."""

    def __init__(self, provider, module, name="plugin"):
        self.dist = SimpleNamespace(name=provider)
        self.module = module
        self.name = name

    def load(self):
        if isinstance(self.module, BaseException):
            raise self.module
        return self.module


def names(registry: Registry) -> list[tuple[str, str]]:
    return [(p.kind, p.name) for p in registry.parts()]


BUILTIN = names(Registry({}, []))


def test_built_in_parts_come_through_the_hook():
    registry = Registry({}, [])
    assert {p.provider for p in registry.parts()} == {"instamap"} and not registry.broken
    assert len(BUILTIN) == len(builtin.instamap_components()) and {
        kind for kind, _ in BUILTIN
    } == set(KINDS)


def test_a_plugin_adds_parts_and_is_named_as_their_provider():
    registry = installed([Point("instamap-wavelets", plugin(WAVELETS))], disabled="")
    assert registry.get("representation", "wavelets").provider == "instamap-wavelets"
    assert len(registry.parts()) == len(BUILTIN) + 1 and registry.providers() == [
        "instamap",
        "instamap-wavelets",
    ]
    assert [p.name for p in registry.parts("representation")] == sorted(
        p.name for p in registry.parts("representation")
    )


def test_a_distribution_may_announce_two_modules():
    blobs = Component("representation", "blobs", "some.module:Blobs", "a sum of blobs")
    points = [Point("two", plugin(WAVELETS), "a"), Point("two", plugin(blobs), "b")]
    assert {("representation", "wavelets"), ("representation", "blobs")} <= set(
        names(installed(points, disabled=""))
    )
    assert names(installed(points, disabled="two")) == BUILTIN


def _unknown_hook():
    @hookimpl
    def instamap_componets():
        return [WAVELETS]

    return module(instamap_componets=instamap_componets)


def _wrong_argument():
    @hookimpl
    def instamap_components(colour):
        return [WAVELETS]

    return module(instamap_components=instamap_components)


def _raising(error):
    @hookimpl
    def instamap_components():
        raise error

    return module(instamap_components=instamap_components)


@hookimpl
def _bad_kind():
    return [WAVELETS, Component("sandwich", "ham", "a:B", "")]


HEALTHY = plugin(Component("forward", "fog", "a:B", ""))
SICK = {
    "cannot be imported": (
        ImportError("no module\nnamed 'cuda'"),
        "ImportError: no module named 'cuda'",
    ),
    "leaves": (SystemExit("needs a GPU"), "SystemExit: needs a GPU"),
    "misspells a hook": (_unknown_hook(), "instamap_componets"),
    "asks for an argument there is not": (_wrong_argument(), "colour"),
    "fails in its hook": (_raising(RuntimeError("out of luck")), "RuntimeError: out of luck"),
    "leaves in its hook": (_raising(SystemExit("bye")), "SystemExit: bye"),
    "returns something else": (
        plugin(WAVELETS, "wavelets"),
        "'wavelets', which is not a Component",
    ),
    "invents a kind": (module(instamap_components=_bad_kind), "kind 'sandwich'"),
    "is the same module again": (HEALTHY, "already registered"),
}


@pytest.mark.parametrize("how", SICK)
def test_a_sick_plugin_is_listed_and_harms_nobody(how):
    sick, reason = SICK[how]
    registry = installed([Point("healthy", HEALTHY), Point("sick", sick)], disabled="")
    assert sorted(names(registry)) == sorted([*BUILTIN, ("forward", "fog")]), (
        "its other parts are gone too"
    )
    [broken] = registry.broken
    assert broken.provider == "sick" and reason in broken.reason and "\n" not in broken.reason
    assert registry.providers() == ["instamap", "healthy"]
    with pytest.raises(
        PartError,
        match="representation 'wavelets' is unknown.*plugin sick, which may provide it, is broken",
    ):
        registry.get("representation", "wavelets")
    registry.hook.instamap_run_started(settings={})


def test_two_plugins_with_one_name_are_both_named():
    points = [Point("first", plugin(WAVELETS)), Point("second", plugin(WAVELETS))]
    with pytest.raises(
        PartError,
        match=(
            "representation 'wavelets' is defined twice, by first and by"
            " second.*DISABLE_PLUGINS=second"
        ),
    ):
        installed(points, disabled="")
    assert (
        installed(points, disabled="second").get("representation", "wavelets").provider == "first"
    )


def test_the_same_name_for_another_kind_is_another_part():
    other = Component("forward", "wavelets", "some.module:Other", "")
    assert (
        len(installed([Point("one", plugin(WAVELETS, other))], disabled="").parts())
        == len(BUILTIN) + 2
    )


@pytest.mark.parametrize(("kind", "name"), BUILTIN)
def test_built_in_parts_cannot_be_shadowed(kind, name):
    with pytest.raises(
        PartError, match=f"{kind} '{name}' is defined twice, by instamap and by rogue"
    ):
        Registry({"rogue": plugin(Component(kind, name, "rogue:Class", ""))}, [])


def test_nor_by_a_distribution_that_takes_the_name_of_instamap():
    registry = Registry({"instamap": plugin(WAVELETS)}, [])
    assert names(registry) == BUILTIN and registry.broken[0].provider == "instamap"


@pytest.mark.parametrize(
    "off", ["instamap-wavelets", " other , instamap_wavelets", "Instamap.Wavelets,"]
)
def test_plugins_can_be_turned_off(off, monkeypatch):
    points = [Point("instamap-wavelets", plugin(WAVELETS)), Point("sick", ImportError("no"))]
    assert names(installed(points, disabled=off)) == BUILTIN
    monkeypatch.setenv("INSTAMAP_DISABLE_PLUGINS", off + ",sick")
    registry = installed(points)
    assert names(registry) == BUILTIN and not registry.broken


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("representation", "hash-gird", r"choose .*hash-grid.*\(did you mean hash-grid\?\)"),
        ("representation", "Hash_Grid", r"\(did you mean hash-grid\?\)"),
        ("representation", "zzz", "choose .*voxel[^?]*$"),
        ("deform", "rigid", r"kind 'deform' is unknown; choose .*\(did you mean deformation\?\)"),
    ],
)
def test_what_is_misspelt_is_guessed(kind, name, said):
    with pytest.raises(PartError, match=said):
        Registry({}, []).get(kind, name)


def test_parts_of_an_unknown_kind_are_an_error_too():
    with pytest.raises(PartError, match="kind 'forwards' is unknown.*did you mean forward"):
        Registry({}, []).parts("forwards")


def test_a_plugin_can_be_dropped_later():
    registry = Registry({"late": plugin(WAVELETS)}, [])
    registry.drop("late", ValueError("its command is broken"))
    assert names(registry) == BUILTIN and registry.broken == [
        Broken("late", "ValueError: its command is broken")
    ]


def test_hooks_are_called_one_plugin_at_a_time():
    heard = []

    @hookimpl
    def instamap_run_started(settings):
        heard.append(settings)

    registry = Registry(
        {"one": plugin(instamap_run_started=instamap_run_started), "two": plugin(WAVELETS)}, []
    )
    registry.call("two", "instamap_run_started", settings=2)
    registry.call("one", "instamap_run_started", settings=1)
    registry.hook.instamap_run_started(settings=0)
    assert heard == [1, 0]


@pytest.mark.parametrize(
    "target", ["no_such_package:Class", "json:NoSuchClass", "json:dumps", "json:JSONEncoder"]
)
def test_a_part_whose_class_is_missing_names_its_provider(target):
    registry = Registry({"careless": plugin(Component("forward", "fog", target, ""))}, [])
    with pytest.raises(
        PartError, match=f"forward 'fog' of careless .*{target}.*mend or uninstall careless"
    ):
        registry.get("forward", "fog").load()


@pytest.mark.parametrize(
    "kind_name_target",
    [
        ("sandwich", "ham", "a:B"),
        ("forward", "Fog", "a:B"),
        ("forward", "fog_bank", "a:B"),
        ("forward", "-fog", "a:B"),
        ("forward", "", "a:B"),
        ("forward", "fog\n", "a:B"),
        ("forward", "fog", "a.B"),
        ("forward", "fog", ":B"),
    ],
)
def test_components_are_checked_when_made(kind_name_target):
    with pytest.raises(PartError):
        Component(*kind_name_target, "summary")


def test_every_built_in_part_can_be_loaded():
    for part in Registry({}, []).parts():
        assert part.load().Options(), f"{part.name} has options with usable defaults"


class Ripples:
    """What a notebook defines."""

    Options = Options


RIPPLES = Component("representation", "ripples", f"{__name__}:Ripples", "a sum of ripples")


def test_a_process_can_register_parts_of_its_own():
    registry = Registry({"other": plugin(WAVELETS)}, [])
    registry.register(RIPPLES)
    found = registry.get("representation", "ripples")
    assert found.provider == "this process"
    assert found.load() is sys.modules[__name__].Ripples


def test_a_cell_can_run_again():
    registry = Registry({}, [])
    registry.register(RIPPLES)
    registry.register(replace(RIPPLES, summary="better ripples"))
    assert registry.get("representation", "ripples").summary == "better ripples"


@pytest.mark.parametrize(("taken", "by"), [("voxel", "instamap"), ("wavelets", "other")])
def test_a_process_cannot_take_the_name_of_others(taken, by):
    registry = Registry({"other": plugin(WAVELETS)}, [])
    before = names(registry)
    with pytest.raises(PartError, match=f"'{taken}' is there already, from {by}; give yours"):
        registry.register(RIPPLES, replace(RIPPLES, name=taken))
    assert names(registry) == before


def test_a_registered_part_whose_class_is_missing():
    registry = Registry({}, [])
    registry.register(replace(RIPPLES, target=f"{__name__}:Absent"))
    with pytest.raises(PartError, match="'ripples' of this process .*Absent.*; mend it"):
        registry.get("representation", "ripples").load()


def test_register_is_public():
    with mock.patch.object(registry_module, "default", lambda: made):
        made = Registry({}, [])
        instamap.register(RIPPLES)
    assert made.get("representation", "ripples").provider == "this process"


def test_the_registry_of_the_process_is_made_once():
    assert default() is default()


def test_names_need_no_torch():
    code = """
import sys
from instamap.plugin import options, registry
assert registry.installed(points=[]).parts()
heavy = {"torch", "numpy", "matplotlib", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
