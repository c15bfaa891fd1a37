/** Brush, eraser, points and boxes: pointers and keys become steps of the labels' edit, and questions. */

import { byId, el, inputOf, selectOf } from './dom.js';
import { covered } from './edit.js';
import { guarded } from './errors.js';

/** @typedef {import('./viewer.js').Viewer} Viewer */
/** @typedef {import('./viewer.js').ImagePointer} ImagePointer */
/** @typedef {import('./results.js').Results} Results */
/** @typedef {import('./results.js').Answer} Answer */
/** @typedef {'look' | 'brush' | 'eraser' | 'point' | 'background' | 'box'} Tool */
/**
 * A point, or a box between two voxels; a class, or background.
 * @typedef {{slice: number, from: number, to: number | null, name: string}} Mark
 */

/** @type {Record<string, Tool>} */
const KEYS = { v: 'look', b: 'brush', e: 'eraser', p: 'point', n: 'background', x: 'box' };
/** @type {Tool[]} */
const TOOLS = ['look', 'brush', 'eraser', 'point', 'background', 'box'];
/** @type {Tool[]} */
const MARKING = ['point', 'background', 'box'];
const LEFT = 1;
const PEN_ERASER = 32;
const NEW = '\n'; // no class can be called so
const MOST_LETTERS = 100;
const BIGGER = 1.25;

/** Where keys are text, and not commands.
 * @param {EventTarget | null} target */
const isTyping = (target) => target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement
  || (target instanceof HTMLInputElement && !['range', 'checkbox', 'file'].includes(target.type));

/** Events: `edited` after each step, and after one was undone or done again, with its note; `marked` for each point and box. */
export class Tools extends EventTarget {
  /** @type {Tool} */ #tool = 'look';
  /** Of the stroke that is being drawn.
   * @type {{pointer: number, slice: number, label: number, last: ImagePointer} | null} */ #stroke = null;
  /** A box that is being drawn.
   * @type {{pointer: number, from: ImagePointer} | null} */ #box = null;
  #isBusy = false;

