"""Published values beside those computed here; marks what is outside its tolerance.

    python reproduction/compare.py                                             # published.csv against ours.csv
    python reproduction/compare.py --collect --model_root IP_training/IP_*     # first bring ours.csv up to date
    python reproduction/compare.py --collect --sweep imagenet --strict         # status 2 where something is outside

published.csv holds values with a source only; where there is none at hand the cell is empty, ready to be filled.
ours.csv is written by --collect alone, from ledgers, own-head checks (extractor/check_backbone.py), elastic nets,
accuracies at NEC and fine-tunings: a line replaces the one of the same key, all others stay. Values are compared where
the backbone is the same; with --all, ours of other backbones stand beside an accuracy at NEC, without a verdict.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, run_script
from iis.names import EMBEDDINGS
from iis.runtime import ROOT, UserError, make_output_folder, write_text
from reproduction.lib.finetuned import FOLDER
from reproduction.lib.measured import (
    KEY,
    OURS,
    lines_of_elastic_nets,
    lines_of_fine_tuning,
    lines_of_nec,
    lines_of_own_heads,
    lines_of_runs,
    merged,
    read_lines,
)
from reproduction.lib.outputs import write_table
from reproduction.lib.runs import add_source_flags, find_runs
from reproduction.lib.tables import as_csv, as_markdown, plus_minus

PUBLISHED = (*KEY, "value", "unit", "tolerance", "source")
INSIDE, OUTSIDE, NOT_HERE, NO_SOURCE, ALONE = "inside", "OUTSIDE", "not computed here", "no source", "not published"
OTHER_MODEL = "other backbone: no comparison"


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--collect", action="store_true", help="bring --ours up to date from --sweep or --model_root")
    add_source_flags(script)
    script.add_argument("--embeddings", type=path, default=EMBEDDINGS, help="where check_backbone.py kept original heads")
    script.add_argument("--finetuning", type=path, default=FOLDER, help="folder of what finetuning.py has run")
    script.add_argument("--published", type=path, default=ROOT / "reproduction" / "published.csv", help="values with a "
                      "source")
    script.add_argument("--ours", type=path, default=ROOT / "reproduction" / "ours.csv", help="values computed here")
    script.add_argument("--all", action="store_true", help="also show what only one of the two has")
    script.add_argument("--strict", action="store_true", help="exit status 2 where a value is outside its tolerance")
    return script


def main(args: argparse.Namespace) -> None:
    """Collect if asked, then print the two side by side; with --save_dir (or --sweep) also as files."""
    if args.collect:
        collect(args)
    elif args.sweep or args.model_root:
        raise UserError("--sweep and --model_root say what to collect: add --collect")
    ours = read_lines(args.ours, ("value", "std"), OURS)
    published = read_lines(args.published, ("value", "tolerance"), PUBLISHED)
    lines = compared(published, ours)
    shown = [line for line in lines if args.all or line["verdict"] in (INSIDE, OUTSIDE, NOT_HERE)]
    count = {verdict: sum(line["verdict"] == verdict for line in lines)
             for verdict in (INSIDE, OUTSIDE, NOT_HERE, NO_SOURCE, ALONE, OTHER_MODEL)}
    sentence = (f"{count[INSIDE] + count[OUTSIDE]} compared: {count[INSIDE]} inside their tolerance, {count[OUTSIDE]} "
                f"outside; {count[NOT_HERE]} published values not computed here, {count[NO_SOURCE]} cells without a "
                f"source, {count[ALONE]} values of ours without a published one, {count[OTHER_MODEL]} beside one of "
                "another backbone")
    for_people = [shown_line(line) for line in shown]
    if args.save_dir:
        write_table(make_output_folder(args.save_dir), "compare", shown, for_people, sentence)
    print((as_markdown(for_people) if for_people else "nothing to show") + f"\n\n{sentence}")
    if args.strict and count[OUTSIDE]:
        raise UserError(f"{count[OUTSIDE]} values are outside their tolerance: look at their preprocessing, weights "
                        "and settings first")


def collect(args: argparse.Namespace) -> None:
    """Write --ours: what is there already, and the lines of the runs named."""
    make_output_folder(args.ours.parent)
    old = read_lines(args.ours, (), OURS) if args.ours.is_file() else []
    runs = find_runs(args, draws=2)  # no interval is needed here
    roots = args.model_root or [run.folder for run in runs]
    new = [*lines_of_runs(runs), *lines_of_own_heads(args.embeddings), *lines_of_elastic_nets(roots),
           *lines_of_nec(runs), *lines_of_fine_tuning(args.finetuning)]
    lines = merged(old, new)
    write_text(args.ours, as_csv(lines))
    print(f"{args.ours}: {len(lines)} lines, from {len(runs)} ledgers")


def compared(published: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the two by `KEY`, with a verdict per line; several of ours (protocols) may stand beside one published.

    A value is inside where |ours − published| ≤ tolerance; a published value must say its tolerance. Below an accuracy
    at NEC that no line of ours has the backbone of stand those that agree in all else, without a verdict.
    """
    def key(line: dict[str, Any], but: str = "") -> tuple[str, ...]:
        return tuple(line[name] for name in KEY if name != but)

    lines, used = [], set()
    for line in published:
        found = [index for index, one in enumerate(ours) if key(one) == key(line) and not one["variant"]]
        used |= set(found)
        if line["value"] is not None and line["tolerance"] is None:
            raise UserError(f"the published value of {', '.join(key(line))} has no tolerance; give it one")
        lines += [_line(line, ours[index]) for index in found] or [_line(line, None)]
        if not found and line["setting"].startswith("NEC = "):
            near = [index for index, one in enumerate(ours) if key(one, "model") == key(line, "model")
                    and not one["variant"]]
            used |= set(near)
            lines += [_other_model(line, ours[index]) for index in near]
    return lines + [_line(None, one) for index, one in enumerate(ours) if index not in used]


