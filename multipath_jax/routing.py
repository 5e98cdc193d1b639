"""The equations of *End-to-end Data-Dependent Routing in Multi-Path Neural Networks*.

Pure functions over arrays, in the order of the paper: the gate (Eqs. 1-3), cross-prediction
(Eq. 4, Algorithm 1), cross-connection (Eqs. 5-6, Algorithm 2), and the backward pass through a
cross-connection (Section 5, Eqs. 7-9) as a ``jax.custom_vjp``. Beyond the paper, discrete routing
(D1-D9).

Legend of the shapes, here and in the rest of the package:

    m  input paths        b    batch              k  features of the simplified layer
    n  output paths       h w  height and width   d  hidden width of a gate
                          c    channels

``xs`` is m arrays of one shape ``[b, ..., c]``: a list, a tuple, or one array with a leading axis
m. The outputs are n arrays in the same form. Gates, and the sums over paths, are computed in
float32 (float64 for float64 inputs) whatever the type of ``xs``; outputs have the type of ``xs``.

All functions work inside `jax.shard_map`, and on a mesh with explicit axes over which the batch is
sharded.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree

Paths = Sequence[Float[Array, "..."]] | Float[Array, "..."]

# Forces full float32 matrix multiplications in the gates: by default, TPUs and recent GPUs round
# the operands to fewer bits. The cost is negligible.
_PRECISION = lax.Precision.HIGHEST


class GateParams(NamedTuple):
    """Parameters of one gate (Eq. 2), or, with a leading axis m on every array, of m gates.

    Attributes:
      w1, b1: the dense layer before the ReLU, ``[c d]`` and ``[d]``.
      w2, b2: the dense layer after it, ``[d n]`` and ``[n]``.
    """

    w1: Float[Array, "*m c d"]
    b1: Float[Array, "*m d"]
    w2: Float[Array, "*m d n"]
    b2: Float[Array, "*m n"]


# --- Section 3: the gate, Eqs. 1-3 ---------------------------------------------------------------


def global_average_pool(x: Float[Array, "b *space c"]) -> Float[Array, "b c"]:
    """Eq. 1: the channel descriptor z of a tensor, ``[b h w c] -> [b c]``.

    Args:
      x: ``[b ... c]`` with any number of spatial axes; ``[b c]`` is returned as it is.

    Returns:
      The mean over the spatial axes, in float32 or float64.

    Raises:
      ValueError: there are no channels or no pixels.
    """
    _check_filled("global_average_pool", x.shape)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=gate_dtype(x))


def relevance(z: Float[Array, "b c"], params: GateParams) -> Float[Array, "b n"]:
    """Eq. 2: relevance scores ``A = W2 ReLU(W1 z + b1) + b2``, ``[b c] -> [b n]``.

    Args:
      z: channel descriptor, ``[b c]``.
      params: parameters of one gate.

    Returns:
      The scores of the n outputs, ``[b n]``, in float32 or float64.

    Raises:
      ValueError: ``params`` are not those of one gate for c channels.
    """
    _check_params("relevance", params, (z.shape[-1],))
    return _scores(_hidden(z, params), params)


def gate(x: Float[Array, "b *space c"], params: GateParams) -> Float[Array, "b n"]:
    """Eqs. 1-3: the probabilities of routing x to each output, ``[b ... c] -> [b n]``.

    Args:
      x: ``[b ... c]``.
      params: parameters of one gate.

    Returns:
      The gates, ``[b n]``, in float32 or float64; rows sum to 1.

    Raises:
      ValueError: ``params`` are not those of one gate for c channels, or x has no channels or
        pixels.
    """
    _check_params("gate", params, (x.shape[-1],))
    return jax.nn.softmax(_scores(_hidden(global_average_pool(x), params), params))


# --- Section 3: cross-prediction, Eq. 4 ----------------------------------------------------------


def cross_predict(us: Sequence[Paths] | Float[Array, "..."], gates: Paths) -> Paths:
    """Eq. 4: ``Y_j = ReLU(sum_i g_ij U_ij)``, the construction of outputs in Algorithm 1.

    Args:
      us: ``us[i][j]`` is the prediction ``[b ... c]`` of output j from input i: m sequences of n
        arrays, or one array ``[m n b ... c]``.
      gates: ``gates[i]`` is ``[b n]``: m arrays, or one array ``[m b n]``.

    Returns:
      n arrays ``[b ... c]``; one stacked array if ``us`` is one array.

    Raises:
      ValueError: the predictions differ in shape, or the gates have other shapes.
    """
    return jax.tree.map(jax.nn.relu, mix_predictions(us, gates))


def mix_predictions(us: Sequence[Paths] | Float[Array, "..."], gates: Paths) -> Paths:
    """`cross_predict` without the ReLU: ``sum_i g_ij U_ij`` (Eq. 4).

    Arguments, results and errors are those of `cross_predict`.
    """
    rows = [_unstack(row) for row in (us if isinstance(us, Sequence) else jnp.unstack(us))]
    predictions = [u for row in rows for u in row]
    _check_paths("cross_predict", predictions)
    gates = _unstack(gates)
    _check_gates("cross_predict", gates, len(rows), predictions[0].shape[0])
    if {len(row) for row in rows} != {gates[0].shape[1]}:
        raise ValueError(
            f"cross_predict: gates of shape {gates[0].shape} do not weigh the outputs that the "
            f"inputs predict: {[len(row) for row in rows]}"
        )
    ys = [
        _mix(u, column)
        for u, column in zip(
            zip(*rows, strict=True), zip(*map(_columns, gates), strict=True), strict=True
        )
    ]
    return _like(us, ys)


# --- Section 4: cross-connection, Eqs. 5 and 6 ---------------------------------------------------


def cross_connect(xs: Paths, gates: Paths) -> Paths:
    """Eq. 5 (in matrix form Eq. 6): ``Y_j = sum_i g_ij X_i``, as in Algorithm 2.

    Args:
      xs: m arrays ``[b ... c]``.
      gates: ``gates[i]`` is ``[b n]``: m arrays, or one array ``[m b n]``.

    Returns:
      n arrays ``[b ... c]`` in the type of ``xs``.

    Raises:
      ValueError: the inputs differ in shape, or the gates have other shapes.
    """
    paths, gates = _unstack(xs), _unstack(gates)
    _check_paths("cross_connect", paths)
    _check_gates("cross_connect", gates, len(paths), paths[0].shape[0])
    return _like(xs, _connect(paths, gates))


# --- Section 5: the simplified layer and its backward pass, Eqs. 7-9 -----------------------------


def linear_cross_connect(xs: Paths, ws: Float[Array, "m n k"]) -> Paths:
    """The simplified cross-connection of Section 5: Eq. 7, then Eqs. 3 and 5.

    The relevance scores are ``A_i = W^i X_i`` (Eq. 7). The backward pass is Eqs. 8 and 9 as a
    ``jax.custom_vjp``, whose residuals are ``xs``, ``ws`` and the gates. Higher derivatives are
    possible in reverse mode and forward over reverse; JAX does not support forward mode alone for a
    ``custom_vjp``.

    Args:
      xs: m arrays ``[b k]``.
      ws: weights of the gates, ``[m n k]``.

    Returns:
      n arrays ``[b k]``.

    Raises:
      ValueError: the inputs differ in shape or are not ``[b k]``, or ``ws`` has another shape.
      TypeError: the function is differentiated in forward mode.
    """
    paths = _unstack(xs)
    _check_paths("linear_cross_connect", paths)
    fits = paths[0].ndim == 2 and ws.ndim == 3 and ws.shape[::2] == (len(paths), paths[0].shape[1])
    if not fits or ws.shape[1] < 1:
        raise ValueError(
            f"linear_cross_connect: {len(paths)} inputs of shape {paths[0].shape} need [b k] "
            f"inputs and weights [m n k], got weights of shape {ws.shape}"
        )
    with _explain_forward_mode("`cross_connect(xs, gates)` with the softmax of Eq. 7"):
        return _like(xs, _linear_cross_connect(*_varying_alike((paths, ws))))


@jax.custom_vjp
def _linear_cross_connect(xs, ws):
    return _linear_forward(xs, ws)[0]


def _linear_forward(xs, ws):
    scores = [_einsum("bk,nk->bn", x, w) for x, w in zip(xs, ws, strict=True)]  # Eq. 7
    gates = tuple(jax.nn.softmax(a) for a in scores)  # Eq. 3
    return _connect(xs, gates), (xs, ws, gates)


def _linear_backward(residuals, dys):
    xs, ws, gates = residuals
    dscores = [_softmax_vjp(g, dg) for g, dg in zip(gates, _gate_gradients(xs, dys), strict=True)]
    dws = jnp.stack(
        [_sum_over_batch("bn,bk->nk", da, x, w) for da, x, w in zip(dscores, xs, ws, strict=True)]
    )  # Eq. 8
    through_gates = [_einsum("bn,nk->bk", da, w) for da, w in zip(dscores, ws, strict=True)]
    return _input_gradients(xs, gates, dys, through_gates), dws.astype(ws.dtype)  # Eq. 9


_linear_cross_connect.defvjp(_linear_forward, _linear_backward)


# --- The whole layer: the derivation of Section 5, extended to Eqs. 1 and 2 ----------------------


class Route(NamedTuple):
    """The outputs of a cross-connection, and its scores and gates.

    Attributes:
      outputs: n arrays ``[b ... c]`` in the form and type of the inputs (Eq. 5).
      relevance: the scores before the softmax, ``[m b n]`` (Eq. 2).
      gates: the probabilities used as weights, ``[m b n]`` (Eq. 3).
    """

    outputs: Paths
    relevance: Float[Array, "m b n"]
    gates: Float[Array, "m b n"]


def gated_cross_connect(xs: Paths, params: GateParams) -> Paths:
    """The whole cross-connection: Eqs. 1-3 on every input, then Eq. 5 (Algorithm 2).

    Args:
      xs: m arrays ``[b ... c]``.
      params: m gates, every array with a leading axis m.

    Returns:
      n arrays ``[b ... c]`` in the type of ``xs``.

    Raises:
      ValueError: the inputs differ in shape, or ``params`` are not m gates for c channels.
      TypeError: the function is differentiated in forward mode.
    """
    return route(xs, params).outputs


def route(xs: Paths, params: GateParams) -> Route:
    """`gated_cross_connect` that also returns the scores and the gates.

    The backward pass is that of Section 5 with the pooling and the two dense layers in place of
    Eq. 7, as a ``jax.custom_vjp``; its residuals are ``xs``, ``params`` and arrays of shape
    ``[b n]``, ``[b d]`` and ``[b c]``. It includes gradients with respect to the returned scores
    and gates, such as those of a loss on gates. For higher derivatives, see `linear_cross_connect`.

    Args:
      xs: m arrays ``[b ... c]``.
      params: m gates, every array with a leading axis m.

    Returns:
      The outputs, the scores and the gates.

    Raises:
      ValueError: the inputs differ in shape, or ``params`` are not m gates for c channels.
      TypeError: the function is differentiated in forward mode.
    """
    paths = _unstack(xs)
    _check_paths("gated_cross_connect", paths)
    _check_params("gated_cross_connect", params, (len(paths), paths[0].shape[-1]))
    with _explain_forward_mode("`cross_connect(xs, gates)` with `gate` for each input"):
        ys, scores, gates = _route(*_varying_alike((paths, params)))
    return Route(_like(xs, ys), jnp.stack(scores), jnp.stack(gates))


@jax.custom_vjp
def _route(xs, params):
    return _route_forward(xs, params)[0]


def _route_forward(xs, params):
    zs = tuple(global_average_pool(x) for x in xs)
    hiddens = tuple(_hidden(z, p) for z, p in zip(zs, _each(params), strict=True))
    scores = tuple(_scores(r, p) for r, p in zip(hiddens, _each(params), strict=True))
    gates = tuple(jax.nn.softmax(a) for a in scores)
    return (_connect(xs, gates), scores, gates), (xs, params, zs, hiddens, gates)


def _route_backward(residuals, cotangents):
    xs, params, zs, hiddens, gates = residuals
    dys, dscores, dgates = cotangents
    gradients, through_gates = [], []
    for x, p, z, r, g, dg, own_da, own_dg in zip(
        xs,
        _each(params),
        zs,
        hiddens,
        gates,
        _gate_gradients(xs, dys),
        dscores,
        dgates,
        strict=True,
    ):
        da = own_da + _softmax_vjp(g, dg + own_dg)  # Eq. 3
        dh = jnp.where(r > 0, _einsum("bn,dn->bd", da, p.w2), 0)  # Eq. 2, before the ReLU
        dw1 = _sum_over_batch("bc,bd->cd", z, dh, p.w1)
        dw2 = _sum_over_batch("bd,bn->dn", r, da, p.w2)
        gradients.append(GateParams(dw1, dh.sum(0), dw2, da.sum(0)))
        pixels = math.prod(x.shape[1:-1])
        through_gates.append(_einsum("bd,cd->bc", dh, p.w1) / pixels)  # Eq. 1
    dparams = jax.tree.map(lambda p, *d: jnp.stack(d).astype(p.dtype), params, *gradients)
    return _input_gradients(xs, gates, dys, through_gates), dparams


_route.defvjp(_route_forward, _route_backward)


# --- Steps of both backward passes ---------------------------------------------------------------


def _gate_gradients(xs, dys):
    """``dL/dG_i [b n]`` for every input i: ``dL/dg_ij = sum_k dL/dY_j * X_i`` (Section 5)."""

    def gradient(x, dy):
        dtype = gate_dtype(x)
        axes = tuple(range(1, x.ndim))
        return jnp.sum(dy.astype(dtype) * x.astype(dtype), axis=axes)

    return [jnp.stack([gradient(x, dy) for dy in dys], axis=1) for x in xs]


def _softmax_vjp(g, dg):
    """``dL/dA = J^T dL/dG`` for the Jacobian J of the softmax (Section 5), ``[b n] -> [b n]``."""
    dg = dg.astype(g.dtype)
    return g * (dg - jnp.sum(g * dg, axis=-1, keepdims=True))


def _input_gradients(xs, gates, dys, through_gates):
    """Eq. 9: the direct gradient ``sum_j g_ij dL/dY_j`` plus the gradient through the gate."""
    return tuple(
        _mix(dys, _columns(g), plus=dz, dtype=x.dtype)
        for x, g, dz in zip(xs, gates, through_gates, strict=True)
    )


# --- Beyond the paper: discrete routing, D1-D9 ---------------------------------------------------
#
# Input i chooses k of its n outputs. With k = n, gates and gradients are bitwise the paper's.

Kept = Literal["renormalized", "factor"]


def choose(scores: Float[Array, "*m b n"], k: int) -> Bool[Array, "*m b n"]:
    """D1: ``C_i = top-k_j (A_ij + beta_j + e_ij)``, the k outputs that every input chooses.

    Of equal scores, that with the lower index is chosen.

    Args:
      scores: the scores A of Eq. 2 plus the bias beta of D8, and Gumbel noise e if choices are
        sampled, ``[m b n]``.
      k: number of outputs to choose, from 1 to n.

    Returns:
      Whether input i chose output j, ``[m b n]``.

    Raises:
      ValueError: k is not between 1 and n.
    """
    n = scores.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"choose: needs 1 <= k <= n, got k = {k} of n = {n} outputs")
    own, other = jnp.expand_dims(scores, -1), jnp.expand_dims(scores, -2)
    earlier = jnp.expand_dims(jnp.tril(jnp.ones((n, n), bool), -1), range(scores.ndim - 1))
    ahead = (other > own) | ((other == own) & earlier)
    return jnp.sum(ahead, axis=-1) < k


def remaining_gates(
    relevance: Float[Array, "*m b n"], chosen: Bool[Array, "*m b n"], kept: Kept = "renormalized"
) -> Float[Array, "*m b n"]:
    """D2: the gates of the chosen outputs; those of the others are zero.

    ``"renormalized"``: ``h_ij = g_ij / sum_(l in C_i) g_il``, the softmax (Eq. 3) over the chosen
    outputs only. ``"factor"``: ``h_ij = g_ij``; with k = 1, where the renormalized gate is the
    constant 1, this gate depends on the input and has a gradient.

    Args:
      relevance: the scores A of Eq. 2, ``[m b n]``.
      chosen: the result of `choose`, with at least one output per input, ``[m b n]``.
      kept: ``"renormalized"`` or ``"factor"``.

    Returns:
      The gates h, ``[m b n]``.

    Raises:
      ValueError: ``kept`` has another value.
    """
    if kept == "renormalized":
        return jax.nn.softmax(jnp.where(chosen, relevance, -jnp.inf))
    if kept == "factor":
        return jnp.where(chosen, jax.nn.softmax(relevance), 0)
    raise ValueError(f"remaining_gates: kept must be 'renormalized' or 'factor', got {kept!r}")


def of_active(gates: Float[Array, "*m b n"], active: Bool[Array, "*m b"]) -> Float[Array, "..."]:
    """D3: ``a_i h_ij``, the gates of the active inputs; those of inactive inputs are zero.

    `cross_connect` with these gates is ``Y_j = sum_i a_i h_ij X_i``.

    Args:
      gates: the gates h of D2, ``[m b n]``.
      active: whether input i is active for an image (``a_i = 1``), ``[m b]``.

    Returns:
      ``[m b n]``.
    """
    return jnp.where(jnp.expand_dims(active, -1), gates, 0)


def active_outputs(chosen: Bool[Array, "m b n"], active: Bool[Array, "m b"]) -> Bool[Array, "n b"]:
    """D4: output j is active for an image if an active input chose it.

    Args:
      chosen: whether input i chose output j, ``[m b n]``.
      active: whether input i is active, ``[m b]``.

    Returns:
      Whether output j is active, ``[n b]``.
    """
    return jnp.moveaxis(jnp.any(chosen & jnp.expand_dims(active, -1), axis=0), -1, 0)


def mean_of_active(xs: Float[Array, "m b *rest"], active: Bool[Array, "m b"]) -> Array:
    """D5: ``sum_i a_i X_i / sum_i a_i``, the mean over the active paths, ``[m b ...] -> [b ...]``.

    It replaces the mean over all paths at the end of the networks of Sections 3 and 4.

    Args:
      xs: the outputs of m paths, ``[m b ...]``.
      active: whether path i is active for an image, ``[m b]``.

    Returns:
      ``[b ...]``, in float32 or float64.
    """
    total, count = total_of_active(xs, active)
    return total / count


def total_of_active(
    xs: Float[Array, "m b *rest"], active: Bool[Array, "m b"]
) -> tuple[Float[Array, "b *rest"], Float[Array, "b *ones"]]:
    """The numerator and the denominator of D5, each a sum over the paths.

    Args:
      xs: as in `mean_of_active`.
      active: as in `mean_of_active`.

    Returns:
      The sum of the active paths, ``[b ...]``, and their number, ``[b 1 ...]``.
    """
    dtype = gate_dtype(xs)
    active = jnp.expand_dims(active, range(2, xs.ndim))
    total = jnp.sum(jnp.where(active, xs.astype(dtype), 0), axis=0)
    return total, jnp.sum(active, axis=0, dtype=dtype)


def active_moments(
    x: Float[Array, "b *space c"], active: Bool[Array, "*d b"], axis_name: str | None = None
) -> tuple[Float[Array, "*d c"], Float[Array, "*d c"], Float[Array, "*d"]]:
    """D6: mean and variance of every channel over the pixels of the active images.

    Args:
      x: the tensor of one path, ``[b ... c]``.
      active: whether the path is active for an image, ``[b]``; or several such masks, ``[d b]``.
      axis_name: the axis of `jax.shard_map` over which the batch is sharded, if any.

    Returns:
      The mean ``[c]``, the variance ``[c]``, and the number of active images, for each mask.
      Without active images, mean and variance are zero.
    """
    dtype, pixels = gate_dtype(x), tuple(range(1, x.ndim - 1))
    x, where = x.astype(dtype), jnp.expand_dims(active, -1)
    each = jnp.sum(x, pixels), jnp.sum(x**2, pixels), jnp.ones((len(x), 1), dtype)
    each = (jnp.expand_dims(one, range(active.ndim - 1)) for one in each)
    sums = tuple(jnp.sum(jnp.where(where, one, 0), axis=-2) for one in each)
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    total, squares, images = sums
    count = jnp.maximum(images, 1) * math.prod(x.shape[1:-1])
    mean = total / count
    return mean, jnp.maximum(squares / count - mean**2, 0), jnp.squeeze(images, -1)


def straight_through(hard: Float[Array, "*b"], soft: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """D7: the straight-through estimator: ``hard`` in the forward pass, the gradient of ``soft``.

    For gates, ``hard`` is h of D2, and ``soft`` is ``softmax((A + e) / T)`` over all n outputs.
    With e = 0 this is the straight-through estimator; with Gumbel noise e, which is then also in
    the scores of `choose`, the Gumbel straight-through estimator.

    Args:
      hard: the values.
      soft: a differentiable approximation, of the same shape.

    Returns:
      ``hard``, with the gradient of ``soft``.
    """
    return lax.stop_gradient(hard) + (soft - lax.stop_gradient(soft))


def load(
    chosen: Bool[Array, "m b n"],
    active: Bool[Array, "m b"],
    axis_names: str | tuple[str, ...] = (),
) -> Float[Array, " n"]:
    """D8: the load ``L_j``, the share of output j in all choices of active inputs.

    Args:
      chosen: the result of `choose`, ``[m b n]``.
      active: whether an input is active for an image, ``[m b]``.
      axis_names: the axes of `jax.shard_map` over which images or inputs are sharded, if any.

    Returns:
      The loads ``[n]``, which sum to 1; zeros without active inputs.
    """
    counts = jnp.sum(chosen & jnp.expand_dims(active, -1), axis=(0, 1), dtype=jnp.float32)
    counts = lax.psum(counts, axis_names) if axis_names else counts
    return counts / jnp.maximum(jnp.sum(counts), 1)


def moved_against(
    load: Float[Array, " n"], bias: Float[Array, " n"], rate: float
) -> Float[Array, " n"]:
    """D8: the bias after one step, ``beta_j + u sign(1/n - L_j)``.

    Args:
      load: the result of `load`, ``[n]``.
      bias: the bias beta, ``[n]``.
      rate: the step size u.

    Returns:
      The new bias, ``[n]``.
    """
    return bias + rate * jnp.sign(1 / len(load) - load)


def entropies(
    gates: Float[Array, "m b n"], active: Bool[Array, "m b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """D9: ``H(mean_i,b g_i)`` and ``mean_i,b H(g_i)`` over active inputs, both divided by log n.

    The first is 1 if the mean gates are uniform, the second 0 if every gate is 0 or 1. They are
    used in the loss ``u_1 (1 - H(mean g)) + u_2 mean H(g)``.

    Args:
      gates: the gates of Eq. 3, over all n outputs, ``[m b n]``.
      active: whether an input is active for an image, ``[m b]``.

    Returns:
      The entropy of the mean, and the mean entropy.
    """
    weight = jnp.expand_dims(active.astype(gates.dtype), -1)
    count = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.sum(weight * gates, axis=(0, 1)) / count
    each = jnp.sum(weight * jax.scipy.special.entr(gates)) / count
    most = math.log(gates.shape[-1]) or 1.0
    return jnp.sum(jax.scipy.special.entr(mean)) / most, each / most


# --- Helpers -------------------------------------------------------------------------------------


def gate_dtype(*arrays: Array) -> jnp.dtype:
    """The type of gates and sums over paths: float64 if an array is float64, else float32."""
    # Not jnp.promote_types, which raises for different types under strict promotion.
    return jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32)


def _einsum(subscripts, a, b, out_sharding=None):
    """An einsum in the type of the gates, at full precision."""
    dtype = gate_dtype(a, b)
    if a.dtype != b.dtype:
        a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(
        subscripts,
        a,
        b,
        precision=_PRECISION,
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )


def _sum_over_batch(subscripts, a, b, weights):
    """A gradient with respect to weights, with the sharding of the weights."""
    where = jax.typeof(weights).sharding
    if where.mesh.empty:  # weights without a mesh, batch with one
        where = NamedSharding(jax.typeof(a).sharding.mesh, PartitionSpec())
    return _einsum(subscripts, a, b, where)


def _dense(x, w, b):
    dtype = gate_dtype(x, w, b)
    return _einsum("bc,cd->bd", x, w).astype(dtype) + jnp.expand_dims(b, 0).astype(dtype)


def _hidden(z, params):
    """The first dense layer of Eq. 2 and its ReLU, ``[b c] -> [b d]``."""
    return jax.nn.relu(_dense(z, params.w1, params.b1))


def _scores(hidden, params):
    """The second dense layer of Eq. 2, ``[b d] -> [b n]``."""
    return _dense(hidden, params.w2, params.b2)


def _varying_alike(arrays: PyTree) -> PyTree:
    """Inside `jax.shard_map`, casts arrays to vary over the union of their varying axes.

    The gradients of a custom backward pass must vary over the same axes as its inputs. JAX's own
    functions cast their operands, and the transpose of the cast sums gradients over the added axes;
    for a custom function the cast must be explicit.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)]
    every = frozenset().union(*varying)

    def cast(x):
        missing = every - jax.typeof(x).manual_axis_type.varying
        return lax.pcast(x, tuple(missing), to="varying")

    return jax.tree.map(cast, arrays)


