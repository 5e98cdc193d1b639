"""The routes of images through a network (Section 7.1, Fig. 8).

Layers other than routers are white boxes. At every router, the input and output tensors are red
boxes, shaded by their relative activation strengths; gates are blue circles, with edges to the
outputs, shaded and scaled by the value of the gate. Of a discrete network, only the
active tensors and the chosen gates are drawn.
"""

import dataclasses
import os
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from multipath_jax.figures import style
from multipath_jax.gates import (
    Observation,
    Outline,
    RouterRecord,
    Trained,
    observe,
    outline,
)
from multipath_jax.utils import lettering
from multipath_jax.utils.names import printable

# Inches.
MARGIN, CAPTION, LEGEND = 0.15, 0.42, 0.5
IMAGE, ANSWER = 0.95, 0.45  # widths of the first and the last column
LANE, CIRCLE, BOX = 0.62, 0.25, 0.36  # height of a path, diameter of a gate, height of a tensor
STACK, STACK_MAX = 1.0, 0.62  # width of a stack of layers in units; largest unit in inches
ROUTER = 2.7  # width of a router in units


@dataclasses.dataclass(frozen=True)
class Routes:
    """The records of a network for b images.

    Attributes:
      outline: the outline of the network.
      observation: the records for the images.
      images: images as stored, ``[b h w c]``.
      captions: a caption for each image.
    """

    outline: Outline
    observation: Observation
    images: Num[np.ndarray, "b h w c"]
    captions: Sequence[str]


def trace(
    trained: Trained,
    images: Num[np.ndarray, "b h w c"],
    names: Sequence[str],
    class_names: Sequence[str],
) -> Routes:
    """Computes the routes of images, with their names and predictions as captions.

    Args:
      trained: the network.
      images: images as `prepare` takes them, ``[b h w c]``.
      names: the names of the images.
      class_names: names in the order of the logits.
    """
    observation = observe(trained, images)
    captions = []
    for name, row in zip(names, observation.probabilities, strict=True):
        best = int(row.argmax())
        captions.append(printable(f"{name}; predicted {class_names[best]} ({row[best]:.2f})"))
    return Routes(outline(trained, images.shape[1:]), observation, images, captions)


def relative_strength(strength: Float[np.ndarray, "p b"]) -> Float[np.ndarray, "p b"]:
    """Absolute mean activations, normalized to sum to 1 over the parallel tensors of a router.

    In the paper the tensors are outputs of ReLUs, so that means are not negative; for others, such
    as the image, the absolute value is used. If all means are zero, the strengths are equal.

    Args:
      strength: mean activations of p parallel tensors, ``[p b]``.

    Returns:
      ``[p b]``.
    """
    size = np.abs(strength)
    total = size.sum(axis=0)
    return np.where(total > 0, size / np.where(total > 0, total, 1), 1 / len(size))


def draw(path: str | os.PathLike, routes: Routes) -> None:
    """Draws the routes, one row per image.

    Args:
      path: file to write.
      routes: the result of `trace`.
    """
    plan = _Plan(routes)
    figure = Figure(figsize=(plan.width, plan.height))
    axes = figure.add_axes((0, 0, 1, 1))  # its data coordinates are inches
    axes.set(xlim=(0, plan.width), ylim=(0, plan.height))
    axes.set_axis_off()
    for number in range(len(routes.images)):
        _Strip(axes, plan, routes, number).draw()
    _legend(figure, plan)
    style.save(figure, path)


class _Plan:
    """The layout of the figure, in inches."""

    def __init__(self, routes: Routes):
        routers = routes.observation.routers
        self.paths = max((max(router.gates.shape[::2]) for router in routers), default=1)
        self.circle = min(CIRCLE, 1.6 / self.paths)
        self.lane = max(LANE, (self.paths + 0.6) * self.circle * 1.06)
        self.strip = max(self.paths * self.lane, IMAGE) + CAPTION
        self.height = len(routes.images) * self.strip + LEGEND
        units = ROUTER * len(routers) + STACK * sum(map(bool, routes.outline.stacks))
        fixed = 2 * MARGIN + IMAGE + ANSWER
        self.unit = min(STACK_MAX, (style.WIDTH - fixed) / units)
        self.width = max(fixed + units * self.unit, 5.5)


