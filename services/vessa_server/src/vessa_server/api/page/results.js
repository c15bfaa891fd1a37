/** Beside the image: classes with their colours and IoU, templates, words, times. */

import { byId, el } from './dom.js';
import { rgb, scaled } from './draw.js';
import { templateFigure } from './templates.js';

/** @typedef {import('./viewer.js').Viewer} Viewer */
/**
 * An answer of `POST /pseudolabel`, or for a slice of a volume.
 * @typedef {object} Answer
 * @property {number} [slice_index]
 * @property {{label: number, class_name: string, predicted_iou: number, pixels: number, explanation: string}[]} classes
 * @property {{template_id: string, class_name: string, similarity: number}[]} templates
 * @property {string} labels_png
 * @property {string} confidence_png
 * @property {Record<string, number>} stage_ms
 */
/** @typedef {{classes: {name: string, colour: string}[], templates: {template_id: string, name: string}[]}} Listing */

export class Results {
  /** @type {Map<number, Answer>} */ answers = new Map();
  /** @type {Set<string>} */ #off = new Set();
  /** @type {Listing} */ #listing = { classes: [], templates: [] };
  #shownTemplates = '';
  bank = '';
  seconds = 0;

  /** @param {Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    viewer.addEventListener('change', () => this.showSlice());
    drawScale(/** @type {HTMLCanvasElement} */ (byId('scale-bar')));
  }

  /** Forget what was answered.
   * @param {string} bank that is asked now @param {Listing} listing */
  begin(bank, listing) {
    this.answers.clear();
    this.bank = bank;
    this.#listing = listing;
    this.#shownTemplates = '';
    this.seconds = 0;
    this.viewer.colours = [];
    byId('answer').hidden = true;
    byId('times').replaceChildren();
  }

  /** @param {number} slice @param {Answer} answer */
  add(slice, answer) {
    this.answers.set(slice, answer);
    byId('answer').hidden = false;
    this.#colour();
  }

  /** The class's colour, which is the same in the bank's pictures.
   * @param {string} name */
  colourOf(name) {
    return this.#listing.classes.find((c) => c.name === name)?.colour ?? '#a0a0a0';
  }

  /** @param {number} label @returns {string} */
  nameOf(label) {
    return this.#classes()[label - 1]?.class_name ?? '';
  }

  #classes() {
    return this.answers.values().next().value?.classes ?? [];
  }

  #colour() {
    const colours = this.#classes().map((c) => (this.#off.has(c.class_name) ? null : rgb(this.colourOf(c.class_name))));
    this.viewer.colours = [null, ...colours];
  }

  /** What belongs to the slice in view, and to all of them. */
  showSlice() {
    if (!this.answers.size) return;
    const { viewer } = this;
    const isAnswered = viewer.axis === viewer.scan?.slicing;
    const answer = isAnswered ? this.answers.get(viewer.slice) : undefined;
    this.#showLegend(answer);
    this.#showTemplates(answer);
    this.#showWords(answer);
    this.#showTimes();
  }

  /** @param {Answer | undefined} answer of the slice in view */
  #showLegend(answer) {
    const isVolume = (this.viewer.scan?.size[this.viewer.scan.slicing] ?? 1) > 1;
    const focused = document.activeElement?.id;
    const head = ['Class', 'Predicted IoU', isVolume ? 'in all slices' : '', 'Pixels'].filter(Boolean);
    const rows = this.#classes().map((c, index) => {
      const here = answer?.classes[index];
      const whole = this.#whole(index);
      const cells = [here ? here.predicted_iou.toFixed(2) : '–', ...(isVolume ? [whole.iou] : []), here ? here.pixels : '–'];
      return el('tr', {}, el('th', { scope: 'row' }, this.#toggle(c.class_name, index)),
        ...cells.map((text) => el('td', {}, String(text))));
    });
    byId('legend').replaceChildren(el('tr', {}, ...head.map((text) => el('th', { scope: 'col' }, text))), ...rows);
    if (focused?.startsWith('class-')) document.getElementById(focused)?.focus();
  }

  /** @param {string} name @param {number} index */
  #toggle(name, index) {
    const box = el('input', { type: 'checkbox', checked: !this.#off.has(name), id: `class-${index}` });
    box.addEventListener('change', () => {
      if (box.checked) this.#off.delete(name);
      else this.#off.add(name);
      this.#colour();
    });
    return el('label', { className: 'tick' }, box, swatch(this.colourOf(name)), name);
  }

  /** Mean predicted IoU of a class where it is shown, as the server's summary has it.
   * @param {number} index */
  #whole(index) {
    const shown = [...this.answers.values()].map((a) => a.classes[index]).filter((c) => c.pixels > 0);
    const mean = shown.reduce((sum, c) => sum + c.predicted_iou, 0) / shown.length;
    return { iou: shown.length ? mean.toFixed(2) : '–' };
  }

  /** @param {Answer | undefined} answer */
  #showTemplates(answer) {
    /** @type {Map<string, string[]>} */
    const used = new Map();
    for (const t of answer?.templates ?? []) {
      used.set(t.template_id, [...used.get(t.template_id) ?? [], `${t.class_name} ${t.similarity.toFixed(2)}`]);
    }
    const key = JSON.stringify([...used]);
    if (key === this.#shownTemplates) return;
    this.#shownTemplates = key;
    const names = new Map(this.#listing.templates.map((t) => [t.template_id, t.name]));
    const figures = [...used].map(([id, lines]) => templateFigure(this.bank, id, names.get(id) || id, lines));
    // Templates lie as the server sees slices; here they lie as the slice does.
    byId('matched').classList.toggle('of-volume', this.viewer.scan?.isVolume ?? false);
    byId('matched').replaceChildren(...figures);
    if (!figures.length) byId('matched').textContent = 'None for this plane; see the slices as acquired.';
  }

  /** @param {Answer | undefined} answer */
  #showWords(answer) {
    const said = (answer?.classes ?? []).filter((c) => c.explanation);
    byId('words').hidden = !said.length;
    const list = /** @type {HTMLElement} */ (byId('words').querySelector('dl'));
    list.replaceChildren(...said.flatMap((c) => [el('dt', {}, swatch(this.colourOf(c.class_name)), c.class_name), el('dd', {}, c.explanation)]));
  }

  #showTimes() {
    /** @type {Record<string, number>} */
    const sums = {};
    for (const answer of this.answers.values()) {
      for (const [stage, ms] of Object.entries(answer.stage_ms)) sums[stage] = (sums[stage] ?? 0) + ms;
    }
    /** @type {[string, string][]} */
    const rows = Object.entries(sums).map(([stage, ms]) => [stage.replaceAll('_', ' '), `${ms.toFixed(0)} ms`]);
    if (this.seconds) rows.push(['asked and answered', `${this.seconds.toFixed(1)} s`]);
    byId('times').replaceChildren(...rows.map(([stage, time]) => el('tr', {}, el('th', { scope: 'row' }, stage), el('td', {}, time))));
  }
}

/** @param {string} colour */
export function swatch(colour) {
  const mark = el('span', { className: 'swatch' });
  mark.style.backgroundColor = colour;
  return mark;
}

/** @param {HTMLCanvasElement} bar */
function drawScale(bar) {
  const context = /** @type {CanvasRenderingContext2D} */ (bar.getContext('2d'));
  for (let x = 0; x < bar.width; x++) {
    const [red, green, blue, alpha] = scaled(x / (bar.width - 1));
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha / 255})`;
    context.fillRect(x, 0, 1, bar.height);
  }
}
