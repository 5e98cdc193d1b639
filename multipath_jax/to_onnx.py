"""A trained network as an ONNX model.

jax2onnx converts it (the extra ``onnx``), and onnxruntime checks its logits. jax2onnx replaces
functions of Flax and JAX while it traces, which does not work for all networks. Here the network is
traced first, so that jax2onnx gets operations of `jax.lax` alone: loops over paths are unrolled,
and what depends only on the weights is computed once.
"""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax
from jax.extend import core
from jaxtyping import Array

from multipath_jax.data import Description
from multipath_jax.errors import Failure, UserError
from multipath_jax.runs import LoadedRun

NEEDS = ("jax2onnx", "onnxruntime")
INPUT, OUTPUT = "images", "logits"  # the names in the model
OPSET = 21  # of the operators; that of the file format which jax2onnx writes
BATCHES = (1, 3)  # sizes of the batches that are compared
# Largest difference from JAX's logits, relative to the largest of them. Both round float32 (6e-8)
# at every operation but in other orders, which adds up to some 1e-6; a wrong operation changes
# logits by percents.
TOLERANCE = 1e-4


def _stack(*xs: Array, axis: int) -> list[Array]:
    return [lax.concatenate([lax.expand_dims(x, [axis]) for x in xs], axis)]


def _unstack(x: Array, axis: int) -> list[Array]:
    return [lax.index_in_dim(x, index, axis, keepdims=False) for index in range(x.shape[axis])]


def _pad(x: Array, value: Any, *, padding_config) -> list[Array]:
    """By the function of NumPy, whose result jax2onnx can give any size of the batch."""
    if any(interior for *_, interior in padding_config):
        raise NotImplementedError("padding between values")
    return [jnp.pad(x, [widths for *widths, _ in padding_config], constant_values=value)]


def _max_pool(x: Array, *, window_dimensions, window_strides, padding, **_) -> list[Array]:
    """By the function of Flax, of which jax2onnx makes a pool with two spatial axes.

    Of the operation of JAX it makes one with four, which onnxruntime lacks. It ignores padding.
    """
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    return [nn.max_pool(x, window_shape=window_dimensions[1:-1], strides=window_strides[1:-1])]


# Operations that jax2onnx lacks, or cannot do here, by others.
_REPLACED = {"stack": _stack, "unstack": _unstack, "pad": _pad, "reduce_window_max": _max_pool}


def onnx_model(run: LoadedRun) -> bytes:
    """The network of a run, serialized as an ONNX model.

    Its input ``images`` are images as stored, ``[b h w c]`` with any b; its output ``logits`` are
    float32 ``[b classes]``. The names of the classes are in its metadata, as the JSON list
    ``class_names``.

    Args:
      run: the run, loaded with the type float32.

    Returns:
      The model; onnxruntime gives the logits of JAX for it.

    Raises:
      UserError: jax2onnx or onnxruntime is not installed, or cannot do an operation of the network.
      Failure: onnxruntime gives other logits.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'multipath_jax[onnx]'")
    # Without it, GPUs and TPUs round the operands of products to fewer bits.
    with jax.default_matmul_precision("float32"), _quiet():
        model = _convert(run)
        _check(run, model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without jax2onnx's warnings, which are about its plugins that are not used here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _convert(run: LoadedRun) -> bytes:
    import jax2onnx

    (batch,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *run.description.stored_shape), run.description.dtype)
    with jax.disable_jit():  # traces the functions that are jitted, and unrolls loops
        traced = jax.make_jaxpr(lambda x: run.forward(run.variables, run.crop(x)))(images)
    try:
        model = jax2onnx.to_onnx(
            lambda x: _evaluate(traced, x)[0],
            [images],
            model_name=run.config.model.name,
            opset=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    except Exception as error:  # many types of exceptions, with the reason in the message
        raise _refusal(run, "jax2onnx cannot convert", error) from error
    # Some of jax2onnx's shapes of intermediate values are wrong; runtimes infer them without these.
    del model.graph.value_info[:]
    names = model.metadata_props.add()
    names.key, names.value = "class_names", json.dumps(run.description.class_names)
    return model.SerializeToString()


def _evaluate(closed: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluates a jaxpr while jax2onnx traces, with calls in place of their functions.

    Args:
      closed: the jaxpr.
      *arguments: its arguments.

    Returns:
      Its results.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = _outputs(eqn, [value(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _outputs(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    if "call_jaxpr" in eqn.params:  # a function with its own derivative
        return _evaluate(eqn.params["call_jaxpr"], *inputs)
    known = _is_known(eqn, inputs)
    if eqn.primitive.name in _REPLACED and not known:
        return _REPLACED[eqn.primitive.name](*inputs, **eqn.params)
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        outputs = eqn.primitive.bind(*inputs, **eqn.params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _is_known(eqn: core.JaxprEqn, inputs: Sequence[Any]) -> bool:
    """Whether the outputs are the same for all images, and for all sizes of the batch."""
    sizes = [size for output in eqn.outvars for size in output.aval.shape]
    is_static = all(isinstance(size, int) for size in sizes)
    return is_static and not any(isinstance(x, jax.core.Tracer) for x in inputs)


def _check(run: LoadedRun, model: bytes) -> None:
    """Compares the logits of onnxruntime with those of JAX. Raises as `onnx_model`."""
    import onnxruntime

    images = _random_images(run.description)
    expected = np.asarray(run.logits(run.crop(images)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    for count in BATCHES:
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            (found,) = session.run(None, {INPUT: images[:count]})
        except Exception as error:  # onnxruntime's have no common type
            raise _refusal(run, "onnxruntime cannot run", error) from error
        difference = relative_difference(found, expected[:count])
        if not difference <= TOLERANCE:
            raise Failure(
                f"the logits of {run.config.model.name} as an ONNX model differ by "
                f"{difference:.1e} of the largest, more than {TOLERANCE:.0e}; use --format=jax"
            )


def _random_images(description: Description) -> np.ndarray:
    """Images of random pixels, as many as the largest batch that is compared."""
    rng = np.random.default_rng(0)
    shape = (max(BATCHES), *description.stored_shape)
    if description.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return np.float32(rng.normal(description.mean, description.std, shape))


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, relative to the largest expected value."""
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _refusal(run: LoadedRun, what: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0]
    reason = f"{type(error).__name__}: {reason[:300]}"
    return UserError(f"{what} {run.config.model.name} ({reason}); use --format=jax")
