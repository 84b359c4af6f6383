"""The report: one file, well formed, nothing fetched, whatever is in the texts."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pyserve.insight.figures import FigureFile, confusion_matrix
from pyserve.insight.report import Page, Section, Table, render

EVIL = '<script>alert("x")</script> & more'


class Balanced(HTMLParser):
    """Fails where tags do not match, and gathers what the page refers to."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def page() -> Page:
    figures = confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"])
    sections = [
        Section("First & foremost", text=EVIL, facts={"a fact": EVIL}),
        Section("A table", table=Table(("x", "y"), [("1", EVIL), ("2", "ü")])),
        Section("A figure", figures=figures),
        Section("Missing", problem="it has one class"),
    ]
    return Page("models/pets/versions/1", "looked at today", sections)


def test_the_page_is_whole_and_fetches_nothing() -> None:
    html = render(page())
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert all(source.startswith(("#part-", "data:image/")) for source in parser.sources)
    assert "<script" not in html
    assert not re.search(r"https?://|@import|url\(", html)
    assert parser.text.count('<script>alert("x")</script> & more') == 3
    for words in ("First & foremost", "models/pets/versions/1", "it has one class", "ü"):
        assert words in parser.text


def test_of_a_figures_two_forms_the_smaller_one_is_embedded() -> None:
    figures = confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"])
    html = render(Page("t", "s", [Section("A figure", figures=figures)]))
    smaller = min(figures, key=lambda f: len(f.data))
    assert html.count("<img") == 1
    assert f"data:{smaller.media_type};base64,{base64.b64encode(smaller.data).decode()}" in html


def test_photographs_are_embedded_small_and_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels[:30, :20]).resize((400, 600), Image.Resampling.BICUBIC)
    noisy = Image.blend(smooth, Image.fromarray(pixels), 0.1)
    buffer = io.BytesIO()
    noisy.save(buffer, "PNG")
    figure = FigureFile("photo.png", "image/png", buffer.getvalue())
    html = render(Page("t", "s", [Section("A figure", figures=[figure])]))
    match = re.search(r"data:image/webp;base64,([^\"]*)", html)
    assert match is not None
    data = base64.b64decode(match[1])
    assert len(data) < len(figure.data) / 3
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == noisy.size
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(noisy)).mean() < 12


def test_links_lead_to_their_sections() -> None:
    html = render(page())
    for i in range(1, 5):
        assert f'href="#part-{i}"' in html
        assert f'<section id="part-{i}">' in html
