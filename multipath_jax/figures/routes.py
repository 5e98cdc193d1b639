"""Section 7.1, Fig. 8: the routes of images through a network, drawn from left to right.

Stacks of ordinary layers are plain boxes. At every router the input and output tensors are boxes
in reds, by their relative activation strengths; gates are circles in blues, and the edges from
them to the outputs are as blue and as thick as the gates are open. Of a discrete network only what
is active for the image is drawn.
"""

import dataclasses
import os
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, UInt8
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
from multipath_jax.utils.names import shown

# Inches.
MARGIN, CAPTION, LEGEND = 0.15, 0.42, 0.5
IMAGE, ANSWER = 0.95, 0.45  # widths of the first and the last column
LANE, CIRCLE, BOX = 0.62, 0.25, 0.36  # height of a path, diameter of a gate, height of a tensor
STACK, STACK_MAX = 1.0, 0.62  # a stack's width, in units and at most in inches
ROUTER = 2.7  # a router's width in the same units


@dataclasses.dataclass(frozen=True)
class Routes:
    """Images on their way through a network.

    Attributes:
      outline: of the network, whose routers are those of the observation.
      observation: of the images.
      images: as they are stored.
      captions: one for each.
    """

    outline: Outline
    observation: Observation
    images: UInt8[np.ndarray, "b h w c"]
    captions: Sequence[str]


def trace(
    trained: Trained,
    images: UInt8[np.ndarray, "b h w c"],
    names: Sequence[str],
    class_names: Sequence[str],
) -> Routes:
    """The routes of some images; captions are their names and what the network takes them for."""
    observation = observe(trained, images)
    captions = []
    for name, row in zip(names, observation.probabilities, strict=True):
        best = int(row.argmax())
        captions.append(shown(f"{name}; taken for {class_names[best]} ({row[best]:.2f})"))
    return Routes(outline(trained, images.shape[1:]), observation, images, captions)


def relative_strength(strength: Float[np.ndarray, "p b"]) -> Float[np.ndarray, "p b"]:
    """Each tensor's mean activation, normalized by the sum over the router's parallel tensors.

    Of the size alone: behind a ReLU, as in the paper, there are no negative means; those of an
    image or of a layer without ReLU have none that stand for less than nothing. Where all are zero,
    no tensor is stronger than another.
    """
    size = np.abs(strength)
    total = size.sum(axis=0)
    return np.where(total > 0, size / np.where(total > 0, total, 1), 1 / len(size))


def draw(path: str | os.PathLike, routes: Routes) -> None:
    """Draws the routes of the images beneath each other."""
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
    """Where things lie, in inches."""

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
    """One image on its way."""

    def __init__(self, axes: Axes, plan: _Plan, routes: Routes, number: int):
        self._axes, self._plan, self._routes, self._number = axes, plan, routes, number
        top = plan.height - number * plan.strip
        self._caption = top - 0.14
        self._middle = top - CAPTION - (plan.strip - CAPTION) / 2
        self._x = MARGIN + IMAGE  # how far it is drawn
        self._ends = [(self._x, self._middle)]  # of the tensors there; None of inactive ones

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
        """The middles of so many parallel things, the first on top."""
        return [self._middle + ((count - 1) / 2 - i) * self._plan.lane for i in range(count)]

    def _line(self, start, end, **options) -> None:
        self._axes.plot(*zip(start, end, strict=True), **{"color": style.GREY, "lw": 0.8} | options)

    def _box(self, x: float, y: float, width: float, height: float, colour) -> None:
        """A box from x on, around y."""
        corner = (x, y - height / 2)
        box = Rectangle(corner, width, height, facecolor=colour, edgecolor="black", lw=0.7)
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
        """Input tensors, their gates, the edges, output tensors."""
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
        colour = style.STRENGTH(min(1.0, share * count / 2))
        self._box(x, y, width, BOX, colour)
        if count > 1:
            self._text(x + width / 2, y, f"{100 * share:.0f}", 6.5, color=style.ink(colour))

    def _gate(self, place: tuple[float, float], target: tuple[float, float], value: float) -> None:
        colour = style.GATE(value)
        edge = {"lw": 0.4 + 4 * value, "solid_capstyle": "butt", "zorder": 1 + value}
        self._line(place, target, color=colour, **edge)
        circle = Circle(place, self._plan.circle / 2, facecolor=colour, edgecolor="black", lw=0.5)
        self._axes.add_patch(circle).set_zorder(4)
        if self._plan.circle >= 0.22:  # smaller ones have no room for it
            number = f"{value:.2f}".removeprefix("0")
            self._text(*place, number, 6.0 if value < 0.995 else 5.2, color=style.ink(colour))

    def _answer(self) -> None:
        """The mean over the paths, where there are several."""
        end = (self._x + 0.2, self._middle)
        for start in filter(None, self._ends):
            self._line(start, end)
        if len(self._ends) > 1:
            circle = Circle(end, 0.17, facecolor="white", edgecolor="black", lw=0.7)
            self._axes.add_patch(circle).set_zorder(4)
            self._text(*end, "mean", 6.5)


def _chosen(router: RouterRecord, b: int) -> Bool[np.ndarray, "m n"]:
    """Which outputs the inputs of image b chose; of a soft router, all."""
    if router.chosen is None:
        return np.ones(router.gates.shape[::2], bool)
    return router.chosen[:, b]


def _short(name: str) -> str:
    words = style.readable(name)
    return words if len(words) <= 11 else words[:10] + "…"


def _legend(figure: Figure, plan: _Plan) -> None:
    """What the two scales mean."""
    scales = (
        (style.STRENGTH, "relative strength of a tensor (%)", ("0", "equal", "twice or more")),
        (style.GATE, "gate", ("0", "0.5", "1")),
    )
    width, height = 1.5, 0.1
    for at, (colours, title, ticks) in enumerate(scales):
        left = MARGIN + 0.1 + at * 2.6
        axes = figure.add_axes(
            (left / plan.width, 0.19 / plan.height, width / plan.width, height / plan.height)
        )
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=colours, aspect="auto", extent=(0, 1, 0, 1))
        axes.set_xticks((0, 0.5, 1), ticks, fontsize=6.5)
        axes.set_yticks(())
        axes.tick_params(length=2, pad=1)
        axes.set_title(title, fontsize=7, pad=2)
