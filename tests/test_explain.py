"""Explanations and curves of removal against sums and loops written out; their scripts: pages, tables, refusals."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import clusters
from made_sweep import call, trained
from PIL import Image
from scipy import stats
from test_report import whole

from iis.backbones import load_backbone
from iis.cli import parse
from iis.datasets import Dataset
from iis.embedding_file import Embeddings, save_embeddings
from iis.runtime import UserError, read_json, write_json, write_text
from iis.summary import summarise
from IP_training import IP_Prototype_training
from IP_training.predictor import Normaliser
from reproduction import explain as script
from reproduction import faithfulness
from reproduction.faithfulness import CHANGED, COMPARED, ORDERS, add_against_random, order_curves
from reproduction.lib import explained_images, runs
from reproduction.lib.explained_images import Subject, concept_of, embed_images, spread
from reproduction.lib.explanation import Predictor, explain, explain_class, load_predictor, strongest
from reproduction.lib.explanation_shown import cards_of, explanation_figure, if_removed
from reproduction.lib.page import render


def predictor_of(classes=3):
    """A predictor with random weights: 4 of 8 concepts stay."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    normaliser = Normaliser((("layer", 8),), torch.zeros(8), torch.ones(8))
    return Predictor(0.5, "mask", draw(8, 5), normaliser, draw(8), draw(8), draw(classes, 8), draw(classes),
                     [[f"word {m}"] for m in range(8)], [f"class {c}" for c in range(classes)],
                     {"bank": "Text", "model": "toy", "dataset": "toy"}, 0.5)


def features(count):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(2))


def explained_run(folder, ratios="0.5,0.7,0.9"):
    """A trained Prototype run of two seeds on the `toy` files in `folder`, its images painted, and its data set."""
    elements, val = clusters(80, "elements"), clusters(200, "val")
    for place, names in (("images/val", val.image_paths), ("elements", elements.image_paths)):
        for name in names:
            file = folder / place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (len(name) * 9 % 255, 40, 90)).save(file)
    elements.record = {"root": str(folder / "elements")}
    save_embeddings(folder / "elements.pkl", elements)
    return trained(IP_Prototype_training, folder, "run", seeds=2, dense_heads_dir=folder / "dense_heads", ratios=ratios,
                   learning_rates="0.1"), Dataset("toy", folder / "images")


# ---- contributions ----


def zeroed(predictor, x_M, m):
    """Probabilities of the classes without concept m, by the definition."""
    left_M = x_M.clone()
    left_M[m] = 0
    return (predictor.weight_CM @ left_M + predictor.bias_C).softmax(0)


def test_contributions_margins_and_removals_against_loops():
    predictor, h_ND = predictor_of(), features(40)
    predictor.class_names[:] = range(3)
    changed = 0
    for n, found in enumerate(explain(predictor, [Subject("", None, n % 3, h_D) for n, h_D in enumerate(h_ND)])):
        x_M = predictor.interpretations(h_ND[n:n + 1])[0]
        given = [[float(x_M[m] * predictor.weight_CM[c, m]) for m in range(8)] for c in range(3)]
        logits = [sum(given[c]) + float(predictor.bias_C[c]) for c in range(3)]
        first, second = np.argsort(logits)[::-1][:2]
        expected = {"logit_predicted": logits[first], "logit_runner_up": logits[second],
                    "margin": logits[first] - logits[second],
                    "probability": np.exp(logits[first]) / np.exp(logits).sum()}
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert (found["true"], found["predicted"], found["runner_up"]) == (n % 3, first, second)
        margins = [abs(one["margin"]) for one in found["concepts"]]
        assert margins == sorted(margins, reverse=True) and len(margins) == predictor.kept == 4
        assert sorted(one["concept"] for one in found["concepts"]) == x_M.nonzero().flatten().tolist()
        for one in found["concepts"]:
            m, probability_C = one["concept"], zeroed(predictor, x_M, one["concept"])
            expected = {"activation": float(x_M[m]), "to_predicted": given[first][m], "to_runner_up": given[second][m],
                        "margin": given[first][m] - given[second][m], "without_class": int(probability_C.argmax()),
                        "without_probability": float(probability_C.max()),
                        "predicted_without": float(probability_C[first])}
            assert {name: one[name] for name in expected} == pytest.approx(expected, abs=1e-5)
            changed += one["without_class"] != first
    assert 0 < changed < 40 * 4


