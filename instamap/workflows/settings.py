"""All that a person decides of a run, in one schema.

Each field of `Settings` says what it means, what it may be, which commands take it and what it
decides. Flags, the signatures of the Python functions, run.toml, the record of statistics, range
checks and what may differ between shards that are merged all come from here: a new setting is a new
field and nothing more.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from instamap.errors import OptionError
from instamap.fitting.stage import Stage
from instamap.plugin.choice import DEFAULTS, PART_KINDS, Choice, choose, from_record, to_record
from instamap.plugin.options import OptionSpec, describe_field, from_dict, option, to_dict
from instamap.version import __version__

if TYPE_CHECKING:
    import torch

    from instamap.data.preprocess import Preprocess

Role = Literal["place", "data", "draw", "fit"]
"""What a setting decides: where the data are (which may differ from machine to machine), what the
statistics of the images are, the random draws (those of the statistics when they are gathered, and
those of each fit), or the fit alone.
"""

RECONSTRUCT = "reconstruct"
ACCUMULATE = "accumulate"
FIT = "fit"
PREPROCESS = "preprocess"
EVERY_COMMAND = (RECONSTRUCT, ACCUMULATE, FIT)
FROM_IMAGES = (RECONSTRUCT, ACCUMULATE)
FITTING = (RECONSTRUCT, FIT)
DOCTOR = "doctor"
READING = (*FROM_IMAGES, PREPROCESS, DOCTOR)

SETTING = "setting"  # key of a field's metadata
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
CHOICE_KINDS = (*PART_KINDS, "objective", "workflow")


def check_device_name(name: str) -> None:
    """Raises OptionError for a name that no device has, on whatever machine."""
    if not DEVICES.fullmatch(name):
        raise OptionError(f"device is '{name}'; it must be one of auto, cpu, cuda, cuda:1 and mps")


@dataclass(frozen=True)
class SettingFacts:
    """What a field says beyond an option: commands that take it, its role and how it is typed.

    kind: of a part that is chosen by name; "stage" for stages; None for a plain value.
    flag: as typed; options_flag: of the part's options. default_words: what happens without it.
    """

    commands: tuple[str, ...]
    role: Role
    kind: str | None = None
    flag: str = ""
    options_flag: str = ""
    default_words: str = ""
    metavar: str | None = None


def setting(
    default: Any,
    help: str,
    *,
    commands: tuple[str, ...],
    role: Role,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    flag: str = "",
    default_words: str = "",
    metavar: str | None = None,
) -> Any:
    """A plain setting: an option with the commands that take it and what it decides."""
    made = option(default, help, unit=unit, low=low, high=high)
    facts = SettingFacts(
        commands, role, flag=flag, default_words=default_words or str(default), metavar=metavar
    )
    return dataclasses.field(default=default, metadata={**made.metadata, SETTING: facts})


def part(
    kind: str,
    help: str,
    *,
    commands: tuple[str, ...],
    flag: str,
    options_flag: str,
    default_words: str = "",
    role: Role = "fit",
) -> Any:
    """A setting that is a part chosen by name, with options of its own."""
    words = default_words or DEFAULTS[kind]
    facts = SettingFacts(commands, role, kind, flag, options_flag, words)
    return dataclasses.field(default=None, metadata={"help": help, SETTING: facts})


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run; run.toml keeps it.

    A part may be given by its name, by ("name", {"option": value}) or as a `Choice`; None means the
    usual one, and for workflow and objective the automatic choice (see `choose`). statistics: a
    folder of what the images say, instead of which nothing is read; what decided the statistics
    must then be the same. Raises OptionError for values that are not allowed.
    """

    particles: Path = setting(
        Path(),
        "STAR file with poses (RELION 3.0 or later), or another known format.",
        commands=FROM_IMAGES,
        role="place",
    )
    statistics: Path | None = setting(
        None,
        "Folder that accumulate or merge wrote; the images are not read.",
        commands=(FIT,),
        role="fit",
    )
    datadir: Path | None = setting(
        None,
        "Folder that image paths are relative to.",
        commands=READING,
        role="place",
        default_words="the STAR file's",
    )
    mask: Path | None = setting(
        None,
        "Map of 0..1; the density is zero outside it.",
        commands=FITTING,
        role="fit",
        default_words="found in a first map",
    )
    focus: Path | None = setting(
        None,
        "Map of 0..1: where particles may differ; elsewhere they are held at what all share.",
        commands=(RECONSTRUCT,),
        role="fit",
        default_words="everywhere",
    )
    halves: bool = setting(
        True,
        "Two independent half maps and their mean, or one map of all particles.",
        commands=FITTING,
        role="fit",
        flag="--halves/--no-halves",
        default_words="halves",
    )
    seed: int = setting(
        0,
        "Seed of every random number.",
        commands=EVERY_COMMAND,
        role="draw",
        low=0,
        high=2**31 - 1,
    )
    group_by: str | None = setting(
        None,
        "Column whose equal values stay in one half, such as rlnGroupName.",
        commands=FROM_IMAGES,
        role="data",
        default_words="none",
        metavar="COLUMN",
    )
    held_out: float = setting(
        0.05,
        "Share of the particles kept out of both halves, which only tell when fits stop.",
        commands=FROM_IMAGES,
        role="data",
        low=0.001,
        high=0.9,
    )
    symmetry: str = setting(
        "C1",
        "Point group, as RELION orients it: Cn, Dn, T, O, I, I1 to I4.",
        commands=(*FROM_IMAGES, DOCTOR),
        role="data",
    )
    weights: str | None = setting(
        None,
        "Column of factors of each image's log-likelihood.",
        commands=FROM_IMAGES,
        role="data",
        default_words="all 1",
        metavar="COLUMN",
    )
    crop: int | None = setting(
        None,
        "Keep only the middle of each image, of this many pixels.",
        commands=READING,
        role="data",
        unit="pixels",
        default_words="all",
    )
    box: int | None = setting(
        None,
        "Then scale it down to this many pixels, which makes them larger.",
        commands=READING,
        role="data",
        unit="pixels",
        default_words="as it is",
    )
    normalise: bool = setting(
        False,
        "Then level the background and scale its noise to 1.",
        commands=READING,
        role="data",
        flag="--normalise/--no-normalise",
        default_words="no-normalise",
    )
    background: float | None = setting(
        None,
        "Radius beyond which it is background.",
        commands=READING,
        role="data",
        unit="Å",
        default_words="0.375 of the edge",
    )
    invert: bool = setting(
        False,
        "Then turn dark protein white.",
        commands=READING,
        role="data",
        flag="--invert/--no-invert",
        default_words="no-invert",
    )
    exclude_outliers: bool = setting(
        False,
        "Leave images that are far stronger than the others out of all sets.",
        commands=FROM_IMAGES,
        role="data",
        flag="--exclude-outliers/--keep-outliers",
        default_words="keep-outliers",
    )
    contrast: Literal["auto", "none"] = setting(
        "auto",
        "Factors of the images' signal: auto, where held-out images gain by them, or none.",
        commands=FROM_IMAGES,
        role="data",
    )
    extent: Literal["molecule", "box"] = setting(
        "molecule",
        "What is gathered of large images: all that they say of a cube around the molecule, which a"
        " first pass over some of them or the mask shows, or of the whole box.",
        commands=FROM_IMAGES,
        role="data",
    )
    device: str = setting(
        "cpu",
        "Where statistics are gathered and fits run: cpu, cuda, cuda:1, mps, or auto, a CUDA card"
        " where torch sees one.",
        commands=EVERY_COMMAND,
        role="fit",
        metavar="DEVICE",
    )
    representation: Choice = part(
        "representation",
        "What the map is made of.",
        commands=FITTING,
        flag="--representation",
        options_flag="-R",
    )
    deformation: Choice = part(
        "deformation",
        "How particles differ.",
        commands=(RECONSTRUCT,),
        flag="--deform",
        options_flag="-D",
    )
    forward: Choice = part(
        "forward",
        "How the density is projected to images; objective normal needs no such part.",
        commands=(RECONSTRUCT,),
        flag="--forward",
        options_flag="-F",
        default_words="slice; ray where particles differ",
    )
    likelihood: Choice = part(
        "likelihood",
        "How the noise is modelled.",
        commands=FROM_IMAGES,
        flag="--likelihood",
        options_flag="-L",
        role="data",
    )
    objective: Choice | None = part(
        "objective",
        "What a fit lowers.",
        commands=FITTING,
        flag="--objective",
        options_flag="-O",
        default_words="auto: what goes with the parts",
    )
    workflow: Choice | None = part(
        "workflow",
        "The procedure: map, motion, poses, or a plugin's.",
        commands=(RECONSTRUCT,),
        flag="--workflow",
        options_flag="-W",
        default_words="auto: what goes with the parts",
    )
    stages: tuple[Stage, ...] | None = dataclasses.field(
        default=None,
        metadata={
            "help": 'Stage of the fit, such as "steps=100 deformation=0"; repeatable, in order:'
            " see `instamap describe stage`.",
            SETTING: SettingFacts(
                FITTING,
                "fit",
                "stage",
                flag="--stage",
                default_words="one, or two where particles differ",
                metavar="KEY=VALUE...",
            ),
        },
    )

    def __post_init__(self) -> None:
        for spec in plain_settings():
            object.__setattr__(self, spec.field, spec.check(getattr(self, spec.field)))
        for kind in CHOICE_KINDS:
            object.__setattr__(self, kind, self._chosen(kind, getattr(self, kind)))
        if self.stages is not None:
            object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "symmetry", _canonical(self.symmetry))
        check_device_name(self.device)

    def _chosen(self, kind: str, value: Any) -> Choice | None:
        """The choice that a name, a name with options or a `Choice` stands for."""
        if isinstance(value, Choice):
            return value
        if value is None and kind not in PART_KINDS:
            return None
        if value is None:
            return choose(kind, self._usual(kind))
        name, options = (value, {}) if isinstance(value, str) else value
        return None if name == "auto" and kind not in PART_KINDS else choose(kind, name, options)

    def _usual(self, kind: str) -> str:
        """The name of the part where none is chosen; the forward operator suits the deformation."""
        if kind != "forward":
            return DEFAULTS[kind]
        from instamap.model import usual_forward  # here, since it needs torch

        return usual_forward(self.deformation.name)

    @property
    def parts(self) -> dict[str, Choice]:
        """The chosen parts of the model, by kind."""
        return {
            "representation": self.representation,
            "deformation": self.deformation,
            "forward": self.forward,
            "likelihood": self.likelihood,
        }

    def choices(self) -> dict[str, Choice]:
        """All parts that are chosen, by kind: the model's, the objective and the workflow."""
        chosen = {kind: getattr(self, kind) for kind in CHOICE_KINDS}
        return {kind: choice for kind, choice in chosen.items() if choice is not None}

    def special(self) -> dict[str, Any]:
        """The settings of the data that are not the usual ones, for people."""
        plain = [spec for spec in plain_settings() if facts_of(spec.field).role == "data"]
        values = {spec.field: getattr(self, spec.field) for spec in plain}
        changed = {s.field: values[s.field] for s in plain if values[s.field] != s.default}
        return changed | ({"statistics": self.statistics} if self.statistics else {})

    def input_files(self) -> list[Path]:
        """The files and folders that a run with these settings reads."""
        plain = [getattr(self, spec.field) for spec in plain_settings()]
        return [value for value in plain if isinstance(value, Path) and value != Path()]

    @property
    def preprocess(self) -> "Preprocess":
        """What is done to each image when it is read."""
        from instamap.data.preprocess import Preprocess  # here, since it needs torch

        return Preprocess(self.crop, self.box, self.normalise, self.background, self.invert)

    @property
    def point_group(self) -> "torch.Tensor | None":
        """The rotations "S 3 3" of the point group; None for C1."""
        from instamap.geometry import symmetry  # here, since it needs torch

        return None if self.symmetry == "C1" else symmetry.point_group(self.symmetry)

    def record(self) -> dict[str, Any]:
        """The settings as plain values for run.toml; what is unset is left out."""
        plain = {spec.field: getattr(self, spec.field) for spec in plain_settings()}
        if self.particles == Path():
            plain.pop("particles")
        tables = to_record(self.choices())
        stages = {} if self.stages is None else {"stage": [to_dict(one) for one in self.stages]}
        return {"instamap": __version__, **_without_unset(plain), **tables, **stages}

    def data_record(self) -> dict[str, Any]:
        """The settings that decide the statistics of the images, as plain values."""
        names = [spec.field for spec in plain_settings() if facts_of(spec.field).role != "fit"]
        plain = {name: getattr(self, name) for name in names}
        deciding = {k: c for k, c in self.choices().items() if facts_of(k).role == "data"}
        return {**_without_unset(plain), **to_record(deciding)}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Settings":
        """The settings that `record` or `data_record` made. Raises OptionError or PartError."""
        known = {spec.field for spec in plain_settings()}
        values: dict[str, Any] = {key: value for key, value in record.items() if key in known}
        for kind in CHOICE_KINDS:
            if kind in record:
                values[kind] = from_record(kind, record[kind])
        stages = None
        if "stage" in record:
            stages = tuple(from_dict(Stage, table) for table in record["stage"])
        return Settings(**values, stages=stages)


