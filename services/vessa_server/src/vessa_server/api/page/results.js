/** Beside the image: classes with their colours and IoU, templates, words, times. */

import { byId, el } from './dom.js';
import { hexColour, rgb, scaled } from './draw.js';
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
 * @property {string} image_ref by which the server knows the slice
 * @property {object | null} region where it looked
 * @property {string} [bank] that was asked
 * @property {Uint8Array} [mask] labels that were the prompt, in the numbers of the page
 * @property {import('./marks.js').Marks} [marks] points and boxes that it follows
 */
/** @typedef {import('./edit.js').LabelEdit<Answer>} Edit */
/** @typedef {{classes: {name: string, colour: string}[], templates: {template_id: string, name: string}[]}} Listing */

const MOST_CLASSES = 255;

export class Results {
  /** @type {Map<number, Answer>} */ answers = new Map();
  /** @type {Set<string>} */ #off = new Set();
  /** @type {Listing} */ #listing = { classes: [], templates: [] };
  #shownTemplates = '';
  /** Of the labels 1, 2, ...
   * @type {string[]} */ names = [];
  /** @type {Edit | null} */ edit = null;
  bank = '';
  seconds = 0;

  /** @param {Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    viewer.addEventListener('change', () => this.showSlice());
    drawScale(/** @type {HTMLCanvasElement} */ (byId('scale-bar')));
  }

  /** Forget what was answered.
   * @param {string} bank that is asked now @param {Listing} listing @param {Edit} edit of the scan's labels */
  begin(bank, listing, edit) {
    this.answers.clear();
    this.names = [];
    this.edit = edit;
    this.bank = bank;
    this.#listing = listing;
    this.#shownTemplates = '';
    this.seconds = 0;
    this.viewer.colours = [];
    byId('answer').hidden = true;
    byId('found').hidden = true;
    byId('times').replaceChildren();
  }

  /** Go on with the answers that are there, and with what a bank has now.
   * @param {string} bank @param {Listing} listing */
  useBank(bank, listing) {
    this.bank = bank;
    this.#listing = listing;
    this.#colour();
    this.viewer.refresh();
  }

  /** @param {number} slice @param {Answer} answer */
  add(slice, answer) {
    this.answers.set(slice, answer);
    for (const { class_name: name } of answer.classes) if (!this.names.includes(name)) this.names.push(name);
    byId('answer').hidden = false;
    byId('found').hidden = false;
    this.#colour();
  }

  /** The label of a class, which is shown from now on; a new one where it has none yet.
   * @param {string} name */
  include(name) {
    if (!this.names.includes(name)) {
      if (this.names.length >= MOST_CLASSES) throw new Error(`class: ${MOST_CLASSES} there already, expected no more`);
      this.names.push(name);
    }
    this.#off.delete(name);
    byId('answer').hidden = false;
    this.#colour();
    return this.names.indexOf(name) + 1;
  }

  /** The class's colour, which is the same in the bank's pictures.
   * @param {string} name */
  colourOf(name) {
    const { classes } = this.#listing;
    const known = classes.find((c) => c.name === name);
    if (known) return known.colour;
    const others = this.names.filter((other) => !classes.some((c) => c.name === other));
    return hexColour(classes.length + others.indexOf(name) + 1); // as it will be in the bank
  }

  /** @param {number} label @returns {string} */
  nameOf(label) {
    return this.names[label - 1] ?? '';
  }

  #colour() {
    const colours = this.names.map((name) => (this.#off.has(name) ? null : rgb(this.colourOf(name))));
    this.viewer.colours = [null, ...colours];
  }

  /** What belongs to the slice in view, and to all of them. */
  showSlice() {
    if (!this.names.length) return;
    const { viewer } = this;
    const isAnswered = viewer.axis === viewer.scan?.slicing;
    const answer = isAnswered ? this.answers.get(viewer.slice) : undefined;
    this.#showLegend(answer, isAnswered);
    this.#showTemplates(answer);
    this.#showWords(answer);
    this.#showTimes();
  }

  /** @param {Answer | undefined} answer of the slice in view @param {boolean} isSlice as the server sees them */
  #showLegend(answer, isSlice) {
    const isVolume = (this.viewer.scan?.size[this.viewer.scan.slicing] ?? 1) > 1;
    const focused = document.activeElement?.id;
    const head = ['Label', 'Class', 'Predicted IoU', isVolume ? 'in all slices' : '', 'Pixels'].filter(Boolean);
    const { scan, slice } = this.viewer;
    const isAnswer = this.edit?.isAnswer(slice) ?? true;
    const isKnown = isSlice && (!!answer || !!this.edit?.edited.includes(slice));
    const counts = isKnown && scan ? counted(scan.cut(scan.labels, slice)) : null;
    const rows = this.names.map((name, index) => {
      // What was predicted of an answer does not hold for labels that were painted over.
      const here = isAnswer ? answer?.classes.find((c) => c.class_name === name) : undefined;
      const cells = [here ? here.predicted_iou.toFixed(2) : '–', ...(isVolume ? [this.#whole(name)] : []), counts ? counts[index + 1] : '–'];
      return el('tr', {}, el('td', {}, String(index + 1)), el('th', { scope: 'row' }, this.#toggle(name, index)),
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
   * @param {string} name */
  #whole(name) {
    const shown = [...this.answers.values()].flatMap((a) => a.classes.filter((c) => c.class_name === name && c.pixels > 0));
    const mean = shown.reduce((sum, c) => sum + c.predicted_iou, 0) / shown.length;
    return shown.length ? mean.toFixed(2) : '–';
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
    const figures = [...used].map(([id, lines]) => templateFigure(answer?.bank ?? this.bank, id, names.get(id) || id, lines));
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

/** Pixels of each label.
 * @param {Uint8Array} labels */
function counted(labels) {
  const counts = new Uint32Array(256);
  for (const label of labels) counts[label] += 1;
  return counts;
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
