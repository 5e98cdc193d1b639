"""Pictures as they come: checked, decoded, rescaled as in the paper, and encoded again."""

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by the number of channels
MAX_PIXELS = 100_000_000  # 10,000 x 10,000, 300 MB as RGB; ImageNet's largest are far below
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # of several frames the first
# Where a JPEG may say how it was turned: EXIF and, as Pillow reads it too, XMP.
_TURNED = (b"Exif", b"http://ns.adobe.com/xap/1.0/")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")
_WARNINGS = threading.Lock()  # before Python 3.14 all threads share one list of filters


class BadImage(ValueError):
    """An encoded image that cannot be used; the message is the reason, in one line."""


def decode(encoded: bytes, draft: int | None = None, mode: str = "RGB") -> Image.Image:
    """An encoded image as RGB, or in another of `PIL_MODES`, 8 bits a channel.

    The content decides what it is, not a file's name: JPEG, PNG, GIF, BMP, WebP or TIFF. Grey,
    palette and CMYK images are converted; of 16 bits the upper 8 are kept; what is transparent is
    shown on white, unless the mode has an alpha channel; what a camera marked as turned (EXIF or
    XMP) is turned upright, since that is how the people who labelled it saw it.

    Args:
      draft: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as neither side becomes
        shorter than this: several times as fast for large photographs.
      mode: one of `PIL_MODES`.

    Raises:
      BadImage: not an image, damaged or cut off, or of more than `MAX_PIXELS` pixels, which is seen
        from the header before anything is decoded.
    """
    try:
        image = _open(encoded)
        if draft is not None:
            image.draft(None, (draft, draft))
        image.load()
        return _converted(_upright(image), mode)
    except BadImage:
        raise
    except Exception as error:  # damage surfaces as whatever a decoder stumbles over
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def square(image: Image.Image, side: int) -> Image.Image:
    """The whole image at `side` x `side` pixels, its proportions given up (paper, Section 6.1).

    By Lanczos' filter, whose support grows with the reduction: no aliasing, and the sharpest of
    Pillow's filters. Grey and RGB images; the mode stays.
    """
    return _rescaled(image, side, side)


def _rescaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def decode_into(encoded: bytes, into: UInt8[np.ndarray, "h w c"]) -> None:
    """The pixels of an image as `decode` gives it, rescaled as by `square` unless it has that size.

    Prepared images, which are JPEGs of the size that is wanted, are decoded where they are to be,
    without Pillow: the same library underneath gives the same bits in two thirds of the time.

    Args:
      into: where the pixels go, contiguous; its shape decides on their size and mode.

    Raises:
      BadImage: as `decode`.
    """
    height, width, channels = into.shape
    if channels == 3 and _decoded_in_place(encoded, into):
        return
    image = decode(encoded, max(height, width), PIL_MODES[channels])
    if image.size != (width, height):
        image = _rescaled(image, width, height)
    into[:] = np.asarray(image).reshape(into.shape)


def encode(image: Image.Image) -> bytes:
    """As a JPEG of quality 95."""
    encoded = io.BytesIO()
    image.save(encoded, format="jpeg", quality=95)
    return encoded.getvalue()


def _decoded_in_place(encoded: bytes, into: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Decodes a JPEG in colour, of this size and not turned; False, for Pillow to judge, if not."""
    try:
        *size, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if size != [*into.shape[:2]] or colours != "YCbCr":
            return False
        if any(mark in encoded for mark in _TURNED):
            return False
        simplejpeg.decode_jpeg(encoded, "RGB", buffer=into)
    except ValueError:  # no JPEG, or not a flawless one
        return False
    return True


def _open(encoded: bytes) -> Image.Image:
    """Reads the header alone. Raises `BadImage` for no image and for one that is too large."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(_without_long_texts(encoded)), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known kind ({', '.join(_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height}, more than {MAX_PIXELS:,} pixels")
    return image


def _without_long_texts(encoded: bytes) -> bytes:
    """A PNG less what is no part of the picture but could make Pillow refuse it, by its size.

    Pillow bounds each compressed text or profile, and all texts together, lest they fill the
    memory. Here the texts that lie beyond the bound of one are dropped, as are colour profiles,
    which nothing here heeds. Other images, and what of a PNG is damaged, stay as they are.
    """
    if not (encoded.startswith(_PNG) and any(kind in encoded for kind in _PNG_TEXTS)):
        return encoded
    kept, at, room = [_PNG], len(_PNG), PngImagePlugin.MAX_TEXT_CHUNK
    while at + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        chunk = encoded[at : at + length + 12]
        at += len(chunk)
        if kind in _PNG_TEXTS:
            size = _text_size(kind, chunk[8:-4], room)
            if kind == b"iCCP" or size > room:
                continue
            room -= size
        kept.append(chunk)
    return b"".join([*kept, encoded[at:]])


def _text_size(kind: bytes, content: bytes, most: int) -> int:
    """The bytes of a PNG's text, once decompressed; of more than ``most`` it may be one more."""
    if kind == b"tEXt":
        return len(content)
    _, _, text = content.partition(b"\0")  # the keyword
    if kind == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    else:
        compressed, text = True, text[1:]
    if compressed:
        with contextlib.suppress(zlib.error):
            return len(zlib.decompressobj().decompress(text, most + 1))
    return len(text)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF or XMP says; damage to these is no damage to the picture."""
    with contextlib.suppress(Exception), _quiet():
        ImageOps.exif_transpose(image, in_place=True)  # else a copy, turned or not
    return image


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Any mode as one of `PIL_MODES`."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("32 bits a channel, of a range that is not known; save it with 8 or 16")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data and not mode.endswith("A"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings: of damaged EXIF, and of sizes that `MAX_PIXELS` judges."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
