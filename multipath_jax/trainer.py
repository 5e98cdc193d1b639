"""`Trainer`: a config, and whatever of it a user brings along, trained in a workdir."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax import curves
from multipath_jax.config.keys import OWN
from multipath_jax.config.schedule import parse_duration
from multipath_jax.data import Dataset
from multipath_jax.errors import UserError
from multipath_jax.models.adapter import adapt
from multipath_jax.parallel import processes
from multipath_jax.training.loop import never, run_steps, say_what_was_found, start_run
from multipath_jax.training.losses import LossFn
from multipath_jax.training.run import Pace, Result, Run, first_carry
from multipath_jax.training.setup import Hook, Setup
from multipath_jax.utils import filesystem


class Trainer:
    """Trains a network as ``python -m multipath_jax.main`` does, whose promises hold here too.

    A run goes on from its newest checkpoint exactly where it stopped; a workdir that holds a run of
    another config or of other data is refused. What is given here takes the place of what the
    config describes: the stored config names it ``own:NAME``, and `load_run` has to be given it as
    well. Of an optimizer and a loss only the names are compared when a run goes on.

    Attributes:
      config: with the names of what was given.
    """

    def __init__(
        self,
        config: ConfigDict,
        *,
        model: Any = None,  # checked, with a sentence, by `adapt`
        dataset: Dataset | None = None,
        optimizer: optax.GradientTransformation | None = None,
        loss_fn: LossFn | None = None,
        hooks: Sequence[Hook] = (),
    ):
        """Reads the data and makes the network; nothing is computed or written yet.

        Args:
          config: a recipe, such as `multipath_jax.recipes.cifar` gives.
          model: any network that maps images ``[b h w c]`` to logits ``[b classes]``, in Linen or
            NNX, in place of ``config.model``. Linen: ``train=`` is given if its call takes it,
            random streams if it asks for them; its collections are kept. See `models.adapter`.
          dataset: such as `multipath_jax.data.from_arrays` gives, in place of ``config.dataset``'s
            name and place. Its augmentation is the config's.
          optimizer: in place of ``config.optimizer`` and ``config.schedule``.
          loss_fn: ``(outputs, labels [b]) -> losses [b]``, in place of the cross-entropy.
          hooks: each called as ``hook(step, metrics)`` whenever there are metrics, those of a line
            of ``metrics.jsonl``: a dict of numbers, such as ``train/loss`` and ``test/error``. They
            come last, when the line is written and the checkpoint of that step, if one is due,
            begun: one that raises ends the run and loses neither. Of several processes the first
            alone calls them.

        Raises:
          UserError: the config does not fit the data, the network or the devices.
        """
        self.config = _with_names(config, model, dataset, optimizer, loss_fn)
        self._parts = Setup(
            self.config,
            dataset,
            loss_fn=loss_fn,
            model=None if model is None else adapt(model),
            optimizer=optimizer,
            hooks=hooks,
        )
        self._weights: Any = None

    def fit(
        self,
        workdir: epath.PathLike,
        until: str | None = None,
        restart: bool = False,
        should_stop: Callable[[], bool] = never,
        steps_per_call: int | None = None,
    ) -> Result:
        """Trains, from the newest checkpoint of the workdir if it has one.

        Args:
          workdir: where checkpoints and logs go.
          until: a duration from the start of the run, such as ``"5 epochs"``, after which to stop
            with a checkpoint; the learning rates are those of the whole run. None: to the end.
          restart: begins afresh; what the workdir has of a run is moved into its ``earlier``.
          should_stop: asked after every call of the compiled steps; True ends the run with a
            checkpoint, from which the next call goes on.
          steps_per_call: how many steps a call takes at most; None: about a second's worth. It
            changes no result.

        Returns:
          How it ended; ``test["error"]`` is the last error in percent.

        Raises:
          UserError: the workdir holds another run, or something else that the user can mend.
          TrainingFailed: the loss is not finite.
        """
        workdir, plan = filesystem.path("workdir", workdir), self._parts.plan
        pace, end = Pace(steps_per_call), plan.total
        if until is not None:
            end = min(end, parse_duration("until", until).steps(plan.steps_per_epoch))
        ckpt.check_workdir(workdir, self.config, restart)
        say_what_was_found(self._parts)
        with start_run(self._parts, self.config, workdir, restart=restart) as run:
            overview = parameter_overview.get_parameter_overview
            run.log.say(overview(run.carry.state.params, include_stats=False))
            begun = run.step
            run_steps(run, should_stop, end, pace)
            if begun < run.step == end < plan.total:
                run.stop()
                run.evaluate()
            self._weights = run.carry.state.weights
            return ended(run)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the test split with the weights at which `fit` ended.

        Before `fit`, they are those of the weights with which a new run begins.

        Returns:
          ``loss``; ``error`` and, of more than five classes, ``top5_error``, in percent.

        Raises:
          UserError: the weights of ``config.init_from`` cannot be read, or do not fit.
        """
        weights = self._weights
        if weights is None:
            weights = first_carry(self._parts, self.config)[0].state.variables
        return self._parts.evaluate_fully(weights)


def ended(run: Run) -> Result:
    """How a run ended, with all that belongs to it written and its curves drawn."""
    result = run.result()
    drawn = curves.draw(run.workdir) if processes.is_first() else []
    return dataclasses.replace(result, paths=[*result.paths, *drawn])


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    should_stop: Callable[[], bool] = never,
    restart: bool = False,
) -> Result:
    """Trains one run by a config alone; of ``config.trials`` it is the first.

    Args:
      config: a recipe.
      workdir: where checkpoints and logs go.
      should_stop: as for `Trainer.fit`.
      restart: as for `Trainer.fit`.

    Returns:
      How it ended.

    Raises:
      UserError, TrainingFailed: as `Trainer.fit`.
    """
    # Before the data are read, which can take long.
    folder = filesystem.path("workdir", workdir)
    ckpt.check_workdir(folder, config, restart)
    ckpt.check_source(folder, config, restart)
    return Trainer(config).fit(workdir, restart=restart, should_stop=should_stop)


def _with_names(config: ConfigDict, model, dataset, optimizer, loss_fn) -> ConfigDict:
    """A copy of the config that names what is not described by it."""
    config = config.copy_and_resolve_references()
    if model is not None:
        if config.model.options:
            raise UserError(f"model.options={config.model.options} are of a network by its name")
        config.model.name = OWN + type(model).__name__
    if dataset is not None:
        for key in ("source", "holdout", "proportions"):
            if config.dataset[key]:
                raise UserError(
                    f"dataset.{key}={config.dataset[key]} is of a data set that is read; leave it "
                    "out where dataset= is given"
                )
        config.dataset.name = OWN + dataset.name
    if optimizer is not None:
        config.optimizer.name = OWN + "optimizer"
    if loss_fn is not None:
        config.loss = OWN + getattr(loss_fn, "__name__", type(loss_fn).__name__)
    return config