@contextlib.contextmanager
def _explain_forward_mode(instead: str) -> Iterator[None]:
    """Replaces JAX's error about forward mode of a ``custom_vjp`` by one that says what to use."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "forward-mode differentiation (jax.jvp, jax.jacfwd) is not possible through a "
            f"custom_vjp: use custom_vjp=False in a layer, or {instead} of `routing`"
        ) from error


def _each(params: GateParams) -> list[GateParams]:
    return [GateParams(*arrays) for arrays in zip(*map(jnp.unstack, params), strict=True)]


def _mix(xs, weights, plus=None, dtype=None):
    """``sum_i weights[i] xs[i] + plus`` with weights ``[b 1]`` and plus ``[b c]``."""
    accumulate = gate_dtype(xs[0], weights[0])

    def over_space(v):  # [b _] -> [b 1 ... _]
        return jnp.expand_dims(v.astype(accumulate), tuple(range(1, xs[0].ndim - 1)))

    terms = [over_space(w) * x.astype(accumulate) for x, w in zip(xs, weights, strict=True)]
    if plus is not None:
        terms.append(over_space(plus))
    return sum(terms[1:], terms[0]).astype(dtype or xs[0].dtype)


def _columns(g):
    """Splits a gate ``[b n]`` into n arrays ``[b 1]``, one per output."""
    return jnp.split(g, g.shape[1], axis=1)


def _connect(xs, gates):
    """Eq. 5: one column of Eq. 6's matrix for every output."""
    return tuple(_mix(xs, column) for column in zip(*map(_columns, gates), strict=True))


