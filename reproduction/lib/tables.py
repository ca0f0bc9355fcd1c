"""Tables as people and programs want them: CSV, Markdown, LaTeX, and numbers with their spread."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """A table as CSV; lists are joined by blanks."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: " ".join(map(str, value)) if isinstance(value, list) else value
                         for key, value in line.items()})
    return out.getvalue()


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A table as Markdown."""
    names = list(lines[0])
    rows = [names, ["---"] * len(names), *([str(line[name]) for name in names] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


LATEX = str.maketrans({"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
                       "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
                       "ρ": r"$\rho$", "τ": r"$\tau$", "λ": r"$\lambda$", "∫": r"$\int$", "≥": r"$\ge$",
                       "≤": r"$\le$", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "Δ": r"$\Delta$"})


def as_latex(lines: Sequence[dict[str, Any]], caption: str = "", label: str = "") -> str:
    """A table as LaTeX (package booktabs); signs that LaTeX keeps for itself are escaped."""
    names = list(lines[0])
    rows = [" & ".join(str(value).translate(LATEX) for value in row) + r" \\"
            for row in (names, *([line[name] for name in names] for line in lines))]
    body = ["\\begin{tabular}{l" + "r" * (len(names) - 1) + "}", r"\toprule", rows[0], r"\midrule", *rows[1:],
            r"\bottomrule", r"\end{tabular}"]
    notes = [f"\\caption{{{caption.translate(LATEX)}}}"] if caption else []
    notes += [f"\\label{{{label}}}"] if label else []
    return "\n".join([r"\begin{table}", r"\centering", *body, *notes, r"\end{table}", ""])


def plus_minus(mean: float, std: float | None, digits: int = 4) -> str:
    """"0.8123 ± 0.0021"; without ± where there is one seed."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
