"""Tables: CSV keeps values as they are, Markdown and LaTeX show them; scripts called with a mapping."""

import dataclasses
import types

import pandas as pd
import pytest

from iis.cli import setting
from iis.runtime import UserError, read_json
from reproduction.lib.outputs import write_table
from reproduction.lib.sweeps import call_script, setting_names
from reproduction.lib.tables import as_csv, as_markdown


def test_values_stay_as_they_are_in_csv():
    rows = [{"M": 64, "std": 0.1 + 0.2, "rates": [0.1, 1], "ok": True},
            {"M": None, "std": None, "rates": [], "ok": False}]
    assert as_csv(rows) == "M,std,rates,ok\n64,0.30000000000000004,0.1 1,True\n,,,False\n"
    assert as_csv(pd.DataFrame(rows[:1])) == as_csv(rows[:1])  # either way in
    assert as_markdown([{"a": 1, "b": None}]) == "| a | b |\n| --- | --- |\n| 1 |  |"


def test_a_table_is_written_for_people_latex_and_the_report(tmp_path):
    shown = [{"model": "vit_b_16", "top-1, %": "81.0 ± 0.1"}, {"model": "a&b", "top-1, %": "50"}]
    said = write_table(tmp_path, "t", [{"x": 1.5}], shown, "100 %")
    assert (tmp_path / "t.csv").read_text() == "x\n1.5\n" and said.endswith("| a&b | 50 |\n\n*100 %*")
    assert (tmp_path / "t.md").read_text() == said + "\n"
    assert read_json(tmp_path / "t.table.json") == {"caption": "100 %", "rows": shown}
    assert (tmp_path / "t.tex").read_text().splitlines() == [
        r"\begin{table}", r"\centering", r"\caption{100 \%}", r"\label{tab:t}", r"\begin{tabular}{lr}", r"\toprule",
        r"model & top-1, \% \\", r"\midrule", r"vit\_b\_16 & 81.0 $\pm$ 0.1 \\", r"a\&b & 50 \\", r"\bottomrule",
        r"\end{tabular}", r"\end{table}"]


@dataclasses.dataclass(kw_only=True)
class Settings:
    """Flags."""

    rates: tuple[float, ...] = setting((1.0,), "rates")
    name: str = setting("a", "a name")
    fast: bool = setting(False, "a switch")


def test_a_script_is_called_with_a_mapping():
    script = types.SimpleNamespace(__name__="script", Settings=Settings, main=lambda settings: settings)
    found = call_script(script, {"rates": [0.1, 0.2], "name": None, "fast": True})
    assert found == Settings(rates=(0.1, 0.2), fast=True) and setting_names(script) == {"rates", "name", "fast"}
    with pytest.raises(UserError, match="'nam'; did you mean name"):
        call_script(script, {"nam": 1})
