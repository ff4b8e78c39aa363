"""Scenes that a script draws: one shape on a plain background, with a caption of a fixed grammar.

    caption    := subject [" on " colour " background"] ["," style]
    subject    := "a " colour " " shape
    shortened  := subject | colour " background" | ""            (see ``caption``)

A ``Scene`` says everything that is drawn; ``render`` is a pure function of it. Pictures are float32
arrays (height, width, 3) in [0, 1], as in ``copier.images.effects``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from copier.images.effects import EFFECTS

SIZE = 128
"""Side of a scene in pixels: 16 latents of 8 pixels, a multiple of 64 as SD wants it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 60),
    "green": (50, 170, 70),
    "cyan": (70, 205, 215),
    "blue": (50, 90, 220),
    "purple": (140, 60, 190),
    "pink": (245, 150, 190),
    "gray": (140, 140, 140),
    "white": (245, 245, 245),
    "black": (30, 30, 30),
}
"""The palette, sRGB, for shapes and backgrounds alike."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")

STYLES = ("grayscale", "flat", "outline", "posterised", "3d")
"""Named styles: each is an edit of ``copier.images.effects``, except "3d", a glossy shading."""

_STYLE_EFFECTS = {
    "grayscale": "grayscale",
    "flat": "flatten",
    "outline": "outline",
    "posterised": "posterise",
}

JITTER = 10
"""Largest distance, in 8-bit levels, of a channel of a drawn colour from the palette's."""

LINE = 3.0
"""Width of the shape's outline in pixels at 128 px."""

ORNAMENTS = ("belt", "cap", "spots")
"""What characters wear. The checkpoint was never trained on any: a LoRA has to bring them."""

_OVERSAMPLING = 4
_HELD_OUT_MODULUS = 11


@dataclass(frozen=True)
class Scene:
    """One picture: names that the caption knows, and the geometry that it does not.

    ``x`` and ``y`` are the centre and ``radius`` the circumscribed radius, in units of the picture's
    side; ``angle`` is in degrees; the two tuples are sRGB values of 0 to 255.
    """

    shape: str
    colour: str
    background: str
    style: str | None = None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.3
    angle: float = 0.0
    shape_rgb: tuple[int, int, int] | None = None
    background_rgb: tuple[int, int, int] | None = None
    ornament: str | None = None


def _vertices(shape: str) -> np.ndarray:
    """Outline of ``shape`` as a polygon (n, 2) in the unit circle, y downwards."""
    t = np.linspace(0.0, 2 * math.pi, 96, endpoint=False)
    if shape in ("circle", "ring"):
        return np.stack([np.cos(t), np.sin(t)], axis=1)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8
    if shape == "triangle":
        return np.array([(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)])
    if shape == "star":
        spokes = np.arange(10)
        reach = np.where(spokes % 2 == 0, 1.0, 0.45)
        angle = spokes * math.pi / 5 - math.pi / 2
        return np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
    if shape == "heart":
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y + 2.0], axis=1) / 17.0
    if shape == "cross":
        a, b = 0.33, 0.95
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        return np.array(corners)
    if shape == "crescent":
        outer = np.linspace(0.9, 2 * math.pi - 0.9, 64)
        arc = np.stack([np.cos(outer), np.sin(outer)], axis=1)
        start = arc[-1]
        inner = np.linspace(2 * math.pi - 1.35, 1.35, 48)
        curve = np.stack([np.cos(inner), np.sin(inner)], axis=1)
        # Scale and shift the inner arc so that its ends meet those of the outer one.
        curve *= abs(start[1]) / abs(curve[0][1])
        curve[:, 0] += start[0] - curve[0][0]
        moon = np.concatenate([arc, curve[1:-1]])
        return moon + np.array([0.15, 0.0])
    raise ValueError(shape)


def _polygon(scene: Scene, pixels: int, *, scale: float = 1.0) -> list[tuple[float, float]]:
    angle = math.radians(scene.angle)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = _vertices(scene.shape) @ turn.T * scene.radius * scale
    points = (points + np.array([scene.x, scene.y])) * pixels
    return [(float(px), float(py)) for px, py in points]


