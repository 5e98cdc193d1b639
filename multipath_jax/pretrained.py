"""Loading weights of other libraries as a network or as a run, and saving weights for them.

network, variables = multipath_jax.load_weights("resnet18.safetensors", "ResNet18")
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax import weights
from multipath_jax.config.keys import OWN, default_config, parse_options, read_config
from multipath_jax.data import Dataset
from multipath_jax.data.description import read_description
from multipath_jax.errors import UserError
from multipath_jax.models import create_model, family_of
from multipath_jax.parallel import devices
from multipath_jax.runs import LoadedRun, load_run
from multipath_jax.training.setup import Setup, counted_shares
from multipath_jax.training.state import RECORDS
from multipath_jax.utils import filesystem, storage
from multipath_jax.weights import Comparison, StateDict
from multipath_jax.weights.files import SAFETENSORS

ANY = 10  # number of classes where it is not known yet


class Origin(NamedTuple):
    """The network of weights.

    Attributes:
      name: its name, for `create_model`.
      options: the options with which it computes what it did in the other library.
      num_classes: width of its output.
      image_shape: height, width and channels of its input.
    """

    name: str
    options: dict[str, Any]
    num_classes: int
    image_shape: tuple[int, int, int]


# --- Loading -------------------------------------------------------------------------------------


def load_weights(
    source: str | os.PathLike,
    name: str = "",
    num_classes: int | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> tuple[nn.Module, PyTree]:
    """Loads a network with the weights of a file, or with the best weights of a run.

    Args:
      source: a ``.safetensors`` file; a PyTorch state dict (``.pth``, ``.pt``, ``.th`` or
        ``.bin``), which requires PyTorch; a folder with ``model.safetensors`` or
        ``pytorch_model.bin``; an address of one of these that fsspec supports; or a workdir.
      name: name of the network, for `create_model`; "": from the metadata of the source.
      num_classes: width of the output; None: as in the source. If it differs, the last layer has
        its initial weights, and a warning is logged.
      image_shape: height, width and channels of the input; None: from the metadata of the source,
        or else the usual one of the network.
      **options: options of the network, in addition to those with which it computes what the
        source's network did.

    Returns:
      The network and its variables.

    Raises:
      UserError: the source cannot be read, is not a state dict, or is of another network; the
        message lists missing, extra and misshapen arrays.
    """
    source, state = os.fspath(source), None
    if ckpt.is_workdir(source):
        origin = _of_workdir(source, name)
    else:
        state = weights.read("source", source)
        origin = origin_of(state, f"source={source}", name, options, image_shape)
    options = origin.options | options
    network = create_model(origin.name, num_classes or origin.num_classes, **options)
    config = default_config()
    config.init_from, config.model.name = source, origin.name
    config.model.options = in_words(
        {key: options[key] for key in weights.TELLING if key in options}
    )
    init = partial(_init, network, image_shape or origin.image_shape)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(init)
    shapes = devices.placed(shapes, jax.tree.map(lambda _: here, shapes))
    variables, found = ckpt.initialize_from(config, shapes, state)
    if found.head:
        logging.warning("%s", found.head)
        variables = jax.tree.map(_value_of, variables, jax.jit(init)())
    return network, variables


def origin_of(
    state: StateDict,
    source: str,
    name: str = "",
    options: Mapping[str, Any] | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Origin:
    """Determines the network of a file's weights.

    Args:
      state: the content of the file.
      source: the file, for errors.
      name: name of the network; "": from the metadata.
      options: options that override the required ones.
      image_shape: height, width and channels of the input; None: from the metadata.

    Raises:
      UserError: the name is unknown, or the file is of another network.
    """
    name = name or state.model
    if not name:
        raise UserError(f"{source} does not say of which network it is; name it, such as ResNet18")
    image_shape = image_shape or state.image_shape or family_of(name).image_shape

    def read(options: Mapping[str, Any]) -> weights.Reading:
        network = create_model(name, ANY, **options)
        shapes = traverse_util.flatten_dict(jax.eval_shape(partial(_init, network, image_shape)))
        return weights.convert(state, {key: leaf.shape for key, leaf in shapes.items()})

    options = counted_shares((state.options or {}) | read({}).options | dict(options or {}))
    compared = read(options).compared
    compared.check(source, f"{name} is not the network that it is of", whole=True)
    num_classes = compared.head.there if compared.head else ANY
    return Origin(name, options, num_classes, image_shape)


def _of_workdir(source: str, name: str) -> Origin:
    workdir = filesystem.path("source", source)
    stored = read_config(workdir / ckpt.CONFIG_FILE).model
    if stored.name.startswith(OWN) and not name:
        raise UserError(
            f"{source} has the weights of {stored.name.removeprefix(OWN)}, a network that was "
            "passed to Trainer; load them with load_run(workdir, model=...), or set "
            "config.init_from"
        )
    description = read_description(workdir / ckpt.DATASET_FILE)
    options = counted_shares(parse_options("model.options", stored.options))
    return Origin(name or stored.name, options, description.num_classes, description.image_shape)


def _value_of(variable: jax.Array | jax.ShapeDtypeStruct, fresh: jax.Array) -> jax.Array:
    """The variable; the initial value if the variable is only a shape."""
    return fresh if isinstance(variable, jax.ShapeDtypeStruct) else variable


def _init(network: nn.Module, image_shape: tuple[int, ...]) -> PyTree:
    """The initial variables of a network."""
    variables = network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
    return {name: tree for name, tree in variables.items() if name not in RECORDS}


def in_words(options: Mapping[str, Any]) -> str:
    """Formats options of a network as in ``config.model.options``."""
    return ",".join(f"{name}={value}" for name, value in options.items())


def make_run(
    state: StateDict, config: ConfigDict, dataset: Dataset, workdir: epath.Path
) -> Comparison:
    """Makes a workdir with the weights of a file as its only checkpoint, of step 0.

    Args:
      state: the content of the file.
      config: the config of the run; ``init_from`` is the file.
      dataset: the data set of the config.
      workdir: the workdir, without a run.

    Returns:
      The comparison of the file with the network.

    Raises:
      UserError: the workdir has a run or cannot be written, the config does not fit the data, or
        the file does not fit the network; nothing is written then.
    """
    check_free(workdir)
    config.batch_size = min(config.batch_size, len(dataset.train))
    setup = Setup(config, dataset, jax.local_devices()[:1])
    carry = setup.fresh_carry(config.seed)
    variables, found = ckpt.initialize_from(config, carry.state.variables, state, setup.model)
    carry = carry._replace(state=carry.state.with_variables(variables))
    with ckpt.claimed(workdir), contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        checkpoints.save(0, carry, error=None)
    return found


def check_free(workdir: epath.Path) -> None:
    """Raises UserError if a workdir has a run, or is not a folder."""
    ckpt.check_workdir(workdir, default_config(), restart=True)
    if ckpt.steps_in(workdir) or storage.exists(workdir / ckpt.CONFIG_FILE):
        raise UserError(f"workdir {workdir} holds a run already; use another")


# --- Saving --------------------------------------------------------------------------------------


def save_weights(
    run: str | os.PathLike | LoadedRun, file: str | os.PathLike, checkpoint: str | int = "best"
) -> pathlib.Path:
    """Saves the weights of a run as a ``.safetensors`` file.

    Networks of torchvision are written with torchvision's names and order of axes, and ResNets for
    CIFAR with those that are usual in PyTorch, so that ``load_state_dict`` can read them; all
    others with the names of this package. The metadata of the file have the name and options of the
    network, the mean and standard deviation of the pixels, and the names of the classes.

    Args:
      run: a workdir, or a run from `load_run`.
      file: the file to write, which must not exist.
      checkpoint: which checkpoint of a workdir: ``"best"``, ``"latest"`` or a step.

    Returns:
      The path of the file.

    Raises:
      UserError: there is no such checkpoint, the run is on several data sets (pass one of its
        heads, ``run.head(NAME)``), or the file exists or cannot be written.
    """
    if not os.fspath(file).endswith(SAFETENSORS):
        raise UserError(f"file={os.fspath(file)}: weights are written as {SAFETENSORS}; name it so")
    path = filesystem.output_file("file", file)
    run = (run if isinstance(run, LoadedRun) else load_run(run, checkpoint)).head()
    description, model = run.description, run.config.model
    about = {
        "model": model.name,
        "options": counted_shares(parse_options("model.options", model.options)),
        "mean": description.mean.tolist(),
        "std": description.std.tolist(),
        "class_names": description.class_names,
        "image_shape": description.image_shape,
    }
    variables = traverse_util.flatten_dict(jax.device_get(run.variables))
    content = weights.to_file(variables, about)
    with filesystem.replacing(path) as new:
        new.write_bytes(content)
    return path
