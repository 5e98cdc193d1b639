// The facts, curves and figures of the run.

function showFacts() {
  $('facts').append(...DATA.facts.map(([name, value]) =>
    html('div', {}, html('dt', {}, name), html('dd', {}, value))));
}

function showFigures() {
  $('gallery').append(...DATA.figures.map(({title, source}) =>
    html('figure', {},
      html('figcaption', {}, title),
      html('div', {class: 'scroll', tabindex: '0', role: 'group', 'aria-label': title},
        html('img', {src: source, alt: title})))));
  $('figures').hidden = !DATA.figures.length;
}

function showCurves() {
  const routers = DATA.curves.routers;
  const charts = [
    ['Loss', measures('loss')],
    ['Error (%)', measures('error')],
    ['Entropy of the gates (1: even, 0: hard)',
      routers.map(({name, entropy}, depth) => [routerTitle(depth, name), entropy]), 1],
    ...routers.map(({name, shares}, depth) => [
      `Share of each output path, ${routerTitle(depth, name)}`,
      shares.map((key, path) => [`path ${path + 1}`, key]),
      1,
    ]),
  ];
  const drawn = charts.map(([title, names, top]) => lineChart(title, names.map(series), top));
  $('charts').append(...drawn.filter(Boolean));
  $('curves').hidden = !drawn.some(Boolean);
}

/** The curves of the training split, and of the test split or the held-out images. */
function measures(name) {
  const splits = [['training', 'train'], ['test', 'test'], ['held-out', 'held_out']];
  return splits.map(([title, split]) => [title, `${split}/${name}`]);
}

/** A named curve: the epochs at which it was measured, and the values. */
function series([name, key]) {
  const lines = DATA.curves.lines.filter((line) => Number.isFinite(line[key]));
  return {name, points: lines.map((line) => [line.epoch, line[key]])};
}

const CHART = {width: 400, height: 230, left: 44, right: 10, top: 10, bottom: 34};
const DASHES = ['none', '7 3', '2 2', '9 3 2 3', '4 4', '1 3'];

/** Curves over epochs, from 0 to ``top`` or their largest value; null if none has points.
 * They differ in color and in dashes. */
function lineChart(title, curves, top) {
  const drawn = curves.filter(({points}) => points.length);
  if (!drawn.length) return null;
  const points = drawn.flatMap((curve) => curve.points);
  const last = Math.max(...points.map(([epoch]) => epoch)) || 1;
  const highest = top ?? (Math.max(...points.map(([, value]) => value)) || 1);
  const {width, height, left, right, bottom} = CHART;
  const x = (epoch) => left + (epoch / last) * (width - left - right);
  const y = (value) => height - bottom - (value / highest) * (height - CHART.top - bottom);
  const summary = drawn.map(({name, points}) => `${name} ${short(points.at(-1)[1])} at the end`);
  const chart = svg('svg', {
    viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${title}: ${summary.join(', ')}`,
  }, ...axes(x, y, last, highest));
  drawn.forEach(({points}, number) => {
    const places = points.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`);
    if (places.length === 1) places.push(`${width},${places[0].split(',')[1]}`); // so that it is visible
    chart.append(svg('polyline', {points: places.join(' '), ...stroke(number)}));
  });
  const reading = html('p', {class: 'reading'});
  const epochAt = (along) => ((along * width - left) / (width - left - right)) * last;
  followPointer(chart, reading, drawn, epochAt);
  return html('figure', {}, html('figcaption', {}, title), chart, legend(drawn), reading);
}

function stroke(number) {
  return {
    class: 'series',
    style: `stroke: var(--series-${(number % 6) + 1}); stroke-dasharray: ${DASHES[number % 6]}`,
  };
}

function axes(x, y, last, highest) {
  const {width, height, left, right, bottom} = CHART;
  const rows = ticks(highest).map((value) => [
    svg('line', {x1: left, x2: width - right, y1: y(value), y2: y(value), class: 'axis'}),
    svg('text', {x: left - 6, y: y(value) + 4, 'text-anchor': 'end', class: 'soft'}, short(value)),
  ]);
  const columns = ticks(last).map((epoch) =>
    svg('text', {x: x(epoch), y: height - bottom + 16, 'text-anchor': 'middle', class: 'soft'},
      short(epoch)));
  const middle = (left + width - right) / 2;
  const label = svg('text',
    {x: middle, y: height - 3, 'text-anchor': 'middle', class: 'soft'}, 'epoch');
  return [...rows.flat(), ...columns, label];
}

/** Three to seven round numbers from 0 to at most ``highest``. */
function ticks(highest) {
  const power = 10 ** Math.floor(Math.log10(highest));
  const step = [0.2, 0.5, 1, 2].map((part) => part * power).find((size) => highest / size < 6);
  return range(Math.floor(highest / step + 1e-9) + 1).map((number) => number * step);
}

const short = (value) => String(Number(value.toPrecision(3)));

function legend(curves) {
  return html('div', {class: 'series-names'}, ...curves.map(({name, points}, number) =>
    html('span', {},
      svg('svg', {viewBox: '0 0 26 10', 'aria-hidden': 'true'},
        svg('line', {x1: 0, x2: 26, y1: 5, y2: 5, ...stroke(number)})),
      ` ${name} ${short(points.at(-1)[1])}`)));
}

/** Shows the values nearest to the pointer. */
function followPointer(chart, reading, curves, epochAt) {
  chart.addEventListener('pointermove', (event) => {
    const box = chart.getBoundingClientRect();
    const epoch = epochAt((event.clientX - box.left) / box.width);
    const near = curves.map(({name, points}) => {
      const [at, value] = points.reduce((best, point) =>
        Math.abs(point[0] - epoch) < Math.abs(best[0] - epoch) ? point : best);
      return `${name} ${short(value)} (epoch ${short(at)})`;
    });
    reading.textContent = near.join(', ');
  });
  chart.addEventListener('pointerleave', () => { reading.textContent = ''; });
}
