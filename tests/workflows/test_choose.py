"""The one rule for `auto`: the same by API, by the command line and as it is described."""

import itertools
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.command import instamap

from instamap.errors import CompositionError, InstamapError
from instamap.model import part_classes, usual_forward
from instamap.parts import DiscreteDeformation, GaussianLikelihood, SharedDensity
from instamap.plugin.registry import default
from instamap.workflows import api
from instamap.workflows.choose import ORDER, RULE, objective_name, resolve, workflow_name
from instamap.workflows.read_settings import Typed, read_settings
from instamap.workflows.settings import Settings

STAR = Path("/data/particles.star")
DEFORMATIONS = [part.name for part in default().parts("deformation")]
LIKELIHOODS = [part.name for part in default().parts("likelihood")]
FORWARD = [None, *(part.name for part in default().parts("forward"))]

# What may be said beside the names of parts: settings, and the words that say the same.
BESIDE: dict[str, tuple[dict[str, Any], dict[str, list[str]], list[str]]] = {
    "nothing": ({}, {}, []),
    "from=image": ({}, {"deformation": ["from=image"]}, []),
    "bodies": ({}, {"deformation": ["bodies=left.mrc,right.mrc"]}, []),
    "regulariser": ({}, {"deformation": ["strain=1"]}, []),
    "stages": ({}, {}, ["steps=5"]),
    "symmetry": ({"symmetry": "C3"}, {}, []),
    "weights": ({"weights": "rlnWeight"}, {}, []),
    "no halves": ({"halves": False}, {}, []),
    "objective images": ({"objective": "images"}, {}, []),
    "objective normal": ({"objective": "normal"}, {}, []),
    "objective conformations": ({"objective": "conformations"}, {}, []),
    "workflow map": ({"workflow": "map"}, {}, []),
    "workflow poses": ({"workflow": "poses"}, {}, []),
    "workflow motion": ({"workflow": "motion"}, {}, []),
}
ALL = list(itertools.product(DEFORMATIONS, LIKELIHOODS, FORWARD, BESIDE))


def by_api(deformation: str, likelihood: str, forward: str | None, beside: str) -> str:
    """What the front door takes: its two names, or the refusal."""
    plain, options, stages = BESIDE[beside]
    values: dict[str, Any] = dict(plain)
    try:
        given = _options("deformation", deformation, options)
        values["deformation"] = (deformation, given)
        if forward is not None:
            values["forward"] = forward
        if stages:
            values["stages"] = [_stage(text) for text in stages]
        return _names(resolve(Settings(STAR, likelihood=likelihood, **values)))
    except InstamapError as error:
        return str(error)


def by_words(deformation: str, likelihood: str, forward: str | None, beside: str) -> str:
    """What is taken of words that were typed."""
    plain, options, stages = BESIDE[beside]
    names = {kind: plain[kind] for kind in ("objective", "workflow") if kind in plain}
    names |= {"deformation": deformation, "likelihood": likelihood, "forward": forward}
    rest = {name: value for name, value in plain.items() if name not in names}
    try:
        return _names(read_settings({}, Typed({"particles": STAR, **rest}, names, options, stages)))
    except InstamapError as error:
        return str(error)


def typed(deformation: str, likelihood: str, forward: str | None, beside: str) -> list[str]:
    """The words themselves."""
    plain, options, stages = BESIDE[beside]
    words = ["--deform", deformation, "--likelihood", likelihood]
    words += ["--forward", forward] if forward else []
    for name, value in plain.items():
        words += ["--no-halves"] if name == "halves" else [f"--{name}", value]
    for item in options.get("deformation", []):
        words += ["-D", item]
    for text in stages:
        words += ["--stage", text]
    return words


def _names(settings: Settings) -> str:
    assert settings.workflow is not None
    assert settings.objective is not None
    return f"{settings.workflow.name} {settings.objective.name}"


def _options(kind: str, name: str, options: dict[str, list[str]]) -> dict[str, Any]:
    """Options as a script gives them."""
    from instamap.plugin.options import parse, to_dict

    items = options.get(kind, [])
    parsed = to_dict(parse(default().get(kind, name).load().Options, items))
    return {item.partition("=")[0]: parsed[item.partition("=")[0]] for item in items}


