"""The training step, and the compiled loop over many steps."""

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num, PyTree

from multipath_jax.data import (
    Heads,
    alternately_mirrored,
    augment,
    mix,
    normalize,
    random_crop,
    trivial_augment,
)
from multipath_jax.errors import UserError
from multipath_jax.evaluation.metrics import is_wrong
from multipath_jax.layers import frozen_statistics
from multipath_jax.parallel.compilation import Cost, compiled
from multipath_jax.parallel.placement import Network, has_own_loss
from multipath_jax.training.accumulation import Pass, accumulated
from multipath_jax.training.losses import LossFn, auxiliary, by_share, cross_entropy
from multipath_jax.training.metrics import TrainMetrics, routing_statistics
from multipath_jax.training.state import (
    AUGMENT,
    GATES,
    MIX,
    RECORDS,
    TrainState,
    moving_average,
    stream,
)


class Batch(NamedTuple):
    """A training batch.

    Attributes:
      images: images as stored, ``[b h w c]``.
      labels: ``[b]``.
    """

    images: Num[Array, "b h w c"]
    labels: Int[Array, " b"]


class Carry(NamedTuple):
    """The carry of the training loop.

    Attributes:
      state: the `TrainState`.
      metrics: the metrics accumulated since the last log.
    """

    state: PyTree
    metrics: PyTree

    def items(self) -> dict[str, PyTree]:
        """The items of a checkpoint: ``weights`` for evaluation, ``training`` for the rest."""
        state = self.state
        progress = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        if state.average is not None:
            progress["variables"] = state.variables
        return {"weights": state.weights, "training": {"state": progress, "metrics": self.metrics}}

    def with_items(self, items: dict[str, PyTree]) -> "Carry":
        """A copy with the arrays of the items of a checkpoint."""
        weights, progress = items["weights"], dict(items["training"]["state"])
        average = weights if "variables" in progress else None
        state = self.state.with_variables(progress.pop("variables", weights))
        state = state.replace(**progress, average=average)
        return Carry(state, items["training"]["metrics"])


Step = Callable[[TrainState, Batch], tuple[TrainState, TrainMetrics]]
Prepare = Callable[..., Array]


def make_prepare(
    dataset: Any,
    shift: int,
    flip: bool,
    crop: int = 0,
    *,
    shift_mode: str = "zeros",
    alternate: int = 0,
    cutout: int = 0,
    erase: float = 0.0,
    trivial: bool = False,
) -> Prepare:
    """Makes the function that augments and normalizes training images.

    Section 6.2: random shifts and mirror images. Section 6.4: random crops and mirror images.

    Args:
      dataset: gives the mean and standard deviation for the normalization (`Dataset.statistics`).
      shift: largest shift in pixels; 0: none.
      flip: whether to mirror images.
      crop: side of random crops in pixels; 0: none.
      shift_mode, cutout, erase: as ``shift_mode``, ``cutout_side`` and ``erase`` in `augment`.
      alternate: number of steps per epoch, to mirror every image in every other epoch; 0: mirror at
        random.
      trivial: whether to apply `trivial_augment`.

    Returns:
      A function of the state and a batch, whose result is ``[b s s c]``.
    """

    def prepare(state: TrainState, batch: Batch) -> Float[Array, "b s s c"]:
        images, key, mirrored = batch.images, state.step_key(AUGMENT), None
        if alternate:
            run_key = stream(state.rng, AUGMENT)
            mirrored = alternately_mirrored(run_key, images, state.step // alternate)
        if crop:
            key, crop_key = jax.random.split(key)
            images = random_crop(crop_key, images, crop, crop)
        if trivial:
            images = trivial_augment(jax.random.fold_in(key, 4), images)
        return augment(
            key,
            normalize(images, *dataset.statistics(batch.labels)),
            max_shift=shift,
            flip=flip,
            shift_mode=shift_mode,
            mirrored=mirrored,
            cutout_side=cutout,
            erase=erase,
        )

    return prepare


def make_train_step(
    model: Network,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    *,
    loss_fn: LossFn = cross_entropy,
    heads: Heads | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    ema: float = 0.0,
    accumulate: int = 1,
    unroll: bool = True,
    frozen: bool = False,
) -> Step:
    """Makes the training step, a pure function ``(state, batch) -> (state, metrics)``.

    The objective is the mean of the examples' losses plus the scalars that the network sows into
    its collection ``losses``. A network with a method
    ``loss(images, labels, train) -> (outputs, losses [b])`` computes the examples' losses itself.

    Args:
      model: the network.
      optimizer: an optax transformation, which may take the loss as ``value``.
      prepare: augments and normalizes images (`make_prepare`).
      loss_fn: ``(outputs, labels) -> losses [b]``, for a network without a method `loss`.
      heads: of several data sets; the error is that in the own head of each example.
      mixup, cutmix: as in `mix`.
      ema: decay of the moving average, if the state has one.
      accumulate: number of micro-batches per step (`accumulated`).
      unroll: whether to unroll the loop over micro-batches.
      frozen: whether BatchNorm layers use their running statistics and do not change them.

    Returns:
      The step. It is jitted, so that it is traced only once, also inside of other functions.
      Tracing raises UserError if the network sows into a collection that is not in `RECORDS`, or
      the optimizer needs other arguments.
    """

    def forward(variables, images, labels, key):
        options = {
            "train": True,
            "mutable": [*(name for name in variables if name != "params"), *RECORDS],
            # Flax uses the stream `params` for streams that are not given, such as `dropout`.
            "rngs": {"gates": key, "params": key},
        }
        if has_own_loss(model):
            (outputs, losses), updates = model.apply(
                variables, images, labels, method="loss", **options
            )
            return outputs, losses, updates
        outputs, updates = model.apply(variables, images, **options)
        return outputs, by_share(partial(loss_fn, outputs), labels), updates

    def objective(params, collections, images, labels, key):
        variables = {"params": params, **collections}
        with frozen_statistics() if frozen else contextlib.nullcontext():
            outputs, losses, updates = forward(variables, images, labels, key)
        loss = losses.mean() + auxiliary(updates.pop("losses", {}))
        routing = routing_statistics(updates.pop("intermediates", {}))
        _check_structure(collections, updates)
        wrong = by_share(partial(is_wrong, outputs, heads=heads), labels)
        return loss, Pass(updates, loss, wrong, routing)

    gradient = accumulated(jax.grad(objective, has_aux=True), accumulate, unroll)

    @jax.jit
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
        images, labels = prepare(state, batch), batch.labels
        if mixup or cutmix:
            images, labels = mix(state.step_key(MIX), images, labels, mixup, cutmix)
        variables = (state.params, state.collections)
        grads, found = gradient(*variables, images, labels, state.step_key(GATES))
        changes, opt_state = _updated(optimizer, grads, state, found.loss)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            collections=found.collections,
            opt_state=opt_state,
        )
        if state.average is not None:
            new_state = new_state.replace(average=moving_average(new_state, ema))
        metrics = TrainMetrics.single_from_model_output(
            loss=found.loss, wrong=found.wrong, routing=found.routing, step=new_state.step
        )
        return new_state, metrics

    return train_step


