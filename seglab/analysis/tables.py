"""Tables: for a terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A table with its title and notes.

    Attributes:
        title: Text above the table.
        head: Headings of the columns.
        n_text_columns: Number of columns at the left that hold text; the others hold numbers.
        body: Cells of each row.
        notes: Lines below the table.
    """

    title: str
    head: list[str]
    n_text_columns: int
    body: list[list[str]]
    notes: list[str]


def format_plain(table: Table, width: int | None) -> str:
    """For a terminal: where it is too narrow, some columns below the others."""
    cells = [table.head, *table.body]
    sizes = [max(len(row[i]) for row in cells) for i in range(len(table.head))]
    left, blocks = table.n_text_columns, [list(range(table.n_text_columns, len(table.head)))]
    if width is not None and sum(sizes) + 2 * len(sizes) - 2 > width:
        # What names a row is one column then.
        cells = [[", ".join(filter(None, row[:left])), *row[left:]] for row in cells]
        sizes = [min(max(len(row[0]) for row in cells), width // 2), *sizes[left:]]
        left, blocks = 1, [[]]
        for i in range(1, len(sizes)):
            if blocks[-1] and sum(sizes[j] + 2 for j in [*blocks[-1], i]) > width - sizes[0]:
                blocks.append([])
            blocks[-1].append(i)
    out = textwrap.wrap(table.title, width) if width else [table.title]
    for block in blocks:
        out.append("")
        for row in cells:
            names = textwrap.wrap(row[0], sizes[0]) or [""] if left == 1 else [row[0]]
            texts = [names[0].ljust(sizes[0]), *(row[i].ljust(sizes[i]) for i in range(1, left))]
            out.append("  ".join([*texts, *(row[i].rjust(sizes[i]) for i in block)]).rstrip())
            out += names[1:]
    out += [""] * bool(table.notes)
    for note in table.notes:
        out += textwrap.wrap(note, width) if width else [note]
    return "\n".join(out)


def format_markdown(table: Table) -> str:
    """For a page or a pull request."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(escape, cells))} |"

    def escape(text: str) -> str:
        return re.sub(r"([\\|*<`])", r"\\\1", text)

    rule = [":--" if i < table.n_text_columns else "--:" for i in range(len(table.head))]
    lines = [line(table.head), f"|{'|'.join(rule)}|", *map(line, table.body)]
    notes = [f"- {escape(note)}" for note in table.notes]
    return "\n".join([escape(table.title), "", *lines, *[""] * bool(notes), *notes, ""])


_LATEX: dict[str, Any] = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "±": r"$\pm$",
    "\\": r"\textbackslash{}",
}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}


def format_latex(table: Table) -> str:
    """A table environment, as wide as the text; its document loads booktabs and graphicx."""

    def line(cells: Sequence[str]) -> str:
        # Braces: LaTeX would take [ after \\ for a length.
        return f"{' & '.join(f'{{{escape(cell)}}}' for cell in cells)} \\\\"

    def escape(text: str) -> str:
        return text.translate(str.maketrans(_LATEX))

    columns = "l" * table.n_text_columns + "r" * (len(table.head) - table.n_text_columns)
    out = [
        *("% needs \\usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering", r"\small"),
        *(f"\\caption{{{escape(table.title)}}}", r"\resizebox{\linewidth}{!}{%"),
        *(f"\\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.head), r"\midrule"),
        *(*map(line, table.body), r"\bottomrule", r"\end{tabular}}"),
        *(f"\\par\\smallskip {escape(note)}" for note in table.notes),
        *(r"\end{table}", ""),
    ]
    return "\n".join(out)
