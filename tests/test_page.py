"""Pages hold everything inside, and what comes from outside is escaped."""

import base64
from pathlib import Path

import jinja2
import numpy as np
import pytest
import simplejpeg
from matplotlib.figure import Figure

from papsmear import page


def test_a_page_needs_nothing_from_outside() -> None:
    html = page.render("page.html")
    assert page.RESEARCH_USE_ONLY in html
    assert "http" not in html
    assert "src=" not in html


def test_values_are_escaped_and_none_may_be_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.html").write_text("<p>{{ slide_id }}</p>")
    monkeypatch.setattr(page._environment, "loader", jinja2.FileSystemLoader(tmp_path))
    assert page.render("one.html", slide_id="<b>&a") == "<p>&lt;b&gt;&amp;a</p>"
    with pytest.raises(jinja2.UndefinedError, match="slide_id"):
        page.render("one.html")


def test_a_picture_comes_back_from_its_uri() -> None:
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, 30:] = (200, 40, 90)
    head, _, data = page.picture_uri(rgb[:, ::-1]).partition(",")
    assert head == "data:image/jpeg;base64"
    back = simplejpeg.decode_jpeg(base64.b64decode(data))
    assert back.shape == rgb.shape
    assert np.abs(back[:, ::-1].astype(int) - rgb).mean() < 5


def test_a_figure_is_vectors_and_has_no_date() -> None:
    figure = Figure()
    figure.add_subplot().plot([1, 2, 3])
    head, _, data = page.figure_uri(figure).partition(",")
    svg = base64.b64decode(data).decode()
    assert head == "data:image/svg+xml;base64"
    assert svg.rstrip().endswith("</svg>")
    assert "dc:date" not in svg
