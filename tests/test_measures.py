"""Measures beside the IIS: area over log k, lift over Random, NCC and the order by true content, against hand numbers
and plain loops, and wherever they are shown."""

import csv
import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import clusters
from made_sweep import call, made_ledger, rows_of, trained

import iis
from iis.equations import area_log_k
from iis.grid import RATIOS
from iis.lift import command, differences, lift, lift_of_ledger
from iis.results import add_rows, first_row, pack_correct, read_ledger
from iis.runtime import UserError
from iis.summary import summarise
from IP_training import IP_Bank_training, IP_Prototype_training
from reproduction import measures_truth, ncc
from reproduction.lib.measures import MEASURES, measures_of
from reproduction.lib.ncc import contributing_concepts
from reproduction.lib.points import beside_shown, point
from reproduction.lib.runs import Source, find_runs, read_run

FEATURES = {"train_hash": "0a", "val_hash": "0b"}

# ---- area over log k ----


def test_area_over_log_k_by_hand():
    assert area_log_k([64, 8, 2], [1, 1, 1]) == pytest.approx(1)
    # log2 k = 6, 3, 1: trapezoids 3 · (1 + 0.8) / 2 = 2.7 and 2 · (0.8 + 0.2) / 2 = 1, over 5; and twice as high
    np.testing.assert_allclose(area_log_k([64, 8, 2], [[1, 0.8, 0.2], [2, 1.6, 0.4]]), [0.74, 1.48])
    # Two ratios that keep 2 are one point, 0.2: as before. k = 0 has no logarithm.
    assert area_log_k([64, 8, 2, 2], [1, 0.8, 0.3, 0.1]) == pytest.approx(0.74)
    assert area_log_k([64, 8, 2, 0], [1, 0.8, 0.2, 0.9]) == pytest.approx(0.74)
    assert area_log_k([1, 1], [0.5, 0.7]) == pytest.approx(0.6) and np.isnan(area_log_k([0], [0.5]))


def test_area_over_log_k_is_the_one_of_a_straight_line_whatever_the_ratios():
    """ARR = a + b · log k: the trapezoid is exact, the mean of both ends."""
    for kept in ([200, 180, 140, 100, 60, 20, 10, 4], [16, 15, 12, 8, 5, 2, 1, 1]):
        values = 0.2 + 0.1 * np.log(kept)
        assert area_log_k(kept, values) == pytest.approx((values[0] + values[-1]) / 2)


def test_every_summary_has_it_per_seed_with_its_own_k(tmp_path):
    made_ledger(tmp_path, "net", 0.8, [0.8 - 0.5 * ratio for ratio in RATIOS], spread=0.08)
    rows = read_ledger(tmp_path / "results.jsonl")
    kept = [[row["kept"] for row in rows if row["seed"] == seed and row["kept"]] for seed in (0, 1)]
    kept[1] = [9 * k if k == 20 else k for k in kept[1]]  # the second seed's bank is larger, as Text's may be
    wide = [{**row, "kept": 180} if row["seed"] == 1 and row["kept"] == 20 else row for row in rows]
    result = summarise(wide, draws=20)
    found, expected = result["area_log_k"], list(map(area_log_k, kept, result["curves"]["best"]["arr"]))
    assert found["per_seed"] == pytest.approx(expected) and found["mean"] == pytest.approx(np.mean(expected))
    assert found["std"] == pytest.approx(np.std(expected, ddof=1))
    low, high = found["interval_95"]
    assert low < found["mean"] < high


# ---- lift over Random ----


def pair(folder, changes=None, own=None, accuracy=0.6, control=0.5):
    """A Prototype ledger and a Random one of the same features, published layout; their files."""
    files = [made_ledger(folder / f"IP_{bank}" / "net" / "toy_M20", "net", 0.8, top1, **{
        **FEATURES, "bank": bank, **more}) / "results.jsonl" for bank, top1, more in (
            ("Prototype", accuracy, own or {}), ("Random", control, changes or {}))]
    return files