def _stage(text: str) -> Any:
    from instamap.fitting.stage import Stage
    from instamap.plugin.options import parse

    return parse(Stage, text.split())


# One rule


def test_scripts_and_words_are_of_one_mind():
    """Over all combinations of what is built in; refusals are the same, too."""
    taken = set()
    for case in ALL:
        found = by_api(*case)
        assert found == by_words(*case), case
        taken.add(found)
    assert taken >= {
        "motion conformations",
        "poses normal",
        "map normal",
        "map images",
    }


def test_what_is_described_is_what_is_taken():
    """The three sentences of `instamap describe workflow auto`, in code of their own."""
    for deformation, likelihood, forward, beside in ALL:
        if beside not in ("nothing", "from=image", "bodies", "regulariser", "stages"):
            continue
        found = by_api(deformation, likelihood, forward, beside)
        expected = _described(deformation, likelihood, forward, beside)
        refused = " " in found and found.split()[0] not in ORDER
        assert refused or found == expected, (deformation, likelihood, forward, beside)
        if beside == "nothing" and deformation != "subspace":
            assert not refused, found


def _described(deformation: str, likelihood: str, forward: str | None, beside: str) -> str:
    """As the sentences say."""
    noise_is_gaussian = issubclass(
        default().get("likelihood", likelihood).load(), GaussianLikelihood
    )
    chosen = default().get("deformation", deformation).load()
    plain = beside == "nothing"
    from_table = beside != "from=image"
    if deformation == "bending-field" and from_table and noise_is_gaussian and beside != "stages":
        return "motion conformations"
    if issubclass(chosen, DiscreteDeformation):
        return "motion conformations"
    if deformation == "rigid" and plain and noise_is_gaussian:
        return "poses normal"
    if issubclass(chosen, SharedDensity) and noise_is_gaussian and forward != "ewald":
        return "map normal"
    return "map images"


def test_the_rule_is_told_by_describe():
    for kind in ("workflow", "objective"):
        said = instamap("describe", kind, "auto").out
        for name, where in RULE:
            assert name in said and where in said
    assert tuple(name for name, _ in RULE) == ORDER
    assert set(ORDER) == {part.name for part in default().parts("workflow")}


SOME = [
    *itertools.product(DEFORMATIONS, ["gaussian", "correlation"], [None], ["nothing"]),
    *itertools.product(["rigid", "bending-field", "identity"], ["gaussian"], [None], BESIDE),
]


@pytest.mark.parametrize("case", SOME, ids=lambda case: "-".join(map(str, case)))
def test_the_command_does_what_the_front_door_does(case, monkeypatch, tmp_path):
    """The real command, up to where the run would begin."""
    seen = []

    def run(settings, progress):
        seen.append(_names(settings))
        raise InstamapError("enough")

    monkeypatch.setattr(api, "run", run)
    outcome = instamap("reconstruct", STAR, "-o", tmp_path / "out", *typed(*case))
    expected = by_api(*case)
    if seen:
        assert seen == [expected]
    else:
        assert outcome.refusal == "error: " + " ".join(expected.split())
    assert not (tmp_path / "out").exists()


def test_what_was_resolved_stays():
    """So that run.toml, which has it, repeats the run."""
    for case in ALL:
        if case[3] != "nothing" or case[2] is not None:
            continue
        deformation, likelihood, *_ = case
        try:
            once = resolve(Settings(STAR, deformation=deformation, likelihood=likelihood))
        except CompositionError:
            continue
        assert resolve(once) == once
        assert resolve(Settings.from_record(once.record())) == once


def test_the_names_are_those_of_the_resolved_settings():
    settings = Settings(STAR, deformation="rigid")
    assert workflow_name(settings) == "poses"
    assert objective_name(settings, "poses") == "normal"
    assert objective_name(settings, "map") == "images"


# Options of what is chosen


def test_options_go_to_what_is_chosen():
    found = resolve(Settings(STAR, deformation="rigid"), ["rounds=2"], ["steps=7"])
    assert (found.workflow.options.rounds, found.objective.options.steps) == (2, 7)


