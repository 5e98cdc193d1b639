"""Every config key with its default and meaning, and the validation of values."""

import json
import math
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from multipath_jax.config.schedule import parse_duration, parse_durations, parse_window
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem, storage
from multipath_jax.utils.names import nearest

# Keys of the initial weights. They have no effect when a run resumes, which keeps their values.
INITIAL_KEYS = ("init_from", "init_partial", "growth_noise")
# Keys that may change when a run resumes: they set where and how often data are read and logs and
# checkpoints are written, or how the work is sharded over devices, but not the recipe.
FREE_KEYS = (
    "dataset.data_dir",
    "dataset.source",  # the images are compared, not the path
    "dataset.streamed",
    "dataset.ten_crop",
    "dataset.eval_flip",
    "dataset.workers",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "profile",
    "eval_batch_size",
    *INITIAL_KEYS,
    "patience",
    "mesh.data",
    "mesh.path",
    "dispatch",
    "compilation_cache",
    "tensorboard",
)
# Keys that name a folder; they are stored as absolute paths.
FOLDER_KEYS = ("dataset.data_dir", "dataset.source")
OWN = "own:"  # in a stored config, prefix of the names of objects passed to `Trainer`
NEEDED = "(needed)"  # init_from of a recipe that starts from trained weights, until it is set
FOLDER = "folder"  # dataset.name of a data set that is read from dataset.source
CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "dispatch": ("auto", "loop", "step"),
    "tensorboard": ("auto", "on", "off"),
    "schedule.kind": ("step", "cosine", "linear"),
    "dataset.shift_mode": ("zeros", "reflect"),
}


