"""Particles: images with their poses and optics, read when asked for."""

import functools
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import formats, lattices, phase_flip, splits
from instamap.data.checks import repeated_images
from instamap.data.checks.image_values import Inspector
from instamap.data.lattices import Lattice, Resampler
from instamap.data.particle_table import ParticleTable
from instamap.data.preprocess import NOTHING, Preprocess, Preprocessor
from instamap.data.stacks import Stacks
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import DataError
from instamap.scene import Batch, ContrastFactors, Views

_PIXELS_AT_ONCE = 1 << 21  # of the images, as they are on disk, that are preprocessed at once
# relative difference of pixel sizes that is mere rounding: 0.02 Å across 200 Å
_PIXEL_SIZE_ROUNDING = 1e-4


class Particles:
    """Every particle of a file.

    path: the file. count: its rows. box: pixels along an image's edge, pixel_size: Å, both as
    preprocessed. premultiplied: the images were multiplied by their CTF. views: pose and optics of
    all rows (float64; index counts them from 0). half "n": the half set, 0 or 1, that the file
    gives, or None. ignored: columns that say something which is not modelled. table: what the file
    says. lattices: boxes and pixel sizes of the images on disk; lattice: the one that they are
    brought to, if there are several. preprocessor: what is done to each image then. inspector: what
    measures each that is read.
    """

    def __init__(
        self,
        table: ParticleTable,
        stacks: Stacks,
        preprocess: Preprocess = NOTHING,
        contrast: ContrastFactors | None = None,
    ) -> None:
        self.table = table
        self.stacks = stacks
        self.path = table.path
        self.count = len(table)
        boxes = torch.from_numpy(stacks.boxes)
        _check_boxes(table, boxes)
        self.lattices, self._lattice = _lattices(table, boxes)
        self.lattice = lattices.common(self.lattices)
        self._resamplers = [Resampler(before, self.lattice) for before in self.lattices]
        self.preprocessor = Preprocessor(preprocess, self.lattice.box, self.lattice.pixel_size)
        self.box = self.preprocessor.box
        self.pixel_size = self.preprocessor.pixel_size
        self.premultiplied = table.premultiplied
        if self.premultiplied and preprocess.normalise:
            raise DataError(
                f"images of '{table.path}' are premultiplied by their CTF, and so is their"
                " background, whose level then says nothing of the noise; leave out --normalise,"
                " or normalise the images before they are multiplied"
            )
        index = torch.arange(self.count)
        self.views = Views(table.rotation, table.origin, index, table.group, table.optics, contrast)
        self.half = table.half
        self.inspector: Inspector | None = None
        self.ignored = list(table.ignored)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        datadir: str | Path | None = None,
        ctf: bool = True,
        preprocess: Preprocess = NOTHING,
    ) -> "Particles":
        """Read the file and look at the header of each stack; no image is read yet.

        datadir: the folder of the stacks where they are not below the file's folder or one of its
        parents. ctf: False takes the images as free of contrast transfer whatever the file says.
        preprocess: done to each image when it is read. Raises DataError, or OptionError where the
        images are too small for that.
        """
        folder = None if datadir is None else Path(datadir)
        table = formats.read(path, ctf=ctf, datadir=folder)
        return cls(table, Stacks(table.image_names, table.path, folder), preprocess)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return (
            f"<Particles '{self.path}': {self.count} images of {self.box} px of"
            f" {self.pixel_size:.4g} Å>"
        )

    def with_box(self, box: int) -> "Particles":
        """The particles as their file has them, in images scaled to `box` pixels an edge."""
        steps = replace(self.preprocessor.steps, box=box)
        return Particles(self.table, self.stacks, steps, self.contrast)

    @property
    def contrast(self) -> ContrastFactors | None:
        """The factors of the signal of all rows; None where they are 1."""
        return self.views.contrast

    def with_contrast(self, contrast: ContrastFactors) -> "Particles":
        """The same particles, whose images have these factors of the signal."""
        changed = copy(self)
        changed.views = replace(self.views, contrast=contrast)
        return changed

    def expanded(self, expansion: Expansion) -> "Particles":
        """The particles with a row for each copy of each: see `symmetry_expansion`. Images, and
        what is known of them, are the same for all copies.
        """
        source = expansion.source_rows(self.count)
        contrast = None if self.contrast is None else self.contrast[source]
        table = expansion.table(self.table)
        stacks = self.stacks.take(source.numpy())
        expanded = Particles(table, stacks, self.preprocessor.steps, contrast)
        expanded.same_pixels = self.same_pixels[source]
        return expanded

    def images(self, rows: Tensor) -> Tensor:
        """Images "B D D" [y, x] of `rows` "B", float32, preprocessed. Raises DataError for pixels
        that are not finite, or cannot be.
        """
        images = self._preprocessed(rows)
        if self.inspector is not None:
            self.inspector.inspect(rows, images)
        return images

    def _preprocessed(self, rows: Tensor) -> Tensor:
        if not self.preprocessor.steps:
            return self._read(rows)
        chunks = rows.split(max(1, _PIXELS_AT_ONCE // self.stacks.box**2))
        images = torch.cat([self.preprocessor(self._read(chunk)) for chunk in chunks])
        self._check_normalised(images, rows)
        return images

    def _read(self, rows: Tensor) -> Tensor:
        """Images as they are on disk, but on one lattice, with protein white and no phase
        flipped.
        """
        if len(self.lattices) == 1:
            return self._read_one_lattice(rows, 0)
        number = self._lattice[rows]
        images = torch.empty(len(rows), self.lattice.box, self.lattice.box)
        for place in number.unique().tolist():
            chosen = number == place
            read = self._read_one_lattice(rows[chosen], place)
            images[chosen] = self._resamplers[place](read)
        return images

    def _read_one_lattice(self, rows: Tensor, lattice: int) -> Tensor:
        """Images of one lattice as they are on disk, but protein is white and no phase flipped."""
        images = torch.from_numpy(self.stacks.read(rows.numpy()))
        if self.table.sign is not None:
            images = images * self.table.sign[rows, None, None].to(images)
        return self._without_phase_flips(images, rows, self.lattices[lattice].pixel_size)

    def _without_phase_flips(self, images: Tensor, rows: Tensor, pixel_size: float) -> Tensor:
        """Images as they were before some of them were phase-flipped."""
        optics = self.views.optics
        if self.table.phase_flipped is None or optics is None:
            return images
        flipped = self.table.phase_flipped[rows]
        before = phase_flip.undo(images[flipped], optics[rows[flipped]], pixel_size)
        images = images.clone()
        images[flipped] = before
        return images

    @property
    def lattice_change(self) -> str | None:
        """How images of several lattices are brought to one, in words; None if they have one."""
        if len(self.lattices) == 1:
            return None
        each = " and ".join(str(lattice) for lattice in self.lattices)
        return f"optics groups of {each} are brought to {self.lattice}"

    def _check_normalised(self, images: Tensor, rows: Tensor) -> None:
        finite = images.isfinite().flatten(1).all(1)
        if not finite.all():
            row = int(rows[~finite][0])
            raise DataError(
                f"{self.describe(row)} has a background in which nothing varies, by which it cannot"
                " be normalised; remove that row"
            )

    def batch(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Batch:
        """Images and views of `rows` "B", in `dtype`. Raises DataError."""
        images = self.images(rows).to(dtype)
        return Batch(images, self.views[rows].to(dtype))

    def describe(self, row: int) -> str:
        """How an error names a particle (from 0): by its row, counted from 1, and its image."""
        row = range(self.count)[row]
        return f"image '{self.table.image_names[row]}' of row {row + 1} of '{self.path}'"

    def groups(self, column: str) -> Tensor:
        """For each row "n" a number from 0 that rows with the same value in `column` share. Raises
        DataError.
        """
        keys = self.table.columns.keys(column)
        if None in keys:
            raise DataError(
                f"{column} of row {keys.index(None) + 1} of '{self.path}' has no value; give it one"
                " or remove that row"
            )
        return splits.group_numbers(keys)

    def particle_numbers(self, group_by: str | None = None) -> Tensor:
        """For each row "n" the number, from 0, of the particle that it shows: one for all rows with
        the same value in column `group_by`; without it as the file has it, or else each its own.
        Copies by symmetry are particles of their own. Raises DataError if the column is missing.
        """
        if group_by is not None:
            return self._copy_by_copy(self.groups(group_by))
        if self.table.particle is not None:
            return self.table.particle
        return torch.arange(self.count)

    def _copy_by_copy(self, number: Tensor) -> Tensor:
        """Numbers "n", in which copies of a particle have numbers of their own."""
        copy = self.table.copy
        return number if copy is None else number * (int(copy.max()) + 1) + copy

    def weights(self, column: str) -> Tensor:
        """The factor "n" (float64, at least 0) of each row's log p that `column` holds. Raises
        DataError naming a row that has none.
        """
        values = self.table.columns.numbers(
            column, allowed=lambda v: v >= 0, words="a number of at least 0"
        )
        return torch.tensor(values)

    @functools.cached_property
    def same_pixels(self) -> Tensor:
        """For each row "n" a number that it shares with rows of the same image, under any name."""
        return torch.from_numpy(repeated_images.same_pixels(self.stacks))

    def image_numbers(self) -> Tensor:
        """For each row "n" a number, from 0 in the rows' order, that copies of an image share."""
        return splits.exclusive_groups([self.same_pixels])

    def exclusive_groups(self, group_by: str | None = None) -> Tensor:
        """For each row "n" a number, counted from 0 in the rows' order, that rows which must not be
        parted share.

        They are those of one image (symmetry-expanded or joined files list it again and again, or
        under several names), whose noise would else be found in both halves, and those of one
        value in column `group_by` or, without it, of one particle where the file lists several
        images of each; and so on, from row to row. Raises DataError if the column is missing.
        """
        links = [self.same_pixels]
        if group_by is not None or self.table.particle is not None:
            links.append(self.particle_numbers(group_by))
        return splits.exclusive_groups(links)

    def split(self, seed: int, group_by: str | None = None) -> Tensor:
        """The half, 0 or 1, of each row "n": the file's own, or else drawn with `seed` so that both
        are equally large.

        Rows that share an image, or a value in column `group_by` (rlnGroupName, rlnMicrographName,
        ...), get the same half; drawn halves are then as equal as these allow. Raises DataError if
        the column is missing, or the file's halves part such rows.
        """
        group = self.exclusive_groups(group_by)
        if self.half is not None:
            self._check_images_in_one_half(self.half)
            if group_by is not None:
                self._check_groups_in_one_half(self.half, group_by)
            return self.half
        if int(group.max()) == 0:
            raise DataError(
                f"'{self.path}' has {self._only_one(group_by)}, which can't be split into halves;"
                " give more or reconstruct without halves"
            )
        return splits.balanced_halves(group, seed)

    def _only_one(self, group_by: str | None) -> str:
        is_one_particle = self.table.particle is not None and group_by is None
        if self.count == 1 or is_one_particle:
            return "one particle"
        return "only one image" if group_by is None else f"only one value of {group_by}"

    def _check_images_in_one_half(self, half: Tensor) -> None:
        name = self.table.terms["half"]
        identity = torch.from_numpy(self.stacks.identity)
        copies = repeated_images.parted(self.same_pixels, identity, half)
        if copies:
            raise DataError(
                f"{name} of '{self.path}' has the same pixels under two names in both halves,"
                f" {copies}, which would then agree on their noise; remove the copies, or the"
                f" column {name} to draw halves"
            )
        row = splits.parted_row(self.image_numbers(), half)
        if row is not None:
            raise DataError(
                f"{name} of '{self.path}' has the {self.describe(row)} in both halves, which would"
                " then agree on its noise; give all rows of an image the same subset, or remove the"
                f" column {name} to draw halves"
            )

    def _check_groups_in_one_half(self, half: Tensor, group_by: str) -> None:
        row = splits.parted_row(self.groups(group_by), half)
        if row is not None:
            name = self.table.terms["half"]
            value = self.table.columns.texts(group_by)[row]
            raise DataError(
                f"{name} of '{self.path}' has {group_by} '{value}' in both halves; remove the"
                f" column {name} to draw halves by {group_by}, or do without keeping them together"
            )


def _check_boxes(table: ParticleTable, boxes: Tensor) -> None:
    """Refuse optics groups of images of several sizes, and images that are not of the size that the
    file says.
    """
    if (boxes != boxes[0]).any():
        _check_boxes_of_groups(table, boxes)
    if table.box is None:
        return
    other = table.box != boxes
    if other.any():
        row = int(other.nonzero()[0, 0])
        raise DataError(
            f"{table.terms['box']} of '{table.path}' is {float(table.box[row]):g} for row"
            f" {row + 1}, but the images of its stack are {int(boxes[row])} pixels wide; use the"
            " stacks that were written with this STAR file"
        )


def _check_boxes_of_groups(table: ParticleTable, boxes: Tensor) -> None:
    for group in table.group.unique().tolist():
        rows = (table.group == group).nonzero()[:, 0]
        box = int(boxes[rows[0]])
        other = boxes[rows] != box
        if other.any():
            row = int(rows[other][0])
            raise DataError(
                f"images of '{_stack_name(table, int(rows[0]))}' are {box} pixels wide, those of"
                f" '{_stack_name(table, row)}' {int(boxes[row])}; extract all with one box, or give"
                " them optics groups of their own"
            )


def _stack_name(table: ParticleTable, row: int) -> str:
    return table.image_names[row].rpartition("@")[2]


def _lattices(table: ParticleTable, boxes: Tensor) -> tuple[list[Lattice], Tensor]:
    """The boxes and pixel sizes of the images, that of most of them first, and the number "n" of
    each image's.
    """
    sizes = table.pixel_size.clone()
    distinct: list[float] = []
    for size in dict.fromkeys(table.pixel_size.tolist()):
        near = [other for other in distinct if abs(size - other) <= _PIXEL_SIZE_ROUNDING * other]
        if near:
            sizes[table.pixel_size == size] = near[0]
        else:
            distinct.append(size)
    if len(distinct) == 1 and (boxes == boxes[0]).all():
        return [Lattice(int(boxes[0]), distinct[0])], torch.zeros_like(boxes)
    pairs = torch.stack([boxes.double(), sizes.double()], 1)
    kinds, number, count = pairs.unique(dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(count, descending=True, stable=True)
    found = [Lattice(int(box), size) for box, size in kinds[order].tolist()]
    return found, torch.argsort(order)[number]
