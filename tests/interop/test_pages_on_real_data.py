"""The pages on RELION, cryoSPARC and tilt series, typed word for word over real metadata."""

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from support.pages import SHOWN, Block, Folder, blocks

import instamap
from instamap.data import formats
from instamap.fourier import ctf

RELION_RUN = "Refine3D/job009/run_data.star"
ROWS = 300  # of the cryoSPARC refinement, whose images are not at hand
BOX = 36
BINNING = 5  # from the refinement's 180 pixels
BLOB_SIGMA = 25.0  # Å
BLOBS = 40.0 * torch.tensor([[1.0, 0.5, 0.0], [-1.0, 1.0, 0.5], [0.0, -1.5, 1.0], [0.5, 0.5, -1.5]])


def shown(page: str) -> list[Block]:
    """The page's blocks that need data of one's own."""
    return [block for block in blocks(page) if block.language in SHOWN]


def resolution_of(folder: Path) -> float:
    """Å, of a run that found something."""
    resolution = instamap.load(folder).resolution
    assert resolution is not None
    return resolution


@pytest.mark.slow
def test_a_job_of_relion_on_real_images(shared_data, tmp_path):
    """1,430 images of ribosomes as the particles of a refinement."""
    source = shared_data / "ribosome-tilts"
    star = tmp_path / RELION_RUN
    star.parent.mkdir(parents=True)
    shutil.copy(source / "particles.star", star)
    (tmp_path / "particles.mrcs").symlink_to(source / "particles.mrcs")
    job, postprocessing, *_ = shown("docs/relion.md")
    folder = Folder(tmp_path)
    folder.run(job)
    out = tmp_path / "External" / "job012"
    assert (out / "RELION_JOB_EXIT_SUCCESS").exists()
    # RELION's own half maps: 27.4 Å; Nyquist is 24 Å. Draws of the halves give 28 to 33 Å here.
    assert 24 <= resolution_of(out) < 35
    if shutil.which("relion_postprocess") is None:
        pytest.skip("the second block needs relion_postprocess (Debian package relion)")
    (tmp_path / "PostProcess" / "job013").mkdir(parents=True)
    plain = Block("sh", f"{postprocessing.text.strip()} || true")  # plotting needs Ghostscript
    folder.run(plain)
    assert (tmp_path / "PostProcess" / "job013" / "postprocess.mrc").exists()


@pytest.mark.slow
def test_tilt_series_of_warptools(shared_data, tmp_path):
    source = shared_data / "ribosome-tilts" / "warptools"
    [optimisation] = source.glob("*_optimisation_set.star")
    for path in source.iterdir():
        name = "optimisation_set.star" if path == optimisation else path.name
        (tmp_path / name).symlink_to(path)
    [block] = shown("docs/tilt-series.md")
    Folder(tmp_path).run(block)
    assert 24 <= resolution_of(tmp_path / "out") < 30
    assert (tmp_path / "moving" / "report.html").exists()


@pytest.mark.slow
def test_a_refinement_of_cryosparc(shared_data, tmp_path):
    """Its poses and CTFs are real, and read from a group; the images are blobs at these poses."""
    source = shared_data / "star-corpus" / "cryosparc_P12_J24_001_particles.cs"
    rows = np.load(source)[:ROWS].copy()
    rows["blob/shape"] = BOX
    rows["blob/psize_A"] *= BINNING
    job = tmp_path / "J42"
    job.mkdir()
    table = job / "J42_particles.cs"
    with table.open("wb") as file:
        np.save(file, rows)
    (job / "J42_particles.csg").write_text(group_of(rows.dtype.names))
    write_images(tmp_path, table, rows)
    [block] = shown("docs/cryosparc.md")
    Folder(tmp_path).run(block)
    assert resolution_of(tmp_path / "out") < 60
    assert (tmp_path / "moving" / "report.html").exists()


def group_of(names: tuple[str, ...]) -> str:
    """A group of all fields, as cryoSPARC writes it."""
    results = {name.partition("/")[0] for name in names if "/" in name}
    lines = ["created: 2020-01-01 00:00:00", "group:", "  description: '' ", "results:"]
    for result in sorted(results):
        lines += [f"  {result}:", "    metafile: '>J42_particles.cs'", f"    num_items: {ROWS}"]
    return "\n".join([*lines, "type: particle", ""])


def write_images(project: Path, table: Path, rows: np.ndarray) -> None:
    """Stacks of blobs with the poses of the rows, dark as raw images are, and noise."""
    views = formats.read(table)
    assert views.optics is not None
    pixel_size = float(rows["blob/psize_A"][0])
    landed = (BLOBS.double() @ views.rotation.mT)[..., :2] - views.origin[:, None]
    axis = (torch.arange(BOX, dtype=torch.float64) - BOX // 2) * pixel_size
    wave = torch.exp(-(((axis - landed[..., None]) / BLOB_SIGMA) ** 2) / 2)
    images = torch.einsum("npx,npy->nyx", wave[:, :, 0], wave[:, :, 1])
    generator = torch.Generator().manual_seed(0)
    images = ctf.apply(images, views.optics, pixel_size)
    images += images.std() * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    for path in np.unique(rows["blob/path"]):
        mine = np.flatnonzero(rows["blob/path"] == path)
        stack = np.zeros((rows["blob/idx"][mine].max() + 1, BOX, BOX), np.float32)
        stack[rows["blob/idx"][mine]] = -images[mine].numpy()
        target = project / path.decode()
        target.parent.mkdir(parents=True, exist_ok=True)
        with mrcfile.new(target) as file:
            file.set_data(stack)
            file.voxel_size = pixel_size
