"""Scripts of commands for ChimeraX (.cxc) that show the maps in a folder."""

from pathlib import Path

from instamap.errors import DataError
from instamap.files import replacing
from instamap.maps import mrc
from instamap.motion.verdict_map import WORDS, Belief
from instamap.report import render

MAP = "map.mrc"
STATES = "state_*.mrc"
NOT_STATES = ("_half", "_locres")  # in the names of other maps of states
REFERENCE = "reference.mrc"  # of an audit
VERDICT = "verdict.mrc"
COLOUR = "#5b8fc9"
BELIEF_COLOURS = {  # told apart by colour-blind people too
    Belief.NOTHING: "#bbbbbb",
    Belief.MAP_ALONE: "#d55e00",
    Belief.MAP_AT_REST: "#f0e442",
    Belief.MAP_AND_MOTION: "#0072b2",
}
MAX_SAMPLED_VOXELS = 1_000_000  # from which the level is found


def write(path: Path, folder: Path) -> None:
    """Writes a script for a run's map, for the maps of states as a series, or for an audit's
    reference, coloured by what to believe.

    Raises DataError for a folder without either, OutputError where it cannot be written.
    """
    lines = script(folder)
    with replacing(path) as sibling:
        sibling.write_text("\n".join(lines) + "\n", encoding="utf-8")


def script(folder: Path) -> list[str]:
    """The commands. Raises DataError for a folder without maps."""
    audit = folder / VERDICT
    files = [folder / REFERENCE] if audit.exists() else _states(folder) or [folder / MAP]
    if not files[0].exists():
        packed = any(folder.glob(f"{STATES}.gz"))
        remedy = "give the folder of a run, of states or of an audit"
        if packed:
            remedy = f"unpack {STATES}.gz with gunzip"
        raise DataError(f"'{folder}' has no {MAP}, {STATES} or {VERDICT}; {remedy}")
    volume, pixel_size = mrc.read(files[len(files) // 2])
    every = max(1, volume.numel() // MAX_SAMPLED_VOXELS)
    level, _ = render.threshold(volume.flatten()[::every])
    names = " ".join(_quoted(file.resolve()) for file in files)
    series = " vseries true" if len(files) > 1 else ""
    lines = [
        "set bgColor white",
        "graphics silhouettes true",
        "lighting soft",
        f"open {names}{series}",
        f"volume #1 style surface step 1 level {level:.6g} color {COLOUR}",
        "surface dust #1 size " + f"{5 * pixel_size:.4g}",
    ]
    if audit.exists():
        lines += _coloured_by_verdict(audit)
    lines.append("view")
    if len(files) > 1:
        lines.append("vseries play #1 loop true direction oscillate maxFrameRate 10")
    return lines


def _states(folder: Path) -> list[Path]:
    """The maps of states in a folder, in order."""
    found = sorted(folder.glob(STATES))
    return [file for file in found if not any(word in file.name for word in NOT_STATES)]


def _coloured_by_verdict(verdict: Path) -> list[str]:
    """Commands that colour the surface of map #1 by a verdict map, and say what colours mean."""
    palette = ":".join(f"{belief:d},{colour}" for belief, colour in BELIEF_COLOURS.items())
    entries = [f'{colour}:"{WORDS[belief]}"' for belief, colour in BELIEF_COLOURS.items()]
    return [
        f"open {_quoted(verdict.resolve())}",
        "volume #2 hide",
        f"color sample #1 map #2 palette {palette}",
        f"key {' '.join(entries)} colorTreatment distinct pos 0.03,0.03 size 0.03,0.16",
    ]


def _quoted(path: Path) -> str:
    """A path as ChimeraX reads it, whatever is in it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
