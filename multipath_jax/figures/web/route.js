// The route of one image, drawn from left to right as in the paper's Fig. 8.

const ROUTE = {
  gate: 12, // radius of a circle; smaller, and without the value, if there are many
  manyOutputs: 5,
  smallGate: 5,
  tensor: {width: 20, height: 40},
  stack: {width: 26, gap: 20},
  gates: 58, // from the left side of a router to its circles
  outputs: 132, // from the left side of a router to its output tensors
  after: 26,
  top: 26, // for the names
};

/** Draws a network; ``routers`` are [{name, inputs, outputs}], ``stacks`` are names of layers. */
class RouteDrawing {
  /** ``read(text)`` is called with a description of the element under the pointer,
   * ``pick(router, i, j)`` with the gate that was clicked. */
  constructor(routers, stacks, read, pick) {
    Object.assign(this, {routers, stacks, read, pick});
    const outputs = Math.max(...routers.map((router) => router.outputs));
    this.radius = outputs < ROUTE.manyOutputs ? ROUTE.gate : ROUTE.smallGate;
    this.gatePitch = 2 * this.radius + 2;
    this.pitch = Math.max(64, outputs * this.gatePitch + 10); // distance of parallel paths
    this.paths = Math.max(...routers.map(({inputs, outputs}) => Math.max(inputs, outputs)));
    this.height = ROUTE.top + this.paths * this.pitch + 4;
  }

  /** The vertical positions of ``count`` parallel elements. */
  rows(count) {
    const middle = ROUTE.top + (this.paths * this.pitch) / 2;
    return range(count).map((row) => middle + (row - (count - 1) / 2) * this.pitch);
  }

  /** Draws one image, for the values {gates, inputs, outputs} of every router, the selected gate
   * {router, i, j}, and the predicted class with its probability as texts. */
  draw(values, picked, prediction) {
    this.parts = {lines: [], shapes: [], texts: []};
    this.x = 8;
    this.ends = [];
    this.stacks.forEach((names, depth) => {
      if (names.length) this.stack(names, this.routers[depth]?.inputs ?? this.ends.length);
      if (depth < this.routers.length) this.router(depth, values[depth], picked);
    });
    this.answer(prediction);
    const {lines, shapes, texts} = this.parts;
    return svg('svg', {
      viewBox: `0 0 ${this.x} ${this.height}`, width: this.x, height: this.height,
      role: 'img', 'aria-label': 'The route; its values are in the table below',
    }, ...lines, ...shapes, ...texts);
  }

  /** Boxes of layers other than routers, one for each of ``count`` paths. */
  stack(names, count) {
    const {width, gap} = ROUTE.stack;
    const rows = this.rows(count);
    const height = this.pitch - 8;
    this.join(this.x, rows);
    const first = names[0].replaceAll('_', ' ');
    const label = names.length > 1 ? `${first} …` : first;
    for (const y of rows) {
      const box = svg('rect',
        {x: this.x, y: y - height / 2, width, height, rx: 3, class: 'stack'});
      this.told(box, `ordinary layers: ${names.join(', ')}`);
      const middle = this.x + width / 2;
      this.parts.texts.push(svg('text',
        {x: middle, y: y + 4, transform: `rotate(-90 ${middle} ${y})`, class: 'value label'},
        cut(label, Math.floor(height / 6))));
    }
    this.x += width;
    this.leave(rows, gap);
  }

