"""What benchmarks compute themselves: where an endless fit would have stopped, a mask's share,
density outside a mask, step times, contrast and offset of another program's volumes, coordinates of
true states, two motions and how well they are read off, angles on a circle.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fitting.objective import ObjectiveOptions
from instamap.geometry import grids, rotations
from instamap.maps import mrc
from instamap.simulate import atomic_model, particle_set

WHY = "benchmarks are imported from the project's root: python -m pytest"
cryodrgn = pytest.importorskip("benchmarks.peers.cryodrgn", reason=WHY)
curves = pytest.importorskip("benchmarks.lib.curves", reason=WHY)
atomic_states = pytest.importorskip("benchmarks.lib.atomic_states", reason=WHY)
coming_and_going = pytest.importorskip("benchmarks.lib.coming_and_going", reason=WHY)
composition = pytest.importorskip("benchmarks.accuracy.composition", reason=WHY)
hidden_values = pytest.importorskip("benchmarks.lib.hidden_values", reason=WHY)
igg1d = pytest.importorskip("benchmarks.accuracy.igg1d", reason=WHY)
masks = pytest.importorskip("benchmarks.accuracy.masks", reason=WHY)
motion = pytest.importorskip("benchmarks.peers.motion", reason=WHY)
programs = pytest.importorskip("benchmarks.lib.programs", reason=WHY)
report = pytest.importorskip("benchmarks.lib.report", reason=WHY)
runs = pytest.importorskip("benchmarks.lib.runs", reason=WHY)
sets = pytest.importorskip("benchmarks.lib.sets", reason=WHY)
sizes = pytest.importorskip("benchmarks.speed.sizes", reason=WHY)
still = pytest.importorskip("benchmarks.accuracy.still", reason=WHY)
swinging = pytest.importorskip("benchmarks.lib.swinging", reason=WHY)
two_motions = pytest.importorskip("benchmarks.accuracy.two_motions", reason=WHY)


def _evaluations(*held_out):
    return [
        {"step": 5 * n, "seconds": 0.0, "held_out": value} for n, value in enumerate(held_out, 1)
    ]


def test_a_fit_stops_where_patience_ends():
    options = ObjectiveOptions(patience=2, tolerance=0.0)
    # The fourth and fifth evaluation gain nothing on the third.
    assert curves.stop(_evaluations(1, 2, 3, 3, 2, 9), options) == 5
    assert curves.best(_evaluations(1, 2, 3, 3, 2, 9)[:5])["step"] == 15
    assert curves.stop(_evaluations(1, 2, 3, 4, 5), options) is None


def test_a_fit_stops_at_its_last_step():
    assert curves.stop(_evaluations(1, 2, 3, 4, 5), ObjectiveOptions(steps=15)) == 3


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_share_of_a_mask(share):
    """To the voxels of one layer: a ball of radius 6 has at most 113."""
    whole = (
        (torch.cartesian_prod(*[torch.arange(16.0) - 8] * 3).norm(dim=1) < 6)
        .float()
        .reshape(16, 16, 16)
    )
    part = masks.cut(whole, share)
    assert 0 <= float(part.sum()) - share * float(whole.sum()) < 114
    assert bool((part <= whole).all()) and not float(
        part[..., int(part.sum((0, 1)).nonzero().max()) + 1 :].sum()
    )


def test_density_outside_a_mask_is_found(tmp_path):
    mask = torch.zeros(8, 8, 8)
    mask[2:6] = 1
    mrc.write(tmp_path / "half1.mrc", 3 * mask, 2.0)
    assert masks.outside(tmp_path, mask) == (1, 0.0)
    leak = mask.clone()
    leak[0, 1, 2] = -0.25
    mrc.write(tmp_path / "half2.mrc", leak, 2.0)
    assert masks.outside(tmp_path, mask) == (2, 0.25)


def test_the_time_of_a_step_leaves_out_the_first_evaluation(tmp_path):
    looks = [("half1", 10, 5.0), ("half1", 20, 6.0), ("half2", 10, 1.0), ("half2", 20, 4.0)]
    lines = [
        json.dumps({"fit": name, "step": step, "seconds": seconds}) for name, step, seconds in looks
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert masks.step_ms(tmp_path) == pytest.approx(200)


def test_a_table_of_markdown():
    assert (
        report.markdown(["SET", "AUC"], [["T", 0.5], ["S", None]])
        == "| set | auc |\n| --- | --- |\n| T | 0.5 |\n| S | - |"
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_and_offset_of_a_volume(sign):
    reference = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    correlation, offset = cryodrgn.compare(sign * reference + 5, reference)
    assert correlation == pytest.approx(sign) and offset == [0, 0, 0]
    assert cryodrgn.compare(sign * reference.roll((1, -2, 0), (0, 1, 2)), reference)[1] == [
        1,
        -2,
        0,
    ]


def test_a_coarse_volume_is_enlarged():
    """A wave below both Nyquist frequencies, sampled about the origin at voxel D // 2 of either
    lattice.
    """

    def wave(box):
        return torch.cos(2 * torch.pi * 3 * (torch.arange(box) - box // 2) / box + 0.4).expand(
            box, box, box
        )

    assert torch.allclose(cryodrgn.enlarge(wave(8), 12), wave(12), atol=1e-5)
    assert torch.allclose(cryodrgn.enlarge(wave(8), 8), wave(8), atol=1e-5)


def test_times_of_epochs_are_read():
    line = (
        "INFO # =====> Epoch: {} Average gen loss = 0.65, KLD = 0.07, total loss = 0.66; Finished"
        " in {}\n"
    )
    run = programs.Run(
        0, 0.0, 0.0, None, None, line.format(1, "0:00:43.796433") + line.format(2, "1:01:02.5")
    )
    assert cryodrgn._epochs(run) == [43.796433, 3662.5]
    with pytest.raises(cryodrgn.Failed, match="no time"):
        cryodrgn._epochs(programs.Run(0, 0.0, 0.0, None, None, "Finished in 0:00:54.25"))


def test_a_state_is_at_the_median_of_its_particles():
    latents = torch.tensor([[0.0], [9.0], [1.0], [0.5], [7.0]])
    assert motion.places(latents, torch.tensor([3, 5, 3, 3, 5]), [5, 3]).tolist() == [[8.0], [0.5]]


@pytest.mark.parametrize("name", sets.RECIPES)
def test_recipes_are_words(name):
    """They are split by white space, not by a shell: quotes would reach the tool."""
    assert not set(sets.RECIPES[name]) & set("'\"") and "{data}" in sets.RECIPES[name]


def test_images_are_listed_again_in_poses_of_their_own(tmp_path):
    particle_set.demo(tmp_path / "set", count=5, box=16, pixel_size=3.0)
    before = Particles.open(tmp_path / "set" / "particles.star")
    again = Particles.open(sets.listed(tmp_path / "set", tmp_path / "again", 13) / "particles.star")
    rows = torch.arange(13) % 5
    assert again.stacks.identity.tolist() == rows.tolist()
    assert torch.equal(again.images(torch.tensor([12])), before.images(torch.tensor([2])))
    turns = again.views.rotation @ before.views.rotation[rows].mT
    degrees = torch.rad2deg(rotations.to_rotvec(turns).norm(dim=-1))
    assert float(degrees.min()) > 0
    # Rms of the whole angle is √3 times that about an axis; of 13 it scatters by a sixth.
    assert float(degrees.square().mean().sqrt()) == pytest.approx(3**0.5, rel=0.6)


def test_the_memory_of_a_tree_of_processes():
    """Of two programs that hold 64 MB each at the same time, and of what the first one says."""
    hold = "import sys, time; held = b'x' * (64 << 20); time.sleep(1); sys.exit({})"
    commands = [[sys.executable, "-c", hold.format(code)] for code in (3, 0)]
    run = programs.side_by_side(commands)
    assert run.code == 3
    if run.anonymous is not None:  # a system with /proc
        assert 2 * (64 << 20) < run.anonymous < 4 * (64 << 20)
    with pytest.raises(SystemExit, match="a program failed"):
        programs.succeeded(run)


def test_what_one_image_more_costs():
    few, many = (programs.Run(0, seconds, 2 * seconds, None, None, "") for seconds in (10.0, 12.0))
    assert sizes.slope(few, many, 1000) == pytest.approx({"ms": 2.0, "cpu ms": 4.0})


def test_rows_say_what_is_asked_for():
    ratio = sizes.ratio_row("halves", "seconds", 3.0, 6.0, 0.6)
    assert ratio.cells() == ["halves", "seconds", "3", "6", "0.5", "<= 0.6"]
    gain = sizes.gain_row("halves", "AUC", 0.75, 0.7, 0.03)
    assert gain.cells()[-2:] == ["0.05", ">= 0.03"]
    alone = sizes.ratio_row("halves", "seconds", 3.0, None, None)
    assert alone.cells()[3:] == ["-", "-", "-"]


# Two motions

ATOMS = {  # Å: a body, and two arms that begin beside it
    "R": [(0.0, 0, 0), (6.0, 0, 0), (-6.0, 0, 0), (0.0, -8, 0)],
    "A": [(9.0, 3, 0), (14.0, 9, 2), (19.0, 14, 0)],
    "B": [(-9.0, 3, 0), (-14.0, 9, 0)],
    "C": [(-19.0, 14, 1), (0.0, -12, 3)],  # the last is residue 2
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    gemmi = pytest.importorskip("gemmi", reason="models are read with gemmi")
    structure = gemmi.Structure()
    model = gemmi.Model(1)
    for name, places in ATOMS.items():
        chain = gemmi.Chain(name)
        for i, place in enumerate(
            places, 1
        ):  # B-factors so high that nothing is beyond Nyquist, which would ring all over the image
            residue = gemmi.Residue()
            atom = gemmi.Atom()
            residue.name = "ALA"
            residue.seqid = gemmi.SeqId(str(i))
            atom.name = "CA"
            atom.element = gemmi.Element("C")
            atom.b_iso = 900.0
            atom.occ = 1.0
            atom.pos = gemmi.Position(*place)
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    path = tmp_path_factory.mktemp("model") / "model.pdb"
    structure.write_pdb(str(path))
    return swinging.Recipe(
        path,
        arms=("A", "B,C:1-1"),
        states=3,
        amplitude=30.0,
        count=40,
        box=32,
        pixel=3.0,
        snr=1.0,
        solvent=0.0,
    )


def chosen(path, words) -> list[int]:
    return atomic_states.select_atoms(path, words).nonzero()[:, 0].tolist()


def test_atoms_are_selected_by_chain_and_residues(recipe):
    assert chosen(recipe.model, "A") == [4, 5, 6]
    assert chosen(recipe.model, "B,C:1-1") == [7, 8, 9]
    assert chosen(recipe.model, "A:1-1,A:3-9") == [4, 6]


def test_a_chain_whose_name_is_blank_is_selected(recipe, tmp_path):
    """As in PDB entries of old, and in the open adenylate kinase of the sets."""
    blank = tmp_path / "blank.pdb"
    lines = recipe.model.read_text().splitlines()
    with_name = [line for line in lines if line.startswith("ATOM")]
    without = [f"{line[:21]} {line[22:]}" if line[21] == "A" else line for line in with_name]
    blank.write_text("\n".join([*without, "END", ""]))
    assert chosen(blank, "") == [4, 5, 6] and chosen(blank, ":2-3") == [5, 6]
    assert chosen(blank, ":2-3,B") == [5, 6, 7, 8]


def test_the_open_kinase_is_selected(shared_data):
    """All of its chain's residues; those of the lid are 122 to 159."""
    model = shared_data / "models" / "adk_open.pdb.gz"
    whole = len(chosen(model, ""))
    assert whole == len(atomic_model.read(model)) and 0 < len(chosen(model, ":122-159")) < whole / 4


