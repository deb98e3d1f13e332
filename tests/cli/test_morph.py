"""An atomic model moves with the map: by the known amount, in the map's frame, in both formats; and
the command.
"""

import gemmi
import numpy as np
import pytest
import torch
from support.bending import BOX, PIXEL, motion, save
from support.command import instamap
from support.motions import save_maps

LATENTS = torch.linspace(-1, 1, 101)[:, None]
MIDDLE = BOX // 2 * PIXEL  # where the map's origin is, counted from its first voxel
TURN = [[0.0, -0.2, 0.1], [0.2, 0.0, 0.0], [0.0, 0.1, 0.1]]
PLACES = np.array([[0.0, 0.0, 0.0], [4.125, -3.5, 2.25], [-10.0, 6.0, 1.0]])


def write_model(path, places, ending="pdb"):
    """A chain of alanines' CA at places "P 3", followed by a second model that nobody shall use."""
    structure = gemmi.Structure()
    for number in (1, 2):
        model = gemmi.Model(number)
        chain = gemmi.Chain("A")
        for i, place in enumerate(places, 1):
            residue = gemmi.Residue()
            atom = gemmi.Atom()
            residue.name = "ALA"
            residue.seqid = gemmi.SeqId(str(i))
            atom.name = "CA"
            atom.element = gemmi.Element("C")
            atom.b_iso = 20 + i
            atom.occ = 0.5
            atom.pos = gemmi.Position(*(place + 100 * (number - 1)))
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
        structure.add_model(model)
    structure.setup_entities()
    (
        structure.write_pdb(str(path))
        if ending == "pdb"
        else structure.make_mmcif_document().write_file(str(path))
    )
    return path


