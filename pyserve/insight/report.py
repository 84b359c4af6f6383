"""A page about a model that needs no network to be viewed: texts, tables and figures in one HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pyserve.insight.figures import FigureFile

_LARGE_BYTES = 200_000
_QUALITY = 85


@dataclass(frozen=True)
class Table:
    """Columns and rows of texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out."""

    title: str
    text: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    figures: Sequence[FigureFile] = ()
    problem: str = ""  # why something that belongs here is missing


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML5: no scripts, nothing fetched, readable on a phone and on paper, in light and dark."""
    links = "".join(
        f'<li><a href="#{_anchor(i)}">{html.escape(section.title)}</a></li>'
        for i, section in enumerate(page.sections)
    )
    body = "".join(_section(i, section) for i, section in enumerate(page.sections))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{html.escape(page.title)}</h1><p>{html.escape(page.subtitle)}</p></header>"
        f"<nav><ol>{links}</ol></nav><main>{body}</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    parts = [f'<section id="{_anchor(index)}"><h2>{html.escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.problem:
        parts.append(f'<p class="problem">{html.escape(section.problem)}</p>')
    if section.facts:
        rows = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in section.facts.items()
        )
        parts.append(f"<dl>{rows}</dl>")
    if section.table is not None and section.table.rows:
        parts.append(_table(section.table))
    parts += [_figure(figure, section.title) for figure in _one_of_each(section.figures)]
    return "".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _one_of_each(figures: Sequence[FigureFile]) -> list[FigureFile]:
    """Of a figure's PNG and SVG the smaller one: charts are small as SVG, pictures as PNG."""
    by_stem: dict[str, FigureFile] = {}
    for figure in figures:
        stem = figure.name.rpartition(".")[0]
        if stem not in by_stem or len(figure.data) < len(by_stem[stem].data):
            by_stem[stem] = figure
    return list(by_stem.values())


def _figure(figure: FigureFile, title: str) -> str:
    media_type, content = _compact(figure)
    data = base64.b64encode(content).decode()
    name = figure.name.rpartition(".")[0].replace("_", " ")
    alt = html.escape(f"{title}: {name}")
    return f'<figure><img alt="{alt}" src="data:{media_type};base64,{data}"></figure>'


def _compact(figure: FigureFile) -> tuple[str, bytes]:
    """Photographs as WebP: a page of PNGs of them would have tens of megabytes."""
    if figure.media_type != "image/png" or len(figure.data) < _LARGE_BYTES:
        return figure.media_type, figure.data
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(figure.data)) as image:
        image.convert("RGB").save(buffer, "WEBP", quality=_QUALITY)
    return "image/webp", buffer.getvalue()


def _anchor(index: int) -> str:
    return f"part-{index + 1}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --muted: #6a6a6a; --paper: #fff; --line: #ddd; --link: #0072B2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --muted: #a0a0a0; --paper: #16181a; --line: #3a3d40; --link: #6db7e8; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1.25rem; }
header p, dt { color: var(--muted); }
nav ol { columns: 16rem; padding-left: 1.2rem; font-size: .95rem; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .3rem 1.5rem;
  margin: .5rem 0; }
dt { font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .75rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
figure { margin: 1rem 0; background: #fff; border-radius: 4px; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.problem { color: #D55E00; }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