@pytest.mark.parametrize(
    "words, said",
    [
        ("D", "selects chain 'D', but .*model.pdb' has 'R', 'A', 'B', 'C'"),
        ("A,:1-2", "selects chain '', but .*'R', 'A', 'B', 'C'"),
        ("A:7-9", "selects no residues of chain 'A' of .*, which has 1 to 3"),
    ],
)
def test_what_selects_no_atom_is_refused(recipe, words, said):
    with pytest.raises(DataError, match=said):
        atomic_states.select_atoms(recipe.model, words)


def test_arms_swing_each_for_itself(recipe):
    """An arm keeps its shape and its distance from its hinge, and turns by the angle; nothing else
    moves.
    """
    source = swinging.SwingingArms(recipe, swinging.drawn(recipe))
    assert [arm.atoms.sum().item() for arm in source.arms] == [3, 3]
    before = source.atoms.position
    after = source.positions(torch.tensor([25.0, 0.0], dtype=torch.float64))
    arm = source.arms[0].atoms
    hinge = source.arms[0].hinge
    assert (
        torch.equal(before[~arm], after[~arm])
        and float((before - after)[arm].norm(dim=1).min()) > 1
    )
    torch.testing.assert_close(torch.pdist(after[arm]), torch.pdist(before[arm]))
    torch.testing.assert_close((after[arm] - hinge).norm(dim=1), (before[arm] - hinge).norm(dim=1))
    one, two = (
        (x[arm] - hinge).mean(0) for x in (before, after)
    )  # the arm's middle is at right angles to the axis
    assert float(
        torch.rad2deg(torch.arccos(one @ two / (one.norm() * two.norm())))
    ) == pytest.approx(25.0, abs=1e-6)


