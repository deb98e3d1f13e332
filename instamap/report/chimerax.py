"""Scripts of commands for ChimeraX (.cxc) that show the maps in a folder."""

from pathlib import Path

from instamap.errors import DataError
from instamap.files import replacing
from instamap.maps import mrc
from instamap.report import render

MAP = "map.mrc"
STATES = "state_*.mrc"
COLOUR = "#5b8fc9"
MAX_SAMPLED_VOXELS = 1_000_000  # from which the level is found


def write(path: Path, folder: Path) -> None:
    """Writes a script for a run's map, or for the maps of states as a series.

    Raises DataError for a folder without either, OutputError where it cannot be written.
    """
    lines = script(folder)
    with replacing(path) as sibling:
        sibling.write_text("\n".join(lines) + "\n", encoding="utf-8")


def script(folder: Path) -> list[str]:
    """The commands. Raises DataError for a folder without maps."""
    states = [file for file in sorted(folder.glob(STATES)) if "_half" not in file.name]
    files = states or [folder / MAP]
    if not files[0].exists():
        raise DataError(
            f"'{folder}' has no {MAP} and no {STATES}; give the folder of a run or of states"
        )
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
        "view",
    ]
    if len(files) > 1:
        lines.append("vseries play #1 loop true direction oscillate maxFrameRate 10")
    return lines


def _quoted(path: Path) -> str:
    """A path as ChimeraX reads it, whatever is in it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
