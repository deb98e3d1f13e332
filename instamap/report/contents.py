"""What the report of every run says, section by section: through the hook that plugins use."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from instamap.maps.fsc import RESOLUTION_THRESHOLDS, resolution
from instamap.motion import conformation_maps
from instamap.motion.motion_model import MotionModel
from instamap.motion.populations import Populations
from instamap.plugin import citations
from instamap.plugin.choice import Choice
from instamap.plugin.hooks import hookimpl
from instamap.plugin.options import to_dict
from instamap.plugin.registry import default
from instamap.progress import Evaluation
from instamap.report import audit_section, pixels, populations_section, pose_coverage, svg, viewer
from instamap.report.section import Section, paragraphs, table
from instamap.report.slices import GRAY_QUANTILES, VIEWS
from instamap.report.viewer import Surface
from instamap.scene import Scene

CONFORMATIONS = 9  # that the viewer plays
MAX_GROUPS = 6  # optics groups whose noise is drawn
MAX_SLICE_EDGE = 256  # pixels
HISTOGRAM_BINS = 50
DENSITY_BINS = 64  # of each of two coordinates
TICKS = 6
POOLING = (1, 2, 3, 4, 6)  # bins of directions of view, along each edge, that become one
MIN_VIEWS_PER_BIN = 5
HISTOGRAM_QUANTILES = (0.002, 0.998)  # of coordinates that are drawn


class Recorded(Protocol):
    """The settings of a run."""

    def choices(self) -> dict[str, Choice]:
        """The parts, the objective and the workflow, by kind."""

    def record(self) -> dict[str, Any]:
        """What run.toml says."""


class Finished(Protocol):
    """The result of a finished run, as far as its report reads it."""

    @property
    def settings(self) -> Any: ...
    @property
    def scene(self) -> Scene: ...
    @property
    def maps(self) -> dict[str, Tensor]: ...
    @property
    def mask(self) -> Tensor | None: ...
    @property
    def fsc(self) -> dict[str, Tensor]: ...
    @property
    def resolution(self) -> float | None: ...
    @property
    def counts(self) -> dict[str, int]: ...
    @property
    def evaluations(self) -> dict[str, list[Evaluation]]: ...
    @property
    def without_signal(self) -> list[str]: ...
    @property
    def rotations(self) -> Tensor | None: ...
    @property
    def verdict(self) -> str: ...
    def summary(self) -> list[str]:
        """What came out, in lines of plain text."""


@runtime_checkable
class Moving(Protocol):
    """A result with a motion."""

    @property
    def motion(self) -> MotionModel: ...
    @property
    def moving(self) -> bool: ...
    @property
    def gains(self) -> dict[str, float]: ...
    @property
    def agreement(self) -> float | None: ...


@runtime_checkable
class Populated(Protocol):
    """A result that says what share of the particles is in each conformation."""

    @property
    def populations(self) -> Populations | None: ...


class BuiltIn:
    """The sections that every report has."""

    @hookimpl
    def instamap_report_sections(self, result: Finished) -> list[Section]:
        """What was found, how well, from what and by which parts."""
        drawn = []
        if not result.without_signal:
            drawn.append(_look(result))
            drawn.append(_slices(result))
        if result.fsc:
            drawn.insert(1, _resolution(result))
        if isinstance(result, Moving) and result.moving:
            drawn.append(_motion(result))
            if result.motion.bends:
                drawn.append(audit_section.section(result.motion))
        if isinstance(result, Populated) and result.populations is not None:
            drawn.append(populations_section.section(result.populations))
        if result.evaluations:
            drawn.append(_likelihood(result))
        if result.rotations is not None:
            drawn.append(_poses(result.rotations))
        if result.scene.noise_variance is not None:
            drawn.append(_noise(result.scene, result.scene.noise_variance))
        return [_found(result), *drawn, _parts(result), _cite(result)]


def _found(result: Finished) -> Section:
    """The summary, and the facts in a table."""
    scene = result.scene
    counts = [f"{count} in {name.replace('_', ' ')}" for name, count in result.counts.items()]
    record = result.settings.record()
    rows = [
        ["particles", str(record.get("particles", record.get("statistics", "")))],
        ["images", ", ".join(counts)],
        [
            "box",
            f"{scene.box} px of {scene.pixel_size:.4g} Å: {scene.box * scene.pixel_size:.4g} Å",
        ],
    ]
    if result.mask is not None:
        share = float((result.mask > 0).float().mean())
        rows.append(["mask", f"{share:.1%} of the box"])
    words = paragraphs(result.summary())
    return Section("What was found", words + table([], rows, "The run"))


def _look(result: Finished) -> Section:
    """The viewer with its controls; page.js brings it to life."""
    if isinstance(result, Moving) and result.moving:
        surface = viewer.of_motion(result.motion, _places(result))
    else:
        surface = viewer.of_map(result.maps["map"], result.mask, result.scene.pixel_size)
    return Section("Map in space", _viewer(surface))


def _viewer(surface: Surface) -> str:
    data = json.dumps(surface.plain()).replace("<", "\\u003c")
    moving = len(surface.maps) > 1
    return f"""
