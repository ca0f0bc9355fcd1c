"""Published beside ours: what is collected from ledgers, original heads, elastic nets, NECs, every verdict by hand; and
published.csv itself: every value has a source and a tolerance."""

import csv
import json

import pandas as pd
import pytest
import yaml
from made_sweep import call
from test_iis_computing import hand_made
from torchvision import models

from extractor.check_backbone import tolerance
from iis.results import add_rows
from iis.runtime import ROOT, UserError
from reproduction import compare
from reproduction.compare import PUBLISHED, compared
from reproduction.lib.measured import KEY, OURS, lines_of_elastic_nets, lines_of_nec, merged, read_lines
from reproduction.lib.nec import PATHS
from reproduction.lib.runs import Source, find_runs

PLAIN = {"elements": {"kind": "segments", "dataset": "toy"}, "prototypes": "balanced", "element_choice": "balanced",
         "train_hash": "t", "val_hash": "v"}


def write(file, columns, *lines):
    with open(file, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture
def place(tmp_path):
    """Two ledgers (IIS 0.49 each by hand; one with other prototypes), an original head, an elastic net, published
    values."""
    for name, changes in (("plain", {}), ("first", {"prototypes": "first"})):
        add_rows(tmp_path / name / "results.jsonl", [{**row, **PLAIN, **changes} for row in hand_made()])
    (tmp_path / "embs" / "toy").mkdir(parents=True)
    (tmp_path / "embs" / "toy" / "own_head_toy.json").write_text(json.dumps(
        {"model": "toy", "weights": "toy.pth", "dataset": "toy", "precision": "fp32", "top1": 81.0}))
    (tmp_path / "plain" / "elastic_net.json").write_text(json.dumps({
        "identity": {"bank": "Text", "model": "toy", "dataset": "toy", "protocol": "paper", "lam": 0.01},
        "results": [{"top1": 0.7, "nec": 4}, {"top1": 0.8, "nec": 6}]}))
    toy = {"model": "toy", "dataset": "toy", "source": "by hand"}
    bank = {**toy, "method": "Prototype", "measure": "IIS", "unit": "area"}
    write(tmp_path / "published.csv", PUBLISHED,
          {**toy, "method": "original head", "setting": "toy.pth", "measure": "top-1", "value": 80, "unit": "%",
           "tolerance": 1},
          {**bank, "setting": "M = 20", "value": 0.6, "tolerance": 0.1},
          {**bank, "setting": "M = 21", "value": 0.6, "tolerance": 0.1},
          {**bank, "setting": "M = 22"})
    return tmp_path


def run(place, *flags):
    call(compare, "--ours", place / "ours.csv", "--published", place / "published.csv", "--embeddings", place / "embs",
         "--finetuning", place / "none", *flags)


def test_collects_and_compares(place, capsys):
    run(place, "--collect", "--model_root", place, "--save_dir", place / "out")
    text = capsys.readouterr().out
    # 80 against 81 with 1 point: inside. 0.6 against 0.49 with 0.1: outside. The variant is never compared.
    assert "2 compared: 1 inside their tolerance, 1 outside; 1 published values not computed here, " \
           "1 cells without a source, 5 values of ours without a published one, 0 beside one of another" in text
    assert "| Prototype | toy | toy | M = 20 paper | IIS | 0.6000 | 0.4900 ± 0.0000 | -0.1100 | 0.1 | OUTSIDE |" in text
    assert "M = 22" not in text
    ours = read_lines(place / "ours.csv", ("value", "std"), OURS).set_index(["method", "measure", "variant"])["value"]
    assert ours["Prototype", "IIS", ""] == pytest.approx(0.49, abs=1e-3)
    assert ours["Prototype", "IIS", "prototypes first"] == ours["Prototype", "IIS", ""]
    assert ours["dense head", "top-1", ""] == 80 and ours["original head", "top-1", ""] == 81
    assert ours["LF-CBM", "top-1", ""] == 75 and len(ours) == 7
    assert (place / "out" / "compare.csv").is_file() and (place / "out" / "compare.tex").is_file()


def test_marks_are_collected_and_compared(place, capsys):
    near = {**PLAIN, "model": "near", "chance": 0.79}
    add_rows(place / "near" / "results.jsonl", [{**row, **near} for row in hand_made()])
    run(place, "--collect", "--model_root", place, "--all")
    ours = read_lines(place / "ours.csv", ("value",), OURS)
    marked = ours[(ours["marks"] == "close to chance") & (ours["measure"] == "IIS")]
    assert marked["model"].tolist() == ["near"] and "| not published | close to chance |" in capsys.readouterr().out
    write(place / "ours.csv", OURS[:-1])  # a file that was collected before marks were
    assert list(read_lines(place / "ours.csv", (), OURS)) == list(OURS)


def test_collecting_again_changes_nothing_and_keeps_other_lines(place, capsys):
    run(place, "--collect", "--model_root", place / "first")
    assert "from 1 ledgers" in capsys.readouterr().out
    run(place, "--collect", "--model_root", place / "plain")
    once = (place / "ours.csv").read_text()
    run(place, "--collect", "--model_root", place / "plain")
    assert (place / "ours.csv").read_text() == once and "prototypes first" in once
    run(place, "--collect", "--model_root", place, "--all")
    assert "no source" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 values are outside"):
        run(place, "--strict")
    line = dict.fromkeys(OURS, "x")
    lines = merged(pd.DataFrame([{**line, "value": 1}]), [{**line, "value": 2}, {**line, "variant": "y"}])
    assert lines.to_dict("records") == [{**line, "value": 2}, {**line, "variant": "y"}]


def verdicts(published, ours):
    """(model, ours, off, protocol, verdict) of each line; None where there is no number."""
    columns = {"std": None, "unit": "%", "variant": "", "made_from": "x", "protocol": "paper", "marks": ""}
    lines = compared(pd.DataFrame([{"unit": "%", "source": "s", **line} for line in published]),
                     pd.DataFrame([{**columns, **line} for line in ours]))
    return [tuple(None if value != value else value for value in line) for line in zip(
        *(lines[name] for name in ("model", "ours", "off", "protocol", "verdict")), strict=True)]


def test_the_edge_of_a_tolerance_is_inside_and_protocols_stand_side_by_side():
    key = {"method": "original head", "model": "a", "dataset": "b", "setting": "c", "measure": "top-1"}
    found = verdicts([{**key, "value": 0.8, "tolerance": 0.1}],
                     [{**key, "value": 0.9}, {**key, "protocol": "release", "value": 0.91}])
    assert [line[3:] for line in found] == [("paper", "inside"), ("release", "OUTSIDE")]  # 0.9 − 0.8 is 0.09999…


def test_accuracies_at_nec_of_other_backbones_stand_beside_without_a_verdict(place, capsys):
    key = {"method": "random concepts", "dataset": "b", "setting": "NEC = 5", "measure": "top-1"}
    published, ours = {**key, "model": "net", "value": 67.0, "tolerance": 2}, {**key, "value": 89.0}
    near = [{**ours, "model": "other"}, {**ours, "model": "other", "variant": "3.0 weights a class"}]
    assert verdicts([published], near) == [
        ("net", None, None, "", "not computed here"),
        ("net; ours: other", 89.0, None, "paper", "other backbone: no comparison"),
        ("other", 89.0, None, "paper", "not published")]
    # With the backbone itself at hand no other one stands beside; an original head is a backbone's own.
    assert [line[-1] for line in verdicts([published], [{**ours, "model": "net"}, near[0]])] == [
        "OUTSIDE", "not published"]
    own = {"method": "original head", "setting": "tag"}
    assert [line[-1] for line in verdicts([{**published, **own}], [{**near[0], **own}])] == [
        "not computed here", "not published"]
    write(place / "published.csv", PUBLISHED, {**published, "unit": "%", "source": "s"})
    write(place / "ours.csv", OURS, *({"unit": "%", **line} for line in near))
    for flags, there in (((), False), (("--all",), True)):
        run(place, *flags)
        text = capsys.readouterr().out
        assert ("net; ours: other" in text) is there and "1 beside one of another backbone" in text


def test_an_elastic_net_and_accuracies_at_nec_are_means_over_seeds(place):
    line, = lines_of_elastic_nets([place])
    assert (line["value"], line["std"]) == (75, pytest.approx(7.071, abs=1e-3))
    assert line["protocol"] == "λ = 0.01: 5.0 weights a class"
    found = find_runs(Source(model_root=[place / "plain"]), draws=2)
    seeds = [str(seed) for seed in found[0].summary["seeds"]]
    levels = {seed: [(5, 0.5 + 0.1 * at), (10, 0.7 + 0.1 * at), (15, None if at else 0.9), (30, None)]
              for at, seed in enumerate(seeds)}

    def nec(of_seeds, **depends):
        """nec.json as accuracy_at_nec.py writes it; of_seeds: {seed: [(nec, top1), …]}."""
        (place / "plain" / "nec.json").write_text(json.dumps({
            seed: {"depends": {"train_hash": "t", "val_hash": "v", "path": PATHS["refined"], **depends},
                   "levels": [{"nec": level, "top1": top1, "reason": ""} for level, top1 in mine]}
            for seed, mine in of_seeds.items()}))
        return lines_of_nec(found)

    lines, middle = nec(levels), 10 * (len(seeds) - 1) / 2
    # A seed lacks NEC = 15, and all NEC = 30: no line, and the mean's setting says what it is over.
    assert [[line[name] for name in ("method", "setting", "measure", "value", "variant")] for line in lines] == [
        ["Prototype, elastic net", "NEC = 5", "top-1", pytest.approx(50 + middle), ""],
        ["Prototype, elastic net", "NEC = 10", "top-1", pytest.approx(70 + middle), ""],
        ["Prototype, elastic net", "NEC = 5 to 10", "ANEC", pytest.approx(60 + middle), ""]]
    assert lines[0]["seeds"] == len(seeds) > 1 and lines[0]["protocol"] == "paper, M = 20"
    assert not nec({seeds[0]: levels[seeds[0]][:1]})  # a seed lacks
    assert not nec(levels, train_hash="of other features")
    assert not nec(levels, path={"lams": 16, "floor": 1e-3, "tolerance": 0.1, "passes": 60, "alpha": 0.99})
    assert not nec(levels, path=PATHS["vlg"])


def test_bad_files_and_flags_are_one_sentence(place):
    for flags, sentence in ((["--published", place / "none.csv"], "there is no file"),
                            (["--model_root", place], "add --collect"),
                            (["--collect"], "name either --sweep NAME or --model_root")):
        write(place / "ours.csv", OURS)
        with pytest.raises(UserError, match=sentence):
            run(place, *flags)
    bad = place / "bad.csv"
    for columns, line, sentence in ((PUBLISHED[:-1], {}, "lacks the column source"),
                                    (PUBLISHED, {"value": "0,5"}, r"line 2: value = '0,5' is not a number"),
                                    (PUBLISHED, {"method": "m", "value": "0.5"}, "has no tolerance"),
                                    (None, None, "is no CSV")):
        write(bad, columns, line) if columns else bad.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=sentence):
            run(place, "--published", bad)


