"""The audit of motions with known fields: displacement, determinant, strain, what halves share; and
the command.
"""

import json
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
from support.bending import BOX, PIXEL, motion, save, shift
from support.command import instamap, maps
from support.motions import save_maps

from instamap.errors import DataError
from instamap.geometry import grids, strain
from instamap.motion.audit import MAPS, audit, conformations, lattice, reference, solid
from instamap.motion.domains import Domains, Placement
from instamap.motion.motion_model import MotionModel
from instamap.motion.verdict_map import NAMES

LATENTS = torch.linspace(-1, 1, 101)[:, None]
TURN = [[0.0, -0.2, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 0.1]]


def audited(*fits, **more):
    made = motion(*fits, latents=LATENTS, **more)
    return audit(made, reference(made), conformations(made.latents))


def test_a_translation_moves_everything_as_far_and_strains_nothing():
    """u = z t moves the material of z = 0 by -z t in state z, nine of which lie between -0.9 and
    0.9.
    """
    found = audited([shift(3, 4, 0)], [shift(3, 4, 0)])
    z = torch.linspace(-0.9, 0.9, 9)
    assert [s.z[0] for s in found.conformations] == pytest.approx(z.tolist(), abs=1e-6)
    for s, at in zip(found.conformations, z, strict=True):
        far = pytest.approx(5 * abs(float(at)), abs=0.01)
        assert (
            s.displacement_rms == far
            and s.displacement_max == far
            and s.displacement_weighted == far
        )
        assert s.jacobian_min == pytest.approx(1, abs=1e-4) and s.jacobian_p1 == pytest.approx(
            1, abs=1e-4
        )
        assert s.folded == 0 and s.lost == 0 and s.inverse_error < 0.01 and s.strain_rms < 1e-4
    assert found.motion_rms == pytest.approx(5 * float(z.square().mean().sqrt()), abs=0.01)
    assert found.disagreement_rms == 0 and found.signal == pytest.approx(1) and found.believed == 1
    assert found.verdict.startswith("to be believed") and "fold" not in found.verdict


def test_a_linear_field_has_the_determinant_and_strain_of_its_matrix():
    """u = z M x: det(1 + z M), and from z = 0 to z the motion's F = (1 + z M)⁻¹, the same
    everywhere.
    """
    found = audited([(TURN, [0, 0, 0])], [(TURN, [0, 0, 0])])
    one = torch.eye(3)
    m = torch.tensor(TURN)
    for s in found.conformations:
        pull = one + s.z[0] * m
        assert s.jacobian_min == pytest.approx(float(torch.linalg.det(pull)), abs=1e-4)
        assert s.strain_rms == pytest.approx(
            float(strain.green_lagrange(torch.linalg.inv(pull)).norm()), abs=1e-4
        )
    least = min(float(torch.linalg.det(one + s.z[0] * m)) for s in found.conformations)
    jacobian = found.maps["jacobian"]
    assert float(jacobian.min()) == pytest.approx(least, abs=1e-4) and float(jacobian[0, 0, 0]) == 1


@pytest.mark.parametrize("every", [2, 3])
def test_fewer_voxels_say_the_same_where_they_are(every):
    """Whatever the field: a voxel's numbers are its own."""
    made = motion([(TURN, [3, 0, 0])], [(TURN, [2, 1, 0])], latents=LATENTS)
    places = conformations(made.latents)
    whole = audit(made, reference(made), places)
    fewer = audit(made, reference(made), places, every=every)
    for name in MAPS:
        here = lattice(fewer.maps[name], every)
        assert torch.allclose(here, lattice(whole.maps[name], every), atol=1e-5)
        assert float(here.abs().sum()) == pytest.approx(
            float(fewer.maps[name].abs().sum() - (name == "jacobian") * (BOX**3 - here.numel())),
            rel=1e-4,
        )
    assert fewer.motion_rms == pytest.approx(whole.motion_rms, rel=0.1)


