"""The networks as a PyTorch user would write them, as a baseline.

Lists of modules, a loop over paths, one gate per input; NCHW images in channels_last format,
autocast for bfloat16, fused SGD. Needs PyTorch: the extra ``[peers]``.
"""

import contextlib
import re
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossConnect(nn.Module):
    """Algorithm 2: every output is the sum of all inputs, weighted by gates."""

    def __init__(self, inputs: int, outputs: int, channels: int, hidden: int = 16):
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
            for _ in range(inputs)
        )
        self.outputs = outputs

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        gates = []
        for x, gate in zip(xs, self.gates, strict=True):
            g = gate(x.mean((2, 3)) if x.dim() == 4 else x).softmax(-1).to(x.dtype)
            gates.append(g[:, :, None, None, None] if x.dim() == 4 else g[:, :, None])
        return [
            sum(g[:, j] * x for g, x in zip(gates, xs, strict=True)) for j in range(self.outputs)
        ]


class Paths(nn.ModuleList):
    """Applies one module to each parallel tensor."""

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [path(x) for path, x in zip(self, xs, strict=True)]


class MultiPath(nn.Module):
    """A sequence of layers on lists of parallel tensors; the outputs are averaged."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        xs = [images]
        for layer in self.layers:
            xs = layer(xs)
        return torch.stack(xs).mean(0)


class ConvStage(nn.Sequential):
    """Two 3x3 convolutions with BatchNorm and ReLU, and an optional 2x2 max-pooling."""

    def __init__(self, inputs: int, features: int, pool: bool):
        layers = []
        for channels in (inputs, features):
            layers += [
                nn.Conv2d(channels, features, 3, padding=1),
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


def base_cnn(paths: int, num_classes: int) -> MultiPath:
    """BaseCNN-X-CC (Table 1, Fig. 4) for 32x32 images."""
    layers, inputs, channels = [], 1, 3
    for features, pool in ((32, True), (64, True), (128, False)):
        layers.append(CrossConnect(inputs, paths, channels))
        layers.append(Paths(ConvStage(channels, features, pool) for _ in range(paths)))
        inputs, channels = paths, features

    def dense(inputs, outputs):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()
        )

    return MultiPath(
        [
            *layers,
            CrossConnect(paths, paths, 128),
            Paths(dense(128 * 8 * 8, 32) for _ in range(paths)),
            CrossConnect(paths, paths, 32),
            Paths(dense(32, 32) for _ in range(paths)),
            Paths(nn.Linear(32, num_classes) for _ in range(paths)),
        ]
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a projection if the shape changes."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, with a projection if the shape changes."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        width = features // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x), inplace=True)


# The ImageNet networks: block, features of each stack, number of blocks in each stack.
IMAGENET = {
    18: (BasicBlock, (64, 128, 256, 512), (2, 2, 2, 2)),
    50: (Bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3)),
}


def resnet(depth: int, paths: int, num_classes: int) -> MultiPath:
    """ResNet18-X-CC and ResNet50-X-CC for ImageNet, or ResNet{6k+2}-X-CC for CIFAR."""
    if depth in IMAGENET:
        block, widths, blocks = IMAGENET[depth]
        channels, kernel, stride, ending = 64, 7, 2, [nn.MaxPool2d(3, 2, padding=1)]
    else:
        block, widths, blocks = BasicBlock, (16, 32, 64), ((depth - 2) // 6,) * 3
        channels, kernel, stride, ending = 16, 3, 1, []
    stem = nn.Sequential(
        nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        *ending,
    )
    layers = [Paths([stem]), CrossConnect(1, paths, channels)]
    for number, (features, count) in enumerate(zip(widths, blocks, strict=True)):
        stride = 1 if number == 0 else 2
        stacks = (_stack(block, channels, features, count, stride) for _ in range(paths))
        layers.append(Paths(stacks))
        layers.append(CrossConnect(paths, paths, features))
        channels = features
    head = (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        for _ in range(paths)
    )
    return MultiPath([*layers, Paths(head)])


def _stack(
    block: type[nn.Module], channels: int, features: int, blocks: int, stride: int
) -> nn.Sequential:
    rest = (block(features, features, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(channels, features, stride), *rest)


def create(name: str, num_classes: int) -> MultiPath:
    """Creates ``BaseCNN-X-CC`` or ``ResNetD-X-CC``. Raises ValueError for other names."""
    if match := re.fullmatch(r"BaseCNN-(\d+)-CC", name):
        return base_cnn(int(match[1]), num_classes)
    if match := re.fullmatch(r"ResNet(\d+)-(\d+)-CC", name):
        return resnet(int(match[1]), int(match[2]), num_classes)
    raise ValueError(f"the PyTorch peer has no {name}")


class TrainingStep:
    """Training steps on random data on the device; callable as a `timing.Contestant`."""

    def __init__(
        self,
        network: str,
        batch: int,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        device: str,
        bfloat16: bool,
        compiled: bool,
    ):
        torch.backends.cudnn.benchmark = True
        model = create(network, num_classes).to(device, memory_format=torch.channels_last)
        self._model = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
        )
        height, width, channels = image_shape
        images = torch.randn(batch, channels, height, width, device=device)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.randint(num_classes, (batch,), device=device)
        self._device = device
        self._bfloat16 = bfloat16

    def __call__(self, calls: int) -> float:
        """Runs steps and returns the seconds of all of them."""
        start = time.perf_counter()
        for _ in range(calls):
            self._step()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        autocast = torch.autocast(self._device, torch.bfloat16)
        with autocast if self._bfloat16 else contextlib.nullcontext():
            loss = F.cross_entropy(self._model(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