def test_images_show_the_atoms_where_they_are(recipe):
    """The middle of an image is that of its own state's atoms in a frame that all states share,
    seen at its pose.
    """
    g = torch.Generator().manual_seed(0)
    angles = swinging.drawn(recipe)
    source = swinging.SwingingArms(recipe, angles)
    origin = 3 * torch.randn(recipe.count, 2, generator=g, dtype=torch.float64)
    rotation = rotations.random(recipe.count, generator=g)
    images = torch.cat(
        [
            source.project_rows(some, rotation[some], origin[some])
            for some in torch.arange(recipe.count).split(15)
        ]
    ).double()
    place = grids.pixel_centres(recipe.box, recipe.pixel, dtype=torch.float64)
    middle = torch.einsum("nyx,yxc->nc", images, place) / images.sum((1, 2))[:, None]
    moved = torch.stack(
        [source.positions(state).mean(0) for state in angles]
    ) - source.atoms.position.mean(0)
    assert len(angles.unique(dim=0)) == 9 and moved.norm(dim=1).max() > 1
    expected = (rotation @ moved[..., None])[:, :2, 0] - origin
    torch.testing.assert_close(middle, expected, atol=0.05, rtol=0)


def test_a_set_of_two_motions_is_complete(recipe, tmp_path):
    swinging.make(recipe, tmp_path / "set")
    particles = Particles.open(tmp_path / "set" / "particles.star")
    angles = np.load(tmp_path / "set" / atomic_states.ANGLES)
    assert len(particles) == len(angles) == recipe.count and set(np.unique(angles)) == {
        -30.0,
        0.0,
        30.0,
    }
    said = sets.describe(tmp_path / "set")
    assert said["arms"] == ["A", "B,C:1-1"] and said["model"] == "model.pdb"