def facts_of(field: str) -> SettingFacts:
    """What a field of `Settings` says of itself beyond its type, default and range."""
    return Settings.__dataclass_fields__[field].metadata[SETTING]


def plain_settings() -> list[OptionSpec]:
    """The settings that are plain values, in their order."""
    every = dataclasses.fields(Settings)
    types = get_type_hints(Settings)
    plain = [field for field in every if field.metadata[SETTING].kind is None]
    return [describe_field(field, types[field.name]) for field in plain]


def _without_unset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set; paths as absolute text, through the links that were given: image
    paths are looked for above a STAR file where the link to it is.
    """
    given = {name: value for name, value in values.items() if value is not None}
    return {n: str(v.absolute()) if isinstance(v, Path) else v for n, v in given.items()}


def _canonical(symmetry: str) -> str:
    """The name of a point group as it is written everywhere. Raises OptionError."""
    if symmetry == "C1":
        return symmetry
    from instamap.geometry.symmetry import canonical  # here, since it needs torch

    return canonical(symmetry)


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Raises OptionError, naming the value, for one of a run.toml that is unknown or of another
    type.
    """
    kinds = {spec.field: spec for spec in plain_settings()}
    tables = {*CHOICE_KINDS}
    for key, value in record.items():
        if key in ("instamap", "files"):
            continue
        if key in tables:
            _check_table(key, value, where)
        elif key == "stage":
            _check_stages(value, where)
        elif key in kinds:
            _check_plain(kinds[key], value, where)
        else:
            allowed = ", ".join([*kinds, *CHOICE_KINDS, "stage"])
            raise OptionError(f"'{key}' in '{where}' is unknown; choose {allowed}")


def _check_plain(spec: OptionSpec, value: Any, where: str) -> None:
    if isinstance(value, dict | list):
        raise OptionError(f"'{spec.field}' in '{where}' is {value!r}; it must be {spec.allowed}")
    try:
        spec.check(value)
    except OptionError:
        raise OptionError(
            f"'{spec.field}' in '{where}' is {value!r}; it must be {spec.allowed}"
        ) from None


def _check_table(key: str, value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise OptionError(f"'{key}' in '{where}' is {value!r}; it must be a table")
    if not isinstance(value.get("name"), str):
        raise OptionError(
            f"table '{key}' in '{where}' has no name of a part; write name = \"...\" into it"
        )


def _check_stages(value: Any, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise OptionError(
            f"'stage' in '{where}' is {value!r}; it must be tables, each headed [[stage]]"
        )


def fields_of_command(command: str) -> list[dataclasses.Field[Any]]:
    """The settings that a command takes, in their order."""
    every = dataclasses.fields(Settings)
    return [f for f in every if command in f.metadata[SETTING].commands]
