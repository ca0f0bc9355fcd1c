"""Data sets: class folders of images, or a torchvision data set by name.

All stages open images through `ImageSet.open`, decoded as torchvision's ImageFolder does (PIL, `convert("RGB")`, no
EXIF rotation), because published accuracies were measured that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from iis.cli import find_config, from_mapping, read_yaml, setting
from iis.runtime import ROOT, UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
UNNAMED = "unnamed"  # images from a bare folder, which carry no data set's name


class UnreadableImage(Exception):
    """The file is there but cannot be decoded; callers skip, count and list it."""


@dataclass
class ImageSet:
    """N labelled images. Classes are sorted by folder name, images by name within their class.

    names[i] is unique in the set and stays the same on every machine (path below the root, `/` between).
    """

    dataset: str
    split: str
    class_names: list[str]
    labels: list[int]
    names: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """The image as RGB. Raises `UnreadableImage` where it cannot be decoded."""
        try:
            return self._decoded(index).convert("RGB")
        except Exception as error:  # a broken file can raise almost anything: OSError, struct.error, zlib.error …
            raise UnreadableImage(f"{self.root / self.names[index]}: {error}") from None

    def _decoded(self, index: int) -> Image.Image:
        with open(self.root / self.names[index], "rb") as handle:
            image = Image.open(handle)
            image.load()
            return image

    def only(self, indices: Sequence[int]) -> ImageSet:
        """The same set with these images alone, in this order."""
        lists = {"labels", "names", "order"} & vars(self).keys()  # order: a torchvision set's
        return replace(self, **{key: [getattr(self, key)[index] for index in indices] for key in lists})


@dataclass
class TorchvisionImageSet(ImageSet):
    """The same over a torchvision data set, which decodes for itself; order[i]: its index of our image i."""

    source: Any
    order: list[int]

    def _decoded(self, index: int) -> Image.Image:
        return self.source[self.order[index]][0]


@dataclass
class Dataset:
    """A YAML of dataset_configs/"""

    name: str = setting(help="in the names of files (default: the YAML's own)")
    root: Path = setting(help="folder of the images (default: datasets/NAME)")
    train: str = setting("train", "folder below the root that holds the class folders")
    val: str = setting("val", "the same for validation")
    torchvision: Literal["CIFAR10", "CIFAR100", "Flowers102", "Food101", "OxfordIIITPet", "STL10",
                         "DTD"] | None = setting(None, "torchvision's name, where torchvision downloads it to the root")
    class_names: str | None = setting(None, "text file with a class name a line; or imagenet")
    num_concepts: int = setting(200, "M that suits its size")

    def images(self, split: str) -> ImageSet:
        """The `train` or `val` images. Raises `UserError` where they are not in place."""
        if self.torchvision:
            return _torchvision_images(self, split)
        folder = self.root / (self.train if split == "train" else self.val)
        offer = "" if self.name == "shapes" else ", or try DATASET=shapes, which the suite paints itself"
        if not folder.is_dir():
            raise UserError(f"{self.name} has no {split} folder at {folder}: put its class folders there or set "
                            f"root, train and val in dataset_configs/{self.name}.yaml{offer}")
        return folder_images(folder, self.name, split)


def load_dataset(name: str) -> Dataset:
    """The data set called `name` (a YAML file, a name in `dataset_configs/`, or a folder in `datasets/`)."""
    if (ROOT / "datasets" / name).is_dir() and not (ROOT / "dataset_configs" / f"{name}.yaml").exists():
        return Dataset(name, ROOT / "datasets" / name)
    file = find_config(name, "dataset_configs")
    given = {"name": file.stem, **read_yaml(file)}
    return from_mapping(Dataset, {"root": f"datasets/{given['name']}", **given}, str(file))


def folder_images(folder: Path, dataset: str, split: str) -> ImageSet:
    """All images below class folders, in torchvision's ImageFolder order.

    Raises `UserError` for a missing folder, a flat one (images without class folders) or an empty class.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that holds one folder per class")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        flat = next((entry.name for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS), None)
        found = f"images but no class folders ({flat}, …)" if flat else "no class folders"
        raise UserError(f"{folder} holds {found}: sort the images into one folder per class "
                        "(ImageNet's val images come flat; its development kit lists their classes)")
    names, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(file for file in (folder / name).rglob("*")
                       if file.suffix.lower() in EXTENSIONS and not file.name.startswith("."))
        if not files:
            raise UserError(f"the class folder {folder / name} holds no images: fill it or remove it")
        names += [file.relative_to(folder).as_posix() for file in files]
        labels += [label] * len(files)
    return ImageSet(dataset, split, classes, labels, names, folder)


