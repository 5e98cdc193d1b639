"""Small images in class folders and in tar files, with the layout of ILSVRC2012."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02105855")


def photo(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG of smooth noise, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(encoded, format="jpeg")
    return encoded.getvalue()


def name_of(wnid: str, index: int) -> str:
    return f"{wnid}_{index}.JPEG"


def write_imagenet(folder: pathlib.Path, wnids=WNIDS, train: int = 5, val: int = 2) -> pathlib.Path:
    """Writes `train/WNID` and `val/WNID`, with the given numbers of different images per class."""
    for split, count in (("train", train), ("val", val)):
        for c, wnid in enumerate(wnids):
            parent = folder / split / wnid
            parent.mkdir(parents=True)
            for index in range(count):
                seed = 10_000 * (split == "val") + 100 * c + index
                name = name_of(wnid, index) if split == "train" else val_name(c * count + index)
                (parent / name).write_bytes(photo(seed))
    return folder


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def val_labels(folder: pathlib.Path) -> dict[str, str]:
    """The WNID of each validation image by file name, sorted by name."""
    return dict(sorted((path.name, path.parent.name) for path in folder.glob("val/*/*")))


def flatten_val(folder: pathlib.Path) -> None:
    """Moves `val/WNID/*` to `val/*`."""
    for path in list(folder.glob("val/*/*")):
        path.rename(folder / "val" / path.name)
    for path in list((folder / "val").iterdir()):
        if path.is_dir():
            path.rmdir()


def pack(folder: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Packs the images into tar files as published, which need a separate file of labels."""
    target.mkdir()
    with tarfile.open(target / "ILSVRC2012_img_train.tar", "w") as outer:
        for parent in sorted((folder / "train").iterdir(), reverse=True):
            encoded = io.BytesIO()
            with tarfile.open(fileobj=encoded, mode="w") as inner:
                for path in parent.iterdir():
                    inner.add(path, path.name)
            member = tarfile.TarInfo(f"{parent.name}.tar")
            member.size = len(encoded.getvalue())
            outer.addfile(member, io.BytesIO(encoded.getvalue()))
    with tarfile.open(target / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in sorted(folder.glob("val/*/*"), reverse=True):
            tar.add(path, path.name)
    return target