def test_lift_by_hand(tmp_path):
    own, control = map(read_ledger, pair(tmp_path))
    found = lift(own, control, 200)
    # 0.98 · (0.6 − 0.5) / 0.8 for both seeds: they move alike
    assert found.per_seed == pytest.approx([0.1225, 0.1225]) and found.seeds == [0, 1]
    assert found.mean == pytest.approx(0.1225) and found.std == pytest.approx(0, abs=1e-12)
    assert found.mean == pytest.approx(summarise(own, 2)["iis"]["mean"] - summarise(control, 2)["iis"]["mean"])
    low, high = found.interval_95
    # Images alone: 100 of 1000 images tell the two apart, 600 and 500 of the 800 are right.
    assert low < 0.1225 < high and high - low < 0.06
    assert lift(control, control, 50).interval_95 == (0, 0)  # paired: the same heads differ in no resample
    assert found.text().startswith("+0.1225 ± 0.0000 [+0.")


def test_pairing_by_image_narrows_the_interval(tmp_path):
    """The same accuracies, with the control right on other images: the interval of the difference is wider."""
    own, control = map(read_ledger, pair(tmp_path))
    turned = [{**row, "hits": pack_correct(np.arange(1000) >= 1000 - round(1000 * row["top1"]))} for row in control]
    together, apart = (np.diff(lift(own, other, 300).interval_95)[0] for other in (control, turned))
    assert apart > 1.5 * together


def test_common_seeds_count_and_what_differs_is_refused(tmp_path):
    own, control = map(read_ledger, pair(tmp_path, own={"seeds": 4, "spread": 0.0}, changes={
        "seeds": 3, "first_seed": 1, "spread": 0.0}))
    assert lift(own, control, 10).seeds == [1, 2, 3]
    one = [row for row in control if row["seed"] == 1]
    with pytest.raises(UserError, match="2 are needed"):
        lift(own, one, 10)
    assert lift([row for row in own if row["seed"] == 1], one, 10).std is None  # one seed on both sides is a pair
    for changes in ({"val_hash": "1b"}, {"epochs": 3}, {"holdout": 0.1}, {"sparsifier": "strict"}, {"bank": "Own"},
                    {"tf32": True}, {"train_hash": None}):
        assert differences(own[0], {**control[0], **changes}) == list(changes)
        with pytest.raises(UserError, match=next(iter(changes))):
            lift(own, [{**row, **changes} for row in control], 10)
    assert differences({}, {"bank": "Random"}) == ["train_hash", "val_hash"]  # unknown features are no match
    for changes, words in (({"kept": 7}, r"keeps \[7, 7.* the run \[20, 18"),
                           ({"learning_rate": 0.1}, "learning rates")):
        with pytest.raises(UserError, match=words):
            lift(own, [{**row, **changes} for row in control], 10)


def test_the_control_is_found_by_its_features_and_its_command_is_named(tmp_path):
    file, control = pair(tmp_path)
    assert lift_of_ledger(control, draws=5) is None
    assert lift_of_ledger(file, draws=5).control == str(control.parent)
    other, = (made_ledger(tmp_path / "runs" / "mine", "net", 0.8, 0.6, **FEATURES),)
    with pytest.raises(UserError, match="no Random run .*--kind Random --num_concepts 20 --model_name net --dataset"):
        lift_of_ledger(other / "results.jsonl")
    assert lift_of_ledger(other / "results.jsonl", [file, control], 5).control == str(control.parent)
    beside = made_ledger(tmp_path / "runs" / "any", "net", 0.8, 0.4, bank="Random", **FEATURES)  # beside the run
    assert lift_of_ledger(other / "results.jsonl", draws=5).control == str(beside)
    assert first_row(control) == read_ledger(control)[0]
    add_rows(control, [{**row, "kept": 3} for row in read_ledger(control) if row["kept"]])  # another M
    with pytest.raises(UserError, match="it keeps .*make a fitting one with: python"):
        lift_of_ledger(file)
    with pytest.raises(UserError, match="is no ledger"):
        first_row(tmp_path / "nowhere.jsonl")


def test_a_control_that_is_damaged_or_unfinished_is_a_sentence(tmp_path):
    file, control = pair(tmp_path)
    rows = read_ledger(control)
    for changed, words in (([{name: value for name, value in row.items() if name != "hits"} for row in rows], "hits"),
                           ([row for row in rows if (row["seed"], row["ratio"]) != (1, -1)], "other ratios|no dense")):
        control.write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(UserError, match=f"({words}).*make a fitting one with: python"):
            lift_of_ledger(file, draws=5)


