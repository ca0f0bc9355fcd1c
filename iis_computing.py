"""Stage 4: ledger → accuracy-retention curve → Inherent Interpretability Score.

    python iis_computing.py --model_root ./IP_Prototype/resnet50
    python iis_computing.py --model_root IP_training/IP_Prototype --save_dir results/all_models

Every ledger (results.jsonl) at or below --model_root is read; iis.json, iis.csv and iis.png are written beside it,
and for several ledgers a comparison into --save_dir. A folder of checkpoints named as the authors' release names
them is read too.
"""

import argparse
from pathlib import Path
from typing import Any

from iis.cli import ScriptParser, path, run_script
from iis.plots import plot_arr
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, make_output_folder, write_json, write_text
from iis.summary import TITLE, is_release_folder, release_summary, summarise
from reproduction.lib.tables import as_csv, plus_minus


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--model_root", nargs="+", required=True,
                      help="folder(s) with ledgers; also looked for below IP_training/")
    script.add_argument("--save_dir", type=path, help="where a comparison of several ledgers goes (default: the first "
                                                    "--model_root)")
    script.add_argument("--bootstrap", type=int, default=1000, help="resamples of the validation images")
    return script


def main(args: argparse.Namespace) -> None:
    """Print and write the IIS of every ledger found."""
    if args.bootstrap < 2:
        raise UserError(f"--bootstrap {args.bootstrap}: at least 2 resamples are needed for a spread")
    roots = [find_root(root) for root in args.model_root]
    ledgers = sorted({file for root in roots for file in root.rglob(LEDGER)})
    release = [root for root in roots if is_release_folder(root)]
    if not ledgers and not release:
        raise UserError(f"there is no ledger ({LEDGER}) at or below {', '.join(map(str, roots))}; run stage 3 first")
    for root in release:
        report_release(root)
    results, failed = each(lambda file: report(file, args.bootstrap), ledgers)
    if len(results) > 1:
        compare(results, make_output_folder(args.save_dir or roots[0]))
    if failed:
        raise UserError(f"no IIS for {len(failed)} of {len(ledgers)} ledgers: {'; '.join(failed)}")


def find_root(name: str) -> Path:
    """The folder as given, or below IP_training/, where the published commands put it."""
    candidates = [path(name), ROOT / "IP_training" / name, ROOT / name]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise UserError(f"there is no folder {candidates[0]} (nor {candidates[1].resolve()}); run stage 3 first, or name "
                    "the folder its --save_dir named")


def report(file: Path, draws: int) -> dict[str, Any]:
    """Summarise one ledger: print it, write iis.json, iis.csv and iis.png beside it."""
    result = summarise(read_ledger(file), draws, str(file))
    result["folder"] = str(file.parent)
    result["label"] = (f"{result['model']}, {result['dataset']}, {result['bank']}, M = {result['num_concepts']}"
                       + (f", {result['protocol']}" if result["protocol"] != "paper" else ""))
    score, folder = result["iis"], file.parent
    print(f"\n{result['label']}  ({len(result['seeds'])} seed{'s' if len(result['seeds']) > 1 else ''}, "
          f"{result['n_val']} validation images, D = {result['width']})")
    print(text_table(result))
    low, high = result["bootstrap"]["interval_95"]
    print(f"IIS = {with_spread(score)} of {result['span']:g} ({score['normalised']:.4f} of its span); "
          f"bootstrap over images 95 % [{low:.4f}, {high:.4f}]")
    print(f"last epoch instead of best: IIS = {with_spread(result['iis_last'])}; chance-corrected: "
          f"{with_spread(result['iis_chance_corrected'])}")
    for remark in result["remarks"]:
        print(remark)
    write_json(folder / "iis.json", result)
    write_text(folder / "iis.csv", as_csv(result["table"]))
    plot_arr({f"IIS = {with_spread(score)}": [curve(result, result["label"])]}, folder / "iis.png")
    print(f"written: {folder}/iis.json, iis.csv, iis.png")
    return result


