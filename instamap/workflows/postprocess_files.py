"""The files of a postprocessing: by RELION's names and with its words where RELION has the same."""

from pathlib import Path

import torch
from torch import Tensor

from instamap.data.formats import star_file
from instamap.data.formats.star_file import Column, Table
from instamap.files import replacing
from instamap.maps import fsc, mrc
from instamap.report import figure
from instamap.version import __version__
from instamap.workflows import output
from instamap.workflows.postprocess import FOUND_MASK, GOLD_STANDARD, PostprocessResult
from instamap.workflows.record import write_json

RECORD = "postprocess.json"
ROOT = "postprocess"  # the beginning of the names that RELION gives to the same files
DPI = 140  # of pictures
PICTURES = ("fsc.png", "guinier.png", "directions.png", "local_resolution.png")
KIND = output.FolderKind("a postprocessing", RECORD, (f"{ROOT}*", FOUND_MASK, *PICTURES))

RELION_VERSION = b"# version 30001"  # of STAR files, as RELION 3.1 writes it
INFINITE_RESOLUTION = 999.0  # Å, what RELION calls that of shell 0
EMPTY_SHELL = -99.0  # the logarithm that RELION gives to an amplitude of nothing
LOG_AMPLITUDES = {
    "original": "rlnLogAmplitudesOriginal",
    "MTF corrected": "rlnLogAmplitudesMTFCorrected",
    "weighted": "rlnLogAmplitudesWeighted",
    "sharpened": "rlnLogAmplitudesSharpened",
}
"""Columns of the Guinier plot's table, by what the amplitudes are of."""
BALL_SHARE = 0.476  # of a box: what RELION takes for the largest ball's


def write(result: PostprocessResult, folder: Path) -> None:
    """Writes maps, tables, pictures and the record into an existing folder."""
    pixel_size = result.half_maps.pixel_size
    box = result.half_maps.box
    _write_maps(result, folder)
    star_file.write(tables(result), folder / f"{ROOT}.star")
    write_xml(folder / f"{ROOT}_fsc.xml", result.curve, box * pixel_size)
    fsc.write_csv(folder / f"{ROOT}_fsc.csv", result.curves, box, pixel_size)
    _draw(result, folder)
    names = [*output.names_in(folder), RECORD]
    record = {"instamap": __version__, "files": names, **result.record()}
    write_json(folder / RECORD, record)


def _write_maps(result: PostprocessResult, folder: Path) -> None:
    """Every map, where the half maps are, with a label that says what it is."""
    mask = result.half_maps.mask
    sharpened = result.sharpened.volume
    maps = {f"{ROOT}.mrc": (sharpened, "sharpened map, weighted by its FSC")}
    if mask is not None:
        words = "sharpened map, weighted by its FSC, inside the mask"
        maps[f"{ROOT}_masked.mrc"] = (sharpened * mask, words)
        if result.settings.auto_mask:
            maps[FOUND_MASK] = (mask, "mask around the particle")
    if result.local is not None:
        maps[f"{ROOT}_locres.mrc"] = (result.local.resolution, "local resolution in Angstrom")
    if result.filtered is not None:
        words = "sharpened map, filtered to its local resolution"
        maps[f"{ROOT}_locres_filtered.mrc"] = (result.filtered, words)
    for name, (volume, label) in maps.items():
        mrc.write(
            folder / name,
            volume,
            result.half_maps.pixel_size,
            origin=result.half_maps.origin,
            label=label,
        )


def _draw(result: PostprocessResult, folder: Path) -> None:
    figure.save(result.plot_fsc(), folder / "fsc.png", DPI)
    figure.save(result.plot_guinier(), folder / "guinier.png", DPI)
    figure.save(result.plot_directions(), folder / "directions.png", DPI)
    if result.local is not None:
        figure.save(result.plot_local_resolution(), folder / "local_resolution.png", DPI)


def tables(result: PostprocessResult) -> list[Table]:
    """The tables general, fsc and guinier of postprocess.star, as RELION 3.1 has them."""
    columns = {label: Column.of([text]) for label, text in _general(result).items()}
    program = f"# instamap postprocess; version {__version__}".encode()
    return [
        Table("general", columns, loop=False, comments=(program, b"", RELION_VERSION)),
        Table("fsc", _fsc_columns(result), comments=(RELION_VERSION,)),
        Table("guinier", _guinier_columns(result), comments=(RELION_VERSION,)),
    ]


