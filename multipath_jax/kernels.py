"""The cross-connection of `multipath_jax.routing` as one Pallas kernel each way, for TPUs.

A compiler reads the maps of a cross-connection twice in the forward pass, once to pool and once to
mix, and maps and gradients twice in the backward pass: the gates stand between. But they stand
between the parts of one example only. These kernels hold all maps of some examples in the chip's
vector memory and read each once.

Legend of the shapes, beside that of `routing`: ``p = h w`` pixels. The last two axes of an array on
a TPU lie across its sublanes and lanes, and there the compiler puts the channels and the batch of a
convolution's maps. The kernels do the same, so that nothing is transposed on the way to a router:

    axis  maps     what is [b k] in `routing`
    0     [p c b]  [k b]                       fewer channels than lanes, and than examples
    1     [p b c]  [b k]                       as many or more

``axis``, in all that follows, is that of the features k in the latter.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.routing import GateParams

# Bytes that maps may fill of the vector memory. A TPU v5e or v6e has 128 MiB of it; a v5p has 64
# and a v4 has 16, whose compiler refuses what does not fit: set this lower there.
VECTOR_MEMORY = 96 << 20

_LANES, _SUBLANES = 128, 8
_REGISTERS = 32  # of as many float32 as lanes x sublanes: half of what a TPU has
_BLOCK = 16 << 20  # bytes of a block that leave nothing to gain by a larger one
_MARGIN = 8 << 20  # bytes beside the blocks of maps, for all that is small
_PRECISION = lax.Precision.HIGHEST  # as in `routing`


@functools.cache  # one object, as it is part of what a compiled function is known by
def pallas_passes(interpret: bool = False) -> routing.Passes:
    """Both passes of `routing.gated_cross_connect` as kernels.

    Maps that are not `supported`, and every device but a TPU, are served by `routing.XLA`. The
    passes can be differentiated once: the second time raises NotImplementedError. So does JAX on
    several TPUs at once, unless each calls them on its own part of a batch, by ``jax.shard_map``
    with ``check_vma=False``.

    Args:
      interpret: run the kernels as ordinary JAX code on any device, which is slow and for tests.
    """
    return routing.Passes(partial(_forward, interpret), partial(_backward, interpret))


def supported(xs: Sequence[Float[Array, "b *space c"]], params: GateParams) -> bool:
    """Whether the kernels take maps ``[b ... c]`` and gates of such shapes and types.

    They do not take vectors ``[b c]``, float64, what is empty, or maps of which the fewest examples
    that a TPU can move by themselves exceed `VECTOR_MEMORY`.
    """
    x, types = xs[0], (jnp.bfloat16, jnp.float32)
    if x.ndim < 3 or x.size == 0 or x.dtype not in types or params.w1.dtype not in types:
        return False
    maps = 2 * len(xs) + params.b2.shape[1]
    return _tiling(x, maps).block_bytes(maps) <= VECTOR_MEMORY


# --- The passes ----------------------------------------------------------------------------------


def _forward(interpret, xs, params):
    def by_xla(xs, params):
        ys, (_, _, *small) = routing.XLA.forward(xs, params)
        return ys, tuple(small)

    if not supported(xs, params):
        return routing.XLA.forward(xs, params)
    ys, small = _once(interpret, _forward_by_kernel, by_xla)(xs, params)
    return ys, (xs, params, *small)


def _backward(interpret, residuals, dys):
    if not supported(*residuals[:2]):
        return routing.XLA.backward(residuals, dys)
    return _once(interpret, _backward_by_kernel, routing.XLA.backward)(residuals, tuple(dys))


def _once(interpret: bool, kernel: Callable, xla: Callable) -> Callable:
    """The kernel on a TPU, XLA's form elsewhere; differentiated, an error that says what to do."""
    chosen = partial(kernel, interpret=interpret)
    if not interpret:
        chosen = partial(lax.platform_dependent, tpu=chosen, default=xla)
    function = jax.custom_jvp(chosen)

    @function.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError(
            "gated_cross_connect: Pallas kernels are differentiated once, in reverse mode; only "
            "the passes routing.XLA (passes='xla') can be differentiated again"
        )

    return function


def _forward_by_kernel(xs, params, *, interpret):
    m, c, d = params.w1.shape
    n = params.b2.shape[1]
    tiling = _tiling(xs[0], m + n)
    ys, small = tiling.call(
        _forward_kernel, xs, (), _forward_weights(params, tiling.axis), n, (c, d, n), interpret
    )
    return ys, tuple(tuple(jnp.unstack(s)) for s in small)