def _torchvision_images(dataset: Dataset, split: str) -> TorchvisionImageSet:
    from torchvision import datasets

    if dataset.torchvision.startswith("CIFAR"):
        arguments = {"train": split == "train"}
    else:
        whole = "trainval" if dataset.torchvision == "OxfordIIITPet" else "train"
        arguments = {"split": whole if split == "train" else "test"}
    try:
        source = getattr(datasets, dataset.torchvision)(str(dataset.root), download=True, **arguments)
    except Exception as error:  # torchvision raises URLError, RuntimeError, HTTPError … for a failed download
        raise UserError(f"torchvision could not get {dataset.torchvision} into {dataset.root} ({error}); "
                        "download it there by hand or use another data set") from None
    targets = next(getattr(source, name) for name in ("targets", "_labels", "labels") if hasattr(source, name))
    labels = [int(target) for target in targets]
    classes = list(getattr(source, "classes", [])) or [f"class {label:03d}" for label in range(max(labels) + 1)]
    order = sorted(range(len(labels)), key=labels.__getitem__)  # class by class, as in folders
    names = [f"{classes[labels[index]]}/{index:06d}" for index in order]
    return TorchvisionImageSet(dataset.name, split, classes, [labels[index] for index in order], names, dataset.root,
                               source, order)


# ---- class names ----


def same_classes(train: list[str], val: list[str]) -> None:
    """Raise `UserError` unless both class lists are the same, naming what only one side has."""
    if list(train) == list(val):
        return
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    raise UserError(f"train and val have different classes: only in train {only_train[:5]}, only in val "
                    f"{only_val[:5]}; both need the same class folders")


def is_synset(folder: str) -> bool:
    """True for ImageNet's folder names: a WordNet identifier such as n01440764."""
    return len(folder) == 9 and folder[0] == "n" and folder[1:].isdigit()


def readable_class_names(dataset: str, folders: list[str]) -> list[str]:
    """Names for people: `class_names` of the data set's YAML (a text file, a name a line), else the words of ImageNet's
    synsets where all folders are synsets (timm's list), else the folder names."""
    try:
        names = load_dataset(dataset).class_names
    except UserError:  # features made elsewhere need no configuration
        names = None
    if names not in (None, "imagenet"):
        lines = (ROOT / names).read_text(encoding="utf-8").strip().split("\n")
        if len(lines) != len(folders):
            raise UserError(f"{names} has {len(lines)} lines for {len(folders)} classes")
        return lines
    if not all(map(is_synset, folders)):
        return folders
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    words = {synset: info.index_to_description(i).split(",")[0] for i, synset in enumerate(info.label_names())}
    return [words.get(folder, folder) for folder in folders]


def classes_of_head(folders: list[str], num_classes: int) -> list[int] | None:
    """Which outputs of a head with `num_classes` stand for these class folders; None where that is unknown.

    The folders in their order where there are as many; the places of some of ImageNet's 1000 synsets (timm's list).
    """
    if len(folders) == num_classes:
        return list(range(num_classes))
    if num_classes != 1000 or not all(map(is_synset, folders)):
        return None
    from timm.data import ImageNetInfo

    place = {synset: index for index, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return [place[folder] for folder in folders] if set(folders) <= place.keys() else None
