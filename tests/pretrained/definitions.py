"""The networks of PyTorch's libraries in plain JAX, with PyTorch's names and order of axes.

Images are ``[b c h w]``, kernels ``[o i h w]`` (convolutions) and ``[o i]`` (dense layers).
"""

import jax
import jax.numpy as jnp
import numpy as np


class Net:
    """Arrays of a network by name, and layers that use them; missing ones are drawn at random."""

    def __init__(self, arrays=None, train=False, seed=0):
        self.arrays = {} if arrays is None else arrays
        self.train = train
        self.updated = {}  # running statistics after a training step
        self._rng = np.random.default_rng(seed)

    def _get(self, name, shape, mean, deviation):
        if name not in self.arrays:
            self.arrays[name] = self._draw(shape, mean, deviation)
        assert self.arrays[name].shape == shape, name
        return self.arrays[name]

    def _draw(self, shape, mean, deviation):
        values = np.float32(self._rng.normal(mean, deviation, shape))
        return np.abs(values) if mean else values

    def conv(self, name, x, features, kernel, stride=1, groups=1, bias=False):
        shape = (features, x.shape[1] // groups, kernel, kernel)
        weight = self._get(f"{name}.weight", shape, 0, np.sqrt(2 / np.prod(shape[1:])))
        pad = (kernel // 2, kernel // 2)
        y = jax.lax.conv_general_dilated(
            x, weight, (stride, stride), (pad, pad), feature_group_count=groups
        )
        return y + self._get(f"{name}.bias", (features,), 0, 0.1)[:, None, None] if bias else y

    def norm(self, name, x):
        weight, bias, mean, var = (
            self._get(f"{name}.{leaf}", (x.shape[1],), at, 0.2)
            for leaf, at in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1))
        )
        if self.train:
            count = x.size // x.shape[1]
            now, square = x.mean((0, 2, 3)), x.var((0, 2, 3))
            unbiased = square * count / (count - 1)
            self.updated[f"{name}.running_mean"] = 0.9 * mean + 0.1 * now
            self.updated[f"{name}.running_var"] = 0.9 * var + 0.1 * unbiased
            mean, var = now, square
        mean, var, weight, bias = (v[:, None, None] for v in (mean, var, weight, bias))
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    def dense(self, name, x, features):
        shape = (features, x.shape[1])
        weight = self._get(f"{name}.weight", shape, 0, np.sqrt(2 / shape[1]))
        return x @ weight.T + self._get(f"{name}.bias", (features,), 0, 0.1)


def relu(x):
    return jnp.maximum(x, 0)


def max_pool(x, size, stride, pad=0):
    return jax.lax.reduce_window(
        x,
        -np.inf,
        jax.lax.max,
        (1, 1, size, size),
        (1, 1, stride, stride),
        ((0, 0), (0, 0), (pad, pad), (pad, pad)),
    )


def average_to(x, side):
    """PyTorch's ``AdaptiveAvgPool2d``."""
    height, width = x.shape[2:]
    rows = []
    for i in range(side):
        top, bottom = i * height // side, -(-(i + 1) * height // side)
        row = []
        for j in range(side):
            left, right = j * width // side, -(-(j + 1) * width // side)
            row.append(x[:, :, top:bottom, left:right].mean((2, 3)))
        rows.append(jnp.stack(row, -1))
    return jnp.stack(rows, -2)


def resnet(net, x, blocks, bottleneck=False, widen=1, groups=1, classes=10, base=64):
    """torchvision's ``ResNet(Bottleneck or BasicBlock, blocks, groups, width_per_group)``."""
    x = max_pool(relu(net.norm("bn1", net.conv("conv1", x, base, 7, 2))), 3, 2, 1)
    for stack, count in enumerate(blocks, start=1):
        planes = base * 2 ** (stack - 1)
        for block in range(count):
            name, stride = f"layer{stack}.{block}", 2 if stack > 1 and block == 0 else 1
            outputs = 4 * planes if bottleneck else planes
            if bottleneck:
                y = relu(net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, planes * widen, 1)))
                y = net.conv(f"{name}.conv2", y, planes * widen, 3, stride, groups)
                y = relu(net.norm(f"{name}.bn2", y))
                y = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", y, outputs, 1))
            else:
                y = relu(net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, planes, 3, stride)))
                y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, planes, 3))
            if stride != 1 or x.shape[1] != outputs:
                x = net.conv(f"{name}.downsample.0", x, outputs, 1, stride)
                x = net.norm(f"{name}.downsample.1", x)
            x = relu(x + y)
    return net.dense("fc", x.mean((2, 3)), classes)


def cifar_resnet(net, x, depth=20, option="A", classes=10):
    """He et al.'s ResNet for CIFAR, as it is usually implemented in PyTorch."""
    x = relu(net.norm("bn1", net.conv("conv1", x, 16, 3)))
    for stack, planes in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            name, stride = f"layer{stack}.{block}", 2 if stack > 1 and block == 0 else 1
            y = relu(net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, planes, 3, stride)))
            y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, planes, 3))
            if stride != 1 and option == "A":
                quarter = planes // 4
                x = jnp.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
            elif stride != 1:
                x = net.conv(f"{name}.shortcut.0", x, planes, 1, stride)
                x = net.norm(f"{name}.shortcut.1", x)
            x = relu(x + y)
    return net.dense("linear", x.mean((2, 3)), classes)


def resnet8(net, x):
    return cifar_resnet(net, x, depth=8)


def vgg_bn(net, x, convs, widths=(64, 128, 256, 512, 512), dense=4096, classes=10):
    """torchvision's ``vgg16_bn`` and similar networks, without dropout."""
    place = 0
    for count, width in zip(convs, widths, strict=True):
        for _ in range(count):
            x = net.conv(f"features.{place}", x, width, 3, bias=True)
            x = relu(net.norm(f"features.{place + 1}", x))
            place += 3
        x = max_pool(x, 2, 2)
        place += 1
    x = average_to(x, 7)
    x = relu(net.dense("classifier.0", x.reshape(len(x), -1), dense))
    x = relu(net.dense("classifier.3", x, dense))
    return net.dense("classifier.6", x, classes)


def drawn(define, x):
    """Random arrays for a network, which is traced but not computed."""
    net = Net()
    jax.eval_shape(lambda: define(net, x))
    return net.arrays


def run(define, arrays, x):
    """In float64: logits, training logits, and the running statistics after the training step."""

    @jax.jit
    def both(arrays, x):
        training = Net(arrays, train=True)
        return define(Net(arrays), x), define(training, x), training.updated

    wide = {key: np.float64(value) for key, value in arrays.items()}
    return jax.device_get(both(wide, np.float64(x)))
