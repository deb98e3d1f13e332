"""The curve of a detector's modulation transfer function, as RELION keeps it."""

from pathlib import Path

import numpy as np
import torch

from instamap.data.formats import star_file
from instamap.errors import DataError
from instamap.maps.detector_mtf import DetectorMtf

FREQUENCY = "rlnResolutionInversePixel"
VALUE = "rlnMtfValue"
MIN_VALUE = 1e-10  # of a curve by which components are divided: RELION's


def read_mtf(path: Path) -> DetectorMtf:
    """Reads the first table of a STAR file that has columns rlnResolutionInversePixel and
    rlnMtfValue. Raises DataError for a file without one, and for a curve that cannot be divided by.
    """
    tables = [table for table in star_file.read(path) if FREQUENCY in table.columns]
    if not tables or VALUE not in tables[0].columns:
        raise DataError(
            f"'{path}' has no table with columns {FREQUENCY} and {VALUE}; give the STAR file of a"
            " detector's MTF"
        )
    frequency = tables[0].columns[FREQUENCY].numbers()
    value = tables[0].columns[VALUE].numbers()
    if len(frequency) < 2 or not (np.diff(frequency) > 0).all():
        raise DataError(
            f"{FREQUENCY} of '{path}' does not rise from each of its {len(frequency)} rows to the"
            " next; sort the curve by frequency"
        )
    wrong = ~(value > MIN_VALUE)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{VALUE} in row {row + 1} of '{path}' is {value[row]:g}; it must be above 0, since the"
            " map is divided by it"
        )
    return DetectorMtf(torch.from_numpy(frequency), torch.from_numpy(value))