def test_a_class_by_loops():
    predictor, h_ND = predictor_of(), features(30)
    x_NM, weight = predictor.interpretations(h_ND), predictor.weight_CM
    lines = explain_class(predictor, h_ND, 1)
    sizes = [abs(line["mean"]) for line in lines]
    assert sizes == sorted(sizes, reverse=True) and strongest(torch.tensor([0.5, 0.0, -2.0, 0.5])) == [2, 0, 3]
    for line in lines:
        m = line["concept"]
        active = [float(x_NM[n, m]) for n in range(30) if x_NM[n, m] != 0]
        given = x_NM[:, m] * (weight[1, m] - (weight[0, m] + weight[2, m]) / 2)
        assert line.pop("evidence") == [f"word {m}"] and line == pytest.approx({
            "concept": m, "mean": float(given.mean()), "kept": len(active) / 30, "activation": np.mean(active),
            "recall": float((predictor.logits(x_NM).argmax(1) == 1).double().mean()),
            "without": np.mean([int(zeroed(predictor, x_NM[n], m).argmax()) == 1 for n in range(30)])}, abs=1e-5)


def test_a_stored_predictor_is_the_one_of_the_ledger_and_bad_input_is_said(toy, tmp_path):
    run, _ = explained_run(toy)
    val = clusters(200, "val")
    for seed in (0, 1):
        for ratio, kept in ((0.5, 10), (0.7, 6), (0.9, 2)):
            predictor = load_predictor(run, seed, ratio)
            x_NM = predictor.interpretations(val.features_ND)
            assert ((x_NM != 0).sum(1) == kept).all() and predictor.kept == kept
            right = float((predictor.logits(x_NM).argmax(1) == val.labels_N).double().mean())
            assert right == pytest.approx(predictor.top1, abs=0.0051)  # one image may be a tie that rounding decides
    assert load_predictor(run).ratio == 0.7  # keeps 6 of 20, and 0.9 only 2
    file = run / "predictors" / "seed_1.safetensors"
    described = read_json(file.with_suffix(".json"))
    for kept, ratio in (((4, 4, 4), 0.5), ((5, 5, 4), 0.7)):  # the densest where none keeps 5
        for name, count in zip(("0.5", "0.7", "0.9"), kept, strict=True):
            described["selected"][name]["kept"] = count
        write_json(file.with_suffix(".json"), described)
        assert load_predictor(run, 1).ratio == ratio
    file.write_bytes(file.read_bytes()[:100])
    write_json(run / "predictors" / "seed_2.json", {"selected": {"dense": {}}, "class_names": ["a", "b"]})
    (run / "predictors" / "seed_2.safetensors").write_bytes((run / "predictors" / "seed_0.safetensors").read_bytes())
    for arguments, said in (((run, 7), "--seed can be 0, 1, 2"), ((run, 0, 0.3), "there are 0.5, 0.7, 0.9"),
                            ((run, 1), "damaged"), ((run, 2), "run its training script again"),
                            ((tmp_path / "gone",), "give a folder that a training script wrote")):
        with pytest.raises(UserError, match=said):
            load_predictor(*arguments)


# ---- what is shown ----


