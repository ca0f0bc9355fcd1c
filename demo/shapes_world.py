"""The world of `shapes`: its attributes, the rule of each class, and how a scene is drawn, painted and described.

A class is a rule over shape x texture x colour. Stars and circles are told apart by texture, squares and triangles
by colour, so that every single attribute occurs in several classes and none decides alone. Size, background and
clutter mean nothing. Everything about image `index` of a split follows from (seed, split, index) alone.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from iis.runtime import numpy_rng

VERSION = 1  # raise it whenever the same seed would paint other pixels or write other captions
SIDE = 64  # pixels; textures are drawn in these units, so that a period never falls below four pixels
SUPERSAMPLING = 2  # painted at 128 x 128, then averaged: smooth edges

ATTRIBUTES = {
    "shape": ("circle", "square", "star", "triangle"),
    "texture": ("plain", "striped", "dotted", "checked"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "size": ("small", "medium", "large"),
    "background_tone": ("light", "dark"),
    "background_finish": ("flat", "graded", "cloudy"),
}
CLUTTER = ("blob", "line", "cross")

WARM, COOL = ("red", "orange", "yellow"), ("green", "blue", "purple")
RULES = {  # a group that is not named is free
    "cool_square": {"shape": ("square",), "colour": COOL},
    "cool_triangle": {"shape": ("triangle",), "colour": COOL},
    "dotted_circle": {"shape": ("circle",), "texture": ("dotted",)},
    "dotted_star": {"shape": ("star",), "texture": ("dotted",)},
    "striped_circle": {"shape": ("circle",), "texture": ("striped",)},
    "striped_star": {"shape": ("star",), "texture": ("striped",)},
    "warm_square": {"shape": ("square",), "colour": WARM},
    "warm_triangle": {"shape": ("triangle",), "colour": WARM},
}
HUES = {"red": 0, "orange": 27, "yellow": 54, "green": 125, "blue": 218, "purple": 285}  # degrees, each +- 8
RADII = {"small": (11.5, 13.5), "medium": (16.0, 18.5), "large": (21.0, 24.0)}  # pixels; the gaps keep sizes visible


@dataclass(frozen=True)
class Scene:
    """What is in one image, in words. `attributes` has one word of each group of `ATTRIBUTES`;
    `clutter` is (colour, kind) of everything else, the last `in_front` of them over the main object."""

    key: tuple[int, str, int]
    class_name: str
    attributes: dict[str, str]
    clutter: tuple[tuple[str, str], ...]
    in_front: int

    @property
    def name(self) -> str:
        """The image's path below the data set's root."""
        return f"{self.key[1]}/{self.class_name}/{self.key[2]:05d}.png"


def scene(seed: int, split: str, index: int) -> Scene:
    """Draw scene `index` of a split; classes take turns, so that they are balanced."""
    rng = numpy_rng(seed, "shapes", split, index, "scene")
    class_name = sorted(RULES)[index % len(RULES)]
    attributes = {group: str(rng.choice(RULES[class_name].get(group, values)))
                  for group, values in ATTRIBUTES.items()}
    clutter = tuple((str(rng.choice(ATTRIBUTES["colour"])), str(rng.choice(CLUTTER)))
                    for _ in range(rng.integers(1, 5)))
    return Scene((seed, split, index), class_name, attributes, clutter, int(rng.integers(0, 2)))


# ---- painting: lengths in pixels of the finished image, colours in [0, 1] ----

def paint(of: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB image. Position, rotation, shade, noise follow from the scene's key."""
    rng = numpy_rng(*of.key, "shapes", "paint")
    look = of.attributes
    canvas_HW3 = _background(look["background_tone"], look["background_finish"], rng)
    behind = len(of.clutter) - of.in_front
    radius = rng.uniform(*RADII[look["size"]])
    centre = rng.uniform(radius * 0.9, SIDE - radius * 0.9, size=2)  # may stick out by a tenth of its radius
    for colour, kind in of.clutter[:behind]:
        _blend(canvas_HW3, _clutter_mask(kind, rng.uniform(0, SIDE, size=2), rng), _shade(colour, rng))
    angle = rng.uniform(0, 2 * math.pi)
    mask_HW = _mask([_outline(look["shape"], radius, centre, angle)])
    _blend(canvas_HW3, mask_HW, _surface(look["texture"], _shade(look["colour"], rng), centre, rng))
    for colour, kind in of.clutter[behind:]:  # somewhere over the object: partial occlusion
        place = centre + rng.uniform(-0.9, 0.9, size=2) * radius
        _blend(canvas_HW3, _clutter_mask(kind, place, rng), _shade(colour, rng))
    small_hw3 = canvas_HW3.reshape(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING, 3).mean(axis=(1, 3))  # (64, 64, 3)
    small_hw3 = (small_hw3 - 0.5) * rng.uniform(0.6, 1.0) + 0.5 + rng.uniform(-0.06, 0.06)  # contrast, exposure
    small_hw3 += rng.normal(0, rng.uniform(0.01, 0.05), size=small_hw3.shape)  # pixel noise
    return Image.fromarray((small_hw3.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _grid() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(SIDE * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING
    return axis[None, :], axis[:, None]  # x (1, W), y (H, 1)


def _shade(colour: str, rng: np.random.Generator) -> np.ndarray:
    hue = (HUES[colour] + rng.uniform(-8, 8)) / 360 % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.62, 0.95), rng.uniform(0.72, 1.0)), dtype=np.float32)


