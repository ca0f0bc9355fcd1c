"""The textual script: published command and names, one decode, computed once for all backbones, what it refuses."""

import shutil

import pytest
import torch
import torchvision
from painted import class_folders

from extractor import visual_element_emb_extractor as visual
from extractor.clip import give, load_clip
from extractor.textual_emb_extractor import Settings, main
from iis.cli import parse
from iis.datasets import ImageSet, folder_images
from iis.embedding_file import load_embeddings
from iis.runtime import ROOT, UserError
from tests.conftest import run_script
from tests.test_clip import make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clip"), "tiny-script")


@pytest.fixture
def place(tmp_path):
    images_below(tmp_path / "data")
    (tmp_path / "toy.yaml").write_text(f"name: toy\nroot: {tmp_path}/data\n")
    (tmp_path / "words.txt").write_text("red\nblue tail\nRed\n\nround\n")
    return tmp_path


def images_below(root):
    class_folders(root / "train", 3, (32, 40))
    class_folders(root / "val", 2, (32, 40))


def run(place, tiny, *more, **changes):
    flags = {"dataset": place / "toy.yaml", "concept_set": place / "words.txt", "backbone": "resnet20",
             "weights": "none", "clip_name": tiny, "save_root": place / "embs", "batch_size": 4, "workers": 0,
             "device": "cpu", "feature_layer": "layer3", **changes}
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    main(parse(Settings, [*words, *more]))


def run_visual(place):
    visual.main(parse(visual.Settings, ["--model", "resnet20", "--weights", "none", "--dataset",
                                        str(place / "toy.yaml"), "--representations", "train,val", "--device", "cpu",
                                        "--save_root", str(place / "embs"), "--feature_layer", "layer3"]))


NAMES = ["toy_train_clip_tiny-script.pt", "toy_train_resnet20__none-seed-0_layer3.pt", "toy_val_clip_tiny-script.pt",
         "toy_val_resnet20__none-seed-0_layer3.pt", "words_tiny-script.pt"]


def test_all_files_and_their_numbers(place, tiny, capsys, monkeypatch):
    opened = []
    whole = ImageSet.open
    monkeypatch.setattr(ImageSet, "open", lambda self, row: opened.append(row) or whole(self, row))
    monkeypatch.setattr("extractor.clip.A_TASK", 2)  # words: two tasks
    run(place, tiny)
    printed = capsys.readouterr()
    assert "1 duplicates left out (Red)" in printed.err
    assert len(opened) == 10  # 6 + 4 images, each decoded once for two models
    folder = place / "embs" / "resnet20__none-seed-0"
    assert sorted(file.name for file in folder.glob("*.pt")) == NAMES
    clip = load_clip(str(tiny))
    words = load_embeddings(folder / "words_tiny-script.pt")
    assert words.image_paths == ["red", "blue tail", "round"] and words.class_names == ["concept"]
    assert words.labels_N.tolist() == [0, 0, 0]
    torch.testing.assert_close(words.features_ND, clip.encode_words(["red", "blue tail", "round"]))
    assert words.provenance["node"] == "text" and words.provenance["weights_hash"] == clip.weights_hash
    found = load_embeddings(folder / "toy_val_clip_tiny-script.pt")
    images = folder_images(place / "data" / "val", "toy", "val")
    expected = clip.encode_images([images.open(row) for row in range(4)])
    torch.testing.assert_close(found.features_ND, expected)
    assert found.image_paths == images.names and found.labels_N.tolist() == [0, 0, 1, 1]
    run_visual(place)  # whichever script runs second finds the files done
    assert capsys.readouterr().out.count("done already") == 2
    for name in ("train", "val"):
        (folder / f"toy_{name}_resnet20__none-seed-0_layer3.pt").unlink()
    run_visual(place)
    run(place, tiny)
    assert capsys.readouterr().out.count("done already") == 5


