"""Decoding and rescaling images of any format (Section 6.1), and encoding them as JPEG."""

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
MAX_PIXELS = 100_000_000  # 10,000 x 10,000, 300 MB as RGB; ImageNet's largest are much smaller
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # only the first frame is read
# Markers of the metadata that can contain an orientation: EXIF, and XMP, which Pillow reads too.
_ORIENTATION = (b"Exif", b"http://ns.adobe.com/xap/1.0/")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")
_WARNINGS = threading.Lock()  # before Python 3.14 all threads share the warning filters


class BadImage(ValueError):
    """An encoded image cannot be used; the message is the reason, in one line."""


def decode(encoded: bytes, draft: int | None = None, mode: str = "RGB") -> Image.Image:
    """Decodes an image to RGB, or to another of `PIL_MODES`, with 8 bits per channel.

    The format (JPEG, PNG, GIF, BMP, WebP or TIFF) is recognized by the content. Grayscale, palette
    and CMYK images are converted; 16-bit channels are reduced to their upper 8 bits; transparent
    images are composited on white, unless the mode has an alpha channel; images with an orientation
    in EXIF or XMP are rotated upright, as the annotators saw them.

    Args:
      encoded: the content of an image file.
      draft: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides are
        at least this long, in pixels: several times as fast for large photographs.
      mode: one of `PIL_MODES`.

    Returns:
      The image.

    Raises:
      BadImage: the data are not an image, are damaged or truncated, or have more than `MAX_PIXELS`
        pixels according to the header.
    """
    try:
        image = _open(encoded)
        if draft is not None:
            image.draft(None, (draft, draft))
        image.load()
        return _converted(_upright(image), mode)
    except BadImage:
        raise
    except Exception as error:  # decoders raise many types of exceptions for damaged images
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def square(image: Image.Image, side: int) -> Image.Image:
    """Rescales the whole image to `side` x `side` pixels, ignoring its aspect ratio (Section 6.1).

    Uses the Lanczos filter, the sharpest of Pillow's antialiasing filters.

    Args:
      image: a grayscale or RGB image.
      side: height and width in pixels.

    Returns:
      The rescaled image, in the same mode.
    """
    return _rescaled(image, side, side)


def resized(
    images: UInt8[np.ndarray, "n h w c"], height: int, width: int
) -> UInt8[np.ndarray, "n height width c"]:
    """Rescales images as `square`, each channel by itself.

    Args:
      images: `[n h w c]`.
      height, width: the new size in pixels.

    Returns:
      `[n height width c]`.
    """
    planes = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])
    new = np.empty((len(planes), height, width), np.uint8)
    for plane, into in zip(planes, new, strict=True):
        into[:] = _rescaled(Image.fromarray(plane), width, height)
    return np.moveaxis(new.reshape(len(images), -1, height, width), 1, -1)


def _rescaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def decode_into(encoded: bytes, into: UInt8[np.ndarray, "h w c"]) -> None:
    """Decodes an image and rescales it, as `decode` and `square` do, into given memory.

    A JPEG that has the right size already (a prepared image) is decoded in place without Pillow, in
    two thirds of the time; both use libjpeg-turbo and give the same pixels.

    Args:
      encoded: the content of an image file.
      into: contiguous memory `[h w c]` for the pixels; its shape gives the size and the mode.

    Raises:
      BadImage: the image cannot be decoded (see `decode`).
    """
    height, width, channels = into.shape
    if channels == 3 and _decoded_in_place(encoded, into):
        return
    image = decode(encoded, max(height, width), PIL_MODES[channels])
    if image.size != (width, height):
        image = _rescaled(image, width, height)
    into[:] = np.asarray(image).reshape(into.shape)


def encode(image: Image.Image) -> bytes:
    """Encodes an image as a JPEG of quality 95."""
    encoded = io.BytesIO()
    image.save(encoded, format="jpeg", quality=95)
    return encoded.getvalue()


def _decoded_in_place(encoded: bytes, into: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Decodes a color JPEG of the right size without an orientation; returns False otherwise."""
    try:
        *size, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        if size != [*into.shape[:2]] or colorspace != "YCbCr":
            return False
        if any(mark in encoded for mark in _ORIENTATION):
            return False
        simplejpeg.decode_jpeg(encoded, "RGB", buffer=into)
    except ValueError:  # not a JPEG, or damaged
        return False
    return True


def _open(encoded: bytes) -> Image.Image:
    """Reads the header only. Raises `BadImage` if it is not an image or too large."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(_without_long_texts(encoded)), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known format ({', '.join(_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height}, more than {MAX_PIXELS:,} pixels")
    return image


def _without_long_texts(encoded: bytes) -> bytes:
    """Removes long text chunks and color profiles from a PNG.

    Pillow limits the decompressed size of each text chunk or profile and of all text chunks, and
    raises an error beyond. Text chunks are removed as soon as all of them together exceed the limit
    for one; color profiles, which are not used, are always removed. Other formats and damaged
    chunks are not changed.
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
    """The decompressed size of a PNG text chunk in bytes, at most ``most + 1`` if compressed."""
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
    """Applies the orientation in EXIF or XMP; damaged metadata are ignored."""
    with contextlib.suppress(Exception), _quiet():
        ImageOps.exif_transpose(image, in_place=True)  # in place: avoids a copy
    return image


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image of any mode to one of `PIL_MODES`."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("32 bits per channel, of unknown range; save it with 8 or 16")
    if image.mode.startswith("I"):  # 16-bit grayscale, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data and not mode.endswith("A"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings about damaged EXIF, and about sizes, which `MAX_PIXELS` limits."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
