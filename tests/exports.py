"""Runs of any network, for tests of exports."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from weights import random_like


def of_model(run, model, shape):
    """A copy of a run with another network, random weights, and another shape of the images."""
    image = jnp.zeros((1, *shape))
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    statistics = {key: np.full(shape[-1], 0.5, np.float32) for key in ("mean", "std")}
    shapes_of_images = {"stored_shape": shape, "image_shape": shape}
    described = dataclasses.replace(run.description, **shapes_of_images, **statistics)
    variables = random_like(shapes, seed=0)
    return dataclasses.replace(run, model=model, variables=variables, description=described)
