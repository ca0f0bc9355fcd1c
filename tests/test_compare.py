"""Published beside ours: what is collected from ledgers, original heads, elastic nets, NECs, every verdict by hand."""

import csv
import json

import pytest
from test_iis_computing import hand_made

from iis.cli import ScriptParser
from iis.results import add_rows
from iis.runtime import UserError
from reproduction.compare import PUBLISHED, compared, main, parser
from reproduction.lib.measured import OURS, lines_of_elastic_nets, lines_of_nec, merged, read_lines
from reproduction.lib.runs import add_source_flags, find_runs

PLAIN = {"elements": {"kind": "segments", "dataset": "toy"}, "prototypes": "balanced", "element_choice": "balanced",
         "train_hash": "t", "val_hash": "v"}


def write(file, columns, *lines):
    with open(file, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


@pytest.fixture
def place(tmp_path):
    """Two ledgers (IIS 0.49 each by hand; one with other prototypes), an original head, an elastic net, published values."""
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
    main(parser().settings(["--ours", str(place / "ours.csv"), "--published", str(place / "published.csv"),
                            "--embeddings", str(place / "embs"), "--finetuning", str(place / "none"),
                            *map(str, flags)]))


def test_collects_and_compares(place, capsys):
    run(place, "--collect", "--model_root", place, "--save_dir", place / "out")
    said = capsys.readouterr().out
    # 80 against 81 with 1 point: inside. 0.6 against 0.49 with 0.1: outside. The variant is never compared.
    assert "2 compared: 1 inside their tolerance, 1 outside; 1 published values not computed here, " \
           "1 cells without a source, 5 values of ours without a published one, 0 beside one of another" in said
    assert "| Prototype | toy | toy | M = 20 paper | IIS | 0.6000 | 0.4900 ± 0.0000 | -0.1100 | 0.1 | OUTSIDE |" in said
    assert "M = 22" not in said
    ours = read_lines(place / "ours.csv", ("value", "std"), OURS)
    found = {(line["method"], line["measure"], line["variant"]): line["value"] for line in ours}
    assert found["Prototype", "IIS", ""] == pytest.approx(0.49, abs=1e-3)
    assert found["Prototype", "IIS", "prototypes first"] == found["Prototype", "IIS", ""]
    assert found["dense head", "top-1", ""] == 80 and found["original head", "top-1", ""] == 81
    assert found["LF-CBM", "top-1", ""] == 75 and len(ours) == 7
    assert (place / "out" / "compare.csv").is_file() and (place / "out" / "compare.tex").is_file()


def test_collecting_again_changes_nothing_and_keeps_other_lines(place, capsys):
    run(place, "--collect", "--model_root", place / "first")
    assert "from 1 ledgers" in capsys.readouterr().out
    run(place, "--collect", "--model_root", place / "plain")
    once = (place / "ours.csv").read_text()
    run(place, "--collect", "--model_root", place / "plain")
    assert (place / "ours.csv").read_text() == once and "prototypes first" in once


def test_strict_fails_and_all_shows_everything(place, capsys):
    run(place, "--collect", "--model_root", place, "--all")
    assert "no source" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 values are outside"):
        run(place, "--strict")


def test_the_edge_of_a_tolerance_is_inside_and_protocols_stand_side_by_side():
    key = {"method": "original head", "model": "a", "dataset": "b", "setting": "c", "measure": "top-1"}
    ours = {**key, "std": None, "unit": "%", "variant": "", "made_from": "x"}
    lines = compared([{**key, "value": 0.8, "unit": "%", "tolerance": 0.1, "source": "s"}],
                     [{**ours, "protocol": "paper", "value": 0.9}, {**ours, "protocol": "release", "value": 0.91}])
    assert [line["verdict"] for line in lines] == ["inside", "OUTSIDE"]  # 0.9 − 0.8 is 0.09999… or 0.1000…1
    assert [line["protocol"] for line in lines] == ["paper", "release"]


def test_an_elastic_net_is_the_mean_over_seeds(place):
    line, = lines_of_elastic_nets([place])
    assert (line["value"], line["std"]) == (75, pytest.approx(7.071, abs=1e-3))
    assert line["protocol"] == "λ = 0.01: 5.0 weights a class"


def nec_file(folder, of_seeds, **depends):
    """nec.json as accuracy_at_nec.py writes it; of_seeds: {seed: [(nec, top1, used), …]}."""
    (folder / "nec.json").write_text(json.dumps({
        seed: {"depends": {"train_hash": "t", "val_hash": "v", **depends}, "levels": [
            dict(zip(("nec", "top1", "used"), level, strict=True)) for level in levels]}
        for seed, levels in of_seeds.items()}))


def runs_at(place):
    return find_runs(add_source_flags(ScriptParser()).settings(["--model_root", str(place)]), draws=2)


def test_accuracy_at_nec_is_the_mean_over_seeds(place):
    seeds = runs_at(place / "plain")[0].summary["seeds"]
    levels = {str(seed): [(5, 0.5 + 0.1 * place, 5.0), (10, 0.7 + 0.1 * place, 8.0), (30, None, None)]
              for place, seed in enumerate(seeds)}
    nec_file(place / "plain", levels)
    lines = lines_of_nec(runs_at(place / "plain"))
    middle = 10 * (len(seeds) - 1) / 2
    # NEC = 30 is more than M: no line, and no mean over all levels. NEC = 10 was not reached: a variant.
    assert [(line["method"], line["setting"], line["measure"], line["value"], line["variant"]) for line in lines] == [
        ("Prototype, elastic net", "NEC = 5", "top-1", pytest.approx(50 + middle), ""),
        ("Prototype, elastic net", "NEC = 10", "top-1", pytest.approx(70 + middle), "8.0 weights a class")]
    assert lines[0]["seeds"] == len(seeds) and lines[0]["protocol"] == "paper, M = 20"
    nec_file(place / "plain", {seed: kept[:2] for seed, kept in levels.items()})
    *_, mean = lines_of_nec(runs_at(place / "plain"))
    assert (mean["setting"], mean["measure"], mean["value"]) == ("NEC = 5 to 30", "ANEC", pytest.approx(60 + middle))
    nec_file(place / "plain", {str(seeds[0]): levels[str(seeds[0])][:1]})  # a seed lacks
    assert len(seeds) > 1 and not lines_of_nec(runs_at(place / "plain"))
    nec_file(place / "plain", levels, train_hash="of other features")
    assert not lines_of_nec(runs_at(place / "plain"))


def test_accuracies_at_nec_of_other_backbones_stand_beside_without_a_verdict(place, capsys):
    key = {"method": "random concepts", "dataset": "b", "setting": "NEC = 5", "measure": "top-1"}
    published = {**key, "model": "net", "value": 67.0, "unit": "%", "tolerance": 2, "source": "s"}
    ours = {**key, "std": None, "unit": "%", "variant": "", "made_from": "x", "protocol": "paper", "value": 89.0}
    near = [{**ours, "model": "other"}, {**ours, "model": "other", "variant": "3.0 weights a class"}]
    lines = compared([published], near)
    assert [(line["model"], line["ours"], line["off"], line["verdict"]) for line in lines] == [
        ("net", None, None, "not computed here"), ("net; ours: other", 89.0, None, "other backbone: no comparison"),
        ("other", 89.0, None, "not published")]
    # With the backbone itself at hand no other one stands beside; an original head is a backbone's own.
    assert [line["verdict"] for line in compared([published], [{**ours, "model": "net"}, near[0]])] == [
        "OUTSIDE", "not published"]
    own = {"method": "original head", "setting": "tag"}
    assert [line["verdict"] for line in compared([{**published, **own}], [{**near[0], **own}])] == [
        "not computed here", "not published"]
    write(place / "published.csv", PUBLISHED, published)
    write(place / "ours.csv", OURS, *near)
    for flags, there in (((), False), (("--all",), True)):
        run(place, *flags)
        said = capsys.readouterr().out
        assert ("net; ours: other" in said) is there and "1 beside one of another backbone" in said


def test_a_new_line_replaces_the_old_one_of_its_key():
    line = dict.fromkeys(OURS, "x")
    assert merged([{**line, "value": 1}], [{**line, "value": 2}, {**line, "variant": "y"}]) == [
        {**line, "value": 2}, {**line, "variant": "y"}]


def test_bad_files_and_flags_are_one_sentence(place):
    for flags, sentence in ((["--published", place / "none.csv"], "there is no file"),
                            (["--model_root", place], "add --collect"),
                            (["--collect"], "name either --sweep NAME or --model_root")):
        write(place / "ours.csv", OURS)
        with pytest.raises(UserError, match=sentence):
            run(place, *flags)
    write(place / "bad.csv", PUBLISHED[:-1])
    with pytest.raises(UserError, match="lacks the column source"):
        run(place, "--published", place / "bad.csv")
    (place / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no CSV"):
        run(place, "--published", place / "bad.csv")
    write(place / "bad.csv", PUBLISHED, {"value": "0,5"})
    with pytest.raises(UserError, match=r"line 2: value = '0,5' is not a number"):
        run(place, "--published", place / "bad.csv")
    write(place / "bad.csv", PUBLISHED, {"method": "m", "value": "0.5"})
    with pytest.raises(UserError, match="has no tolerance"):
        run(place, "--published", place / "bad.csv")
