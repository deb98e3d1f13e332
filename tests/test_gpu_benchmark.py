"""The benchmark of cards: without one it says so; its parts run anywhere at a small size."""

import pytest
import torch

WHY = "benchmarks are imported from the project's root: python -m pytest"
gpu = pytest.importorskip("benchmarks.speed.gpu", reason=WHY)

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card, which it would measure")
def test_without_a_card_nothing_is_measured(capsys):
    gpu.main([])
    said = capsys.readouterr().out
    assert said.startswith("nothing was measured: device 'cuda' is not there")
    assert "|" not in said


def test_every_row_can_be_had(monkeypatch):
    """On the CPU: rows of each sort, with their times."""
    monkeypatch.setattr(gpu, "CHUNK", 3)
    rows = gpu.time_encoding(CPU, 50, 1)
    rows.append(gpu.time_spreading(CPU, 12, 1))
    rows.append(gpu.time_steps(CPU, 12, 1))
    rows.append(gpu.time_whole(CPU, 12, 12, 2))
    assert [row["name"] for row in rows] == [
        "encode, torch",
        "spread, 12 px",
        "fit step, 12 px",
        "whole, 12 px",
    ]
    assert all(row["seconds"] > 0 for row in rows)
    lines = gpu.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| encode, torch | 50 points | ")
