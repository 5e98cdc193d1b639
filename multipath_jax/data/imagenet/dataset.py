"""ILSVRC2012 at 256x256 pixels as a TFDS data set, prepared once from the published files."""

import os
import shlex

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from multipath_jax.data.imagenet import shards
from multipath_jax.data.imagenet.source import Source, find_images
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem

NAME = "imagenet256"
CONFIGS = ("full", "subset100")
_CLASSES = {"subset100": 100}  # the paper's subset, Section 6.4


class Imagenet256(dataset_builder.FileReaderBuilder):
    """ILSVRC2012's training and validation images, rescaled as in the paper's Section 6.1.

    The classes are the WNIDs, sorted; the config `subset100` has the first 100 (Section 6.4).
    `python -m multipath_jax.prepare imagenet` prepares it, and TFDS reads it without TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="full", description="All classes."),
        tfds.core.BuilderConfig(name="subset100", description="The first 100 classes."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ILSVRC2012, every image rescaled to 256x256 pixels, JPEG quality 95.",
            homepage="https://image-net.org/challenges/LSVRC/2012",
            features=shards.features(),
            supervised_keys=("image", "label"),
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        raise UserError(f"prepare it with: {command(self.builder_config.name)}")


def builder(config: str, data_dir: str | os.PathLike) -> Imagenet256:
    """The builder of the data set in a TFDS data directory, whether it is prepared or not."""
    data_dir = os.fspath(filesystem.local("data_dir", data_dir))
    return Imagenet256(config=config, data_dir=data_dir, file_format="array_record")


def find(
    config: str, source: str | os.PathLike, val_labels: str | os.PathLike | None = None
) -> Source:
    """Finds the images of a config; the other arguments and errors are those of `find_images`."""
    return find_images(source, _CLASSES.get(config), val_labels)


def command(config: str, data_dir: str | os.PathLike | None = None) -> str:
    """The shell command that prepares a config."""
    config = f" --config={config}" if config in CONFIGS[1:] else ""
    folder = "" if data_dir is None else f" --data_dir={shlex.quote(os.fspath(data_dir))}"
    return f"python -m multipath_jax.prepare imagenet --source=DIR{folder}{config}"