def test_the_command_names_what_a_recipe_would_set_otherwise(tmp_path):
    file, _ = pair(tmp_path / "my runs", own={"recipe": "converged", "epochs": 30, "batch_size": 1024})
    flags = shlex.split(command(file))
    found = dict(zip(flags, flags[1:], strict=False))
    assert found["--recipe"] == "converged" and found["--n_epoch"] == "30" and found["--batch_size"] == "1024"
    assert found["--save_root"] == str(tmp_path / "my runs")
    assert "--n_epoch 30" not in command(pair(tmp_path / "published", own={"epochs": 30})[0])


def test_the_command_makes_the_control(toy, here, tmp_path):
    """The line that says that there is no Random run is a command that makes it, and then the lift is there."""
    folder = trained(IP_Prototype_training, toy, "runs/prototype", num_concepts=12, seeds=2, learning_rates=0.1,
                     ratios="0,0.1,0.3,0.5,0.7,0.8,0.9,0.95,0.98")
    file = folder / "results.jsonl"
    status, out, _ = here("iis_computing.py", "--model_root", folder, "--bootstrap", 20)
    assert status == 0 and command(file) in out and json.loads((folder / "iis.json").read_text())["lift"] is None
    script, *flags = command(file).split()[1:]
    assert script == "IP_training/IP_Bank_training.py"
    call(IP_Bank_training, *flags, "--device", "cpu")
    status, out, _ = here("iis_computing.py", "--model_root", folder, toy / "runs" / "Random", "--bootstrap", 20,
                          "--save_dir", tmp_path / "both")
    assert status == 0 and "lift over Random = " in out and "note: no lift" not in out
    found = json.loads((folder / "iis.json").read_text())
    scores = [json.loads((one / "iis.json").read_text())["iis"] for one in (folder, toy / "runs" / "Random")]
    assert found["lift"]["mean"] == pytest.approx(scores[0]["mean"] - scores[1]["mean"], abs=1e-9)
    random, own = sorted(csv.DictReader((tmp_path / "both" / "comparison.csv").open()), key=lambda line: line["lift"])
    assert random["lift"] == "" and float(own["lift"]) == pytest.approx(found["lift"]["mean"])
    assert float(own["area_log_k"]) == pytest.approx(found["area_log_k"]["mean"])


def test_python_gives_the_same_lift():
    train, val = clusters(300, "train"), clusters(200, "val")
    short = {"num_concepts": 12, "seeds": 2, "epochs": 2, "batch_size": 64, "learning_rates": (0.1,), "draws": 20,
             "show_progress": False}
    data = train.features_ND, train.labels_N, val.features_ND, val.labels_N
    own = iis.score(*data, bank=iis.banks.prototypes(clusters(80, "elements"), 12), **short)
    control = iis.score(*data, bank="random", **short)
    assert own.lift(control).mean == pytest.approx(own.iis - control.iis)
    assert own.area_log_k == own.summary["area_log_k"]["mean"] <= 1.5
    with pytest.raises(UserError, match="bank"):
        control.lift(own)


def test_tables_have_both_columns(tmp_path):
    pair(tmp_path)
    runs = find_runs(Source(model_root=[tmp_path]), draws=20)
    lines = {run.summary["bank"]: point(run) for run in runs}
    assert lines["Prototype"]["lift"] == pytest.approx(0.1225) and lines["Random"]["lift"] is None
    assert beside_shown(lines["Random"])["lift over Random"] == ""
    assert beside_shown(lines["Prototype"])["lift over Random"].startswith("+0.1225 [+0.")
    assert lines["Prototype"]["area_log_k"] == pytest.approx(0.75)  # a flat curve: 0.6 / 0.8


# ---- NCC ----


def test_contributing_concepts_by_hand():
    # Class 0: |a·w| = 6, 3, 1, 0 of 10; class 1: 0, 3, 0, 0 of 3.
    x, weight = torch.tensor([[2.0, -3.0, 1.0, 0.0]]), torch.tensor([[3.0, 1.0, -1.0, 9.0], [0.0, 1.0, 0.0, 1.0]])
    for share, first in ((0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3), (1.0, 3)):
        assert contributing_concepts(x, weight, share).tolist() == [(first + 1) / 2], share
    assert contributing_concepts(torch.zeros(2, 4), weight).tolist() == [0, 0]  # nothing contributes: none
    equal = torch.full((1, 20), 0.1), torch.ones(1, 20)
    assert contributing_concepts(*equal).tolist() == [19]  # 19 of 20 are 0.95 exactly, not 20 by rounding
    assert contributing_concepts(*equal, share=1).tolist() == [20]
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="share"):
            contributing_concepts(*equal, share=share)