def _background(tone: str, finish: str, rng: np.random.Generator) -> np.ndarray:
    level = rng.uniform(0.62, 0.85) if tone == "light" else rng.uniform(0.15, 0.38)
    base = level + rng.uniform(-0.08, 0.08, size=3)  # slightly tinted
    x, y = _grid()
    relief = np.zeros((SIDE * SUPERSAMPLING,) * 2, dtype=np.float32)
    if finish == "graded":
        angle = rng.uniform(0, 2 * math.pi)
        relief = (math.cos(angle) * (x - SIDE / 2) + math.sin(angle) * (y - SIDE / 2)) / SIDE * rng.uniform(0.3, 0.5)
    elif finish == "cloudy":
        knots = Image.fromarray(rng.uniform(-1, 1, size=(9, 9)).astype(np.float32))
        relief = np.asarray(knots.resize(relief.shape, Image.Resampling.BICUBIC)) * rng.uniform(0.06, 0.12)
    return (relief[:, :, None] + base).astype(np.float32)  # (H, W, 3)


def _outline(shape: str, radius: float, centre: np.ndarray, angle: float) -> list[tuple[float, float]]:
    """A polygon around `centre`; radii are set so that all shapes cover about the same area."""
    corners, reach = {"circle": (48, (0.9,)), "square": (4, (1.12,)), "triangle": (3, (1.4,)),
                      "star": (10, (1.3, 0.58))}[shape]
    turns = angle + np.arange(corners) * 2 * math.pi / corners
    reaches = radius * np.resize(reach, corners)
    return list(zip(centre[0] + reaches * np.cos(turns), centre[1] + reaches * np.sin(turns), strict=True))


def _clutter_mask(kind: str, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle, length = rng.uniform(0, math.pi), rng.uniform(3.5, 5)
    if kind == "blob":
        along, across = rng.uniform(2.0, 3.5, size=2)
        turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        points = np.stack([along * np.cos(turns), across * np.sin(turns)], axis=1)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        return _mask([[tuple(point) for point in points @ turn + centre]])
    if kind == "line":
        return _mask([_bar(centre, rng.uniform(6, 12), 0.8, angle)])
    return _mask([_bar(centre, length, 1.1, angle), _bar(centre, length, 1.1, angle + math.pi / 2)])


def _bar(centre: np.ndarray, half: float, thickness: float, angle: float) -> list[tuple[float, float]]:
    along = np.array([math.cos(angle), math.sin(angle)]) * half
    across = np.array([-math.sin(angle), math.cos(angle)]) * thickness
    return [tuple(centre + a * along + b * across) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]


def _mask(polygons: list[list[tuple[float, float]]]) -> np.ndarray:
    image = Image.new("L", (SIDE * SUPERSAMPLING,) * 2)
    for polygon in polygons:
        ImageDraw.Draw(image).polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in polygon], fill=1)
    return np.asarray(image)  # (H, W)


