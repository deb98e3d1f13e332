"""Where to believe map and motion: half maps and fields of which it is known where they agree."""

from dataclasses import replace

import pytest
import torch
from support.bending import BOX, PIXEL, motion, shift

from instamap.errors import DataError
from instamap.maps import local_resolution
from instamap.motion import conformation_maps, verdict_map
from instamap.motion.audit import audit, conformations, reference
from instamap.motion.verdict_map import Belief, classify, combine

LATENTS = torch.linspace(-1, 1, 101)[:, None]


def with_audit(*fits):
    made = motion(*fits, latents=LATENTS)
    return made, audit(made, reference(made), conformations(made.latents))


def test_each_voxel_has_the_belief_of_its_numbers():
    """At a local resolution of 10 Å what moves less than 1 Å is at rest."""
    _, found = with_audit([shift(3, 0, 0)], [shift(3, 0, 0)])
    values = {
        # displacement, disagreement, believed, resolved: the belief
        (0.5, 0.2, 0.0, True): Belief.MAP_AT_REST,
        (0.5, 0.2, 1.0, True): Belief.MAP_AT_REST,
        (5.0, 0.2, 1.0, True): Belief.MAP_AND_MOTION,
        (5.0, 4.0, 0.0, True): Belief.MAP_ALONE,
        (0.5, 4.0, 0.0, True): Belief.MAP_ALONE,
        (5.0, 0.2, 1.0, False): Belief.NOTHING,
    }
    rows = torch.tensor(list(values), dtype=torch.float64)
    names = ("displacement", "disagreement", "believed")
    maps = dict(zip(names, rows.T[:3], strict=True))
    resolution = torch.full((len(rows),), 10.0)
    beliefs = classify(resolution, rows[:, 3] > 0, replace(found, maps=maps))
    assert beliefs.tolist() == [float(belief) for belief in values.values()]


def test_what_both_halves_move_alike_is_believed_and_what_they_do_not_is_not():
    """The blob is resolved to 20 Å where it is thin, by far less than the motion's tenfold."""
    made, found = with_audit([shift(6, 0, 0)], [shift(6, 0, 0)])
    alike = combine(made, found)
    made, found = with_audit([shift(6, 0, 0)], [shift(-6, 0, 0)])
    unlike = combine(made, found)
    assert alike.shares[Belief.MAP_AND_MOTION] > 0.9
    assert unlike.shares[Belief.MAP_AND_MOTION] == 0
    assert unlike.shares[Belief.MAP_ALONE] > 0.9
    for verdict in (alike, unlike):
        assert sum(verdict.shares.values()) == pytest.approx(1)
        assert verdict.beliefs.shape == (BOX, BOX, BOX)


def test_half_maps_of_noise_are_not_believed(monkeypatch):
    """Whatever the fields say: the share of noise that is taken for signal is small."""
    made, found = with_audit([shift(3, 0, 0)], [shift(3, 0, 0)])
    generator = torch.Generator().manual_seed(1)
    halves = [torch.randn(BOX, BOX, BOX, generator=generator) for _ in range(2)]
    of_noise = conformation_maps.ConformationMaps(sum(halves) / 2, halves)
    monkeypatch.setattr(conformation_maps, "maps_at", lambda motion, z: of_noise)
    monkeypatch.setattr(conformation_maps, "resolution", lambda motion, maps: 4 * PIXEL)
    verdict = combine(made, found)
    assert verdict.shares[Belief.NOTHING] > 0.9


def test_without_half_maps_there_is_no_verdict():
    made, found = with_audit([shift(3, 0, 0)])
    with pytest.raises(DataError, match="one fit"):
        combine(made, found)


def test_the_local_resolution_is_that_of_the_half_maps():
    made, found = with_audit([shift(3, 0, 0)], [shift(3, 0, 0)])
    verdict = combine(made, found)
    maps = conformation_maps.maps_at(made, torch.tensor(found.reference))
    resolution = conformation_maps.resolution(made, maps)
    bands = local_resolution.choose_bands(BOX, PIXEL, resolution)
    local = local_resolution.estimate(*maps.halves, PIXEL, bands)
    assert torch.equal(verdict.resolution, local.resolution)
    assert torch.equal(verdict.reference, maps.mean)
    assert list(verdict.maps()) == list(verdict_map.NAMES)