def test_a_rigid_turn_strains_nothing():
    """u = (R - 1) x at z = 1, seen from z = 0: a turn by 80 degrees, which a fixed point iteration
    would not find back.
    """
    c = np.cos(np.radians(80))
    s = np.sin(np.radians(80))
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    made = motion([(turn - torch.eye(3), [0, 0, 0])], latents=LATENTS)
    [state] = audit(made, torch.zeros(1), torch.ones(1, 1)).conformations
    # The corners of what is in the mask turn inside the box, but for float32 and the finite
    # differences there is no strain.
    assert (
        state.strain_rms < 1e-3
        and state.jacobian_min == pytest.approx(1, abs=1e-3)
        and state.lost == 0
    )
    assert state.displacement_max == pytest.approx(
        2 * np.sin(np.radians(40)) * state_radius(made), rel=0.02
    )


def state_radius(made) -> float:
    """Largest distance (Å) of a voxel of the mask from the axis z."""
    x = grids.voxel_centres(BOX, PIXEL).reshape(-1, 3)
    return float(x[made.halves[0].model.window(x) > 0.5][:, :2].norm(dim=1).max())


def test_the_fits_own_common_densities_do_not_count():
    """The second fit's coordinates are 0.4 on, so its common density lies elsewhere; the motion
    between states is the same.
    """
    found = audited([shift(0, 0, 6)], [shift(0, 0, 6)], offsets=(0.0, 0.4))
    assert (
        found.disagreement_rms == pytest.approx(0, abs=1e-4)
        and found.signal == pytest.approx(1, abs=1e-6)
        and found.believed == 1
    )


def test_halves_that_move_in_other_directions_are_not_believed():
    """t at right angles: nothing is shared, |d₁ - d₂| = √2 |t| is twice the mean's |t| / √2."""
    found = audited([shift(4, 0, 0)], [shift(0, 4, 0)])
    assert (
        found.signal == pytest.approx(0, abs=1e-6)
        and found.believed == 0
        and not found.maps["believed"].any()
    )
    assert found.disagreement_rms == pytest.approx(2 * found.motion_rms, rel=1e-3)
    assert found.verdict.startswith("not to be believed")


def test_opposite_halves_are_not_believed():
    found = audited([shift(4, 0, 0)], [shift(-4, 0, 0)])
    assert (
        found.signal == pytest.approx(-1, abs=1e-6)
        and found.motion_rms < 1e-3
        and found.believed in (0, None)
    )
    assert found.verdict.startswith("not to be believed")


def test_belief_is_decided_voxel_by_voxel():
    """u_h = z (1.5 ± 0.06 x, 0, 0) carries y to x_h = (y - 1.5 z)/(1 ± 0.06 z): fits differ the
    more, the further from the plane y = 0.
    """
    grow = [[0.06, 0, 0], [0, 0, 0], [0, 0, 0]]
    shrink = [[-0.06, 0, 0], [0, 0, 0], [0, 0, 0]]
    found = audited([(grow, [1.5, 0, 0])], [(shrink, [1.5, 0, 0])])
    y = grids.voxel_centres(BOX, PIXEL, dtype=torch.float64)[..., 0]
    d = torch.stack(
        [
            torch.stack([(y - 1.5 * s.z[0]) / (1 + a * s.z[0]) - y for s in found.conformations])
            for a in (0.06, -0.06)
        ]
    )
    apart = (d[0] - d[1]).square().mean(0).sqrt()
    mean = d.mean(0).square().mean(0).sqrt()
    inside = found.maps["displacement"] > 0
    assert torch.allclose(found.maps["displacement"][inside].double(), mean[inside], atol=0.02)
    assert torch.allclose(found.maps["disagreement"][inside].double(), apart[inside], atol=0.02)
    sure = inside & ((apart - 0.5 * mean).abs() > 0.02)
    assert torch.equal(found.maps["believed"][sure] > 0, (apart < 0.5 * mean)[sure])
    assert 0 < found.believed < 1 and 0.5 < found.signal < 1
    assert (
        not found.maps["believed"][~inside].any() and not found.maps["displacement"][~inside].any()
    )


def test_space_that_folds_is_said():
    """u = -2 z x: det (1 - 2z)³ is below zero where z > 1/2; at z = 0.9 and 0.675 all of the mask
    is turned inside out.
    """
    minus = (-2 * torch.eye(3), [0, 0, 0])
    found = audited([minus], [minus])
    assert [s.folded for s in found.conformations] == [
        1.0 if s.z[0] > 0.5 else 0.0 for s in found.conformations
    ]
    assert float(found.maps["jacobian"].min()) == pytest.approx(-(0.8**3), abs=1e-3)
    assert "folds" in found.verdict


