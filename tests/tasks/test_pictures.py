"""Pictures: into 8 bits exactly, or refused; judged against encoders and by values written out by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assay.tasks.data.pictures import Fit, read_picture

Pixels = npt.NDArray[np.uint8]
GREY, COLOUR = (1, 2, 3), (3, 2, 3)
RGB = (np.arange(18, dtype=np.uint8) * 14).reshape(2, 3, 3)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def read(image: Image.Image | io.BytesIO, shape: tuple[int, ...], fit: Fit = "exact", kind: str = "png") -> Pixels:
    return read_picture(encoded(image, kind) if isinstance(image, Image.Image) else image, shape, fit)


def png(depth: int, colour: int, rows: list[bytes], width: int, palette: bytes = b"", clear: bytes = b"") -> io.BytesIO:
    """Write a PNG by hand: Pillow writes neither 16-bit colour nor 2-bit grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    between = (chunk(b"PLTE", palette) if palette else b"") + (chunk(b"tRNS", clear) if clear else b"")
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + body + chunk(b"IEND", b""))


def grey16(values: list[list[int]]) -> io.BytesIO:
    return png(16, 0, [struct.pack(f">{len(row)}H", *row) for row in values], len(values[0]))


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm", "tiff"])
def test_eight_bits_stay_as_they_are(kind: str) -> None:
    assert np.array_equal(read(Image.fromarray(RGB), COLOUR, kind=kind), RGB.transpose(2, 0, 1))
    assert np.array_equal(read(Image.fromarray(RGB[..., 0]), GREY, kind=kind), RGB[None, ..., 0])


def test_grey_in_a_colour_set_is_repeated_and_grey_colours_in_a_grey_set_are_taken() -> None:
    grey = RGB[..., 0]
    assert np.array_equal(read(Image.fromarray(grey), COLOUR), np.stack([grey] * 3))
    assert np.array_equal(read(Image.fromarray(np.stack([grey] * 3, -1)), GREY), grey[None])
    one_off = np.stack([grey] * 3, -1)
    one_off[1, 2, 2] += 1
    with pytest.raises(ValueError, match="found colours, expected grey"):
        read(Image.fromarray(one_off), GREY)


def test_seventeen_levels_of_16_bits_stay_seventeen() -> None:
    """0..16 spread over 16 bits, as a data set of digits was: formerly black and white."""
    levels = [round(level * 65535 / 16) for level in range(17)] + [0]
    pixels = read(grey16([levels[:6], levels[6:12], levels[12:]]), (1, 3, 6))
    assert pixels.flatten().tolist() == [
        0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255, 0,
    ]  # fmt: skip
    assert read(grey16([levels[:6]]), (3, 1, 6)).tolist() == [pixels[0, :1].tolist()] * 3


@given(st.lists(st.integers(0, 255), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_eight_bits_in_sixteen_come_back(values: list[int]) -> None:
    assert read(grey16([[value * 257 for value in values]]), (1, 1, len(values))).flatten().tolist() == values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 2, 255], "16-bit grey of 4 levels from 0 to 255, of which 8 bits keep 2"),
        (list(range(0, 65536, 16)), "16-bit grey of 4,096 levels from 0 to 65,520, of which 8 bits keep 256"),
        ([300, 301], "of 2 levels from 300 to 301, of which 8 bits keep 1"),
    ],
)
def test_levels_that_would_fall_together_are_refused(values: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(grey16([values]), (1, 1, len(values)))


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_colour_and_alpha_of_16_bits_a_channel_are_refused(colour: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour]
    image = png(16, colour, [bytes([255, 255] * channels)], 1)
    with pytest.raises(ValueError, match="16 bits a channel, of which 8 would be lost"):
        read(image, (3, 1, 1))


def test_deep_ppm_and_tiff_are_refused_and_shallow_ppm_spread() -> None:
    with pytest.raises(ValueError, match="16 bits a channel"):
        read(io.BytesIO(b"P6 1 1 65535\n" + bytes([1, 0, 2, 0, 3, 0])), (3, 1, 1))
    with pytest.raises(ValueError, match="16-bit grey of 3 levels"):
        read(io.BytesIO(b"P5 3 1 4095\n" + struct.pack(">3H", 1, 2, 3)), (1, 1, 3))
    with pytest.raises(ValueError, match="16-bit grey of 2 levels"):
        read(Image.fromarray(np.array([[1, 2]], np.uint16)), (1, 1, 2), kind="tiff")
    assert read(io.BytesIO(b"P5 3 1 5\n" + bytes([0, 1, 5])), (1, 1, 3)).flatten().tolist() == [0, 51, 255]
    assert read(io.BytesIO(b"P6 1 1 15\n" + bytes([0, 1, 15])), (3, 1, 1)).flatten().tolist() == [0, 17, 255]


@pytest.mark.parametrize(
    ("depth", "row", "expected"), [(1, 0b01000000, [0, 255]), (2, 0b00010000, [0, 85]), (4, 0x0F, [0, 255])]
)
def test_fewer_bits_are_spread(depth: int, row: int, expected: list[int]) -> None:
    assert read(png(depth, 0, [bytes([row])], 2), (1, 1, 2)).flatten().tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1)])
