"""--bank_seed: the seeds vary the heads, the bank stays; nothing changes where the flag is not given."""

import pytest
import torch
from bank_runs import flags_of, ledger, own_caches, predictors, run  # noqa: F401

from iis.runtime import UserError
from IP_training import IP_Bank_training, IP_Cluster_training, IP_End2End_training, IP_Prototype_training
from IP_training.training_run import default_folder


@pytest.mark.parametrize("script", [IP_Prototype_training, IP_Cluster_training, IP_Bank_training])
def test_one_bank_for_all_seeds_and_heads_of_their_own(toy, script):
    folder = run(script, toy, "fixed", seeds=2, bank_seed=5, ratios="0.5")
    (first, _), (second, _) = (predictors(folder, seed) for seed in (0, 1))
    assert torch.equal(first["bank"], second["bank"])
    assert not torch.equal(first["0.5/weight"], second["0.5/weight"])
    own = predictors(run(script, toy, "own", seeds=1, first_seed=5, ratios="0.5"), 5)[0]
    assert torch.equal(own["bank"], first["bank"])  # the bank of seed 5, as seed 5 draws it without the flag
    assert {row["bank_seed"] for row in ledger(folder)} == {5}
    assert not any("bank_seed" in row for row in ledger(toy / "own"))


def test_a_run_whose_bank_seed_is_its_own_seed_is_the_usual_run(toy):
    rows = {}
    for name, flags in (("usual", {}), ("named", {"bank_seed": 0})):
        for script in (IP_Prototype_training, IP_End2End_training):
            folder = run(script, toy, f"{name} {script.__name__}", ratios="0.5", num_concepts=8, **flags)
            rows.setdefault(name, []).append([(row["hits"], row["loss"]) for row in ledger(folder)])
    assert rows["usual"] == rows["named"]


def test_end2end_starts_from_the_banks_q_and_the_seeds_head(toy):
    """After no epoch's worth of learning (one tiny step size) the slots are those of q alone."""
    slots = [predictors(run(IP_End2End_training, toy, f"bank {bank} seed {seed}", ratios="0.5", num_concepts=8,
                            bank_seed=bank, first_seed=seed, n_epoch=1, learning_rates="1e-9"), seed)[0]["0.5/slots"]
             for bank, seed in ((3, 0), (3, 1), (4, 0))]
    assert torch.equal(slots[0], slots[1]) and not torch.equal(slots[0], slots[2])


def test_dense_heads_are_shared_and_folders_are_not(toy):
    dense = [[row["hits"] for row in ledger(run(IP_Prototype_training, toy, out, ratios="0.5", **flags))
              if row["ratio"] < 0] for out, flags in (("own", {}), ("fixed", {"bank_seed": 7}))]
    assert dense[0] == dense[1]
    args = [IP_Prototype_training.parser().settings(["--bank_seed", "7"][:count]) for count in (0, 2)]
    usual, fixed = (default_folder(some, "Prototype", 16, {"elements_hash": "a"}) for some in args)
    assert fixed.name == f"{usual.name}_bank7"
    with pytest.raises(UserError, match="bank_seed"):  # two settings never share a folder
        run(IP_Prototype_training, toy, "own", ratios="0.5", bank_seed=1)


def test_a_bad_bank_seed_is_one_sentence(toy):
    with pytest.raises(UserError, match="-1 is not a whole number, 0 or more"):
        IP_Prototype_training.parser().settings(flags_of(toy, "out", bank_seed=-1))
