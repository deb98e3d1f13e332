"""The result of a workflow: what it found, as an object that writes itself to a folder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from instamap import checksums
from instamap.errors import DataError
from instamap.fitting.loop import FitResult
from instamap.maps import fsc, mrc
from instamap.plugin.choice import load_class
from instamap.plugin.registry import default
from instamap.progress import Evaluation
from instamap.report import card, fsc_plot, html, likelihood_plot, pose_coverage, slices
from instamap.report.section import paragraphs
from instamap.scene import Scene
from instamap.toml_text import write_toml
from instamap.workflows import image_contrast, output
from instamap.workflows.image_contrast import CONTRAST, MeasuredContrast
from instamap.workflows.record import write_json, write_log
from instamap.workflows.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = "result.json"
REPORT = "report.html"
LABELS = {"half1": "half map 1", "half2": "half map 2", "mask": "mask, from 0 to 1"}
"""What maps are, in the words of their files' headers; others go by their names."""
NYQUIST_ROUNDING = 2.001  # pixels: a resolution below this is Nyquist's


def run_folder(settings: Settings) -> output.FolderKind:
    """What a folder holds after a run with these (resolved) settings."""
    assert settings.workflow is not None
    patterns = load_class("workflow", settings.workflow.name).may_write
    return replace(output.RUN, may_write=patterns)


class Artefact(ABC):
    """Something that a workflow found beside maps, with files of its own."""

    @property
    def latents(self) -> Tensor | None:
        """Coordinates "n L" of all particles, if it has any."""
        return None

    @abstractmethod
    def files(self) -> list[str]:
        """The names of the files that `write` makes."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes them into an existing folder."""


