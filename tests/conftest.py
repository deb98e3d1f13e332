"""What the tests share: the folder of real data, a hypothesis profile, writers of small STAR files
and stacks.
"""

import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import settings

# Packages with tests of their own, which are run where they are installed (see test_install.py).
collect_ignore = ["plugins"]

torch.set_num_threads(1)  # the tests' tensors are small: threads would cost more than they save

settings.register_profile(
    "instamap", deadline=None, max_examples=20, derandomize=False, print_blob=True
)
settings.load_profile("instamap")


@pytest.fixture
def torch_threads():
    """torch_threads(n) gives torch so many threads until the test ends, also where there are fewer
    cores.
    """
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of particles, maps and models that are too large to be kept in the project:
    $INSTAMAP_TEST_DATA, or else shared/data beside the checkout.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("INSTAMAP_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(
            f"needs real particles, maps and models, and there is no folder '{folder}'; set"
            " INSTAMAP_TEST_DATA to where they are"
        )
    return folder


@pytest.fixture(scope="session")
def write_star():
    """write_star(path, tables) writes {name: [row, ...]} with each row a dict, as text and without
    the library under test.
    """

    def write(path: Path, tables: dict[str, list[dict]]) -> Path:
        lines = []
        for name, rows in tables.items():
            lines += [
                "",
                f"data_{name}",
                "",
                "loop_",
                *(f"_{column} #{i}" for i, column in enumerate(rows[0], 1)),
            ]
            lines += [" ".join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def write_stack():
    """write_stack(path, images) writes an array as MRC in the type that it has, over what was
    there; folders are made as needed.
    """

    def write(path: Path, images: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(images)
            if images.ndim == 3:
                mrc.set_image_stack()
        return path

    return write


@pytest.fixture(scope="session")
def make_optics():
    """make_optics(column=value, ...) is a row of an optics table that is good but for what is
    changed.
    """
    row = {
        "rlnOpticsGroup": 1,
        "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnImagePixelSize": 2.0,
    }
    return lambda **changes: row | changes


@pytest.fixture(scope="session")
def make_particle():
    """make_particle(column=value, ...) is a row of a particle table that is good but for what is
    changed.
    """
    row = {
        "rlnImageName": "1@stack.mrcs",
        "rlnAngleRot": 10.0,
        "rlnAngleTilt": 20.0,
        "rlnAnglePsi": 30.0,
        "rlnOpticsGroup": 1,
        "rlnDefocusU": 12000.0,
        "rlnDefocusV": 11000.0,
        "rlnDefocusAngle": 40.0,
    }
    return lambda **changes: row | changes


@pytest.fixture
def optics(make_optics) -> dict:
    """A good row of an optics table; change it at will."""
    return make_optics()


@pytest.fixture
def particle(make_particle) -> dict:
    """A good row of a particle table; change it at will."""
    return make_particle()
