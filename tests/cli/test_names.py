"""The real `instamap` command: names answer without torch, a mistake is one line with exit code 2,
plugins are found and contained.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instamap import __version__
from instamap.cli import main
from instamap.cli.describe import describe
from instamap.geometry import grids
from instamap.maps import mask, mrc
from instamap.plugin.options import describe as specs_of
from instamap.plugin.registry import Registry

COMMAND = Path(sys.executable).with_name("instamap")
WATCHED = (sys.executable, "-X", "importtime")
COMMANDS = (
    "reconstruct",
    "doctor",
    "preprocess",
    "accumulate",
    "merge",
    "fit",
    "states",
    "infer",
    "select",
    "audit",
    "populations",
    "morph",
    "simulate",
    "demo",
    "fsc",
    "postprocess",
    "mask",
    "relion-external",
    "relion-reconstruct",
    "view",
    "cite",
    "parts",
    "describe",
)
HEAVY = ("torch", "numpy", "matplotlib", "pandas", "mrcfile", "rich")

GOOD = '''
import os, signal, time
from dataclasses import dataclass
from instamap import Component, Options, hookimpl, option

class Fog:
    @dataclass(frozen=True)
    class Options(Options):
        thickness: float = option(2.5, "how far one sees", unit="Å", low=0.1, high=10.0)
        lamp: bool = option(True, "whether there is light")

@hookimpl
def instamap_components():
    cite = "Anon, J. Fog (1900)"
    return [Component("forward", "fog", "instamap_fog:Fog", "everything is gray", cite),
            Component("forward", "ghost", "instamap_ghost:Ghost", "is not there")]

@hookimpl
def instamap_commands(app):
    @app.command()
    def horn():
        """Sound the horn."""
        print("toot")

    @app.command()
    def wait():
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        time.sleep(60)
'''
SICK = "raise RuntimeError('no\\nGPU')"
SICK_COMMAND = """
from instamap import hookimpl
@hookimpl
def instamap_commands(app):
    app.command()(None)
"""
SECOND_FSC = """
from instamap import hookimpl
@hookimpl
def instamap_commands(app):
    @app.command()
    def fsc():
        pass
"""
SECOND_FOG = """
from instamap import Component, hookimpl
@hookimpl
def instamap_components():
    return [Component("forward", "fog", "a:B", "more of it")]
