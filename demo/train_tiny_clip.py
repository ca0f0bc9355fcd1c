"""Train the tiny CLIP of the built-in data set on its captions, in about two minutes on a CPU.

    python demo/train_tiny_clip.py       # after demo/paint_shapes.py; 107 s of one core; demo/weights/tiny_clip.*

The suite uses it as any other CLIP: --clip_name demo/weights/tiny_clip.json. tiny_clip_auroc.json beside it says, for
each attribute word, how well the cosine of image and word separates val images with the attribute from those without:
21 of the 22 words reach 0.93 with seed 0 (square 0.85), 18 after 16 epochs. Its cosines are not OpenAI's:
--clip_cutoff 0.2 keeps all 22 and drops 22 of the other 61 words of the list.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from demo.pretrain_backbones import ShapesSettings, done_before, load, plan_of, save
from demo.tiny_clip import CONFIG, Texts, auroc, train
from extractor.clip import load_clip, register
from iis.cli import positive, run_script, setting
from iis.preprocessing import preprocessing
from iis.processes import thread_limit
from iis.runtime import choose_device, float32_products, numpy_rng, read_json, seed_of, write_json

NAME = "tiny_clip"
ENOUGH = 0.93  # AUROC


@dataclass(kw_only=True)
class Settings(ShapesSettings):
    """Tiny CLIP"""

    epochs: int = setting(28, "passes over the images", type=positive)


def main(settings: Settings) -> None:
    """Train unless it is done, then measure every attribute word."""
    plan, report = plan_of(settings, settings.epochs), settings.out / f"{NAME}_auroc.json"
    if before := done_before(report, settings.out / f"{NAME}.pt", plan):
        print(f"{NAME}: done before, mean AUROC {np.mean(list(before['words'].values())):.3f}")
        return
    start, captions = time.perf_counter(), read_json(settings.root / "captions.json")
    # One thread: two wait for each other at every layer of so small a net, for minutes on busy cores.
    with float32_products(), thread_limit(1):
        make(settings, captions["images"])
        seconds = time.perf_counter() - start
        words = measure(settings, captions)
    good = sum(value >= ENOUGH for value in words.values())
    print(f"{NAME}: {good} of {len(words)} attribute words reach AUROC {ENOUGH}, the mean is "
          f"{np.mean(list(words.values())):.3f}; {seconds:.0f} s")
    write_json(report, {**plan, "words": words, "seconds": round(seconds, 1)})


def make(settings: Settings, captions: dict[str, dict]) -> None:
    """Train the model and write its config and its checkpoint, a plain state dict."""
    import open_clip

    device, config = choose_device(settings.device), settings.out / f"{NAME}.json"
    write_json(config, CONFIG)
    torch.manual_seed(seed_of(settings.seed, NAME))
    logging.disable(logging.WARNING)  # "Model initialized randomly": so it should be
    net = open_clip.create_model(register(config), pretrained_text=False).to(device, memory_format=torch.channels_last)
    logging.disable(logging.NOTSET)
    cfg = open_clip.get_model_preprocess_cfg(net)
    exact = preprocessing(64, 64, "bicubic", cfg["mean"], cfg["std"])
    images_NCHW, _, names = load(settings.root, "train", device, exact)
    train(net, open_clip.get_tokenizer(NAME), images_NCHW, Texts([captions[name]["caption"] for name in names]),
          settings.epochs, numpy_rng(settings.seed, NAME, "texts"))
    save(net, settings.out / f"{NAME}.pt")


def measure(settings: Settings, captions: dict[str, Any]) -> dict[str, float]:
    """AUROC of every attribute word on the val images, through the function that loads any other CLIP."""
    clip = load_clip(str(settings.out / f"{NAME}.json"), device=choose_device(settings.device))
    images_NCHW, _, names = load(settings.root, "val", clip.device, clip.preprocessing)
    with torch.inference_mode():
        images_Nd = torch.cat([clip.module(part) for part in images_NCHW.split(500)]).cpu()
    words = [word for group in captions["attributes"].values() for word in group]
    cosines_NT = (images_Nd @ clip.encode_words(words).T).numpy()
    true = [captions["images"][name]["concepts"] for name in names]
    return {word: auroc(cosines_NT[:, column], np.array([word in concepts for concepts in true]))
            for column, word in enumerate(words)}


if __name__ == "__main__":
    run_script(main, Settings)
