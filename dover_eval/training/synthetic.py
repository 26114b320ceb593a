"""Short captioned clips, drawn: moving shapes over textures, with captions that are true by construction.

A scene is a handful of attributes (colour, shape, motion, background, number). From it come the frames and any number
of captions in different words; a caption of another scene is wrong in a known share of its attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 210, 40),
    "purple": (135, 50, 170),
    "orange": (240, 130, 30),
    "white": (243, 243, 243),
    "black": (18, 18, 18),
    "pink": (245, 140, 185),
    "cyan": (50, 205, 215),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
    "bar": ("bar", "long bar"),
}
MOTIONS: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "drifting to the left", "sliding left"),
    "right": ("moving right", "drifting to the right", "sliding right"),
    "up": ("moving up", "rising", "floating upwards"),
    "down": ("moving down", "falling", "sinking"),
    "still": ("standing still", "resting", "that does not move"),
    "growing": ("growing", "getting larger", "coming closer"),
    "shrinking": ("shrinking", "getting smaller", "going away"),
    "spinning": ("spinning", "rotating", "turning around"),
}
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "checkered": ("a checkered floor", "a chessboard"),
    "stripes": ("a striped wall", "stripes"),
    "bricks": ("a brick wall", "bricks"),
    "dots": ("a dotted cloth", "polka dots"),
    "sky": ("a cloudy sky", "clouds"),
    "night": ("a starry night sky", "stars at night"),
    "grass": ("a green meadow", "grass"),
    "sea": ("the sea", "waves on blue water"),
    "plain": ("a plain grey wall", "an empty grey background"),
    "sunset": ("a sunset", "an evening sky"),
}
NUMBERS = {"one": 1, "two": 2, "three": 3}
# What a prompt can stress, and the weights of Traditional, Alignment, Aesthetic and Temporal that it then asks for.
STRESSES: dict[str, tuple[tuple[float, float, float, float], tuple[str, ...]]] = {
    "none": ((0.25, 0.35, 0.2, 0.2), ("",)),
    "detail": ((0.55, 0.2, 0.15, 0.1), (", in sharp detail", ", high resolution, crisp and clean", ", 4k, detailed")),
    "beauty": ((0.15, 0.2, 0.55, 0.1), (", beautiful light", ", cinematic, lovely colours", ", a work of art")),
    "motion": (
        (0.1, 0.2, 0.15, 0.55),
        (", smooth motion", ", in fluid slow motion", ", a steady shot without flicker"),
    ),
}


@dataclass(frozen=True)
class Scene:
    """What is to be seen; `draw` renders it, `caption` says it."""

    colour: str
    shape: str
    motion: str
    background: str
    number: str


CHOICES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
    "number": tuple(NUMBERS),
}


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept from training: one combination of colour, shape and background in ten."""
    index = (
        CHOICES["colour"].index(scene.colour) * 7
        + CHOICES["shape"].index(scene.shape) * 3
        + CHOICES["background"].index(scene.background) * 11
    )
    return index % 10 == 0


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A scene of the training set, or of the held-out one."""
    while True:
        scene = Scene(**{name: str(rng.choice(options)) for name, options in CHOICES.items()})
        if is_held_out(scene) == held_out and _visible(scene):
            return scene


def caption(scene: Scene, rng: np.random.Generator, stress: str = "none") -> str:
    """One of the many true captions of a scene, stressing an aspect where asked."""
    pick = lambda options: str(rng.choice(options))
    noun = pick(SHAPES[scene.shape])
    if scene.number == "one":
        article = "an" if scene.colour[0] in "aeiou" else "a"
        subject = f"{article} {scene.colour} {noun}"
    else:
        plural = "boxes" if noun == "box" else "crosses" if noun == "cross" else f"{noun}s"
        subject = f"{scene.number} {scene.colour} {plural}"
    motion, place = pick(MOTIONS[scene.motion]), pick(BACKGROUNDS[scene.background])
    if scene.number != "one":
        motion = motion.replace("that does not move", "that do not move")
    form = pick(("{s} {m} over {p}", "{s} {m} in front of {p}", "{p} with {s} {m}", "{s}, {m}, {p} behind"))
    return form.format(s=subject, m=motion, p=place) + pick(STRESSES[stress][1])


def draw(scene: Scene, rng: np.random.Generator, *, num_frames: int = 16, size: int = 160) -> NDArray[np.uint8]:
    """The scene as frames (T,H,W,3), uint8, `size` pixels high and wide."""
    margin = size // 4
    texture = _TEXTURES[scene.background](rng, size + 2 * margin)
    drift = rng.uniform(-0.4, 0.4, 2) * margin if rng.random() < 0.3 else np.zeros(2)
    count = NUMBERS[scene.number]
    radius = size * (rng.uniform(0.16, 0.24) if count == 1 else rng.uniform(0.1, 0.13))
    slots = np.array({1: [0.0], 2: [-0.18, 0.18], 3: [-0.3, 0.0, 0.3]}[count]) * size
    along_x = scene.motion not in ("left", "right")  # the objects of a row must not run into each other
    start = rng.uniform(-0.08, 0.08, 2) * size
    travel = size * rng.uniform(0.3, 0.45)
    angle, tilt = rng.uniform(1.5, 3.2) * rng.choice([-1, 1]), rng.uniform(-0.25, 0.25)
    colour = np.array(COLOURS[scene.colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    shade = rng.uniform(0.0, 0.25)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for t in range(num_frames):
        phase = t / max(num_frames - 1, 1) - 0.5
        dy, dx = (margin + drift * phase).round().astype(int)
        frame = texture[dy : dy + size, dx : dx + size].copy()
        centre = size / 2 + start + travel * phase * _DIRECTIONS.get(scene.motion, np.zeros(2))
        scale = 2.0 ** ((1.3 if count == 1 else 0.9) * phase * {"growing": 1, "shrinking": -1}.get(scene.motion, 0))
        turn = tilt + (angle * phase if scene.motion == "spinning" else 0)
        for slot in slots:
            cy, cx = centre + (np.array([0, slot]) if along_x else np.array([slot, 0]))
            r = radius * scale
            u, v = (x - cx) / r, (y - cy) / r
            u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
            alpha = np.clip(0.5 - _SHAPES[scene.shape](u, v) * r, 0, 1)[..., None]
            paint = colour * (1 - shade * np.clip(0.5 + 0.5 * v, 0, 1))[..., None]
            frame += alpha * (paint - frame)
        frames[t] = np.clip(frame, 0, 255).astype(np.uint8)
    return frames


_DIRECTIONS = {
    "left": np.array([0.0, -1.0]),
    "right": np.array([0.0, 1.0]),
    "up": np.array([-1.0, 0.0]),
    "down": np.array([1.0, 0.0]),
}


def _visible(scene: Scene) -> bool:
    """Whether the colour stands out from the background, and whether a spin would show."""
    if scene.shape in ("circle", "ring") and scene.motion == "spinning":
        return False
    hidden = {
        ("white", "sky"),
        ("black", "night"),
        ("green", "grass"),
        ("blue", "sea"),
        ("cyan", "sea"),
        ("orange", "sunset"),
    }
    return (scene.colour, scene.background) not in hidden


def _polygon(points: list[tuple[float, float]]) -> Callable[[Array, Array], Array]:
    """The signed distance to a polygon, negative inside."""
    corners = np.array(points, np.float32)

    def distance(u: Array, v: Array) -> Array:
        nearest = np.full(u.shape, np.inf, np.float32)
        inside = np.zeros(u.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            t = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (u - ax - t * ex) ** 2 + (v - ay - t * ey) ** 2)
            crosses = (ay > v) != (by > v)
            if ey:
                inside ^= crosses & (u < ax + (v - ay) * ex / ey)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def _star_points() -> list[tuple[float, float]]:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for a, r in zip(angles, [1.15, 0.48] * 5, strict=True)]


def _heart_points() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a) / 15, float(-b) / 15) for a, b in zip(x, y, strict=True)]


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.88,
    "triangle": _polygon([(0, -1.1), (1.05, 0.8), (-1.05, 0.8)]),
    "star": _polygon(_star_points()),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.8) - 0.24,
    "cross": lambda u, v: np.minimum(np.maximum(abs(u) - 0.3, abs(v) - 1.05), np.maximum(abs(u) - 1.05, abs(v) - 0.3)),
    "heart": _polygon(_heart_points()),
    "bar": lambda u, v: np.maximum(abs(u) - 1.25, abs(v) - 0.3),
}


def _clouds(rng: np.random.Generator, size: int, roughness: float) -> Array:
    """Noise with a power spectrum like that of natural pictures, in [0,1]."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / size) ** roughness
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
    noise = np.fft.irfft2(spectrum, (size, size))
    low, high = np.percentile(noise, [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1).astype(np.float32)


def _blend(mask: Array, dark: tuple[int, int, int], light: tuple[int, int, int], rng: np.random.Generator) -> Array:
    ends = np.array([dark, light], np.float32) + rng.uniform(-14, 14, (2, 1)).astype(np.float32)
    return ends[0] + mask[..., None] * (ends[1] - ends[0])


def _grid(size: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return y, x


def _grain(rng: np.random.Generator, picture: Array, strength: float = 18) -> Array:
    return picture + (_clouds(rng, len(picture), 0.9)[..., None] - 0.5) * strength


def _checkered(rng: np.random.Generator, size: int) -> Array:
    cell = rng.integers(14, 24)
    y, x = _grid(size)
    return _grain(rng, _blend(((y // cell + x // cell) % 2).astype(np.float32), (70, 66, 62), (196, 190, 184), rng))


def _stripes(rng: np.random.Generator, size: int) -> Array:
    y, x = _grid(size)
    position = (x if rng.random() < 0.5 else y) / rng.integers(9, 18)
    return _grain(rng, _blend((position % 2 < 1).astype(np.float32), (120, 104, 88), (206, 192, 170), rng))


def _bricks(rng: np.random.Generator, size: int) -> Array:
    height = rng.integers(12, 18)
    y, x = _grid(size)
    row = y // height
    mortar = ((y % height < 2) | ((x + (row % 2) * height) % (2 * height) < 2)).astype(np.float32)
    return _grain(rng, _blend(mortar, (142, 74, 56), (196, 186, 176), rng), 40)


def _dots(rng: np.random.Generator, size: int) -> Array:
    cell = rng.integers(16, 26)
    y, x = _grid(size)
    distance = np.hypot(y % cell - cell / 2, x % cell - cell / 2)
    return _grain(rng, _blend(np.clip(cell * 0.28 - distance, 0, 1), (206, 196, 178), (96, 110, 116), rng))


def _sky(rng: np.random.Generator, size: int) -> Array:
    return _blend(_clouds(rng, size, 1.6) ** 1.3, (96, 150, 214), (240, 243, 247), rng)


def _night(rng: np.random.Generator, size: int) -> Array:
    picture = _blend(_clouds(rng, size, 1.8), (8, 10, 26), (34, 34, 66), rng)
    for cy, cx in rng.integers(1, size - 1, (size * size // 260, 2)):
        picture[cy : cy + rng.integers(1, 3), cx : cx + rng.integers(1, 3)] = rng.uniform(120, 255)
    return picture


def _grass(rng: np.random.Generator, size: int) -> Array:
    return _blend(_clouds(rng, size, 0.7), (30, 92, 28), (134, 190, 72), rng)


def _sea(rng: np.random.Generator, size: int) -> Array:
    y, x = _grid(size)
    swell = np.sin(y / rng.uniform(3, 6) + 3 * _clouds(rng, size, 1.8) + x / rng.uniform(20, 50))
    return _blend(
        np.clip(0.5 + 0.35 * swell + 0.3 * (_clouds(rng, size, 1.0) - 0.5), 0, 1), (12, 62, 118), (96, 160, 200), rng
    )


def _plain(rng: np.random.Generator, size: int) -> Array:
    return _grain(rng, np.full((size, size, 3), rng.uniform(110, 170), np.float32), 26)


def _sunset(rng: np.random.Generator, size: int) -> Array:
    y, _ = _grid(size)
    picture = _blend(y / size, (84, 44, 104), (250, 150, 72), rng)
    return picture + (_clouds(rng, size, 1.7)[..., None] - 0.5) * 60


_TEXTURES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "checkered": _checkered,
    "stripes": _stripes,
    "bricks": _bricks,
    "dots": _dots,
    "sky": _sky,
    "night": _night,
    "grass": _grass,
    "sea": _sea,
    "plain": _plain,
    "sunset": _sunset,
}
