"""Builds data, model, optimizer and steps from a config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from multipath_jax.config import schedule
from multipath_jax.config.keys import (
    default_config,
    parse_numbers,
    parse_options,
    several,
    validate,
)
from multipath_jax.data import (
    Dataset,
    Description,
    EncodedSplit,
    Heads,
    batches_per_epoch,
    describe,
    load_dataset,
    load_several,
    open_encoded,
)
from multipath_jax.errors import UserError
from multipath_jax.evaluation.evaluate import Evaluator, Views, make_evaluator
from multipath_jax.layers import (
    Execution,
    FromSets,
    OwnStatistics,
    Shortcut,
    frozen_statistics,
    own_statistics,
)
from multipath_jax.models import create_model
from multipath_jax.parallel import devices, placement, processes
from multipath_jax.parallel.compilation import quick_compilation
from multipath_jax.training import state
from multipath_jax.training.losses import LossFn, make_loss_fn
from multipath_jax.training.metrics import TrainMetrics, zeros_like
from multipath_jax.training.optimizer import (
    head_of,
    make_optimizer,
    params_in_order,
    rates_by_layer,
)
from multipath_jax.training.sources import Encoded, Resident, Source, Streamed
from multipath_jax.training.step import (
    Batch,
    Carry,
    Prepare,
    Runner,
    make_prepare,
    make_train_step,
)
from multipath_jax.utils import progress

# Called with the step and the metrics of a line of ``metrics.jsonl``.
Hook = Callable[[int, dict[str, float]], Any]


class Setup:
    """The data set, model, optimizer and compiled functions of a training run.

    Nothing depends on the seed, so the trials of a recipe share one setup. Nothing is written.

    Attributes:
      mesh: the mesh of all devices.
      dataset: the data set, in host memory or encoded.
      encoded: whether the data set is encoded.
      image_shape: height, width and channels after cropping.
      model: the network.
      placement: the network with the sharding of its variables.
      plan: the durations of the config in steps.
      learning_rate: the learning rate schedule; None if the optimizer was passed.
      notes: what to say of the optimizer.
      train_step: the pure function ``(state, batch) -> (state, metrics)``.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset | None = None,
        on: Sequence[jax.Device] | None = None,
        *,
        loss_fn: LossFn | None = None,
        model: nn.Module | None = None,
        optimizer: optax.GradientTransformation | None = None,
        hooks: Sequence[Hook] | None = (),
    ):
        """Reads the data set and builds the network; nothing is compiled or computed yet.

        Args:
          config: the whole config.
          dataset: used instead of the config's data set.
          on: the devices to use; None: all devices.
          loss_fn: used instead of the cross-entropy; ``(outputs, labels) -> losses [b]``.
          model: used instead of the config's network.
          optimizer: used instead of the config's optimizer and learning rate schedule.
          hooks: called whenever a run logs metrics.

        Raises:
          UserError: the config is invalid, or does not fit the data, the network or the devices.
        """
        validate(config)
        _check_loss(config, loss_fn)
        self.hooks = _checked(hooks)
        self.config = config
        self.mesh = devices.make_mesh(config, on)
        self.everywhere = devices.replicated(self.mesh)
        self.dataset = normalized(dataset or _read(config.dataset), config.dataset)
        if config.dataset.trivial_augment and self.dataset.dtype != np.uint8:
            raise UserError(
                f"dataset.trivial_augment=True needs uint8 pixels, and those of "
                f"{self.dataset.name} are {self.dataset.dtype}; use dataset.trivial_augment=False"
            )
        self.encoded = isinstance(self.dataset.train, EncodedSplit)
        self.train_size = len(self.dataset.train)
        per_epoch = batches_per_epoch(self.train_size, config.batch_size)
        self.plan = schedule.make_plan(config, per_epoch)
        self.model = model or make_model(config, self.dataset.num_classes, self.plan.total)
        self.image_shape = cropped_shape(self.dataset, config.dataset.crop)
        heads = self.dataset.heads
        loss_fn = make_loss_fn(
            placement.has_own_loss(self.model),
            config.label_smoothing,
            config.mixup > 0 or config.cutmix > 0,
            loss_fn,
            heads,
        )
        if model is not None and not placement.has_own_loss(model):
            _check_outputs(model, (config.batch_size, *self.image_shape), self.dataset.num_classes)
        placement.check(self.model, config.model.name, config.mesh.path, self.image_shape)
        self.learning_rate = None if optimizer else schedule.learning_rate(config, self.plan)
        self.optimizer = optimizer or make_optimizer(config.optimizer, self.learning_rate)
        self.notes: tuple[str, ...] = ()
        prepare = make_prepare(
            self.dataset,
            config.dataset.shift,
            config.dataset.flip,
            config.dataset.crop,
            shift_mode=config.dataset.shift_mode,
            alternate=per_epoch if config.dataset.alternate_flip else 0,
            cutout=config.dataset.cutout,
            erase=config.dataset.erase,
            trivial=config.dataset.trivial_augment,
        )
        if config.dataset.own_statistics:
            self.model = with_own_statistics(self.model, heads, self.image_shape)
            prepare = _from_sets(prepare, heads)
        self.optimizer = self._by_layer(self.optimizer)
        if config.finetune.frozen_statistics:
            _check_freezable(self.model, self.image_shape)
        self.placement = placement.Placement(self.model, self.mesh)
        self.train_step = make_train_step(
            self.placement,
            self.optimizer,
            prepare,
            loss_fn=loss_fn,
            heads=heads,
            mixup=config.mixup,
            cutmix=config.cutmix,
            ema=config.ema,
            accumulate=config.accumulate,
            unroll=devices.on_cpu(self.mesh),
            frozen=config.finetune.frozen_statistics,
        )

    def _by_layer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer with the learning rates of ``config.finetune`` for the layers."""
        config, head_first = self.config.finetune, self.plan.head_first
        if not (head_first or config.frozen) and config.layer_decay == 1:
            return optimizer
        params = params_in_order(self.model, self.image_shape)
        if head_first:
            self.notes = (f"only {head_of(config, params)} is trained up to step {head_first}",)
        return optax.chain(optimizer, rates_by_layer(config, head_first, params))

    @cached_property
    def description(self) -> Description:
        """The metadata of the data set, which is stored beside the checkpoints."""
        return describe(self.dataset, self.image_shape)

    @cached_property
    def evaluate(self) -> Evaluator:
        """``variables -> {"loss", "error", ...}`` on the test split."""
        return self._make_evaluator(Views(self.config.dataset.crop))

    @cached_property
    def evaluate_fully(self) -> Evaluator:
        """`evaluate` for the end of a run: also on ten crops or mirror images, if configured."""
        config = self.config
        views = Views(config.dataset.crop, config.dataset.ten_crop, config.dataset.eval_flip)
        return self._make_evaluator(views) if views.ten or views.flip else self.evaluate

    def _make_evaluator(self, views: Views) -> Evaluator:
        size, workers = self.config.eval_batch_size, self.config.dataset.workers
        return make_evaluator(self.placement, self.dataset, size, self.mesh, None, views, workers)

    @cached_property
    def source(self) -> Source:
        """The source of training batches."""
        train, size = self.dataset.train, self.config.batch_size
        if self.encoded:
            return Encoded(train, size, self.mesh, self.config.dataset.workers)
        return (Streamed if self.config.dataset.streamed else Resident)(train, size, self.mesh)

    @cached_property
    def runner(self) -> Runner:
        """Runs many steps; compiled once for all trials."""
        where = self.placement.sharding(self.abstract_carry)
        auto = not devices.on_cpu(self.mesh)
        loop = {"loop": True, "step": False, "auto": auto}[self.config.dispatch]
        return Runner(self.train_step, self.source, where, loop)

    @cached_property
    def _create(self):
        create = partial(
            state.create_state,
            self.model,
            self.optimizer,
            self.image_shape,
            averaged=self.config.ema > 0,
        )
        shapes = jax.eval_shape(create, jnp.uint32(0))
        return self._once(create, self.placement.sharding(shapes))

    def _once(self, function, sharding=None):
        """Jits a function that is called only a few times; results are replicated by default."""
        options = quick_compilation(self.mesh)
        where = self.everywhere if sharding is None else sharding
        return jax.jit(function, out_shardings=where, compiler_options=options)

    @cached_property
    def abstract_carry(self) -> Carry:
        """The shapes and shardings of a run's carry; nothing is compiled or computed."""
        fresh = jax.eval_shape(self._create, jnp.uint32(0))
        size, image_shape = self.config.batch_size, self.dataset.image_shape
        images = jax.ShapeDtypeStruct((size, *image_shape), self.dataset.dtype)
        labels = jax.ShapeDtypeStruct((size,), jnp.int32)
        _, metrics = jax.eval_shape(self.train_step, fresh, Batch(images, labels))
        carry = Carry(fresh, metrics)
        return devices.placed(carry, self.placement.sharding(carry))

    def fresh_carry(self, seed: int) -> Carry:
        """The initial state of a run and empty metrics."""
        return Carry(self._create(jnp.uint32(seed)), self.no_metrics())

    def no_metrics(self) -> TrainMetrics:
        """Empty metrics; new arrays on every call, since they are donated."""
        return self._zeros()

    @cached_property
    def _zeros(self):
        return self._once(partial(zeros_like, self.abstract_carry.metrics))

    def is_finite(self, current: state.TrainState) -> bool:
        """Whether all floating-point values of the state are finite."""
        return bool(self._all_finite(current))

    @cached_property
    def _all_finite(self):
        return self._once(state.all_finite)


