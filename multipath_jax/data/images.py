"""Pictures as they come: checked, decoded to RGB, rescaled as in the paper, and encoded again."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # 10,000 x 10,000, 300 MB as RGB; ImageNet's largest are far below
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # the first frame, where there are several
_WARNINGS = threading.Lock()  # before Python 3.14 all threads share one list of filters


class BadImage(ValueError):
    """An encoded image that cannot be used; the message is the reason, in one line."""


def decode(encoded: bytes, draft: int | None = None) -> Image.Image:
    """An encoded image as RGB, 8 bits a channel.

    The content decides what it is, not a file's name: JPEG, PNG, GIF, BMP or WebP. Grey, palette
    and CMYK images are converted; of 16 bits the upper 8 are kept; what is transparent is shown on
    white; what a camera marked as turned (EXIF) is turned upright, since that is how the people who
    labelled it saw it.

    Args:
      draft: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as neither side becomes
        shorter than this: several times as fast for large photographs.

    Raises:
      BadImage: not an image, damaged or cut off, or of more than `MAX_PIXELS` pixels, which is seen
        from the header before anything is decoded.
    """
    try:
        image = _open(encoded)
        if draft is not None:
            image.draft(None, (draft, draft))
        image.load()
        return _rgb(_upright(image))
    except BadImage:
        raise
    except Exception as error:  # damage surfaces as whatever a decoder stumbles over
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def square(image: Image.Image, side: int) -> Image.Image:
    """The whole image at `side` x `side` pixels, its proportions given up (paper, Section 6.1).

    By Lanczos' filter, whose support grows with the reduction: no aliasing, and the sharpest of
    Pillow's filters. Grey and RGB images; the mode stays.
    """
    return image.resize((side, side), Image.Resampling.LANCZOS)


def decode_square(encoded: bytes, into: UInt8[np.ndarray, "s s 3"]) -> None:
    """The pixels of an image as `decode` gives it, rescaled by `square` unless it has that size.

    Prepared images, which are JPEGs of the size that is wanted, are decoded where they are to be,
    without Pillow: the same library underneath gives the same bits in two thirds of the time.

    Args:
      into: where the pixels go, contiguous.

    Raises:
      BadImage: as `decode`.
    """
    side = len(into)
    if not _decoded_in_place(encoded, into):
        image = decode(encoded, draft=side)
        into[:] = image if image.size == (side, side) else square(image, side)


def encode(image: Image.Image) -> bytes:
    """As a JPEG of quality 95."""
    encoded = io.BytesIO()
    image.save(encoded, format="jpeg", quality=95)
    return encoded.getvalue()


def _decoded_in_place(encoded: bytes, into: UInt8[np.ndarray, "s s 3"]) -> bool:
    """Decodes a JPEG in colour, of this size and not turned; False, for Pillow to judge, if not."""
    try:
        *size, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if size != [*into.shape[:2]] or colours != "YCbCr" or b"Exif" in encoded:
            return False
        simplejpeg.decode_jpeg(encoded, "RGB", buffer=into)
    except ValueError:  # no JPEG, or not a flawless one
        return False
    return True


def _open(encoded: bytes) -> Image.Image:
    """Reads the header alone. Raises `BadImage` for no image and for one that is too large."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known kind ({', '.join(_FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height}, more than {MAX_PIXELS:,} pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. Damaged EXIF says nothing, and is no damage to the picture."""
    with contextlib.suppress(Exception), _quiet():
        ImageOps.exif_transpose(image, in_place=True)  # else a copy, turned or not
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings: of damaged EXIF, and of sizes that `MAX_PIXELS` judges."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