  /** Input tensors, their gates, the weighted edges, and output tensors. */
  router(depth, {gates, inputs, outputs}, picked) {
    const router = this.routers[depth];
    const rowsIn = this.rows(router.inputs);
    const rowsOut = this.rows(router.outputs);
    const left = this.x;
    const right = left + ROUTE.outputs;
    this.join(left, rowsIn);
    this.heading(left, right + ROUTE.tensor.width, depth);
    rowsIn.forEach((y, i) => {
      this.tensor(left, y, inputs, i, `router ${depth + 1}, input ${i + 1}`);
      rowsOut.forEach((yOut, j) => {
        const x = left + ROUTE.gates;
        const circle = y + (j - (router.outputs - 1) / 2) * this.gatePitch;
        const isPicked = picked.router === depth && picked.i === i && picked.j === j;
        this.line(left + ROUTE.tensor.width, y, x - this.radius, circle, {class: 'wire'});
        const value = gates[i * router.outputs + j];
        this.gate({depth, i, j, value, isPicked}, x, circle, right, yOut);
      });
    });
    rowsOut.forEach((y, j) =>
      this.tensor(right, y, outputs, j, `router ${depth + 1}, output ${j + 1}`));
    this.x = right + ROUTE.tensor.width;
    this.leave(rowsOut, ROUTE.after);
  }

  heading(left, right, depth) {
    const middle = (left + right) / 2;
    const title = cut(routerTitle(depth, this.routers[depth].name), 30);
    this.parts.texts.push(svg('text', {x: middle, y: 16, 'text-anchor': 'middle'}, title));
  }

  /** A box, shaded by its share; the shade is saturated at twice an equal share. */
  tensor(x, y, shares, index, where) {
    const {width, height} = ROUTE.tensor;
    const place = {x, y: y - height / 2, width, height};
    const box = svg('rect', {
      ...place, class: 'tensor', 'fill-opacity': Math.min(1, (shares[index] * shares.length) / 2),
    });
    this.told(box, `${where}: relative strength ${percent(shares[index])}`);
  }

  /** The circle of a gate, and its edge. */
  gate({depth, i, j, value, isPicked}, x, y, xOut, yOut) {
    const way = `input ${i + 1} to output ${j + 1}`;
    const says = `router ${depth + 1}, gate ${gateName(i, j)} (${way}): ${value.toFixed(3)}`;
    const edge = svg('line', {
      x1: x, y1: y, x2: xOut, y2: yOut, class: 'edge',
      'stroke-width': 0.6 + 8 * value, 'stroke-opacity': 0.12 + 0.88 * value,
    });
    edge.addEventListener('pointerenter', () => this.read(says));
    this.parts.lines.push(edge);
    // Hides the edge behind a translucent circle.
    this.parts.shapes.push(svg('circle', {cx: x, cy: y, r: this.radius, class: 'backing'}));
    const circle = svg('circle', {
      cx: x, cy: y, r: this.radius, 'fill-opacity': value, class: isPicked ? 'gate picked' : 'gate',
    });
    circle.addEventListener('click', () => this.pick(depth, i, j));
    this.told(circle, says);
    if (this.radius < ROUTE.gate) return;
    const text = value >= 0.995 ? '1' : value.toFixed(2).replace(/^0/, '');
    const color = value > 0.65 ? 'on-gate' : ''; // for sufficient contrast in both themes
    this.parts.texts.push(svg('text', {x, y: y + 4, class: `value figure ${color}`}, text));
  }

  /** The mean over the paths, and the predicted class. */
  answer([className, probability]) {
    const [y] = this.rows(1);
    this.join(this.x, [y]);
    const name = cut(className, 14);
    this.parts.texts.push(
      svg('text', {x: this.x + 4, y: y - 2}, name),
      svg('text', {x: this.x + 4, y: y + 14}, probability));
    this.x += 12 + 7.5 * Math.max(name.length, probability.length);
  }

  /** Lines from the previous column: one to one, or all to all. */
  join(x, rows) {
    const same = this.ends.length === rows.length;
    this.ends.forEach(([from, y], path) =>
      (same ? [rows[path]] : rows).forEach((to) => this.line(from, y, x, to, {class: 'wire'})));
  }

  leave(rows, gap) {
    this.ends = rows.map((y) => [this.x, y]);
    this.x += gap;
  }

  line(x1, y1, x2, y2, attributes) {
    this.parts.lines.push(svg('line', {x1, y1, x2, y2, ...attributes}));
  }

  /** A shape with a description. */
  told(shape, text) {
    shape.addEventListener('pointerenter', () => this.read(text));
    this.parts.shapes.push(shape);
  }
}
