// The route explorer: shows one selected image and one selected gate.

const NEAREST = 12;
const STRIP = 40; // thumbnails, from the selected image on, of the images that match the filter
const BINS = 20;
const HINT = 'Point at or tap a gate, an edge or a tensor to read its value; a click on a gate ' +
  'picks it for the histograms.';

const METRICS = {
  euclidean: (a, b) => Math.sqrt(sum(a.map((value, at) => (value - b[at]) ** 2))),
  cosine: (a, b) => 1 - dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)),
};

const dot = (a, b) => sum(a.map((value, at) => value * b[at]));

class Explorer {
  /** ``picked`` is the initially selected gate. */
  constructor(images, routers, stacks, picked) {
    Object.assign(this, {images, routers, picked});
    this.image = 0;
    this.drawing = new RouteDrawing(
      routers, stacks, (text) => { $('reading').textContent = text; },
      (router, i, j) => this.pick({router, i, j}));
  }

  start() {
    this.offerChoices();
    this.listen();
    const {count, total, kind} = this.images;
    $('scope').textContent = count === total
      ? `All ${total} ${kind} images.`
      : `${count} of the ${total} ${kind} images, evenly spaced; all below is of these.`;
    if (!this.chooseByAddress()) this.choose(0);
  }

  offerChoices() {
    const {images, routers} = this;
    offer($('class'), [['', 'all'], ...images.classes.map((name, label) => [label, name])]);
    offer($('depth'), [
      ...routers.map(({name}, router) => [router, routerTitle(router, name)]),
      ['all', 'all routers together'],
    ]);
    offer($('metric'), [['euclidean', 'Euclidean'], ['cosine', 'cosine']]);
    offer($('gate'), routers.flatMap(({inputs, outputs}, router) =>
      range(inputs * outputs).map((at) => {
        const [i, j] = [Math.floor(at / outputs), at % outputs];
        return [`${router}:${i}:${j}`, `${gateName(i, j)} of router ${router + 1}`];
      })));
    $('depth').value = this.picked.router;
    $('number').max = images.numbers.at(-1);
  }

  listen() {
    const filter = () => this.filter();
    $('picker').addEventListener('submit', (event) => event.preventDefault());
    $('number').addEventListener('change', (event) => this.chooseNumber(event.target.value));
    $('class').addEventListener('change', filter);
    $('wrong').addEventListener('change', filter);
    $('previous').addEventListener('click', () => this.step(-1));
    $('next').addEventListener('click', () => this.step(1));
    $('random').addEventListener('click', () => this.chooseAtRandom());
    $('depth').addEventListener('change', () => this.showNearest());
    $('metric').addEventListener('change', () => this.showNearest());
    $('gate').addEventListener('change', (event) => {
      const [router, i, j] = event.target.value.split(':').map(Number);
      this.pick({router, i, j});
    });
    window.addEventListener('hashchange', () => this.chooseByAddress());
    document.addEventListener('keydown', (event) => this.key(event));
  }

  /** The left and right keys change the image, except in elements that use these keys. */
  key(event) {
    const {target, key} = event;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (target.closest('input, select, .scroll, #histograms')) return;
    if (key === 'ArrowLeft') this.step(-1);
    if (key === 'ArrowRight') this.step(1);
  }

  /** The images that match the class and the checkbox. */
  get fitting() {
    const label = $('class').value;
    return this.images.thatAre(label === '' ? null : Number(label), $('wrong').checked);
  }

  filter() {
    const fitting = this.fitting;
    if (fitting.length && !fitting.includes(this.image)) this.choose(fitting[0]);
    else this.showChoice();
  }

  /** Moves by a number of matching images, cyclically. */
  step(by) {
    const fitting = this.fitting;
    if (!fitting.length) return;
    const at = fitting.indexOf(this.image); // -1: the first one, or the last
    this.choose(fitting[(Math.max(at, by < 0 ? 0 : at) + by + fitting.length) % fitting.length]);
  }

  chooseAtRandom() {
    const others = this.fitting.filter((image) => image !== this.image);
    if (others.length) this.choose(others[Math.floor(Math.random() * others.length)]);
  }

  /** Selects the image with the nearest number on the page; returns whether the number is valid. */
  chooseNumber(text) {
    const number = Number.parseInt(text, 10);
    if (Number.isNaN(number)) return false;
    const far = (image) => Math.abs(this.images.numbers[image] - number);
    const nearer = (best, image) => (far(image) < far(best) ? image : best);
    const near = range(this.images.count).reduce(nearer);
    this.choose(near);
    if (far(near)) {
      $('position').textContent = `${number} is not on this page; the nearest is shown`;
    }
    return true;
  }

