/** The first view: an image in, its labels over it. */

import { eachLine, getBlob, getBuffer, getJson } from './api.js';
import { byId, el, fill, inputOf, save, selectOf } from './dom.js';
import { clearErrors, guarded, showError } from './errors.js';
import { asOne, filesDropped, stem } from './files.js';
import { parseNrrd } from './nrrd.js';
import { bytesOf } from './png.js';
import { Results, swatch } from './results.js';
import { Scan } from './scan.js';
import { bankQuery } from './templates.js';
import { Viewer } from './viewer.js';
import { connectControls } from './controls.js';

/** @typedef {import('./results.js').Answer} Answer */

const NIFTI = 'application/x-nifti';

export class SegmentView {
  /** @type {File | null} */ #file = null;
  /** @type {AbortController | null} */ #asking = null;
  /** Of the last answer: what was sent.
   * @type {FormData | null} */ #form = null;

  constructor() {
    this.viewer = new Viewer(/** @type {HTMLCanvasElement} */ (byId('canvas')));
    this.results = new Results(this.viewer);
    connectControls(this.viewer);
    this.viewer.addEventListener('imagepointer', (event) => this.#readout(/** @type {CustomEvent} */ (event).detail));
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#work('Sending…', (signal) => this.#segment(signal));
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
    selectOf('bank-asked').addEventListener('change', () => guarded(() => this.#showClasses()));
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
    fill(selectOf('bank-asked'), [['', 'default'], ...banks.filter(Boolean).map((name) => /** @type {[string, string]} */ ([name, name]))]);
    await this.#showClasses();
  }

  async #showClasses() {
    const listing = await getJson(`templates${bankQuery(selectOf('bank-asked').value)}`);
    const boxes = listing.classes.map((/** @type {{name: string, colour: string}} */ c) => el('label', { className: 'tick' },
      el('input', { type: 'checkbox', name: 'class', value: c.name }), swatch(c.colour), c.name));
    byId('class-boxes').replaceChildren(...boxes);
    if (!boxes.length) byId('class-boxes').textContent = 'The bank is empty: add templates first.';
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
    await guarded(() => work(asking.signal));
    if (this.#asking !== asking) return;
    this.#asking = null;
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
  #open(files) {
    if (!files.length) return;
    this.#work('Reading…', async (signal) => {
      const file = await asOne(files);
      const body = new FormData();
      body.append('image', file);
      const scan = new Scan(parseNrrd(await getBuffer('image', { method: 'POST', body, accept: 'application/x-nrrd', signal })));
      this.#file = file;
      this.results.begin('', { classes: [], templates: [] });
      this.viewer.show(scan);
      byId('empty').hidden = true;
      for (const id of ['tools', 'windowing']) byId(id).hidden = false;
      byId('mask-field').hidden = scan.isVolume;
      byId('chosen').textContent = described(file.name, scan);
      byId('viewer').setAttribute('aria-label', `Image ${file.name}`);
      byId('go').removeAttribute('disabled');
      document.title = `${file.name} – VESSA`;
    });
  }

  /** @param {Scan} scan */
  #formOf(scan) {
    const form = new FormData();
    form.append('image', /** @type {File} */ (this.#file));
    form.append('bank', selectOf('bank-asked').value);
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
    const bank = selectOf('bank-asked').value;
    const listing = await getJson(`templates${bankQuery(bank)}`, { signal });
    scan.clear();
    this.results.begin(bank, listing);
    this.#form = body;
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
    this.viewer.refresh();
  }

  /** @param {Scan} scan @param {number} slice @param {Answer} answer */
  async #take(scan, slice, answer) {
    await scan.take(slice, answer);
    if (scan === this.viewer.scan) this.results.add(slice, answer);
  }

  async #download() {
    const { scan } = this.viewer;
    if (!scan || !this.#form) return;
    const name = `${stem(this.#file?.name ?? '')}_labels`;
    if (!scan.isVolume) {
      const answer = this.results.answers.get(0);
      if (answer) save(new Blob([bytesOf(answer.labels_png)], { type: 'image/png' }), `${name}.png`);
      return;
    }
    // The server keeps its answers: nothing is computed again, and the geometry is the file's own.
    const labels = await getBlob('pseudolabel/volume', { method: 'POST', body: this.#form, accept: NIFTI });
    const packed = labels.stream().pipeThrough(new CompressionStream('gzip'));
    save(await new Response(packed).blob(), `${name}.nii.gz`);
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
    if (this.results.answers.size) {
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
