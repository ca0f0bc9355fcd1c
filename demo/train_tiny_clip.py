"""Train the tiny CLIP of the built-in data set on its captions, in about two minutes on a CPU.

    python demo/train_tiny_clip.py       # after demo/paint_shapes.py; 107 s of one core; demo/weights/tiny_clip.*

Everywhere in the suite it is then a CLIP like any other: --clip_name demo/weights/tiny_clip.json. Beside it,
tiny_clip_auroc.json says how well the cosine of an image and a word tells val images that have the attribute from
those that have not: 21 of the 22 attribute words reach 0.93 with seed 0 (square 0.85), 18 after 16 epochs. Its cosines
are not OpenAI's: --clip_cutoff 0.2 keeps all 22 and drops 22 of the other 61 words of the list.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import logging
import time

from iis.cli import ScriptParser, path, run_script
from iis.runtime import ROOT, UserError, choose_device, numpy_rng, read_json, seed_of, write_json, write_whole

NAME = "tiny_clip"
ENOUGH = 0.93  # AUROC


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--epochs", type=int, default=28, help="passes over the images")
    script.add_argument("--seed", type=int, default=0, help="first weights, batch order, dropped words, augmentation")
    script.add_argument("--device", help="cpu, cuda or cuda:N; left out: cuda when there is one")
    script.add_argument("--root", type=path, default=ROOT / "datasets" / "shapes", help="folder of `shapes`")
    script.add_argument("--out", type=path, default=ROOT / "demo" / "weights", help="folder for the checkpoint")
    return script


def main(settings: argparse.Namespace | None = None) -> None:
    """Train unless it is done, then measure every attribute word."""
    settings = settings or parser().settings()
    if settings.epochs < 1:
        raise UserError(f"--epochs {settings.epochs} should be at least 1")
    if not (settings.root / "captions.json").exists():
        raise UserError(f"{settings.root} holds no finished `shapes`: run python demo/paint_shapes.py first")
    plan = {"seed": settings.seed, "epochs": settings.epochs, "data": read_json(settings.root / "manifest.json")}
    if is_done(plan, settings.out):
        return
    start = time.perf_counter()
    settings.out.mkdir(parents=True, exist_ok=True)
    captions = read_json(settings.root / "captions.json")
    make(settings, captions["images"], start)
    seconds = time.perf_counter() - start
    words = measure(settings, captions)
    good = sum(value >= ENOUGH for value in words.values())
    print(f"{NAME}: {good} of {len(words)} attribute words reach AUROC {ENOUGH}, the mean is "
          f"{sum(words.values()) / len(words):.3f}; {seconds:.0f} s")
    write_json(settings.out / f"{NAME}_auroc.json", {**plan, "words": words, "seconds": round(seconds, 1)})


def is_done(plan: dict, out: Path) -> bool:
    """Whether `out` holds the model, trained to this plan; another plan there is a `UserError`."""
    file = out / f"{NAME}_auroc.json"  # written last
    if not file.exists() or not (out / f"{NAME}.pt").exists():
        return False
    before = read_json(file)
    for key, value in plan.items():
        if before[key] != value:
            raise UserError(f"{out} holds {NAME} trained with {key} = {before[key]}, and this run has {key} = {value}; "
                            f"choose another --out, or delete {file.name} there")
    print(f"{NAME}: done before, mean AUROC {sum(before['words'].values()) / len(before['words']):.3f}")
    return True


def make(settings: argparse.Namespace, captions: dict[str, dict], start: float) -> None:
    """Train the model and write its config and its checkpoint, a plain state dict."""
    import open_clip
    import torch

    from demo.tiny_clip import CONFIG, Texts, train
    from extractor.clip import register
    from iis.datasets import folder_images
    from iis.preprocessing import normalise, preprocessing

    device = choose_device(settings.device)
    images = folder_images(settings.root / "train", "shapes", "train")
    config = settings.out / f"{NAME}.json"
    write_json(config, CONFIG)
    torch.set_num_threads(1)  # two wait for each other at every layer of so small a net, for minutes on busy cores
    torch.manual_seed(seed_of(settings.seed, NAME))
    logging.disable(logging.WARNING)  # "Model initialized randomly": so it should be
    net = open_clip.create_model(register(config), pretrained_text=False).to(device, memory_format=torch.channels_last)
    logging.disable(logging.NOTSET)
    cfg = open_clip.get_model_preprocess_cfg(net)
    exact = preprocessing(64, 64, "bicubic", cfg["mean"], cfg["std"])
    bytes_NCHW = torch.stack([_pixels(images, row) for row in range(len(images))])  # (N, 3, 64, 64)
    inputs_NCHW = normalise(bytes_NCHW.to(device), exact)
    texts = Texts([captions[f"train/{name}"]["caption"] for name in images.names])

    def say(epoch: int, loss: float) -> None:
        if epoch % 4 == 0 or epoch == settings.epochs:
            print(f"{NAME}: epoch {epoch:2d} of {settings.epochs}, loss {loss:.3f}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)

    train(net, open_clip.get_tokenizer(NAME), inputs_NCHW, texts, settings.epochs,
          numpy_rng(settings.seed, NAME, "texts"), say)
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_whole(settings.out / f"{NAME}.pt", lambda temporary: torch.save(state, temporary))


def measure(settings: argparse.Namespace, captions: dict) -> dict[str, float]:
    """AUROC of every attribute word on the val images, through the script that loads any other CLIP."""
    import numpy as np
    import torch

    from demo.tiny_clip import auroc
    from extractor.clip import load_clip
    from iis.datasets import folder_images

    clip = load_clip(str(settings.out / f"{NAME}.json"), device=choose_device(settings.device))
    images = folder_images(settings.root / "val", "shapes", "val")
    bytes_NCHW = torch.stack([_pixels(images, row) for row in range(len(images))])
    images_Nd = torch.cat([clip.encode_images(part) for part in bytes_NCHW.split(500)]).cpu()
    words = [word for group in captions["attributes"].values() for word in group]
    cosines_NT = (images_Nd @ clip.encode_words(words).T).numpy()
    true = [captions["images"][f"val/{name}"]["concepts"] for name in images.names]
    return {word: auroc(cosines_NT[:, column], np.array([word in concepts for concepts in true]))
            for column, word in enumerate(words)}


def _pixels(images, row: int):
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(images.open(row))  # (3, 64, 64) uint8


if __name__ == "__main__":
    run_script(main)
