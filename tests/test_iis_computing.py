"""Stage 4: the ledger, its summary by hand, the script, the release's checkpoint names, and what is refused."""

import csv
import json

import numpy as np
import pytest

from iis.grid import DENSE, LEARNING_RATES, RATIOS
from iis.results import add_rows, merged, pack_correct, read_ledger, select, unpack_correct
from iis.runtime import UserError
from iis.summary import mark_of, release_summary, remarks_on_rows, summarise

COUNT = 1000
SCRIPT = "iis_computing.py"


def hand_made(seeds=(0, 1), skip=None, dense=0.8, accuracies=None, classes=10, epochs=30):
    """A ledger whose selected head at ratio s has accuracy dense · (1 − s / 0.98): IIS 0.49 by hand."""
    rows = []
    for seed in seeds:
        for ratio in (DENSE, *RATIOS):
            if ratio == skip:
                continue
            line = dense if ratio == DENSE else dense * (1 - ratio / 0.98)
            top1 = line if accuracies is None or ratio == DENSE else accuracies[RATIOS.index(ratio)]
            for rate in LEARNING_RATES:
                value = round(COUNT * (top1 if rate == 0.01 else 0.9 * top1)) / COUNT  # 0.01 is the best rate
                correct = np.arange(COUNT) < round(COUNT * value)
                rows.append({
                    "seed": seed, "ratio": ratio, "learning_rate": rate, "kept": None if ratio == DENSE else 5,
                    "top1": value, "top5": 1.0, "select_top1": value, "last_top1": value / 2, "last_top5": 0.9,
                    "last_select_top1": value / 2, "best_epoch": 7, "epochs": epochs, "loss": 0.5, "note": None,
                    "hits": pack_correct(correct), "model": "toy", "dataset": "toy", "bank": "Prototype",
                    "num_concepts": 20, "protocol": "paper", "sparsifier": "mask", "width": 12, "holdout": 0.0,
                    "n_val": COUNT, "chance": 1 / classes})
    return rows


def row(ratio, top1, seed=0, rate=0.01, **more):
    return {"seed": seed, "ratio": ratio, "learning_rate": rate, "top1": top1, **more}


