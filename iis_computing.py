"""Stage 4: ledger → accuracy-retention curve → Inherent Interpretability Score.

    python iis_computing.py --model_root ./IP_Prototype/resnet50
    python iis_computing.py --model_root IP_training/IP_Prototype --save_dir results/all_models

Every ledger (results.jsonl) at or below --model_root is read; iis.json, iis.csv, iis.png and iis.pdf are written beside
it, and for several ledgers a comparison into --save_dir. The lift over Random needs the Random run of the same
features, M, seeds and recipe: among these ledgers, beside the run, or below IP_Random/MODEL. A folder of checkpoints
named as the authors' release names them is read too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pandas import DataFrame, isna

from iis.cli import path, run_script, setting
from iis.lift import Lift, lift_of_ledger
from iis.plots import write_arr
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, make_output_folder, write_json, write_text
from iis.statistics import plus_minus, within
from iis.summary import MARKS, TITLE, is_release_folder, mark_of, release_summary, summarise

# Settings beside TITLE that a label names where the runs of a comparison differ in them. FOLLOWS: only where they
# differ between runs of the same model, data set and bank.
RECIPE = ("sparsifier", "epochs", "batch_size", "holdout", "prototypes", "element_choice", "test_assignment", "parts",
          "bank_name", "bank_seed", "tf32")
FOLLOWS = ("concept_set", "clip", "clip_cutoff", "interpretability_cutoff", "weights", "node", "precision",
           "elements_hash")


@dataclass(kw_only=True)
class Settings:
    """Which runs"""

    model_root: list[str] = setting(help="folder(s) with ledgers; also looked for below IP_training/")
    dataset: str | None = setting(None, "only ledgers of this data set")
    save_dir: Path | None = setting(None, "where a comparison of several goes (default: the first --model_root)")
    bootstrap: int = setting(1000, "resamples of the validation images")


def main(settings: Settings) -> None:
    """Print and write the IIS of every ledger found."""
    if settings.bootstrap < 2:
        raise UserError(f"--bootstrap {settings.bootstrap}: at least 2 resamples are needed for a spread")
    roots = [find_root(root) for root in settings.model_root]
    ledgers = sorted({file for root in roots for file in root.rglob(LEDGER)})
    if settings.dataset:
        ledgers = [file for file in ledgers if is_of(file, settings.dataset)]
    release = [root for root in roots if is_release_folder(root)]
    if not ledgers and not release:
        raise UserError(f"there is no ledger ({LEDGER}) at or below {', '.join(map(str, roots))}; run stage 3 first")
    for root in release:
        report_release(root)
    results, failed = each(lambda file: report(file, settings.bootstrap, ledgers), ledgers)
    if len(results) > 1:
        compare(results, make_output_folder(settings.save_dir or roots[0]))
    if failed:
        raise UserError(f"no IIS for {len(failed)} of {len(ledgers)} ledgers: {'; '.join(failed)}")


def is_of(file: Path, dataset: str) -> bool:
    """Whether the ledger is of this data set; a damaged one counts, so that it is named with its error."""
    try:
        return {row.get("dataset") for row in read_ledger(file)} == {dataset}
    except UserError:
        return True


def find_root(name: str) -> Path:
    """The folder as given, or below IP_training/, where the published commands put it."""
    candidates = [path(name), ROOT / "IP_training" / name, ROOT / name]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise UserError(f"there is no folder {candidates[0]} (nor {candidates[1].resolve()}); run stage 3 first, or name "
                    "the folder its --save_dir named")


def report(file: Path, draws: int, ledgers: Sequence[Path] = ()) -> dict[str, Any]:
    """Summarise one ledger: print it, write iis.json, iis.csv, iis.png and iis.pdf beside it. ledgers: where its Random
    run may be."""
    rows, folder = read_ledger(file), file.parent
    result = summarise(rows, draws, str(file))
    lift, sentence = lift_and_sentence(file, ledgers, draws)
    result |= {"lift": lift and lift._asdict(), "folder": str(folder),
               "settings": {name: rows[0].get(name) for name in (*RECIPE, *FOLLOWS)},
               "label": ", ".join(said for name in TITLE if (said := phrase(name, result[name])) != "paper")}
    score, seeds = result["iis"], len(result["seeds"])
    print(f"\n{result['label']}  ({seeds} seed{'s' if seeds > 1 else ''}, {result['n_val']} validation images, "
          f"D = {result['width']})")
    print(text_table(result))
    print(f"IIS = {with_spread(score)}{mark_of(result)} of {result['span']:g} ({score['normalised']:.4f} of its span); "
          f"bootstrap over images 95 %: {within(*result['bootstrap']['interval_95'])}")
    print(f"last epoch instead of best: IIS = {with_spread(result['iis_last'])}; chance-corrected: "
          f"{with_spread(result['iis_chance_corrected'])}")
    print(f"area over log k = {with_spread(result['area_log_k'])} of 1; bootstrap over images 95 %: "
          f"{within(*result['area_log_k']['interval_95'])}")
    print("\n".join([sentence, *result["remarks"]] if sentence else result["remarks"]))
    write_json(folder / "iis.json", result)
    table = DataFrame(result["table"], dtype=object).assign(marks=", ".join(result["marks"]))
    table["learning_rates"] = [" ".join(map(str, rates)) for rates in table["learning_rates"]]
    write_text(folder / "iis.csv", table.to_csv(index=False))
    write_arr({result["label"]: [curve(result, f"IIS = {with_spread(score)}{mark_of(result)}")]}, folder / "iis.png")
    print(f"written: {folder}/iis.json, iis.csv, iis.png, iis.pdf")
    return result


def lift_and_sentence(file: Path, ledgers: Sequence[Path], draws: int) -> tuple[Lift | None, str]:
    """The lift of a ledger, and what is printed of it: why there is none, with the command that mends it, or nothing of
    a Random run, which is the control."""
    try:
        lift = lift_of_ledger(file, ledgers, draws)
    except UserError as error:
        return None, f"note: {error}"
    if lift is None:
        return None, ""
    over = "seeds and images" if len(lift.seeds) > 1 else "images"
    return lift, (f"lift over Random = {lift.text()} (95 % over {over}; seeds {', '.join(map(str, lift.seeds))}; "
                  f"control: {lift.control})")


def compare(results: list[dict[str, Any]], folder: Path) -> None:
    """One line per ledger, and all curves in one figure."""
    labels = distinct_labels(results)
    lines = [comparison_line(result, label) for result, label in zip(results, labels, strict=True)]
    write_text(folder / "comparison.csv", DataFrame(lines, dtype=object).to_csv(index=False))
    write_json(folder / "comparison.json", lines)
    by_bank = len({result["bank"] for result in results}) > 1 and len(results) > 3
    parts = [[result for result in results if result["bank"] == bank or not by_bank]
             for bank in (dict.fromkeys(result["bank"] for result in results) if by_bank else [None])]
    write_arr({shared_title(part): [curve(result, f"{label}: IIS {with_spread(result['iis'])}{mark_of(result)}")
                                    for result, label in zip(part, distinct_labels(part), strict=True)]
               for part in parts}, folder / "comparison.png")
    width = max(map(len, labels))
    print(f"\n{'run':{width}}  {'dense top-1':>17}  {'IIS':>17}    normalised  lift over Random")
    for result, label in zip(results, labels, strict=True):
        print(f"{label:{width}}  {with_spread(result['dense']):>17}  {with_spread(result['iis']):>17}"
              f"{mark_of(result):2}  {result['iis']['normalised']:10.4f}  "
              + (f"{result['lift']['mean']:+.4f}" if result["lift"] else "-"))
    found = {mark for result in results for mark in result["marks"]}
    if found:
        print("; ".join(f"{sign} {mark}" for mark, sign in MARKS.items() if mark in found))
    print(f"written: {folder}/comparison.json, comparison.csv, comparison.png, comparison.pdf")


def comparison_line(result: dict[str, Any], label: str) -> dict[str, Any]:
    """A run in comparison.csv and comparison.json."""
    lift = result["lift"] or {"mean": None, "interval_95": (None, None)}
    return {**{name: result[name] for name in TITLE}, "label": label, "seeds": len(result["seeds"]),
            "dense": result["dense"]["mean"], "dense_std": result["dense"]["std"], "iis": result["iis"]["mean"],
            "iis_std": result["iis"]["std"], "marks": ", ".join(result["marks"]),
            "iis_normalised": result["iis"]["normalised"], "iis_last": result["iis_last"]["mean"],
            "iis_chance_corrected": result["iis_chance_corrected"]["mean"],
            "area_log_k": result["area_log_k"]["mean"], "area_log_k_std": result["area_log_k"]["std"],
            "lift": lift["mean"], "lift_low": lift["interval_95"][0], "lift_high": lift["interval_95"][1],
            "bootstrap_low": result["bootstrap"]["interval_95"][0],
            "bootstrap_high": result["bootstrap"]["interval_95"][1], "folder": result["folder"]}


def distinct_labels(results: list[dict[str, Any]]) -> list[str]:
    """A label for each run: everything that differs between the runs, and their model."""
    frame = DataFrame([{name: "+".join(value) if isinstance(value, list) else str(value) for name, value in
                        ({title: result[title] for title in TITLE} | result["settings"]).items() if value is not None}
                       for result in results], columns=[*TITLE, *RECIPE, *FOLLOWS])
    differing = [name for name in (*TITLE, *RECIPE) if frame[name].nunique() > 1]
    differing += [name for name in FOLLOWS if (frame.groupby(list(TITLE), dropna=False)[name].nunique() > 1).any()]
    return [", ".join(phrase(name, row[name]) for name in dict.fromkeys(("model", *differing)) if not isna(row[name]))
            for _, row in frame.iterrows()]


def shared_title(results: list[dict[str, Any]]) -> str:
    """What all runs of a comparison share of what names a run."""
    shared = [name for name in TITLE if len({str(result[name]) for result in results}) == 1]
    return ", ".join(phrase(name, results[0][name]) for name in shared if results[0][name] != "paper")


def phrase(name: str, value: Any) -> str:
    """A setting in a label: "M = 64", "epochs 3"; what TITLE names stands alone."""
    if name == "num_concepts":
        return f"M = {value}"
    value = value[:8] if name == "elements_hash" else value
    return str(value) if name in TITLE else f"{name.replace('_', ' ')} {value}"


def report_release(folder: Path) -> None:
    """The area of a folder of the release's checkpoints, by the release's rule."""
    results = release_summary(folder)
    for result in results:
        print(f"{folder}, M = {result['num_concepts']}: IIS = {result['iis']:.4f} "
              f"({result['normalised']:.4f} of its span), best dense top-1 {result['dense']:.4f}")
    write_json(folder / "iis_release.json", results)
    print(f"written: {folder}/iis_release.json")


def curve(result: dict[str, Any], label: str) -> dict[str, Any]:
    """A run as `write_arr` wants it."""
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
    run_script(main, Settings)