# ---- published.csv ----

LINES = read_lines(ROOT / "reproduction" / "published.csv", ("value", "tolerance"), PUBLISHED)


def test_every_value_has_a_source_and_a_tolerance_and_nothing_is_quoted_from_the_paper():
    assert LINES["source"].all() and LINES["unit"].isin(["%", "area"]).all() and (LINES["tolerance"] > 0).all()
    assert not LINES.duplicated(list(KEY)).any()
    paper = LINES[LINES["source"].str.contains("2510.24105")]
    assert len(paper) == 14 * 4 + 14 * 3 + 4
    assert paper["value"].isna().all() and paper["source"].str.contains("not at hand").all()


def test_own_heads_are_torchvision_s_and_those_that_check_backbone_expects():
    configs = [yaml.safe_load(file.read_text()) for file in (ROOT / "model_configs").glob("*_IMAGENET1K_*.yaml")]
    own = LINES[LINES["method"] == "original head"]
    ours = own[own["dataset"] == "imagenet"].set_index(["model", "setting"])
    assert len(configs) == 14 and set(ours.index) == {(config["model"], config["weights"]) for config in configs}
    for (model, tag), line in ours.iterrows():
        weights = models.get_model_weights(model)[tag]
        assert line["value"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert line["tolerance"] == pytest.approx(tolerance(line["value"], 50_000), abs=0.006)
        assert f"{type(weights).__name__}.{tag}" in line["source"]
    for _, line in own[own["dataset"] == "cifar10"].iterrows():
        config = (ROOT / "model_configs" / f"{line['model']}.yaml").read_text()
        assert f"published_top1: {line['value']:.2f}" in config and line["setting"] in config
        assert f"{100 - line['value']:.2f} %" in line["source"]