<div class="viewer" id="viewer">
<div id="scene" class="scene" tabindex="0" role="application"
 aria-label="Surface of the map. Arrow keys turn it, plus and minus change its size, 0 resets it."
 aria-describedby="viewer-words"></div>
<img id="still" class="still" alt="Surface of the map as it was last seen">
<div class="controls">
<label for="level">Level <output id="level-words" for="level"></output></label>
<input id="level" type="range" min="0" max="1000" step="1" value="500">
{_player(surface) if moving else ""}
<div class="buttons"><button type="button" id="turn" aria-pressed="false">Turn</button>
<button type="button" id="reset">Reset view</button></div>
</div>
<p id="viewer-words" class="note">Drag to turn, scroll to change the size; or use the arrow keys,
plus and minus. Maps are cropped to the mask{
        ", and coarser than those in the folder" if moving else ""
    }.</p>
<p id="viewer-fault" class="fault" hidden></p>
<noscript><p class="fault">The viewer needs JavaScript.</p></noscript>
<script type="application/json" id="surface">{data}</script>
</div>"""


def _player(surface: Surface) -> str:
    last = len(surface.maps) - 1
    return f"""
<label for="state">Conformation <output id="state-words" for="state"></output></label>
<input id="state" type="range" min="0" max="{last}" step="1" value="{last // 2}">
<button type="button" id="play" aria-pressed="false">Play</button>"""


def _resolution(result: Finished) -> Section:
    """The FSC curves, and where each falls below the thresholds."""
    scene = result.scene
    curves = []
    rows = []
    for name, values in result.fsc.items():
        half, gold = (_resolved(values, scene, at) for at in RESOLUTION_THRESHOLDS)
        curves.append(svg.Curve(name, _frequencies(len(values), scene), values.tolist()))
        rows.append([name, f"{gold:.2f} Å", f"{half:.2f} Å"])
    places = []
    if result.resolution is not None:
        places = [(1 / result.resolution, f"{result.resolution:.2f} Å")]
    lowest = min(min(curve.y) for curve in curves)
    bottom = -0.2 if lowest < -0.02 else 0.0
    chart = svg.Chart(
        title="Fourier shell correlation of the half maps over spatial frequency",
        x=_frequency_axis(scene),
        y=svg.Axis("Fourier shell correlation", bottom, 1.0, _tenths(bottom)),
        curves=curves,
        levels=[(at, f"{at:g}") for at in RESOLUTION_THRESHOLDS],
        places=places,
        x_name="resolution (Å)",
        x_words=_resolutions(curves[0].x),
    )
    explained = " ".join(EXPLAINED[name] for name in result.fsc if name in EXPLAINED)
    head = ["curve", "FSC = 0.143", "FSC = 0.5"]
    return Section("Resolution", svg.figure(chart, explained) + table(head, rows, "Resolution"))


EXPLAINED = {
    "masked": "masked: half maps inside the mask.",
    "corrected": "corrected: less what the mask alone brings about, by phase randomisation.",
    "unbiased": "unbiased: what is left if nothing but the data is shared between the halves, from"
    " direct inversions.",
}


def _resolved(curve: Tensor, scene: Scene, threshold: float) -> float:
    return resolution(curve, scene.box, scene.pixel_size, threshold)


def _frequencies(count: int, scene: Scene) -> list[float]:
    """1/Å of each Fourier shell."""
    edge = scene.box * scene.pixel_size
    return [shell / edge for shell in range(count)]


def _resolutions(frequencies: Sequence[float]) -> list[str]:
    return [f"{1 / one:.2f}" if one else "∞" for one in frequencies]


def _frequency_axis(scene: Scene) -> svg.Axis:
    """From zero to Nyquist, with resolutions at the ticks."""
    last = (scene.box // 2) / (scene.box * scene.pixel_size)
    places = [last * number / TICKS for number in range(TICKS + 1)]
    words = [f"{1 / place:.3g}" if place else "∞" for place in places]
    ticks = list(zip(places, words, strict=True))
    return svg.Axis("spatial frequency, as resolution (Å)", 0.0, last, ticks)


def _tenths(bottom: float) -> list[tuple[float, str]]:
    first = round(5 * bottom)
    return [(number / 5, f"{number / 5:g}") for number in range(first, 6)]


def _slices(result: Finished) -> Section:
    """Central slices along z, y and x in the same gray values."""
    edge = result.scene.box * result.scene.pixel_size
    drawn = []
    for words, picture in slice_pictures(result.maps["map"]):
        image = f'<img src="{picture}" alt="Central slice {words}" class="slice">'
        drawn.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    row = f'<div class="row">{"".join(drawn)}</div>'
    return Section("Slices", row + paragraphs([f"Each picture is {edge:.4g} Å wide."]))


def slice_pictures(volume: Tensor) -> list[tuple[str, str]]:
    """Words on each central slice of a map "D D D", and the address of its picture."""
    volume = volume.detach().float().cpu()
    cuts = [volume.select(view.axis, len(volume) // 2) for view in VIEWS]
    low, high = _gray_range(torch.cat([cut.flatten() for cut in cuts]))
    found = []
    for cut, view in zip(cuts, VIEWS, strict=True):
        picture = pixels.data_uri(_at_most(cut, MAX_SLICE_EDGE), low, high)
        found.append((f"{view.title}: {view.across} to the right, {view.up} up", picture))
    return found


def _gray_range(values: Tensor) -> tuple[float, float]:
    ordered = values.sort().values
    last = len(ordered) - 1
    low, high = (float(ordered[round(quantile * last)]) for quantile in GRAY_QUANTILES)
    return low, high


def _at_most(picture: Tensor, edge: int) -> Tensor:
    """A picture "D D" in fewer pixels, if it has more than `edge` a side."""
    if len(picture) <= edge:
        return picture
    fewer = torch.nn.functional.interpolate(picture[None, None], size=(edge, edge), mode="area")
    return fewer[0, 0]


def _likelihood(result: Finished) -> Section:
    """How the fits went."""
    curves = []
    for name, evaluations in result.evaluations.items():
        steps = [float(one.step) for one in evaluations]
        values = [one.held_out for one in evaluations]
        best = max(range(len(values)), key=values.__getitem__)
        words = f"{name}: best {values[best]:+.4g} at step {evaluations[best].step}"
        curves.append(svg.Curve(words, steps, values, best))
    last = max(curve.x[-1] for curve in curves)
    lowest = min(min(curve.y) for curve in curves)
    highest = max(max(curve.y) for curve in curves)
    longest = max(curves, key=lambda curve: len(curve.x))
    chart = svg.Chart(
        title="Likelihood of held-out images over the steps of each fit",
        x=svg.linear_axis("step", 0.0, last),
        y=svg.linear_axis("nats per held-out image", min(lowest, 0.0), highest),
        curves=curves,
        levels=[],
        places=[],
        x_name="step",
        x_words=[f"{step:g}" for step in longest.x],
    )
    words = (
        "Beyond an empty map: images that no fit has seen. Dots: the step whose map was kept."
        " A curve that turns down has begun to fit noise."
    )
    return Section("Held-out likelihood", svg.figure(chart, words))


def _poses(rotation: Tensor) -> Section:
    """From where the particle was seen."""
    views = _coarser(pose_coverage.views_per_bin(rotation.double()))
    picture = pixels.data_uri(views, 0.0, float(views.max()), pixels.VIRIDIS)
    words = (
        f"Views of {len(rotation)} images: azimuth from -180° to 180° to the right, the cosine of"
        " the tilt from -1 to 1 upwards, in bins of one area. Dark: few; bright: many."
    )
    mean = len(rotation) / views.numel()
    share = (
        f"A bin holds {mean:.3g} views on average, {int(views.min())} at least and"
        f" {int(views.max())} at most; random directions differ by about {math.sqrt(mean):.2g}."
    )
    figure = (
        f'<figure><img class="wide" src="{picture}" alt="Map of the directions of view">'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )
    return Section("Directions of view", figure + paragraphs([share]))


def _coarser(views: Tensor) -> Tensor:
    """Views in bins "h w" that hold some each, if that is possible."""
    total = float(views.sum())
    for factor in POOLING:
        height, width = (length // factor for length in views.shape)
        if total >= MIN_VIEWS_PER_BIN * height * width:
            break
    return views.reshape(height, factor, width, factor).sum((1, 3))


def _noise(scene: Scene, variance: Tensor) -> Section:
    """Spectra of the noise that the likelihood was told of."""
    spectra = variance.detach().double().cpu().clamp(min=1e-30).log10()
    shown = spectra[:MAX_GROUPS]
    frequencies = _frequencies(spectra.shape[1], scene)
    curves = []
    for number, one in enumerate(shown, 1):
        curves.append(svg.Curve(f"optics group {number}", frequencies, one.tolist()))
    lowest = float(shown.min())
    highest = float(shown.max())
    chart = svg.Chart(
        title="Variance of the noise over spatial frequency",
        x=_frequency_axis(scene),
        y=svg.linear_axis("log₁₀ of the variance", lowest, max(highest, lowest + 0.2)),
        curves=curves,
        levels=[],
        places=[],
        x_name="resolution (Å)",
        x_words=_resolutions(frequencies),
    )
    words = "Of an unfiltered image's pixels."
    if len(spectra) > MAX_GROUPS:
        words += f" The first {MAX_GROUPS} of {len(spectra)} optics groups."
    return Section("Noise", svg.figure(chart, words))


def _places(result: Moving) -> Tensor:
    """Coordinates "K L" of the conformations that are shown."""
    latents = result.motion.latents
    known = latents[latents.isfinite().all(1)]
    return conformation_maps.path(known, CONFORMATIONS, seed=0)


def _motion(result: Moving) -> Section:
    """Where particles are, how many near each conformation, and what the halves say."""
    latents = result.motion.latents.double()
    places = _places(result).double()
    rows = [[f"gain of {name}", f"{gain:+.4g} nats"] for name, gain in result.gains.items()]
    if result.agreement is not None:
        rows.append(["correlation of the halves' coordinates", f"{result.agreement:.3f}"])
    facts = table([], rows, "Held-out particles, over one rigid map")
    drawn = _histogram(latents[:, 0], places[:, 0])
    if latents.shape[1] > 1:
        drawn += _cloud(latents[:, :2])
    return Section("Motion", facts + drawn + _populations(latents, places))


def _histogram(z: Tensor, places: Tensor) -> str:
    low, high = _middle(z)
    axis = svg.linear_axis("z1", min(low, float(places.min())), max(high, float(places.max())))
    counts = torch.histc(z, HISTOGRAM_BINS, axis.low, axis.high).long().tolist()
    picture = svg.bars("Particles by their first coordinate", axis, counts, places.tolist())
    words = "Particles by their first coordinate; the lines are the conformations of the viewer."
    return f"<figure>{picture}<figcaption>{words}</figcaption></figure>"


def _middle(z: Tensor) -> tuple[float, float]:
    """Where nearly all coordinates "n" lie."""
    ordered = z.sort().values
    last = len(ordered) - 1
    low, high = (float(ordered[round(quantile * last)]) for quantile in HISTOGRAM_QUANTILES)
    return low, high


def _cloud(z: Tensor) -> str:
    """How densely particles lie in two coordinates "n 2"."""
    (low, high), (bottom, top) = (_middle(z[:, number]) for number in range(2))
    across = _bin(z[:, 0], low, high)
    up = _bin(z[:, 1], bottom, top)
    counts = torch.bincount(up * DENSITY_BINS + across, minlength=DENSITY_BINS**2)
    density = counts.reshape(DENSITY_BINS, DENSITY_BINS).double().sqrt()
    picture = pixels.data_uri(density, 0.0, float(density.max()), pixels.VIRIDIS)
    words = (
        f"Particles by their first two coordinates: z1 from {low:.3g} to {high:.3g} to the right,"
        f" z2 from {bottom:.3g} to {top:.3g} upwards. Bright: many."
    )
    return (
        f'<figure><img class="square" src="{picture}" alt="Density of the coordinates">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _bin(z: Tensor, low: float, high: float) -> Tensor:
    share = (z - low) / max(high - low, 1e-30)
    return (share * DENSITY_BINS).long().clamp(0, DENSITY_BINS - 1)


def _populations(latents: Tensor, places: Tensor) -> str:
    """Shares of the particles nearest to each conformation."""
    nearest = torch.cdist(latents, places).argmin(1)
    counts = torch.bincount(nearest, minlength=len(places))
    rows = []
    for number, (place, count) in enumerate(zip(places, counts.tolist(), strict=True), 1):
        words = ", ".join(f"{value:.3g}" for value in place.tolist())
        rows.append([str(number), words, str(count), f"{count / len(latents):.1%}"])
    head = ["conformation", "coordinates", "particles", "share"]
    return table(head, rows, "Particles nearest to each conformation")


def _parts(result: Finished) -> Section:
    """Every part with its options, and all other settings."""
    rows = []
    for kind, choice in result.settings.choices().items():
        options = " ".join(f"{name}={value}" for name, value in to_dict(choice.options).items())
        rows.append([kind, choice.name, options])
    plain = {
        name: value
        for name, value in result.settings.record().items()
        if not isinstance(value, Mapping | list)
    }
    settings = [[name, str(value)] for name, value in plain.items()]
    parts = table(["kind", "part", "options"], rows, "Parts of this run")
    others = table(["setting", "value"], settings, "Other settings")
    again = paragraphs(["run.toml repeats the run: instamap reconstruct --config run.toml"])
    return Section(
        "How it was made", f"{parts}<details><summary>Settings</summary>{others}</details>{again}"
    )


def _cite(result: Finished) -> Section:
    """What to cite, in words and as BibTeX."""
    names = {kind: choice.name for kind, choice in result.settings.choices().items()}
    found = citations.of_parts(names, default())
    shown = [*found, citations.Citation(citations.PAGE[0], (citations.PAGE[1],))]
    rows = [[", ".join(one.parts), one.words] for one in shown]
    entries = html.escape(citations.bibtex(shown))
    bibtex = f'<details><summary>BibTeX</summary><pre tabindex="0">{entries}</pre></details>'
    return Section("What to cite", table(["for", "publication"], rows, "Publications") + bibtex)
