"""Tests that bfloat16 is used only for computation: variables, records and logits are float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks

from multipath_jax.models import family_of


def traced(name):
    """Shapes of parameters, logits and updates, and the output types of all layers in training."""
    model = networks.create_small(name, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((4, *family_of(name).image_shape), jnp.float32)
    outputs = []

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            outputs.extend((type(context.module), leaf.dtype) for leaf in jax.tree.leaves(result))
        return result

    def run(images):
        key = jax.random.key(0)
        variables = model.init(key, images, train=False)
        with nn.intercept_methods(note):
            logits, updates = model.apply(
                variables,
                images,
                train=True,
                mutable=["batch_stats", "intermediates", "losses"],
                rngs={"gates": key},
            )
        return variables["params"], logits, updates

    return jax.eval_shape(run, images), outputs


@networks.each()
def test_what_is_kept_and_decided_upon_is_float32(name):
    (params, logits, updates), outputs = traced(name)
    for leaf in jax.tree.leaves((params, logits, updates)):
        assert leaf.dtype == jnp.float32
    norms = {dtype for kind, dtype in outputs if kind in (nn.Conv, nn.BatchNorm)}
    assert norms <= {jnp.dtype(jnp.bfloat16)}
    if name != "HyperWRN40-2":  # its convolutions are functions, with generated kernels
        assert norms
