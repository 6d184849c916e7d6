"""What a model makes of a few pictures, epoch by epoch, and one sheet that shows them together.

A run's folder gets reconstructions/original-00.png once, epoch-0005-00.png with every look, and
contact.png anew each time. The sheet is made of these files alone, so that a resumed run goes on
with it.

Shapes: H W pixels, C channels (1 gray, 3 RGB).
"""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import nn

from lic.codec.metrics import psnr
from lic.trainers.config import LossConfig
from lic.trainers.files import write_whole, writing
from lic.trainers.validation import MAX_PIXELS, Pixels, code, coding, read

FOLDER: Final = "reconstructions"
CONTACT: Final = "contact.png"
_NAME: Final = re.compile(r"epoch-(\d{4,})-(\d{2,})\.png")

# Of the sheet: pixels of a cell, the lines of text, and how much it shows at most.
CELL, GAP, LINE, FONT = 224, 10, 20, 13
MOST_EPOCHS, MOST_PICTURES = 10, 12
INK, FAINT = "#202020", "#707070"

Say = Callable[[str], object]


class _Entry(NamedTuple):
    """A picture of the sheet with what is written below it."""

    image: Image.Image
    caption: str


class Reconstructions:
    """The pictures of a run.

    Args:
        folder: of the run; pictures lie in its FOLDER.
        count: how many pictures.
        max_pixels: of a larger picture only the middle is taken.
        say: takes what the user should know of.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        max_pixels: int = MAX_PIXELS,
        say: Say = lambda _: None,
    ) -> None:
        self.folder = folder / FOLDER
        self.count = count
        self.max_pixels = max_pixels
        self._say = say

    def add(self, model: nn.Module, pictures: Sequence[Path], *, epoch: int) -> NDArray[np.uint8]:
        """Write what the model makes of the pictures, and return the sheet (H, W, 3).

        Files of later epochs, which a resumed run left behind, are deleted. The model is
        afterwards what it was before, see `validation.coding`.

        Args:
            model: a FactorizedPrior or ScaleHyperprior with the weights to show.
            pictures: files to choose from; those that cannot be read are left out, with a note.
            epoch: number of the epoch that ended.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._forget_later(epoch)
        originals = self._originals(pictures)
        with coding(model, self._say):
            for index, pixels in enumerate(originals):
                self._reconstruct(model, pixels, epoch, index)
        sheet = self._sheet(len(originals))
        _write(self.folder / CONTACT, sheet, {})
        return sheet

    def _reconstruct(self, model: nn.Module, pixels: Pixels, epoch: int, index: int) -> None:
        coded = code(model, pixels, LossConfig(), next(model.parameters()).device)
        if coded.pixels is None:
            self._say(f"epoch {epoch}: picture {index} has values that are no numbers")
            return
        facts = {"psnr": f"{psnr(pixels, coded.pixels):.2f}", "bpp": f"{coded.bpp:.3f}"}
        _write(self.folder / f"epoch-{epoch:04d}-{index:02d}.png", coded.pixels, facts)

    def _forget_later(self, epoch: int) -> None:
        for found, paths in self._epochs().items():
            if found > epoch:
                for path in paths.values():
                    with writing(path):
                        path.unlink(missing_ok=True)

    def _originals(self, pictures: Sequence[Path]) -> list[Pixels]:
        """Return the originals, of which those of an earlier look lie in the folder."""
        found: list[Pixels] = []
        for path in pictures:
            if len(found) == self.count:
                break
            own = self.folder / f"original-{len(found):02d}.png"
            known = _open(own)
            pixels = read(path, self.max_pixels, self._say) if known is None else _pixels(known)
            if pixels is None:
                continue
            if known is None:
                _write(own, pixels, {"name": path.name})
            found.append(pixels)
        return found

    def _epochs(self) -> dict[int, dict[int, Path]]:
        """Return the reconstructions in the folder, by epoch and picture."""
        found: dict[int, dict[int, Path]] = {}
        for path in sorted(self.folder.glob("epoch-*.png")):
            if match := _NAME.fullmatch(path.name):
                found.setdefault(int(match[1]), {})[int(match[2])] = path
        return dict(sorted(found.items()))

    def _sheet(self, count: int) -> NDArray[np.uint8]:
        """Return the sheet (H, W, 3): a row for each picture, originals and epochs beside."""
        epochs = self._epochs()
        shown = spread(list(epochs), MOST_EPOCHS)
        columns = [[self._original(index) for index in range(min(count, MOST_PICTURES))]]
        for epoch in shown:
            paths = epochs[epoch]
            columns.append([_reconstruction(paths.get(index)) for index in range(len(columns[0]))])
        titles = ["original", *(f"epoch {epoch}" for epoch in shown)]
        return np.asarray(_drawn(titles, columns))

    def _original(self, index: int) -> _Entry | None:
        image = _open(self.folder / f"original-{index:02d}.png")
        if image is None:
            return None
        return _Entry(_thumbnail(image), image.info.get("name", ""))


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the numbers: the first, the last, and evenly between."""
    if len(numbers) <= most:
        return list(numbers)
    places = np.linspace(0, len(numbers) - 1, most).round().astype(int)
    return [numbers[place] for place in places]


def _write(path: Path, pixels: Pixels, facts: dict[str, str]) -> None:
    """Write pixels (H, W, C) as PNG with facts that the sheet tells."""
    text = PngInfo()
    for name, value in facts.items():
        text.add_itxt(name, value)
    buffer = io.BytesIO()
    plane = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    Image.fromarray(plane).save(buffer, "PNG", pnginfo=text)
    with writing(path):
        write_whole(path, lambda file: file.write(buffer.getvalue()))


def _open(path: Path) -> Image.Image | None:
    """Return a PNG of ours, None where there is none that can be read."""
    # Pillow's decoders let nearly every exception escape on damaged files.
    with contextlib.suppress(Exception), Image.open(path, formats=["PNG"]) as image:
        image.load()
        if image.mode in ("L", "RGB"):
            return image.copy()
    return None


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _reconstruction(path: Path | None) -> _Entry | None:
    image = _open(path) if path else None
    if image is None:
        return None
    told = (image.info.get("psnr", "?"), image.info.get("bpp", "?"))
    return _Entry(_thumbnail(image), f"{told[0]} dB   {told[1]} bpp")


def _thumbnail(image: Image.Image) -> Image.Image:
    """Return a picture that fits into a cell; small ones grow by a whole factor."""
    larger = max(image.size)
    if larger <= CELL:
        factor = CELL // larger
        size = (image.width * factor, image.height * factor)
        return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    small = (max(1, round(side * CELL / larger)) for side in image.size)
    return image.convert("RGB").resize((next(small), next(small)), Image.Resampling.LANCZOS)


def _drawn(titles: Sequence[str], columns: Sequence[Sequence[_Entry | None]]) -> Image.Image:
    rows = list(zip(*columns, strict=True))
    heights = [max((e.image.height for e in row if e), default=LINE) for row in rows]
    width = GAP + len(titles) * (CELL + GAP)
    height = GAP + LINE + sum(h + LINE + GAP for h in heights)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=FONT)
    lefts = [GAP + place * (CELL + GAP) for place in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        pen.text((left + CELL // 2, GAP), _fitted(title, font), INK, font, anchor="ma")
    top = GAP + LINE
    for row, tallest in zip(rows, heights, strict=True):
        for left, entry in zip(lefts, row, strict=True):
            # In the middle of its cell, above its caption.
            if entry:
                corner = (
                    left + (CELL - entry.image.width) // 2,
                    top + tallest - entry.image.height,
                )
                sheet.paste(entry.image, corner)
            words = _fitted(entry.caption if entry else "no picture", font)
            pen.text((left + CELL // 2, top + tallest + 3), words, FAINT, font, anchor="ma")
        top += tallest + LINE + GAP
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, its end left out where a cell has no room for it."""
    if font.getlength(text) <= CELL:
        return text
    while text and font.getlength(f"{text}...") > CELL:
        text = text[:-1]
    return f"{text}..."
