"""Tests of ensembles, whose members are trained separately and averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import multipath_jax
from multipath_jax.layers import DenseLayer
from multipath_jax.models.ensemble import Ensemble
from multipath_jax.models.multipath import MultiPath

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
LABELS = jnp.array([0, 3, 1, 2])


def member(number, width=5):
    layers = (DenseLayer(width, name="dense_1"), DenseLayer(4, relu=False, name="dense_2"))
    return MultiPath(layers).clone(name=f"member_{number}")


SMALL = Ensemble((member(1), member(2), member(3, width=7)))


def variables_of(model, images=IMAGES):
    return {"params": jax.jit(model.init)(jax.random.key(0), images)["params"]}


def own_logits(variables, number, width=5):
    return member(number, width).apply({"params": variables["params"][f"member_{number}"]}, IMAGES)


def loss(variables, labels=LABELS):
    return SMALL.apply(variables, IMAGES, labels, method="loss")[1].mean()


def own_loss(variables, number, width=5):
    logits = own_logits(variables, number, width)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def test_the_response_is_the_mean_of_the_members_probabilities():
    variables = variables_of(SMALL)
    logits = [own_logits(variables, n, w) for n, w in ((1, 5), (2, 5), (3, 7))]
    mean = np.mean([jax.nn.softmax(one) for one in logits], axis=0)
    np.testing.assert_allclose(np.exp(SMALL.apply(variables, IMAGES)), mean, rtol=1e-5)


def test_the_loss_is_the_sum_of_the_members_own():
    variables = variables_of(SMALL)
    logits, _ = SMALL.apply(variables, IMAGES, LABELS, method="loss")
    np.testing.assert_array_equal(logits, SMALL.apply(variables, IMAGES))
    expected = own_loss(variables, 1) + own_loss(variables, 2) + own_loss(variables, 3, 7)
    np.testing.assert_allclose(loss(variables), expected, rtol=1e-5)


def test_a_member_s_gradient_never_sees_another_s_loss():
    """The gradient is that of the member alone, and bitwise independent of the other members."""
    variables = variables_of(SMALL)
    gradient = jax.grad(loss)(variables)["params"]
    alone = jax.grad(lambda v: own_loss(v, 1))(variables)["params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient["member_1"],
        alone["member_1"],
    )
    others = {key: jax.tree.map(lambda p: 3 * p + 1, variables["params"][key]) for key in gradient}
    changed = {"params": others | {"member_1": variables["params"]["member_1"]}}
    again = jax.grad(loss)(changed)["params"]
    jax.tree.map(np.testing.assert_array_equal, again["member_1"], gradient["member_1"])
    assert not np.array_equal(
        again["member_2"]["dense_1"]["dense"]["bias"],
        gradient["member_2"]["dense_1"]["dense"]["bias"],
    )


def test_members_start_apart():
    model = multipath_jax.create_model("BaseCNN-Ensemble", members=2)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    one, two = (variables["params"][f"member_{number}"] for number in (1, 2))
    kernels = [m["stage_1"]["conv_1"]["conv"]["kernel"] for m in (one, two)]
    assert not np.allclose(*kernels)
