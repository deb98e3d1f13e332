"""Simulated atoms and maps: against gemmi's densities, against integrals over ever finer pixels,
and against RELION's projections.
"""

import gzip
import math
import shutil
import subprocess
import sys

import gemmi
import mrcfile
import numpy as np
import pytest
import torch

from instamap.data.particles import Particles
from instamap.data.preprocess import fourier_crop
from instamap.errors import DataError, OptionError
from instamap.geometry import grids, rotations
from instamap.maps import mrc
from instamap.simulate import atomic_model, particle_set
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import VOLTS, WATER, Potential

needs_relion = pytest.mark.skipif(
    shutil.which("relion_project") is None, reason="RELION (Debian package relion) is not installed"
)


def atom(number, name, residue, where, *, element="", b=20.0, occupancy=1.0, chain="A", place=1):
    """A line of a PDB file, whose columns count; the name begins where it should for elements of
    one letter.
    """
    x, y, z = where
    return (
        f"ATOM  {number:5d}  {name:<3s} {residue:>3s} {chain}{place:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}{b:6.2f}          {element:>2s}"
    )


@pytest.fixture(scope="session")
def write_pdb(tmp_path_factory):
    """write_pdb(lines) is the path of a PDB file of these lines."""

    def write(lines):
        path = tmp_path_factory.mktemp("model") / "model.pdb"
        path.write_text("\n".join([*lines, "END", ""]))
        return path

    return write


@pytest.fixture(scope="session")
def chain(write_pdb):
    """A bent, right-handed chain of 60 atoms of five elements, B-factors from 10 to 80 and some
    half occupied.
    """
    turn = torch.linspace(0, 1, 60, dtype=torch.float64)
    where = torch.stack(
        [6 * torch.cos(9 * turn) - 8 * turn**2, 6 * torch.sin(9 * turn) + 3 * turn, 36 * turn - 15],
        -1,
    )
    return write_pdb(
        [
            atom(
                i + 1,
                "CNOSP"[i % 5],
                "UNK",
                where[i].tolist(),
                element="CNOSP"[i % 5],
                b=10 + 70 * i / 59,
                place=i + 1,
                occupancy=0.5 if i % 7 == 3 else 1,
            )
            for i in range(60)
        ]
    )


def test_one_atom_against_gemmi(write_pdb):
    """Å pixels fine enough to hold the whole transform (exp(-60/4) at Nyquist): what they show is
    the line integral at their centres.
    """
    path = write_pdb([atom(1, "S", "UNK", (1.0, 2.0, 3.0), element="S", b=60.0, occupancy=0.7)])
    source = Potential(atomic_model.read(path), 41, 0.5)
    origin = torch.tensor([[0.73, -1.1]]).double()
    size = 0.5
    image = source.project(rotations.random(1), origin)[0].double()  # turned about its own centre
    table = gemmi.Element("S").c4322
    axis = grids.axis(41, size, dtype=torch.float64).numpy()
    square = (axis[None, :] + 0.73) ** 2 + (axis[:, None] - 1.1) ** 2
    depth = np.arange(-12, 12, 0.05)  # trapezoids of a Gaussian converge faster than any power
    lines = [
        sum(table.calculate_density_iso(r + z * z, 60.0) for z in depth) * 0.05
        for r in square.ravel()
    ]
    exact = 0.7 * VOLTS * torch.tensor(lines).view(41, 41)
    assert (image - exact).abs().max() < 2e-5 * exact.max()
    there = source.density()[20, 20]
    gemmis = [0.7 * VOLTS * table.calculate_density_iso(x * x, 60.0) for x in axis]
    assert np.abs(there.numpy() - gemmis).max() < 2e-5 * max(gemmis)


