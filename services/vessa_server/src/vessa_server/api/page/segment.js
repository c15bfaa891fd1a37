/** The first view: an image in, its labels over it, corrected, and out. */

import { Accepted, acceptSlices } from './accept.js';
import { askAgain, labelPng, merge } from './again.js';
import { eachLine, getBuffer, getJson } from './api.js';
import { connectControls } from './controls.js';
import { rgb } from './draw.js';
import { byId, el, fill, inputOf, save, selectOf } from './dom.js';
import { LabelEdit } from './edit.js';
import { clearErrors, guarded, showError } from './errors.js';
import { asOne, filesDropped, stem } from './files.js';
import { withMark } from './marks.js';
import { labelNifti } from './nifti.js';
import { parseNrrd } from './nrrd.js';
import { confirmed } from './question.js';
import { Results, swatch } from './results.js';
import { Scan } from './scan.js';
import { bankOptions, bankQuery } from './templates.js';
import { Tools } from './tools.js';
import { Viewer } from './viewer.js';

/** @typedef {import('./results.js').Answer} Answer */
/** @typedef {import('./results.js').Listing} Listing */

export class SegmentView {
  /** @type {File | null} */ #file = null;
  /** @type {AbortController | null} */ #asking = null;
  /** Of the bank that is asked.
   * @type {Listing} */ #listing = { classes: [], templates: [] };
  #accepted = new Accepted();