def _check_loss(config: ConfigDict, loss_fn: LossFn | None) -> None:
    """Raises UserError if a config names a loss function that was not passed."""
    default = default_config().loss
    if loss_fn is None and config.loss != default:
        raise UserError(
            f"loss={config.loss} needs that function, as Trainer(loss_fn=...) in Python; or use "
            f"loss={default}"
        )


def _checked(hooks: Any) -> tuple[Hook, ...]:
    """The hooks as a tuple. Raises UserError for anything but a sequence of functions, or None."""
    hooks = () if hooks is None else hooks
    if not isinstance(hooks, Sequence) or not all(map(callable, hooks)):
        raise UserError(
            f"hooks must be a list of functions, such as [hook], each hook(step, metrics); got "
            f"{hooks!r}"
        )
    return tuple(hooks)


def _read(config: ConfigDict) -> Dataset:
    with progress.at_work(f"reading {config.source or config.name}", announce=True):
        return read_dataset(config)


def read_dataset(config: ConfigDict) -> Dataset:
    """Reads the data set of the section ``dataset`` of a config. Raises UserError."""
    with processes.first_alone("dataset"):  # process 0 may have to prepare it
        data_dir = config.data_dir or None
        if config.size:
            return open_encoded(config.name, data_dir, config.size, config.source, config.holdout)
        if names := several(config.name):
            proportions = parse_numbers("dataset.proportions", config.proportions) or None
            return load_several(names, data_dir, config.holdout, proportions)
        return load_dataset(config.name, data_dir, config.holdout)


