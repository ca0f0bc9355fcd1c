"""Published values beside those computed here; marks what is outside its tolerance.

    python reproduction/compare.py                                             # published.csv against ours.csv
    python reproduction/compare.py --collect --model_root IP_training/IP_*     # first bring ours.csv up to date
    python reproduction/compare.py --collect --sweep imagenet --strict         # status 2 where something is outside

published.csv holds values with a source only; where there is none at hand the cell is empty, ready to be filled.
ours.csv is written by --collect alone, from ledgers, own-head checks (extractor/check_backbone.py), elastic nets,
accuracies at NEC and fine-tunings: a line replaces the one of the same key, all others stay. Values are compared where
the backbone is the same; with --all, ours of other backbones stand beside an accuracy at NEC, without a verdict.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import run_script, setting
from iis.names import EMBEDDINGS
from iis.runtime import ROOT, UserError, make_output_folder, write_text
from iis.statistics import plus_minus
from reproduction.lib import measured
from reproduction.lib.finetuned import FOLDER
from reproduction.lib.measured import KEY, OURS, read_lines
from reproduction.lib.outputs import write_table
from reproduction.lib.runs import Source, find_runs
from reproduction.lib.tables import as_csv, as_markdown

PUBLISHED = (*KEY, "value", "unit", "tolerance", "source")
VERDICTS = ("inside", "OUTSIDE", "not computed here", "no source", "not published", "other backbone: no comparison")
INSIDE, OUTSIDE, NOT_HERE, NO_SOURCE, ALONE, OTHER_MODEL = VERDICTS


@dataclass(kw_only=True)
class Settings(Source):
    """What is collected, compared and shown."""

    collect: bool = setting(False, "bring --ours up to date from --sweep or --model_root")
    embeddings: Path = setting(EMBEDDINGS, "where check_backbone.py kept original heads")
    finetuning: Path = setting(FOLDER, "folder of what finetuning.py has run")
    published: Path = setting(ROOT / "reproduction" / "published.csv", "values with a source")
    ours: Path = setting(ROOT / "reproduction" / "ours.csv", "values computed here")
    all: bool = setting(False, "also show what only one of the two has")
    strict: bool = setting(False, "exit status 2 where a value is outside its tolerance")


def main(settings: Settings) -> None:
    """Collect if asked, then print the two side by side; with --save_dir also as files."""
    if settings.collect:
        collect(settings)
    elif settings.sweep or settings.model_root:
        raise UserError("--sweep and --model_root say what to collect: add --collect")
    lines = compared(read_lines(settings.published, ("value", "tolerance"), PUBLISHED),
                     read_lines(settings.ours, ("value", "std"), OURS))
    wanted = lines if settings.all else lines[lines["verdict"].isin([INSIDE, OUTSIDE, NOT_HERE])]
    count = lines["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    sentence = (f"{count[INSIDE] + count[OUTSIDE]} compared: {count[INSIDE]} inside their tolerance, {count[OUTSIDE]} "
                f"outside; {count[NOT_HERE]} published values not computed here, {count[NO_SOURCE]} cells without a "
                f"source, {count[ALONE]} values of ours without a published one, {count[OTHER_MODEL]} beside one of "
                "another backbone")
    people = [for_people(line) for line in wanted.to_dict("records")]
    if settings.save_dir:
        write_table(make_output_folder(settings.save_dir), "compare", wanted, people, sentence)
    print((as_markdown(people) if people else "nothing to show") + f"\n\n{sentence}")
    if settings.strict and count[OUTSIDE]:
        raise UserError(f"{count[OUTSIDE]} values are outside their tolerance: look at their preprocessing, weights "
                        "and settings first")


def collect(settings: Settings) -> None:
    """Write --ours: the lines that it has, and those of the runs named."""
    make_output_folder(settings.ours.parent)
    old = read_lines(settings.ours, (), OURS) if settings.ours.is_file() else pd.DataFrame(columns=OURS)
    runs = find_runs(settings, draws=2)  # no interval is needed here
    lines = measured.merged(old, [
        *measured.lines_of_runs(runs), *measured.lines_of_own_heads(settings.embeddings),
        *measured.lines_of_elastic_nets(settings.model_root or [run.folder for run in runs]),
        *measured.lines_of_nec(runs), *measured.lines_of_fine_tuning(settings.finetuning)])
    write_text(settings.ours, as_csv(lines))
    print(f"{settings.ours}: {len(lines)} lines, from {len(runs)} ledgers")


def compared(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Join the two by `KEY`, with a verdict per line; several of ours (protocols) may stand beside one published.

    A value is inside where |ours − published| ≤ tolerance; a published value must have a tolerance. Below an accuracy
    at NEC that ours lacks for this backbone stand those that agree in all else, without a verdict.
    """
    for _, line in published[published["value"].notna() & published["tolerance"].isna()].iterrows():
        raise UserError(f"the published value of {', '.join(line[list(KEY)])} has no tolerance; give it one")
    ours = ours.assign(row=range(len(ours)))
    plain = ours[ours["variant"] == ""]
    theirs = published.assign(place=range(len(published))).rename(columns={"value": "published", "unit": "their_unit"})
    same = theirs.merge(plain, how="left", on=list(KEY))
    lacking = same.loc[same["row"].isna() & same["setting"].str.startswith("NEC = "), list(theirs)]
    near = lacking.merge(plain, on=[name for name in KEY if name != "model"], suffixes=("", "_of_ours"))
    near["model"] += "; ours: " + near.pop("model_of_ours")
    near = near.assign(tolerance=np.nan, other=True)
    alone = ours[~ours["row"].isin([*same["row"], *near["row"]])]
    lines = pd.concat([same, near, alone], ignore_index=True).sort_values("place", kind="stable", na_position="last")
    off = lines["value"] - lines["published"]
    other = lines["other"].notna()
    verdict = np.select(
        [lines["place"].isna(), other, lines["published"].isna(), lines["value"].isna(),
         off.abs() <= lines["tolerance"] + 1e-9],  # 1e-9: decimals that binary cannot hold
        [ALONE, OTHER_MODEL, NO_SOURCE, NOT_HERE, INSIDE], OUTSIDE)
    return pd.DataFrame({
        **{name: lines[name] for name in KEY}, "protocol": lines["protocol"].fillna(""),
        "variant": lines["variant"].fillna(""), "published": lines["published"], "ours": lines["value"],
        "std": lines["std"], "unit": lines["their_unit"].fillna(lines["unit"]), "off": off.mask(other),
        "tolerance": lines["tolerance"], "verdict": verdict, "source": lines["source"].fillna(lines["made_from"]),
        "marks": lines["marks"].fillna("")})


def for_people(line: dict[str, Any]) -> dict[str, str]:
    """A line for people: percent with two digits, areas with four."""
    digits = 2 if line["unit"] == "%" else 4

    def number(name: str, form: str) -> str:
        return "" if pd.isna(line[name]) else f"{line[name]:{form}}"

    return {"method": line["method"], "model": line["model"], "data set": line["dataset"],
            "setting": " ".join(filter(None, (line["setting"], line["protocol"], line["variant"]))),
            "measure": line["measure"] + (", %" if line["unit"] == "%" else ""),
            "published": number("published", f".{digits}f"),
            "ours": "" if pd.isna(line["ours"]) else plus_minus(
                line["ours"], None if pd.isna(line["std"]) else line["std"], digits),
            "off": number("off", f"+.{digits}f"), "tolerance": number("tolerance", "g"), "verdict": line["verdict"],
            "marks": line["marks"]}


if __name__ == "__main__":
    run_script(main, Settings)
