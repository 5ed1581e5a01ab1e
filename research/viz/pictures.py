"""Sheets of images with captions, and lines of text, drawn with PIL alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from research.viz.colours import BLACK, CAPTIONS

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT: Final = "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""Of matplotlib: it has the letters of most alphabets, and the marks of ``CAPTIONS``."""
LETTERS: Final = 12
"""Height of the letters of captions and titles, pixels."""
LINE: Final = 16
"""Height of a line of text, pixels."""
GAP: Final = 8
"""Pixels around each image of a sheet."""
LONGEST_LINE: Final = 300
"""Characters of a line, to be measured; measuring 20,000 takes seconds."""
NARROWEST: Final = 300
"""Least width of a sheet with a note, pixels: a word or two would fill a line of a narrower one."""
CELL: Final = 128


@lru_cache
def font(size: int = LETTERS) -> Font:
    """The font of all pictures, at a height in pixels."""
    matplotlib = find_spec("matplotlib")  # not imported: that takes longer than to draw a sheet
    path = Path(matplotlib.origin).parent / FONT if matplotlib and matplotlib.origin else Path(FONT)
    if path.is_file():
        return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def fitted(text: str, width: float, letters: Font | None = None) -> str:
    """A text that is at most so many pixels wide: of a longer one, start and end remain.

    Args:
        text: of one line.
        width: pixels.
        letters: its font; None: that of captions.
    """
    letters = letters or font()
    if len(text) > LONGEST_LINE:
        text = text[: LONGEST_LINE // 2] + text[-LONGEST_LINE // 2 :]
    if letters.getlength(text) <= width:
        return text
    kept = len(text)
    while kept and letters.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    """So many letters of a text, those in its middle left out."""
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"


def titled(image: Image.Image, text: str) -> Image.Image:
    """A copy of the image below a title, which has several lines if it is wider."""
    line = note(text, max(image.width, NARROWEST))
    width = max(image.width, line.width)
    canvas = Image.new("RGB", (width, line.height + image.height), "white")
    canvas.paste(line, (0, 0))
    canvas.paste(image, ((width - image.width) // 2, line.height))
    return canvas


def note(text: str, width: int | None = None) -> Image.Image:
    """A text as an image; also an empty result.

    Args:
        text: words.
        width: pixels in which it is wrapped; None: one line.
    """
    lines = [text] if width is None else _wrapped(text, width - 2 * GAP)
    longest = max(font().getlength(line) for line in lines)
    size = 2 * GAP + int(longest) + 1, 2 * GAP + LINE * len(lines)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + number * LINE), line, fill=BLACK, font=font())
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitted(line, width) for line in lines]


def from_pixels(pixels: Tensor) -> Image.Image:
    """A uint8 RGB tensor [3, H, W] as an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def cell(pixels: Tensor, side: int = CELL) -> Image.Image:
    """A square uint8 RGB tensor [3, S, S] as an image of another size.

    Pixels of a smaller one stay visible as squares.
    """
    image = from_pixels(pixels)
    way = Image.Resampling.NEAREST if max(image.size) < side else Image.Resampling.LANCZOS
    return image.resize((side, side), way)


def contact_sheet(
    images: Tensor,
    captions: Sequence[str],
    correct: Sequence[bool | None],
    columns: int = 8,
    explained: str = "",
) -> Image.Image:
    """``sheet`` of images.

    Args:
        images: uint8 [N, 3, S, S] RGB.
        captions: see ``sheet``.
        correct: see ``sheet``.
        columns: see ``sheet``.
        explained: see ``sheet``.
    """
    return sheet([cell(image) for image in images], captions, correct, columns, explained)


def sheet(
    cells: Sequence[Image.Image],
    captions: Sequence[str],
    correct: Sequence[bool | None],
    columns: int,
    explained: str = "",
) -> Image.Image:
    """Images of one size in a grid, with captions below them.

    Rows and columns fit the number of images, so that few places stay empty.

    Args:
        cells: N images.
        captions: N texts of one line or more; lines are cut to the width of an image.
        correct: of each image, whether it is marked as right or wrong; None: no mark.
        columns: the most images in a row.
        explained: what the captions say, above the images; empty: nothing.
    """
    columns = _columns(len(cells), columns)
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    lines = max(len(caption.splitlines()) for caption in captions)
    step = height + LINE * lines + GAP
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, rows * step + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (image, caption, is_correct) in enumerate(
        zip(cells, captions, correct, strict=True)
    ):
        left = GAP + index % columns * (width + GAP)
        top = GAP + index // columns * step
        canvas.paste(image, (left, top))
        mark, fill = CAPTIONS[is_correct]
        for number, line in enumerate(caption.splitlines()):
            marked = fitted(line if number else mark + line, width)
            draw.text((left, top + height + number * LINE), marked, fill=fill, font=font())
    return titled(canvas, explained) if explained else canvas


def _columns(count: int, most: int) -> int:
    """Images in a row: not much fewer than the most, and such that the last row is full."""
    if count <= most:
        return max(1, count)
    return min(range(-(-2 * most // 3), most + 1), key=lambda n: (-count % n, -n))


def packed(strips: Sequence[Image.Image], width: int) -> Image.Image:
    """Images of any width, such as sheets of one row, each in the first row that has room for it.

    Lines part the images of a row.

    Args:
        strips: of one height.
        width: of a row in pixels, at least that of the widest strip.
    """
    rows: list[list[Image.Image]] = []
    for strip in strips:
        with_room = (row for row in rows if sum(e.width for e in row) + strip.width <= width)
        row = next(with_room, None)
        if row is None:
            rows.append([strip])
        else:
            row.append(strip)
    whole = max(sum(each.width for each in row) for row in rows)
    height = max(strip.height for strip in strips)
    canvas = Image.new("RGB", (whole, height * len(rows)), "white")
    for number, row in enumerate(rows):
        left = 0
        for strip in row:
            canvas.paste(strip, (left, number * height))
            if left:
                edges = (left, number * height + GAP, left, (number + 1) * height - GAP)
                ImageDraw.Draw(canvas).line(edges, fill=BLACK)
            left += strip.width
    return canvas


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one height in a row, without gaps."""
    canvas = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas
