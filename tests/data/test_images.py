import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from multipath_jax.data import images
from multipath_jax.data.images import BadImage, decode, encode, square


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def _photo(width: int = 24, height: int = 16) -> Image.Image:
    """Smooth colors, which JPEG encodes with little loss."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    pixels = np.stack([x / x.max(), y / y.max(), 1 - x / x.max()], -1) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def _pixels(encoded: bytes) -> np.ndarray:
    image = decode(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


def _reason(encoded: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(encoded)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int) -> bytes:
    """The header and the first pixels of a PNG of the given size."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _with_chunks(*chunks: bytes) -> bytes:
    """A PNG of `_photo` with additional chunks after its header."""
    encoded = _encoded(_photo(), "png")
    header = len(_png(1, 1)) - len(_chunk(b"IDAT", zlib.compress(bytes(1000))))
    return encoded[:header] + b"".join(chunks) + encoded[header:]


LONG = zlib.compress(bytes(2_000_000))  # 2 KB compressed
ITXT = b"Comment\0%b\0en\0Comment\0"
TEXTS = {
    "zTXt": _chunk(b"zTXt", b"Comment\0\0" + LONG),
    "iTXt": _chunk(b"iTXt", ITXT % b"\1" + LONG),
    "iCCP": _chunk(b"iCCP", b"profile\0\0" + LONG),
    "many": _chunk(b"tEXt", b"Comment\0" + bytes(700_000)) * 100,
    "many uncompressed": _chunk(b"iTXt", ITXT % b"\0" + bytes(700_000)) * 100,
    "damaged": _chunk(b"zTXt", b"Comment\0\0no zlib") + _chunk(b"iCCP", b"") + _chunk(b"iTXt", b""),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_long_texts_and_profiles_are_no_part_of_the_picture(kind):
    np.testing.assert_array_equal(_pixels(_with_chunks(TEXTS[kind])), _photo())


def test_a_png_is_turned_by_what_its_short_texts_say():
    """A short text with the orientation is read, before or after a long text."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    raw = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    turned = _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    upright = np.rot90(np.asarray(_photo()), -1)
    for chunks in ((TEXTS["zTXt"], turned), (turned, TEXTS["zTXt"])):
        np.testing.assert_array_equal(_pixels(_with_chunks(*chunks)), upright)


def test_a_png_that_is_cut_off_within_a_text_is_still_damaged():
    encoded = _with_chunks(TEXTS["many"])
    _reason(encoded[: len(encoded) // 2])


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "tiff"])
def test_colours_are_kept(kind):
    options = {"lossless": True} if kind == "webp" else {}
    np.testing.assert_array_equal(_pixels(_encoded(_photo(), kind, **options)), _photo())


def test_grey_of_8_and_1_bits():
    grey = _photo().convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, -1)
    np.testing.assert_array_equal(_pixels(_encoded(grey, "png")), expected)
    binary = _pixels(_encoded(grey.convert("1"), "png"))
    assert set(np.unique(binary)) == {0, 255}


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_of_16_bits_the_upper_8_are_kept(kind):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = _pixels(_encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[..., 1], values >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_of_32_bits_nobody_knows_what_is_white(dtype):
    assert "save it with 8 or 16" in _reason(
        _encoded(Image.fromarray(np.ones((4, 4), dtype)), "tiff")
    )


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_compressed_tiff(compression):
    pixels = _pixels(_encoded(_photo(), "tiff", compression=compression))
    tolerance = 30 if compression == "jpeg" else 0  # JPEG is lossy, with colors at half resolution
    np.testing.assert_allclose(pixels.astype(int), _photo(), atol=tolerance)


def test_turned_tiff():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _pixels(_encoded(_photo(), "tiff", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(_photo()), -1))


def test_palette():
    paletted = _photo().quantize(16)
    np.testing.assert_array_equal(_pixels(_encoded(paletted, "gif")), paletted.convert("RGB"))


def test_cmyk_jpeg():
    # Cyan and yellow ink together are green.
    green = _pixels(_encoded(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "jpeg"))
    # JPEG rounds, even if the image has only one color.
    np.testing.assert_allclose(green, np.full_like(green, [0, 255, 0]), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_shown_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 2, 4))  # an invisible color
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    pixels = _pixels(_encoded(image, "png"))
    np.testing.assert_array_equal(pixels[:, :2], 255)
    np.testing.assert_array_equal(pixels[:, 2:], 0)


def test_the_content_counts_and_not_the_name():
    """ImageNet has a PNG whose name ends in .JPEG; `decode` does not get the name."""
    np.testing.assert_array_equal(_pixels(_encoded(_photo(), "png")), _photo())


def test_turned_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    turned = _pixels(_encoded(_photo(24, 16), "jpeg", quality=100, exif=exif, subsampling=0))
    assert turned.shape == (24, 16, 3)
    upright = np.rot90(np.asarray(_photo(24, 16)), -1)
    np.testing.assert_allclose(turned.astype(int), upright, atol=6)  # loss of JPEG


def test_damaged_exif_is_no_damage_to_the_picture():
    encoded = _encoded(_photo(), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert _pixels(encoded).shape == (16, 24, 3)


def test_draft_decodes_smaller_but_not_below_the_side():
    encoded = _encoded(_photo(640, 400), "jpeg")
    assert decode(encoded).size == (640, 400)
    assert decode(encoded, draft=200).size == (320, 200)
    assert decode(encoded, draft=201).size == (640, 400)
    assert decode(_encoded(_photo(640, 400), "png"), draft=10).size == (640, 400)


def test_draft_shows_the_same_picture():
    encoded = _encoded(_photo(640, 400), "jpeg", quality=95)
    fine, draft = (np.asarray(square(decode(encoded, d), 64), int) for d in (None, 192))
    assert np.abs(fine - draft).mean() < 1  # of 255


@pytest.mark.parametrize(
    "encoded",
    [b"", b"a text file\n", b"\xff\xd8\xff", _encoded(Image.new("RGB", (4, 4)), "ppm")],
    ids=["empty", "text", "three bytes of a JPEG", "PPM"],
)
def test_no_image(encoded):
    assert _reason(encoded).startswith("not an image of a known format (JPEG, PNG")


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_cut_off(kind, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    encoded = _encoded(noise, kind)
    said = _reason(encoded[: int(part * len(encoded))])
    assert said.strip()
    assert "\n" not in said


def test_cut_off_jpeg_says_so():
    encoded = _encoded(_photo(640, 400), "jpeg")
    assert "truncated" in _reason(encoded[: len(encoded) // 2])


@pytest.mark.parametrize("side", [10_001, 12_000, 30_000])
def test_too_many_pixels_are_refused_before_decoding(side):
    encoded = _png(side, side)
    assert "more than 100,000,000 pixels" in _reason(encoded)
    # Decoding this truncated image would fail for another reason, so its pixels are not decoded.
    assert "more than 100,000,000 pixels" in _reason(encoded[:60])


def test_as_many_pixels_as_allowed(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 16)
    assert _pixels(_encoded(_photo(24, 16), "png")).shape == (16, 24, 3)
    assert _reason(_encoded(_photo(24, 17), "png")) == "24 x 17, more than 384 pixels"


def test_filters_of_warnings_stay_as_they_were_with_many_threads():
    encoded = [_encoded(_photo(), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")] * 50
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: list(map(decode, encoded))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_square_gives_up_proportions():
    image = square(_photo(60, 20), 16)
    assert image.size == (16, 16)
    pixels = np.asarray(image, int)
    assert pixels[8, 0, 0] < 20 < 235 < pixels[8, -1, 0]  # resized, not cropped


def test_square_does_not_alias():
    # Stripes too fine for the result are averaged; without a filter they would alias.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = np.asarray(square(Image.fromarray(stripes), 51), int)[2:-2, 2:-2]
    np.testing.assert_allclose(inner, 127.5, atol=2)


def test_encode_is_jpeg_of_quality_95():
    photo = square(_photo(), 64)
    image = Image.open(io.BytesIO(encode(photo)))
    assert image.format == "JPEG"
    reference = Image.open(io.BytesIO(_encoded(photo, "jpeg", quality=95)))
    assert image.quantization == reference.quantization


def _square(encoded: bytes, side: int) -> np.ndarray:
    pixels = np.full((side, side, 3), 7, np.uint8)
    images.decode_into(encoded, pixels)
    return pixels


@pytest.fixture
def no_pillow(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("asked Pillow")

    monkeypatch.setattr(images, "decode", fail)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_the_size_is_decoded_as_by_pillow(subsampling, progressive, no_pillow):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    options = {"quality": 95, "subsampling": subsampling, "progressive": progressive}
    encoded = _encoded(Image.fromarray(noise), "jpeg", **options)
    np.testing.assert_array_equal(_square(encoded, 48), Image.open(io.BytesIO(encoded)))


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    return _encoded(_photo(32, 32), "jpeg", exif=exif)


def _turned_by_xmp(form: str) -> bytes:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{form}</rdf:RDF></x:xmpmeta>'
    return _encoded(_photo(32, 32), "jpeg", xmp=xmp.encode())


@pytest.mark.parametrize(
    "encoded",
    [
        _encoded(_photo(32, 24), "jpeg"),
        _encoded(_photo(32, 32), "png"),
        _encoded(_photo(32, 32).convert("L"), "jpeg"),
        _encoded(_photo(32, 32).convert("CMYK"), "jpeg"),
        _turned(),
        _turned_by_xmp('<rdf:Description tiff:Orientation="6"/>'),
        _turned_by_xmp("<tiff:Orientation>8</tiff:Orientation>"),
        _encoded(_photo(32, 32), "jpeg")[:-2] + b"rubbish\xff\xd9",
    ],
    ids=["another size", "no JPEG", "grey", "CMYK", "turned", "by XMP", "by XMP again", "rubbish"],
)
def test_other_images_are_pillows(encoded):
    """Images that are not decoded in place have the same pixels as with Pillow, bit for bit."""
    image = decode(encoded)
    expected = image if image.size == (32, 32) else square(image, 32)
    np.testing.assert_array_equal(_square(encoded, 32), expected)


@pytest.mark.parametrize("part", [0, 0.1, 0.9])
def test_a_damaged_jpeg_of_the_size_is_bad(part):
    encoded = _encoded(_photo(32, 32), "jpeg")
    with pytest.raises(BadImage):
        _square(encoded[: int(part * len(encoded))], 32)