def test_contributing_concepts_equal_a_plain_loop(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 9)) * (rng.random((7, 9)) < 0.6)
    weight = rng.normal(size=(4, 9))
    monkeypatch.setattr("reproduction.lib.ncc.BLOCK", 100)  # several blocks
    for share in (0.5, 0.95, 1.0):
        expected = []
        for row in x:
            counts = []
            for w in weight:
                given, count = sorted(abs(row * w), reverse=True), 0
                while sum(given[:count]) < share * sum(given) - 1e-12:
                    count += 1
                counts.append(count)
            expected.append(np.mean(counts))
        assert contributing_concepts(torch.tensor(x), torch.tensor(weight), share).tolist() == pytest.approx(expected)


def test_ncc_of_stored_heads_and_of_the_dense_head(toy, monkeypatch):
    monkeypatch.setattr("reproduction.lib.nec.LEVELS", (2, 4, 15))  # the classes lie too far apart for more
    folder = trained(IP_Prototype_training, toy, num_concepts=12, seeds=2, learning_rates=0.1)
    out = call(ncc, "--model_root", folder, "--save_dir", toy / "ncc", "--draws", 50)
    lines = {float(line["s"]): line for line in rows_of(out / "ncc.csv")}
    assert set(lines) == {*RATIOS, -1.0} and lines[-1.0]["kept"] == "12"
    for line in lines.values():
        low, high = float(line["ncc_low"]), float(line["ncc_high"])
        assert 0 < float(line["ncc"]) <= float(line["kept"]) and low < float(line["ncc"]) + 1e-9 and high >= low
    assert float(lines[0.98]["ncc"]) == 1  # one concept is kept, and it contributes
    every = call(ncc, "--model_root", folder, "--save_dir", toy / "all", "--share", 1, "--draws", 5)
    assert [float(line["ncc"]) for line in rows_of(every / "ncc.csv")] == pytest.approx(
        [float(line["kept"]) for line in rows_of(every / "ncc.csv")], abs=1e-6)  # tau = 1: all that are kept
    found = measures_of(read_run(folder, draws=2))
    assert set(found) == set(MEASURES) and found["lift"] is None and found["ncc"] == pytest.approx(
        float(lines[0.0]["ncc"]))
    kept = json.loads((folder / "nec.json").read_text())
    assert found["anec"] == pytest.approx(np.mean([line["top1"] for seed in "01" for line in kept[seed]["levels"][:2]]))
    kept_anec = lambda: measures_of(read_run(folder, draws=2), fit=False)["anec"]  # noqa: E731
    assert kept_anec() == found["anec"]
    line, top1 = kept["1"]["levels"][1], kept["1"]["levels"][1]["top1"]
    line["top1"] = None  # a level that is not reached
    (folder / "nec.json").write_text(json.dumps(kept))
    assert kept_anec() is None
    line["top1"], kept["1"]["depends"]["val_hash"] = top1, "other"  # a seed of other features
    (folder / "nec.json").write_text(json.dumps(kept))
    assert kept_anec() == pytest.approx(np.mean([line["top1"] for line in kept["0"]["levels"][:2]]))
    (folder / "predictors" / "seed_0.safetensors").unlink()
    with pytest.raises(UserError, match="no run has predictors"):
        call(ncc, "--model_root", folder, "--save_dir", toy / "ncc")


# ---- the order by true content ----


def features(noise=0.0):
    """score_truth.csv by hand: NCC falls with the share, IIS rises, the lift has no order that stays; ANEC is missing
    once."""
    lines = []
    for draw in range(3):
        for rest in measures_truth.RESTS:
            for place, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
                swapped = [0, 1, 2, 3, 4] if draw else [0, 2, 1, 3, 4]
                lines.append({"rest": rest, "draw": draw, "share": share, "bank": "Prototype", "iis": swapped[place],
                              "iis_chance_corrected": share, "lift": -share, "area_log_k": share, "ncc": 9 - share,
                              "anec": None if rest == "class code" and share == 1 else share, "dense": 0.9,
                              "near_chance": False})
    lines.append({**lines[0], "share": 2, "ncc": 99, "near_chance": True})  # left out
    return pd.DataFrame(lines)


