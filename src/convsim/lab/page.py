"""A table and pictures on one HTML page that needs nothing else, and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from convsim.report.html import document
from convsim.visible import visible

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem;
  padding: 0 1rem; color: #222; background: #fff; }
div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .8rem; text-align: right; border-bottom: 1px solid #8884;
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; }
img { margin-top: 1rem; width: 100%; min-width: 40rem; background: #fff; }
p { opacity: .8; font-size: .9rem; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #181a1b; }
  a { color: #7ccfb0; }
  img { filter: invert(.9) hue-rotate(180deg); }
}
@media (max-width: 34rem) { th, td { padding: .3rem .4rem; font-size: .9rem; } }
"""


def page(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    pictures: Sequence[tuple[str, bytes]] = (),
    above: str = "",
    below: str = "",
    links: Mapping[str, str] | None = None,
) -> str:
    """Make the page.

    Args:
        title: Its title.
        head: The table's columns, the first to the left.
        rows: Its cells.
        pictures: What each shows, and a PNG.
        above: A sentence between title and table.
        below: The small print at the end.
        links: Text and address of other files beside this one.
    """
    cells = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in line)}</tr>" for line in rows
    )
    shown = "".join(
        f'<div><img alt="{_text(alt)}"\n src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}"></div>\n'
        for alt, data in pictures
    )
    to = "".join(
        f'<p><a href="{_text(address)}">{_text(text)}</a></p>\n'
        for text, address in (links or {}).items()
    )
    body = f"""<h1>{_text(title)}</h1>
<p>{_text(above)}</p>
<div><table><thead><tr>{"".join(f"<th>{_text(name)}</th>" for name in head)}</tr></thead>
<tbody>{cells}</tbody></table></div>
{shown}{to}<p>{_text(below)}</p>"""
    return document(title, _STYLE, body, "img-src data:")


def _text(text: str) -> str:
    return escape(visible(text))
