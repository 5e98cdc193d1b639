'use strict';
// What the parts of the page share: its data, elements of HTML and SVG, numbers as text.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($('data').textContent);

/** An element of HTML. Children that are text stay text: nothing in the data becomes markup. */
function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An element of SVG. */
function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Unsigned 16-bit integers, little-endian, from base64. */
function integers(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

/** Numbers in [0, 1], kept as 16-bit integers. */
function fractions(base64) {
  return Float32Array.from(integers(base64), (integer) => integer / 65535);
}

const range = (count) => Array.from({length: count}, (_, index) => index);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
const SUBSCRIPTS = '₀₁₂₃₄₅₆₇₈₉';

/** A text of at most ``length`` characters. */
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The paper's g_ij, counted from one. */
function gateName(i, j) {
  const digits = (number) => [...String(number + 1)].map((digit) => SUBSCRIPTS[digit]).join('');
  return `g${digits(i)}${i > 8 || j > 8 ? ',' : ''}${digits(j)}`;
}

/** A router's number, and its name where that says more. */
function routerTitle(depth, name) {
  const title = `router ${depth + 1}`;
  return name.replaceAll('_', ' ') === title ? title : `${title} (${name})`;
}

/** Fills a select; options are [value, text]. */
function offer(select, options) {
  select.replaceChildren(...options.map(([value, text]) => html('option', {value}, text)));
}