def compare(results: list[dict[str, Any]], folder: Path) -> None:
    """One line per ledger, and all curves in one image."""
    lines = [{**{name: result[name] for name in TITLE}, "seeds": len(result["seeds"]), "dense": result["dense"]["mean"],
              "dense_std": result["dense"]["std"], "iis": result["iis"]["mean"], "iis_std": result["iis"]["std"],
              "iis_normalised": result["iis"]["normalised"], "iis_last": result["iis_last"]["mean"],
              "iis_chance_corrected": result["iis_chance_corrected"]["mean"],
              "bootstrap_low": result["bootstrap"]["interval_95"][0],
              "bootstrap_high": result["bootstrap"]["interval_95"][1], "folder": result["folder"]}
             for result in results]
    write_text(folder / "comparison.csv", as_csv(lines))
    write_json(folder / "comparison.json", lines)
    plot_arr(panels(results), folder / "comparison.png")
    width = max(len(result["label"]) for result in results)
    print(f"\n{'run':{width}}  {'dense top-1':>17}  {'IIS':>17}  normalised")
    for result in results:
        print(f"{result['label']:{width}}  {with_spread(result['dense']):>17}  {with_spread(result['iis']):>17}  "
              f"{result['iis']['normalised']:.4f}")
    print(f"written: {folder}/comparison.json, comparison.csv, comparison.png")


def report_release(folder: Path) -> None:
    """The area of a folder of the release's checkpoints, by the release's rule."""
    results = release_summary(folder)
    for result in results:
        print(f"{folder}, M = {result['num_concepts']}: IIS = {result['iis']:.4f} "
              f"({result['normalised']:.4f} of its span), best dense top-1 {result['dense']:.4f}")
    write_json(folder / "iis_release.json", results)
    print(f"written: {folder}/iis_release.json")


def panels(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The curves of a comparison: a panel per bank where there are several; labels tell only what differs."""
    differing = [name for name in TITLE if len({str(result[name]) for result in results}) > 1]
    by_bank = "bank" in differing and len(results) > 3
    drawn: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        parts = [f"M = {result[name]}" if name == "num_concepts" else str(result[name])
                 for name in differing if not (by_bank and name == "bank")] or [result["model"]]
        label = f"{', '.join(parts)}: IIS {with_spread(result['iis'])}"
        drawn.setdefault(result["bank"] if by_bank else "", []).append(curve(result, label))
    return drawn


def curve(result: dict[str, Any], label: str) -> dict[str, Any]:
    """A run as `plot_arr` wants it."""
    return {"label": label, "ratios": result["ratios"], "arr": result["curves"]["best"]["arr"]}


def text_table(result: dict[str, Any]) -> str:
    """The table of one run for the terminal: accuracies in percent."""
    lines = ["    s  kept     top-1 ± std   top-5   ARR ± std         last top-1  learning rate"]
    for line in result["table"]:
        ratio = "dense" if line["ratio"] is None else f"{line['ratio']:g}"
        kept = "-" if line["kept"] is None else str(line["kept"])
        rates = ", ".join(f"{rate:g}" for rate in line["learning_rates"])
        top1_std = "" if line["top1_std"] is None else f" ± {100 * line['top1_std']:.2f}"
        arr_std = "" if line["arr_std"] is None else f" ± {line['arr_std']:.4f}"
        lines.append(f"{ratio:>5} {kept:>5}  {100 * line['top1']:6.2f}{top1_std:7}  {100 * line['top5']:6.2f}  "
                     f"{line['arr']:.4f}{arr_std:9}  {100 * line['last_top1']:10.2f}  {rates}")
    return "\n".join(lines)


def with_spread(value: dict[str, Any]) -> str:
    """`plus_minus` of a {"mean", "std", …}."""
    return plus_minus(value["mean"], value["std"])


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