  /** @param {() => Promise<void>} changed called when a bank has changed */
  constructor(changed) {
    this.changed = changed;
    this.viewer = new Viewer(/** @type {HTMLCanvasElement} */ (byId('canvas')));
    this.results = new Results(this.viewer);
    this.tools = new Tools(this.viewer, this.results);
    connectControls(this.viewer);
    this.viewer.marksOf = (slice) => this.results.answers.get(slice)?.marks;
    this.viewer.colourOf = (name) => rgb(this.results.colourOf(name));
    this.tools.addEventListener('marked', (event) => this.#work('Asking…', (signal) => this.#mark(/** @type {CustomEvent} */ (event).detail, signal)));
    this.viewer.addEventListener('imagepointer', (event) => this.#readout(/** @type {CustomEvent} */ (event).detail));
    this.viewer.addEventListener('change', () => this.#showState());
    this.tools.addEventListener('edited', (event) => guarded(() => this.#edited(/** @type {CustomEvent} */ (event).detail)));
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      guarded(async () => {
        if (await this.#mayLose('Segment anew')) await this.#work('Sending…', (signal) => this.#segment(signal));
      });
    });
    byId('again').addEventListener('click', () => this.#work('Asking again…', (signal) => this.#again(signal)));
    byId('accept-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#work('Adding…', (signal) => this.#accept(signal));
    });
    for (const id of ['file', 'folder']) {
      byId(`choose-${id}`).addEventListener('click', () => inputOf(id).click());
      inputOf(id).addEventListener('change', () => {
        const files = [...inputOf(id).files ?? []];
        inputOf(id).value = ''; // so that the same file can be chosen again
        this.#open(files);
      });
    }
    byId('cancel').addEventListener('click', () => this.#asking?.abort());
    byId('download').addEventListener('click', () => guarded(() => this.#download()));
    byId('download-dicom').addEventListener('click', () => this.#work('Writing…', (signal) => this.#downloadDicom(signal)));
    selectOf('bank-asked').addEventListener('change', () => guarded(() => this.#showClasses()));
    selectOf('bank-asked').addEventListener('change', () => { inputOf('accept-bank').value = this.#bank; });
    document.addEventListener('dragover', (event) => event.preventDefault());
    document.addEventListener('drop', (event) => {
      event.preventDefault();
      if (event.dataTransfer && !byId('segment-view').hidden) {
        filesDropped(event.dataTransfer).then((files) => this.#open(files), showError);
      }
    });
  }

  /** @param {string[]} banks names */
  async showBanks(banks) {
    fill(selectOf('bank-asked'), bankOptions(banks));
    await this.#showClasses();
    for (const name of banks.filter(Boolean)) {
      if (this.#listing.templates.length) break; // else another bank may have some
      selectOf('bank-asked').value = name;
      await this.#showClasses();
    }
  }

  get #bank() { return selectOf('bank-asked').value; }

  /** Whether there are corrections that are in no file and no bank. */
  get isUnsaved() { return !!this.results.edit?.unsaved.length; }

  async #showClasses() {
    const listing = await getJson(`templates${bankQuery(this.#bank)}`);
    this.#listing = listing;
    const boxes = listing.classes.map((/** @type {{name: string, colour: string}} */ c) => el('label', { className: 'tick' },
      el('input', { type: 'checkbox', name: 'class', value: c.name }), swatch(c.colour), c.name));
    byId('class-boxes').replaceChildren(...boxes);
    if (!boxes.length) byId('class-boxes').textContent = 'The bank is empty: add templates, or open an image and paint the first.';
    if (!this.results.answers.size || this.results.bank === this.#bank) this.results.useBank(this.#bank, listing);
    this.#showPaints();
  }

  #showPaints() {
    this.tools.showClasses(this.#listing.classes.map((c) => c.name));
    this.#showState();
  }

  /** Ask before corrections are lost.
   * @param {string} what is to be done @returns {Promise<boolean>} */
  async #mayLose(what) {
    const unsaved = this.results.edit?.unsaved ?? [];
    if (!unsaved.length) return true;
    const where = this.viewer.scan?.isVolume ? `Slice${unsaved.length > 1 ? 's' : ''} ${unsaved.map((slice) => slice + 1).join(', ')}` : 'The labels';
    return confirmed(`${where}: edited, and in no file and no bank yet. ${what}, and lose that?`, what, 'Keep the edits');
  }

  /** Do what takes time, and say so; one thing at a time.
   * @param {string} text @param {(signal: AbortSignal) => Promise<void>} work */
  async #work(text, work) {
    this.#asking?.abort();
    const asking = new AbortController();
    this.#asking = asking;
    clearErrors();
    this.#say(text);
    byId('cancel').hidden = false;
    this.tools.isBusy = true;
    this.#showState();
    await guarded(() => work(asking.signal));
    if (this.#asking !== asking) return;
    this.#asking = null;
    this.tools.isBusy = false;
    this.#showState();
    byId('cancel').hidden = true;
    this.#say('');
  }

  /** @param {string} text @param {number} [done] @param {number} [all] */
  #say(text, done, all) {
    byId('work').textContent = text;
    const progress = /** @type {HTMLProgressElement} */ (byId('progress'));
    progress.hidden = !text;
    if (all === undefined) progress.removeAttribute('value');
    else Object.assign(progress, { value: done, max: all });
  }

  /** @param {File[]} files */
  async #open(files) {
    if (!files.length || !await this.#mayLose('Open another image')) return;
    this.#work('Reading…', async (signal) => {
      const file = await asOne(files);
      const body = new FormData();
      body.append('image', file);
      body.append('bank', this.#bank);
      const scan = new Scan(parseNrrd(await getBuffer('image', { method: 'POST', body, accept: 'application/x-nrrd', signal })));
      this.#file = file;
      this.#begin(scan, this.#bank, this.#listing);
      this.viewer.show(scan);
      byId('empty').hidden = true;
      for (const id of ['tools', 'windowing', 'editing', 'accept']) byId(id).hidden = false;
      inputOf('accept-name').value = stem(file.name);
      byId('accept-text').textContent = '';
      byId('mask-field').hidden = scan.isVolume;
      byId('download-dicom').hidden = !scan.isDicom;
      byId('chosen').textContent = described(file.name, scan);
      byId('viewer').setAttribute('aria-label', `Image ${file.name}`);
      byId('go').removeAttribute('disabled');
      document.title = `${file.name} – VESSA`;
    });
  }

  /** Begin with labels that nobody has touched.
   * @param {Scan} scan @param {string} bank @param {Listing} listing */
  #begin(scan, bank, listing) {
    const edit = new LabelEdit(scan);
    this.results.begin(bank, listing, edit);
    this.#accepted.begin(scan, edit);
    this.#showPaints();
  }

  /** @param {Scan} scan */
  #formOf(scan) {
    const form = new FormData();
    form.append('image', /** @type {File} */ (this.#file));
    form.append('bank', this.#bank);
    for (const box of byId('class-boxes').querySelectorAll('input')) if (box.checked) form.append('class_names', box.value);
    form.append('text', inputOf('text').value);
    form.append('explain', String(inputOf('explain').checked));
    const mask = inputOf('mask').files?.[0];
    if (mask && !scan.isVolume) form.append('student_mask', mask);
    return form;
  }

  /** @param {AbortSignal} signal */
  async #segment(signal) {
    const { scan } = this.viewer;
    if (!scan) return;
    const body = this.#formOf(scan);
    const bank = this.#bank;
    const listing = await getJson(`templates${bankQuery(bank)}`, { signal });
    scan.clear();
    this.#begin(scan, bank, listing);
    if (this.viewer.axis !== scan.slicing) this.viewer.axis = scan.slicing;
    const started = performance.now();
    const call = { method: 'POST', body, signal };
    const count = scan.size[scan.slicing];
    this.#say('Working…');
    if (scan.isVolume) {
      let done = 0;
      await eachLine('pseudolabel/volume', call, async (line) => {
        done += 1;
        this.#say(`Working: ${done} of ${count} slices`, done, count);
        if (line.error) showError(sliceError(line), `slice ${line.slice_index + 1}`);
        else await this.#take(scan, line.slice_index, line);
      });
      if (done < count) showError(new Error(`answer: ended after ${done} of ${count} slices, expected all; ask again`));
    } else {
      await this.#take(scan, 0, await getJson('pseudolabel', call));
    }
    this.results.seconds = (performance.now() - started) / 1000;
    this.#showPaints();
    this.viewer.refresh();
  }

  /** @param {Scan} scan @param {number} slice @param {Answer} answer */
  async #take(scan, slice, answer) {
    await scan.take(slice, answer);
    if (scan === this.viewer.scan) this.results.add(slice, { ...answer, bank: this.results.bank });
  }

  /** Classes of the labels that the bank has, too. */
  get #asked() {
    return this.results.names.filter((name) => this.#listing.classes.some((c) => c.name === name));
  }

  /** Ask for the slice in view again, with its labels as prompt.
   * @param {AbortSignal} signal */
  async #again(signal) {
    const { viewer: { scan, slice }, results: { answers } } = this;
    if (!scan) return;
    const mask = /** @type {Uint8Array} */ (scan.cut(scan.labels, slice));
    await this.#ask(slice, { mask, marks: answers.get(slice)?.marks }, signal);
  }

  /** Ask for a slice again, with a point or a box more.
   * @param {import('./tools.js').Mark} mark @param {AbortSignal} signal */
  async #mark({ slice, from, to, name }, signal) {
    const { viewer: { scan }, results: { answers } } = this;
    if (!scan) return;
    if (name && !this.#asked.includes(name)) {
      throw new Error(`class: '${name}' is not in the bank, expected one that is: points and boxes are for its classes; paint this one`);
    }
    const before = answers.get(slice);
    await this.#ask(slice, { mask: before?.mask, marks: withMark(before?.marks, scan, slice, from, to, name) }, signal);
  }

  /** Ask for a slice again, and keep what a person has painted.
   * @param {number} slice
   * @param {{mask?: Uint8Array, marks?: import('./marks.js').Marks}} known @param {AbortSignal} signal */
  async #ask(slice, known, signal) {
    const { viewer: { scan }, results, results: { names, edit } } = this;
    if (!scan || !edit) return;
    const [asked, bank, before] = [this.#asked, this.#bank, results.answers.get(slice)];
    if (!asked.length) throw new Error('labels: none yet, expected some to correct: press Segment first');
    const labels = /** @type {Uint8Array} */ (scan.cut(scan.labels, slice));
    const file = scan.isVolume ? null : this.#file;
    const answer = await askAgain({ scan, slice, names, asked, bank, before, text: inputOf('text').value, file, ...known }, signal);
    if (scan !== this.viewer.scan) return;
    edit.begin(slice);
    await scan.take(slice, answer);
    merge(scan, slice, names, asked, labels, edit.painted(slice));
    edit.end({ before, after: answer });
    results.add(slice, answer);
    this.viewer.refresh();
  }

  /** After a step, or after one was undone or done again.
   * @param {{slice: number, note: {answer: Answer | undefined} | null}} step */
  async #edited({ slice, note }) {
    const { scan } = this.viewer;
    this.#showState();
    if (!note || !scan) return;
    if (note.answer) this.results.add(slice, note.answer);
    else this.results.answers.delete(slice);
    await scan.takeConfidence(slice, note.answer);
    this.viewer.refresh();
  }

  /** @param {AbortSignal} signal */
  async #accept(signal) {
    const { viewer: { scan }, results: { names, edit } } = this;
    if (!scan || !edit) return;
    byId('accept-text').textContent = '';
    const { slices } = this.#accepted;
    try {
      const what = { scan, slices, names, file: scan.isVolume ? null : this.#file };
      byId('accept-text').textContent = await acceptSlices(what, (slice) => edit.keep([slice]), signal);
    } finally {
      await this.changed();
    }
  }

  /** What can be done with the labels, and why not. */
  #showState() {
    const { viewer: { scan, axis, slice }, results: { names, edit } } = this;
    const isSlice = axis === scan?.slicing;
    const why = !this.#listing.classes.length ? 'Ask again works once the bank has a template: accept this one as the first.'
      : !names.length ? 'Ask again works once there are labels: segment, or paint.'
        : !this.#asked.length ? 'Ask again works once the bank has one of these classes: accept this slice as the first.'
          : !isSlice ? 'Ask again works in the plane of the slices as acquired.' : '';
    byId('again').toggleAttribute('disabled', !!why || this.#asking !== null);
    byId('again-why').textContent = why;
    const edited = edit?.edited.map((index) => index + 1) ?? [];
    const saved = this.isUnsaved ? 'not in a file or a bank yet' : 'in a file or a bank';
    const where = scan?.isVolume ? `slice${edited.length > 1 ? 's' : ''} ${edited.join(', ')}` : 'labels';
    byId('edited-text').textContent = edited.length ? `Edited: ${where}; ${saved}.` : '';
    this.#accepted.show(isSlice ? slice : -1);
    if (this.#asking) byId('accept-go').toggleAttribute('disabled', true);
    for (const id of ['download', 'download-dicom']) byId(id).toggleAttribute('disabled', this.#asking !== null);
  }

  async #download() {
    const { viewer: { scan }, results } = this;
    if (!scan) return;
    const name = `${stem(this.#file?.name ?? '')}_labels`;
    if (scan.isVolume) {
      const packed = labelNifti(scan).stream().pipeThrough(new CompressionStream('gzip'));
      save(await new Response(packed).blob(), `${name}.nii.gz`);
    } else {
      const colours = results.names.map((label) => rgb(results.colourOf(label)));
      save(await labelPng(scan, 0, /** @type {Uint8Array} */ (scan.cut(scan.labels, 0)), [[0, 0, 0], ...colours]), `${name}.png`);
    }
    results.edit?.keep(results.edit.unsaved);
    this.#showState();
  }

  /** @param {AbortSignal} signal */
  async #downloadDicom(signal) {
    const { viewer: { scan }, results: { names, edit } } = this;
    if (!scan || !edit) return;
    const body = new FormData();
    body.append('image', /** @type {File} */ (this.#file));
    body.append('labels', labelNifti(scan), 'labels.nii');
    body.append('class_names', names.join(','));
    body.append('corrected', String(edit.edited.length > 0));
    const saved = edit.unsaved;
    const content = await getBuffer('segmentation', { method: 'POST', body, accept: 'application/dicom', signal });
    save(new Blob([content], { type: 'application/dicom' }), `${stem(this.#file?.name ?? '')}_labels.dcm`);
    edit.keep(saved);
    this.#showState();
  }

  /** What is under the pointer.
   * @param {import('./viewer.js').ImagePointer} pointer */
  #readout({ column, row, voxel }) {
    const { scan } = this.viewer;
    if (!scan) return;
    if (voxel === null) {
      byId('readout').textContent = '';
      return;
    }
    const values = scan.values.slice(voxel * scan.channels, (voxel + 1) * scan.channels);
    const parts = [`${Math.floor(column)}, ${Math.floor(row)}: ${[...values].map((v) => Number(v.toPrecision(5))).join(' ')}`];
    if (this.results.names.length) {
      parts.push(this.results.nameOf(scan.labels[voxel]) || 'background', `confidence ${(scan.confidence[voxel] / 255).toFixed(2)}`);
    }
    byId('readout').textContent = parts.join(' · ');
  }
}

/** @param {string} name @param {Scan} scan */
function described(name, scan) {
  const [x, y, z] = scan.size;
  const spacing = scan.spacing.map((mm) => Number(mm.toPrecision(3))).join(' × ');
  return scan.isVolume ? `${name}: ${x} × ${y} × ${z} voxels of ${spacing} mm` : `${name}: ${x} × ${y} pixels`;
}

/** @param {{error: import('./api.js').ErrorBody}} line */
function sliceError(line) {
  return new Error(line.error.message);
}
