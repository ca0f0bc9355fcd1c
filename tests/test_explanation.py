"""Contributions, predictions without a concept and class means, against sums and loops written out."""

import pytest
import torch
from bank_runs import own_caches  # noqa: F401 - a fixture that every test here takes
from conftest import clusters
from explained_runs import explained_run, features, predictor_of

from iis.runtime import UserError, write_json
from reproduction.lib.explanation import (

    default_ratio,
    explain,
    explain_class,
    load_predictor,
    strongest,
)


def test_contributions_and_bias_sum_to_the_logits():
    predictor = predictor_of()
    x_NM = predictor.interpretations(features(20))
    logits_NC = predictor.logits(x_NM)
    assert ((x_NM != 0).sum(1) == 4).all() and predictor.kept == 4
    torch.testing.assert_close(predictor.contributions(x_NM).sum(2) + predictor.bias_C, logits_NC)
    for n in range(20):  # one image at a time, by the definition
        for c in range(3):
            by_hand = sum(float(x_NM[n, m] * predictor.weight_CM[c, m]) for m in range(8)) + float(predictor.bias_C[c])
            assert float(logits_NC[n, c]) == pytest.approx(by_hand, abs=1e-5)


def test_margins_sum_with_the_biases_to_what_decided():
    predictor = predictor_of()
    found = explain(predictor, features(20))
    first, second = found.classes_NC[:, 0], found.classes_NC[:, 1]
    margin_N = found.logits_NC.gather(1, first[:, None])[:, 0] - found.logits_NC.gather(1, second[:, None])[:, 0]
    assert (margin_N >= 0).all()
    torch.testing.assert_close(found.margin_NM.sum(1) + predictor.bias_C[first] - predictor.bias_C[second], margin_N)


def test_without_a_concept_against_a_loop_that_zeroes_it():
    predictor, h_ND = predictor_of(), features(70)  # more than one chunk
    found = explain(predictor, h_ND)
    changed = 0
    for n in range(70):
        x_M = predictor.interpretations(h_ND[n:n + 1])[0]
        for m in range(8):
            left_M = x_M.clone()
            left_M[m] = 0
            probability_C = (predictor.weight_CM @ left_M + predictor.bias_C).softmax(0)
            assert int(found.without_class_NM[n, m]) == int(probability_C.argmax())
            assert float(found.without_probability_NM[n, m]) == pytest.approx(float(probability_C.max()), abs=1e-5)
            still = float(probability_C[found.classes_NC[n, 0]])
            assert float(found.predicted_without_NM[n, m]) == pytest.approx(still, abs=1e-5)
            changed += int(probability_C.argmax()) != int(found.classes_NC[n, 0])
    assert 0 < changed < 70 * 8


def test_a_class_by_loops():
    predictor, h_ND = predictor_of(), features(30)
    x_NM = predictor.interpretations(h_ND)
    lines = explain_class(predictor, h_ND, 1)
    assert [abs(line["mean"]) for line in lines] == sorted((abs(line["mean"]) for line in lines), reverse=True)
    for line in lines:
        m, weight = line["concept"], predictor.weight_CM
        given = [float(x_NM[n, m] * (weight[1, m] - (weight[0, m] + weight[2, m]) / 2)) for n in range(30)]
        assert line["mean"] == pytest.approx(sum(given) / 30, abs=1e-5)
        assert line["kept"] == pytest.approx(sum(float(x_NM[n, m]) != 0 for n in range(30)) / 30)
        active = [float(x_NM[n, m]) for n in range(30) if x_NM[n, m] != 0]
        assert line["activation"] == pytest.approx(sum(active) / len(active), abs=1e-5)
        left_NM = x_NM.clone()
        left_NM[:, m] = 0
        assert line["without"] == pytest.approx(float((predictor.logits(left_NM).argmax(1) == 1).double().mean()))
        assert line["recall"] == pytest.approx(float((predictor.logits(x_NM).argmax(1) == 1).double().mean()))


def test_strongest_first_and_no_zeros():
    assert strongest([0.5, 0.0, -2.0, 0.5]) == [2, 0, 3]


def test_the_sparsest_ratio_with_five_concepts():
    assert default_ratio({0.0: 64, 0.9: 7, 0.95: 4}) == 0.9
    assert default_ratio({0.0: 5, 0.5: 5, 0.9: 4}) == 0.5
    assert default_ratio({0.3: 3, 0.9: 1}) == 0.3


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
    for arguments, said in (((run, 7), "--seed can be 0, 1"), ((run, 0, 0.3), "there are 0.5, 0.7, 0.9"),
                            ((tmp_path / "gone",), "give a folder that a training script wrote")):
        with pytest.raises(UserError, match=said):
            load_predictor(*arguments)
    file = run / "predictors" / "seed_1.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_predictor(run, 1)
    write_json(file.with_suffix(".json"), {})
    file.unlink()
    with pytest.raises(UserError, match="--seed can be 0"):
        load_predictor(run, 1)