def test_angles_are_read_off_coordinates_that_bend():
    g = torch.Generator().manual_seed(0)
    truth = 45 * (2 * torch.rand(4000, 2, generator=g, dtype=torch.float64) - 1)
    mixed = truth / 45 @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)
    assert hidden_values.explained(mixed, truth) == pytest.approx(
        [1, 1]
    ) and hidden_values.canonical(mixed, truth) == pytest.approx([1, 1])
    root = torch.sign(mixed) * mixed.abs().sqrt()
    assert min(hidden_values.explained(mixed + 0.2 * mixed.square(), truth)) > 0.99
    assert min(hidden_values.explained(root, truth)) > 0.9
    alone = torch.stack([mixed[:, 0], torch.randn(4000, generator=g, dtype=torch.float64)], 1)
    assert hidden_values.explained(alone, truth) == pytest.approx([0.64, 0.36], abs=0.03)
    assert hidden_values.canonical(alone, truth) == pytest.approx([1, 0], abs=0.05)
    assert hidden_values.canonical(0 * mixed, truth) == [0, 0] and hidden_values.explained(
        0 * mixed, truth
    ) == pytest.approx([0, 0], abs=0.01)
    assert hidden_values.canonical(mixed[:, [0, 0]], truth) == pytest.approx([1, 0])