def _general(result: PostprocessResult) -> dict[str, str]:
    """The values of the table general."""
    settings = result.settings
    half_maps = result.half_maps
    edge = half_maps.box * half_maps.pixel_size
    values = {
        "rlnFinalResolution": f"{whole_shell_resolution(result.curve, edge):.6f}",
        "rlnBfactorUsedForSharpening": f"{result.sharpened.b_factor:.6f}",
        "rlnUnfilteredMapHalf1": str(settings.half1),
        "rlnUnfilteredMapHalf2": str(settings.half2),
    }
    if result.correction is not None and half_maps.mask is not None:
        random_from = edge / result.correction.shell
        values["rlnParticleBoxFractionSolventMask"] = f"{_box_per_mask(half_maps.mask):.6f}"
        values["rlnMaskName"] = settings.mask_name or ""
        values["rlnRandomiseFrom"] = f"{random_from:.6f}"
    fit = result.sharpened.fit
    if fit is not None:
        values["rlnFittedSlopeGuinierPlot"] = f"{fit.slope:.6f}"
        values["rlnFittedInterceptGuinierPlot"] = f"{fit.intercept:.6f}"
        values["rlnCorrelationFitGuinierPlot"] = f"{abs(fit.correlation):.6f}"
    return values


def whole_shell_resolution(curve: Tensor, edge: float) -> float:
    """Å of the last shell before the first whose FSC is below 0.143, in a box of `edge` Å.

    RELION's rule, without the interpolation of `maps.fsc.resolution`.
    """
    below = (curve < GOLD_STANDARD).nonzero()
    last = int(below[0]) - 1 if len(below) else len(curve) - 1
    return edge / last if last > 0 else INFINITE_RESOLUTION


def _fsc_columns(result: PostprocessResult) -> dict[str, Column]:
    edge = result.half_maps.box * result.half_maps.pixel_size
    shell = range(len(result.curve))
    wavelength = [edge / number if number else INFINITE_RESOLUTION for number in shell]
    frequency = [1 / length for length in wavelength]
    columns = {
        "rlnSpectralIndex": Column.of(str(number) for number in shell),
        "rlnResolution": _numbers(frequency),
        "rlnAngstromResolution": _numbers(wavelength),
    }
    for label, curve in _curves(result).items():
        columns[label] = _numbers(curve.tolist())
    return columns


def _curves(result: PostprocessResult) -> dict[str, Tensor]:
    """FSC curves "D//2+1" by RELION's names."""
    whole = result.curves["whole"]
    mask = result.half_maps.mask
    correction = result.correction
    if correction is None or mask is None:
        return {"rlnFourierShellCorrelationUnmaskedMaps": whole}
    ratio = _box_per_mask(mask)
    per_mask = ratio * whole / (1 + (ratio - 1) * whole)
    return {
        "rlnFourierShellCorrelationCorrected": correction.corrected,
        "rlnFourierShellCorrelationParticleMaskFraction": per_mask,
        "rlnFourierShellCorrelationUnmaskedMaps": whole,
        "rlnFourierShellCorrelationMaskedMaps": correction.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": correction.random,
    }


def _box_per_mask(mask: Tensor) -> float:
    """The volume of the box's ball over that of the mask "D D D"."""
    inside = (mask > 0.5).double().mean()
    return BALL_SHARE / max(float(inside), 1 / mask.numel())


def _guinier_columns(result: PostprocessResult) -> dict[str, Column]:
    edge = result.half_maps.box * result.half_maps.pixel_size
    shell = torch.arange(len(result.curve), dtype=torch.float64)
    square = (shell / edge).square()
    columns = {"rlnResolutionSquared": _numbers(square.tolist())}
    for name, amplitude in result.sharpened.amplitudes.items():
        logarithm = torch.where(amplitude > 0, amplitude.log(), EMPTY_SHELL)
        columns[LOG_AMPLITUDES[name]] = _numbers(logarithm.tolist())
    fit = result.sharpened.fit
    if fit is not None:
        columns["rlnLogAmplitudesIntercept"] = _numbers([fit.intercept] * len(shell))
    return columns


def _numbers(values: list[float]) -> Column:
    return Column.of(f"{value:.6g}" for value in values)


def write_xml(path: Path, curve: Tensor, edge: float) -> None:
    """Writes an FSC curve "D//2+1" as the EMDB takes it, in a box of `edge` Å."""
    title = "instamap masked-corrected FSC"
    head = f'<fsc title="{title}" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    lines = [head]
    for shell, value in enumerate(curve.tolist()):
        frequency = shell / edge if shell else 1 / INFINITE_RESOLUTION
        lines.append("  <coordinate>")
        lines.append(f"    <x>{frequency:.6g}</x>")
        lines.append(f"    <y>{value:.6g}</y>")
        lines.append("  </coordinate>")
    lines.append("</fsc>")
    with replacing(path) as sibling:
        sibling.write_text("\n".join(lines) + "\n", encoding="utf-8")