class _Strip:
    """Draws the route of one image."""

    def __init__(self, axes: Axes, plan: _Plan, routes: Routes, number: int):
        self._axes, self._plan, self._routes, self._number = axes, plan, routes, number
        top = plan.height - number * plan.strip
        self._caption = top - 0.14
        self._middle = top - CAPTION - (plan.strip - CAPTION) / 2
        self._x = MARGIN + IMAGE  # the right end of what is drawn so far
        # The points from which the next lines start; None for inactive tensors.
        self._ends = [(self._x, self._middle)]

    def draw(self) -> None:
        routes = self._routes
        self._image()
        routers = routes.observation.routers
        for at, names in enumerate(routes.outline.stacks):
            if names:
                self._stack(names)
            if at < len(routers):
                self._router(at + 1, routers[at])
        self._answer()

    def _ys(self, count: int) -> list[float]:
        """The vertical centers of ``count`` parallel elements, from top to bottom."""
        return [self._middle + ((count - 1) / 2 - i) * self._plan.lane for i in range(count)]

    def _line(self, start, end, **options) -> None:
        self._axes.plot(*zip(start, end, strict=True), **{"color": style.GREY, "lw": 0.8} | options)

    def _box(self, x: float, y: float, width: float, height: float, color) -> None:
        """Draws a box with its left edge at x and its center at y."""
        corner = (x, y - height / 2)
        box = Rectangle(corner, width, height, facecolor=color, edgecolor="black", lw=0.7)
        self._axes.add_patch(box).set_zorder(3)

    def _text(self, x: float, y: float, text: str, size: float, **options) -> None:
        options = {"ha": "center", "va": "center", "zorder": 5} | options
        self._axes.text(x, y, text, fontsize=size, **lettering.as_written(text), **options)

    def _image(self) -> None:
        side = IMAGE - 0.15
        inset = self._axes.inset_axes(
            (MARGIN, self._middle - side / 2, side, side), transform=self._axes.transData
        )
        style.show(inset, self._routes.images[self._number])
        self._ends = [(MARGIN + side, self._middle)]
        caption = self._routes.captions[self._number]
        self._text(MARGIN, self._caption, caption, 9.0, ha="left", weight="bold")

    def _stack(self, names: Sequence[str]) -> None:
        unit = self._plan.unit
        left, width = self._x + 0.15 * unit, 0.7 * unit
        height = max(BOX, self._plan.lane * 0.86)
        ys = self._ys(len(self._ends))
        active = [start is not None for start in self._ends]
        for start, y in zip(self._ends, ys, strict=True):
            if start is None:
                continue
            self._line(start, (left, y))
            self._box(left, y, width, height, "white")
            label = "\n".join(_short(name) for name in names[:3])
            self._text(left + width / 2, y, label, 6.5, rotation=90, linespacing=1.1)
        self._x += STACK * unit
        self._ends = [
            (left + width, y) if there else None for y, there in zip(ys, active, strict=True)
        ]

    def _router(self, number: int, router: RouterRecord) -> None:
        """Draws the input tensors, gates, edges and output tensors of a router."""
        unit, b = self._plan.unit, self._number
        left, box = self._x + 0.1 * unit, 0.5 * unit
        gates_x, right = left + 0.95 * unit, left + 2.0 * unit
        inputs, outputs = (
            relative_strength(strength)[:, b].tolist()
            for strength in (router.input_strength, router.output_strength)
        )
        ys, out_ys = self._ys(len(inputs)), self._ys(len(outputs))
        one_to_one = len(self._ends) == len(ys)
        ends = zip(self._ends, ys, strict=True) if one_to_one else product(self._ends, ys)
        chosen = _chosen(router, b)
        for start, y in ends:
            if start is not None:
                self._line(start, (left, y))
        self._text(
            (left + right + box) / 2, self._caption - 0.2, f"router {number}", 7.5, color="#333333"
        )
        for i, y in enumerate(ys):
            if not chosen[i].any():
                continue
            self._tensor(left, y, box, inputs[i], len(inputs))
            for j, value in enumerate(router.gates[i, b]):
                if not chosen[i, j]:
                    continue
                step = self._plan.circle * 1.06
                place = (gates_x, y + ((len(outputs) - 1) / 2 - j) * step)
                self._line((left + box, y), place)
                self._gate(place, (right, out_ys[j]), float(value))
        active = chosen.any(axis=0)
        for j in np.flatnonzero(active):
            self._tensor(right, out_ys[j], box, outputs[j], len(outputs))
        self._x += ROUTER * unit
        self._ends = [
            (right + box, y) if there else None for y, there in zip(out_ys, active, strict=True)
        ]

    def _tensor(self, x: float, y: float, width: float, share: float, count: int) -> None:
        color = style.STRENGTH(min(1.0, share * count / 2))
        self._box(x, y, width, BOX, color)
        if count > 1:
            self._text(x + width / 2, y, f"{100 * share:.0f}", 6.5, color=style.ink(color))

    def _gate(self, place: tuple[float, float], target: tuple[float, float], value: float) -> None:
        color = style.GATE(value)
        edge = {"lw": 0.4 + 4 * value, "solid_capstyle": "butt", "zorder": 1 + value}
        self._line(place, target, color=color, **edge)
        circle = Circle(place, self._plan.circle / 2, facecolor=color, edgecolor="black", lw=0.5)
        self._axes.add_patch(circle).set_zorder(4)
        if self._plan.circle >= 0.22:  # smaller circles have no space for text
            number = f"{value:.2f}".removeprefix("0")
            self._text(*place, number, 6.0 if value < 0.995 else 5.2, color=style.ink(color))

    def _answer(self) -> None:
        """Draws the mean over the paths, if there are several."""
        end = (self._x + 0.2, self._middle)
        for start in filter(None, self._ends):
            self._line(start, end)
        if len(self._ends) > 1:
            circle = Circle(end, 0.17, facecolor="white", edgecolor="black", lw=0.7)
            self._axes.add_patch(circle).set_zorder(4)
            self._text(*end, "mean", 6.5)


def _chosen(router: RouterRecord, b: int) -> Bool[np.ndarray, "m n"]:
    """Whether inputs chose outputs for image b; for a soft router, always."""
    if router.chosen is None:
        return np.ones(router.gates.shape[::2], bool)
    return router.chosen[:, b]


def _short(name: str) -> str:
    words = style.readable(name)
    return words if len(words) <= 11 else words[:10] + "…"


def _legend(figure: Figure, plan: _Plan) -> None:
    """Draws the legends of the two color scales."""
    scales = (
        (style.STRENGTH, "relative strength of a tensor (%)", ("0", "equal", "twice or more")),
        (style.GATE, "gate", ("0", "0.5", "1")),
    )
    width, height = 1.5, 0.1
    for at, (colors, title, ticks) in enumerate(scales):
        left = MARGIN + 0.1 + at * 2.6
        axes = figure.add_axes(
            (left / plan.width, 0.19 / plan.height, width / plan.width, height / plan.height)
        )
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=colors, aspect="auto", extent=(0, 1, 0, 1))
        axes.set_xticks((0, 0.5, 1), ticks, fontsize=6.5)
        axes.set_yticks(())
        axes.tick_params(length=2, pad=1)
        axes.set_title(title, fontsize=7, pad=2)
