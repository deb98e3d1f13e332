"""Corrected poses in a STAR file that keeps all else that was written."""

from pathlib import Path

import pandas as pd
import starfile
import torch
from torch import Tensor

from instamap.data.formats import star_tables
from instamap.data.particles import Particles
from instamap.files import replacing
from instamap.geometry import rotations
from instamap.poses.correction import corrected


def write(particles: Particles, z: Tensor, file: Path) -> None:
    """Write the particles with poses corrected by z "n 5": angles and origins, in Å and in pixels,
    whichever the file has.

    All other tables, columns and values are kept to the letter, as are rows without a correction,
    and the order. Raises OutputError.
    """
    columns = particles.table.columns
    found = star_tables.texts(columns)
    main = columns.name
    rows = found[main] if isinstance(found[main], pd.DataFrame) else pd.DataFrame([found[main]])
    views = corrected(particles.views, z.double())
    moved = (z != 0).any(1).tolist()
    angles = torch.rad2deg(rotations.to_euler(views.rotation))
    new = {f"rlnAngle{name}": angles[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    for axis, values in zip("XY", views.origin.T, strict=True):
        pixels = f"rlnOrigin{axis}"
        lengths = f"rlnOrigin{axis}Angst"
        if pixels in columns:
            new[pixels] = values / particles.table.pixel_size
        if lengths in columns or pixels not in columns:
            new[lengths] = values
    for name, values in new.items():
        before = (
            rows[name] if name in rows else [str(v) for v in columns.numbers(name, default=0.0)]
        )
        rows[name] = [
            f"{v:.6f}" if on else text
            for v, on, text in zip(values.tolist(), moved, before, strict=True)
        ]
    found[main] = rows
    with replacing(file) as sibling:
        starfile.write(found, sibling, na_rep="nan", overwrite=True)