def test_a_row_computed_again_replaces_the_old_one(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_ledger(file) == [] == add_rows(file, []) == read_ledger(file)
    add_rows(file, [row(0.5, 0.1), row(DENSE, 0.9, name="Vo\u2028gel")])  # a line ends at "\n" alone
    rows = add_rows(file, [row(0.5, 0.2), row(0.5, 0.3, seed=1)])
    assert [(r["seed"], r["ratio"], r["top1"]) for r in rows] == [(0, DENSE, 0.9), (0, 0.5, 0.2), (1, 0.5, 0.3)]
    assert read_ledger(file) == rows == merged(rows, rows)
    for damage in ('{"seed": 0, "rat', '{"seed": 0}', "3"):
        file.write_text(file.read_text().split("\n")[0] + f"\n{damage}\n")
        with pytest.raises(UserError, match="results.jsonl, line 2 is not a ledger row; delete that line"):
            read_ledger(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not even text"):
        read_ledger(file)


@pytest.mark.parametrize("count", [1, 8, 1001])
def test_correct_images_survive_packing(count):
    correct = np.random.default_rng(count).random(count) < 0.7
    packed = pack_correct(correct)
    assert (unpack_correct(packed, count) == correct).all()
    for text, more in ((packed[:-5], 0), ("", 0), (packed, 100)):
        with pytest.raises(UserError, match="results.jsonl and run stage 3 again"):
            unpack_correct(text, count + more)


def test_selection_by_best_and_last_and_the_smaller_rate_among_equals():
    rows = [row(0.5, 0, rate=rate, select_top1=best, last_select_top1=last)
            for rate, best, last in ((0.1, 0.6, 0.5), (0.01, 0.6, 0.4), (0.001, 0.5, 0.5))]
    assert select(rows)[0, 0.5]["learning_rate"] == 0.01 and select(rows, "last")[0, 0.5]["learning_rate"] == 0.001


def test_summary_by_hand():
    result = summarise(hand_made(), draws=50)
    assert result["iis"]["mean"] == pytest.approx(0.49, abs=1e-3)
    assert result["iis"]["std"] == pytest.approx(0, abs=1e-12)
    assert result["iis"]["normalised"] == pytest.approx(0.5, abs=1e-3)
    # Last epoch: every accuracy halves, the dense one too, so the ratio stays.
    assert result["iis_last"]["mean"] == pytest.approx(0.49, abs=1e-3)
    # (acc − p) / (dense − p) with p = 0.1: ∫ (0.8 t − 0.1) / 0.7 with t from 1 to 0, times 0.98 = 0.42.
    assert result["iis_chance_corrected"]["mean"] == pytest.approx(0.98 * (0.4 - 0.1) / 0.7, abs=2e-3)
    assert [line["learning_rates"] for line in result["table"][:-1]] == [[0.01]] * 8
    assert result["table"][-1]["learning_rates"] == [0.001]  # all equal (0 right): the smallest
    low, high = result["bootstrap"]["interval_95"]
    assert low <= result["iis"]["mean"] <= high and result["marks"] == [] and mark_of(result) == ""


@pytest.mark.parametrize("changes, marks, signs, words", [
    ({"dense": 0.12}, ["close to chance"], "!", "mean nothing"),
    ({"accuracies": [0.8] * 8}, ["saturated"], "^", "every ARR is within one standard error of 1"),
    # 0.82 and 0.78 at s = 0.3 and 0.5 cancel out; 0.799 at s = 0.1, of weight 0.15, leaves 0.98 − 0.15 / 800 = 0.9798.
    # Standard error: 40 of 1000 images move the area by 0.2 / 0.8, so √0.04 · 0.25 / √1000 = 0.0016.
    ({"accuracies": [0.8, 0.799, 0.82, 0.78] + [0.8] * 4}, ["saturated"], "^", "within one standard error (0.0016) of"),
    ({"accuracies": [0.8] * 5 + [0.78] * 3}, [], "", ""),  # two accuracies taken as independent would say saturated
    ({"accuracies": [0.9] * 8}, ["above the dense head"], "+", "may need more epochs (--n_epoch)")])
def test_marks_stand_with_their_sentence(changes, marks, signs, words):
    result = summarise(hand_made(**changes), draws=5)
    assert result["marks"] == marks and mark_of(result) == signs
    warnings = [remark for remark in result["remarks"] if remark.startswith("warning: ")]
    assert len(warnings) == len(marks) and words in "".join(warnings[-1:])


@pytest.mark.filterwarnings("error")
def test_a_dense_head_exactly_at_chance_has_no_chance_corrected_iis(tmp_path, here):
    """Of one seed: null in valid JSON, a sentence, and the other seed's value as it was."""
    rows = [*hand_made(seeds=(0,)), *hand_made(seeds=(1,), dense=0.1)]
    result = summarise(rows, draws=5)
    first, second = result["iis_chance_corrected"]["per_seed"]
    assert first == pytest.approx(0.42, abs=2e-3) and second is None
    assert {name: result["iis_chance_corrected"][name] for name in ("mean", "std", "normalised")} == {
        "mean": None, "std": None, "normalised": None}
    assert {line["arr_chance_corrected"] for line in result["table"]} == {None} and result["iis"]["mean"] > 0.4
    sentence, = [remark for remark in result["remarks"] if "undefined" in remark]
    assert "seed 1 is exactly at chance (0.1000)" in sentence
    for name in "ab":
        add_rows(tmp_path / name / "results.jsonl", rows)
    status, out, _ = here(SCRIPT, "--model_root", tmp_path)
    assert status == 0 and "chance-corrected: undefined" in out and sentence in out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    iis, (line, _) = (json.loads((tmp_path / name).read_text(), parse_constant=refuse)
                      for name in ("a/iis.json", "comparison.json"))
    assert iis["iis_chance_corrected"]["mean"] is None and line["iis_chance_corrected"] is None


@pytest.mark.filterwarnings("error")
def test_a_dense_head_that_gets_nothing_right(tmp_path):
    with pytest.raises(UserError, match="dense head of seed 1 gets no validation image right.*labels.*--n_epoch"):
        summarise([*hand_made(seeds=(0,)), *hand_made(seeds=(1,), dense=0.0)], draws=5)
    for ratio in RATIOS:
        (tmp_path / f"200##{ratio:g}##0.01##0.911##0.5##0.8511.pth").touch()
    (tmp_path / "standard##0.01##0.842##0.0##0.9286.pth").touch()
    with pytest.raises(UserError, match="nothing to divide by"):
        release_summary(tmp_path)
    # After the last epoch alone: the IIS stands, that of the last epoch does not.
    late = [{**line, "last_top1": 0.0} if line["ratio"] == DENSE and line["seed"] else line for line in hand_made()]
    result = summarise(late, draws=5)
    assert result["iis"]["mean"] == pytest.approx(0.49, abs=1e-3) and result["iis_last"]["mean"] is None
    assert result["iis_last"]["per_seed"] == [pytest.approx(0.49, abs=1e-3), None]
    assert any("seed 1 is right about no image after the last epoch" in remark for remark in result["remarks"])
    # Right about one image: a third of the resamples lack it, and the others decide the interval.
    few = summarise(hand_made(seeds=(0,), dense=0.001, accuracies=[0.001] * 8), draws=100)["bootstrap"]
    assert 20 < few["undefined"] < 55 and few["interval_95"] == [pytest.approx(0.98)] * 2
    assert few["std"] == pytest.approx(0, abs=1e-6)


def test_notes_on_the_training():
    def notes(rows):
        return " ".join(summarise(rows, draws=5)["remarks"])

    assert "selected on the validation images themselves" in notes(hand_made()) and "one seed" not in notes(hand_made())
    assert "--seeds 3" in notes(hand_made(seeds=(0,)))
    assert "the best epoch is the last one (7) for s = 0, 0.1, " in notes(hand_made(epochs=7))
    one = {"n_train": 1000, "batch_size": 100}
    few, enough = ([{**line, **one, "epochs": epochs} for line in hand_made()] for epochs in (29, 30))
    assert "heads trained for 290 steps in all" in notes(few) and "--recipe converged" in notes(few)
    assert "steps in all" not in notes(enough)
    assert "290 steps in all" in notes([{**line, "n_train": 1250, "holdout": 0.2} for line in few])
    partial = [{**line, **one, "n_train": 1001, "epochs": 20} for line in hand_made()]  # 11 steps an epoch
    assert "trained for 220 steps" in " ".join(remarks_on_rows(partial))
    edge = [{**line, "select_top1": 1 - line["learning_rate"]} for line in hand_made()]
    assert "edge of the grid (0.001) for s = 0, 0.1" in notes(edge) and "a smaller one may do better" in notes(edge)
    lost = [{**line, "loss": float("nan")} if line["ratio"] == 0.5 else line for line in hand_made()]
    assert "the loss of 6 head(s) diverged (s = 0.5 (6 selected heads))" in notes(lost)


def test_a_ledger_that_lacks_something_is_refused():
    whole = hand_made()
    for rows, words in (([], "has no rows"), (hand_made(skip=DENSE), "no dense head for seed 0"),
                        (hand_made(skip=0.9), r"lacks the sparsity ratio\(s\) 0.9"),
                        ([line for line in whole if (line["seed"], line["ratio"]) != (1, 0.5)], "seed 1, lacks .* 0.5"),
                        ([{**line, "top5": None} for line in whole], "says nothing of top5"),
                        ([{key: line[key] for key in line if key != "kept"} for line in whole], "nothing of kept")):
        with pytest.raises(UserError, match=words):
            summarise(rows, draws=5)


def test_the_script_writes_tables_figures_and_marks(tmp_path, here):
    add_rows(tmp_path / "a" / "results.jsonl", hand_made())
    add_rows(tmp_path / "b" / "results.jsonl", [{**line, "epochs": 3} for line in hand_made(accuracies=[0.8] * 8)])
    status, out, _ = here(SCRIPT, "--model_root", tmp_path / "a", tmp_path / "b", "--save_dir", tmp_path / "both")
    assert status == 0 and "IIS = 0.49" in out and "0.9800 ± 0.0000^" in out and "^ saturated" in out
    for name in ("a/iis", "b/iis", "both/comparison"):
        for suffix in ("json", "csv", "png", "pdf"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 100, (name, suffix)
    stored = json.loads((tmp_path / "b" / "iis.json").read_text())
    assert stored["dense"]["mean"] == pytest.approx(0.8) and stored["marks"] == ["saturated"]
    table = list(csv.DictReader((tmp_path / "b" / "iis.csv").open()))
    assert len(table) == 9 and {line["marks"] for line in table} == {"saturated"}
    one, other = csv.DictReader((tmp_path / "both" / "comparison.csv").open())
    assert (one["marks"], other["marks"]) == ("", "saturated") and float(one["iis"]) == pytest.approx(0.49, abs=1e-3)
    assert "epochs 30" in one["label"] and "epochs 3" in other["label"]  # every setting that differs is in the label
    assert here(SCRIPT, "--model_root", tmp_path, "--dataset", "other")[0] == 2
    add_rows(tmp_path / "c" / "results.jsonl", hand_made(skip=0.9))  # one that fails does not hide the others
    status, out, err = here(SCRIPT, "--model_root", tmp_path)
    assert status == 2 and "no IIS for 1 of 3 ledgers" in err and "0.9" in err and "IIS = 0.49" in out
    assert not (tmp_path / "c" / "iis.json").exists()


def test_release_checkpoints_give_the_release_number(tmp_path, here):
    # The best dense head, and a worse one that a directory would list last.
    names = ["standard##0.01##0.842##0.8000##0.9286.pth", "standard##0.1##0.9##0.4000##0.9.pth"]
    for ratio in RATIOS:
        for rate, share in ((0.01, 1.0), (0.1, 0.5)):
            names.append(f"200##{ratio:g}##{rate:g}##0.911##{0.8 * share * (1 - ratio / 0.98):.4f}##0.8511.pth")
    for name in names:
        (tmp_path / name).touch()
    status, out, _ = here(SCRIPT, "--model_root", tmp_path)
    assert status == 0 and "M = 200: IIS = 0.4900" in out and "best dense top-1 0.8000" in out
    (tmp_path / "200##0.7.pth").touch()
    status, _, err = here(SCRIPT, "--model_root", tmp_path)
    assert status == 2 and "200##0.7.pth is not named" in err
    for name in ("200##0.7.pth", *names[-2:]):
        (tmp_path / name).unlink()
    status, _, err = here(SCRIPT, "--model_root", tmp_path)
    assert status == 2 and "0.98" in err


def test_no_folder_and_no_ledger_are_one_sentence(tmp_path, here):
    for flags, words in ((["--model_root", tmp_path / "none"], "no folder"), (["--model_root", tmp_path], "no ledger"),
                         (["--model_rot", tmp_path], "--model_root"),
                         (["--model_root", tmp_path, "--bootstrap", 1], "at least 2")):
        status, _, err = here(SCRIPT, *flags)
        assert status == 2 and words in err and err.count("\n") == 1