def test_floats_and_32_bits_are_refused(shape: tuple[int, ...]) -> None:
    for values, words in (
        (np.array([[0.5]], np.float32), "floating-point pixels"),
        (np.array([[70000]], np.int32), "32-bit pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            read(Image.fromarray(values), shape, kind="tiff")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_left_out_where_it_is_opaque_and_refused_elsewhere(mode: str) -> None:
    image = Image.fromarray(np.full((2, 3), 9, np.uint8)).convert(mode)
    assert np.array_equal(read(image, COLOUR), np.full(COLOUR, 9))
    assert np.array_equal(read(image, GREY), np.full(GREY, 9))
    image.putpixel((2, 1), (9, 254) if mode == "LA" else (9, 9, 9, 254))
    for shape in (GREY, COLOUR):
        with pytest.raises(ValueError, match=r"transparent pixels \(alpha from 254 on\)"):
            read(image, shape)


def test_palettes_are_looked_up() -> None:
    palette = bytes([0, 0, 0, 200, 100, 50, 7, 7, 7])
    assert read(png(8, 3, [bytes([1, 2])], 2, palette), (3, 1, 2)).tolist() == [[[200, 7]], [[100, 7]], [[50, 7]]]
    assert read(png(8, 3, [bytes([0, 2])], 2, palette), (1, 1, 2)).tolist() == [[[0, 7]]]
    with pytest.raises(ValueError, match="found colours, expected grey"):
        read(png(8, 3, [bytes([1, 2])], 2, palette), (1, 1, 2))
    # An entry of the palette that is transparent matters only where it is used.
    assert read(png(8, 3, [bytes([0, 2])], 2, palette, b"\xff\x00"), (1, 1, 2)).tolist() == [[[0, 7]]]
    with pytest.raises(ValueError, match="transparent"):
        read(png(8, 3, [bytes([0, 1])], 2, palette, b"\xff\x00"), (3, 1, 2))


def test_a_transparent_colour_is_refused_where_a_pixel_has_it() -> None:
    assert read(png(8, 0, [bytes([5, 6])], 2, clear=b"\0\x07"), (1, 1, 2)).flatten().tolist() == [5, 6]
    with pytest.raises(ValueError, match="transparent"):
        read(png(8, 0, [bytes([5, 7])], 2, clear=b"\0\x07"), (1, 1, 2))
    with pytest.raises(ValueError, match="transparent colour among 16-bit grey"):
        read(png(16, 0, [bytes(2)], 1, clear=b"\0\x07"), (1, 1, 1))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colour_spaces_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"found {mode} colours, which have no exact counterpart"):
        read(Image.new(mode, (3, 2)), COLOUR, kind="tiff" if mode != "CMYK" else "jpeg")


def test_cmyk_among_photographs_becomes_rgb() -> None:
    """ImageNet has some; C, M, Y and K of nothing are white."""
    assert read(Image.new("CMYK", (30, 20)), COLOUR, "crop", "jpeg").min() == 255


def test_animations_are_refused_and_a_lone_frame_is_none() -> None:
    frames = [Image.new("L", (3, 2), level) for level in (0, 200)]
    with pytest.raises(ValueError, match="found 2 frames, expected one picture"):
        read(encoded(frames[0], "gif", save_all=True, append_images=frames[1:]), GREY)
    assert np.array_equal(read(frames[1], GREY, kind="gif"), np.full(GREY, 200))


def test_a_wrong_size_is_refused_before_the_pixels_are_decoded() -> None:
    head = encoded(Image.fromarray(RGB)).getvalue()[:60]
    with pytest.raises(ValueError, match="found 3x2 pixels"):
        read(io.BytesIO(head), (3, 3, 2))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "ppm", "webp", "tiff"])
def test_what_is_cut_short_is_told_whatever_the_format(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind).getvalue()
    for size in (0, 5, len(whole) // 2, len(whole) - 100):
        with pytest.raises(ValueError, match=r"damaged or cut short|no picture of a known kind") as error:
            read(io.BytesIO(whole[:size]), (3, 40, 40))
        assert "0x" not in str(error.value)
        assert "\n" not in str(error.value)


def test_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match=r"no picture of a known kind \(PNG, JPEG, "):
        read(io.BytesIO(b"%PDF-1.4"), GREY)
