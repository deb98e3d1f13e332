"""Checkpoints of a fit: whole or absent, plain, and refused where they are not what they should be.

That a fit goes on from them as if it had not been stopped is a law of objectives.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from instamap.errors import DataError, OutputError
from instamap.fitting.checkpoint import Checkpoint, Fitted, Position
from instamap.progress import Evaluation
from instamap.tensor_files import read_npz, write_npz


def checkpoint(**objective) -> Checkpoint:
    weights = {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 2)}
    optimiser = {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"betas": (0.9, 0.999), "foreach": None, "params": [0]}],
    }
    return Checkpoint(
        Position(step=7, stage=2, stage_step=3, since=1, seconds=0.1),
        [Evaluation(5, 1 / 3, math.nan, True, 0.1), Evaluation(7, -0.25, 1e-300, False, 0.2, 2)],
        weights,
        optimiser,
        {"average": weights, "jitter": 0.1, "widened": True, **objective},
        torch.Generator().manual_seed(3).get_state(),
        Fitted(weights, optimiser, torch.ones(2, dtype=torch.float64)),
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        pairs = zip(a, b, strict=True)
        return type(a) is type(b) and all(same(x, y) for x, y in pairs)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "half1.checkpoint"
    checkpoint().save(path)
    assert same(Checkpoint.load(path), checkpoint())
    assert [file.name for file in tmp_path.iterdir()] == ["half1.checkpoint"]


def test_a_later_one_takes_the_place_of_an_earlier(tmp_path):
    path = tmp_path / "half1.checkpoint"
    checkpoint(jitter=0.5).save(path)
    checkpoint(jitter=0.25).save(path)
    assert Checkpoint.load(path).objective["jitter"] == 0.25


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match=r"checkpoint '.*x.npz' does not exist"):
        Checkpoint.load(path)
    checkpoint().save(path)
    whole = path.read_bytes()
    for bad in (b"", b"not a file of arrays", whole[: len(whole) // 2]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="not a whole checkpoint: .* begin the fit anew"):
            Checkpoint.load(path)
    path.write_bytes(whole)
    arrays = read_npz(path)
    write_npz(path, arrays | {"version": np.array(99)})
    with pytest.raises(DataError, match="does not hold a checkpoint of version 3"):
        Checkpoint.load(path)
    for text in ("[" * 10000, "{}", '{"dict": [["position", {"array": 99}]]}', "1e999"):
        write_npz(path, arrays | {"structure": np.array(text)})
        with pytest.raises(DataError, match="does not hold a checkpoint; begin the fit anew"):
            Checkpoint.load(path)
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoint().save(tmp_path / "absent" / "x.npz")


def test_what_is_not_plain_cannot_be_kept(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(TypeError, match="the state of a fit holds a set; keep plain tensors"):
        checkpoint(more={1, 2}).save(path)
    assert not path.exists()