def test_what_stands_on_a_page_adds_up_and_is_escaped():
    evil = '<script>alert("&")</script>'
    predictor, h_ND = predictor_of(), features(1)
    predictor.class_names[:], predictor.evidence[:] = [evil] * 3, [[evil]] * 8
    lines = explain_class(predictor, h_ND, 1)
    cards = cards_of(predictor, [Subject(evil, Image.new("RGB", (4, 4)), 0, h_ND[0])], None, 3, lines)
    page = whole(render("explanation.html", title=evil, identity=dict.fromkeys(("model", "dataset", "bank"), evil),
                        size=8, kept=4, ratio=0.5, asked=False, seed=0, top1=0.5, negative=0.5, warnings=[evil],
                        of_class={"name": evil, "count": 1, "lines": lines}, **cards))
    assert page.count("&lt;script&gt;") >= 2 * 3 + 4 + 3 + 4 and "Without it</div>" in page  # column heads
    prediction, = cards["predictions"]
    margins = [one["margin"] for one in prediction["concepts"]]
    assert (f"the 3 concepts above {sum(margins[:3]):+.2f}, 1 more {margins[3]:+.2f}" in page.replace("\n", " ")
            and f"{prediction['margin']:+.2f} logits." in page)
    figure = explanation_figure("Why net says so", **cards)
    heads = [text.get_text() for text in figure.axes[1].texts][:3]
    assert figure.get_suptitle() == "Why net says so" and heads[0] == "concept" and heads[2] == "without it"


@pytest.mark.parametrize(("name", "probability", "left", "said"), [
    ("star", 0.74, 0.74, "still star, 91.2 % → 74.0 %"),
    ("circle", 0.551, 0.3, "becomes circle, 55.1 %; star 91.2 % → 30.0 %")])
def test_what_is_said_of_a_removal(name, probability, left, said):
    removal = {"without_class": name, "without_probability": probability, "predicted_without": left}
    assert if_removed({"predicted": "star", "probability": 0.912}, removal).replace("\xa0", " ") == said


def test_evidence_is_images_or_words(tmp_path):
    for folder in ("a", "n01440764"):  # the second is a synset, in whatever data set
        (tmp_path / folder).mkdir()
        Image.new("L", (3, 2)).save(tmp_path / folder / "1.png")
    shown = concept_of(4, ["Prototype: a/1.png"], "Combined", tmp_path)
    assert shown.label == "concept 4, cut from a" and [one.mode for one in shown.images] == ["RGB"]
    for evidence, bank, label in ((["Text: red: bright"], "Combined", "red: bright"), (["striped"], "Text", "striped"),
                                  (["n01440764/1.png"], "Cluster", "concept 5, cut from tench"),
                                  ([], "End2End", "concept 5: an empty slot, no element joined it")):
        assert concept_of(5, evidence, bank, tmp_path).label == label
    assert spread(range(10), 3) == [0, 3, 6] and spread([4, 5], 8) == [4, 5]


# ---- the script ----


@pytest.fixture
def run(toy, monkeypatch):
    """A run, with its data set in place."""
    folder, dataset = explained_run(toy)
    monkeypatch.setattr(explained_images, "load_dataset", lambda name: dataset)
    return folder


def explained(run, out, *words):
    """The folder, and what its JSON holds."""
    folder = call(script, "--run", run, "--out", out, *words)
    return folder, json.loads((folder / "explanation.json").read_text())


def test_a_class_from_the_command_line(run, toy, monkeypatch):
    monkeypatch.setattr(script, "warnings_of", lambda folder: ["warning: close to chance"])
    out, written = explained(run, toy / "out", "--class", "class 2", "--num_images", 3, "--top", 4)
    page = whole((out / "explanation.html").read_text())
    # The class and three images:
    assert page.count('<article class="card">') == 4 == page.count('class="concept columns"')
    assert page.count("<img") >= 3 + 4 * 4 and "warning: close to chance" in page
    assert "Why toy says so: 20 Prototype concepts, toy, s = 0.7, seed 0</h1>" in page
    assert written["ratio"] == 0.7 and written["kept"] == 6 and written["class"]["count"] == 50
    for one in written["pictures"]:
        moved = sum(concept["margin"] for concept in one["concepts"])
        assert one["true"] == "class 2" and len(one["concepts"]) == 6
        assert moved + one["bias_predicted"] - one["bias_runner_up"] == pytest.approx(one["margin"], abs=1e-4)
    table = pd.read_csv(out / "explanation.csv")
    assert len(table) == 3 * 6 and table.evidence.str.startswith("class ").all() and list(table)[0] == "picture"
    assert all((out / f"explanation.{kind}").stat().st_size for kind in ("png", "pdf"))


