"""The Text bank's inputs: CLIP's embeddings of words and of the data set's images, and its flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from iis.cli import ScriptParser, path
from iis.embedding_file import Embeddings, differing, load_embeddings
from iis.names import EMBEDDINGS, clip_images_file, clip_label, clip_words_file
from iis.runtime import ROOT, UserError
from IP_training.concept_banks import Bank
from IP_training.inputs import Inputs, check_features
from IP_training.stacks import MakeBank, Seed


def add_text_flags(parser: ScriptParser) -> ScriptParser:
    """The published flags of the Text bank that decide the bank."""
    text = parser.add_argument_group("text bank (published flags)")
    text.add_argument("--concept_set", type=path, help="list of words, as given to textual_emb_extractor.py "
                      "(default concept_library/textual/DATASET_filtered.txt)")
    text.add_argument("--clip_name", default="ViT-B/16", help="the CLIP whose embeddings are used")
    text.add_argument("--clip_weights", help="its weights, as given to textual_emb_extractor.py")
    text.add_argument("--activation_dir", type=path, help="folder of the embeddings (default extractor/embs/MODEL)")
    text.add_argument("--clip_cutoff", type=float, default=0.25, help="concepts whose mean top-5 cosine over training "
                      "images is not above this are dropped")
    text.add_argument("--interpretability_cutoff", type=float, default=0.45, help="concepts whose validation "
                      "cos-cubed similarity is not above this are dropped")
    text.add_argument("--proj_steps", type=int, default=1000, help="most steps of the projection")
    text.add_argument("--proj_batch_size", type=int, default=50_000, help="images per step of the projection")
    text.add_argument("--print", action="store_true", help="name each dropped concept")
    return parser


@dataclass
class TextInputs:
    """CLIP's embeddings of the words (image_paths are the words) and of train and val, row for row as `Inputs`."""

    words: Embeddings
    train: Embeddings
    val: Embeddings


def load_text_inputs(args: argparse.Namespace, inputs: Inputs) -> TextInputs:
    """Load and check: one CLIP for words and images, and images in the order of the representations."""
    folder = args.activation_dir or EMBEDDINGS / args.model_name
    concept_set = args.concept_set or ROOT / "concept_library" / "textual" / f"{args.dataset}_filtered.txt"
    label = clip_label(args.clip_name, args.clip_weights)
    files = [clip_words_file(folder, concept_set, label),
             *(clip_images_file(folder, args.dataset, split, label) for split in ("train", "val"))]
    for file in files:
        if not file.is_file():
            raise UserError(f"there are no CLIP embeddings {file}; run extractor/textual_emb_extractor.py --dataset "
                            f"{args.dataset} --concept_set {concept_set} --backbone {args.model_name} --clip_name "
                            f"{args.clip_name} first")
    found = TextInputs(*map(load_embeddings, files))
    for split, clip, file in (("train", found.train, files[1]), ("val", found.val, files[2])):
        difference = differing(found.words.provenance, clip.provenance, ("model", "weights_hash"))
        if difference:
            raise UserError(f"words and {split} images were embedded by different CLIPs: they differ in {difference}")
        ours = getattr(inputs, split)
        if len(clip) != len(ours) or (ours.provenance and clip.image_paths != ours.image_paths):
            raise UserError(f"CLIP's {split} embeddings ({len(clip)} images) and the representations ({len(ours)}) "
                            "are not of the same images; embed both again from one data set")
        check_features(f"CLIP {split}", clip, file)
    return found


def text_settings(args: argparse.Namespace, text: TextInputs) -> dict[str, object]:
    """What identifies a Text bank in the ledger, beside the representations."""
    return {"clip": text.words.provenance.get("model"), "clip_weights_hash": text.words.provenance.get("weights_hash"),
            "concept_set": text.words.provenance.get("concept_set"), "words_hash": text.words.content_hash,
            "clip_cutoff": args.clip_cutoff, "interpretability_cutoff": args.interpretability_cutoff,
            "proj_steps": args.proj_steps, "proj_batch_size": args.proj_batch_size}


def make_text_bank(args: argparse.Namespace, text: TextInputs) -> MakeBank:
    """The function that makes the Text bank of a seed. Under --holdout every cut-off and the early stop use the slice
    of train instead of validation."""
    from IP_training.text_projection import Similarity, text_bank

    def make(inputs: Inputs, num_concepts: int | None, seed: Seed) -> Bank:
        train_similarity = Similarity(text.train.features_ND, text.words.features_ND)
        check, check_similarity, rows = inputs.val, Similarity(text.val.features_ND, text.words.features_ND), None
        if seed.selection:
            check, check_similarity, rows = inputs.train, train_similarity, seed.selection[1]
        bank, dropped, projection = text_bank(
            text.words.image_paths, inputs.train.features_ND, train_similarity, check.features_ND, check_similarity,
            num_concepts=num_concepts, clip_cutoff=args.clip_cutoff, device=seed.device, seed=seed.number,
            interpretability_cutoff=args.interpretability_cutoff, train_rows=seed.train_rows, val_rows=rows,
            steps=args.proj_steps, batch_size=args.proj_batch_size)
        by_setting = {setting: [word for word in dropped if word.setting == setting]
                      for setting in ("clip_cutoff", "interpretability_cutoff", "num_concepts")}
        print(f"text bank, seed {seed.number}: {len(bank)} of {len(text.words)} concepts; dropped by "
              + ", ".join(f"{setting} {len(words)}" for setting, words in by_setting.items())
              + f"; projection stopped after {projection.steps} steps, best at {projection.best_step}")
        if args.print:
            for word in dropped:
                print(f"  dropped by {word.setting}: {word.word} ({word.value:.4f})")
        return bank

    return make
