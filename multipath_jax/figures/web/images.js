// The images of the page: pixels, labels, predictions, and records of the routers.

class Images {
  constructor({kind, total, numbers, classes, labels, likeliest, thumbnails}) {
    Object.assign(this, {kind, total, numbers, classes, thumbnails});
    this.count = numbers.length;
    this.labels = integers(labels);
    this.places = likeliest.count; // number of most probable classes per image
    this.likeliest = integers(likeliest.classes);
    this.probabilities = fractions(likeliest.probabilities);
  }

  /** Decodes the sheets of thumbnails. */
  async load() {
    this.sheets = await Promise.all(this.thumbnails.sheets.map(async (source) => {
      const sheet = new Image();
      sheet.src = source;
      await sheet.decode();
      return sheet;
    }));
  }

  /** The [class, probability] pairs of an image, the most probable first. */
  predictions(image) {
    return range(this.places).map((place) => {
      const at = image * this.places + place;
      return [this.likeliest[at], this.probabilities[at]];
    });
  }

  predicted(image) {
    return this.likeliest[image * this.places];
  }

  isWrong(image) {
    return this.predicted(image) !== this.labels[image];
  }

  className(image) {
    return this.classes[this.labels[image]];
  }

  /** Images of a class (null: all classes), optionally only the misclassified ones. */
  thatAre(label, wrongOnly) {
    return range(this.count).filter((image) =>
      (label === null || this.labels[image] === label) && (!wrongOnly || this.isWrong(image)));
  }

  /** The image as a canvas. */
  picture(image) {
    const {width, height, tileWidth, tileHeight, columns, perSheet} = this.thumbnails;
    const canvas = html('canvas', {
      width, height, role: 'img', 'aria-label': `${this.kind} image ${this.numbers[image]}`,
      class: Math.max(width, height) > 64 ? '' : 'pixels', // small images are shown without smoothing
    });
    const place = image % perSheet;
    canvas.getContext('2d').drawImage(
      this.sheets[Math.floor(image / perSheet)],
      (place % columns) * tileWidth, Math.floor(place / columns) * tileHeight, width, height,
      0, 0, width, height);
    return canvas;
  }
}

/** The records of one router for all images. */
class Router {
  constructor({name, inputs, outputs, gates, input_strength, output_strength}) {
    Object.assign(this, {name, inputs, outputs});
    this.width = inputs * outputs;
    this.gates = fractions(gates);
    this.inputStrength = fractions(input_strength);
    this.outputStrength = fractions(output_strength);
  }

  /** All gates of an image: g_11, ..., g_1n, g_21, ... */
  vector(image) {
    return this.gates.subarray(image * this.width, (image + 1) * this.width);
  }

  gate(image, i, j) {
    return this.gates[image * this.width + i * this.outputs + j];
  }

  values(image) {
    return {
      gates: this.vector(image),
      inputs: this.inputStrength.subarray(image * this.inputs, (image + 1) * this.inputs),
      outputs: this.outputStrength.subarray(image * this.outputs, (image + 1) * this.outputs),
    };
  }
}