def normalized(dataset: Dataset, config: ConfigDict) -> Dataset:
    """The data set with the mean and deviation of a config's part ``dataset``, if it has any.

    Of several data sets, each is normalized by the same.

    Raises:
      UserError: they are of another number of channels than the images.
    """
    mean, std = (
        np.array(parse_numbers(f"dataset.{key}", config[key]), np.float32)
        for key in ("mean", "std")
    )
    if not len(mean):
        return dataset
    if dataset.parts:
        parts = tuple(normalized(part, config) for part in dataset.parts)
        mean, std = (np.stack([getattr(part, key) for part in parts]) for key in ("mean", "std"))
        return dataclasses.replace(dataset, mean=mean, std=std, parts=parts)
    channels = dataset.image_shape[-1]
    if len(mean) != channels:
        raise UserError(
            f"dataset.mean and dataset.std have {len(mean)} numbers, and the images of "
            f"{dataset.name} {channels} channels; give one for each"
        )
    return dataclasses.replace(dataset, mean=mean, std=std)


def cropped_shape(dataset: Dataset, crop: int) -> tuple[int, int, int]:
    """The shape of an image after cropping. Raises UserError if the crop is too large."""
    height, width, channels = dataset.image_shape
    if crop > min(height, width):
        raise UserError(
            f"dataset.crop={crop} is larger than the images of {height}x{width} pixels; "
            f"choose at most {min(height, width)}"
        )
    return (crop, crop, channels) if crop else dataset.image_shape


