"""Every key of a config, what it means, and which values are refused."""

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

# Keys that may differ between the start of a run and its continuation: they change where data,
# logs and checkpoints go and how often, or how the devices share the work, but not the recipe.
FREE_KEYS = (
    "dataset.data_dir",
    "dataset.source",  # what it holds is compared, not its name
    "dataset.streamed",
    "dataset.ten_crop",
    "dataset.eval_flip",
    "dataset.workers",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "profile",
    "eval_batch_size",
    "init_from",
    "init_partial",
    "mesh.data",
    "mesh.path",
    "dispatch",
    "compilation_cache",
    "tensorboard",
)
# Keys that name a folder; they are stored so that they are found from any working folder.
FOLDER_KEYS = ("dataset.data_dir", "dataset.source")
OWN = "own:"  # how the names of what is given to `Trainer` begin in a stored config
FOLDER = "folder"  # the name of a data set that is dataset.source
CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "dispatch": ("auto", "loop", "step"),
    "tensorboard": ("auto", "on", "off"),
    "schedule.kind": ("step", "cosine", "linear"),
    "dataset.shift_mode": ("zeros", "reflect"),
}


def default_config() -> ConfigDict:
    """The defaults, locked: recipes change values and can add no key.

    Durations are strings such as ``"200 epochs"``, ``"0.5 epochs"`` or ``"1000 steps"``.
    """
    config = ConfigDict()

    # What is trained.
    config.model = ConfigDict()
    config.model.name = "BaseCNN-2-CC"  # any name that multipath_jax.create_model accepts
    config.model.options = ""  # options of that network, e.g. "execution=grouped,custom_vjp=False"
    # Of the computation: float32, bfloat16, or auto, float32 on CPUs and bfloat16 elsewhere.
    # Parameters, statistics, gates and losses are float32 in any case.
    config.dtype = "auto"
    config.seed = 0  # of the run's one key: initial values, order of the data, augmentation
    config.trials = 1  # several: seeds seed, seed + 1, ..., each a run in workdir/seed_N

    # What it is trained on.
    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # digits, cifar10, cifar100, or any prepared TFDS data set
    config.dataset.data_dir = ""  # of TFDS; "" is TFDS's own default
    config.dataset.streamed = False  # from the host's memory, rather than resident on the devices
    config.dataset.shift = 0  # augmentation: the largest shift in pixels, each way
    config.dataset.flip = False  # augmentation: whether to mirror half of the images
    # Pictures of any size: left encoded on the disk, decoded by other processes as they are wanted.
    config.dataset.size = 0  # the side to which they are rescaled; 0: images are as stored
    config.dataset.source = ""  # a folder of class folders, in place of a prepared data set
    config.dataset.crop = 0  # the side of crops, random ones in training, else the centre; 0: none
    config.dataset.ten_crop = False  # also evaluate on ten crops, at the end of training
    config.dataset.workers = 2  # decoding processes, of each process of the run; 0: none
    config.batch_size = 128  # over all devices; BatchNorm's statistics are of the whole batch

    # How: stochastic gradient descent with momentum (Section 6.2).
    config.train_for = "200 epochs"
    config.schedule = ConfigDict()
    config.schedule.learning_rate = 0.1  # the learning rate at the start
    # When the learning rate is multiplied by the factor, such as "80 epochs, 150 epochs".
    config.schedule.boundaries = ""
    config.schedule.factor = 0.1
    config.optimizer = ConfigDict()
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # but for the parameters of optimizer.no_decay
    # What a fresh run starts from: a workdir, for its best weights; a file of weights
    # (.safetensors, or of PyTorch), a folder with one, or the address of either.
    config.init_from = ""
    config.init_partial = False  # whether arrays that it lacks, or has of another shape, stay fresh

    # Beyond the paper; with these values none of it happens.
    # cosine, linear: no boundaries, but down to zero at the end of training
    config.schedule.kind = "step"
    config.schedule.warmup = ""  # a duration of n steps, of rates rate / n, 2 rate / n, ..., rate
    config.optimizer.name = "sgd"  # or any other of optax's: adamw, lion, muon, ...
    config.optimizer.options = ""  # of that function of optax, e.g. "b1=0.9,b2=0.95"
    config.optimizer.nesterov = False  # SGD's momentum is then Nesterov's
    # Parameters without weight decay: patterns of their names or paths, separated by commas.
    config.optimizer.no_decay = "bias, scale, b1, b2, coefficients"
    config.dataset.holdout = 0  # training images to evaluate in place of the test split; 0: none
    # What pixels (in [0, 1] if they are uint8) are normalized by, such as "0.485, 0.456, 0.406";
    # "": the mean and deviation of the training images.
    config.dataset.mean = ""
    config.dataset.std = ""
    config.dataset.eval_flip = False  # also evaluate with mirror images, at the end of training
    config.dataset.shift_mode = "zeros"  # what comes in at the edges: zeros, reflect
    config.dataset.alternate_flip = False  # mirror an image in every other epoch, not at random
    config.dataset.cutout = 0  # the side of a square that is blanked out at a random place; 0: none
    config.dataset.erase = 0.0  # how likely a rectangle at a random place is blanked out
    config.dataset.trivial_augment = False  # TrivialAugment: one of 14 operations for each image
    # Of Beta(a, a), by which two images and their labels are mixed: blended (mixup), or a box of
    # the one put into the other (cutmix); with both, one of them, by chance, for each image.
    config.mixup = 0.0
    config.cutmix = 0.0
    config.loss = "cross_entropy"  # or, where `Trainer` is given a loss_fn, its name
    config.label_smoothing = 0.0  # the part of each label that is spread evenly over all classes
    config.accumulate = 1  # micro-batches of a step, each with BatchNorm statistics of its own
    # The decay of a moving average of parameters and statistics, such as 0.9999: what is evaluated,
    # kept as the best and taken over by init_from is then the average.
    config.ema = 0.0

    # What is seen of it, and when it is saved. The end of training counts as each of the three.
    config.log_every = "1 epoch"
    config.eval_every = "1 epoch"  # on the whole test split; the best network is kept
    config.checkpoint_every = "1 epoch"
    config.eval_batch_size = 500  # rounded up to a multiple of the devices
    config.profile = ""  # steps to trace, such as "100-110", into workdir/profile
    config.tensorboard = "auto"  # also write TensorBoard's files: on, off, auto (if installed)

    # The machine.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: all that are left
    config.mesh.path = 1  # devices that share the paths
    config.dispatch = "auto"  # steps on the device: one a dispatch (step), many (loop), auto
    config.compilation_cache = "auto"  # a folder; auto: in the user's cache folder; "": none
    return config.lock()


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """``{"model.name": ..., "seed": ...}``: the leaves by dotted key."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, (ConfigDict, dict))
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, as it is stored beside checkpoints; its folders are absolute."""
    stored = config.copy_and_resolve_references()
    flat = flatten(config)
    paths = {key: os.fspath(filesystem.path(key, flat[key])) for key in FOLDER_KEYS if flat[key]}
    if flat["init_from"]:
        paths["init_from"] = filesystem.anywhere("init_from", flat["init_from"])
    stored.update_from_flattened_dict(paths)
    return json.dumps(stored.to_dict(), indent=2, sort_keys=True) + "\n"


