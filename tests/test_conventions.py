"""The pages of conventions and others: poses are as scipy has them, and every file and test that a
page names is there.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from instamap.geometry import rotations

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
)
NAMED = re.compile(r"`((?:tests|docs|instamap|benchmarks|plugins)/[\w/.-]+)")
INNER = re.compile(r"`([a-z_]+/[\w/]+\.py)`")  # from the root, or from instamap/
LINKED = re.compile(r"\]\(([^)#]+)[^)]*\)")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("tests", "instamap/testing")
    for path in (ROOT / folder).rglob("*.py")
)
angle = st.floats(-360, 360)


@given(rot=angle, tilt=angle, psi=angle)
def test_poses_are_inverse_zyz_rotations(rot, tilt, psi):
    expected = Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).inv().as_matrix()
    found = rotations.from_euler(
        *(torch.deg2rad(torch.tensor(a, dtype=torch.float64)) for a in (rot, tilt, psi))
    )
    torch.testing.assert_close(
        found, torch.tensor(expected), rtol=0, atol=1e-12
    )  # angles of a few turns, in float64


def _is_in_the_project(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / "instamap" / path).exists()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    files = [path for path in NAMED.findall(text) if not (ROOT / path.rstrip(".")).exists()]
    inner = [path for path in INNER.findall(text) if not _is_in_the_project(path)]
    links = [
        path
        for path in LINKED.findall(text)
        if "://" not in path and not (ROOT / page).parent.joinpath(path).exists()
    ]
    tests = [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in SOURCES]
    assert not files + inner + links + tests
