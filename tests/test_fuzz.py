"""Damaged inputs: every reader reads or refuses each in one line, soon and with little memory.

A few of each here; `python -m benchmarks.reliability.fuzz` tries 10,000 and measures memory too.
"""

import pytest

fuzz = pytest.importorskip(
    "benchmarks.reliability.fuzz",
    reason="benchmarks are imported from the project's root: python -m pytest",
)
FEW = 40
HUNDREDS = 200
SEED = 1


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    fuzz.make_seeds(folder)
    return folder


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_few_damaged_inputs(seeds, reader):
    """In this process, so that a failure can be looked into."""
    rows = fuzz.work(seeds, reader, 0, FEW, SEED, limited=False)
    result = fuzz.summary(reader, rows)
    assert result["inputs"] == FEW and not result["at_fault"], result["at_fault"]


@pytest.mark.parametrize(
    "reader, number",
    [("cryosparc", 1073), ("statistics folder", 3938), ("model, resealed", 6030)],
)
def test_inputs_that_were_at_fault(seeds, reader, number):
    """A header nested too deeply, a number too large for a float, a box of nothing."""
    (row,) = fuzz.work(seeds, reader, number, 1, 0, limited=False)
    assert row["outcome"] in ("read", "refused"), row


@pytest.mark.slow
@pytest.mark.parametrize("reader", fuzz.READERS)
def test_hundreds_of_damaged_inputs(seeds, reader):
    """In processes of their own, of which memory is measured and one may die."""
    result = fuzz.summary(reader, fuzz.fuzz(seeds, reader, HUNDREDS, SEED))
    assert result["inputs"] == HUNDREDS and not result["at_fault"], result["at_fault"]


def test_whole_files_are_read(seeds):
    for name, reader in fuzz.READERS.items():
        for relative in reader.seeds:
            assert fuzz._try(reader, seeds / relative) == {"outcome": "read"}, (name, relative)


def test_what_is_at_fault_is_told(seeds, monkeypatch):
    """A guard that trips: a reader that fails, one that hangs, one that gives bad advice."""

    def hang(path):
        while True:
            pass

    def fail(path):
        raise KeyError(path)

    def talk(path):
        raise fuzz.DataError("give weights_only=False")

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    for read, outcome in ((hang, "hang"), (fail, "traceback"), (talk, "message")):
        monkeypatch.setitem(fuzz.READERS, "states", fuzz.Reader(("z.csv",), read))
        [row] = fuzz.work(seeds, "states", 0, 1, SEED, limited=False)
        assert row["outcome"] == outcome
        assert fuzz.summary("states", [row])["at_fault"] == [row]