def test_rows_files_and_names_of_the_data_set_are_the_same_images(run, toy):
    names = ["class 1/val_5.png", "class 0/val_0.png"]
    _, by_row = explained(run, toy / "out", "--rows", "5,0", "--top", 1)
    _, by_file = explained(run, toy / "out", "--top", 1, "--images", names[0], toy / "images/val" / names[1])
    assert [one["picture"] for one in by_row["pictures"]] == names and by_row["pictures"] == by_file["pictures"]
    assert [one["true"] for one in by_file["pictures"]] == ["class 1", "class 0"]


def test_as_many_right_as_wrong(run, toy):
    _, written = explained(run, toy / "out", "--mistakes", 2, "--top", 1)
    right = [one["predicted"] == one["true"] for one in written["pictures"]]
    assert right == [True, True, False, False]
    assert len({one["picture"] for one in written["pictures"]}) == 4


def test_bad_input_is_one_sentence(run, toy, monkeypatch):
    Image.new("RGB", (4, 4)).save(toy / "strange.png")
    refusals = {("--class", "class 9"): "there is no class 'class 9'; did you mean", ("--rows", "200"): "rows 0 to 199",
                ("--rows", "0.5"): "--rows 0.5: the", ("--rows", "x"): "comma-separated list of numbers",
                ("--rows", "1", "--class", "class 1"): "do not go together",
                ("--images", toy / "none.png"): "cannot be read: .*none.png.*such as class 0/val_0.png",
                ("--images", toy / "val.pt"): "cannot be read: .*val.pt",
                ("--images", toy / "strange.png"): "there is no configuration",  # this backbone exists nowhere
                ("--elements", toy / "nowhere"): "name their folder with --elements",
                ("--elements", toy): "cannot be read: .*name the folder of the elements",
                ("--val_pt", toy / "train.pt"): "train.pt holds other numbers than",
                ("--num_images", "101"): "101 images do not fit on one page; name at most 100"}
    for words, said in refusals.items():
        with pytest.raises(UserError, match=said):
            explained(run, toy / "refused", *words)
    (toy / "images" / "val" / "class 0" / "val_0.png").unlink()
    with pytest.raises(UserError, match="has no image 'class 0/val_0.png'"):
        explained(run, toy / "refused", "--rows", "0")
    monkeypatch.setattr(explained_images, "load_dataset", lambda name: Dataset("toy", toy / "away"))
    # Without the data set its own images are missed, but a file from elsewhere gets as far as the backbone.
    for words, said in ((("--rows", "0"), "toy has no val folder"),
                        (("--images", toy / "strange.png"), "there is no configuration")):
        with pytest.raises(UserError, match=said):
            explained(run, toy / "refused", *words)


