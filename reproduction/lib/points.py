"""Which runs may be compared, what to call them (every setting that differs is in the title), and their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from iis.statistics import plus_minus
from IP_training.config import PROTOCOLS
from reproduction.lib.runs import Run

# Runs are comparable where these agree. What a model or its images decide is not among them.
SETTING = ("bank", "parts", "num_concepts", "elements", "protocol", *PROTOCOLS["paper"], "bank_name", "concept_set",
           "clip", "clip_cutoff", "interpretability_cutoff", "proj_steps", "proj_batch_size", "penalty", "sae_rule",
           "sae_k", "sae_control", "sae_steps", "learned_on", "route", "holdout", "epochs", "batch_size", "bank_seed",
           "tf32", "precision", "n_train", "n_val", "learning_rates", "ratios")
BANKS = ("Prototype", "Cluster", "SAE", "NMF", "PCA", "End2End", "Text", "Combined", "SpLiCE", "Random")
EPOCHS = 30  # of the paper


def plain(runs: Sequence[Run]) -> list[Run]:
    """The runs that a sweep does not call a variant (controls have a table of their own), in the order of banks."""
    kept = [run for run in runs if not run.variant]
    if len(kept) < len(runs):
        print(f"left out: {len(runs) - len(kept)} of {len(runs)} runs are variants of another one (controls)")
    return sorted(kept, key=lambda run: (
        run.dataset, bank_place(run.summary["bank"]), run.identity["num_concepts"] or 0,
        str(list(setting(run).values())), run.family, run.epoch or 0, run.model))


def finished(runs: Sequence[Run]) -> list[Run]:
    """`plain`, without checkpoints along pre-training where there is anything else."""
    kept = plain(runs)
    return [run for run in kept if run.epoch is None] or kept


def is_last(run: Run, runs: Sequence[Run]) -> bool:
    """Whether the run is of the last layer that the runs have of its network; so is a run that is of no layer."""
    return run.depth is None or run.depth == max(other.depth or 0 for other in runs
                                                 if (other.dataset, other.net) == (run.dataset, run.net))


def last_layers(runs: Sequence[Run]) -> list[Run]:
    """The runs without earlier layers of a network, where networks are counted."""
    kept = [run for run in runs if is_last(run, runs)]
    if len(kept) < len(runs):
        print(f"left out: {len(runs) - len(kept)} of {len(runs)} runs are of earlier layers (along_depth.py)")
    return kept


def bank_place(bank: str) -> int:
    """Where tables list a kind of bank."""
    return (*BANKS, bank).index(bank)


# ---- settings and titles ----


def setting(run: Run) -> dict[str, Any]:
    """Everything that must agree between runs that are compared, beside the data set; None where a bank lacks it.
    elements: "segments", with another data set that they are of, another protocol that stage 1 made them under."""
    made, parts, protocol = run.identity["elements"], run.identity.get("parts"), run.identity["protocol"]
    identity = {**run.identity, "parts": " + ".join(parts) if parts else None}
    if made:
        of, cut = made.get("dataset"), made.get("protocol", protocol)
        identity["elements"] = (run.elements + (f" of {of}" if of not in (None, run.dataset, "unnamed") else "")
                                + (f" (stage 1: {cut})" if cut != protocol else ""))
    return {name: identity.get(name) for name in SETTING}


def in_words(name: str, value: Any) -> str:
    """A setting as titles and variants call it: "M = 64", "5 epochs", "holdout 0.1", "segments"."""
    if isinstance(value, list):
        value = " ".join(f"{one:g}" for one in value)
    return {"num_concepts": f"M = {value or 'all words'}", "epochs": f"{value} epochs", "protocol": f"{value} protocol",
            "elements": str(value), "parts": str(value), "tf32": "tf32"}.get(name, f"{name.replace('_', ' ')} {value}")


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """{(data set, title of the bank): comparable runs}; each run keeps its title too (`run.title`). A title is the bank
    and each setting in which runs of the data set with that bank differ; settings that the protocol decides, the
    paper's protocol and holdout 0 are left out."""
    settings = [setting(run) for run in runs]
    rivals: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run, mine in zip(runs, settings, strict=True):
        rivals.setdefault((run.dataset, mine["bank"]), []).append(mine)
    found: dict[tuple[str, str], list[Run]] = {}
    for run, mine in zip(runs, settings, strict=True):
        usual = {**PROTOCOLS.get(mine["protocol"], {}), "protocol": "paper", "holdout": 0.0}
        words = [in_words(name, value) for name, value in mine.items() if name != "bank" and value != usual.get(name)
                 and any(other[name] != value for other in rivals[run.dataset, mine["bank"]])]
        run.title = ", ".join([mine["bank"], *words])
        found.setdefault((run.dataset, run.title), []).append(run)
    return found


