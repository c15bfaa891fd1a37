/** Curves over the updates of a training, drawn as SVG, with values where the pointer or the arrow keys are. */

import { el } from './dom.js';

/** @typedef {{label: string, colour: string, steps: number[], values: (number | null)[]}} Curve */
/** @typedef {{title: string, is_share: boolean, curves: Curve[]}} Curves */

const HEIGHT = 240;
const [LEFT, RIGHT, TOP, BOTTOM] = [46, 18, 10, 38];
// Colours alone do not tell curves apart for everybody.
const DASHES = ['', '7 3', '2 3', '10 3 2 3'];
const FEW = 40;

/** @param {string} tag @param {Record<string, string | number>} attributes @param {...(Node | string)} children */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Round numbers from 0 to what is at least `end`, some `count` of them.
 * @param {number} end @param {number} count */
function ticks(end, count) {
  const rough = Math.max(end, Number.MIN_VALUE * 1e20) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.ceil(end / step - 1e-9) + 1 }, (_, i) => i * step);
}

/** @param {number} value */
const shown = (value) => String(Number(value.toPrecision(3)));

export class Chart {
  /** @type {Curves} */ #curves = { title: '', is_share: false, curves: [] };
  /** @type {number | null} */ #cursor = null;
  #plot = el('div', { className: 'plot', tabIndex: 0, role: 'group' });
  #readout = el('p', { className: 'muted readout' });
  #legend = el('ul', { className: 'curves' });
  #title = el('h3');
  element = el('section', { className: 'chart' }, this.#title, this.#plot, this.#legend, this.#readout);

  constructor() {
    this.#plot.addEventListener('pointermove', (event) => this.#point(event.clientX));
    this.#plot.addEventListener('pointerdown', (event) => this.#point(event.clientX));
    this.#plot.addEventListener('pointerleave', () => this.#move(null));
    this.#plot.addEventListener('blur', () => {
      this.#readout.ariaLive = 'off';
      this.#move(null);
    });
    this.#plot.addEventListener('focus', () => {
      this.#readout.ariaLive = 'polite'; // else each refresh would be read out
      if (this.#cursor === null) this.#move(this.#steps.length - 1);
    });
    this.#plot.addEventListener('keydown', (event) => this.#pressed(event));
    new ResizeObserver(() => this.#draw()).observe(this.#plot);
  }

  /** @param {Curves} curves */
  show(curves) {
    this.#curves = curves;
    this.element.hidden = !curves.curves.length;
    this.#title.textContent = curves.title;
    this.#plot.ariaLabel = `${curves.title}: curves over updates; arrow keys read their values`;
    this.#legend.replaceChildren(...curves.curves.map((curve, i) => {
      const line = svg('svg', { width: 26, height: 10, 'aria-hidden': 'true' }, ...this.#lines(curve, i, 'M1 5H25'));
      return el('li', {}, line, curve.label);
    }));
    this.#draw();
  }

  /** All updates of which a curve has a value. */
  get #steps() {
    return [...new Set(this.#curves.curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  }

  get #last() { return Math.max(1, ...this.#curves.curves.map((curve) => curve.steps.at(-1) ?? 1)); }

  /** @param {number} step */
  #x(step) { return LEFT + (step / this.#last) * (this.#plot.clientWidth - LEFT - RIGHT); }

  /** @param {number} clientX */
  #point(clientX) {
    const x = clientX - this.#plot.getBoundingClientRect().left;
    const away = this.#steps.map((step) => Math.abs(this.#x(step) - x));
    this.#move(away.indexOf(Math.min(...away)));
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    const last = this.#steps.length - 1;
    const at = this.#cursor ?? last;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#move(Math.max(0, Math.min(last, to)));
  }

  /** @param {number | null} cursor */
  #move(cursor) {
    this.#cursor = cursor === -1 ? null : cursor;
    this.#draw();
  }

  /** A curve above a wider one in the colour of text, so that all are seen on any page.
   * @param {Curve} curve @param {number} index @param {string} path */
  #lines(curve, index, path) {
    const dash = { d: path, fill: 'none', 'stroke-dasharray': DASHES[index % DASHES.length] };
    const line = svg('path', { ...dash, 'stroke-width': 2, class: `curve curve-${index % 6}` });
    if (!curve.colour) return [line];
    line.setAttribute('class', '');
    line.setAttribute('stroke', curve.colour);
    return [svg('path', { ...dash, 'stroke-width': 4, class: 'casing' }), line];
  }

  #draw() {
    const width = this.#plot.clientWidth;
    if (!width) return; // it is not in view
    const { curves, is_share: isShare } = this.#curves;
    const values = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    const rows = ticks(isShare ? 1 : Math.max(0, ...values) || 1, 5);
    const top = rows[rows.length - 1];
    const last = this.#last;
    /** @param {number} value */
    const y = (value) => HEIGHT - BOTTOM - (Math.max(0, Math.min(top, value)) / top) * (HEIGHT - TOP - BOTTOM);
    const parts = rows.flatMap((value) => [
      svg('line', { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: 'grid' }),
      svg('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, shown(value)),
    ]);
    for (const step of ticks(last, width > 500 ? 6 : 3).filter((tick) => tick <= last)) {
      parts.push(svg('text', { x: this.#x(step), y: HEIGHT - BOTTOM + 16, 'text-anchor': 'middle' }, shown(step)));
    }
    parts.push(svg('text', { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, 'text-anchor': 'middle' }, 'updates'));
    curves.forEach((curve, index) => {
      /** @type {[number, number][]} */
      const points = curve.steps.flatMap((step, i) => {
        const value = curve.values[i];
        return value === null ? [] : [/** @type {[number, number]} */ ([this.#x(step), y(value)])];
      });
      const path = points.map(([x, height], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${height.toFixed(1)}`).join('');
      parts.push(...this.#lines(curve, index, path));
      if (points.length > FEW) return;
      for (const [x, height] of points) {
        const mark = svg('circle', { cx: x, cy: height, r: 2.5, class: `mark curve-${index % 6}` });
        if (curve.colour) mark.setAttribute('fill', curve.colour);
        if (curve.colour) mark.setAttribute('class', '');
        parts.push(mark);
      }
    });
    parts.push(...this.#read(this.#steps));
    this.#plot.replaceChildren(svg('svg', { width, height: HEIGHT, 'aria-hidden': 'true' }, ...parts));
  }

  /** Say the values at the cursor, or the last ones; returns its line.
   * @param {number[]} steps */
  #read(steps) {
    if (this.#cursor !== null) this.#cursor = Math.min(this.#cursor, steps.length - 1);
    const step = steps[this.#cursor ?? steps.length - 1];
    const said = this.#curves.curves.flatMap((curve) => {
      const value = curve.values[curve.steps.indexOf(step)] ?? null;
      return value === null ? [] : [`${curve.label} ${value.toFixed(3)}`];
    });
    const text = step === undefined ? '' : `Update ${step}: ${said.join(', ')}`;
    if (this.#readout.textContent !== text) this.#readout.textContent = text;
    if (this.#cursor === null || step === undefined) return [];
    return [svg('line', { x1: this.#x(step), x2: this.#x(step), y1: TOP, y2: HEIGHT - BOTTOM, class: 'cursor' })];
  }
}
