"""Self-contained HTML pages: one look for all, pictures inside the file."""

import base64
from typing import Any

import jinja2
import numpy as np
import simplejpeg

RESEARCH_USE_ONLY = "Research use only. Not for diagnosis of patients."

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("papsmear", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Fills a template, named from the package's root (`probes/report.html`); it extends `page.html`."""
    return _environment.get_template(template).render(research_use_only=RESEARCH_USE_ONLY, **values)


def jpeg_uri(jpeg: bytes) -> str:
    """A data URI of JPEG bytes."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def picture_uri(rgb: np.ndarray, quality: int = 85) -> str:
    """A data URI of an (H, W, 3) uint8 RGB picture."""
    return jpeg_uri(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality))


def figure_uri(figure: Any) -> str:
    """A data URI (SVG) of a matplotlib figure."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
