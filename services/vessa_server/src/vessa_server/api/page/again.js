/** Labels of one slice that are asked for again, with what a person knows of them. */

import { ApiError, getJson } from './api.js';
import { marksOf } from './marks.js';
import { sliceNifti } from './nifti.js';
import { encodePng } from './png.js';

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./results.js').Answer} Answer */

/** A slice as a file of its own.
 * @param {Scan} scan @param {number} slice @returns {Promise<Blob>} */
export async function sliceFile(scan, slice) {
  if (scan.channels === 1) return sliceNifti(scan, slice);
  const { height, width } = scan.sliced(slice);
  return encodePng({ height, width, pixels: /** @type {Uint8Array} */ (scan.cut(scan.values, slice, scan.channels)) });
}

/** Labels of a slice as a picture whose values they are, which is one with a palette.
 * @param {Scan} scan @param {number} slice @param {Uint8Array} pixels
 * @param {[number, number, number][]} [palette] colours of the values, for who looks at it */
export function labelPng(scan, slice, pixels, palette = Array.from({ length: 256 }, (_, value) => [value, value, value])) {
  const { height, width } = scan.sliced(slice);
  return encodePng({ height, width, pixels }, palette);
}

/** @param {Blob} blob @returns {Promise<string>} */
async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = '';
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** Labels of a slice, in the numbers of the page, as a prompt in those of the classes that are asked.
 * @param {Scan} scan @param {number} slice @param {Uint8Array} labels @param {string[]} names of the labels
 * @param {string[]} asked */
async function promptOf(scan, slice, labels, names, asked) {
  const numbers = [0, ...names.map((name) => asked.indexOf(name) + 1)];
  return base64(await labelPng(scan, slice, labels.map((label) => numbers[label])));
}

/**
 * @typedef {object} Question
 * @property {Scan} scan
 * @property {number} slice
 * @property {string[]} names of the labels
 * @property {string[]} asked those of them that the bank has
 * @property {string} bank
 * @property {string} text
 * @property {Answer | undefined} before
 * @property {Blob | null} file the picture, where the slice is not of a volume
 * @property {Uint8Array} [mask] labels as a prompt
 * @property {import('./marks.js').Marks} [marks]
 */

/** @param {Question} question @param {AbortSignal} signal @returns {Promise<Answer>} */
export async function askAgain({ scan, slice, names, asked, bank, text, before, file, mask, marks }, signal) {
  const shared = {
    ...(marks && marksOf(marks, asked)), student_mask: mask ? await promptOf(scan, slice, mask, names, asked) : null, class_names: asked, bank, text, region: before?.region ?? null, window: scan.seen,
  };
  /** @param {object} image */
  const ask = async (image) => {
    const answer = await getJson('pseudolabel', { method: 'POST', body: JSON.stringify({ ...shared, ...image }), signal });
    return { ...answer, bank, mask, marks };
  };
  if (before) {
    try {
      return await ask({ image_ref: before.image_ref }); // its features are known
    } catch (error) {
      if (!(error instanceof ApiError && error.field === 'image_ref')) throw error;
    }
  }
  return ask({ image: await base64(file ?? await sliceFile(scan, slice)) });
}

/**
 * Labels of an answer in the numbers of the page. What a person has painted stays, and so does a class that was not
 * asked for: the answer is worth having for the rest.
 * @param {Scan} scan
 * @param {number} slice
 * @param {string[]} names of the labels
 * @param {string[]} asked names of the answer's
 * @param {Uint8Array} before labels that were the prompt
 * @param {Uint8Array} painted where a person has changed them
 */
export function merge(scan, slice, names, asked, before, painted) {
  const numbers = [0, ...asked.map((name) => names.indexOf(name) + 1)];
  const isAsked = [true, ...names.map((name) => asked.includes(name))];
  const { height, width, start, down, across } = scan.sliced(slice);
  for (let pixel = 0; pixel < height * width; pixel++) {
    const voxel = start + Math.floor(pixel / width) * down + (pixel % width) * across;
    const isFree = isAsked[before[pixel]] && !painted[pixel];
    scan.labels[voxel] = isFree ? numbers[scan.labels[voxel]] : before[pixel];
  }
}