def test_options_of_something_else_are_refused():
    with pytest.raises(InstamapError, match="option 'rounds' of .* is unknown; it has none"):
        resolve(Settings(STAR), ["rounds=2"])
    with pytest.raises(InstamapError, match="option 'batch' of NormalEquations is unknown"):
        resolve(Settings(STAR), [], ["batch=2"])


# Refusals


def test_where_no_workflow_fits_each_says_why():
    with pytest.raises(CompositionError) as refused:
        resolve(Settings(STAR, deformation="subspace", likelihood="correlation"))
    said = str(refused.value)
    assert said.startswith("no workflow fits deformation 'subspace' with these settings. ")
    for name in ORDER:
        assert f"workflow '{name}': " in said
    assert "choose" in said and "\n" not in said


def test_a_workflow_that_is_named_and_does_not_fit_is_refused():
    said = "workflow 'motion' does not fit these settings: it needs conformations, .*; choose"
    with pytest.raises(CompositionError, match=said):
        resolve(Settings(STAR, workflow="motion"))


def test_a_named_objective_is_not_exchanged():
    """Nothing falls back on something else."""
    with pytest.raises(CompositionError, match="objective 'normal': likelihood .* not Gaussian"):
        resolve(Settings(STAR, objective="normal", likelihood="correlation"))


def test_nothing_is_read_for_the_choice():
    """Settings of files that do not exist are resolved."""
    files = {"mask": Path("/nowhere.mrc"), "datadir": Path("/nowhere")}
    found = resolve(Settings(Path("/nowhere.star"), **files))
    assert _names(found) == "map normal"


# Plugins


@pytest.fixture
def plugins(monkeypatch) -> Iterator[None]:
    """An objective and a workflow from packages of their own, for as long as the test runs."""
    registry = default()
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    for name in ("ridge", "inversion"):
        folder = Path(__file__).parents[1] / "plugins" / f"instamap-{name}"
        monkeypatch.syspath_prepend(folder)
        module = import_module(f"instamap_{name}")
        registry.register(*module.instamap_components())
    yield
    for name in [
        name for name in sys.modules if name.startswith(("instamap_ridge", "instamap_inv"))
    ]:
        del sys.modules[name]


def test_an_objective_of_a_plugin_is_taken_by_name(plugins):
    found = resolve(Settings(STAR, objective=("ridge", {"weight": 0.1})))
    assert _names(found) == "map ridge"
    words = Typed({"particles": STAR}, {"objective": "ridge"}, {"objective": ["weight=0.1"]})
    assert read_settings({}, words) == found
    assert Settings.from_record(found.record()) == found


def test_an_objective_of_a_plugin_is_asked_what_it_can_describe(plugins):
    with pytest.raises(CompositionError, match="objective 'ridge': likelihood Correlation is not"):
        resolve(Settings(STAR, objective="ridge", likelihood="correlation"))


def test_a_workflow_of_a_plugin_is_taken_by_name(plugins):
    found = resolve(Settings(STAR, workflow=("inversion", {"steps": 2})))
    assert (found.workflow.name, found.objective) == ("inversion", None)
    words = Typed({"particles": STAR}, {"workflow": "inversion"}, {"workflow": ["steps=2"]})
    assert read_settings({}, words) == found
    with pytest.raises(CompositionError, match="workflow 'inversion' does not fit .* Gaussian"):
        resolve(Settings(STAR, workflow="inversion", likelihood="bioem"))


def test_a_workflow_of_a_plugin_is_never_taken_by_itself(plugins):
    assert "inversion" in {part.name for part in default().parts("workflow")}
    for deformation in DEFORMATIONS:
        assert workflow_name(Settings(STAR, deformation=deformation)) in ORDER


def test_the_usual_parts_are_compatible():
    """Whatever is taken where nothing is said can be composed."""
    for deformation in DEFORMATIONS:
        settings = Settings(STAR, deformation=deformation)
        assert settings.forward.name == usual_forward(deformation)
        assert set(part_classes(settings.parts)) == set(settings.parts)
