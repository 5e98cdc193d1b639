"""The equations of *End-to-end Data-Dependent Routing in Multi-Path Neural Networks*.

Pure functions over arrays, in the order of the paper: the gate (Eqs. 1-3), cross-prediction
(Eq. 4, Algorithm 1), cross-connection (Eqs. 5-6, Algorithm 2), and the backward pass through a
cross-connection (Section 5, Eqs. 7-9) as a ``jax.custom_vjp``. Beyond the paper, discrete routing
(D1-D9).

Legend of the shapes, here and in the rest of the package:

    m  input paths        b    batch              k  features of the simplified layer
    n  output paths       h w  height and width   d  hidden width of a gate
                          c    channels

``xs`` is m arrays of one shape ``[b, ..., c]``, as a list, as a tuple, or stacked along a leading
axis m; what comes out is n arrays likewise. Gates are computed in float32 (float64 for float64
inputs) whatever the type of the maps; mixtures are summed in that type too and returned in the type
of the maps.

All of it works inside `jax.shard_map`, and on a mesh of explicit axes over which the batch is
split.
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

# The gates' dense layers are a millionth of a network's work, and a softmax deserves the float32
# it was promised: TPUs and recent GPUs would otherwise round the operands to fewer bits.
_PRECISION = lax.Precision.HIGHEST


class GateParams(NamedTuple):
    """Weights of one gate; with a leading axis m on every array, those of m gates.

    ``w1 [c d]``, ``b1 [d]``: the dense layer before the ReLU of Eq. 2; ``w2 [d n]``, ``b2 [n]``:
    the one after it.
    """

    w1: Float[Array, "*m c d"]
    b1: Float[Array, "*m d"]
    w2: Float[Array, "*m d n"]
    b2: Float[Array, "*m n"]


# --- Section 3: the gate, Eqs. 1-3 ---------------------------------------------------------------


def global_average_pool(x: Float[Array, "b *space c"]) -> Float[Array, "b c"]:
    """Eq. 1: the channel descriptor z of a tensor, ``[b h w c] -> [b c]``, at least float32.

    ``[b c]`` passes through. Any number of spatial axes between b and c is averaged.

    Raises:
      ValueError: there is no channel or no pixel.
    """
    _check_filled("global_average_pool", x.shape)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=gate_dtype(x))


def relevance(z: Float[Array, "b c"], params: GateParams) -> Float[Array, "b n"]:
    """Eq. 2: relevance scores ``A = W2 ReLU(W1 z + b1) + b2``, ``[b c] -> [b n]``.

    Raises:
      ValueError: ``params`` are not those of one gate for c channels.
    """
    _check_params("relevance", params, (z.shape[-1],))
    return _scores(_hidden(z, params), params)


def gate(x: Float[Array, "b *space c"], params: GateParams) -> Float[Array, "b n"]:
    """Eqs. 1-3: the probabilities of x being routed to each output, ``[b ... c] -> [b n]``.

    Rows sum to 1. Raises as `relevance` does.
    """
    _check_params("gate", params, (x.shape[-1],))
    return jax.nn.softmax(_scores(_hidden(global_average_pool(x), params), params))


# --- Section 3: cross-prediction, Eq. 4 ----------------------------------------------------------


def cross_predict(us: Sequence[Paths] | Float[Array, "..."], gates: Paths) -> Paths:
    """Eq. 4: ``Y_j = ReLU(sum_i g_ij U_ij)``, the construction of outputs in Algorithm 1.

    Args:
      us: ``us[i][j]`` is the prediction ``[b ... c]`` that input i makes of output j: m sequences
        of n arrays, or one array ``[m n b ... c]``.
      gates: ``gates[i]`` is ``[b n]``: m arrays, or one array ``[m b n]``.

    Returns:
      n arrays ``[b ... c]``, stacked where ``us`` is one array.

    Raises:
      ValueError: the predictions differ in shape, or the gates do not fit them.
    """
    return jax.tree.map(jax.nn.relu, mix_predictions(us, gates))


def mix_predictions(us: Sequence[Paths] | Float[Array, "..."], gates: Paths) -> Paths:
    """The sums of Eq. 4, which `cross_predict` rectifies; everything else is as there."""
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
      ValueError: the inputs differ in shape, or the gates do not fit them.
    """
    paths, gates = _unstack(xs), _unstack(gates)
    _check_paths("cross_connect", paths)
    _check_gates("cross_connect", gates, len(paths), paths[0].shape[0])
    return _like(xs, _connect(paths, gates))