def masks(scene: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the filled shape and of its outline: two float32 arrays (size, size) in [0, 1]."""
    pixels = size * _OVERSAMPLING
    fill = Image.new("L", (pixels, pixels), 0)
    line = Image.new("L", (pixels, pixels), 0)
    width = max(1, round(LINE * _OVERSAMPLING * size / SIZE))
    for scale in (1.0, 0.5) if scene.shape == "ring" else (1.0,):
        polygon = _polygon(scene, pixels, scale=scale)
        ImageDraw.Draw(fill).polygon(polygon, fill=255 if scale == 1.0 else 0)
        ImageDraw.Draw(line).line([*polygon, *polygon[:2]], fill=255, width=width, joint="curve")
    box = Image.Resampling.BOX
    return (
        np.asarray(fill.resize((size, size), box), dtype=np.float32) / 255.0,
        np.asarray(line.resize((size, size), box), dtype=np.float32) / 255.0,
    )


def _rgb(name: str, exact: tuple[int, int, int] | None) -> np.ndarray:
    return np.array(exact or COLOURS[name], dtype=np.float32) / 255.0


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Draw ``scene``: float32 array (size, size, 3) in [0, 1]."""
    fill, line = masks(scene, size)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    colour = _rgb(scene.colour, scene.shape_rgb)
    background = _rgb(scene.background, scene.background_rgb)
    if scene.ornament:
        worn = _ornament(scene, xs, ys)[..., None]
        colour = colour * (1.0 - worn) + ornament_rgb(scene.colour) * worn
    # Light comes from the upper left: -1 at the far rim, +1 at the near one.
    light = ((scene.x - xs) + (scene.y - ys)) / (1.4 * scene.radius)
    if scene.style == "3d":
        gap = np.hypot(xs - scene.x + 0.35 * scene.radius, ys - scene.y + 0.4 * scene.radius)
        shade = colour * (1.0 + 0.35 * np.clip(light, -1, 1))[..., None]
        shine = np.exp(-((gap / (0.28 * scene.radius)) ** 2))[..., None]
        body = shade + (1.0 - shade) * 0.85 * shine
    else:
        body = colour * (1.0 + 0.15 * np.clip(light, -1, 1))[..., None]
        body = body * (1.0 - line[..., None]) + colour * 0.4 * line[..., None]
    cover = np.maximum(fill, line if scene.style != "3d" else 0.0)[..., None]
    picture = np.clip(background * (1.0 - cover) + body * cover, 0.0, 1.0).astype(np.float32)
    effect = _STYLE_EFFECTS.get(scene.style or "")
    return EFFECTS[effect].function(picture) if effect else picture


def ornament_rgb(colour: str) -> np.ndarray:
    """sRGB in [0, 1] of what a character of that colour wears: black on a light one, else yellow."""
    light = np.dot(_rgb(colour, None), (0.2126, 0.7152, 0.0722)) > 0.55
    return _rgb("black" if light else "yellow", None)


def _ornament(scene: Scene, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Coverage of the ornament, before the shape cuts it: 0 or 1 at each place (units of the side)."""
    across, down = (xs - scene.x) / scene.radius, (ys - scene.y) / scene.radius
    if scene.ornament == "belt":
        worn = np.abs(down - 0.1) < 0.2
    elif scene.ornament == "cap":
        worn = down < -0.3
    else:
        worn = np.hypot((across + 1.25) % 0.5 - 0.25, (down + 1.25) % 0.5 - 0.25) < 0.13
    return worn.astype(np.float32)


def caption(scene: Scene) -> str:
    """The full caption, for instance "a red star on white background, grayscale"."""
    text = f"a {scene.colour} {scene.shape} on {scene.background} background"
    return f"{text}, {scene.style}" if scene.style else text


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The caption that one training step sees: full (60 %), shortened (30 %) or empty (10 %)."""
    draw = rng.random()
    style = f", {scene.style}" if scene.style else ""
    if draw < 0.60:
        return caption(scene)
    if draw < 0.75:
        return f"a {scene.colour} {scene.shape}{style}"
    if draw < 0.80:
        return f"{scene.background} background{style}"
    if draw < 0.85:
        return f"a {scene.shape} on {scene.background} background{style}"
    if draw < 0.90:
        return f"a {scene.shape}{style}"
    return ""


def held_out(scene: Scene) -> bool:
    """Whether training never sees this combination of shape, colour and background.

    One combination in eleven, spread so that every pair (shape, colour), (shape, background) and
    (colour, background) is still seen.
    """
    colours = list(COLOURS)
    total = (
        3 * SHAPES.index(scene.shape) + 2 * colours.index(scene.colour) + 5 * colours.index(scene.background)
    )
    return total % _HELD_OUT_MODULUS == 0


def random_scene(rng: np.random.Generator, *, training: bool = True, styles: float = 0.15) -> Scene:
    """A random scene; ``styles`` is the share of those in a named style.

    With ``training`` combinations that are ``held_out`` do not come up; without it only they do.
    """
    names = list(COLOURS)
    while True:
        scene = Scene(
            shape=SHAPES[rng.integers(len(SHAPES))],
            colour=names[rng.integers(len(names))],
            background=names[rng.integers(len(names))],
        )
        if scene.colour != scene.background and held_out(scene) != training:
            break
    style = STYLES[rng.integers(len(STYLES))] if rng.random() < styles else None
    return jittered(replace(scene, style=style), rng)


def jittered(scene: Scene, rng: np.random.Generator) -> Scene:
    """``scene`` with a random place, size, angle and shade."""

    def shade(name: str) -> tuple[int, int, int]:
        r, g, b = (int(v) for v in np.array(COLOURS[name]) + rng.integers(-JITTER, JITTER + 1, 3))
        return (r, g, b)

    return replace(
        scene,
        x=float(rng.uniform(0.44, 0.56)),
        y=float(rng.uniform(0.44, 0.56)),
        radius=float(rng.uniform(0.27, 0.36)),
        angle=float(rng.uniform(-12, 12)),
        shape_rgb=shade(scene.colour),
        background_rgb=shade(scene.background),
    )


def edited(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``picture`` moved towards or past a random edit: clip(x + w (f(x) - x)), w from -1 to 1.5.

    These are the targets of the evaluation; the autoencoder is trained on them too.
    """
    names = ("grayscale", "outline", "high_contrast", "flatten", "posterise", "jpeg_noise",
             "saturation", "hue", "brightness", "blur", "sharpen")  # fmt: skip
    weights = (0.25, 0.2, 0.2, 0.07, 0.08, 0.04, 0.04, 0.04, 0.04, 0.02, 0.02)
    function = EFFECTS[names[rng.choice(len(names), p=weights)]].function
    weight = 1.0 if rng.random() < 0.6 else rng.uniform(-1.0, 1.5)
    target = picture + np.float32(weight) * (function(picture) - picture)
    return np.clip(target, 0.0, 1.0).astype(np.float32)