# Parts that come and go


@pytest.fixture
def parts(recipe):
    """One arm comes and goes, an atom does by itself, and the other arm swings."""
    usual = {name: getattr(recipe, name) for name in ("model", "box", "pixel", "solvent")}
    return coming_and_going.Recipe(
        **usual, guests=("A", "C:2-2"), arm="B,C:1-1", states=3, amplitude=30.0, count=40
    )


def test_what_is_absent_leaves_the_others_in_their_places(parts):
    """The middle of an image is that of the atoms that are there, about that of the whole model."""
    g = torch.Generator().manual_seed(1)
    truth = coming_and_going.drawn(parts)
    assert len(truth.present.unique(dim=0)) == 4 and len(truth.angle.unique()) == 3
    still = replace(truth, angle=torch.zeros_like(truth.angle))
    source = coming_and_going.ComingAndGoing(parts, still)
    origin = 3 * torch.randn(parts.count, 2, generator=g, dtype=torch.float64)
    rotation = rotations.random(parts.count, generator=g)
    some = torch.arange(parts.count).split(15)
    images = torch.cat([source.project_rows(rows, rotation[rows], origin[rows]) for rows in some])
    images = images.double()
    place = grids.pixel_centres(parts.box, parts.pixel, dtype=torch.float64)
    total = images.sum((1, 2))
    middle = torch.einsum("nyx,yxc->nc", images, place) / total[:, None]
    position = source.atoms.position - source.atoms.position.mean(0)
    kept = torch.ones(parts.count, len(position), dtype=torch.float64)
    for guest, there in zip(source.guests, truth.present.T, strict=True):
        kept[:, guest] = there[:, None]
    count = kept.sum(1, keepdim=True)
    expected = (rotation @ (kept @ position / count)[..., None])[:, :2, 0] - origin
    torch.testing.assert_close(middle, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(total / total.max(), count[:, 0] / count.max(), atol=0.01, rtol=0)


def test_a_set_of_parts_that_come_and_go_is_complete(parts, tmp_path):
    folder = tmp_path / "set"
    coming_and_going.make(parts, folder)
    present = np.load(folder / coming_and_going.PRESENT)
    assert present.shape == (parts.count, 2) and set(np.unique(present)) == {0.0, 1.0}
    assert set(np.unique(np.load(folder / atomic_states.ANGLES))) == {-30.0, 0.0, 30.0}
    assert sets.describe(folder)["guests"] == ["A", "C:2-2"]


def test_the_area_under_a_receiver_operating_characteristic():
    g = torch.Generator().manual_seed(2)
    present = (torch.rand(20000, generator=g) < 0.3).double()
    auc = hidden_values.auc
    assert auc(present, present) == 1 and auc(-present, present) == 0
    assert auc(torch.zeros(20000), present) == 0.5
    score = 1.5 * present + torch.randn(20000, generator=g)
    # of two normal distributions that are 1.5 standard deviations apart
    expected = torch.special.ndtr(torch.tensor(1.5 / 2**0.5))
    assert auc(score, present) == pytest.approx(float(expected), abs=0.01)


def test_parts_are_paired_with_the_occupancies_that_tell_them():
    present = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert composition.paired(present.flip(1), present) == [1, 1]
    assert composition.paired(present[:, 1:], present) == [0.5, 1]


def test_ranks_correlate_along_any_curve():
    x = torch.linspace(-1, 1, 50)
    assert hidden_values.spearman(x, x**3) == pytest.approx(1)
    assert hidden_values.spearman(x, -x.exp()) == pytest.approx(-1)
    assert hidden_values.spearman(torch.zeros(50), x) == 0
    tied = torch.tensor([1.0, 1.0, 2.0, 3.0])
    # ranks 0.5, 0.5, 2, 3 and 0, 1, 2, 3
    assert hidden_values.spearman(tied, torch.arange(4.0)) == pytest.approx(0.9486832981)


# A motion that is a circle


def test_states_are_spread_over_the_circle():
    assert igg1d.spread_out(100, 20) == list(range(0, 100, 5))
    assert igg1d.spread_out(100, 3) == [0, 33, 66]
    assert igg1d.spread_out(4, 9) == [0, 1, 2, 3]


def test_the_neighbours_of_a_state_are_those_around_the_circle():
    truth = torch.tensor([0, 1, 99, 50, 98])
    z = torch.tensor([[0.0], [4.0], [1.0], [100.0], [100.0]])
    assert igg1d.places(z, truth, [0, 50], 100).tolist() == [[1.0], [100.0]]


def _on_a_circle(wrong):
    """Coordinates of particles on a circle, which err by so many degrees, and their angles."""
    angle = 2 * torch.pi * torch.arange(2000, dtype=torch.float64) / 2000
    there = angle + np.deg2rad(wrong) * torch.randn(
        2000, generator=torch.Generator().manual_seed(0)
    )
    return torch.stack([there.cos(), there.sin()], 1), angle


def test_the_error_of_an_angle_is_read_off_neighbours():
    z, angle = _on_a_circle(0.0)
    assert igg1d.angle_error(z, angle) < 0.5
    assert igg1d.angle_error(-z.flip(1), angle) < 0.5  # the frame of the coordinates is free
    z, angle = _on_a_circle(10.0)
    assert igg1d.angle_error(z, angle) == pytest.approx(0.674 * 10, abs=1.5)  # median of |normal|


def test_coordinates_that_say_nothing_leave_a_quarter_of_the_circle():
    _, angle = _on_a_circle(0.0)
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    assert igg1d.angle_error(z, angle) == pytest.approx(90, abs=8)


def test_what_was_found_on_a_circle_in_words():
    record = {"motion_found": True, "closed": True, "coordinates": 1, "description": "domains"}
    assert igg1d.described(record) == "domains, a circle"
    assert igg1d.described({**record, "closed": False}) == "domains, 1 coordinate(s)"
    assert igg1d.described({**record, "motion_found": False}) == "no motion found"


def test_published_rows_are_not_taken_for_measured_ones():
    rows = [igg1d.row(result) for result in igg1d.published()]
    assert len(rows) == len(igg1d.PUBLISHED)
    assert all(len(row) == len(igg1d.HEAD) and "published" in row[0] for row in rows)
    assert igg1d.row({"set": "T (replica)", "program": "x", "failed": "why"})[-1] == "failed"


def test_what_a_motion_gains_is_the_mean_of_both_halves():
    said = {
        "motion_found": True,
        "agreement": 0.5,
        "fits": {"half1": {"gain_over_rigid": 1.0}, "half2": {"gain_over_rigid": 4.0}},
    }
    assert runs.gains(said) == {"found": True, "gain": 2.5, "agreement": 0.5}


def test_lines_of_runs_that_failed():
    assert still.row({"set": "T", "seed": 0, "failed": "why"})[-1] == "failed"
    assert two_motions.row({"set": "T", "seed": 0, "failed": "why"})[-1] == "failed"
    assert composition.row({"set": "T", "seed": 0, "failed": "why"})[-1] == "failed"


def test_what_is_shown_of_an_audit():
    states = [
        {"displacement_rms": 3.0, "displacement_max": 9.0},
        {"displacement_rms": 4.0, "displacement_max": 5.0},
    ]
    found = still.audited(
        {"states": states, "motion_rms": 2.0, "disagreement_rms": None, "verdict": "so"}
    )
    assert found == {
        "rms": pytest.approx(12.5**0.5),
        "solid": 2.0,
        "most": 9.0,
        "differ": None,
        "verdict": "so",
    }