def _backward_by_kernel(residuals, dys, *, interpret):
    xs, params, zs, hiddens, gates = residuals
    n, d = len(dys), params.b1.shape[1]
    zs, hiddens, gates = (jnp.stack(small) for small in (zs, hiddens, gates))
    tiling = _tiling(xs[0], 2 * len(xs) + n)
    dxs, (das, dhs) = tiling.call(
        _backward_kernel,
        (*xs, *dys),
        (hiddens, gates),
        _backward_weights(params, tiling.axis),
        len(xs),
        (n, d),
        interpret,
    )
    product = partial(jnp.einsum, precision=_PRECISION)
    dw1, dw2 = product("mbc,mbd->mcd", zs, dhs), product("mbd,mbn->mdn", hiddens, das)
    gradients = GateParams(dw1, dhs.sum(1), dw2, das.sum(1))
    return dxs, jax.tree.map(lambda p, g: g.astype(p.dtype), params, gradients)


# --- The kernels: refs to one block of examples --------------------------------------------------


def _forward_kernel(axis, xs, _, params, ys, small):
    zs, hiddens, gates = small

    def add(at, sums):
        return [s + _float(x, at).sum(0) for s, x in zip(sums, xs, strict=True)]

    sums = _over_pixels(add, [jnp.zeros(x.shape[1:]) for x in xs], xs[0])
    for i, total in enumerate(sums):
        w1, b1, w2, b2 = (p[i] for p in params)
        zs[i] = total / len(xs[0])  # Eq. 1
        hiddens[i] = jnp.maximum(_product(w1, zs[i], axis) + b1, 0)
        gates[i] = _softmax(_product(w2, hiddens[i], axis) + b2, axis)  # Eqs. 2 and 3
    weights = [_columns(gates[i], axis) for i in range(len(xs))]

    def mix(at, _):
        maps = [_float(x, at) for x in xs]
        for y, column in zip(ys, zip(*weights, strict=True), strict=True):
            y[at] = _mix(maps, column).astype(y.dtype)  # Eq. 5

    _over_pixels(mix, None, xs[0])


def _backward_kernel(axis, maps, small, params, dxs, gradients):
    hiddens, gates = small
    das, dhs = gradients
    xs, dys = maps[: len(dxs)], maps[len(dxs) :]

    def add(at, sums):
        each = [_float(dy, at) for dy in dys]
        return [
            [s + (_float(x, at) * dy).sum(0) for s, dy in zip(row, each, strict=True)]
            for row, x in zip(sums, xs, strict=True)
        ]

    zeros = [[jnp.zeros(x.shape[1:]) for _ in dys] for x in xs]
    for i, row in enumerate(_over_pixels(add, zeros, xs[0])):  # dL/dg_ij, Section 5
        w1, w2 = (p[i] for p in params)
        dg = jnp.concatenate([s.sum(axis, keepdims=True) for s in row], axis)
        g = gates[i]
        das[i] = g * (dg - (g * dg).sum(axis, keepdims=True))  # Eq. 3
        dhs[i] = jnp.where(hiddens[i] > 0, _product(w2, das[i], axis), 0)  # Eq. 2
        through_gate = _product(w1, dhs[i], axis) / len(xs[0])  # Eq. 1
        dx, weights = dxs[i], _columns(g, axis)

        def mix(at, _, dx=dx, weights=weights, through_gate=through_gate):
            direct = _mix([_float(dy, at) for dy in dys], weights)
            dx[at] = (direct + through_gate).astype(dx.dtype)  # Eq. 9

        _over_pixels(mix, None, xs[0])


def _forward_weights(params: GateParams, axis: int) -> GateParams:
    """What `_product` takes of them, the biases as columns or rows beside it, in float32."""
    w1, b1, w2, b2 = (p.astype(jnp.float32) for p in params)
    b1, b2 = (jnp.expand_dims(b, 2 - axis) for b in (b1, b2))
    return GateParams(w1, b1, w2, b2) if axis else GateParams(w1.mT, b1, w2.mT, b2)


def _backward_weights(params: GateParams, axis: int) -> tuple[Array, Array]:
    w1, w2 = (p.astype(jnp.float32) for p in (params.w1, params.w2))
    return (w1.mT, w2.mT) if axis else (w1, w2)