"""


@pytest.fixture
def install(tmp_path):
    """install(name, code) makes a distribution that `run` finds; the module is called as the
    distribution.
    """

    def make(name: str, code: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[instamap]\n{module} = {module}\n")

    return make


@pytest.fixture
def run(tmp_path):
    """run(*words) is the outcome of `instamap` with those words, with the plugins in `tmp_path`."""

    def call(*words, python=(), **environment) -> subprocess.CompletedProcess:
        surroundings = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "100", **environment}
        command = [*python, str(COMMAND), *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=surroundings,
            cwd=tmp_path,
            timeout=120,
        )

    return call


def imports(outcome: subprocess.CompletedProcess) -> set[str]:
    """The modules that a run under WATCHED imported."""
    return {
        line.rpartition("|")[2].strip()
        for line in outcome.stderr.splitlines()
        if line.startswith("import time:")
    }


def refusal(outcome: subprocess.CompletedProcess) -> str:
    """The one line that a refusal consists of."""
    assert outcome.returncode == 2 and not outcome.stdout, outcome
    [line] = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["parts"], 0),
        *[([command, "-h"], 0) for command in COMMANDS],
        (["describe", "preprocess"], 0),
        (["describe", "workflow", "auto"], 0),
        (["describe", "representation", "hash-gird"], 2),
        (["describe", "forward", "fog"], 0),
        (["reconstruct", "x.star", "--representation", "hash-gird"], 2),
        (["reconstruct", "x.star", "--workflow", "mpa"], 2),
        (["reconstruct", "x.star", "--engine", "nromal"], 2),
        (["accumulate", "x.star", "--likelihood", "gausian"], 2),
        (["fit", "stats", "--objective", "imagse"], 2),
    ],
)
def test_names_are_answered_without_anything_slow(install, run, words, code):
    """Wall time depends on the machine; what decides it is whether torch (1 to 2 s), numpy,
    matplotlib or rich are imported.
    """
    install("instamap-fog", GOOD)
    outcome = run(*words, python=WATCHED)
    assert outcome.returncode == code
    assert "instamap.cli" in imports(outcome), "or else this test sees nothing"
    assert not {name for name in imports(outcome) if name.split(".")[0] in HEAVY}


def test_a_command_that_needs_torch_imports_it(run, tmp_path):
    """So that the test above is not blind."""
    mrc.write(tmp_path / "a.mrc", torch.ones(4, 4, 4), 1.0)
    assert "torch" in imports(run("fsc", "a.mrc", "a.mrc", python=WATCHED))


def test_help_and_version(run):
    assert run("--version").stdout == f"instamap {__version__}\n"
    shown = run("-h").stdout
    assert shown == run("--help").stdout
    assert re.findall(r"\n  ([a-z][a-z-]*) +[A-Z]", shown) == list(COMMANDS)
    assert shown.count("...") == 1, "the usage's own: each command's line is whole"
    for command in ("reconstruct", "demo", "fsc", "parts", "describe"):
        outcome = run(command, "-h")
        assert (
            outcome.returncode == 0
            and f"Usage: instamap {command}" in outcome.stdout
            and not outcome.stderr
        )
    bare = run()
    assert "Usage: instamap" in bare.stdout + bare.stderr and "Traceback" not in bare.stderr


def test_panels_of_options_have_headings_of_their_own(run):
    shown = run("reconstruct", "-h").stdout
    assert (
        shown.index("Options:")
        < shown.index("--out")
        < shown.index("PARTICLES:")
        < shown.index("--datadir")
        < shown.index("IMAGES (")
        < shown.index("--crop")
        < shown.index("PARTS (")
        < shown.index("--representation")
    )


@pytest.mark.parametrize("command", ["reconstruct", "accumulate", "fit", "infer"])
def test_earlier_spellings_are_not_shown(run, command):
    shown = run(command, "-h").stdout
    assert not re.search(r"--engine|-E |--together", shown)


def test_parts_are_listed_in_columns(install, run):
    install("instamap-fog", GOOD)
    outcome = run("parts", "--kind", "forward")
    assert outcome.returncode == 0 and not outcome.stderr
    rows = outcome.stdout.splitlines()
    fog = next(row for row in rows if " fog " in row)
    assert fog.split(None, 3) == ["forward", "fog", "instamap-fog", "everything is gray"]
    assert len({row.index(word) for row, word in [(rows[0], "FROM"), (fog, "instamap-fog")]}) == 1
    assert (
        all(row.startswith("forward ") for row in rows[1:])
        and "representation" in run("parts").stdout
    )


def test_a_part_is_described(install, run):
    install("instamap-fog", GOOD)
    shown = run("describe", "forward", "fog").stdout
    for word in (
        "everything is gray",
        "instamap-fog",
        "instamap_fog:Fog",
        "Anon, J. Fog (1900)",
        "--forward fog -F OPTION=VALUE",
    ):
        assert word in shown
    [row] = [line.split() for line in shown.splitlines() if line.startswith("  thickness")]
    assert " ".join(row) == "thickness 2.5 a number from 0.1 to 10 Å how far one sees"
    assert "lamp       true     true or false" in shown


def test_what_is_done_to_images_is_described(run):
    shown = run("describe", "preprocess").stdout
    rows = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  --")}
    assert list(rows) == [
        "--crop",
        "--box",
        "--normalise",
        "--background",
    ], "in the order in which they are done"
    help = run("reconstruct", "-h").stdout
    assert all(f"{flag} " in help or f"{flag}/" in help for flag in rows)
    assert "in run.toml by the same names" in shown


def test_the_automatic_workflow_is_described(run):
    """With all that it chooses from; other names without a part are still unknown."""
    shown = run("describe", "workflow", "auto").stdout
    rows = [
        line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.strip()
    ]
    workflows = [part.name for part in Registry({}, []).parts("workflow")]
    assert sorted(rows[1:-1]) == sorted(workflows)
    assert "workflow 'automatic' is unknown" in refusal(run("describe", "workflow", "automatic"))
    assert "is unknown" in refusal(run("describe", "preprocess", "crop"))


@pytest.mark.parametrize("part", Registry({}, []).parts(), ids=lambda part: part.name)
def test_every_built_in_part_can_be_described(capsys, part):
    describe(part.kind, part.name)
    shown = capsys.readouterr().out
    assert shown.startswith(f"{part.kind} {part.name}: {part.summary}\n")
    assert all(f"\n  {spec.name} " in shown for spec in specs_of(part.load().Options))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["parts", "--kind", "forwards"],
            "kind 'forwards' is unknown; choose .*did you mean forward",
        ),
        (
            ["describe", "forwrad", "ray"],
            "kind 'forwrad' is unknown; choose .*did you mean forward",
        ),
        (
            ["describe", "representation", "hash-gird"],
            "representation 'hash-gird' is unknown; choose .*did you mean hash-grid",
        ),
        (
            ["describe", "forward", "ghost"],
            (
                "forward 'ghost' of instamap-fog cannot be imported from instamap_ghost:Ghost.*mend"
                " or uninstall"
            ),
        ),
        (["fsc", "no.mrc", "no.mrc"], "map 'no.mrc' does not exist"),
    ],
)
def test_a_mistake_is_answered_in_one_line(install, run, words, said):
    install("instamap-fog", GOOD)
    assert re.search(said, refusal(run(*words)))


@pytest.mark.parametrize(
    "words", [["prats"], ["describe"], ["parts", "--knid", "forward"], ["fsc", "one.mrc"]]
)
def test_a_mistake_in_usage_has_the_same_exit_code(run, words):
    outcome = run(*words)
    assert (
        outcome.returncode == 2
        and "Usage: instamap" in outcome.stderr
        and "Traceback" not in outcome.stderr
    )


def test_a_broken_plugin_is_listed_and_harms_nobody(install, run):
    install("instamap-fog", GOOD)
    install("instamap-sick", SICK)
    outcome = run("parts")
    assert outcome.returncode == 0 and not outcome.stderr and " fog " in outcome.stdout
    listed = outcome.stdout.partition("Broken plugins")[2]
    assert "instamap-sick  RuntimeError: no GPU" in listed
    assert run("--help").returncode == 0
    assert (
        "plugin instamap-sick, which may provide it, is broken (RuntimeError: no GPU)"
        in refusal(run("describe", "forward", "mist"))
    )
    assert "instamap-sick" not in run("parts", INSTAMAP_DISABLE_PLUGINS="instamap-sick").stdout


def test_two_plugins_with_one_part_are_both_named_with_the_way_out(install, run):
    install("instamap-fog", GOOD)
    install("instamap-more-fog", SECOND_FOG)
    line = refusal(run("parts"))
    assert (
        "forward 'fog' is defined twice" in line
        and "instamap-fog" in line
        and "instamap-more-fog" in line
    )
    assert run("parts", INSTAMAP_DISABLE_PLUGINS="instamap-more-fog").returncode == 0


def test_plugins_add_commands(install, run):
    install("instamap-fog", GOOD)
    assert re.search(r"\n  horn +Sound the horn\.", run("--help").stdout)
    assert run("horn").stdout == "toot\n"


def test_a_plugin_whose_command_is_broken_is_a_broken_plugin(install, run):
    install("instamap-sick", SICK_COMMAND)
    assert run("--help").returncode == 0
    assert "instamap-sick" in run("parts").stdout.partition("Broken plugins")[2]


def test_built_in_commands_cannot_be_shadowed(install, run):
    install("instamap-rogue", SECOND_FSC)
    assert "command 'fsc' of instamap-rogue is defined already" in refusal(run("parts"))
    assert run("parts", INSTAMAP_DISABLE_PLUGINS="instamap-rogue").returncode == 0


def test_ctrl_c_is_one_line_and_130(install, run):
    install("instamap-fog", GOOD)
    outcome = run("wait")
    assert (outcome.returncode, outcome.stderr) == (130, "interrupted\n")


@pytest.fixture
def halves(tmp_path):
    """Two noisy maps of one ball and a mask around it: a.mrc, b.mrc and mask.mrc in `tmp_path`."""
    ball = 20 * torch.exp(-grids.voxel_centres(16, 2.0).square().sum(-1) / 2 / 4.0**2)
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        mrc.write(
            tmp_path / f"{name}.mrc", ball + torch.randn(16, 16, 16, generator=generator), 2.0
        )
    mrc.write(tmp_path / "mask.mrc", mask.sphere(16, 2.0, 15.0, 5.0), 2.0)
    return tmp_path


def test_fsc_of_two_maps(run, halves):
    outcome = run(
        "fsc", "a.mrc", "b.mrc", "--mask", "mask.mrc", "-o", "fsc.csv", "--plot", "fsc.png"
    )
    assert outcome.returncode == 0 and not outcome.stderr
    head, *rows = outcome.stdout.splitlines()
    assert head.split() == ["FSC", "=", "0.5", "FSC", "=", "0.143", "AUC"]
    for name, row in zip(("whole", "masked", "corrected"), rows, strict=True):
        word, half, _, gold, _, area = row.split()
        assert word == name and 4 <= float(gold) <= float(half) <= 32 and 0 < float(area) < 1
    with (halves / "fsc.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert (
        len(table) == 9
        and list(table[0])[3:] == ["whole", "masked", "corrected"]
        and float(table[0]["masked"]) > 0.9
    )
    assert (halves / "fsc.png").read_bytes().startswith(b"\x89PNG")


def test_fsc_replaces_no_input_and_nothing_unasked(run, halves):
    """Not under another name either."""
    before = (halves / "a.mrc").read_bytes()
    (halves / "link.csv").symlink_to("a.mrc")
    (halves / "mine.csv").write_text("mine")
    for target in ("a.mrc", "link.csv", "mask.mrc"):
        words = ("fsc", "a.mrc", "b.mrc", "--mask", "mask.mrc", "--force")
        for flag in ("-o", "--plot"):
            line = refusal(run(*words, flag, target))
            assert f"output '{target}' is one of the files that are read" in line
    line = refusal(run("fsc", "a.mrc", "b.mrc", "-o", "mine.csv"))
    assert "output 'mine.csv' is already there; choose another name or add --force" in line
    assert (halves / "mine.csv").read_text() == "mine"
    assert (halves / "a.mrc").read_bytes() == before
    assert run("fsc", "a.mrc", "b.mrc", "-o", "mine.csv", "--force").returncode == 0
    assert (halves / "mine.csv").read_text().startswith("shell")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a.mrc small.mrc", "'a.mrc' has a box of 16, 'small.mrc' of 8"),
        ("a.mrc coarse.mrc", "'a.mrc' has pixels of 2 Å, 'coarse.mrc' of 2.5 Å"),
        ("a.mrc b.mrc --mask small.mrc", "mask 'small.mrc' has a box of 8, the data of 16"),
        ("text.mrc b.mrc", "map 'text.mrc' cannot be read as MRC"),
        ("a.mrc b.mrc -o nowhere/fsc.csv", "'nowhere/fsc.csv' cannot be written"),
    ],
)
def test_fsc_refuses_what_does_not_fit(halves, monkeypatch, capsys, words, said):
    """In this process, which has torch already."""
    mrc.write(halves / "small.mrc", torch.ones(8, 8, 8), 2.0)
    mrc.write(halves / "coarse.mrc", torch.ones(16, 16, 16), 2.5)
    (halves / "text.mrc").write_text("text")
    monkeypatch.chdir(halves)
    monkeypatch.setattr(sys, "argv", ["instamap", "fsc", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code == 2 and not shown.out
    assert shown.err.startswith("error: ") and said in shown.err and shown.err.count("\n") == 1