# --- Section 5: the simplified layer and its backward pass, Eqs. 7-9 -----------------------------


def linear_cross_connect(xs: Paths, ws: Float[Array, "m n k"]) -> Paths:
    """The simplified cross-connection of Section 5: Eq. 7, then Eqs. 3 and 5.

    The relevance scores are ``A_i = W^i X_i`` (Eq. 7). The backward pass is Eqs. 8 and 9 as a
    ``jax.custom_vjp``; it keeps ``xs``, ``ws`` and the gates, and nothing else. It can be
    differentiated again in reverse (or forward over reverse). JAX has no forward mode of a
    ``custom_vjp`` alone.

    Args:
      xs: m arrays ``[b k]``.
      ws: the gates' weights, ``[m n k]``.

    Returns:
      n arrays ``[b k]``.

    Raises:
      ValueError: the inputs differ in shape or are not ``[b k]``, or ``ws`` does not fit them.
      TypeError: it is differentiated in forward mode.
    """
    paths = _unstack(xs)
    _check_paths("linear_cross_connect", paths)
    fits = paths[0].ndim == 2 and ws.ndim == 3 and ws.shape[::2] == (len(paths), paths[0].shape[1])
    if not fits or ws.shape[1] < 1:
        raise ValueError(
            f"linear_cross_connect: {len(paths)} inputs of shape {paths[0].shape} need [b k] "
            f"inputs and weights [m n k], got weights of shape {ws.shape}"
        )
    with _reverse_mode_alone("`cross_connect(xs, gates)` with the softmax of Eq. 7"):
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


# --- The whole layer, with the same derivation carried through Eqs. 1 and 2 ----------------------


class Route(NamedTuple):
    """What a cross-connection gives and what it computed on its way.

    Attributes:
      outputs: n arrays ``[b ... c]`` in the form and type of the inputs.
      relevance: Eq. 2, the scores before the softmax.
      gates: Eq. 3, the probabilities by which the outputs were mixed.
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
      TypeError: as `route` does.
    """
    return route(xs, params).outputs


def route(xs: Paths, params: GateParams) -> Route:
    """`gated_cross_connect` with its gates.

    The backward pass is the derivation of Section 5 with the pooling and the two dense layers in
    place of Eq. 7, as a ``jax.custom_vjp``; it keeps ``xs``, ``params`` and arrays of ``[b n]``,
    ``[b d]`` and ``[b c]``. Gradients that arrive at the gates and their scores, such as those of a
    loss on them, go the same way. Differentiating again: as in `linear_cross_connect`.

    Args:
      xs: m arrays ``[b ... c]``.
      params: m gates, every array with a leading axis m.

    Returns:
      The outputs, the scores and the gates.

    Raises:
      ValueError: the inputs differ in shape, or ``params`` are not m gates for c channels.
      TypeError: it is differentiated in forward mode.
    """
    paths = _unstack(xs)
    _check_paths("gated_cross_connect", paths)
    _check_params("gated_cross_connect", params, (len(paths), paths[0].shape[-1]))
    with _reverse_mode_alone("`cross_connect(xs, gates)` with `gate` for each input"):
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
        dh = jnp.where(r > 0, _einsum("bn,dn->bd", da, p.w2), 0)  # Eq. 2, to before the ReLU
        dw1 = _sum_over_batch("bc,bd->cd", z, dh, p.w1)
        dw2 = _sum_over_batch("bd,bn->dn", r, da, p.w2)
        gradients.append(GateParams(dw1, dh.sum(0), dw2, da.sum(0)))
        pixels = math.prod(x.shape[1:-1])
        through_gates.append(_einsum("bd,cd->bc", dh, p.w1) / pixels)  # Eq. 1
    dparams = jax.tree.map(lambda p, *d: jnp.stack(d).astype(p.dtype), params, *gradients)
    return _input_gradients(xs, gates, dys, through_gates), dparams