def _check_structure(before: PyTree, after: PyTree) -> None:
    """Raises UserError if a call has changed the structure of a collection."""
    for name in before:
        if jax.tree.structure(before[name]) != jax.tree.structure(after.get(name)):
            raise UserError(
                f"the network's collection {name} changes its structure in every call, as by sow; "
                "sow into the collection intermediates"
            )


def _updated(
    optimizer: optax.GradientTransformation, grads: PyTree, state: TrainState, loss: Array
) -> tuple[PyTree, PyTree]:
    """The updates and the new state of an optimizer, which may need the loss as ``value``.

    Raises:
      UserError: it fails, for example since it needs other arguments.
    """
    update = optax.with_extra_args_support(optimizer).update
    try:
        return update(grads, state.opt_state, state.params, value=loss)
    except TypeError as error:
        raise UserError(
            f"the optimizer fails when called with gradients, state, parameters and value= (the "
            f"loss): {error}; use another one"
        ) from error


class Runner:
    """Runs many steps of one epoch per call; donates the carry.

    With ``loop``, the steps are one dispatch: a loop on the device whose length is an argument, so
    that one program serves all lengths and results do not depend on the division into dispatches.
    Without it, steps are dispatched asynchronously one by one. On CPUs loops are not used: XLA
    compiles the kernel gradient of a convolution inside a loop to code that is 50 times slower
    (its ConvCanonicalization pass only handles the entry computation; jaxlib 0.10.2).
    """

    def __init__(self, train_step: Step, source: Any, sharding: PyTree, loop: bool):
        """Jits the functions; nothing is compiled yet.

        Args:
          train_step: the step (`make_train_step`).
          source: the source of batches, a `sources.Source`.
          sharding: sharding of the carry, or a tree of shardings for its leaves.
          loop: whether to run many steps per dispatch, if the source allows it.
        """
        self.loop = loop and source.same_all_epoch
        self.source = source
        self.compiled = False

        def one(carry: Carry, given: PyTree) -> Carry:
            batch = source.batch(given, carry.state.step)
            state, metrics = train_step(carry.state, batch)
            return Carry(state, carry.metrics.merge(metrics))

        def many(carry: Carry, given: PyTree, count: Int[Array, ""]) -> Carry:
            return jax.lax.fori_loop(0, count, lambda _, c: one(c, given), carry)

        function = many if self.loop else one
        self._function = jax.jit(function, donate_argnums=0, out_shardings=sharding)

    def compile(self, carry: Carry) -> Cost | None:
        """Compiles for the shapes of a carry and returns the cost; None if compiled before."""
        if self.compiled:
            return None
        self.compiled = True
        count = (jnp.int32(0),) if self.loop else ()
        self._function, cost = compiled(self._function, carry, self.source.like(), *count)
        return cost

    def __call__(self, carry: Carry, step: int, count: int) -> Carry:
        """Runs ``count`` steps from ``step`` on, which must be in one epoch."""
        epoch, first = divmod(step, self.source.steps_per_epoch)
        batches = self.source.batches(carry.state.rng, epoch, first)
        if self.loop:
            return self._function(carry, next(batches), jnp.int32(count))
        for given in itertools.islice(batches, count):
            carry = self._function(carry, given)
        return carry