@dataclass(frozen=True)
class Result:
    """Maps and what they are worth.

    settings: with the workflow and objective that were used. scene: with the mask. maps "D D D" by
    name: map, and half1 and half2 where there are halves. fits: of each set. fsc: curves by name;
    resolution: where the last of them falls to 0.143, in Å, None without a signal or halves.
    counts: images of each set, "held_out" among them. log: an entry for each evaluation.
    mask_was_found: the mask was made from a first map. artefacts: whatever else was found.
    rotations "n 3 3": of all particles, where they are known (a saved result has none). contrast:
    what was found of the images' contrasts, None where nobody asked (a saved result has no
    factors).
    """

    settings: Settings
    scene: Scene
    maps: dict[str, Tensor]
    fits: dict[str, FitResult]
    fsc: dict[str, Tensor]
    resolution: float | None
    counts: dict[str, int]
    mask_was_found: bool
    log: list[dict[str, Any]] = field(default_factory=list)
    artefacts: Sequence[Artefact] = ()
    rotations: Tensor | None = None
    contrast: MeasuredContrast | None = None

    @property
    def mask(self) -> Tensor | None:
        """The mask "D D D" in 0..1; None means the largest sphere."""
        return self.scene.mask

    @property
    def evaluations(self) -> dict[str, list[Evaluation]]:
        """The evaluations of each fit."""
        return {name: fit.evaluations for name, fit in self.fits.items()}

    @property
    def without_signal(self) -> list[str]:
        """Names of the fits that found no signal; their maps are empty."""
        return [name for name, fit in self.fits.items() if not fit.signal]

    @property
    def latents(self) -> Tensor | None:
        """Coordinates "n L" of all particles, where the workflow found any."""
        found = [artefact.latents for artefact in self.artefacts]
        return next((latents for latents in found if latents is not None), None)

    @property
    def verdict(self) -> str:
        """What was found, in one line."""
        if self.without_signal:
            return f"no signal found in {', '.join(self.without_signal)}"
        if self.resolution is None:
            return "a map without half maps, whose resolution is not known"
        return f"resolution {self.resolution:.2f} Å"

    def files(self) -> list[str]:
        """The names of the files that `save` writes."""
        names = [*(f"{name}.mrc" for name in self._volumes()), "log.jsonl", RECORD]
        if self.fits:
            names.append("held_out.png")
        if self.fsc:
            names.append("fsc.csv")
        if self.contrast is not None and self.contrast.factors is not None:
            names.append(CONTRAST)
        if not self.without_signal:
            names += ["fsc.png"] * bool(self.fsc) + ["map.png"]
        for artefact in self.artefacts:
            names += artefact.files()
        return [*names, REPORT, checksums.LIST, output.MARK]

    def _volumes(self) -> dict[str, Tensor]:
        """The maps to be written; a mask that was given has a file already."""
        if self.mask_was_found and self.mask is not None:
            return {**self.maps, "mask": self.mask}
        return self.maps

    @property
    def folder_kind(self) -> output.FolderKind:
        """What a folder with this result holds."""
        return run_folder(self.settings)

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes maps, curves, pictures and records to a folder, all or nothing.

        force: replaces a run that the folder holds. Raises OutputError.
        """
        with output.reserve(Path(folder), self.folder_kind, force) as place:
            self.write(place)

    def write(self, place: output.OutputFolder) -> None:
        """Writes everything to a folder that is held already."""
        with place.filled() as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        scene = self.scene
        if self.fits:
            likelihood_plot.plot(folder / "held_out.png", self._likelihoods())
        for name, volume in self._volumes().items():
            label = LABELS.get(name, name)
            mrc.write(folder / f"{name}.mrc", volume, scene.pixel_size, label=label)
        if self.fsc:
            fsc.write_csv(folder / "fsc.csv", self.fsc, scene.box, scene.pixel_size)
        if not self.without_signal:
            self._draw(folder)
        if self.contrast is not None and self.contrast.factors is not None:
            image_contrast.write_csv(folder / CONTRAST, self.contrast.factors)
        for artefact in self.artefacts:
            artefact.write(folder)
        write_log(folder / "log.jsonl", self.log)
        write_json(folder / RECORD, self.facts())
        write_toml(folder / output.MARK, self.record())
        html.write(folder / REPORT, self, default())
        checksums.write_list(folder)

    def _draw(self, folder: Path) -> None:
        scene = self.scene
        if self.fsc:
            fsc_plot.plot(folder / "fsc.png", self.fsc, scene.box, scene.pixel_size)
        slices.plot(folder / "map.png", self.maps["map"], scene.pixel_size)

    def _likelihoods(self) -> dict[str, likelihood_plot.Evaluations]:
        """The steps and held-out likelihoods of each fit."""
        return {
            name: [(one.step, one.held_out) for one in evaluations]
            for name, evaluations in self.evaluations.items()
        }

    def plot_fsc(self) -> "Figure":
        """The FSC curves as a matplotlib figure. Raises DataError where there are no half maps."""
        if not self.fsc:
            raise DataError(
                "this result has no FSC curves, as it has no half maps; repeat the run with"
                " halves=True"
            )
        return fsc_plot.drawn(self.fsc, self.scene.box, self.scene.pixel_size)

    def plot_likelihood(self) -> "Figure":
        """The held-out likelihood over the steps of each fit as a matplotlib figure."""
        return likelihood_plot.drawn(self._likelihoods())

    def plot_slices(self) -> "Figure":
        """Central slices and projections of the map as a matplotlib figure."""
        return slices.drawn(self.maps["map"], self.scene.pixel_size)

    def plot_views(self) -> "Figure":
        """From where the particles were seen, as a matplotlib figure. Raises DataError for a result
        that was read from a folder, which has no rotations.
        """
        if self.rotations is None:
            raise DataError(
                "this result has no rotations, as it was read from a folder; its report.html shows"
                " the directions of view"
            )
        return pose_coverage.drawn(self.rotations)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.verdict}; {self._facts}>"

    @property
    def _facts(self) -> str:
        """Maps and images, in words."""
        scene = self.scene
        names = ", ".join(self.maps)
        images = sum(self.counts.values())
        return f"{names} of {scene.box} px of {scene.pixel_size:.4g} Å, from {images} images"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        volume = None if self.without_signal else self.maps["map"]
        facts = f"{type(self).__name__}: {self._facts}"
        return card.card(self.verdict, facts, volume, paragraphs(self.summary()))

    def record(self) -> dict[str, Any]:
        """What run.toml says: the settings, with which the run can be repeated, and its files."""
        plain = self.settings.record()
        return {"instamap": plain["instamap"], "files": self.files(), **plain}

    def facts(self) -> dict[str, Any]:
        """What was found as plain values, for programs: result.json."""
        evaluations = {name: [asdict(e) for e in some] for name, some in self.evaluations.items()}
        facts = {
            "verdict": self.verdict,
            "resolution": self.resolution,
            "counts": self.counts,
            "without_signal": self.without_signal,
            "evaluations": evaluations,
        }
        if self.contrast is not None:
            facts["contrast"] = self.contrast.record()
        return facts

    def summary(self) -> list[str]:
        """What the maps are worth, in lines for a person."""
        lines = []
        if self.contrast is not None and self.contrast.counts:
            lines.append(f"contrast: {self.contrast.line}")
        for name, evaluations in self.evaluations.items():
            best = max(evaluations, key=lambda one: one.held_out)
            lines.append(
                f"{name}: held-out likelihood {best.held_out:+.4g} nats/image beyond an empty map,"
                f" at step {best.step} of {evaluations[-1].step}"
            )
            if name in self.without_signal:
                lines.append(
                    f"{name}: no signal found: the {self.counts['held_out']} held-out images are no"
                    " likelier than chance allows; this map is empty"
                )
        if self.resolution is not None:
            lines.append(self._resolution_line(self.resolution))
        elif self.fsc:
            lines.append("resolution: none, as no signal was found")
        return lines

    def _resolution_line(self, resolution: float) -> str:
        how = "mask-corrected by phase randomisation"
        if "unbiased" in self.fsc:
            how += ", and held against direct inversions"
        line = f"resolution: {resolution:.2f} Å (half-map FSC 0.143, {how})"
        if resolution <= NYQUIST_ROUNDING * self.scene.pixel_size:
            line += ", which is Nyquist: smaller pixels may hold more"
        return line
