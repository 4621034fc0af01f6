"""A table as text: Markdown for terminals and pages, LaTeX (booktabs), CSV and HTML; everything is escaped."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from assay.results.errors import unknown
from assay.results.statistics import Mean

Format = Literal["md", "latex", "csv", "html"]
Keys = tuple[str, ...]
WIDTH: Final = 140  # characters; a wider table is cut into panels that repeat the leading columns


@dataclass(frozen=True)
class Table:
    """A table of texts, each of which knows the cells of the grid that it was computed from.

    Attributes:
        title: what it shows.
        columns: the headings.
        rows: one text per column; an empty text means "nothing to say", a dash "not in the sweep".
        notes: footnotes and legend.
        keys: the `cell_key`s behind each text, in the shape of `rows`.
        lead: how many leading columns name a row.
        parted: whether a wide table may be cut into panels; lines that compare figures stay whole.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    keys: tuple[tuple[Keys, ...], ...] = ()
    lead: int = 1
    parted: bool = True

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a row has as many texts as there are columns"
        assert [len(row) for row in self.keys] == [len(row) for row in self.rows], "every text has its keys"


def render(table: Table, fmt: str) -> str:
    """Return a table in one of the formats `md`, `latex`, `csv`, `html`, ending with a line feed.

    Raises:
        ResultsError: unknown format.
    """
    formats: dict[str, Callable[[Table], str]] = {"md": _markdown, "latex": _latex, "csv": _csv, "html": _html}
    if fmt not in formats:
        raise unknown("format", fmt, formats)
    return formats[fmt](table)


def percent(mean: Mean, digits: int = 1) -> str:
    """Return a mean rate in percent with the half-width of its interval, if it has one."""
    half = "" if mean.half is None else f"±{100 * mean.half:.{digits}f}"
    return f"{100 * mean.value:.{digits}f}{half}"


def _panels(table: Table, texts: Sequence[Sequence[str]], between: int) -> list[list[int]]:
    """Return the columns of each panel, so that none is wider than `WIDTH` if it can be helped.

    Args:
        table: the table.
        texts: headings and rows as they will be printed.
        between: characters between two columns.
    """
    if not table.parted:
        return [list(range(len(table.columns)))]
    widths = [max(len(row[i]) for row in texts) + between for i in range(len(table.columns))]
    lead = list(range(table.lead))
    room = WIDTH - sum(widths[: table.lead])
    panels: list[list[int]] = [[]]
    for column in range(table.lead, len(widths)):
        if panels[-1] and sum(widths[i] for i in panels[-1]) + widths[column] > room:
            panels.append([])
        panels[-1].append(column)
    return [lead + panel for panel in panels]


def _numeric(table: Table, column: int) -> bool:
    """Return whether a column holds figures, which are aligned to the right."""
    texts = [row[column] for row in table.rows if row[column] not in ("", "-")]
    return bool(texts) and all(re.fullmatch(r"[+−-]?\d[\d.,]*%?(±\d[\d.]*)?( \[\d+\])*", text) for text in texts)


# --- Markdown ----------------------------------------------------------------------------------------------------


def _markdown(table: Table) -> str:
    texts = [[_markdown_text(text) for text in row] for row in (table.columns, *table.rows)]
    parts = [f"**{_markdown_text(table.title)}**"]
    for panel in _panels(table, texts, between=3) if table.rows else []:
        widths = [max(3, *(len(row[i]) for row in texts)) for i in panel]
        right = [_numeric(table, i) for i in panel]
        lines = [
            "| " + " | ".join(_pad(row[i], w, r) for i, w, r in zip(panel, widths, right, strict=True)) + " |"
            for row in texts
        ]
        rule = "|".join(f" {'-' * (w - 1)}: " if r else f" {'-' * w} " for w, r in zip(widths, right, strict=True))
        parts.append("\n".join([lines[0], f"|{rule}|", *lines[1:]]))
    if table.notes:
        parts.append("\n".join(f"- {_markdown_text(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _markdown_text(text: str) -> str:
    # Only what Markdown would swallow inside a table; a table must stay readable in a terminal.
    return re.sub(r"([|*`<])", r"\\\1", " ".join(text.split()))


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


# --- LaTeX -------------------------------------------------------------------------------------------------------

_LATEX: Final = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "$": r"\$", "#": r"\#", "&": r"\&"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "λ": r"$\lambda$", "−": "$-$", "–": "--", "≤": r"$\le$"},
    **{"≥": r"$\ge$", "…": r"\dots{}"},
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_cell(text: str) -> str:
    # A bracket right behind `\\` or `\midrule` would be read as an optional argument.
    escaped = _latex_text(text)
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped


def _latex(table: Table) -> str:
    texts = [[_latex_cell(text) for text in row] for row in (table.columns, *table.rows)]
    lines = [
        "% needs \\usepackage{booktabs}, \\usepackage{textcomp} and \\usepackage[T1]{fontenc}",
        r"\begin{table}[t]",
        r"\centering\small",
        f"\\caption{{{_latex_text(table.title)}}}",
    ]
    panels = _panels(table, (table.columns, *table.rows), between=2) if table.rows else []
    for number, panel in enumerate(panels):
        lines += [r"\par\medskip"] if number else []
        lines.append(f"\\begin{{tabular}}{{{''.join('r' if _numeric(table, i) else 'l' for i in panel)}}}")
        body = [" & ".join(row[i] for i in panel) + r" \\" for row in texts]
        lines += [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par{{\\footnotesize {_latex_text(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


# --- CSV and HTML ------------------------------------------------------------------------------------------------


def _csv(table: Table) -> str:
    """Return all rows with one more column, `keys`: `column=cell cell; column=cell` for every text with cells."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*table.columns, "keys"])
    for row, keys in zip(table.rows, table.keys, strict=True):
        pairs = zip(table.columns, keys, strict=True)
        writer.writerow([*row, "; ".join(f"{name}={' '.join(cells)}" for name, cells in pairs if cells)])
    return buffer.getvalue()


def _html(table: Table) -> str:
    """Return a fragment without scripts or outside references; the cells' keys are in `data-cells`."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    body = []
    for row, keys in zip(table.rows, table.keys, strict=True):
        cells = [_html_cell(table, column, text, keys[column]) for column, text in enumerate(row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join(
        [
            '<div class="assay-table" style="overflow-x:auto">',
            f"<table><caption>{html.escape(table.title)}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            f"<tbody>{''.join(body)}</tbody></table>",
            *([f"<ul>{notes}</ul>"] if notes else []),
            "</div>\n",
        ]
    )


def _html_cell(table: Table, column: int, text: str, keys: Keys) -> str:
    cells = html.escape(" ".join(keys))
    data = f' data-cells="{cells}" title="{cells}"' if keys else ""
    align = ' style="text-align:right"' if _numeric(table, column) else ""
    if column < table.lead:
        return f'<th scope="row"{data}>{html.escape(text)}</th>'
    return f"<td{data}{align}>{html.escape(text)}</td>"
