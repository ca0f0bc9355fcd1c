"""The scripts of the Cluster and End2End banks: whole runs, what they store, and the protocols' rows."""

import pytest
import torch
from bank_runs import (  # noqa: F401
    GRID,
    assert_plain,
    ledger,
    own_caches,
    predictors,
    refusal,
    run,
    save_clip,
    text_flags,
)

from iis.results import VOLATILE
from iis.runtime import UserError
from iis.summary import summarise
from IP_training import (
    IP_Bank_training,
    IP_Cluster_training,
    IP_End2End_training,
    IP_Text_training,
    clusters,
    learned_stacks,
    training_run,
)
from IP_training.flags import PROTOCOLS, apply_protocol


def test_the_protocols_rows_are_those_of_the_readme():
    assert PROTOCOLS["paper"] == {"sparsifier": "mask", "prototypes": "balanced", "element_choice": "balanced",
                                  "test_assignment": "argmax"}
    assert PROTOCOLS["release"] == {"sparsifier": "strict", "prototypes": "first", "element_choice": "first",
                                    "test_assignment": "gumbel"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_fills_what_no_flag_says(protocol):
    script = IP_End2End_training.parser()
    args = apply_protocol(script.settings(["--protocol", protocol]))
    assert [args.element_choice, args.test_assignment, args.sparsifier] == [
        PROTOCOLS[protocol][name] for name in ("element_choice", "test_assignment", "sparsifier")]
    args = apply_protocol(script.settings(["--protocol", protocol, "--test-assignment", "gumbel", "--element_choice", "first"]))
    assert args.test_assignment == "gumbel" and args.element_choice == "first"


def test_cluster_trains_and_fits_k_means_once_per_seed(toy, monkeypatch):
    fits, fit = [], clusters.cluster_centres
    monkeypatch.setattr(clusters, "cluster_centres", lambda *args: fits.append(args[2]) or fit(*args))
    rows = ledger(run(IP_Cluster_training, toy, seeds=2))
    assert len(rows) == 2 * GRID and fits == [0, 1]
    assert {row["bank"] for row in rows} == {"Cluster"} and {row["element_choice"] for row in rows} == {"balanced"}
    assert 0 < summarise(rows, 10)["iis"]["mean"] < 1
    assert_plain(toy / "out")
    tensors, described = predictors(toy / "out", 1)
    assert tensors["bank"].shape == (20, 12) and all(len(near) == 9 for near in described["concepts"]["all"])
    run(IP_Cluster_training, toy, "other epochs", seeds=2, n_epoch=1)  # another run, the same centres
    assert fits == [0, 1]
    assert torch.equal(predictors(toy / "other epochs", 1)[0]["bank"], tensors["bank"])
    run(IP_Cluster_training, toy, "other M", num_concepts=10)
    assert fits == [0, 1, 0]


def test_fast_k_means_and_tf32_are_settings_of_their_own(toy):
    short = {"ratios": "0.5", "learning_rates": "0.01", "n_epoch": 1}
    plain = ledger(run(IP_Cluster_training, toy, "plain", **short))
    rows = ledger(run(IP_Cluster_training, toy, "fast", "--kmeans", "fast", "--tf32", **short))
    assert {(row["kmeans"], row["tf32"]) for row in rows} == {("fast", True)}
    assert not any("kmeans" in row or "tf32" in row for row in plain)
    assert not torch.backends.cuda.matmul.allow_tf32  # put back
    with pytest.raises(UserError, match="kmeans = 'fast', and this run has kmeans = None"):
        run(IP_Cluster_training, toy, "fast", **short)


@pytest.mark.parametrize("choice", ["balanced", "first"])
def test_which_elements_a_cluster_bank_is_made_of(toy, monkeypatch, choice):
    """Where there are more elements than may be used (30 of 80 here), the protocol says which."""
    seen = []

    def bank(elements, count, seed, choice, folder, method):
        seen.append(clusters.chosen_elements(elements, seed, choice, most=30))
        return clusters.Bank("Cluster", torch.eye(12), [["picture"]] * 12)

    monkeypatch.setattr(clusters, "cluster_bank", bank)
    run(IP_Cluster_training, toy, ratios="0.5", num_concepts=12, protocol="release" if choice == "first" else "paper")
    assert (seen[0] == list(range(30))) == (choice == "first")
    assert {row["element_choice"] for row in ledger(toy / "out")} == {choice}


def test_end2end_learns_a_bank_per_cell(toy):
    rows = ledger(run(IP_End2End_training, toy, seeds=2))
    assert len(rows) == 2 * GRID and {row["test_assignment"] for row in rows} == {"argmax"}
    tensors, described = predictors(toy / "out")
    assert_plain(toy / "out")
    for ratio in described["selected"].keys() - {"dense"}:
        bank, slots, evidence = tensors[f"{ratio}/bank"], tensors[f"{ratio}/slots"], described["concepts"][ratio]
        assert bank.shape == (20, 12) and slots.shape == (80,)
        lengths = bank.norm(dim=1)
        assert ((lengths - 1).abs().lt(1e-5) | lengths.eq(0)).all()
        empty = 20 - len(slots.unique())  # counted another way than the ledger does
        rate = described["selected"][ratio]["learning_rate"]
        row = next(row for row in rows if (row["seed"], row["ratio"], row["learning_rate"]) == (0, float(ratio), rate))
        assert row["empty_concepts"] == empty == evidence.count([])
        assert sum(map(len, evidence)) == 80
    assert "bank" not in tensors and "all" not in described["concepts"]
    assert len({tensors[f"{ratio}/slots"].numpy().tobytes() for ratio in ("0", "0.5", "0.98")}) == 3


def test_end2end_without_dense_heads_to_train_and_again(toy):
    """The second bank finds the dense heads of the first; a run that is complete trains nothing."""
    run(IP_Cluster_training, toy, "cluster")
    run(IP_End2End_training, toy, ratios="0,0.9")
    shared = [row for row in ledger(toy / "cluster") if row["ratio"] < 0]
    copied = [row for row in ledger(toy / "out") if row["ratio"] < 0]
    assert [row["top1_by_epoch"] for row in shared] == [row["top1_by_epoch"] for row in copied]
    before = (toy / "out" / "results.jsonl").read_bytes()
    run(IP_End2End_training, toy, ratios="0,0.9")
    assert (toy / "out" / "results.jsonl").read_bytes() == before


def test_gumbel_at_test_time_is_the_releases(toy, monkeypatch):
    seen, heads = [], learned_stacks.End2EndHeads

    def spy(*args):
        seen.append(args[7])
        return heads(*args)

    monkeypatch.setattr(learned_stacks, "End2EndHeads", spy)
    flags = {"ratios": "0.5", "n_epoch": 1, "sparsifier": "mask"}
    for out, changes in (("paper", {}), ("release", {"protocol": "release"}), ("own", {"test_assignment": "gumbel"})):
        run(IP_End2End_training, toy, out, **flags, **changes)
    assert seen == ["argmax"] * 3 + ["gumbel"] * 6
    paper, release, own = ([{key: value for key, value in row.items() if key not in (*VOLATILE, "protocol",
                             "element_choice")} for row in ledger(toy / name)] for name in ("paper", "release", "own"))
    assert release == own  # 80 elements are all used, so the choice of elements changes nothing
    assert [row["loss"] for row in paper] == [row["loss"] for row in release]  # training does not know of it
    assert paper != release


def test_the_stored_bank_is_the_one_the_noise_gave(toy):
    """Under Gumbel noise the stored bank, not a fresh draw, gives the ledger's accuracy."""
    run(IP_End2End_training, toy, test_assignment="gumbel")
    assert_plain(toy / "out")


def test_a_folder_without_save_dir_tells_settings_apart(toy, monkeypatch):
    monkeypatch.setattr(training_run, "ROOT", toy)
    save_clip(toy)
    torch.save(torch.eye(12), toy / "mine.pt")
    short = {"ratios": "0.5", "n_epoch": 1}
    run(IP_Cluster_training, toy, None, **short)
    run(IP_End2End_training, toy, None, **short, protocol="release", test_assignment="argmax")
    run(IP_Bank_training, toy, None, **short, kind="Combined", parts="Cluster,Random", holdout=0.1)
    run(IP_Bank_training, toy, None, **{**short, "num_concepts": None}, bank=toy / "mine.pt")
    run(IP_Text_training, toy, None, "--sparsity_ratio", **{**short, **text_flags(toy)})
    run(IP_Text_training, toy, None, "--lam", "0.01", "--n_iters", "5", **{**short, **text_flags(toy)})
    folders = sorted(str(file.parent.relative_to(toy / "IP_training")) for file in toy.rglob("settings.yaml"))
    assert folders == ["IP_Cluster/toy/toy_segments_M20_epochs1",
                       "IP_Combined/toy/toy_segments_Cluster_Random_M20_holdout0.1_epochs1",
                       "IP_End2End/toy/toy_segments_M20_release_argmax_epochs1", "IP_Own/toy/toy_mine_M12_epochs1",
                       "IP_Text/toy/toy_words_Mall_epochs1", "IP_Text/toy/toy_words_Mall_epochs1_elastic_lam0.01"]


def test_refusals(toy):
    for script in (IP_Cluster_training, IP_End2End_training):
        assert "80 visual elements" in refusal(script, toy, num_concepts=81)
        assert "at least 1" in refusal(script, toy, num_concepts=0)
        assert "no file" in refusal(script, toy, concept_path=toy / "none.pkl")
    run(IP_End2End_training, toy, ratios="0.5")
    with pytest.raises(UserError, match="test_assignment = 'argmax'"):
        run(IP_End2End_training, toy, ratios="0.5", test_assignment="gumbel")


def test_holdout_fits_the_heads_without_the_slice(toy):
    rows = ledger(run(IP_Cluster_training, toy, holdout=0.25, ratios="0.5"))
    assert {row["holdout"] for row in rows} == {0.25}
    assert all(round(row["select_top1"] * 75, 6).is_integer() for row in rows)  # of the 75 images held out
