"""Data sets: class folders of images, or a torchvision data set by name. An image is opened in one way only.

The field's accuracies rest on torchvision's folder loader (PIL, `convert("RGB")`, no EXIF rotation), so every
stage opens images through `ImageSet.open`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from iis.cli import find_config, read_yaml
from iis.runtime import ROOT, UserError, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "Flowers102", "Food101", "OxfordIIITPet", "STL10", "DTD")
UNNAMED = "unnamed"  # images from a bare folder, which carry no data set's name
KEYS = ("name", "root", "train", "val", "torchvision", "class_names", "num_concepts")


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

    def file(self, index: int) -> Path | None:
        """The image's own file; None where it has none."""
        return self.root / self.names[index]

    def open(self, index: int) -> Image.Image:
        """The image as RGB. Raises `UnreadableImage` where it cannot be decoded."""
        try:
            with open(self.root / self.names[index], "rb") as handle, Image.open(handle) as image:
                return image.convert("RGB")
        except Exception as error:  # a broken file can raise almost anything: OSError, struct.error, zlib.error …
            raise UnreadableImage(f"{self.root / self.names[index]}: {error}") from None

    def only(self, indices: Sequence[int]) -> ImageSet:
        """The same set with these images alone, in this order."""
        lists = ("labels", "names", "order")  # `order` is a torchvision set's
        return replace(self, **{key: [getattr(self, key)[index] for index in indices]
                                for key in lists if hasattr(self, key)})


@dataclass
class TorchvisionImageSet(ImageSet):
    """The same over a torchvision data set; `order` maps our sorted order to its own."""

    source: object
    order: list[int]

    def file(self, index: int) -> None:
        """None: torchvision's set decodes for itself."""

    def open(self, index: int) -> Image.Image:
        """The image as RGB. Raises `UnreadableImage` where it cannot be decoded."""
        try:
            return self.source[self.order[index]][0].convert("RGB")
        except Exception as error:
            raise UnreadableImage(f"{self.dataset} {self.split} {self.names[index]}: {error}") from None


@dataclass
class Dataset:
    """One YAML of `dataset_configs/`: where train and val lie, and how many concepts suit its size."""

    name: str
    root: Path
    train: str = "train"
    val: str = "val"
    torchvision: str | None = None
    class_names: str | None = None
    num_concepts: int = 200

    def images(self, split: str) -> ImageSet:
        """The `train` or `val` images. Raises `UserError` where they are not in place."""
        if self.torchvision:
            return _torchvision_images(self, split)
        folder = self.root / (self.train if split == "train" else self.val)
        if not folder.is_dir():
            offer = "" if self.name == "shapes" else ", or try DATASET=shapes, which the suite paints itself"
            raise UserError(f"{self.name} has no {split} folder at {folder}: put its class folders there or set "
                            f"root, train and val in dataset_configs/{self.name}.yaml{offer}")
        return folder_images(folder, self.name, split)


def load_dataset(name: str) -> Dataset:
    """The data set called `name` (a YAML file, a name in `dataset_configs/`, or a folder in `datasets/`)."""
    if (ROOT / "datasets" / name).is_dir() and not (ROOT / "dataset_configs" / f"{name}.yaml").exists():
        return Dataset(name, ROOT / "datasets" / name)
    file = find_config(name, "dataset_configs")
    data = read_yaml(file)
    for key in data:
        if key not in KEYS:
            raise UserError(f"{file} has the unknown key {key!r}{nearest(key, KEYS)}")
    if data.get("torchvision") not in (None, *TORCHVISION_SETS):
        raise UserError(f"{file}: torchvision = {data['torchvision']} is not known"
                        f"{nearest(data['torchvision'], TORCHVISION_SETS)}")
    data.setdefault("name", file.stem)
    data["root"] = ROOT / data.get("root", f"datasets/{data['name']}")
    return Dataset(**data)


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


def is_synset(folder: str) -> bool:
    """True for ImageNet's folder names: a WordNet identifier such as n01440764."""
    return len(folder) == 9 and folder[0] == "n" and folder[1:].isdigit()


def same_classes(train: list[str], val: list[str]) -> None:
    """Raise `UserError` unless both class lists are the same, naming what only one side has."""
    if list(train) == list(val):
        return
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    raise UserError(f"train and val have different classes: only in train {only_train[:5]}, only in val "
                    f"{only_val[:5]}; both need the same class folders")


def readable_class_names(dataset: str, folders: list[str]) -> list[str]:
    """Names for people: `class_names` of the data set's YAML (a text file, a name a line), else the words of ImageNet's
    synsets where the folders are synsets (through timm's list), else the folder names."""
    try:
        names = load_dataset(dataset).class_names
    except UserError:  # features made elsewhere need no configuration
        names = None
    if names in (None, "imagenet"):
        if not all(map(is_synset, folders)):
            return folders
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        words = {synset: info.index_to_description(i).split(",")[0] for i, synset in enumerate(info.label_names())}
        return [words.get(folder, folder) for folder in folders]
    lines = (ROOT / names).read_text(encoding="utf-8").strip().split("\n")
    if len(lines) != len(folders):
        raise UserError(f"{names} has {len(lines)} lines for {len(folders)} classes")
    return lines


def _torchvision_images(dataset: Dataset, split: str) -> TorchvisionImageSet:
    from torchvision import datasets as sets

    kind = getattr(sets, dataset.torchvision)
    if dataset.torchvision.startswith("CIFAR"):
        arguments = {"train": split == "train"}
    elif dataset.torchvision == "OxfordIIITPet":
        arguments = {"split": "trainval" if split == "train" else "test"}
    else:
        arguments = {"split": "train" if split == "train" else "test"}
    try:
        source = kind(str(dataset.root), download=True, **arguments)
    except Exception as error:  # torchvision raises URLError, RuntimeError, HTTPError … for a failed download
        raise UserError(f"torchvision could not get {dataset.torchvision} into {dataset.root} ({error}); "
                        "download it there by hand or use another data set") from None
    targets = next(getattr(source, name) for name in ("targets", "_labels", "labels") if hasattr(source, name))
    targets = [int(target) for target in targets]
    count = max(targets) + 1
    classes = list(getattr(source, "classes", [])) or [f"class {label:03d}" for label in range(count)]
    order = sorted(range(len(targets)), key=lambda index: (targets[index], index))  # class by class, as in folders
    names = [f"{classes[targets[index]]}/{index:06d}" for index in order]
    return TorchvisionImageSet(dataset.name, split, classes, [targets[index] for index in order], names,
                                 dataset.root, source, order)