def read_models(path) -> np.ndarray:
    """Places "S P 3"."""
    return np.array(
        [
            [site.atom.pos.tolist() for site in model.all()]
            for model in gemmi.read_structure(str(path))
        ]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """u = z (M x + t) in both fits, t a little different: (3, 4 ± 0.5, 0)."""
    made = motion([(TURN, [3, 4.5, 0])], [(TURN, [3, 3.5, 0])], latents=LATENTS)
    return save(made, tmp_path_factory.mktemp("motion") / "run")


def expected(start: float, z: float) -> np.ndarray:
    """(1 + z M)⁻¹ ((1 + start M) y + (start - z) t), t the mean of both fits'."""
    m = np.array(TURN)
    t = np.array([3, 4, 0])
    right = PLACES @ (np.eye(3) + start * m).T + (start - z) * t
    return np.linalg.solve(np.eye(3) + z * m, right.T).T


@pytest.mark.parametrize("ending", ["pdb", "cif"])
def test_atoms_move_by_the_known_amount(run, tmp_path, ending):
    """States 0, 0.5 and -0.8 from a model built at 0. PDB files have three decimals, inverses are
    good to 0.01 Å in the common density.
    """
    model = write_model(tmp_path / f"model.{ending}", PLACES + MIDDLE, ending)
    (tmp_path / "z.csv").write_text("z1\n0\n0.5\n-0.8\n")
    out = tmp_path / f"motion.{ending}"
    done = instamap(
        "morph", run, "--model", model, "-o", out, "--at", tmp_path / "z.csv", "--state", "0"
    )
    assert (
        done.code == 0
        and "3 models" in done.out
        and "outside" not in done.out
        and "followed" not in done.out
    ), done
    found = read_models(out)
    assert np.abs(found[0] - (PLACES + MIDDLE)).max() < 1e-3
    for moved, z in zip(found, (0, 0.5, -0.8), strict=True):
        assert np.abs(moved - MIDDLE - expected(0, z)).max() < 0.03
    again = gemmi.read_structure(str(out))
    assert [model.num for model in again] == [1, 2, 3]
    first = again[2][0][1][0]
    assert (first.name, first.element.name, first.occ) == (
        "CA",
        "C",
        0.5,
    ) and first.b_iso == pytest.approx(22)


def test_a_centred_model_in_another_state(run, tmp_path):
    """The origin is the middle of the box, and the model was built at 0.4."""
    model = write_model(tmp_path / "model.pdb", PLACES)
    done = instamap(
        "morph",
        run,
        "--model",
        model,
        "-o",
        tmp_path / "m.pdb",
        "--states",
        5,
        "--state",
        "0.4",
        "--centred",
    )
    assert done.code == 0 and "5 models" in done.out, done
    ends = np.quantile(LATENTS.numpy(), (0.02, 0.98))
    for moved, z in zip(read_models(tmp_path / "m.pdb"), np.linspace(*ends, 5), strict=True):
        assert np.abs(moved - expected(0.4, z)).max() < 0.03


def test_a_model_that_is_elsewhere_is_said_to_be(run, tmp_path):
    """A centred model without --centred is a corner of the box away: some of it is outside."""
    model = write_model(tmp_path / "model.pdb", PLACES)
    done = instamap("morph", run, "--model", model, "-o", tmp_path / "m.pdb")
    assert (
        done.code == 0
        and "20 models" in done.out
        and "2 atoms are outside the box" in done.out
        and "--centred" in done.out
    )


def test_atoms_that_cannot_be_followed_are_counted(tmp_path):
    """u = -2 z x sends the box to a point at z = 1/2."""
    made = motion([(-2 * torch.eye(3), [0, 0, 0])], latents=LATENTS)
    model = write_model(tmp_path / "model.pdb", PLACES)
    (tmp_path / "z.csv").write_text("0.5\n")
    run = save(made, tmp_path / "run")
    done = instamap(
        "morph",
        run,
        "--model",
        model,
        "-o",
        tmp_path / "m.pdb",
        "--at",
        tmp_path / "z.csv",
        "--centred",
    )
    assert done.code == 0 and "could not be followed" in done.out, done


def test_refusals_leave_nothing_behind(run, tmp_path):
    model = write_model(tmp_path / "model.pdb", PLACES + MIDDLE)
    (tmp_path / "empty.pdb").write_text("END\n")
    (tmp_path / "z.csv").write_text("0\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}

    def call(*words):
        return instamap("morph", *words).refusal

    assert "give a name that ends in .pdb or .cif" in call(
        run, "--model", model, "-o", tmp_path / "m.mrc"
    )
    assert "does not exist" in call(run, "--model", tmp_path / "none.pdb", "-o", tmp_path / "m.pdb")
    assert "holds no atoms" in call(
        run, "--model", tmp_path / "empty.pdb", "-o", tmp_path / "m.pdb"
    )
    assert "holds no motion" in call(tmp_path, "--model", model, "-o", tmp_path / "m.pdb")
    assert "chosen in two ways" in call(
        run, "--model", model, "-o", tmp_path / "m.pdb", "--states", 3, "--at", tmp_path / "z.csv"
    )
    for words in ((), ("--force",)):
        refusal = call(run, "--model", model, "-o", model, *words)
        assert "is one of the files that are read" in refusal
    refusal = call(run, "--model", model, "-o", tmp_path / "empty.pdb")
    assert "empty.pdb' is already there; choose another name or add --force" in refusal
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_anisotropic_b_factors_are_dropped(run, tmp_path):
    """They would have to turn along."""
    model = write_model(tmp_path / "model.pdb", PLACES + MIDDLE)
    structure = gemmi.read_structure(str(model))
    structure[0][0][0][0].aniso = gemmi.SMat33f(0.1, 0.2, 0.3, 0, 0, 0)
    structure.write_pdb(str(model))
    assert "ANISOU" in model.read_text()
    assert (
        instamap("morph", run, "--model", model, "-o", tmp_path / "m.pdb", "--states", 2).code == 0
    )
    assert "ANISOU" not in (tmp_path / "m.pdb").read_text()


def test_states_with_maps_of_their_own_move_no_atoms(tmp_path):
    save_maps(tmp_path / "run", tmp_path / "gone.star", LATENTS.double())
    model = write_model(tmp_path / "model.pdb", PLACES + MIDDLE)
    said = instamap("morph", tmp_path / "run", "--model", model, "-o", tmp_path / "m.pdb").refusal
    assert (
        "each conformation has a map of its own (--deform subspace) and nothing bends" in said
        and "`instamap states`" in said
    )
    assert not (tmp_path / "m.pdb").exists()