def _surface(texture: str, colour: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The colour with its pattern in a darker or paler shade, over the whole canvas: (H, W, 3)."""
    x, y = _grid()
    angle = rng.uniform(0, 2 * math.pi)
    x, y = x - centre[0] - rng.uniform(-3, 3), y - centre[1] - rng.uniform(-3, 3)
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    period = rng.uniform(5.5, 7.5)
    if texture == "striped":
        pattern = np.mod(u, period) < period * 0.5
    elif texture == "dotted":
        pattern = (np.mod(u, period) - period / 2) ** 2 + (np.mod(v, period) - period / 2) ** 2 < (period * 0.32) ** 2
    elif texture == "checked":
        pattern = (np.mod(u, period * 1.5) < period * 0.75) ^ (np.mod(v, period * 1.5) < period * 0.75)
    else:
        pattern = np.zeros(u.shape, dtype=bool)
    other = np.float32(rng.integers(0, 2))  # towards black or white
    amount = rng.uniform(0.45, 0.75)
    return np.where(pattern[:, :, None], colour * (1 - amount) + other * amount, colour)


def _blend(canvas_HW3: np.ndarray, mask_HW: np.ndarray, colour: np.ndarray) -> None:
    where = mask_HW > 0
    canvas_HW3[where] = colour[where] if colour.ndim == 3 else colour


# ---- captions: one English sentence a scene, in varied words and order ----
# All of it can be seen, and positions are not mentioned, so that a mirrored image keeps its caption.

TEXTURE_PHRASES = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots",
                   "checked": "with checks"}
TEMPLATES = (
    "{A} {size} {colour} {texture} {shape} on {a_background}{with_others}.",
    "On {a_background} there is {a} {size} {texture} {shape} in {colour}{with_others}.",
    "{A} {texture} {colour} {shape}, {size}, before {a_background}{with_others}.",
    "The {shape} is {size}, {colour} and {texture}; the background is {tone} and {finish}{with_others}.",
    "{A} {size} {shape}, {colour} {texture_phrase}{with_others}, on {a_background}.",
    "{Tone} and {finish} background: {a} {colour} {shape}, {texture} and {size}{with_others}.",
    "This is a picture of {a} {texture} {shape}, {colour} and {size}{with_others}; its background is {finish} and "
    "{tone}.",
)
COUNTS = ("no", "a", "two", "three", "four", "five")


def concepts(of: Scene) -> list[str]:
    """The true concepts of a scene: one word of each group of `ATTRIBUTES`, in that order."""
    return list(of.attributes.values())


def caption(of: Scene) -> str:
    """One sentence that names all concepts of the scene and its clutter."""
    rng = numpy_rng(*of.key, "shapes", "caption")
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    look = of.attributes
    tone, finish = look["background_tone"], look["background_finish"]
    words = {"size": look["size"], "colour": look["colour"], "texture": look["texture"], "shape": look["shape"],
             "tone": tone, "finish": finish, "Tone": tone.capitalize(),
             "texture_phrase": f"and {look['texture']}" if rng.integers(2) else TEXTURE_PHRASES[look["texture"]],
             "a_background": f"a {tone} {finish} background" if rng.integers(2) else f"a {finish} {tone} background",
             "with_others": _others(of, ("with", "beside", "near")[rng.integers(3)])}
    after = template.replace("{A}", "{a}").partition("{a} {")[2].partition("}")[0]
    article = "an" if words.get(after, "")[:1] in "aeiou" and after else "a"
    return template.format(**words, a=article, A=article.capitalize())


def _others(of: Scene, joint: str) -> str:
    phrases = [f"{COUNTS[number]} {colour} {kind}{'es' if kind == 'cross' and number > 1 else 's' * (number > 1)}"
               for (colour, kind), number in Counter(of.clutter).items()]  # in the order in which they were drawn
    *first, last = (phrase.replace("a orange", "an orange") for phrase in phrases)
    return f" {joint} " + (", ".join(first) + " and " + last if first else last)