def with_own_statistics(
    model: nn.Module, heads: Heads | None, image_shape: tuple[int, int, int]
) -> OwnStatistics:
    """The network with BatchNorm statistics for each data set.

    Args:
      model: the network.
      heads: the heads of the data sets.
      image_shape: height, width and channels.

    Raises:
      UserError: there is one data set only, or the network has no BatchNorm that supports it.
    """
    if heads is None:
        raise UserError("dataset.own_statistics=True needs several data sets; use data.join")
    network = OwnStatistics(model, len(heads.names))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), image)
    if own_statistics.COLLECTION not in variables:
        raise UserError(
            "dataset.own_statistics=True needs a network with multipath_jax.layers.batch_norm; "
            "this one has none"
        )
    return network


def _check_outputs(model: nn.Module, shape: tuple[int, int, int, int], num_classes: int) -> None:
    """Raises UserError unless a network returns logits for images of a shape ``[b h w c]``."""
    init = partial(model.init_with_output, train=False)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    outputs, _ = jax.eval_shape(init, jax.random.key(0), images)
    is_array = isinstance(outputs, jax.ShapeDtypeStruct)
    found = list(outputs.shape) if is_array else f"a {type(outputs).__name__}"
    if is_array and found[:-1] == [shape[0]] and found[-1] >= num_classes:
        return
    raise UserError(
        f"the network returns {found} for {shape[0]} images; the data have {num_classes} classes: "
        f"return logits [{shape[0]}, {num_classes}]"
    )


def _check_freezable(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError if no layer of a network has statistics that can be frozen."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with frozen_statistics() as layers:
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    if not layers:
        raise UserError(
            "finetune.frozen_statistics=True needs a network with flax.linen.BatchNorm; this one "
            "has none"
        )


def _from_sets(prepare: Prepare, heads: Heads) -> Prepare:
    """A function like ``prepare`` that also says from which data set each image is."""
    return lambda state, batch: FromSets(prepare(state, batch), heads.numbers(batch.labels))


# Options of discrete routing as fractions of the training, and the same options in steps.
SHARES = {"soft_share": "soft_steps", "cooling_share": "cooling_steps"}


def make_model(config: ConfigDict, num_classes: int, steps: int = 0) -> nn.Module:
    """The network of a config.

    Args:
      config: the whole config.
      num_classes: width of the output.
      steps: number of training steps, for options that are fractions of it; 0 after training.

    Returns:
      The network.

    Raises:
      UserError: the name or an option is unknown, or an option has an invalid value.
    """
    options = parse_options("model.options", config.model.options)
    options = counted_shares(options, steps * config.accumulate)
    check_options(options, "model.options")
    for name, choices in (("execution", get_args(Execution)), ("shortcut", get_args(Shortcut))):
        if options.get(name, choices[0]) not in choices:
            raise UserError(
                f"model.options: {name}={options[name]} is none of {', '.join(choices)}"
            )
    dtype = devices.compute_dtype(config.dtype)
    if dtype != jnp.float32:  # the default of every network, and all that some can do
        options["dtype"] = dtype
    return create_model(config.model.name, num_classes, **options)


def check_options(options: Mapping[str, Any], key: str) -> None:
    """Raises UserError if options of a network have its name or its number of classes.

    Args:
      options: options of a network by name.
      key: the flag or config key of the options, for the error.
    """
    for name, source in (("num_classes", "the data set"), ("name", "the model's name")):
        if name in options:
            raise UserError(f"{key}: {name} is given by {source}; remove it")


def counted_shares(options: Mapping[str, Any], steps: int = 0) -> dict[str, Any]:
    """Replaces options that are fractions of the training by numbers of steps.

    Args:
      options: options of a network by name.
      steps: number of training steps; 0 after training.

    Raises:
      UserError: a value is not a fraction, there is no k, or both forms of an option are given.
    """
    for share, count in SHARES.items():
        if share in options and count in options:
            raise UserError(f"model.options: give {share} or {count}, not both")
        if share in options and options.get("k") is None:
            raise UserError(f"model.options: {share} is for discrete routing; set k, too")
    counted = {
        SHARES[name]: _part(name, value, steps) for name, value in options.items() if name in SHARES
    }
    return {name: value for name, value in options.items() if name not in SHARES} | counted


def _part(name: str, share: Any, steps: int) -> int:
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise UserError(f"model.options: {name}={share} must be between 0 and 1")
    # At least one of cooling, also after training: `Choice` refuses a last_temperature without it.
    return max(round(share * steps), int(name == "cooling_share" and share > 0))