def test_clip_is_computed_once_for_all_backbones(place, tiny, capsys):
    run(place, tiny)
    run(place, tiny, backbone="resnet32", activation_dir=place / "elsewhere")
    printed = capsys.readouterr().out
    assert printed.count("clip_tiny-script.pt: done already") == 2
    for name in ("toy_train_clip_tiny-script.pt", "toy_val_clip_tiny-script.pt", "words_tiny-script.pt"):
        first, second = place / "embs" / "resnet20__none-seed-0" / name, place / "elsewhere" / name
        assert first.samefile(second)
    assert (place / "elsewhere" / "toy_val_resnet32__none-seed-0_layer3.pt").exists()
    shutil.rmtree(place / "embs" / "clip")
    run(place, tiny)  # given back from the backbone's folder
    assert capsys.readouterr().out.count("clip_tiny-script.pt: done already") == 2


def test_a_copy_where_links_are_impossible(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    give(tmp_path / "a", tmp_path / "linked")
    monkeypatch.setattr("os.link", lambda *_: (tmp_path / "absent").read_text())  # an OSError
    give(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x" and not (tmp_path / "a").samefile(tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "linked")


def test_an_edited_list_another_clip_and_other_images_are_refused(place, tiny, tmp_path_factory):
    run(place, tiny)
    (place / "words.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match="words_tiny-script.pt was made otherwise: it differs in words_hash"):
        run(place, tiny)
    torch.manual_seed(1)
    other = make(tmp_path_factory.mktemp("other"), "tiny-script")
    state = {name: value + 1e-3 for name, value in torch.load(other, weights_only=True).items()}
    torch.save(state, other)
    with pytest.raises(UserError, match="was made otherwise: it differs in weights_hash"):
        run(place, other)


def test_a_dry_run_counts_every_file_and_makes_nothing(place, tiny, capsys):
    run(place, tiny, "--dry_run")
    printed = capsys.readouterr().out
    assert printed.count("dry run: stage 2,") == 5 and not (place / "embs").exists()
    for shapes in ("6 images of 3 x 32 x 32 -> 6 x 64", "4 images of 3 x 32 x 32 -> 4 x 64", "3 x 16 float32",
                   "6 x 16 float32", "4 x 16 float32"):
        assert f" {shapes}" in printed
    run(place, place / "absent.json", "--dry_run")
    assert "the CLIP is not there yet" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "message"), [
    ({"clip_name": "ViT-B/17"}, "no CLIP ViT-B/17; did you mean"), ({"backbone": None}, "say which backbone"),
    ({"dataset": None}, "needs --dataset"), ({"feature_layer": "nonsense"}, "no layer 'nonsense'")])
def test_mistakes_are_refused_before_anything_is_made(place, tiny, changes, message):
    with pytest.raises(UserError, match=message):
        run(place, tiny, **changes)
    assert not list(place.glob("embs/*/*.pt"))


def test_the_published_command_verbatim(tmp_path):
    """In a copy of the tree, with stand-ins for the data, the backbone's weights and OpenAI's CLIP."""
    root = tmp_path / "copy"
    for name in ("iis", "extractor", "concept_library", "dataset_configs", "model_configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("embs", "visual", "__pycache__"))
    images_below(root / "datasets" / "imagenet")
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), weights)
    clip = make(tmp_path, "stand-in")
    done = run_script("textual_emb_extractor.py", *(
        "--dataset imagenet --concept_set ../concept_library/textual/imagenet_filtered.txt --backbone resnet50 "
        "--activation_dir ./embs/resnet50/ --feature_layer layer4").split(), cwd=root / "extractor",
        root=root / "extractor", TORCH_HOME=str(tmp_path / "torch"), IIS_CLIP_WEIGHTS=str(clip))
    assert done.returncode == 0, done.stderr
    folder = root / "extractor" / "embs" / "resnet50"
    shapes = {file.name: tuple(load_embeddings(file).features_ND.shape) for file in folder.glob("*.pt")}
    words = shapes.pop("imagenet_filtered_ViT-B16.pt")
    assert words[0] >= 2500 and words[1] == 16
    assert shapes == {"imagenet_train_resnet50_layer4.pt": (6, 2048), "imagenet_val_resnet50_layer4.pt": (4, 2048),
                      "imagenet_train_clip_ViT-B16.pt": (6, 16), "imagenet_val_clip_ViT-B16.pt": (4, 16)}
    assert load_embeddings(folder / "imagenet_val_clip_ViT-B16.pt").provenance["weights"] == "stand-in.pt"