  /** Selects the image of a URL that ends in #image=12; returns whether it does. */
  chooseByAddress() {
    return this.chooseNumber(location.hash.match(/^#image=(\d+)$/)?.[1]);
  }

  choose(image) {
    this.image = image;
    this.showChoice();
    this.showImage();
    this.showRoute();
    this.showNearest();
    this.showHistograms();
  }

  pick(gate) {
    this.picked = gate;
    $('depth').value = gate.router;
    this.showRoute();
    this.showNearest();
    this.showHistograms();
  }

  showChoice() {
    const {images, image} = this;
    const fitting = this.fitting;
    const at = fitting.indexOf(image);
    $('number').value = images.numbers[image];
    $('position').textContent = fitting.length
      ? `${at < 0 ? 'not one' : at + 1} of ${fitting.length}`
      : 'no image fits this choice';
    for (const button of ['previous', 'next', 'random']) $(button).disabled = !fitting.length;
    const first = Math.max(0, Math.min(at - 1, fitting.length - STRIP));
    $('strip').replaceChildren(
      ...fitting.slice(first, first + STRIP).map((other) => this.thumbnail(other)));
  }

  /** A button that selects an image, with its class and lines of text below. */
  thumbnail(image, ...lines) {
    const {images} = this;
    const [number, className] = [images.numbers[image], images.className(image)];
    const wrong = images.isWrong(image);
    const name = html('span', {class: wrong ? 'wrong' : ''}, wrong ? `✗ ${className}` : className);
    const says = [`image ${number}`, className, ...lines];
    if (wrong) says.push(`wrongly classified as ${images.classes[images.predicted(image)]}`);
    const label = says.join(', ');
    const button = html('button',
      {type: 'button', 'aria-label': label, title: label, 'data-number': number},
      images.picture(image), name, ...lines.map((line) => html('span', {}, line)));
    if (image === this.image) button.setAttribute('aria-current', 'true');
    button.addEventListener('click', () => {
      this.choose(image);
      // The button has been replaced; keep the keyboard focus on the new one.
      $('strip').querySelector('[aria-current]')?.focus({preventScroll: true});
    });
    return button;
  }

  showImage() {
    const {images, image} = this;
    const predictions = images.predictions(image);
    const said = images.classes[predictions[0][0]];
    $('picture').replaceChildren(images.picture(image));
    $('verdict').replaceChildren(
      `Image ${images.numbers[image]} is ${images.className(image)}, classified as ${said}: `,
      images.isWrong(image) ? html('span', {class: 'wrong'}, '✗ wrong') : '✓ right');
    $('probabilities').tBodies[0].replaceChildren(...predictions.map(([label, probability]) =>
      html('tr', {},
        html('td', {}, images.classes[label]),
        html('td', {}, percent(probability)),
        html('td', {}, html('div', {class: 'bar', style: `width: ${100 * probability}%`})))));
  }

  showRoute() {
    const {images, image, routers, picked} = this;
    const [[label, probability]] = images.predictions(image);
    const values = routers.map((router) => router.values(image));
    const prediction = [images.classes[label], percent(probability)];
    $('route').replaceChildren(this.drawing.draw(values, picked, prediction));
    $('reading').textContent = HINT;
    $('gates').tBodies[0].replaceChildren(...routers.flatMap((router, depth) =>
      Array.from(router.vector(image), (value, at) => {
        const gate = gateName(Math.floor(at / router.outputs), at % router.outputs);
        const cells = [depth + 1, router.name, gate, value.toFixed(3)];
        return html('tr', {}, ...cells.map((cell) => html('td', {}, String(cell))));
      })));
  }

  /** The distances of the image to all others, by the gates of the selected router. */
  distances() {
    const depth = $('depth').value;
    const routers = depth === 'all' ? this.routers : [this.routers[Number(depth)]];
    const vector = (image) => routers.flatMap((router) => [...router.vector(image)]);
    const own = vector(this.image);
    const metric = METRICS[$('metric').value];
    return range(this.images.count).map((image) => metric(own, vector(image)));
  }

  showNearest() {
    const {images} = this;
    const distances = this.distances();
    const nearest = range(images.count)
      .filter((image) => image !== this.image)
      .sort((a, b) => distances[a] - distances[b])
      .slice(0, NEAREST);
    const same = nearest.filter((image) => images.labels[image] === images.labels[this.image]);
    $('agreement').textContent =
      `${same.length} of the ${nearest.length} nearest are ${images.className(this.image)} too. ` +
      'Below each: its distance.';
    $('nearest').replaceChildren(...nearest.map((image) =>
      this.thumbnail(image, distances[image].toFixed(4))));
  }

  showHistograms() {
    const {images, routers, picked: {router, i, j}} = this;
    $('gate').value = `${router}:${i}:${j}`;
    const value = routers[router].gate(this.image, i, j);
    const byClass = images.classes.map(() => []);
    images.labels.forEach((label, image) => byClass[label].push(routers[router].gate(image, i, j)));
    const classes = byClass
      .map((values, label) => ({label, values, mean: sum(values) / values.length}))
      .filter(({values}) => values.length)
      .sort((a, b) => a.mean - b.mean);
    $('histogram-note').textContent =
      `From 0 to 1, classes by mean; the line is at ${value.toFixed(3)}, this image's gate.`;
    $('histograms').replaceChildren(...classes.map((one) => this.histogram(one, value)));
  }

  /** The histogram of a class, as fractions of its images. */
  histogram({label, values, mean}, value) {
    const counts = new Array(BINS).fill(0);
    for (const gate of values) counts[Math.min(BINS - 1, Math.floor(gate * BINS))] += 1;
    const name = this.images.classes[label];
    const bars = counts.map((count, bin) => {
      const height = (54 * count) / values.length;
      return svg('rect', {x: bin * 6, y: 56 - height, width: 5, height, class: 'bin'});
    });
    const figure = html('figure', {},
      svg('svg', {
        viewBox: '0 0 120 58', preserveAspectRatio: 'none', role: 'img',
        'aria-label': `${name}: images in ${BINS} bins from 0 to 1: ${counts.join(' ')}`,
      }, svg('line', {x1: 0, x2: 120, y1: 56.5, y2: 56.5, class: 'axis'}), ...bars,
      svg('line', {x1: 120 * value, x2: 120 * value, y1: 0, y2: 58, class: 'needle'})),
      html('figcaption', {},
        html('strong', {}, name), `mean ${mean.toFixed(2)}, n = ${values.length}`));
    if (label === this.images.labels[this.image]) figure.className = 'picked';
    return figure;
  }
}