  /** @param {Viewer} viewer @param {Results} results */
  constructor(viewer, results) {
    super();
    this.viewer = viewer;
    this.results = results;
    for (const tool of TOOLS) byId(`tool-${tool}`).addEventListener('click', () => this.take(tool));
    inputOf('size').addEventListener('input', () => this.#showSize());
    selectOf('paint-class').addEventListener('change', () => this.#choose());
    byId('add-class').addEventListener('click', () => guarded(async () => this.#addClass()));
    inputOf('new-class').addEventListener('keydown', (event) => { if (event.key === 'Enter') guarded(async () => this.#addClass()); });
    byId('undo').addEventListener('click', () => this.undo());
    byId('redo').addEventListener('click', () => this.redo());
    document.addEventListener('keydown', (event) => this.#pressed(event), true);
    viewer.addEventListener('imagepointer', (event) => this.#point(/** @type {CustomEvent} */ (event)));
    viewer.addEventListener('change', () => this.#followPlane());
    this.#showSize();
  }

  get #edit() { return this.results.edit; }
  get #size() { return inputOf('size').valueAsNumber; }
  get #isSlice() { return this.viewer.axis === this.viewer.scan?.slicing; }

  /** While the server works on the labels they stay as they are.
   * @param {boolean} is */
  set isBusy(is) {
    this.#isBusy = is;
    if (is) this.#end();
    this.show();
  }

  /** @param {Tool} tool */
  take(tool) {
    const { viewer } = this;
    if (!viewer.scan) return;
    this.#end();
    this.#tool = tool;
    if (tool !== 'look') {
      if (!this.#isSlice) viewer.axis = viewer.scan.slicing;
      if (viewer.layer === 'confidence') viewer.layer = 'fill';
    }
    this.show();
  }

  undo() { this.#step('undo'); }
  redo() { this.#step('redo'); }

  /** @param {'undo' | 'redo'} way */
  #step(way) {
    if (this.#isBusy || this.#stroke || !this.#isSlice) return;
    const { slice } = this.viewer;
    const step = this.#edit?.[way](slice);
    if (step) this.#tell(slice, step.note && (way === 'undo' ? { answer: step.note.before } : { answer: step.note.after }));
  }

  /** @param {number} slice @param {{answer: Answer | undefined} | null} note */
  #tell(slice, note) {
    this.viewer.refresh();
    this.show();
    this.dispatchEvent(new CustomEvent('edited', { detail: { slice, note } }));
  }

  /** Classes to paint with: of the labels that are there, and of the bank.
   * @param {string[]} inBank */
  showClasses(inBank) {
    const select = selectOf('paint-class');
    const chosen = select.value;
    const names = [...new Set([...this.results.names, ...inBank])];
    const options = [...names.map((name) => [name, name]), [NEW, 'new class…']];
    select.replaceChildren(...options.map(([value, text]) => el('option', { value }, text)));
    select.value = names.includes(chosen) ? chosen : names[0] ?? NEW;
    this.#choose();
  }

  #choose() {
    const { value } = selectOf('paint-class');
    byId('new-class-row').hidden = value !== NEW;
    byId('paint-swatch').style.backgroundColor = value === NEW ? '' : this.results.colourOf(value);
    byId('paint-swatch').hidden = value === NEW;
    this.show();
  }

  #addClass() {
    const name = inputOf('new-class').value.trim();
    if (!name || name.includes(',') || name.length > MOST_LETTERS) {
      throw new Error(`class: ${name ? `'${name.slice(0, MOST_LETTERS)}'` : 'no name'}, expected 1 to ${MOST_LETTERS} letters without a comma`);
    }
    this.results.include(name);
    inputOf('new-class').value = '';
    const select = selectOf('paint-class');
    if (![...select.options].some((option) => option.value === name)) select.prepend(el('option', { value: name }, name));
    select.value = name;
    this.#choose();
    this.take('brush');
    byId('viewer').focus();
  }

  /** Another plane cuts through all slices: there is nothing to paint on. */
  #followPlane() {
    if (this.#tool !== 'look' && !this.#isSlice) this.#tool = 'look';
    this.show();
  }

  #showSize() {
    byId('size-text').textContent = `Size ${this.#size} pixel${this.#size === 1 ? '' : 's'}`;
  }

  /** What can be done now. */
  show() {
    const { viewer } = this;
    const edit = this.#edit;
    for (const tool of TOOLS) {
      byId(`tool-${tool}`).setAttribute('aria-pressed', String(tool === this.#tool));
      byId(`tool-${tool}`).toggleAttribute('disabled', this.#isBusy && tool !== 'look');
    }
    const isFree = !this.#isBusy && this.#isSlice;
    byId('undo').toggleAttribute('disabled', !(isFree && edit?.canUndo(viewer.slice)));
    byId('redo').toggleAttribute('disabled', !(isFree && edit?.canRedo(viewer.slice)));
    viewer.canvas.classList.toggle('painting', this.#isPainting);
    if (!this.#isPainting) for (const id of ['brush-ring', 'box-frame']) byId(id).hidden = true;
  }

  get #isPainting() {
    return this.#tool !== 'look' && !this.#isBusy && this.#isSlice && this.viewer.scan !== null;
  }

  /** @param {CustomEvent<ImagePointer>} happened */
  #point(happened) {
    const place = happened.detail;
    const { event } = place;
    this.#showRing(place);
    if (!this.#isPainting || !event.isPrimary) return;
    if (MARKING.includes(this.#tool)) this.#mark(happened);
    else if (event.type === 'pointerdown' && event.buttons & (LEFT | PEN_ERASER)) {
      guarded(async () => this.#begin(place));
      happened.preventDefault();
    } else if (this.#stroke?.pointer === event.pointerId) {
      happened.preventDefault();
      if (event.type === 'pointermove' && event.buttons & (LEFT | PEN_ERASER) && place.slice === this.#stroke.slice) this.#draw(place);
      else if (event.type !== 'pointerleave') this.#end();
    }
  }

  /** @param {CustomEvent<ImagePointer>} happened */
  #mark(happened) {
    const place = happened.detail;
    const { event, voxel } = place;
    if (event.type === 'pointerdown' && event.buttons & LEFT && voxel !== null) {
      happened.preventDefault();
      if (this.#tool === 'box') this.#box = { pointer: event.pointerId, from: place };
      else guarded(async () => this.#tellMark(place.slice, voxel, null));
    } else if (this.#box?.pointer === event.pointerId) {
      happened.preventDefault();
      this.#showFrame(place);
      if (event.type === 'pointermove') return;
      const { from } = this.#box;
      this.#box = null;
      byId('box-frame').hidden = true;
      if (event.type === 'pointerup' && from.voxel !== null && place.slice === from.slice) {
        guarded(async () => this.#tellMark(from.slice, /** @type {number} */ (from.voxel), this.#nearest(place)));
      }
    }
  }

  /** The voxel of the plane that is nearest: a box may be drawn beyond the image.
   * @param {ImagePointer} place */
  #nearest({ column, row, slice }) {
    const plane = /** @type {import('./scan.js').Plane} */ (this.viewer.plane);
    const [across, down, through] = plane.steps;
    const [c, r] = [Math.min(plane.width - 1, Math.max(0, Math.floor(column))), Math.min(plane.height - 1, Math.max(0, Math.floor(row)))];
    return plane.start + c * across + r * down + slice * through;
  }

  /** @param {number} slice @param {number} from @param {number | null} to */
  #tellMark(slice, from, to) {
    const name = this.#tool === 'background' ? '' : this.#chosenClass();
    if (name) this.results.include(name);
    this.dispatchEvent(new CustomEvent('marked', { detail: { slice, from, to, name } }));
  }

  /** @returns {string} */
  #chosenClass() {
    const { value } = selectOf('paint-class');
    if (value !== NEW) return value;
    inputOf('new-class').focus();
    throw new Error('class: none chosen, expected the name of the new class');
  }

  /** The box that is being drawn, under the pointer.
   * @param {ImagePointer} place */
  #showFrame({ event }) {
    const start = /** @type {{from: ImagePointer}} */ (this.#box).from.event;
    const [left, top] = [Math.min(start.offsetX, event.offsetX), Math.min(start.offsetY, event.offsetY)];
    const [width, height] = [Math.abs(start.offsetX - event.offsetX), Math.abs(start.offsetY - event.offsetY)];
    byId('box-frame').hidden = false;
    Object.assign(byId('box-frame').style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  }

  /** @param {ImagePointer} place */
  #begin(place) {
    const isErasing = this.#tool === 'eraser' || (place.event.buttons & PEN_ERASER) > 0;
    const label = isErasing ? 0 : this.results.include(this.#chosenClass());
    this.#end();
    this.#edit?.begin(place.slice);
    this.#stroke = { pointer: place.event.pointerId, slice: place.slice, label, last: place };
    this.#draw(place);
  }

  /** @param {ImagePointer} place */
  #draw(place) {
    const { scan, plane } = this.viewer;
    const stroke = this.#stroke;
    if (!scan || !plane || !stroke) return;
    covered(plane, stroke.slice, stroke.last, place, this.#size, (voxel) => { scan.labels[voxel] = stroke.label; });
    stroke.last = place;
    this.viewer.refresh();
  }

  #end() {
    const stroke = this.#stroke;
    this.#stroke = null;
    if (stroke && this.#edit?.end()) this.#tell(stroke.slice, null);
  }

  /** The brush's border under the pointer.
   * @param {ImagePointer} place */
  #showRing({ event, voxel }) {
    const ring = byId('brush-ring');
    ring.hidden = !this.#isPainting || MARKING.includes(this.#tool) || (voxel === null && !this.#stroke) || event.type === 'pointerleave';
    const side = Math.max(3, this.#size * this.viewer.placed.column);
    Object.assign(ring.style, { width: `${side}px`, height: `${side}px`, left: `${event.offsetX - side / 2}px`, top: `${event.offsetY - side / 2}px` });
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (byId('segment-view').hidden || !this.viewer.scan || isTyping(event.target) || event.altKey) return;
    const key = event.key.toLowerCase();
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && (key === 'z' || key === 'y')) this.#step(key === 'y' || event.shiftKey ? 'redo' : 'undo');
    else if (!isCommand && KEYS[key] && !(this.#isBusy && key !== 'v')) this.take(KEYS[key]);
    else if (!isCommand && this.#isPainting && (key === '[' || key === ']')) this.#resize(key === ']');
    else return;
    event.preventDefault();
    event.stopPropagation(); // the viewer has other uses for brackets
  }

  /** @param {boolean} isBigger */
  #resize(isBigger) {
    const size = this.#size;
    const next = isBigger ? Math.max(size + 1, Math.round(size * BIGGER)) : Math.min(size - 1, Math.round(size / BIGGER));
    inputOf('size').value = String(next);
    this.#showSize();
  }
}
