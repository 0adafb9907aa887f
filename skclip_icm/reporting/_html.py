"""Accessible HTML without anything to load: all text is escaped, images are inside."""

import base64
import html
import io

from skclip_icm._containers import printable

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1.25rem 3rem; color: #1a1a1a;
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 2px solid #0072b2; }
p { max-width: 46rem; }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0;
  list-style: none; }
a { color: #00517f; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 3px solid #d55e00; }
table { margin-bottom: 1rem; min-width: 18rem; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: 0.4rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #bbb; }
thead th { border-bottom: 2px solid #444; }
header p { margin-top: -0.5rem; color: #444; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.total > * { font-weight: 600; }
tr:not(.total) + tr.total > * { border-top: 2px solid #444; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figure.wide img { min-width: 40rem; }
figcaption { color: #444; font-size: 0.92rem; max-width: 46rem; }
ul.images { display: grid; gap: 1rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
ul.images img { width: 100%; height: 9rem; object-fit: contain; background: #eee; }
ul.images li { font-size: 0.9rem; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 0.3rem 0; }
@media (max-width: 30rem) { table { font-size: 0.88rem; }
  th, td { padding-right: 0.5rem; } }
@media print { nav { display: none; } h2, figure, li { break-inside: avoid; } }
"""

# Nothing but the styles and images of the file itself is ever used by the browser.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


_WIDE = ' class="wide"'


class Markup(str):
    """HTML that is escaped already."""


def page(title, line, sections):
    """Join a title, a line below it, and sections, as (heading, markup), to a page."""
    links, parts = [], []
    for i, (heading, content) in enumerate(sections):
        links.append(f'<li><a href="#s{i}">{escape(heading)}</a></li>')
        parts.append(
            f'<section aria-labelledby="s{i}">\n<h2 id="s{i}">{escape(heading)}</h2>\n'
            f"{content}\n</section>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>\n<p>{escape(line)}</p></header>\n"
        f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>\n<main>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def escape(value):
    """Return text as HTML, unless it is markup already."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def paragraph(*texts):
    """Return a paragraph of texts."""
    return Markup(f"<p>{' '.join(escape(text) for text in texts)}</p>")


def code(value):
    """Return a value in the type of code."""
    return Markup(f"<code>{html.escape(printable(value))}</code>")


def table(caption, columns, rows, *, n_totals=0):
    """Return a table whose first column has the headers of its rows.

    Parameters
    ----------
    caption : str
        What the table is about.
    columns : list of str
        Their headers.
    rows : list of lists
        Cells: text, or numbers, which stand to the right.
    n_totals : int, default=0
        That many rows at the end sum up the others.
    """
    numeric = [
        all(isinstance(row[i], Number) for row in rows) for i in range(len(columns))
    ]
    head = "".join(
        _cell("th", name, number, ' scope="col"')
        for name, number in zip(columns, numeric, strict=True)
    )
    body = []
    for i, row in enumerate(rows):
        total = ' class="total"' if i >= len(rows) - n_totals else ""
        cells = [_cell("th", row[0], numeric[0], ' scope="row"')]
        cells += map(_cell, ["td"] * (len(row) - 1), row[1:], numeric[1:])
        body.append(f"<tr{total}>{''.join(cells)}</tr>")
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table>\n<caption>{escape(caption)}</caption>'
        f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table></div>"
    )


class Number(str):
    """Text of a number, to stand to the right in tables."""


class Shaded(Number):
    """Text of a number in a cell that is the darker, the larger its share."""

    share = 0.0


def shaded(number, share):
    """Return a number for a table, in a cell shaded by its `share` between 0 and 1."""
    cell = Shaded(number)
    cell.share = share
    return cell


def details(summary, content):
    """Return content that is folded away until its summary is clicked."""
    return Markup(
        f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"
    )


def figure(matplotlib_figure, alt, caption, *, form="svg", wide=False):
    """Return a matplotlib figure within the page, as "svg" or as "png".

    A wide one is moved sidewards on a small screen, rather than made illegible.
    """
    import matplotlib

    file = io.BytesIO()
    settings = {"svg.hashsalt": "skclip-icm", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        matplotlib_figure.savefig(file, format=form, dpi=110, metadata=metadata)
    kind = "image/svg+xml" if form == "svg" else "image/png"
    return Markup(
        f'<figure{_WIDE if wide else ""}><div class="scroll">'
        f'<img src="{_data(file, kind)}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def images(entries):
    """Return small images, given as (PIL image or None, alt, lines of text)."""
    items = []
    for image, alt, lines in entries:
        shown = ""
        if image is not None:
            file = io.BytesIO()
            image.save(file, format="JPEG", quality=82)
            shown = f'<img src="{_data(file, "image/jpeg")}" alt="{escape(alt)}">'
        text = "<br>".join(escape(line) for line in lines)
        items.append(f"<li>{shown}<div>{text}</div></li>")
    return Markup(f'<ul class="images">{"".join(items)}</ul>')


def framed(whole_page, title):
    """Return a page in a frame, so that a notebook's styles and its own stay apart."""
    return (
        f'<iframe title="{escape(title)}" srcdoc="{html.escape(whole_page)}" '
        'sandbox="" width="100%" height="700" '
        'style="border: 1px solid #bbb"></iframe>'
    )


def _cell(tag, value, is_number, scope=""):
    number = ' class="number"' if is_number else ""
    if isinstance(value, Shaded) and value.share:
        # Light enough for the text, also at a share of 1.
        number += f' style="background: rgb(0 114 178 / {0.5 * value.share:.2f})"'
    return f"<{tag}{scope}{number}>{escape(value)}</{tag}>"


def _data(file, kind):
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:{kind};base64,{content}"