def test_order_of_representations_by_hand():
    found = {line["measure"]: line for line in measures_truth.of_representations(features(), "Prototype")}
    # One pair of neighbours swapped in one of three draws: 1 − 6 · 2 / (5 · 24) = 0.9, mean of 0.9, 1, 1.
    assert found["iis"]["rho"] == pytest.approx(2.9 / 3) and found["iis"]["delta"] is None
    half = 4.302653 * np.std([0.9, 1, 1], ddof=1) / 3 ** 0.5
    assert found["iis"]["low"] == pytest.approx(2.9 / 3 - half) and found["iis"]["high"] == 1  # no ρ is above 1
    assert found["ncc"]["rho"] == 1 == found["area_log_k"]["rho"]  # NCC is turned
    assert found["ncc"]["delta"] == pytest.approx(0.1 / 3) and found["lift"]["rho"] == -1
    assert found["anec"]["rho"] is None and found["anec"]["rho, noise"] == 1  # a value is missing under one rest
    assert found["dense"]["rho"] is None  # constant
    shown = measures_truth.for_people(found["ncc"])
    assert shown["ρ [95 %]"] == "+1.00 [+1.00, +1.00]"


def test_order_of_banks_by_hand():
    aurocs = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "e": 0.9}
    lines = [{"model": model, "M": 20, "bank": bank, "auroc": auroc, "iis": auroc if model == "x" else -auroc,
              "iis_chance_corrected": 1.0, "lift": None if bank == "a" else auroc, "area_log_k": auroc, "ncc": -auroc,
              "anec": auroc} for model in ("x", "y") for bank, auroc in aurocs.items()]
    lines += [{"model": "x", "M": "-", "bank": "(linear probe)", "auroc": 1.0}]
    lines += [{**lines[0], "bank": "only x"}]  # not in every model
    found = {line["measure"]: line for line in measures_truth.of_banks(pd.DataFrame(lines))}
    assert found["iis"]["rho"] == 0 and found["area_log_k"]["rho"] == 1 == found["ncc"]["rho"]
    assert found["area_log_k"]["delta"] == 1 and found["area_log_k"]["sets"] == 5
    assert found["iis_chance_corrected"]["rho"] is None is found["lift"]["rho"]  # constant; one is missing
    assert (found["area_log_k"]["low"], found["area_log_k"]["high"]) == pytest.approx((1, 1))
    few = measures_truth.of_banks(pd.DataFrame(lines[:4] + lines[5:9]))
    assert few[3]["rho"] == 1 and few[3]["low"] is None  # four banks: no interval


def test_the_table_of_both(tmp_path):
    features().to_csv(tmp_path / "score.csv", index=False)
    lines = [{"model": "x", "M": 20, "bank": bank, "auroc": value, **dict.fromkeys(MEASURES, value)}
             for bank, value in (("a", 0.5), ("b", 0.6), ("c", 0.7))]
    pd.DataFrame(lines).to_csv(tmp_path / "banks.csv", index=False)
    flags = ("--score_truth", tmp_path / "score.csv", "--bank_truth", tmp_path / "banks.csv", "--save_dir", tmp_path)
    call(measures_truth, *flags)
    rows = rows_of(tmp_path / "measures_truth.csv")
    assert {line["of"] for line in rows} >= {"representations, bank: Prototype", "banks of a model"}
    assert [line["rho"] for line in rows if line["of"] == "banks of a model" and line["measure"] == "ncc"] == ["-1.0"]
    pd.DataFrame(lines).drop(columns="ncc").to_csv(tmp_path / "banks.csv", index=False)
    with pytest.raises(UserError, match="lacks the column ncc: run reproduction/bank_truth.py again"):
        call(measures_truth, *flags)
    with pytest.raises(UserError, match="there is no file .*gone.csv"):
        call(measures_truth, "--score_truth", tmp_path / "gone.csv")
