"""Particles: the images of a STAR file with their poses and optics, read when asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from instamap.data.formats import star
from instamap.data.preprocess import NOTHING, Preprocess, Preprocessor
from instamap.data.stacks import Stacks
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.scene import Batch, Views

_PIXELS = 1 << 21  # of the images, as they are on disk, that are preprocessed at once
_SAME = 1e-4  # relative difference of pixel sizes that is mere rounding: 0.02 Å across 200 Å


class Particles:
    """Every particle of a STAR file.

    path: the STAR file. count: its rows. box: pixels along an image's edge, pixel_size: Å, both as
    preprocessed. premultiplied: the images were multiplied by their CTF. views: pose and optics of
    all rows (float64; index counts them from 0). half "n": 0 or 1 for rlnRandomSubset 1 or 2, or
    None without that column. ignored: columns that say something which is not modelled. table: what
    the STAR file says. preprocessor: what is done to each image.
    """

    def __init__(self, table: star.StarTable, stacks: Stacks, preprocess: Preprocess = NOTHING):
        self.table = table
        self.stacks = stacks
        self.path = table.path
        self.count = len(table)
        _check_box(table, stacks.box)
        self.preprocessor = Preprocessor(preprocess, stacks.box, _pixel_size(table))
        self.box = self.preprocessor.box
        self.pixel_size = self.preprocessor.pixel_size
        self.premultiplied = _premultiplied(table)
        if self.premultiplied and preprocess.normalise:
            raise DataError(
                f"images of '{table.path}' are premultiplied by their CTF, and so is their"
                " background, whose level then says nothing of the noise; leave out --normalise,"
                " or normalise the images before they are multiplied"
            )
        rotation = rotations.from_euler(*table.angles.unbind(-1))
        self.views = Views(
            rotation, table.origin, torch.arange(self.count), table.group, table.optics
        )
        self.half = _half(table)
        self.ignored = star.unmodelled(table.columns)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        datadir: str | Path | None = None,
        ctf: bool = True,
        preprocess: Preprocess = NOTHING,
    ) -> "Particles":
        """Read the STAR file and look at the header of each stack; no image is read yet.

        datadir: the folder of the stacks where they are not below the STAR file's folder or one of
        its parents. ctf: False takes the images as free of contrast transfer whatever the file
        says. preprocess: done to each image when it is read. Raises DataError, or OptionError where
        the images are too small for that.
        """
        table = star.read(path, ctf=ctf)
        return cls(
            table,
            Stacks(table.image_names, table.path, None if datadir is None else Path(datadir)),
            preprocess,
        )

    def __len__(self) -> int:
        return self.count

    def with_box(self, box: int) -> "Particles":
        """The particles as their file has them, in images scaled to `box` pixels an edge."""
        steps = replace(self.preprocessor.steps, box=box)
        return Particles(self.table, self.stacks, steps)

    def images(self, rows: Tensor) -> Tensor:
        """Images "B D D" [y, x] of `rows` "B", float32, preprocessed. Raises DataError for pixels
        that are not finite, or cannot be.
        """
        if not self.preprocessor.steps:
            return self._read(rows)
        some = rows.split(max(1, _PIXELS // self.stacks.box**2))
        images = torch.cat([self.preprocessor(self._read(each)) for each in some])
        self._check(
            images,
            rows,
            "has a background in which nothing varies, by which it cannot be normalised; remove"
            " that row",
        )
        return images

    def _read(self, rows: Tensor) -> Tensor:
        """Images as they are on disk."""
        images = torch.from_numpy(self.stacks.read(rows.numpy()))
        self._check(
            images,
            rows,
            "has pixels that are not finite; remove that row or extract the image again",
        )
        return images

    def _check(self, images: Tensor, rows: Tensor, reason: str) -> None:
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any():
            raise DataError(f"{self.describe(int(rows[bad][0]))} {reason}")

    def batch(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Batch:
        """Images and views of `rows` "B", in `dtype`. Raises DataError."""
        return Batch(self.images(rows).to(dtype), self.views[rows].to(dtype))

    def describe(self, row: int) -> str:
        """How an error names a particle (from 0): by its row, counted from 1, and its image."""
        row = range(self.count)[row]
        return f"image '{self.table.image_names[row]}' of row {row + 1} of '{self.path}'"

    def groups(self, column: str) -> Tensor:
        """For each row "n" a number from 0 that rows with the same value in `column` share. Raises
        DataError.
        """
        values = self.table.columns.column(column, "name a column that the file has")
        codes, _ = pd.factorize(values)
        if (codes < 0).any():
            row = int((codes < 0).argmax())
            raise DataError(
                f"{column} of row {row + 1} of '{self.path}' has no value; give it one or remove"
                " that row"
            )
        return torch.from_numpy(codes.astype(np.int64))

    def weights(self, column: str) -> Tensor:
        """The factor "n" (float64, at least 0) of each row's log p that `column` holds. Raises
        DataError naming a row that has none.
        """
        remedy = "name a column that the file has"
        words = "a number of at least 0"
        return torch.tensor(
            self.table.columns.numbers(column, remedy=remedy, allowed=lambda v: v >= 0, words=words)
        )

    def units(self, together: str | None = None) -> Tensor:
        """For each row "n" a number, counted from 0 in the rows' order, that rows which must not be
        parted share.

        They are those of one image (symmetry-expanded or joined STAR files list it again and
        again), whose noise would else be found in both halves, and those of one value in column
        `together`; and so on, from row to row. Raises DataError if the column is missing.
        """
        image = torch.from_numpy(self.stacks.identity)
        unit = torch.arange(self.count)
        links = (image,) if together is None else (image, self.groups(together))
        before = None
        while before is None or not torch.equal(unit, before):
            before = unit
            for link in links:  # each row takes the lowest number of those that it is linked to
                unit = unit.new_full((int(link.max()) + 1,), self.count).scatter_reduce(
                    0, link, unit, "amin"
                )[link]
        return torch.from_numpy(pd.factorize(unit.numpy())[0].astype(np.int64))

    def split(self, seed: int, together: str | None = None) -> Tensor:
        """The half, 0 or 1, of each row "n": that of rlnRandomSubset, or else drawn with `seed` so
        that both are equally large.

        Rows that share an image, or a value in column `together` (rlnGroupName, rlnMicrographName,
        ...), get the same half; drawn halves are then as equal as these allow. Raises DataError if
        the column is missing, or rlnRandomSubset parts such rows.
        """
        unit = self.units(together)
        if self.half is not None:
            self._check_images()
            if together is not None:
                self._check_together(self.groups(together), together)
            return self.half
        count = torch.bincount(unit)
        if len(count) < 2:
            what = (
                "one particle"
                if self.count == 1
                else "only one image"
                if together is None
                else f"only one value of {together}"
            )
            raise DataError(
                f"'{self.path}' has {what}, which can't be split into halves; give more or"
                " reconstruct without halves"
            )
        return _balanced(count, seed)[unit]

    def _check_images(self) -> None:
        row = _parted(self.units(), self.half)
        if row is not None:
            raise DataError(
                f"rlnRandomSubset of '{self.path}' has the {self.describe(row)} in both halves,"
                " which would then agree on its noise; give all rows of an image the same subset,"
                " or remove the column rlnRandomSubset to draw halves"
            )

    def _check_together(self, group: Tensor, together: str) -> None:
        row = _parted(group, self.half)
        if row is not None:
            value = self.table.columns.column(together, "")[row]
            raise DataError(
                f"rlnRandomSubset of '{self.path}' has {together} '{value}' in both halves; remove"
                f" the column rlnRandomSubset to draw halves by {together}, or do without keeping"
                " them together"
            )


def _parted(group: Tensor, half: Tensor) -> int | None:
    """The first row "n" whose group is in both halves; None if there is none."""
    ones = torch.bincount(group, weights=half.double())
    parted = (ones > 0) & (ones < torch.bincount(group))
    return int(parted[group].nonzero()[0, 0]) if parted.any() else None


def _balanced(count: Tensor, seed: int) -> Tensor:
    """A half, 0 or 1, for each group of `count` "G" rows: in random order, the largest first, each
    to the smaller half.
    """
    order = torch.randperm(len(count), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(count[order], descending=True, stable=True)]
    half = torch.empty(len(count), dtype=torch.long)
    sizes = [0, 0]
    chosen = []
    for size in count[order].tolist():
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += size
        chosen.append(smaller)
    half[order] = torch.tensor(chosen)
    return half


def _check_box(table: star.StarTable, box: int) -> None:
    if "rlnImageSize" not in table.columns:
        return
    said = table.columns.numbers("rlnImageSize")
    if (said != box).any():
        row = int((said != box).argmax())
        raise DataError(
            f"rlnImageSize of '{table.path}' is {said[row]:g} for row {row + 1}, but the images of"
            f" its stack are {box} pixels wide; use the stacks that were written with this STAR"
            " file"
        )


def _pixel_size(table: star.StarTable) -> float:
    size = table.pixel_size
    first = float(size[0])
    other = (size - size[0]).abs() > _SAME * size[0]
    if other.any():
        raise DataError(
            f"'{table.path}' has images of {first:g} and of {float(size[other][0]):g} Å per pixel; "
            "rescale them to one pixel size, or select the optics groups that share one"
        )
    return first


def _premultiplied(table: star.StarTable) -> bool:
    name = "rlnCtfDataAreCtfPremultiplied"
    flags = table.columns.numbers(
        name, default=0.0, allowed=lambda v: (v == 0) | (v == 1), words="0 or 1"
    )
    if flags.min() != flags.max():
        raise DataError(
            f"{name} of '{table.path}' is 0 for some images and 1 for others; select the optics"
            " groups that share one"
        )
    if flags.any() and table.optics is None:
        raise DataError(
            f"{name} of '{table.path}' is 1, which makes the CTF part of the images; read them with"
            " their CTF"
        )
    return bool(flags.any())


def _half(table: star.StarTable) -> Tensor | None:
    name = "rlnRandomSubset"
    if name not in table.columns:
        return None
    subset = table.columns.numbers(name, allowed=lambda v: (v == 1) | (v == 2), words="1 or 2")
    return torch.from_numpy(subset.astype(np.int64)) - 1
