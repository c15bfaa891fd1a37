/** How well the scans of a bank are segmented by each other, as `vessa check` says it. */

import { ApiError, eachLine } from './api.js';
import { byId, el, inputOf } from './dom.js';
import { clearErrors, guarded } from './errors.js';
import { bytesOf } from './png.js';

/** @typedef {{scan: string, mean: number, dice: Record<string, number | null>, address: string}} Scan */
/** @typedef {{mean: number, classes: Record<string, number | null>}} Summary */

// Of the worst scans; a browser would not hold those of hundreds.
const PICTURES = 12;
const OPEN = 2;

/** @param {number | null | undefined} value */
const figure = (value) => (value === undefined ? '' : value === null ? 'no other' : value.toFixed(2));

/** @param {string[]} names in order, those of a scan @param {Scan[]} scans */
const classesOf = (names, scans) => names.filter((name) => scans.some((one) => name in one.dice));

export class CheckView {
  /** @type {Scan[]} the worst first */ #scans = [];
  #total = 0;
  #of = '';
  /** @type {string[]} */ #names = [];
  /** @type {AbortController | null} */ #stopping = null;

  /** @param {() => string} query the part of an address that names the bank */
  constructor(query) {
    this.query = query;
    byId('check').addEventListener('submit', (event) => {
      event.preventDefault();
      clearErrors();
      guarded(() => this.#check());
    });
    byId('check-stop').addEventListener('click', () => this.#stopping?.abort());
  }

  /** Forget what was said of another bank, or of this one before it was changed.
   * @param {string} version @param {string[]} classNames */
  show(version, classNames) {
    const of = `${this.query()} ${version}`;
    if (of === this.#of) return;
    this.#of = of;
    this.#names = classNames;
    this.#stopping?.abort();
    this.#clear();
  }

  #clear() {
    this.#scans.forEach((one) => URL.revokeObjectURL(one.address));
    this.#scans = [];
    this.#show();
    byId('check-text').textContent = '';
  }

  async #check() {
    this.#stopping?.abort();
    this.#clear();
    const stopping = new AbortController();
    this.#stopping = stopping;
    this.#running(true);
    byId('check-text').textContent = 'Checking…';
    const query = `${this.query() || '?bank='}&patient_end=${encodeURIComponent(inputOf('check-patient').value)}`;
    try {
      await eachLine(`check${query}`, { method: 'POST', signal: stopping.signal }, async (line) => {
        if (!stopping.signal.aborted) this.#take(line);
      });
    } catch (error) {
      if (this.#stopping === stopping) byId('check-text').textContent = this.#scans.length ? `Ended after ${this.#scans.length} of ${this.#total} scans` : '';
      throw error;
    } finally {
      if (this.#stopping === stopping) this.#running(false);
    }
  }

  /** @param {any} line */
  #take(line) {
    if (line.error) throw new ApiError(line.error);
    if (line.summary) {
      this.#show(line.summary);
      byId('check-text').textContent = line.verdict;
      return;
    }
    if (line.scan === undefined) this.#total = line.scans;
    else {
      const address = URL.createObjectURL(new Blob([bytesOf(line.picture_png)], { type: 'image/png' }));
      this.#scans.push({ ...line, address });
      this.#scans.sort((a, b) => a.mean - b.mean);
      this.#scans.slice(PICTURES).forEach((one) => URL.revokeObjectURL(one.address));
      this.#show();
    }
    const progress = /** @type {HTMLProgressElement} */ (byId('check-progress'));
    progress.max = this.#total;
    progress.value = this.#scans.length;
    byId('check-text').textContent = `${this.#scans.length} of ${this.#total} scans checked`;
  }

  /** @param {boolean} isRunning */
  #running(isRunning) {
    byId('check-go').hidden = isRunning;
    for (const id of ['check-stop', 'check-progress']) byId(id).hidden = !isRunning;
    if (isRunning) /** @type {HTMLProgressElement} */ (byId('check-progress')).removeAttribute('value');
    else this.#stopping = null;
  }

  /** @param {Summary} [summary] where all are done */
  #show(summary) {
    const names = classesOf(this.#names, this.#scans);
    const head = ['Scan held out', ...names, 'Mean'].map((name) => el('th', { scope: 'col' }, name));
    /** @param {string} name @param {Record<string, number | null>} dice @param {number} mean */
    const row = (name, dice, mean) => el('tr', {}, el('th', { scope: 'row' }, name),
      ...[...names.map((n) => dice[n]), mean].map((value) => el('td', {}, figure(value))));
    const rows = this.#scans.map((one) => row(one.scan, one.dice, one.mean));
    if (summary) rows.push(row('Mean', summary.classes, summary.mean));
    byId('check-table').replaceChildren(...(rows.length ? [el('caption', {}, 'Dice with the others, the worst first'), el('tr', {}, ...head), ...rows] : []));
    byId('check-scroll').tabIndex = rows.length ? 0 : -1; // scrolled by keys on small screens
    byId('check-pictures').replaceChildren(...this.#scans.slice(0, PICTURES).map((one, index) => el('details', { open: index < OPEN },
      el('summary', {}, `${one.scan}: Dice ${figure(one.mean)}`),
      el('div', { className: 'scroll', tabIndex: 0 }, el('img', { src: one.address, alt: `Worst slices of ${one.scan}: as they are, as annotated, and as the others segment them` })))));
  }
}