def _unstack(xs) -> tuple:
    return tuple(xs) if isinstance(xs, Sequence) else tuple(jnp.unstack(xs))


def _like(xs, ys: Sequence):
    """Returns ``ys`` in the form of ``xs``: a tuple, a list, or one stacked array."""
    if isinstance(xs, Sequence):
        return tuple(ys) if isinstance(xs, tuple) else list(ys)
    return jnp.stack(ys)


def _check_paths(name: str, xs: Sequence) -> None:
    shapes = [x.shape for x in xs]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise ValueError(f"{name}: needs one or more inputs of one shape [b ... c], got {shapes}")
    dtypes = sorted({str(x.dtype) for x in xs})
    if len(dtypes) > 1 or not jnp.issubdtype(xs[0].dtype, jnp.floating):
        raise ValueError(f"{name}: needs inputs of one floating type, got {', '.join(dtypes)}")
    _check_filled(name, shapes[0])


def _check_filled(name: str, shape: tuple) -> None:
    """Raises ValueError for empty feature maps, whose mean is NaN; the batch may be empty."""
    if 0 in shape[1:]:
        raise ValueError(f"{name}: needs inputs [b ... c] with channels and pixels, got {shape}")


def _check_gates(name: str, gates: Sequence, m: int, b: Any) -> None:
    """Raises ValueError for gates of other shapes; b, the batch size, may be symbolic (export)."""
    shapes = [g.shape for g in gates]
    fits = len(shapes) == m and len(set(shapes)) == 1 and len(shapes[0]) == 2
    if not fits or shapes[0][0] != b or shapes[0][1] < 1:
        raise ValueError(f"{name}: {m} inputs of batch {b} need {m} gates [b n], got {shapes}")


def _check_params(name: str, params: GateParams, inputs: tuple[int, ...]) -> None:
    """Raises ValueError for other shapes; ``inputs`` is (c,) for one gate, (m, c) for m gates."""
    *m, c = inputs
    d, n = params.b1.shape[-1:], params.b2.shape[-1:]
    shapes = [p.shape for p in params]
    if shapes != [(*m, c, *d), (*m, *d), (*m, *d, *n), (*m, *n)] or 0 in (c, *d, *n):
        axes = "[m c d], [m d], [m d n], [m n]" if m else "[c d], [d], [d n], [n]"
        raise ValueError(
            f"{name}: {f'{m[0]} inputs' if m else 'an input'} of {c} channels needs w1, b1, w2, b2 "
            f"of shapes {axes}, none of them empty, got {', '.join(map(str, shapes))}"
        )
