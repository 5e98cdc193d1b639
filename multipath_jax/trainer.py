"""`Trainer`: trains a config, optionally with a custom network, data, optimizer or loss."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax import curves
from multipath_jax.config.keys import OWN, validate
from multipath_jax.config.schedule import parse_duration
from multipath_jax.data import Dataset, EncodedSplit
from multipath_jax.errors import UserError
from multipath_jax.models.adapter import adapt
from multipath_jax.parallel import processes
from multipath_jax.training.loop import never, run_steps, say_what_was_found, start_run
from multipath_jax.training.losses import LossFn
from multipath_jax.training.run import Pace, Result, Run, first_carry
from multipath_jax.training.setup import Hook, Setup
from multipath_jax.utils import cpu, filesystem


class Trainer:
    """Trains a network, as ``python -m multipath_jax.main`` does.

    A run resumes from its newest checkpoint exactly where it stopped. A workdir with a run of
    another config or other data is refused. Objects passed here replace those that the config
    describes; the stored config names them ``own:NAME``, and they must be passed to `load_run` too.
    When a run resumes, only the names of an optimizer and a loss are compared.

    Attributes:
      config: the config, with the names of the passed objects.
    """

    def __init__(
        self,
        config: ConfigDict,
        *,
        model: Any = None,  # checked, with a sentence, by `adapt`
        dataset: Dataset | None = None,
        optimizer: optax.GradientTransformation | None = None,
        loss_fn: LossFn | None = None,
        hooks: Sequence[Hook] | None = (),
    ):
        """Reads the data and makes the network; nothing is computed or written yet.

        Args:
          config: a config, such as `multipath_jax.recipes.cifar` returns.
          model: a network from images ``[b h w c]`` to logits ``[b classes]``, used instead of
            ``config.model``; a `flax.linen.Module`, whose call may take ``train=``, or a
            `flax.nnx.Module` (see `models.adapter`). Its random streams and collections are
            supported.
          dataset: a data set, such as `multipath_jax.data.from_arrays` returns, used instead of
            the one that ``config.dataset`` names, with the config's augmentation;
            ``config.dataset.name`` and ``data_dir`` then have no effect.
          optimizer: an optax transformation, used instead of ``config.optimizer`` and
            ``config.schedule``.
          loss_fn: ``(outputs, labels [b]) -> losses [b]``, used instead of the cross-entropy.
          hooks: functions ``hook(step, metrics)``, called by process 0 whenever metrics are logged,
            with the values of the line in ``metrics.jsonl``, such as ``train/loss`` and
            ``test/error``. The line is on disk and a checkpoint that is due has been started by
            then, so an exception in a hook ends the run without losing them.

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
        """Trains, from the newest checkpoint of the workdir if there is one.

        Args:
          workdir: folder for checkpoints and logs.
          until: a duration from the start of the run, such as ``"5 epochs"``, after which a
            checkpoint is saved and training stops; the learning rates are those of the whole
            training. None: train to the end.
          restart: whether to start from scratch; the files of an earlier run are moved to the
            folder ``earlier`` in the workdir.
          should_stop: called about once a second; if it returns True, a checkpoint is saved and
            training stops. The next call of `fit` resumes.
          steps_per_call: the largest number of steps between calls of ``should_stop``; None:
            about a second's worth. It does not change results.

        Returns:
          The result; ``test["error"]`` is the last error in percent.

        Raises:
          UserError: the workdir has another run or is in use, or an input is invalid.
          TrainingFailed: the loss or a weight is not finite.
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
            if end <= run.step < plan.total:
                if begun < run.step:
                    run.stop()
                run.evaluate()
            self._weights = run.carry.state.weights
            return ended(run)

    def evaluate(self) -> dict[str, float]:
        """Evaluates the weights at the end of `fit` or, before `fit`, the initial weights.

        Returns:
          The metrics: ``loss``, ``error`` in percent and, with more than five classes,
          ``top5_error`` in percent.

        Raises:
          UserError: the weights of ``config.init_from`` cannot be read, or do not fit.
        """
        weights = self._weights
        if weights is None:
            weights = first_carry(self._parts, self.config)[0].state.variables
        return self._parts.evaluate_fully(weights)


def ended(run: Run) -> Result:
    """Waits until all files of a run are written, draws its curves, and returns the result."""
    result = run.result()
    drawn = curves.draw(run.workdir) if processes.is_first() else []
    cpu.release_memory()
    return dataclasses.replace(result, paths=[*result.paths, *drawn])


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    should_stop: Callable[[], bool] = never,
    restart: bool = False,
) -> Result:
    """Trains one run of a config.

    Args:
      config: the config.
      workdir: folder for checkpoints and logs.
      should_stop: as for `Trainer.fit`.
      restart: as for `Trainer.fit`.

    Returns:
      The result.

    Raises:
      UserError, TrainingFailed: as `Trainer.fit`.
    """
    # Checked before the data are read, which can take long.
    validate(config)
    folder = filesystem.path("workdir", workdir)
    ckpt.check_workdir(folder, config, restart)
    ckpt.check_source(folder, config, restart)
    return Trainer(config).fit(workdir, restart=restart, should_stop=should_stop)


def _with_names(config: ConfigDict, model, dataset, optimizer, loss_fn) -> ConfigDict:
    """A copy of the config with the names of the passed objects."""
    config = config.copy_and_resolve_references()
    if config.trials > 1:
        raise UserError(
            f"trials={config.trials}: a Trainer trains one run; use trials=1, or the command line, "
            "or multipath_jax.trials.train_trials(config, workdir)"
        )
    if model is not None:
        if config.model.options:
            raise UserError(
                f"model.options={config.model.options} cannot be used with model=; remove them"
            )
        if config.dtype == "bfloat16":
            raise UserError(
                "dtype=bfloat16 cannot be used with model=, whose layers have their own; use "
                "dtype=auto"
            )
        config.model.name = OWN + type(model).__name__
    if dataset is not None:
        for key in ("source", "holdout", "proportions"):
            if config.dataset[key]:
                raise UserError(
                    f"dataset.{key}={config.dataset[key]} cannot be used with dataset=; remove it"
                )
        size = config.dataset.size
        if size and not (isinstance(dataset.train, EncodedSplit) and dataset.train.size == size):
            raise UserError(
                f"dataset.size={size} does not rescale the images of dataset=, of "
                f"{'x'.join(map(str, dataset.image_shape))}; use config.dataset.size = 0"
            )
        config.dataset.name = OWN + dataset.name
    if optimizer is not None:
        config.optimizer.name = OWN + "optimizer"
    if loss_fn is not None:
        config.loss = OWN + getattr(loss_fn, "__name__", type(loss_fn).__name__)
    return config