def test_it_is_the_limit_of_integrals_over_finer_pixels(write_pdb):
    """Sharp atoms on coarse pixels: each Gaussian integrated over a pixel's 8 and 16 parts an axis,
    then Fourier-cropped. The rest falls as the parts' area: their transform, sinc(s/u), differs
    from 1 by π²/6 (s/u)².
    """
    path = write_pdb(
        [
            atom(1, "C", "UNK", (1.0, 2.0, 3.0), element="C", b=5.0),
            atom(2, "O", "UNK", (-4.0, 1.0, 7.5), element="O", b=9.0),
        ]
    )
    box = 15
    size = 2.0
    source = Potential(atomic_model.read(path), box, size)
    atoms = source.atoms

    def integrated(parts):
        fine = size / parts
        edges = grids.axis(box * parts, fine, dtype=torch.float64) - fine / 2
        edges = torch.cat([edges, edges[-1:] + fine])
        total = 0.0
        for i in range(5):
            sigma = torch.sqrt((atoms.widths[atoms.kind, i] + atoms.b_factor) / (8 * math.pi**2))
            share = [
                0.5
                * torch.erf((edges - c[:, None]) / (sigma[:, None] * math.sqrt(2))).diff(dim=-1)
                / fine
                for c in source.position.T
            ]
            x, y, z = (part @ fourier_crop(box * parts, box).T for part in share)
            total = total + torch.einsum(
                "p,pz,py,px->zyx", VOLTS * atoms.weights[atoms.kind, i], z, y, x
            )
        return total

    found = source.density()
    error = [(found - integrated(parts)).abs().max() / found.abs().max() for parts in (8, 16)]
    assert error[0] < 0.02
    assert error[0] / error[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("box", [40, 41])
def test_mass_solvent_and_point(chain, box):
    """F(0) = Σ o Σ a, for the centre of a shifted image as for the map; what solvent and point take
    and add.
    """
    atoms = atomic_model.read(chain)
    tables = {name: sum(gemmi.Element(name).c4322.a) for name in "CNOSP"}
    mass = VOLTS * sum(tables["CNOSP"[i % 5]] * (0.5 if i % 7 == 3 else 1) for i in range(60))
    for solvent, point, factor in ((0, 0, 1), (0.6, 0, 0.4), (0.5, 0.1, 0.55)):
        source = Potential(atoms, box, 1.5, solvent=solvent, point_mass=point)
        assert float(source.density().sum()) * 1.5**3 == pytest.approx(mass * factor, rel=1e-5)
        image = Potential(atoms, 2 * box, 1.5, solvent=solvent, point_mass=point).project(
            rotations.random(1), torch.zeros(1, 2).double()
        )
        assert float(image.sum()) * 1.5**2 == pytest.approx(
            mass * factor, rel=1e-2
        )  # less what rings beyond the edges


def test_solvent_and_point_have_their_widths(chain):
    """By their transforms: the water of a Gaussian of 3.5 Å more, the point that of an atom whose
    factor is constant.
    """
    atoms = atomic_model.read(chain, b_factor=0.0)

    def spectrum(**more):
        return torch.fft.rfftn(
            torch.fft.ifftshift(Potential(atoms, 40, 1.5, **more).density().double())
        )

    whole = torch.fft.fftfreq(40, 1.5, dtype=torch.float64)
    half = torch.fft.rfftfreq(40, 1.5, dtype=torch.float64)
    square = whole[:, None, None] ** 2 + whole[:, None] ** 2 + half**2
    bare = spectrum()
    wet = spectrum(solvent=0.6)
    pointed = spectrum(point_mass=0.1)
    expected = bare * (1 - 0.6 * torch.exp(-2 * math.pi**2 * WATER**2 * square))
    assert (wet - expected).abs().max() < 1e-5 * bare.abs().max()
    where = Potential(atoms, 40, 1.5).position
    k = torch.stack(torch.meshgrid(whole, whole, indexing="ij"), -1)[1:20, 1:20]
    waves = torch.exp(
        -2j * math.pi * (k @ where[:, 1:].flip(1).T).to(torch.complex128)
    )  # at kx = 0
    added = 0.1 * VOLTS * (waves * atoms.mass).sum(-1) / 1.5**3
    assert ((pointed - bare)[1:20, 1:20, 0] - added).abs().max() < 1e-5 * bare.abs().max()


def rings(ours, theirs):
    """Correlation of two stacks of images in each Fourier shell."""
    box = ours.shape[-1]
    shell = grids.shells(box, 2).flatten()
    one, other = (torch.fft.fft2(images.double()).flatten(1) for images in (ours, theirs))

    def total(values):
        return torch.zeros(box, dtype=torch.float64).index_add(0, shell, values.sum(0))

    found = total((one * other.conj()).real) / torch.sqrt(
        total(one.abs() ** 2) * total(other.abs() ** 2)
    )
    return found[: int(0.8 * box / 2) + 1]


def held_against_relion(source, folder):
    """Noise-free images of a set, with all that its STAR file says, correlate with RELION's of its
    truth in every shell to 0.8 Nyquist.

    RELION interpolates linearly, in a transform padded twice, which costs up to 4e-4 where the
    molecule fills the box.
    """
    particle_set.simulate(folder, source, particle_set.Plan(8), Exposure(1e12), seed=1)
    files = ["--i", "truth.mrc", "--o", "relion", "--ang", "particles.star"]
    command = ["relion_project", *files, "--ctf", "--angpix", str(source.pixel_size)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        torch.tensor(mrcfile.read(folder / name)) for name in ("particles.mrcs", "relion.mrcs")
    )
    assert rings(ours, theirs).min() > 0.999
    assert float((ours * theirs).sum() / theirs.square().sum()) == pytest.approx(
        source.pixel_size, rel=0.01
    )  # RELION sums voxels


@needs_relion
@pytest.mark.parametrize(
    ("box", "size", "solvent"), [(48, 1.5, 0.0), (48, 2.5, 0.6), (32, 3.0, 0.0)]
)
def test_atoms_agree_with_relion_project(chain, tmp_path, box, size, solvent):
    held_against_relion(particle_set.of_model(chain, box, size, solvent=solvent), tmp_path)


@needs_relion
@pytest.mark.parametrize("size", [2.0, 3.0])
def test_a_protein_agrees_with_relion_project(shared_data, tmp_path, size):
    held_against_relion(
        particle_set.of_model(shared_data / "models" / "3j5p.pdb.gz", round(192 / size), size),
        tmp_path,
    )


@needs_relion
@pytest.mark.parametrize(("box", "size"), [(None, None), (40, 1.5), (36, 2.0)])
def test_a_map_agrees_with_relion_project(chain, tmp_path, box, size):
    volume = particle_set.of_model(chain, 48, 1.5).density()
    held_against_relion(particle_set.of_map(volume, 1.5, box, size), tmp_path)


@pytest.mark.parametrize(
    ("old", "box", "size"),
    [(32, 24, 2.0), (32, 40, 1.5), (33, 22, 2.25), (33, 40, 1.5), (24, 15, 1.6)],
)
def test_a_map_keeps_its_place_and_its_values(old, box, size):
    """A Gaussian that all of the lattices can hold, off the middle."""
    step = 1.5 if old > 24 else 1.0

    def gauss(n, p):
        return torch.exp(
            -(grids.voxel_centres(n, p, dtype=torch.float64) - torch.tensor([2.0, -1, 0.5]))
            .square()
            .sum(-1)
            / 8
        )

    found = particle_set.of_map(gauss(old, step).float(), step, box, size)
    assert (found.box, found.pixel_size) == (box, size)
    assert (found.density() - gauss(box, size)).abs().max() < 0.01


def test_every_spelling_of_a_model_gives_the_same_atoms(chain, tmp_path):
    names = [tmp_path / name for name in ("a.pdb", "b.ent", "c.pdb.gz", "d.cif", "e.cif.gz")]
    text = chain.read_text()
    cif = gemmi.read_structure(str(chain)).make_mmcif_document().as_string()
    for path in names:
        content = (cif if ".cif" in path.name else text).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    first = atomic_model.read(names[0])
    assert len(first) == 60 and first.elements == sorted("CNOSP")
    for path in names[1:]:
        other = atomic_model.read(path)
        for name in ("position", "b_factor", "occupancy", "kind"):
            torch.testing.assert_close(
                getattr(other, name), getattr(first, name), atol=1e-6, rtol=0
            )


def test_water_and_what_is_not_there_are_left_out(write_pdb):
    path = write_pdb(
        [
            atom(1, "C", "UNK", (0, 0, 0), element="C"),
            atom(2, "O", "HOH", (5, 0, 0), element="O", place=2),
            atom(3, "N", "UNK", (9, 0, 0), element="N", place=3, occupancy=0.0),
        ]
    )
    atoms = atomic_model.read(path)
    assert (len(atoms), atoms.elements) == (1, ["C"])
    assert atomic_model.read(path, b_factor=33.0).b_factor.tolist() == [33.0]


def test_elements_are_read_off_names_where_the_columns_are_wrong(write_pdb):
    """As molecular dynamics writes them: "CA" one column to the left is calcium to whoever looks at
    columns alone.
    """
    names = ["N", "CA", "HA", "CB", "HG1", "SD", "C", "O"]
    lines = [
        atom(i + 1, name, "MET", (1.5 * i, 0, 0)).replace(f"  {name:<3s} MET", f" {name:<4s} MET")
        for i, name in enumerate(names)
    ]
    atoms = atomic_model.read(write_pdb(lines))
    assert [atoms.elements[kind] for kind in atoms.kind] == ["N", "C", "H", "C", "H", "S", "C", "O"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "holds no atoms besides water"),
        (
            [atom(1, "C", "UNK", (0, 0, 0), element="C", b=-1.0)],
            "atom C of residue UNK 1 of .* B-factor of -1 Å².*--b-factor",
        ),
        ([atom(1, "Q", "UNK", (0, 0, 0))], "atom Q of residue UNK 1 of .* is of no known element"),
        (
            [atom(1, "X", "UNK", (0, 0, 0), element="FM")],
            "atoms of Fm, whose electron scattering factor is not tabulated",
        ),
    ],
)
def test_models_that_cannot_be_used(write_pdb, lines, words):
    with pytest.raises(DataError, match=words):
        atomic_model.read(write_pdb(lines))


