"""Poses that are not there but are not missing either: one for all, or one direction alone."""

import torch
from torch import Tensor

from instamap.data.checks.finding import Finding, named, rows_where

MIN_VIEWS = 10  # of fewer images nothing is said
SAME_ROTATION = 1e-6  # of a matrix's elements
ONE_DIRECTION = 1e-3  # of the directions' spread, which is 2/3 where they are uniform
SHARE_OF_ONE_POSE = 0.2  # of the images

_REMEDY = "take the STAR file of a 3-D refinement if these are placeholders"


def check(rotation: Tensor, path: str, symmetry: Tensor | None = None) -> list[Finding]:
    """Findings of orientations "n 3 3" of distinct images. symmetry "S 3 3": of the density."""
    count = len(rotation)
    if count < MIN_VIEWS:
        return []
    same = _most_frequent(rotation)
    if same.all():
        value = f"all {count} images of '{path}' have one pose, so other views are missing"
        return [Finding("one-pose", value, _REMEDY)]
    if float(same.double().mean()) > SHARE_OF_ONE_POSE:
        rows = rows_where(same)
        value = f"{len(rows)} of {count} images of '{path}' have exactly one pose, {named(rows)}"
        return [Finding("one-pose", value, f"{_REMEDY}, or remove these rows")]
    if spread(rotation, symmetry) < ONE_DIRECTION:
        value = (
            f"all {count} images of '{path}' are views along one direction (orientations differ in"
            " the plane alone), which do not fix a map"
        )
        return [Finding("one-direction", value, _REMEDY)]
    return []


def spread(rotation: Tensor, symmetry: Tensor | None = None) -> float:
    """One minus the largest eigenvalue of Σ d dᵀ / n over viewing directions d: 0 where they are
    one, 2/3 where they are uniform.
    """
    directions = rotation[:, 2].double()
    if symmetry is not None:
        mates = torch.einsum("ni,sij->snj", directions, symmetry.double())
        directions = mates.reshape(-1, 3)
    moment = directions.mT @ directions / len(directions)
    return 1 - float(torch.linalg.eigvalsh(moment)[-1])


def _most_frequent(rotation: Tensor) -> Tensor:
    """Which images "n" have the pose that most have, exactly."""
    rounded = (rotation.double().flatten(1) / SAME_ROTATION).round()
    _, which, counts = rounded.unique(dim=0, return_inverse=True, return_counts=True)
    return which == counts.argmax()
