"""The hooks that a plugin can implement (entry-point group "instamap")."""

from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("instamap")
hookimpl = pluggy.HookimplMarker("instamap")


@hookspec
def instamap_components() -> Any:
    """Return a list of `instamap.plugin.component.Component`: the parts this plugin provides."""


@hookspec
def instamap_commands(app: Any) -> None:
    """Add commands to the command line: `app` is a Typer application of this plugin's own, whose
    commands join the built-in ones.
    """


@hookspec
def instamap_run_started(settings: dict[str, Any]) -> None:
    """A reconstruction is about to fit; `settings` is the dict that run.toml will hold."""


@hookspec
def instamap_step_finished(name: str, step: int, metrics: dict[str, float]) -> None:
    """One evaluation of the fit called `name` ("half1", "half1 bend"): the step number
    and a dict of floats, as in log.jsonl.

    It is called from the threads of the fits, one call at a time.
    """


@hookspec
def instamap_report_sections(result: Any) -> Any:
    """Return a list of `instamap.report.section.Section`: what this plugin adds to the report of a
    finished run.
    """