_route.defvjp(_route_forward, _route_backward)


# --- The steps that both backward passes share ---------------------------------------------------


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
    """Eq. 9: the direct flow ``sum_j g_ij dL/dY_j``, and what came back through the gate."""
    return tuple(
        _mix(dys, _columns(g), plus=dz, dtype=x.dtype)
        for x, g, dz in zip(xs, gates, through_gates, strict=True)
    )


# --- Beyond the paper: discrete routing, D1-D9 ---------------------------------------------------
#
# Input i chooses k of its n outputs. With k = n every function here gives the paper's gates to the
# bit, forward and backward.

Kept = Literal["renormalized", "factor"]


def choose(scores: Float[Array, "*m b n"], k: int) -> Bool[Array, "*m b n"]:
    """D1: ``C_i = top-k_j (A_ij + beta_j + e_ij)``, the k outputs that every input chooses.

    Of equal scores the one of the lower index is chosen.

    Args:
      scores: the relevance A of Eq. 2, plus the bias beta of D8 and, in training by sampling,
        Gumbel noise e.
      k: the outputs that are chosen, at most n.

    Returns:
      Whether input i chose output j; k of every n.

    Raises:
      ValueError: k is not within 1 and n.
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

    ``"renormalized"``: ``h_ij = g_ij / sum_(l in C_i) g_il``, which is the softmax (Eq. 3) over the
    chosen outputs alone. ``"factor"``: ``h_ij = g_ij``, so that the only gate of k = 1, which
    would else be the constant 1, depends on the input and learns from the loss.

    Args:
      relevance: the scores A of Eq. 2.
      chosen: as `choose` gives it, at least one of every n.
      kept: the name of the form.

    Raises:
      ValueError: ``kept`` is neither.
    """
    if kept == "renormalized":
        return jax.nn.softmax(jnp.where(chosen, relevance, -jnp.inf))
    if kept == "factor":
        return jnp.where(chosen, jax.nn.softmax(relevance), 0)
    raise ValueError(f"remaining_gates: kept is 'renormalized' or 'factor', not {kept!r}")


def of_active(gates: Float[Array, "*m b n"], active: Bool[Array, "*m b"]) -> Float[Array, "..."]:
    """D3: ``a_i h_ij``: no edge leaves an input that is inactive (``a_i = 0``) for an image.

    `cross_connect` by these gates is ``Y_j = sum_i a_i h_ij X_i``.
    """
    return jnp.where(jnp.expand_dims(active, -1), gates, 0)


def active_outputs(chosen: Bool[Array, "m b n"], active: Bool[Array, "m b"]) -> Bool[Array, "n b"]:
    """D4: output j is active for an image if an active input chose it."""
    return jnp.moveaxis(jnp.any(chosen & jnp.expand_dims(active, -1), axis=0), -1, 0)


def mean_of_active(xs: Float[Array, "m b *rest"], active: Bool[Array, "m b"]) -> Array:
    """D5: ``sum_i a_i X_i / sum_i a_i``, the mean over the active paths, ``[m b ...] -> [b ...]``.

    It replaces the mean over all paths that ends the networks of Sections 3 and 4.
    """
    total, count = total_of_active(xs, active)
    return total / count


def total_of_active(
    xs: Float[Array, "m b *rest"], active: Bool[Array, "m b"]
) -> tuple[Float[Array, "b *rest"], Float[Array, "b *ones"]]:
    """Numerator and denominator of D5, which devices with other paths add up."""
    dtype = gate_dtype(xs)
    active = jnp.expand_dims(active, range(2, xs.ndim))
    total = jnp.sum(jnp.where(active, xs.astype(dtype), 0), axis=0)
    return total, jnp.sum(active, axis=0, dtype=dtype)