def read_config(path: epath.PathLike) -> ConfigDict:
    """A config written by `to_json`, its keys those of today.

    Raises:
      UserError: the file cannot be read or is no such config.
    """
    try:
        stored = flatten(json.loads(storage.read(path)))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no config of this program ({error})") from error
    config = default_config()
    if unknown := sorted(stored.keys() - flatten(config).keys()):
        raise UserError(
            f"{path} was written by another version of this program, with keys that this one does "
            f"not have ({', '.join(unknown)}); go on with that version, or use another workdir"
        )
    try:
        config.update_from_flattened_dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no config of this program ({error})") from error
    return config


def check_key(key: str) -> None:
    """Raises UserError, with the nearest key, unless ``key`` (dotted) is a key of the config."""
    known = flatten(default_config())
    if key not in known:
        raise UserError(f"there is no config key {key!r}; the nearest is {nearest(key, known)!r}")


def differences(stored: ConfigDict, now: ConfigDict) -> list[str]:
    """The keys of the recipe that differ, each as ``key: stored -> now``."""
    before, after = flatten(stored), flatten(now)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted({*before, *after} - set(FREE_KEYS))
        if before.get(key) != after.get(key)
    ]


def parse_options(key: str, text: str) -> dict[str, Any]:
    """``"execution=grouped,custom_vjp=False"``, the value of a key, as keyword arguments.

    Values are numbers, True, False, None, or else text. Raises UserError for anything else.
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
    """Raises UserError for a value that no data set or device could make right."""
    flat = flatten(config)
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise UserError(f"{key}={flat[key]!r} is none of {', '.join(choices)}")
    for key in ("batch_size", "eval_batch_size", "trials", "accumulate"):
        _require(flat[key] >= 1, key, flat[key], "at least 1")
    for key in ("schedule.learning_rate", "schedule.factor"):
        _require(0 < flat[key] < math.inf, key, flat[key], "positive")
    _require(0 <= flat["seed"] < 2**32, "seed", flat["seed"], "from 0 to 4294967295")
    if flat["seed"] + flat["trials"] > 2**32:
        raise UserError(
            f"seed={flat['seed']} leaves too few for trials={flat['trials']}, each of which has "
            f"the next one; choose a seed of at most {2**32 - flat['trials']}"
        )
    for key in ("shift", "size", "crop", "workers", "cutout", "holdout"):
        _require(
            flat[f"dataset.{key}"] >= 0, f"dataset.{key}", flat[f"dataset.{key}"], "at least 0"
        )
    erase = flat["dataset.erase"]
    _require(0 <= erase <= 1, "dataset.erase", erase, "from 0 to 1")
    for key in ("mixup", "cutmix"):
        _require(0 <= flat[key] < math.inf, key, flat[key], "at least 0")
    if flat["dataset.alternate_flip"] and not flat["dataset.flip"]:
        raise UserError("dataset.alternate_flip=True needs dataset.flip=True")
    _validate_paths(flat)
    _validate_statistics(flat)
    if flat["dataset.name"] == FOLDER and not flat["dataset.source"]:
        raise UserError("say where your images are: --config.dataset.source=DIR")
    if flat["dataset.source"] and not flat["dataset.size"]:
        raise UserError("dataset.source needs dataset.size, the side to rescale its images to")
    if flat["dataset.ten_crop"] and not flat["dataset.crop"]:
        raise UserError("dataset.ten_crop=True needs dataset.crop, the side of the crops")
    momentum, decay = flat["optimizer.momentum"], flat["optimizer.weight_decay"]
    _require(0 <= momentum < 1, "optimizer.momentum", momentum, "at least 0 and below 1")
    if flat["optimizer.nesterov"] and not momentum:
        raise UserError("optimizer.nesterov=True needs optimizer.momentum, such as 0.9")
    _require(0 <= decay < math.inf, "optimizer.weight_decay", decay, "at least 0")
    for key in ("label_smoothing", "ema"):
        _require(0 <= flat[key] < 1, key, flat[key], "at least 0 and below 1")
    for key in ("train_for", "log_every", "eval_every", "checkpoint_every"):
        parse_duration(key, flat[key])
    parse_durations("schedule.boundaries", flat["schedule.boundaries"])
    if flat["schedule.warmup"]:
        parse_duration("schedule.warmup", flat["schedule.warmup"])
    if flat["schedule.boundaries"] and flat["schedule.kind"] != "step":
        raise UserError(
            f"schedule.kind={flat['schedule.kind']} has no boundaries, but "
            f"schedule.boundaries={flat['schedule.boundaries']!r} "
            "(--config.schedule.boundaries= leaves them out)"
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
