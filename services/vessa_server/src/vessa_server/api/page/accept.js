/** Slices that a person has made right become templates of a bank. */

import { ApiError, getJson } from './api.js';
import { labelPng, sliceFile } from './again.js';
import { byId, el, inputOf } from './dom.js';
import { confirmed } from './question.js';

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./edit.js').LabelEdit<any>} Edit */

/** The field of the refusal of templates with other labels of the same pixels. */
const OUTDATED = 'outdated';
const MOST_LETTERS = 100;

/** What a template may be called by, as `vessa templates add` has it.
 * @param {string} text */
function templateName(text) {
  const printable = [...text].map((c) => (/[\p{C}\p{Zl}\p{Zp}]/u.test(c) ? '?' : c));
  const half = (MOST_LETTERS - 3) / 2;
  if (printable.length <= MOST_LETTERS) return printable.join('');
  return `${printable.slice(0, half).join('')}...${printable.slice(-half).join('')}`;
}

/** Which slices are taken. */
export class Accepted {
  /** Those that are right as they are.
   * @type {Set<number>} */ #right = new Set();
  /** Those that were edited, but are not to be taken.
   * @type {Set<number>} */ #left = new Set();
  /** @type {Scan | null} */ #scan = null;
  /** @type {Edit | null} */ #edit = null;
  #slice = 0;
  #shown = '';

  constructor() {
    byId('accept-slice').addEventListener('click', () => {
      this.#left.delete(this.#slice);
      this.#right.add(this.#slice);
      this.show(this.#slice);
    });
  }

  /** Begin with another scan, or other labels of it.
   * @param {Scan} scan @param {Edit} edit */
  begin(scan, edit) {
    this.#scan = scan;
    this.#edit = edit;
    this.#right.clear();
    this.#left.clear();
    this.#shown = '';
  }

  /** In order. */
  get slices() {
    return this.#listed.filter((slice) => !this.#left.has(slice));
  }

  get #listed() {
    const scan = this.#scan;
    if (!scan || !this.#edit) return [];
    if (!scan.isVolume) return [0];
    return [...new Set([...this.#edit.edited, ...this.#right])].sort((a, b) => a - b);
  }

  /** @param {number} slice in view; -1 where a plane cuts through all of them */
  show(slice) {
    this.#slice = slice;
    const listed = this.#listed;
    const button = byId('accept-slice');
    button.hidden = !this.#scan?.isVolume || slice < 0 || this.slices.includes(slice);
    button.textContent = `Slice ${slice + 1} is right, too`;
    byId('accept-list').hidden = !this.#scan?.isVolume;
    byId('accept-go').toggleAttribute('disabled', !this.slices.length);
    const key = JSON.stringify([listed, [...this.#left]]);
    if (key === this.#shown) return;
    this.#shown = key;
    byId('accept-slices').replaceChildren(...listed.map((index) => this.#box(index)));
    if (!listed.length) byId('accept-slices').textContent = 'None yet: those that you edit, or say are right.';
  }

  /** @param {number} slice */
  #box(slice) {
    const box = el('input', { type: 'checkbox', checked: !this.#left.has(slice) });
    box.addEventListener('change', () => {
      if (box.checked) this.#left.delete(slice);
      else this.#left.add(slice);
      this.#shown = JSON.stringify([this.#listed, [...this.#left]]); // the box stays, with its focus
      this.show(this.#slice);
    });
    return el('label', { className: 'tick' }, box, String(slice + 1));
  }
}

/**
 * Add slices to a bank, one by one; what the bank has of the same pixels is replaced after a question.
 * @param {object} what
 * @param {Scan} what.scan
 * @param {number[]} what.slices
 * @param {string[]} what.names of the labels
 * @param {Blob | null} what.file the picture, where there are no slices
 * @param {(slice: number) => void} added called for each that is in the bank now
 * @param {AbortSignal} signal
 * @returns {Promise<string>} what was done, in words
 */
export async function acceptSlices({ scan, slices, names, file }, added, signal) {
  const bank = inputOf('accept-bank').value.trim();
  const name = inputOf('accept-name').value.trim();
  const isOfSeveral = scan.size[scan.slicing] > 1 && scan.isVolume;
  const done = { added: 0, replaced: 0, 'there already': 0, 'left as the bank has them': 0, 'without a label, not added': 0 };
  /** @type {boolean | null} */
  let isReplacing = null;
  for (const slice of slices) {
    const body = await templateForm(scan, slice, names, file);
    if (!body) {
      done['without a label, not added'] += 1;
      continue;
    }
    body.append('bank', bank);
    body.append('name', templateName(isOfSeveral ? `${name} slice ${slice}` : name)); // from 0, as the command has it
    try {
      body.set(OUTDATED, 'refuse');
      const { created } = await getJson('templates', { method: 'POST', body, signal });
      done[created ? 'added' : 'there already'] += 1;
    } catch (error) {
      if (!(error instanceof ApiError && error.field === OUTDATED)) throw error;
      isReplacing ??= await confirmed(`${differing(error)} Replace the bank's labels${slices.length > 1 ? ', and those of the other slices' : ''}?`, 'Replace', 'Keep the bank\'s');
      if (!isReplacing) {
        done['left as the bank has them'] += 1;
        continue;
      }
      body.set(OUTDATED, 'replace');
      await getJson('templates', { method: 'POST', body, signal });
      done.replaced += 1;
    }
    added(slice);
  }
  return `${Object.entries(done).filter(([, count]) => count).map(([text, count]) => `${count} ${text}`).join(', ')}: ${bank || 'default'} bank.`;
}

/** A slice with the classes that it shows; null where it shows none.
 * @param {Scan} scan @param {number} slice @param {string[]} names @param {Blob | null} file */
async function templateForm(scan, slice, names, file) {
  const labels = /** @type {Uint8Array} */ (scan.cut(scan.labels, slice));
  const found = new Set(labels);
  const shown = names.filter((_, index) => found.has(index + 1));
  if (!shown.length) return null;
  const unnamable = shown.find((name) => name.includes(','));
  if (unnamable) throw new Error(`class: '${unnamable}' has a comma, which a form cannot carry; add it with \`vessa templates add\``);
  const numbers = [0, ...names.map((name) => shown.indexOf(name) + 1)];
  const body = new FormData();
  body.append('image', file ?? await sliceFile(scan, slice));
  body.append('labels', await labelPng(scan, slice, labels.map((label) => numbers[label])));
  body.append('class_names', shown.join(','));
  if (scan.seen) body.append('window', scan.seen.join(','));
  return body;
}

/** @param {ApiError} error */
function differing(error) {
  return error.message.replace(`${OUTDATED}: t`, 'T').replace(/, expected .*$/, '.');
}