def test_a_model_is_not_a_model(tmp_path):
    (tmp_path / "a.cif").write_text("nothing of the kind")
    with pytest.raises(DataError, match="a.cif' cannot be read .* give a PDB or mmCIF"):
        atomic_model.read(tmp_path / "a.cif")
    with pytest.raises(DataError, match="b.pdb' does not exist; check the path"):
        atomic_model.read(tmp_path / "b.pdb")


def test_without_gemmi(chain, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    with pytest.raises(
        OptionError, match=r"model.pdb' needs gemmi to be read; pip install 'instamap\[models\]'"
    ):
        atomic_model.read(chain)


def test_poses_of_a_star_file_are_taken(chain, tmp_path):
    source = particle_set.of_model(chain, 32, 2.0)

    def write(name, plan, seed):
        return particle_set.simulate(tmp_path / name, source, plan, Exposure(), seed=seed)

    def make(*words):
        return Particles.open(write(*words).star)

    first = make("first", particle_set.Plan(30), 1)
    star = first.path
    again = make("again", particle_set.Plan(star=star), 2)
    for name in ("rotation", "origin"):
        torch.testing.assert_close(
            getattr(again.views, name), getattr(first.views, name), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(
        again.views.optics.defocus_u, first.views.optics.defocus_u, atol=1e-3, rtol=0
    )
    some = make("some", particle_set.Plan(12, star), 3)
    distance = (some.views.rotation[:, None] - first.views.rotation).flatten(2).norm(dim=-1)
    rows = distance.argmin(1)
    assert distance.amin(1).max() < 1e-5 and rows.tolist() == sorted(set(rows.tolist())) != list(
        range(12)
    )
    with pytest.raises(
        OptionError, match="count is 31, but '.*' has 30 rows; give at most as many"
    ):
        make("more", particle_set.Plan(31, star), 3)


def test_a_star_file_brings_its_microscopes(
    chain, tmp_path, write_star, make_optics, make_particle
):
    optics = [
        make_optics(),
        make_optics(rlnOpticsGroup=2, rlnVoltage=200.0, rlnAmplitudeContrast=0.07),
    ]
    rows = [
        make_particle(
            rlnOpticsGroup=1 + i % 2,
            rlnPhaseShift=30.0 * i,
            rlnCtfBfactor=5.0 * i,
            rlnOriginXAngst=i,
            rlnOriginYAngst=0.0,
        )
        for i in range(4)
    ]
    star = write_star(tmp_path / "poses.star", {"optics": optics, "particles": rows})
    plan = particle_set.Plan(star=star)
    source = particle_set.of_model(chain, 32, 2.0)
    views = Particles.open(
        particle_set.simulate(tmp_path / "set", source, plan, Exposure()).star
    ).views
    assert views.group.tolist() == [0, 1, 0, 1]
    assert views.optics.voltage.tolist() == [300, 200, 300, 200]
    assert views.optics.b_factor.tolist() == [0, 5, 10, 15]
    assert views.origin[:, 0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(
        torch.rad2deg(views.optics.phase_shift), torch.tensor([0.0, 30, 60, 90]).double()
    )


def test_a_map_without_anything_in_it(tmp_path):
    with pytest.raises(DataError, match="does not show in any image"):
        particle_set.simulate(
            tmp_path / "set",
            particle_set.of_map(torch.zeros(16, 16, 16), 2.0),
            particle_set.Plan(2),
            Exposure(),
        )


def test_a_map_is_projected_as_it_is(chain, tmp_path):
    """Nothing is lost between the reader and the truth."""
    mrc.write(tmp_path / "in.mrc", particle_set.of_model(chain, 32, 2.0).density(), 2.0)
    volume, size = mrc.read(tmp_path / "in.mrc")
    written = particle_set.simulate(
        tmp_path / "set",
        particle_set.of_map(volume, size),
        particle_set.Plan(3),
        Exposure(),
    )
    truth = mrcfile.read(tmp_path / "set" / "truth.mrc")
    assert np.abs(truth - written.gain * volume.numpy()).max() < 1e-6 * np.abs(truth).max()