def by_dataset(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """{data set: {title: runs}}, the groups as figures take them."""
    found: dict[str, dict[str, list[Run]]] = {}
    for (dataset, title), mine in groups(runs).items():
        found.setdefault(dataset, {})[title] = mine
    return found


def variant_of(run: Run) -> str:
    """How the run differs from the plain one of its protocol (balanced prototypes, segments, no holdout, the paper's
    epochs, …), else the sweep's name for it; "" for the plain one."""
    mine, usual = setting(run), {**PROTOCOLS[run.identity["protocol"]], "elements": "segments", "holdout": 0.0,
                                 "epochs": EPOCHS, "bank_seed": None}
    return "; ".join(in_words(name, mine[name]) for name, value in usual.items()
                     if mine[name] not in (value, None)) or run.variant


# ---- numbers, and how people read them ----


def point(run: Run) -> dict[str, Any]:
    """A run of `groups` as a line of numbers; accuracies are fractions."""
    summary = run.summary
    low, high = summary["bootstrap"]["interval_95"]
    return {"dataset": run.dataset, "bank": run.title, "family": run.family, "net": run.net, "model": run.model,
            "epoch": run.epoch, "seeds": len(summary["seeds"]), "num_concepts": summary["num_concepts"],
            "width": summary["width"], "dense": run.dense, "dense_std": summary["dense"]["std"], "iis": run.iis,
            "iis_std": summary["iis"]["std"], "bootstrap_low": low, "bootstrap_high": high, "area": run.area,
            "iis_chance_corrected": run.corrected,
            "iis_chance_corrected_std": summary["iis_chance_corrected"]["std"], **beside_iis(run),
            "marks": "; ".join(run.marks)}


def beside_iis(run: Run) -> dict[str, float | None]:
    """Area over log k, and lift over Random with its interval over seeds and images; None where there is no Random
    run."""
    area, lift = run.summary["area_log_k"], run.lift
    low, high = lift.interval_95 if lift else (None, None)
    return {"area_log_k": area["mean"], "area_log_k_std": area["std"], "lift": lift and lift.mean,
            "lift_low": low, "lift_high": high}


def scores(line: dict[str, Any]) -> dict[str, str]:
    """The scores of a `point` as people read them."""
    return {"dense top-1, %": percent(line["dense"], line["dense_std"], 2),
            "IIS": plus_minus(line["iis"], line["iis_std"]), "∫acc ds": f"{line['area']:.4f}",
            "chance-corrected IIS": plus_minus(line["iis_chance_corrected"], line["iis_chance_corrected_std"]),
            **beside_shown(line), "marks": line["marks"]}


def beside_shown(line: dict[str, Any]) -> dict[str, str]:
    """`measures` as people read them."""
    return {"area over log k": plus_minus(line["area_log_k"], line["area_log_k_std"]), "lift over Random":
            "" if line["lift"] is None else f"{line['lift']:+.4f} [{line['lift_low']:+.4f}, {line['lift_high']:+.4f}]"}


def percent(mean: float | None, std: float | None = None, digits: int = 1) -> str:
    """A fraction in percent: "81.2 ± 0.3"; "" for None."""
    return "" if mean is None else plus_minus(100 * mean, None if std is None else 100 * std, digits)


def marked(label: str, run: Run) -> str:
    """A label in a figure with the run's marks: "net (saturated)"."""
    return label + (f" ({', '.join(run.marks)})" if run.marks else "")


def counted(count: int, what: str) -> str:
    """"1 model", "3 models"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def seeds_of(runs: Sequence[Run], first: int | None = None) -> str:
    """"3 seeds", "1 to 3 seeds"; of each run's first seeds where not all are taken."""
    counts = sorted({len(run.summary["seeds"][:first]) for run in runs})
    return counted(counts[-1], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def models_of(runs: Sequence[Run]) -> str:
    """"5 models (3 independent nets)"."""
    return f"{counted(len({run.model for run in runs}), 'model')} ({counted(nets_of(runs), 'independent net')})"


def nets_of(runs: Sequence[Run]) -> int:
    """Number of independent nets: checkpoints of one net count once."""
    return len({run.net for run in runs})


def replicate(run: Run) -> bool:
    """A net of the demo that was trained again from another seed: shapes_small_seed1."""
    return re.search(r"_seed\d+$", run.model) is not None


def families_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """{family: its runs} of the families with two or more, where there are two such families; else {}."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.family, []).append(run)
    several = {family: mine for family, mine in found.items() if len(mine) > 1}
    return several if len(several) > 1 else {}