def _over_pixels(step: Callable, carry, ref):
    """``carry = step(at, carry)`` for slices ``at`` of pixels, as many as registers hold."""
    pixels, *one = ref.shape
    most = max(1, _REGISTERS * _SUBLANES * _LANES // math.prod(_padded(*one, jnp.float32)))
    size = max(s for s in range(1, min(most, pixels) + 1) if pixels % s == 0)
    return lax.fori_loop(0, pixels // size, lambda k, c: step(pl.ds(k * size, size), c), carry)


def _float(ref, at):
    return ref[at].astype(jnp.float32)


def _product(w, v, axis):
    """A dense layer without bias: of columns (``w [k j]``) or of rows (``w [j k]``)."""
    a, b = (v, w) if axis else (w, v)
    return jnp.dot(a, b, precision=_PRECISION, preferred_element_type=jnp.float32)


def _softmax(scores, axis):
    exponentials = jnp.exp(scores - scores.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def _columns(gate, axis):
    """The weights of one gate towards each of its n outputs, ``[1 b]`` or ``[b 1]``."""
    return [lax.slice_in_dim(gate, j, j + 1, axis=axis) for j in range(gate.shape[axis])]


def _mix(maps, weights):
    terms = [w * x for w, x in zip(weights, maps, strict=True)]
    return sum(terms[1:], terms[0])


# --- How the maps are cut into blocks ------------------------------------------------------------


class _Tiling(NamedTuple):
    """Maps ``[b ... c]`` of a shape and type, in blocks of some examples."""

    axis: int
    shape: tuple[int, ...]
    dtype: jnp.dtype
    examples: int

    def block_bytes(self, maps: int) -> int:
        """What a block of so many maps fills of the vector memory."""
        return self._buffers() * maps * self._map_bytes()

    def _buffers(self) -> int:
        """Where there are several blocks, one is in use while another is on its way."""
        return 1 if self.examples == self.shape[0] else 2

    def _map_bytes(self) -> int:
        pixels, *one = self._block()
        return pixels * math.prod(_padded(*one, self.dtype)) * self.dtype.itemsize

    def _block(self) -> tuple[int, int, int]:
        pixels, c = math.prod(self.shape[1:-1]), self.shape[-1]
        return (pixels, self.examples, c) if self.axis else (pixels, c, self.examples)

    def enter(self, x):
        """``[b ... c]`` as the kernels see it."""
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return x.transpose((1, 0, 2) if self.axis else (1, 2, 0))

    def leave(self, x):
        """What `enter` did, undone."""
        return x.transpose((1, 0, 2) if self.axis else (2, 0, 1)).reshape(self.shape)

    def call(self, kernel, maps, small, weights, outputs, widths, interpret):
        """Runs ``kernel(axis, maps, small, weights, maps out, small out)``, all of them refs.

        Args:
          maps: arrays ``[b ... c]``.
          small: arrays ``[m b k]``.
          weights: arrays that every block sees whole.
          outputs: the number of maps that come out.
          widths: k of every small array that comes out, float32.

        Returns:
          A tuple of maps and a list of small arrays ``[m b k]``.
        """
        b, m = self.shape[0], len(weights[0])
        turn = (lambda s: s) if self.axis else (lambda s: s.mT)
        index = (lambda i: (0, i, 0)) if self.axis else (lambda i: (0, 0, i))
        buffers = pl.Buffered(self._buffers())
        block = pl.BlockSpec(self._block(), index, pipeline_mode=buffers)

        def small_block(k):
            return pl.BlockSpec((m, *self._turned(self.examples, k)), index)

        whole = [pl.BlockSpec(w.shape, lambda i: (0, 0, 0)) for w in weights]
        entered = [self.enter(x) for x in maps]
        moved = (len(maps) + outputs) * self._map_bytes() * pl.cdiv(b, self.examples)
        out, small_out = pl.pallas_call(
            partial(kernel, self.axis),
            grid=pl.cdiv(b, self.examples),
            in_specs=[[block] * len(maps), [small_block(s.shape[-1]) for s in small], whole],
            out_specs=[[block] * outputs, [small_block(k) for k in widths]],
            out_shape=[
                [jax.ShapeDtypeStruct(entered[0].shape, self.dtype)] * outputs,
                [jax.ShapeDtypeStruct((m, *self._turned(b, k)), jnp.float32) for k in widths],
            ],
            cost_estimate=pl.CostEstimate(
                flops=2 * len(maps) * outputs * math.prod(self.shape),
                bytes_accessed=moved,
                transcendentals=0,
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",),
                vmem_limit_bytes=self.block_bytes(len(maps) + outputs) + _MARGIN,
            ),
            interpret=interpret,
        )(entered, [turn(s) for s in small], list(weights))
        return tuple(map(self.leave, out)), [turn(s) for s in small_out]

    def _turned(self, b, k):
        return (b, k) if self.axis else (k, b)


def _tiling(x, maps: int) -> _Tiling:
    """Blocks of `_BLOCK` bytes for so many maps, or of as few examples as a TPU moves."""
    b, c = x.shape[0], x.shape[-1]
    axis = int(c >= min(b, _LANES))
    least = _SUBLANES * (4 // x.dtype.itemsize) if axis else _LANES
    tiling = _Tiling(axis, x.shape, x.dtype, min(b, least))
    times = _BLOCK // tiling.block_bytes(maps)
    return tiling._replace(examples=min(b, least * max(1, times)))


def _padded(sublanes: int, lanes: int, dtype) -> tuple[int, int]:
    """A tile of a type as it lies in the vector memory."""
    rows = _SUBLANES * max(1, 4 // jnp.dtype(dtype).itemsize)
    return pl.cdiv(sublanes, rows) * rows, pl.cdiv(lanes, _LANES) * _LANES
