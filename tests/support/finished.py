"""Results of runs that never took place, with everything that a report can show."""

from pathlib import Path
from typing import Any

import torch

from instamap.fitting.loop import FitResult
from instamap.geometry import rotations
from instamap.maps import mask
from instamap.progress import Evaluation
from instamap.scene import Scene
from instamap.workflows.choose import resolve
from instamap.workflows.result import Result
from instamap.workflows.settings import Settings

BOX = 16
PIXEL = 3.0


def finished(**changes: Any) -> Result:
    """A result of two half maps of a ball."""
    ball = mask.sphere(BOX, PIXEL, 12.0, 9.0)
    volumes = {"map": ball, "half1": ball, "half2": ball}
    rows = [(5, 1.0), (10, 3.25), (15, 3.0)]
    evaluations = [Evaluation(step, -1.5, value, True, 0.25) for step, value in rows]
    fits = {name: FitResult(volumes[name], evaluations, True) for name in ("half1", "half2")}
    curve = torch.linspace(1.0, 0.0, BOX // 2 + 1)
    spectra = torch.linspace(2.0, 1.0, BOX // 2 + 1)[None]
    window = mask.sphere(BOX, PIXEL, 18.0, 3.0)
    values: dict[str, Any] = {
        "settings": resolve(Settings(Path("/data/<particles>.star"))),
        "scene": Scene(BOX, PIXEL, count=100, mask=window, noise_variance=spectra),
        "maps": volumes,
        "fits": fits,
        "fsc": {"masked": curve, "corrected": curve},
        "resolution": 9.0,
        "counts": {"half1": 45, "half2": 45, "held_out": 10},
        "mask_was_found": True,
        "rotations": rotations.random(100, generator=torch.Generator().manual_seed(0)),
    }
    return Result(**{**values, **changes})
