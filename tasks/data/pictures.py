"""One encoded picture to 8-bit pixels: exactly, or refused.

A conversion is exact if every pixel keeps what told it from the others: fewer bits spread over 0..255, 16-bit grey
whose levels stay apart in 8 bits, a palette looked up, grey repeated in three channels, an opaque alpha channel left
out. Anything else (deeper colour, floats, transparency, colour in a grey data set, another colour space) would lose
something and is refused.
"""

from __future__ import annotations

import re
import struct
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Pixels = npt.NDArray[np.uint8]
Fit = Literal["exact", "stretch", "crop"]
"""What becomes of a picture of another size: an error, resized to the shape, or cut to its proportions first."""

_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
_EIGHT_BITS = frozenset({"1", "L", "P", "RGB", "RGBX"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# A raw mode of two bytes a channel, which Pillow cuts to one where there is colour. BMP's "BGR;16" has 5 or 6 bits.
_TWO_BYTES = re.compile(r";16[BLN]")


def read_picture(file: IO[bytes], shape: tuple[int, ...], fit: Fit) -> Pixels:
    """Return an encoded picture (PNG, JPEG, PPM, BMP, GIF, WebP or TIFF) as (C, H, W).

    Args:
        file: opened for reading bytes.
        shape: (C, H, W) of the result; one channel is grey, three are RGB.
        fit: what becomes of a picture of another size. Where it is not `exact` the set is one of photographs from many
            hands, and CMYK among them becomes RGB as everybody's reader does it.

    Raises:
        ValueError: the picture cannot be decoded, has another size, or cannot become `shape` without a loss.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            if opened.size != (width, height) and fit == "exact":
                raise ValueError(f"found {opened.size[0]}x{opened.size[1]} pixels")
            image = _in_mode(_eight_bits(opened, photo=fit != "exact"), "L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise ValueError(
            f"this is no picture of a known kind ({', '.join(_FORMATS)}), or its head is cut off"
        ) from None
    except (OSError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as why:
        raise ValueError(f"the picture is damaged or cut short: {' '.join(str(why).split())}") from None
    if image.size != (width, height):
        how = Image.Resampling.BILINEAR  # antialiased, as torchvision's Resize
        image = image.resize((width, height), how) if fit == "stretch" else ImageOps.fit(image, (width, height), how)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(opened: ImageFile, *, photo: bool) -> Image:
    """Return a picture without alpha and with 8 bits a channel."""
    mode = opened.mode
    if opened.format != "MPO" and (frames := getattr(opened, "n_frames", 1)) > 1:  # MPO: a camera's JPEG with a preview
        raise ValueError(f"found {frames} frames, expected one picture")
    if mode.startswith("I;16") or (mode == "I" and opened.format in ("PNG", "PPM")):
        return _narrowed(opened)
    if mode in _EIGHT_BITS | _WITH_ALPHA and any(_two_bytes(tile[3]) for tile in opened.tile):
        raise ValueError("found colours of 16 bits a channel, of which 8 would be lost; convert them beforehand")
    if opened.has_transparency_data:
        return _opaque(opened)
    if mode == "CMYK" and photo:
        return opened.convert("RGB")
    if mode not in _EIGHT_BITS:
        what = {"F": "floating-point pixels", "I": "32-bit pixels"}.get(mode, f"{mode} colours")
        raise ValueError(f"found {what}, which have no exact counterpart of 8 bits; convert them beforehand")
    return opened


def _two_bytes(arguments: Any) -> bool:
    """Return whether what Pillow passes to a decoder (a raw mode, alone or first of several) says 16 bits a channel."""
    first, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    if _TWO_BYTES.search(str(first)):
        return True
    return len(rest) == 1 and isinstance(rest[0], int) and rest[0] > 255  # PPM: (mode, largest value)


def _narrowed(opened: ImageFile) -> Image:
    """Return 16-bit grey as 8 bits, 65535 as 255, if its levels stay apart."""
    from PIL import Image

    if opened.has_transparency_data:
        raise ValueError("found a transparent colour among 16-bit grey")
    wide = np.asarray(opened)
    narrow = np.rint(wide / 257).astype(np.uint8)
    before, after = len(np.unique(wide)), len(np.unique(narrow))
    if before != after:
        raise ValueError(
            f"found 16-bit grey of {before:,} levels from {wide.min():,} to {wide.max():,}, of which 8 bits keep "
            f"{after:,}; convert it beforehand"
        )
    return Image.fromarray(narrow)


def _opaque(opened: ImageFile) -> Image:
    """Return a picture without its alpha channel, or its transparent colour, if no pixel uses it."""
    image = opened.convert("RGBA")
    if (least := np.asarray(image)[..., 3].min()) < 255:
        raise ValueError(f"found transparent pixels (alpha from {least} on), and no background is known")
    return image.convert("RGB")


def _in_mode(image: Image, wanted: str) -> Image:
    """Return a picture of 8 bits a channel in mode L or RGB; colours become grey only if they are grey."""
    if image.mode == wanted:
        image.load()
        return image
    if wanted == "RGB" or image.mode in ("1", "L"):
        return image.convert(wanted)
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise ValueError("found colours, expected grey")
    return image.convert("RGB").getchannel(0)
