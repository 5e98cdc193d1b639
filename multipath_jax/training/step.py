"""One training step, and many of them over data that lie on the device."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num, PyTree

from multipath_jax.data import (
    alternately_mirrored,
    augment,
    mix,
    normalize,
    random_crop,
    trivial_augment,
)
from multipath_jax.evaluation.metrics import is_wrong
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
    """Images as they are stored, and their labels."""

    images: Num[Array, "b h w c"]
    labels: Int[Array, " b"]


class Carry(NamedTuple):
    """What goes from step to step: the state, and the metrics since the last log."""

    state: PyTree
    metrics: PyTree

    def items(self) -> dict[str, PyTree]:
        """The two parts of a checkpoint: what evaluation needs, and what else training does."""
        state = self.state
        progress = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        if state.average is not None:
            progress["variables"] = state.variables
        return {"weights": state.weights, "training": {"state": progress, "metrics": self.metrics}}

    def with_items(self, items: dict[str, PyTree]) -> "Carry":
        """The carry of these two parts, of the structure of this one."""
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
    """The function ``(state, images [b h w c]) -> [b s s c]`` of the training images.

    Section 6.2: shifted by up to ``shift`` pixels each way and mirrored; normalized per channel.
    Section 6.4: a random crop of ``crop`` pixels a side (0: the whole image), and mirrored.

    Args:
      alternate: the steps of an epoch, to mirror every image in every other; 0: at random.
      shift_mode, cutout, erase: as in `augment`.
      trivial: whether to apply `trivial_augment`.
    """

    def prepare(state: TrainState, images: Num[Array, "b h w c"]) -> Float[Array, "b s s c"]:
        key, mirrored = state.step_key(AUGMENT), None
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
            normalize(images, dataset.mean, dataset.std),
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
    mixup: float = 0.0,
    cutmix: float = 0.0,
    ema: float = 0.0,
    accumulate: int = 1,
    unroll: bool = True,
) -> Step:
    """The pure function ``(state, batch) -> (state, metrics)`` of one step of training.

    It is jitted, so that it is traced once, wherever it is compiled into. What is minimized is the
    mean of the examples' losses, plus the scalars that the network records in its collection
    ``losses``. A network with a method ``loss(images, labels, train) -> (outputs, losses [b])``
    computes the examples' losses itself.

    Args:
      loss_fn: ``(outputs, labels) -> losses [b]``, for a network without such a method.
      mixup, cutmix: as in `mix`; with 0 and 0 nothing is mixed.
      ema: the decay of the state's moving average, if it keeps one.
      accumulate, unroll: the micro-batches of a step, and how they run (`accumulated`).
    """

    def forward(variables, images, labels, key):
        options = {
            "train": True,
            "mutable": [*(name for name in variables if name != "params"), *RECORDS],
            # Flax takes the stream `params` where a network asks for one that is not here.
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
        outputs, losses, updates = forward(variables, images, labels, key)
        loss = losses.mean() + auxiliary(updates.pop("losses", {}))
        routing = routing_statistics(updates.pop("intermediates", {}))
        wrong = by_share(partial(is_wrong, outputs), labels)
        return loss, Pass(updates, loss, wrong, routing)

    gradient = accumulated(jax.grad(objective, has_aux=True), accumulate, unroll)

    @jax.jit
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
        images, labels = prepare(state, batch.images), batch.labels
        if mixup or cutmix:
            images, labels = mix(state.step_key(MIX), images, labels, mixup, cutmix)
        variables = (state.params, state.collections)
        grads, found = gradient(*variables, images, labels, state.step_key(GATES))
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
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


class Runner:
    """Runs many steps of one epoch with one call, and donates the carry that it is given.

    Where the program is compiled for an accelerator, steps over data on the devices are one
    dispatch, a loop on the device whose length is an argument, so that one program serves every
    length and no result depends on where a dispatch begins. Else they are dispatched one by one,
    without waiting. On a CPU always: XLA compiles the weight gradient of a convolution inside a
    loop to naive code, 50 times slower (its pass ConvCanonicalization looks at a module's entry
    computation only; jaxlib 0.10.2).
    """

    def __init__(self, train_step: Step, source: Any, sharding: PyTree, loop: bool):
        """Nothing is compiled yet.

        Args:
          train_step: as `make_train_step` gives it.
          source: of the batches, a `sources.Source`.
          sharding: of the carry, or of each of its leaves.
          loop: whether many steps may be one dispatch.
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
        """Compiles for a carry like this, without running; None if that was done before."""
        if self.compiled:
            return None
        self.compiled = True
        count = (jnp.int32(0),) if self.loop else ()
        self._function, cost = compiled(self._function, carry, self.source.like(), *count)
        return cost

    def __call__(self, carry: Carry, step: int, count: int) -> Carry:
        """The carry after ``count`` more steps from ``step`` on, which are of one epoch."""
        epoch, first = divmod(step, self.source.steps_per_epoch)
        batches = self.source.batches(carry.state.rng, epoch, first)
        if self.loop:
            return self._function(carry, next(batches), jnp.int32(count))
        for given in itertools.islice(batches, count):
            carry = self._function(carry, given)
        return carry
