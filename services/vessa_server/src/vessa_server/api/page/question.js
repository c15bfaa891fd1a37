/** Questions before what cannot be undone. */

import { byId } from './dom.js';

/** @param {string} question @param {string} yes what the buttons say @param {string} no
 * @returns {Promise<boolean>} */
export function confirmed(question, yes, no) {
  const dialog = /** @type {HTMLDialogElement} */ (byId('question'));
  byId('question-text').textContent = question;
  byId('yes').textContent = yes;
  byId('no').textContent = no;
  dialog.showModal();
  byId('no').focus();
  return new Promise((resolve) => {
    // Not by the event `close`, which comes later, when the next question may be asked.
    const answer = (/** @type {boolean} */ is) => {
      dialog.close();
      resolve(is);
    };
    byId('yes').onclick = () => answer(true);
    byId('no').onclick = () => answer(false);
    dialog.oncancel = () => resolve(false);
  });
}