def default_config() -> ConfigDict:
    """The default config.

    Durations are strings such as ``"200 epochs"``, ``"0.5 epochs"`` or ``"1000 steps"``.

    Returns:
      A locked ConfigDict: recipes change values and cannot add keys.
    """
    config = ConfigDict()

    # Model.
    config.model = ConfigDict()
    config.model.name = "BaseCNN-2-CC"  # any name that multipath_jax.create_model accepts
    config.model.options = ""  # options of that network, e.g. "execution=grouped,custom_vjp=False"
    # Type of the computation: float32, bfloat16, or auto (float32 on CPUs, bfloat16 elsewhere).
    # Parameters, statistics, gates and losses are always float32.
    config.dtype = "auto"
    config.seed = 0  # for the initial values, the order of the data and the augmentation
    config.trials = 1  # n > 1: n runs with seeds seed, seed + 1, ..., each in workdir/seed_N

    # Data.
    config.dataset = ConfigDict()
    # digits, cifar10, cifar100, or any prepared TFDS data set; or several, each with a head of the
    # network: "cifar10+digits".
    config.dataset.name = "digits"
    config.dataset.data_dir = ""  # TFDS data directory; "": TFDS's default
    config.dataset.streamed = False  # keep the images in host memory, not on the devices
    config.dataset.shift = 0  # augmentation: largest random shift in each direction, in pixels
    config.dataset.flip = False  # augmentation: mirror images at random, with probability 1/2
    # If size > 0, images stay encoded on disk and worker processes decode them batch by batch.
    config.dataset.size = 0  # side to which images are rescaled; 0: images as stored
    config.dataset.source = ""  # a folder of class folders, used instead of a prepared data set
    config.dataset.crop = 0  # side of crops: random in training, center in evaluation; 0: none
    config.dataset.ten_crop = False  # also evaluate on ten crops, at the end of training
    config.dataset.workers = 2  # decoding processes per process of the run; 0: a thread instead
    config.batch_size = 128  # over all devices; BatchNorm's statistics are of the whole batch

    # Training: stochastic gradient descent with momentum (Section 6.2).
    config.train_for = "200 epochs"
    config.schedule = ConfigDict()
    config.schedule.learning_rate = 0.1  # initial (after warm-up: peak) learning rate
    # When the learning rate is multiplied by factor, such as "80 epochs, 150 epochs".
    config.schedule.boundaries = ""
    config.schedule.factor = 0.1
    config.optimizer = ConfigDict()
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # except for the parameters in optimizer.no_decay
    # Initial weights of a new run: a workdir (its best weights), a file of weights (.safetensors or
    # of PyTorch), a folder with one, or the address of a file or folder.
    config.init_from = ""
    config.init_partial = False  # keep fresh values for arrays that init_from lacks or reshapes
    # If init_from has fewer paths than the network, the size of the noise that makes the copies of
    # its paths differ, as a part of the deviation of every kernel; 0: they stay equal.
    config.growth_noise = 0.1
    config.finetune = ConfigDict()

    # Beyond the paper; these defaults disable all of it.
    config.schedule.kind = "step"  # step: boundaries; cosine, linear: decay to zero at the end
    config.schedule.warmup = ""  # a duration of n steps with rates rate / n, 2 rate / n, ..., rate
    config.optimizer.name = "sgd"  # or any optimizer of optax: adamw, lion, muon, ...
    config.optimizer.options = ""  # keyword arguments of that optimizer, e.g. "b1=0.9,b2=0.95"
    config.optimizer.nesterov = False  # use Nesterov momentum (SGD)
    # Parameters without weight decay: patterns for their names or paths, separated by commas.
    config.optimizer.no_decay = "bias, scale, b1, b2, coefficients"
    config.dataset.holdout = 0  # evaluate on n held-out training images, not on the test split
    # Normalization of pixels (in [0, 1] if they are uint8) by channel, such as
    # "0.485, 0.456, 0.406"; "": by the mean and deviation of the training images.
    config.dataset.mean = ""
    config.dataset.std = ""
    # Several data sets: their shares of every batch, such as "1, 1"; "": in proportion to the
    # numbers of their training images.
    config.dataset.proportions = ""
    config.dataset.own_statistics = False  # of several data sets, BatchNorm statistics for each
    config.dataset.eval_flip = False  # also evaluate with mirror images, at the end of training
    config.dataset.shift_mode = "zeros"  # fill for shifted images: zeros, reflect
    config.dataset.alternate_flip = False  # mirror every image in every other epoch, not at random
    config.dataset.cutout = 0  # side of the square zeroed at a random position; 0: none
    config.dataset.erase = 0.0  # probability of zeroing a random rectangle
    config.dataset.trivial_augment = False  # TrivialAugment: one of 14 operations per image
    # Parameter a of the Beta(a, a) distribution for mixing two images and their labels, by a
    # weighted mean (mixup) or by pasting a box (cutmix). If both are set, each image draws one.
    config.mixup = 0.0
    config.cutmix = 0.0
    config.loss = "cross_entropy"  # or the name of the loss_fn passed to `Trainer`
    config.label_smoothing = 0.0  # part of each label distributed evenly over all classes
    config.accumulate = 1  # micro-batches per step, each with its own BatchNorm statistics
    # Decay of a moving average of parameters and statistics, such as 0.9999. If it is set, the
    # average is what is evaluated, kept as the best and read by init_from.
    config.ema = 0.0

    # Fine-tuning of the weights of init_from.
    config.finetune.head_first = ""  # a duration in which only the head is trained at first
    config.finetune.head = (
        ""  # its parameters, as patterns such as "dense, router_*"; "": last layer
    )
    config.finetune.layer_decay = 1.0  # factor between the learning rates of a layer and the next
    config.finetune.frozen = ""  # parameters that are not trained, as patterns: "stem, stack_1"
    config.finetune.frozen_statistics = False  # BatchNorm uses its running statistics, unchanged
    # Stop early when the error has been above its lowest for this duration, such as "10 epochs".
    config.patience = ""

    # Logging, evaluation and checkpoint intervals. All three also happen at the end of training.
    config.log_every = "1 epoch"
    config.eval_every = "1 epoch"  # on the whole test split; the best checkpoint is kept
    config.checkpoint_every = "1 epoch"
    config.eval_batch_size = 500  # rounded up to a multiple of the devices
    config.profile = ""  # range of steps to trace, such as "100-110", into workdir/profile
    config.tensorboard = "auto"  # also write TensorBoard files: on, off, auto (if installed)

    # Devices and compilation.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices over which each batch is sharded; -1: all remaining
    config.mesh.path = 1  # devices over which the paths are sharded
    config.dispatch = "auto"  # steps per dispatch: one (step), many (loop), auto
    config.compilation_cache = "auto"  # a folder; auto: in the user's cache folder; "": none
    return config.lock()


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key: ``{"model.name": ..., "seed": ...}``."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, (ConfigDict, dict))
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, the form stored beside checkpoints; paths become absolute."""
    stored = config.copy_and_resolve_references()
    flat = flatten(config)
    paths = {key: os.fspath(filesystem.path(key, flat[key])) for key in FOLDER_KEYS if flat[key]}
    if flat["init_from"]:
        paths["init_from"] = filesystem.anywhere("init_from", flat["init_from"])
    stored.update_from_flattened_dict(paths)
    return json.dumps(stored.to_dict(), indent=2, sort_keys=True) + "\n"


def read_config(path: epath.PathLike) -> ConfigDict:
    """Reads a config written by `to_json`.

    Raises:
      UserError: the file cannot be read, is not such a config, or has unknown keys.
    """
    try:
        stored = flatten(json.loads(storage.read(path)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a config of this program ({error})") from error
    config = default_config()
    if unknown := sorted(stored.keys() - flatten(config).keys()):
        raise UserError(
            f"{path} was written by another version of this program, with keys that this one does "
            f"not have ({', '.join(unknown)}); resume with that version, or use another workdir"
        )
    try:
        config.update_from_flattened_dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config of this program ({error})") from error
    return config


def check_key(key: str) -> None:
    """Raises UserError, with the nearest key, unless ``key`` (dotted) is a key of the config."""
    known = flatten(default_config())
    if key not in known:
        raise UserError(f"there is no config key {key!r}; the nearest is {nearest(key, known)!r}")


def differences(stored: ConfigDict, now: ConfigDict) -> list[str]:
    """The keys whose values differ, each as ``key: stored -> now``; `FREE_KEYS` are ignored."""
    before, after = flatten(stored), flatten(now)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted({*before, *after} - set(FREE_KEYS))
        if before.get(key) != after.get(key)
    ]


def parse_options(key: str, text: str) -> dict[str, Any]:
    """Parses ``"execution=grouped,custom_vjp=False"`` into keyword arguments.

    Args:
      key: the config key that has this value, for error messages.
      text: items ``name=value``, separated by commas.

    Returns:
      The values by name: numbers, True, False, None, or strings.

    Raises:
      UserError: an item is not of the form ``name=value``.
    """
    options = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name.isidentifier() and equals and value):
            raise UserError(f"{key}: {item!r} is not of the form name=value")
        options[name] = _literal(value)
    return options


def parse_numbers(key: str, text: str) -> tuple[float, ...]:
    """``"0.485, 0.456, 0.406"`` as numbers. Raises UserError for anything else."""
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise UserError(f"{key}={text!r} is not of the form 0.485, 0.456, 0.406") from error
    _require(all(map(math.isfinite, numbers)), key, text, "finite")
    return numbers


def _literal(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def validate(config: ConfigDict) -> None:
    """Raises UserError for values that are invalid whatever the data set and the devices are."""
    flat = flatten(config)
    if flat["init_from"] == NEEDED:
        raise UserError(
            "init_from is not set; set --config.init_from=FILE to the weights to start from, or "
            "--config.init_from= to start from random weights"
        )
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise UserError(f"{key}={flat[key]!r} must be one of {', '.join(choices)}")
    for key in ("batch_size", "eval_batch_size", "trials", "accumulate"):
        _require(flat[key] >= 1, key, flat[key], "at least 1")
    for key in ("schedule.learning_rate", "schedule.factor"):
        _require(0 < flat[key] < math.inf, key, flat[key], "positive")
    _require(0 <= flat["seed"] < 2**32, "seed", flat["seed"], "from 0 to 4294967295")
    if flat["seed"] + flat["trials"] > 2**32:
        raise UserError(
            f"seed={flat['seed']} is too large for trials={flat['trials']}, which use consecutive "
            f"seeds; choose a seed of at most {2**32 - flat['trials']}"
        )
    for key in ("shift", "size", "crop", "workers", "cutout", "holdout"):
        _require(
            flat[f"dataset.{key}"] >= 0, f"dataset.{key}", flat[f"dataset.{key}"], "at least 0"
        )
    erase = flat["dataset.erase"]
    _require(0 <= erase <= 1, "dataset.erase", erase, "from 0 to 1")
    for key in ("mixup", "cutmix", "growth_noise"):
        _require(0 <= flat[key] < math.inf, key, flat[key], "at least 0")
    if flat["dataset.alternate_flip"] and not flat["dataset.flip"]:
        raise UserError("dataset.alternate_flip=True needs dataset.flip=True")
    _validate_paths(flat)
    _validate_statistics(flat)
    _validate_several(flat)
    if flat["dataset.name"] == FOLDER and not flat["dataset.source"]:
        raise UserError("dataset.source is empty; set --config.dataset.source=DIR to your images")
    if flat["dataset.source"] and not flat["dataset.size"]:
        raise UserError("dataset.source needs dataset.size, the side to rescale its images to")
    if flat["dataset.ten_crop"] and not flat["dataset.crop"]:
        raise UserError("dataset.ten_crop=True needs dataset.crop, the side of the crops")
    momentum, decay = flat["optimizer.momentum"], flat["optimizer.weight_decay"]
    _require(0 <= momentum < 1, "optimizer.momentum", momentum, "at least 0 and below 1")
    if flat["optimizer.nesterov"] and not momentum:
        raise UserError("optimizer.nesterov=True needs optimizer.momentum, such as 0.9")
    _require(0 <= decay < math.inf, "optimizer.weight_decay", decay, "at least 0")
    layer_decay = flat["finetune.layer_decay"]
    _require(0 < layer_decay <= 1, "finetune.layer_decay", layer_decay, "above 0 and at most 1")
    if flat["finetune.head"] and not flat["finetune.head_first"]:
        raise UserError("finetune.head needs finetune.head_first, a duration such as '5 epochs'")
    for key in ("label_smoothing", "ema"):
        _require(0 <= flat[key] < 1, key, flat[key], "at least 0 and below 1")
    for key in ("train_for", "log_every", "eval_every", "checkpoint_every"):
        parse_duration(key, flat[key])
    parse_durations("schedule.boundaries", flat["schedule.boundaries"])
    for key in ("schedule.warmup", "finetune.head_first", "patience"):
        if flat[key]:
            parse_duration(key, flat[key])
    if flat["schedule.boundaries"] and flat["schedule.kind"] != "step":
        raise UserError(
            f"schedule.kind={flat['schedule.kind']} takes no boundaries, but "
            f"schedule.boundaries={flat['schedule.boundaries']!r} "
            "(--config.schedule.boundaries= removes them)"
        )
    parse_window("profile", flat["profile"])
    for key in ("model.options", "optimizer.options"):
        parse_options(key, flat[key])


def _validate_statistics(flat: dict[str, Any]) -> None:
    mean, std = (parse_numbers(key, flat[key]) for key in ("dataset.mean", "dataset.std"))
    if len(mean) != len(std):
        raise UserError(
            f"dataset.mean has {len(mean)} numbers and dataset.std {len(std)}; give one of each "
            "for every channel, or neither"
        )
    _require(min(std, default=1) > 0, "dataset.std", flat["dataset.std"], "positive")


def _validate_several(flat: dict[str, Any]) -> None:
    """Checks what is about several data sets; `data.join` checks whether they fit together."""
    name = flat["dataset.name"]
    names = several(name)
    for key in ("source", "size"):
        if names and flat[f"dataset.{key}"]:
            raise UserError(
                f"dataset.name={name}: several data sets must be prepared ones in memory; remove "
                f"dataset.{key}={flat[f'dataset.{key}']}, or name one data set"
            )
    proportions = parse_numbers("dataset.proportions", flat["dataset.proportions"])
    if proportions and (len(proportions) != len(names) or min(proportions) <= 0):
        raise UserError(
            f"dataset.proportions={flat['dataset.proportions']} must be positive numbers, one for "
            f"each of several data sets; dataset.name={name}"
        )
    if flat["dataset.own_statistics"]:
        _validate_own_statistics(flat, bool(names) or name.startswith(OWN))


def _validate_own_statistics(flat: dict[str, Any], are_several: bool) -> None:
    what = "dataset.own_statistics=True"
    if not are_several:
        raise UserError(
            f"{what} needs several data sets, such as cifar10+digits; "
            f"dataset.name={flat['dataset.name']}"
        )
    for key in ("mixup", "cutmix"):
        if flat[key]:
            raise UserError(f"{what} needs images of one data set each; use {key}=0")
    if flat["mesh.path"] != 1:
        raise UserError(f"{what} is not supported for paths on several devices; use mesh.path=1")


def several(name: str) -> list[str]:
    """The names in ``dataset.name``, if it names several data sets; otherwise none."""
    return name.split("+") if "+" in name and not name.startswith(OWN) else []


def _validate_paths(flat: dict[str, Any]) -> None:
    for key in ("dataset.data_dir", "compilation_cache"):
        if flat[key]:
            filesystem.path(key, flat[key])
    if flat["init_from"]:
        filesystem.anywhere("init_from", flat["init_from"])
    if flat["dataset.source"]:
        filesystem.local("dataset.source", flat["dataset.source"])


def _require(condition: bool, key: str, value: Any, what: str) -> None:
    if not condition:
        raise UserError(f"{key}={value} must be {what}")
