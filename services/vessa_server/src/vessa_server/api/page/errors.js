/** What went wrong, a line for each: field, and what was expected. */

import { ApiError } from './api.js';
import { byId, el } from './dom.js';

const list = byId('errors');

/** Forget the lines of what was done before. */
export function clearErrors() {
  list.replaceChildren();
}

/** @param {unknown} error @param {string} [place] such as a slice */
export function showError(error, place = '') {
  if (error instanceof DOMException && error.name === 'AbortError') return;
  const field = error instanceof ApiError ? error.field : '';
  let message = error instanceof Error ? error.message : String(error);
  if (field && message.startsWith(`${field}: `)) message = message.slice(field.length + 2);
  const start = [place, field].filter(Boolean).map((text) => el('code', {}, text));
  const line = el('li', {}, ...start, ...(start.length ? [' '] : []), message, ' ');
  line.append(el('button', { type: 'button', ariaLabel: 'Close this message', onclick: () => line.remove() }, '×'));
  if ([...list.children].some((other) => other.textContent === line.textContent)) return;
  list.append(line);
}

/** Run what a person has started; what it throws becomes a line.
 * @template T @param {() => Promise<T>} work @returns {Promise<T | undefined>} */
export async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    showError(error);
    return undefined;
  }
}
