"""Draw the canvas's pictures: an emoji glyph, placed at random, rendered in one of six styles.

Only rebuilding the canvas needs this module and its font (Noto Color Emoji, OFL-1.1); using the canvas needs neither.
Every picture is a function of (object, style, generator): the same generator state draws the same picture.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from . import OBJECTS, RESOLUTION

GLYPHS = ("🐱", "🐶", "🍎", "🚗", "🏠", "🌳", "🐟", "🌻", "🚀", "☂️",
          "🎸", "🚲", "🦋", "🍄", "🐧", "🍕", "🎈", "👑", "⛄", "🐙")  # fmt: skip
EMOJI: dict[str, str] = dict(zip(OBJECTS, GLYPHS, strict=True))
FONT_FILE = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_GLYPH_SIZE = 109  # the one bitmap size that the font carries
_WORK = 2 * RESOLUTION  # filters run at twice the size, so that the lines of the line styles stay smooth


def draw(obj: str, style: str, rng: np.random.Generator, font_file: Path = FONT_FILE) -> Image.Image:
    """Return a 64×64 RGB picture of `obj` in `style`, at a random place, size (66–86 %), angle (±12°) and side."""
    layer = _place(_glyph(obj, font_file), rng)
    return _STYLE_FILTERS[style](layer, rng).resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)


@cache
def _glyph(obj: str, font_file: Path) -> Image.Image:
    if not font_file.is_file():
        raise FileNotFoundError(
            f"The emoji font is missing: {font_file}. Install it (Debian: apt-get install fonts-noto-color-emoji) "
            "or name another copy of NotoColorEmoji.ttf with --font_file."
        )
    font = ImageFont.truetype(str(font_file), _GLYPH_SIZE)
    picture = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(picture).text((8, 8), EMOJI[obj], font=font, embedded_color=True)
    picture = picture.crop(picture.getbbox())
    return ImageOps.pad(picture, (max(picture.size), max(picture.size)))


def _place(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = int(_WORK * rng.uniform(0.66, 0.86))
    if rng.random() < 0.5:
        glyph = ImageOps.mirror(glyph)
    glyph = glyph.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=False)
    glyph = glyph.resize((size, size), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", (_WORK, _WORK))
    left, top = rng.integers(0, _WORK - size + 1, 2)
    layer.paste(glyph, (int(left), int(top)))
    return layer


def _pastel(rng: np.random.Generator, low: int = 170, high: int = 245) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, 3)
    return int(red), int(green), int(blue)


def _on(layer: Image.Image, ground: Image.Image) -> Image.Image:
    return Image.alpha_composite(ground.convert("RGBA"), layer).convert("RGB")


def _on_colour(layer: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    return _on(layer, Image.new("RGB", layer.size, colour))


def _edges(layer: Image.Image, width: int = 3) -> Image.Image:
    """Outline of the glyph and of the shapes inside it, white on black, as a greyscale picture."""
    grey = _on_colour(layer, (255, 255, 255)).convert("L").filter(ImageFilter.GaussianBlur(1.2))
    inside = ImageChops.subtract(
        grey.filter(ImageFilter.MaxFilter(width)), grey.filter(ImageFilter.MinFilter(width))
    ).point([min(255, 3 * value) for value in range(256)])
    alpha = layer.getchannel("A")
    outline = ImageChops.subtract(alpha.filter(ImageFilter.MaxFilter(5)), alpha.filter(ImageFilter.MinFilter(3)))
    return ImageChops.lighter(inside, outline)


def _photo(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    sky, ground = _pastel(rng), _pastel(rng, 120, 215)
    ramp = Image.linear_gradient("L").resize(layer.size)
    scene = Image.composite(Image.new("RGB", layer.size, ground), Image.new("RGB", layer.size, sky), ramp)
    shadow = Image.new("RGBA", layer.size, (0, 0, 0, 0))
    shadow.paste((30, 30, 40, 110), (3, 5), layer.getchannel("A").resize(layer.size))
    return _on(layer, _on(shadow.filter(ImageFilter.GaussianBlur(4)), scene))


def _sketch(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    paper, pencil = (int(rng.integers(246, 256)),) * 3, (int(rng.integers(20, 70)),) * 3
    return ImageOps.colorize(_edges(layer), paper, pencil)


def _pixel_art(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    small = _on_colour(layer, _pastel(rng)).resize((16, 16), Image.Resampling.BOX)
    small = ImageOps.posterize(small, 3)
    return small.resize(layer.size, Image.Resampling.NEAREST)


def _watercolor(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    wash = _on_colour(layer, _pastel(rng, 205, 245)).filter(ImageFilter.ModeFilter(5))
    wash = wash.filter(ImageFilter.GaussianBlur(1.5))
    bleed = Image.blend(wash, Image.new("RGB", wash.size, (255, 252, 244)), rng.uniform(0.1, 0.25))
    grain = np.asarray(bleed, np.float32) + rng.normal(0, 9, (*bleed.size[::-1], 1))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def _neon(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    hue = Image.new("HSV", layer.size, (int(rng.integers(0, 256)), 200, 255)).convert("RGB")
    tubes = ImageChops.multiply(hue, Image.merge("RGB", (_edges(layer),) * 3))
    glow = tubes.filter(ImageFilter.GaussianBlur(5))
    return ImageChops.screen(tubes, ImageChops.screen(glow, Image.new("RGB", layer.size, (8, 6, 16))))


def _blueprint(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    blue = (int(rng.integers(15, 40)), int(rng.integers(60, 95)), int(rng.integers(150, 190)))
    sheet = Image.new("RGB", layer.size, blue)
    pen = ImageDraw.Draw(sheet)
    first = int(rng.integers(0, 32))
    for at in range(first, _WORK, 32):
        line = tuple(min(255, c + 28) for c in blue)
        pen.line([(at, 0), (at, _WORK)], line, 2)
        pen.line([(0, at), (_WORK, at)], line, 2)
    return Image.composite(Image.new("RGB", layer.size, (235, 242, 255)), sheet, _edges(layer))


_STYLE_FILTERS = {
    "photo": _photo,
    "sketch": _sketch,
    "pixel art": _pixel_art,
    "watercolor": _watercolor,
    "neon": _neon,
    "blueprint": _blueprint,
}
