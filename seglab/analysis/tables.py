"""Tables: for a terminal, in Markdown, in LaTeX."""

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seglab.core.files import write_atomic, write_csv


class Table(NamedTuple):
    """A table with a title above it and notes below it."""

    title: str
    head: list[str]
    n_text_columns: int  # the first columns; the others hold numbers
    body: list[list[str]]
    notes: list[str]


def format_plain(table: Table, width: int | None) -> str:
    """Format for a terminal; columns beyond its width stand below the others."""
    rows, left = [table.head, *table.body], table.n_text_columns
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for i in range(left, len(sizes)):
        used = sum(sizes[j] + 2 for j in [*range(left), *blocks[-1], i]) - 2
        if width is not None and used > width and blocks[-1]:
            blocks.append([])
        blocks[-1].append(i)
    lines = textwrap.wrap(table.title, width or sys.maxsize)
    for block in blocks:
        lines.append("")
        for row in rows:
            cells = [row[i].ljust(sizes[i]) for i in range(left)]
            cells += [row[i].rjust(sizes[i]) for i in block]
            lines.append("  ".join(cells).rstrip())
    if table.notes:
        lines.append("")
    for note in table.notes:
        lines += textwrap.wrap(note, width or sys.maxsize)
    return "\n".join(lines)


def format_markdown(table: Table) -> str:
    """For a page or a pull request."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(escape, cells))} |"

    def escape(text: str) -> str:
        return re.sub(r"([\\|*<`])", r"\\\1", text)

    rule = [":--" if i < table.n_text_columns else "--:" for i in range(len(table.head))]
    lines = [line(table.head), f"|{'|'.join(rule)}|", *map(line, table.body)]
    if table.notes:
        lines += ["", *(f"- {escape(note)}" for note in table.notes)]
    return "\n".join([escape(table.title), "", *lines, ""])


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"}
    | {"†": r"\textdagger{}"}
)


def format_latex(table: Table) -> str:
    """A table environment, as wide as the text; its document loads booktabs and graphicx."""

    def line(cells: Sequence[str]) -> str:
        # Braces: LaTeX would take [ after \\ for a length.
        return f"{' & '.join(f'{{{cell.translate(_LATEX)}}}' for cell in cells)} \\\\"

    columns = "l" * table.n_text_columns + "r" * (len(table.head) - table.n_text_columns)
    out = [r"% needs \usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering", r"\small"]
    out += [f"\\caption{{{table.title.translate(_LATEX)}}}", r"\resizebox{\linewidth}{!}{%"]
    out += [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.head), r"\midrule"]
    out += [*map(line, table.body), r"\bottomrule", r"\end{tabular}}"]
    out += [f"\\par\\smallskip {note.translate(_LATEX)}" for note in table.notes]
    return "\n".join([*out, r"\end{table}", ""])


def write_table(
    folder: Path, name: str, table: Table, records: Sequence[Mapping[str, Any]]
) -> None:
    """Write NAME.md and NAME.tex, and NAME.csv with the records at full precision."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.md", format_markdown(table))
    write_atomic(folder / f"{name}.tex", format_latex(table))
    write_csv(folder / f"{name}.csv", records)
