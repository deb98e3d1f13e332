"""A result as a notebook shows it: the verdict, a slice of each direction, the fits."""

import html

from instamap.report.contents import Finished, slice_pictures
from instamap.report.section import paragraphs

EDGE = 160  # pixels of a slice on the screen


def card(result: Finished) -> str:
    """The result as HTML, with nothing outside it."""
    verdict = html.escape(result.verdict)
    scene = result.scene
    facts = f"{type(result).__name__}: {scene.box} px of {scene.pixel_size:.4g} Å"
    pictures = ""
    if not result.without_signal:
        style = f'style="width: {EDGE}px; margin: 4px" alt'
        for words, picture in slice_pictures(result.maps["map"]):
            pictures += f'<img src="{picture}" {style}="{html.escape(words)}">'
    words = paragraphs(result.summary())
    heading = f"<p><strong>{verdict}</strong><br>{html.escape(facts)}</p>"
    return f"<div>{heading}<div>{pictures}</div><details>{words}</details></div>"
