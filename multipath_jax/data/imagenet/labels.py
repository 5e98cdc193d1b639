"""Labels of ILSVRC2012's validation images that are not sorted into class folders.

They are read from one of these files:
    ILSVRC2012_devkit_t12.tar.gz      the development kit, as published
    LOC_val_solution.csv              Kaggle's: "ILSVRC2012_val_00000001,n01751748 85 1 499 272"
    val_labels.txt                    lines "ILSVRC2012_val_00000001.JPEG n01751748", or one WNID
                                      per line, in the order of the sorted image names
"""

import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from multipath_jax.data.files import LeftOut, is_there, members, open_tar
from multipath_jax.errors import UserError

FILES = ("ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv", "val_labels.txt")
WNID = re.compile(r"n\d{8}")
_HELP = f"use {', '.join(FILES)} as `python -m multipath_jax.prepare --help` describes them"


def label_file(source: pathlib.Path) -> pathlib.Path:
    """The first of `FILES` that is in a folder. Raises UserError if there is none."""
    for name in FILES:
        if is_there(source / name):
            return source / name
    raise UserError(
        f"the validation images in {source} need labels; put {' or '.join(FILES)} there, or give "
        "such a file as val_labels"
    )


def read_labels(path: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Reads the WNIDs of validation images.

    Args:
      path: one of the files above.
      names: file names of the images, sorted.

    Returns:
      The WNID of each image.

    Raises:
      UserError: the file cannot be parsed, or does not match the images.
    """
    rows = _devkit_rows(path) if path.name.endswith((".tar.gz", ".tgz")) else _text_rows(path)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(names):
            raise UserError(f"{path} has {len(rows)} labels for {len(names)} images; {_HELP}")
        return [row[0] for row in rows]
    by_stem = _by_stem(path, rows)
    stems = [os.path.splitext(name)[0] for name in names]
    for name, stem in zip(names, stems, strict=True):
        if stem not in by_stem:
            raise UserError(f"{path} has no label for {name}; {_HELP}")
    return [by_stem[stem] for stem in stems]


def _by_stem(path: pathlib.Path, rows: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """The WNID by image name without suffix. Raises UserError for contradicting lines."""
    by_stem = {}
    for row in rows:
        stem, wnid = os.path.splitext(row[0])[0], row[-1]
        if by_stem.setdefault(stem, wnid) != wnid:
            raise UserError(
                f"{path} labels {row[0]} {by_stem[stem]} and also {wnid}; remove the wrong line"
            )
    return by_stem


def _text_rows(path: pathlib.Path) -> list[tuple[str, ...]]:
    """The lines of a text file as (name, WNID) or (WNID,)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_HELP}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        fields = line.replace(",", " ").split()[:2]
        if not fields or fields[0] == "ImageId":  # the heading of Kaggle's file
            continue
        if not WNID.fullmatch(fields[-1]):
            raise UserError(f"line {number} of {path} has no WNID: {line[:80]!r}; {_HELP}")
        rows.append(tuple(fields))
    return rows


def _devkit_rows(path: pathlib.Path) -> list[tuple[str]]:
    """The labels in the development kit as (WNID,); it numbers the classes in another order."""
    import scipy.io  # lazy: only needed for this file

    with open_tar(path, mode="r:gz") as tar:
        files = members(tar, LeftOut())
        content = {name: tar.extractfile(member).read() for name, member in files}
    try:
        synsets = scipy.io.loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
        ids = content["ILSVRC2012_validation_ground_truth.txt"].decode("utf-8-sig").split()
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
        return [(wnids[int(number)],) for number in ids]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the development kit as published ({error!r}); {_HELP}"
        ) from error
