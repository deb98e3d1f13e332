"""What a report says of whether to believe a motion, of fields that are known."""

import re

import torch
from support.bending import BOX, motion, shift

from instamap.motion import audit as audits
from instamap.report import audit_section

LATENTS = torch.linspace(-1, 1, 101)[:, None]


def test_its_numbers_are_those_of_the_audit():
    made = motion([shift(3, 0, 0)], [shift(3, 0.3, 0)], latents=LATENTS)
    shown = audit_section.section(made)
    found = audits.audit(made, audits.reference(made), audits.conformations(made.latents)[::2])
    assert found.verdict == "to be believed where believed.mrc is 1"
    assert "Verdict: to be believed where the third picture is bright." in shown.html
    assert f"{found.motion_rms:.2f} Å rms" in shown.html
    assert f"correlate by {found.signal:.3f}" in shown.html
    cells = re.findall(r"<td>(.*?)</td>", shown.html)
    assert [float(cell) for cell in cells[::5]] == [
        round(one.displacement_weighted, 2) for one in found.conformations
    ]
    assert shown.html.count("<img") == 3 and "every voxel" in shown.html


def test_of_large_boxes_some_voxels_are_looked_at(monkeypatch):
    made = motion([shift(3, 0, 0)], [shift(3, 0, 0)], latents=LATENTS)
    monkeypatch.setattr(audit_section, "MAX_EDGE", BOX // 2)
    shown = audit_section.section(made)
    assert "one in 2 voxels" in shown.html and "to be believed" in shown.html


def test_of_one_fit_it_says_that_no_other_can_disagree():
    shown = audit_section.section(motion([shift(3, 0, 0)], latents=LATENTS))
    assert "no other can disagree" in shown.html and "correlate" not in shown.html