def test_other_images_go_through_the_backbone_the_features_came_from(tmp_path):
    settings = "model: demo/small_backbones.py:shapes_small\nweights: none\nval_resize_size: 64\nval_crop_size: 64\n"
    backbone = load_backbone("demo/small_backbones.py:shapes_small", "none", "cpu", 0, resize=64, crop=64)
    val = Embeddings(torch.zeros(1, 32), torch.zeros(1, dtype=torch.int64), ["a"], ["a/0.png"], {
        "weights_hash": backbone.weights_hash, "preprocessing": backbone.preprocessing, "node": "head_input",
        "precision": "fp32"})
    file = tmp_path / "toy_val_toy_fc.pt"
    write_text(tmp_path / "toy_val_toy_fc.pt.settings.yaml", settings + "seed: 0\n")
    write_text(tmp_path / "other.yaml", settings + "seed: 1\n")
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy())]
    mean, std = (torch.tensor(backbone.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():  # the net without its last layer, by hand
        by_hand = backbone.module[:-1](((noise.permute(2, 0, 1) / 255 - mean) / std)[None])
    torch.testing.assert_close(embed_images(images, val, file, device="cpu"), by_hand)
    with pytest.raises(UserError, match="differs in weights_hash"):
        embed_images(images, val, file, str(tmp_path / "other.yaml"), "cpu")
    val.provenance = {}
    with pytest.raises(UserError, match="does not say which backbone"):
        embed_images(images, val, file, device="cpu")


# ---- faithfulness ----


def removed(predictor, x_M, queue):
    """Logits (C,) after 0, 1, … removals, one at a time."""
    x_M = x_M.clone()
    yield predictor.weight_CM @ x_M + predictor.bias_C
    for m in queue:
        x_M[m] = 0
        yield predictor.weight_CM @ x_M + predictor.bias_C


@pytest.mark.parametrize("reference", ["runner_up", "mean"])
def test_curves_against_a_plain_loop(reference):
    predictor, h_ND = predictor_of(classes=4), features(12)
    found = order_curves(predictor, h_ND, torch.arange(12) % 4, reference, rows=5)
    assert found.share_F.tolist() == [0, 0.25, 0.5, 0.75, 1]  # 4 of 8 concepts are kept
    for n, x_M in enumerate(predictor.interpretations(h_ND)):
        first, second, *others = (predictor.weight_CM @ x_M + predictor.bias_C).argsort(descending=True).tolist()
        against_M = predictor.weight_CM[[second] if reference == "runner_up" else [second, *others]].mean(0)
        gain_M = x_M * (predictor.weight_CM[first] - against_M)
        queue = [m for m in gain_M.argsort(descending=True).tolist() if x_M[m] != 0]
        for o, order in ((list(ORDERS).index("most"), queue), (list(ORDERS).index("least"), queue[::-1])):
            steps = list(removed(predictor, x_M, order))
            probability = [float(logits_C.softmax(0)[first]) for logits_C in steps]
            assert found.probability_OFN[o, :, n] == pytest.approx(probability, abs=1e-5)
            assert found.right_OFN[o, :, n].tolist() == [int(logits_C.argmax()) == n % 4 for logits_C in steps]
            if o == 0:
                assert found.changed_N[n] == (int(steps[1].argmax()) != first)
    assert 0 < found.changed_N.sum() < 12
    # All orders begin and end alike; the random one lies between the others.
    assert np.ptp(found.probability_OFN[:, [0, -1]], axis=0) == pytest.approx(0, abs=1e-6)
    numbers = found.quantities()
    most, random, least = (numbers[f"probability, {order}"] for order in ORDERS)
    assert most.mean() < random.mean() < least.mean() and (numbers[CHANGED] == found.changed_N).all()
    assert most == pytest.approx((found.probability_OFN[0, :-1] + found.probability_OFN[0, 1:]).sum(0) / 8)  # by hand
    assert numbers["probability, random − most"] == pytest.approx(random - most)


def test_random_orders_are_seeded_and_even():  # after one of 4 removals: the mean over the 4 concepts
    predictor, h_ND, labels_N = predictor_of(), features(3), torch.zeros(3, dtype=torch.int64)
    found, again = (order_curves(predictor, h_ND, labels_N, random_orders=400) for _ in range(2))
    assert (found.probability_OFN == again.probability_OFN).all()
    for n, x_M in enumerate(predictor.interpretations(h_ND)):
        singles = []
        for m in x_M.nonzero().flatten().tolist():
            before_C, after_C = removed(predictor, x_M, [m])
            singles.append(float(after_C.softmax(0)[before_C.argmax()]))
        after_one = found.probability_OFN[list(ORDERS).index("random"), 1, n]
        assert after_one == pytest.approx(np.mean(singles), abs=5 * np.std(singles) / 20 + 1e-6)


def measured(bank, seeds, values, model="net"):
    """What `measure` gives of a bank: the same values for each of COMPARED, on images that hardly vary."""
    of_R = np.array(values, float)
    return {"numbers": {"model": model, "data set": "toy", "M": 20, "s": 0.7, "bank": bank, "marks": ""},
            "shown": {"marks": ""}, "seeds": seeds,
            "drawn": {name: (of_R, of_R + 1e-6 * np.random.default_rng(0).standard_normal((500, 1)))
                      for name in COMPARED}}


def test_banks_against_random_are_paired_by_seed_and_five_seeds_make_a_claim():
    prototypes, random = [0.41, 0.44, 0.39, 0.46, 0.40], [0.30, 0.24, 0.31, 0.22, 0.28]
    results = [measured("Prototype", [4, 3, 2, 1, 0], prototypes), measured("Cluster", [0, 1, 9], random[:3]),
               measured("Random", [0, 1, 2, 3, 4], random), measured("Prototype", [0, 1], [0.1, 0.2], "alone")]
    add_against_random(results)
    known = stats.ttest_rel(prototypes[::-1], random)
    line, words = results[0]["numbers"], results[0]["shown"][f"{CHANGED}, minus Random"]
    name = f"{CHANGED}, minus Random"
    assert line[name] == pytest.approx(np.subtract(prototypes, random).mean()) and line[f"{name}, seeds"] == 5
    assert line[f"{name}, p"] == pytest.approx(known.pvalue, rel=1e-2)
    assert (line[f"{name}, low"], line[f"{name}, high"]) == pytest.approx(tuple(known.confidence_interval(0.95)),
                                                                         abs=0.003)
    assert line[f"{name}, Holm p"] == pytest.approx(4 * known.pvalue, rel=1e-2)  # two banks, two quantities each
    assert words.startswith("+0.150 [") and "p 0.0" in words and list(line)[-1] == "marks"
    few = results[1]
    assert few["numbers"][f"{name}, seeds"] == 2 and few["shown"][name].endswith("2 seeds: no claim")
    assert few["numbers"][name] == pytest.approx(0) and few["numbers"][f"{name}, p"] == 1
    for without in results[2:]:  # Random itself, and a model without a Random run
        assert without["numbers"][name] is None and without["shown"][name] == ""


def test_the_script(toy, capsys, monkeypatch):
    run, _ = explained_run(toy, "0,0.1,0.3,0.5,0.7,0.9,0.95,0.98")
    monkeypatch.setattr(runs, "summarise", lambda *given: {**summarise(*given), "marks": ["saturated"]})
    settings = parse(faithfulness.Settings, ["--model_root", str(run), "--save_dir", str(toy / "out"), "--draws", "50"])
    out = faithfulness.main(settings)
    table, curves = (pd.read_csv(out / f"faithfulness{part}.csv") for part in ("", "_curves"))
    line, = table.to_dict("records")
    assert (line["kept"], line["seeds"], line["pictures"], line["s"], line["marks"]) == (6, 2, 200, 0.7, "saturated")
    most, random = line["probability, most"], line["probability, random"]
    assert line["probability, most, low"] < most < line["probability, most, high"]
    assert most < random < line["probability, least"] and 0 < line[CHANGED] <= 1
    assert line["probability, random − most"] == pytest.approx(random - most)
    assert len(curves) == 3 * 7  # orders x (6 concepts + 1)
    assert np.trapezoid(curves.query("order == 'most'")["probability"], dx=1 / 6) == pytest.approx(most)
    assert all((out / f"faithfulness.{kind}").stat().st_size for kind in ("md", "tex", "png", "pdf"))
    found, = runs.find_runs(settings)
    drawing = faithfulness.figure(4 * [faithfulness.measure(found, settings)])
    titles = [axis.get_title() for axis in drawing.axes]
    assert len(titles) == 4 and all("toy, toy, Prototype" in title and "(saturated)" in title for title in titles)
    (run / "predictors").rename(run / "away")
    with pytest.raises(UserError, match="no run has predictors"):
        faithfulness.main(settings)
    assert "left out" in capsys.readouterr().out
