"""Tables of populations: of conformations, of a profile, and columns in the table of states."""

import csv
import math
from pathlib import Path

import torch

from instamap.errors import DataError
from instamap.files import replacing
from instamap.motion.conformation_maps import coordinate_names
from instamap.motion.energy_profile import Profile
from instamap.motion.populations import Populations

TABLE = "populations.csv"
PROFILE = "profile.csv"
STATES = "states.csv"
SHARE_COLUMNS = ("population", "low", "high", "log_population")
PROFILE_COLUMNS = (
    "z1",
    "distance",
    "energy",
    "energy_low",
    "energy_high",
    "share_below",
    "share_below_low",
    "share_below_high",
)
STATE_COLUMNS = ("population", "minus_log_population")

Rows = list[list[object]]


def write(folder: Path, populations: Populations) -> None:
    """Writes populations.csv and, of a single coordinate, profile.csv into an existing folder."""
    names = coordinate_names(populations.fits[0].nodes.shape[1])
    rows: Rows = [["half", *names, *SHARE_COLUMNS]]
    for fit, shares in zip(populations.fits, populations.intervals, strict=True):
        for z, share in zip(fit.nodes.tolist(), shares, strict=True):
            log = _log(share.value)
            rows.append([fit.name, *z, share.value, share.low, share.high, log])
    _write(folder / TABLE, rows)
    if populations.profile is not None:
        _write(folder / PROFILE, _profile_rows(populations.profile))


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


def _profile_rows(profile: Profile) -> Rows:
    """A row for the middle of each piece."""
    z = (profile.z[1:] + profile.z[:-1]) / 2
    along = (profile.distance[1:] + profile.distance[:-1]) / 2
    below = (profile.cumulative[:, 1:] + profile.cumulative[:, :-1]) / 2
    columns = torch.stack([z, along, *profile.energy, *below], 1)
    rows: Rows = [list(PROFILE_COLUMNS)]
    rows.extend(columns.tolist())
    return rows


def _write(file: Path, rows: Rows) -> None:
    with (
        replacing(file) as sibling,
        sibling.open("w", newline="", encoding="utf-8") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            cells = [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
            writer.writerow(cells)


def add_to_states(file: Path, populations: Populations) -> None:
    """Gives a table of states columns of the share of the particles that are nearest to each, and
    of its -log; those of an earlier call are replaced.

    A state that no conformation with particles is nearest to has no logarithm. Raises DataError,
    OutputError.
    """
    names = coordinate_names(populations.fits[0].nodes.shape[1])
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    if not rows or not set(names) <= set(rows[0]):
        raise DataError(
            f"'{file}' has no columns {', '.join(names)}; write it again with `instamap states`, or"
            " give another folder with -o"
        )
    places = [[float(row[name]) for name in names] for row in rows]
    shares = populations.nearest_to(torch.tensor(places, dtype=torch.float64))
    kept = [name for name in rows[0] if name not in STATE_COLUMNS]
    table: Rows = [[*kept, *STATE_COLUMNS]]
    for row, share in zip(rows, shares.tolist(), strict=True):
        energy = -math.log(share) if share > 0 else ""
        table.append([*(row[name] for name in kept), share, energy])
    _write(file, table)
