"""A result read back from the folder that it was saved to."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap import checksums
from instamap.errors import DataError
from instamap.fitting.loop import FitResult
from instamap.maps import mrc
from instamap.plugin.choice import load_class
from instamap.progress import Evaluation
from instamap.scene import Scene
from instamap.toml_text import read_toml
from instamap.workflows import earlier_record, output
from instamap.workflows.image_contrast import MeasuredContrast
from instamap.workflows.record import read_json, reading
from instamap.workflows.result import RECORD, Result
from instamap.workflows.settings import Settings

MAPS = ("map", "half1", "half2")
PICTURES = (".png", ".gif", ".mp4", ".html")  # are not read
COLUMNS_BESIDE = ("shell", "spatial_frequency", "resolution")  # of fsc.csv: those without a curve


def load_result(folder: Path) -> Result:
    """The result in a folder, of the class that its workflow makes.

    Raises DataError for a folder without a result, or with a damaged one.
    """
    if not (folder / output.MARK).exists():
        raise DataError(f"'{folder}' holds no result: no {output.MARK}; give the folder of a run")
    plain = read_toml(folder / output.MARK)
    _check_whole(folder, plain)
    today, _ = earlier_record.translated(plain, str(folder / output.MARK))
    settings = Settings.from_record(today)
    record = read_json(folder / RECORD)
    maps, pixel_size = _read_maps(folder)
    with reading(folder / RECORD):
        fits = _read_fits(record, maps)
        resolution = record["resolution"]
        counts = record["counts"]
        contrast = None
        if "contrast" in record:
            contrast = MeasuredContrast.from_record(record["contrast"])
    result = Result(
        settings=settings,
        scene=_scene(folder, maps["map"], pixel_size, settings),
        maps=maps,
        fits=fits,
        fsc=_read_curves(folder / "fsc.csv"),
        resolution=resolution,
        counts=counts,
        mask_was_found=(folder / "mask.mrc").exists(),
        log=_read_log(folder / "log.jsonl"),
        contrast=contrast,
    )
    if settings.workflow is None:
        return result
    return load_class("workflow", settings.workflow.name).reload(folder, result)


def _check_whole(folder: Path, record: dict[str, Any]) -> None:
    """Raises DataError where a file that is read is not as the run wrote it."""
    names = list(checksums.read_list(folder))
    listed = record.get("files")
    if not names and isinstance(listed, list) and checksums.LIST in listed:
        raise DataError(f"'{folder}' has no {checksums.LIST}; copy the whole folder again")
    checksums.check(folder, [name for name in names if not name.endswith(PICTURES)])


def _read_maps(folder: Path) -> tuple[dict[str, Tensor], float]:
    """The maps by name, and their pixel size in Å."""
    maps = {}
    pixel_size = 1.0
    for name in MAPS:
        file = folder / f"{name}.mrc"
        if file.exists():
            maps[name], pixel_size = mrc.read(file)
    if "map" not in maps:
        raise DataError(f"'{folder}' has no map.mrc; copy the whole folder again")
    return maps, pixel_size


def _scene(folder: Path, volume: Tensor, pixel_size: float, settings: Settings) -> Scene:
    """The scene as far as the folder knows it."""
    file = folder / "mask.mrc"
    mask = None
    if file.exists():
        mask = mrc.read(file)[0]
    elif settings.mask is not None and settings.mask.exists():
        mask = mrc.read(settings.mask)[0]
    return Scene(box=len(volume), pixel_size=pixel_size, mask=mask)


def _read_fits(record: dict[str, Any], maps: dict[str, Tensor]) -> dict[str, FitResult]:
    """What was kept of each fit: its map, its evaluations and whether it found a signal."""
    fits = {}
    for name, rows in record["evaluations"].items():
        evaluations = [Evaluation(**row) for row in rows]
        volume = maps.get(name, torch.zeros(0))
        fits[name] = FitResult(volume, evaluations, name not in record["without_signal"])
    return fits


def _read_curves(file: Path) -> dict[str, Tensor]:
    """The FSC curves of fsc.csv by name; none without the file."""
    if not file.exists():
        return {}
    with reading(file):
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        names = [name for name in rows[0] if name not in COLUMNS_BESIDE]
        return {name: torch.tensor([float(row[name]) for row in rows]) for name in names}


def _read_log(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with reading(file):
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
