"""LaTeX tables: booktabs, and signs that would break a document."""

from reproduction.lib.tables import as_latex


def test_latex_escapes_what_latex_keeps_for_itself():
    text = as_latex([{"model": "vit_b_16", "top-1, %": "81.0 ± 0.1"}, {"model": "a&b", "top-1, %": "50"}], "100 %", "t")
    assert text.splitlines() == [
        r"\begin{table}", r"\centering", r"\begin{tabular}{lr}", r"\toprule", r"model & top-1, \% \\", r"\midrule",
        r"vit\_b\_16 & 81.0 $\pm$ 0.1 \\", r"a\&b & 50 \\", r"\bottomrule", r"\end{tabular}", r"\caption{100 \%}",
        r"\label{t}", r"\end{table}"]
