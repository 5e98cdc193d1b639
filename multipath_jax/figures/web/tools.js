'use strict';
// Shared helpers: the data of the page, HTML and SVG elements, formatting of numbers.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($('data').textContent);

/** An HTML element. Strings become text nodes, so nothing in the data is parsed as markup. */
function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element. */
function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Decodes little-endian unsigned 16-bit integers from base64. */
function integers(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

/** Decodes numbers in [0, 1], stored as 16-bit integers. */
function fractions(base64) {
  return Float32Array.from(integers(base64), (integer) => integer / 65535);
}

const range = (count) => Array.from({length: count}, (_, index) => index);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
const SUBSCRIPTS = '₀₁₂₃₄₅₆₇₈₉';

/** A text, truncated to ``length`` characters. */
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The paper's notation g_ij, counted from one. */
function gateName(i, j) {
  const digits = (number) => [...String(number + 1)].map((digit) => SUBSCRIPTS[digit]).join('');
  return `g${digits(i)}${i > 8 || j > 8 ? ',' : ''}${digits(j)}`;
}

/** The number of a router, and its name if it has more information. */
function routerTitle(depth, name) {
  const title = `router ${depth + 1}`;
  return name.replaceAll('_', ' ') === title ? title : `${title} (${name})`;
}

/** Fills a select; options are [value, text]. */
function offer(select, options) {
  select.replaceChildren(...options.map(([value, text]) => html('option', {value}, text)));
}