def _line(published: dict[str, Any] | None, ours: dict[str, Any] | None) -> dict[str, Any]:
    known = published or ours
    value, tolerance = (published["value"], published["tolerance"]) if published else (None, None)
    off = None if value is None or ours is None else ours["value"] - value
    if published is None:
        verdict = ALONE
    elif value is None:
        verdict = NO_SOURCE
    elif ours is None:
        verdict = NOT_HERE
    else:  # 1e-9: decimals that binary cannot hold
        verdict = INSIDE if abs(off) <= tolerance + 1e-9 else OUTSIDE
    return {**{name: known[name] for name in KEY}, "protocol": ours["protocol"] if ours else "",
            "variant": ours["variant"] if ours else "", "published": value, "ours": ours["value"] if ours else None,
            "std": ours["std"] if ours else None, "unit": known["unit"], "off": off, "tolerance": tolerance,
            "verdict": verdict, "source": published["source"] if published else ours["made_from"]}


def _other_model(published: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    return {**_line(published, ours), "model": f"{published['model']}; ours: {ours['model']}", "off": None,
            "tolerance": None, "verdict": OTHER_MODEL}


def shown_line(line: dict[str, Any]) -> dict[str, str]:
    """A line for people: percent with two digits, areas with four."""
    digits = 2 if line["unit"] == "%" else 4
    what = " ".join(part for part in (line["setting"], line["protocol"], line["variant"]) if part)
    ours = "" if line["ours"] is None else plus_minus(line["ours"], line["std"], digits)
    return {"method": line["method"], "model": line["model"], "data set": line["dataset"], "setting": what,
            "measure": line["measure"] + (", %" if line["unit"] == "%" else ""),
            "published": "" if line["published"] is None else f"{line['published']:.{digits}f}", "ours": ours,
            "off": "" if line["off"] is None else f"{line['off']:+.{digits}f}",
            "tolerance": "" if line["tolerance"] is None else f"{line['tolerance']:g}", "verdict": line["verdict"]}


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