def parting(way: float) -> MotionModel:
    """Two balls along x, one of which is `way` (Å) further off at z = 1."""
    x = grids.voxel_centres(BOX, PIXEL)
    places = torch.tensor([[-18.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    distance = torch.stack([(x - place).norm(dim=-1) for place in places])
    masks = (distance < 9.0).float()
    densities = torch.exp(-0.5 * (distance / 4).square()) * masks
    placed = torch.zeros(2, 2, 3)
    placed[1, 1, 0] = way
    turn = torch.eye(3).expand(2, 2, 3, 3).contiguous()
    nodes = torch.tensor([[0.0], [1.0]])
    domains = Domains(masks, nodes, Placement(turn, placed), PIXEL)
    one = motion([shift(0, 0, 0)], latents=LATENTS).halves[0]
    half = replace(one, domains=domains, densities=densities, nodes=nodes)
    return MotionModel([half, half], LATENTS.double(), {})


def test_solvent_that_domains_pass_through_is_no_fold():
    """Between balls that part by 16 Å what is nearer to the second is looked up 16 Å back: the same
    solvent again, turned inside out where one goes over into the other. No density is there.
    """
    found = audit(parting(16.0), torch.zeros(1), torch.ones(1, 1))
    [state] = found.conformations
    assert state.jacobian_min < 0 and found.maps["jacobian"].min() < 0
    assert state.folded == 0 and "fold" not in found.verdict


def test_what_cannot_be_followed_is_counted_and_left_out():
    """At z = 1/2 the same field sends all of the box to one point: nothing can be found there, and
    no displacement is made up.
    """
    minus = (-2 * torch.eye(3), [0, 0, 0])
    made = motion([minus], [minus], latents=LATENTS)
    state = audit(made, torch.zeros(1), torch.tensor([[0.5]])).conformations[0]
    assert state.lost > 0.9 and state.inverse_error > PIXEL and state.folded > 0.3
    both = audit(made, torch.zeros(1), torch.tensor([[0.25], [0.5]]))
    rest = audit(made, torch.zeros(1), torch.tensor([[0.25]]))
    assert (
        both.motion_rms > 0.95 * rest.motion_rms
    )  # as zeros, what is lost would have made it 0.7 of that


def test_one_fit_is_no_evidence():
    found = audited([shift(3, 0, 0)])
    assert found.disagreement_rms is None and found.signal is None and found.believed is None
    assert found.verdict.startswith("unknown") and not found.maps["believed"].any()


def test_no_motion_is_said():
    found = audited([shift(0, 0, 0)], [shift(0, 0, 0)])
    assert (
        found.motion_rms == 0 and found.signal is None and found.verdict.startswith("nothing moves")
    )
    made = motion([shift(9, 0, 0)], [shift(9, 0, 0)], latents=torch.zeros(7, 1))
    assert conformations(made.latents).tolist() == [[0.0]]
    assert audit(made, reference(made), conformations(made.latents)).verdict.startswith(
        "nothing moves"
    )


def test_only_what_is_solid_in_both_fits_counts():
    near, far = (
        motion([shift(1, 0, 0)], latents=LATENTS, centre=c).halves[0]
        for c in ((0.0, 0.0, 0.0), (20.0, 0.0, 0.0))
    )
    weight = solid([near, far], torch.zeros(1))
    one = solid([near], torch.zeros(1))
    other = solid([far], torch.zeros(1))
    assert torch.equal(weight, torch.minimum(one, other))
    x = grids.voxel_centres(BOX, PIXEL)
    # A quarter of the way up from the median: the blob (σ = 10 Å) is at exp(-r²/2σ²) > 0.2 or so
    # there, r < 18 Å.
    assert one[x.norm(dim=-1) < 10].min() > 0 and one[x.norm(dim=-1) > 24].max() == 0
    empty = motion([shift(1, 0, 0)], latents=LATENTS).halves[0]
    with torch.no_grad():
        empty.model.representation.values.zero_()
    with pytest.raises(DataError, match="flat"):
        solid([empty], torch.zeros(1))


def test_states_of_several_coordinates_lie_where_particles_are():
    latents = torch.randn(
        2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ) * torch.tensor([1.0, 2.0, 0.5])
    z = conformations(latents)
    assert z.shape == (6, 3)
    assert torch.cdist(z, latents).amin(1).max() < 0.5
    for axis, spread in enumerate((1.0, 2.0, 0.5)):
        assert z[:, axis].max() == pytest.approx(1.5 * spread, rel=0.2) and z[
            :, axis
        ].min() == pytest.approx(-1.5 * spread, rel=0.2)
    made = motion(
        [shift(2, 0, 0), shift(0, 2, 0)],
        [shift(2, 0, 0), shift(0, 2, 0)],
        latents=latents[:, :2].float(),
    )
    found = audit(made, reference(made), conformations(made.latents))
    for s in found.conformations:
        moved = 2 * np.hypot(*(np.array(s.z) - np.array(found.reference)))
        assert s.displacement_max == pytest.approx(moved, abs=0.01)


def test_the_command_writes_maps_numbers_and_a_picture(tmp_path):
    run = save(motion([shift(3, 0, 0)], [shift(3, 0.3, 0)], latents=LATENTS), tmp_path / "run")
    done = instamap("audit", run, "-o", tmp_path / "audit")
    assert done.code == 0 and "to be believed" in done.out, done
    written = maps(tmp_path / "audit")
    assert written.keys() == {*MAPS, *NAMES}
    assert all(mrcfile.validate(file) for file in (tmp_path / "audit").glob("*.mrc"))
    with mrcfile.open(tmp_path / "audit" / "displacement.mrc") as file:
        assert float(file.voxel_size.x) == PIXEL
    said = json.loads((tmp_path / "audit" / "audit.json").read_text())
    # The fits' shifts differ by 0.3 Å, a tenth of the motion; their mean is (3, 0.15, 0).
    assert said["disagreement_rms"] == pytest.approx(
        0.1 * 3 * np.sqrt(np.mean(np.linspace(-0.9, 0.9, 9) ** 2)), rel=0.02
    )
    assert float(written["displacement"].max()) == pytest.approx(said["motion_rms"], rel=1e-3)
    assert (
        len(said["states"]) == 9
        and said["believed"] == 1
        and said["inverse_error"] < 0.01
        and said["lost"] == 0
    )
    assert sum(said["voxels"].values()) == pytest.approx(1, abs=1e-3)
    assert said["voxels"]["map_and_motion"] > 0.5 and "the map and its motion" in done.out
    assert (tmp_path / "audit" / "audit.png").read_bytes().startswith(b"\x89PNG")
    before = sorted(tmp_path.rglob("*"))
    assert "already holds an audit" in instamap("audit", run, "-o", tmp_path / "audit").refusal
    assert "holds a run" in instamap("audit", run, "-o", run, "--force").refusal
    assert "holds no motion" in instamap("audit", tmp_path, "-o", tmp_path / "more").refusal
    assert (
        "give 1 number" in instamap("audit", run, "-o", tmp_path / "more", "--state", "0,1").refusal
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert instamap("audit", run, "-o", tmp_path / "audit", "--force", "--state", "-0.9").code == 0
    said = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert said["reference"] == [-0.9] and said["states"][-1]["displacement_max"] == pytest.approx(
        1.8 * np.hypot(3, 0.15), abs=0.02
    )


def test_states_with_maps_of_their_own_have_no_displacements(tmp_path):
    save_maps(tmp_path / "run", tmp_path / "gone.star", LATENTS.double())
    said = instamap("audit", tmp_path / "run", "-o", tmp_path / "audit").refusal
    assert (
        "each conformation has a map of its own (--deform subspace) and nothing bends" in said
        and "`instamap states`" in said
    )
    assert not (tmp_path / "audit").exists()


def test_a_file_is_no_folder(tmp_path):
    run = save(motion([shift(3, 0, 0)], latents=LATENTS), tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    assert (
        f"output '{tmp_path / 'file'}' is a file; name a folder"
        in instamap("audit", run, "-o", tmp_path / "file").refusal
    )