def active_moments(
    x: Float[Array, "b *space c"], active: Bool[Array, " b"], axis_name: str | None = None
) -> tuple[Float[Array, " c"], Float[Array, " c"], Float[Array, ""]]:
    """D6: mean and variance of every channel over the pixels of the active images.

    Args:
      x: what one path computed.
      active: for which images the path is active.
      axis_name: of `jax.shard_map`, if the batch is spread over devices.

    Returns:
      Mean, variance, and the number of active images. Without any, mean and variance are zero.
    """
    dtype = gate_dtype(x)
    where, axes = jnp.expand_dims(active, range(1, x.ndim)), tuple(range(x.ndim - 1))
    values = jnp.where(where, x.astype(dtype), 0)
    sums = jnp.sum(values, axes), jnp.sum(values**2, axes), jnp.sum(active, dtype=dtype)
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    total, squares, images = sums
    count = jnp.maximum(images, 1) * math.prod(x.shape[1:-1])
    mean = total / count
    return mean, jnp.maximum(squares / count - mean**2, 0), images


def straight_through(hard: Float[Array, "*b"], soft: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """D7: ``hard``, with the gradient of ``soft``.

    For gates: forward h of D2; backward as if they were ``softmax((A + e) / T)`` over all n
    outputs. Without noise e this is the straight-through estimator, with Gumbel noise, by which
    `choose` then samples, the Gumbel straight-through estimator. The temperature T decides how far
    the gradient spreads beyond the highest score.
    """
    return lax.stop_gradient(hard) + (soft - lax.stop_gradient(soft))


def load(
    chosen: Bool[Array, "m b n"],
    active: Bool[Array, "m b"],
    axis_names: str | tuple[str, ...] = (),
) -> Float[Array, " n"]:
    """D8: ``L_j``, the share of all choices of active inputs that fell on output j; sums to 1.

    The balance bias of D1 moves against it, ``beta_j <- beta_j + u sign(1/n - L_j)``, without a
    gradient (`moved_against`).

    Args:
      chosen: as `choose` gives it.
      active: which inputs are, for which images.
      axis_names: of `jax.shard_map`, where images or inputs are spread over devices.
    """
    counts = jnp.sum(chosen & jnp.expand_dims(active, -1), axis=(0, 1), dtype=jnp.float32)
    counts = lax.psum(counts, axis_names) if axis_names else counts
    return counts / jnp.maximum(jnp.sum(counts), 1)


def moved_against(
    load: Float[Array, " n"], bias: Float[Array, " n"], rate: float
) -> Float[Array, " n"]:
    """D8: the bias after one step of size ``rate`` (u)."""
    return bias + rate * jnp.sign(1 / len(load) - load)


def entropies(
    gates: Float[Array, "m b n"], active: Bool[Array, "m b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """D9: ``H(mean_i,b g_i)`` and ``mean_i,b H(g_i)`` over active inputs, both as parts of log n.

    The first is 1 where the outputs are equally wanted on the whole; the second 0 where every
    single gate is decided. Terms of a loss: ``u_1 (1 - H(mean g)) + u_2 mean H(g)``.

    Args:
      gates: of Eq. 3, over all n outputs.
      active: which inputs are, for which images.
    """
    weight = jnp.expand_dims(active.astype(gates.dtype), -1)
    count = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.sum(weight * gates, axis=(0, 1)) / count
    each = jnp.sum(weight * jax.scipy.special.entr(gates)) / count
    most = math.log(gates.shape[-1]) or 1.0
    return jnp.sum(jax.scipy.special.entr(mean)) / most, each / most


# --- Small parts ---------------------------------------------------------------------------------


def gate_dtype(*arrays: Array) -> jnp.dtype:
    """The type of gates and sums over such arrays: float32, or float64 where one of them is."""
    # Not jnp.promote_types, which refuses two types under strict promotion.
    return jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32)


def _einsum(subscripts, a, b, out_sharding=None):
    """A product in the gates' type: what is less than float32 is widened."""
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
    """The gradient of weights, which lies as they do wherever parts of the batch lie."""
    where = jax.typeof(weights).sharding
    if where.mesh.empty:  # weights that lie on no mesh, beside a batch that does
        where = NamedSharding(jax.typeof(a).sharding.mesh, PartitionSpec())
    return _einsum(subscripts, a, b, where)


def _dense(x, w, b):
    dtype = gate_dtype(x, w, b)
    return _einsum("bc,cd->bd", x, w).astype(dtype) + jnp.expand_dims(b, 0).astype(dtype)


def _hidden(z, params):
    """What enters the second dense layer of Eq. 2, ``[b c] -> [b d]``."""
    return jax.nn.relu(_dense(z, params.w1, params.b1))


def _scores(hidden, params):
    """The second dense layer of Eq. 2, ``[b d] -> [b n]``."""
    return _dense(hidden, params.w2, params.b2)


def _varying_alike(arrays: PyTree) -> PyTree:
    """Inside `jax.shard_map`: arrays that vary over all the axes that any of them varies over.

    A backward pass of our own must give gradients that vary as its inputs do. JAX's functions cast
    their operands, and the transpose of the cast sums the gradient over the axes it added; here
    the cast stands before the function.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)]
    every = frozenset().union(*varying)

    def cast(x):
        missing = every - jax.typeof(x).manual_axis_type.varying
        return lax.pcast(x, tuple(missing), to="varying")

    return jax.tree.map(cast, arrays)


@contextlib.contextmanager
def _reverse_mode_alone(instead: str) -> Iterator[None]:
    """Says what to use where JAX refuses the forward mode of a ``custom_vjp``."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "there is no forward-mode differentiation (jax.jvp, jax.jacfwd) of a backward pass "
            f"written out: use custom_vjp=False in a layer, or {instead} of `routing`"
        ) from error


def _each(params: GateParams) -> list[GateParams]:
    return [GateParams(*arrays) for arrays in zip(*map(jnp.unstack, params), strict=True)]


def _mix(xs, weights, plus=None, dtype=None):
    """``sum_i weights[i] xs[i] + plus``, weights ``[b 1]`` and plus ``[b c]``, in one pass."""
    accumulate = gate_dtype(xs[0], weights[0])

    def over_space(v):  # [b _] against [b ... c]
        return jnp.expand_dims(v.astype(accumulate), tuple(range(1, xs[0].ndim - 1)))

    terms = [over_space(w) * x.astype(accumulate) for x, w in zip(xs, weights, strict=True)]
    if plus is not None:
        terms.append(over_space(plus))
    return sum(terms[1:], terms[0]).astype(dtype or xs[0].dtype)


def _columns(g):
    """The weights ``[b 1]`` of one gate towards each of its n outputs."""
    return jnp.split(g, g.shape[1], axis=1)


def _connect(xs, gates):
    """Eq. 5: one column of Eq. 6's matrix for every output."""
    return tuple(_mix(xs, column) for column in zip(*map(_columns, gates), strict=True))


def _unstack(xs) -> tuple:
    return tuple(xs) if isinstance(xs, Sequence) else tuple(jnp.unstack(xs))


def _like(xs, ys: Sequence):
    """The outputs in the form of the inputs: a tuple, a list, or one stacked array."""
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
    """A batch may be empty, a feature map may not: its mean would be a NaN."""
    if 0 in shape[1:]:
        raise ValueError(f"{name}: needs inputs [b ... c] with channels and pixels, got {shape}")


def _check_gates(name: str, gates: Sequence, m: int, b: Any) -> None:
    """``b``: the size of the batch; a symbol while a network is exported for any size."""
    shapes = [g.shape for g in gates]
    fits = len(shapes) == m and len(set(shapes)) == 1 and len(shapes[0]) == 2
    if not fits or shapes[0][0] != b or shapes[0][1] < 1:
        raise ValueError(f"{name}: {m} inputs of batch {b} need {m} gates [b n], got {shapes}")


def _check_params(name: str, params: GateParams, inputs: tuple[int, ...]) -> None:
    """``inputs``: c for one gate, or m and c for those of m inputs."""
    *m, c = inputs
    d, n = params.b1.shape[-1:], params.b2.shape[-1:]
    shapes = [p.shape for p in params]
    if shapes != [(*m, c, *d), (*m, *d), (*m, *d, *n), (*m, *n)] or 0 in (c, *d, *n):
        axes = "[m c d], [m d], [m d n], [m n]" if m else "[c d], [d], [d n], [n]"
        raise ValueError(
            f"{name}: {f'{m[0]} inputs' if m else 'an input'} of {c} channels needs w1, b1, w2, b2 "
            f"of shapes {axes}, none of them empty, got {', '.join(map(str, shapes))}"
        )
