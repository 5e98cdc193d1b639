"""A data set without its images: all that a trained network has to know of it."""

import dataclasses
import json
import os

import numpy as np
from etils import epath
from jaxtyping import Float32

from multipath_jax.data.datasets import Dataset
from multipath_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """What a run keeps beside its checkpoints, so that they are of use without the data.

    Attributes:
      name: of the data set.
      class_names: in the order of the logits.
      image_shape: height, width and channels of an image as the network sees it.
      mean, std: of the training pixels in [0, 1], by channel.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: Float32[np.ndarray, " c"]
    std: Float32[np.ndarray, " c"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def describe(dataset: Dataset, image_shape: tuple[int, int, int] | None = None) -> Description:
    """The description of a data set; ``image_shape``: of what is seen of its images, if not all."""
    shape = tuple(map(int, image_shape or dataset.image_shape))
    return Description(dataset.name, dataset.class_names, shape, dataset.mean, dataset.std)


def to_json(description: Description) -> str:
    """The description as indented JSON; float32 come back to the bit."""
    values = {
        field.name: getattr(description, field.name) for field in dataclasses.fields(description)
    }
    return json.dumps(values, indent=2, default=np.ndarray.tolist) + "\n"


def read_description(path: str | os.PathLike) -> Description:
    """A description written by `to_json`.

    Raises:
      UserError: the file cannot be read or is no such description.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
        return Description(
            name=found["name"],
            class_names=tuple(found["class_names"]),
            image_shape=tuple(found["image_shape"]),
            mean=np.array(found["mean"], np.float32),
            std=np.array(found["std"], np.float32),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not describe a data set ({type(error).__name__}: {error}); remove it, "
            "and the data set itself will be looked at"
        ) from error
