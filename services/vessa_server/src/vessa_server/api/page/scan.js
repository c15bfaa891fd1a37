/** A picture or volume with its labels, and its planes as doctors look at them. */

import { decodePng, bytesOf } from './png.js';

/** @typedef {import('./nrrd.js').Voxels} Voxels */

/**
 * One direction of looking. The voxel at (column, row, slice) is at
 * `start + column * steps[0] + row * steps[1] + slice * steps[2]`.
 * @typedef {object} Plane
 * @property {number} width
 * @property {number} height
 * @property {number} depth
 * @property {number} start
 * @property {[number, number, number]} steps
 * @property {[number, number]} spacing of columns and rows
 */

const SAMPLE = 100_000;
const ROBUST = [0.005, 0.995];

export class Scan {
  /** @param {Voxels} voxels */
  constructor({ values, channels, size, spacing, axis, stored, isDicom, window }) {
    this.values = values;
    this.channels = channels;
    this.size = size;
    this.spacing = spacing;
    this.axis = axis;
    this.stored = stored;
    this.isDicom = isDicom;
    this.seen = window;
    this.isVolume = axis !== null;
    const count = size[0] * size[1] * size[2];
    this.labels = new Uint8Array(count);
    this.confidence = new Uint8Array(count);
    const sorted = channels > 1 ? null : this.#sorted();
    this.window = window ? { level: (window[0] + window[1]) / 2, width: window[1] - window[0] } : sorted ? robustWindow(sorted) : { level: 127.5, width: 255 };
    this.range = sorted ? { low: sorted[0], high: Math.max(sorted[sorted.length - 1], sorted[0] + 1e-9) } : { low: 0, high: 255 };
  }

  /** The axis along which it was acquired; of a picture the one that it has not.
   * @returns {number} */
  get slicing() {
    return this.axis ?? 2;
  }

  /** @param {number} axis along which slices follow each other @returns {Plane} */
  plane(axis) {
    const [x, y, z] = this.size;
    const strides = [1, x, x * y];
    const [across, down] = axis === 0 ? [1, 2] : axis === 1 ? [0, 2] : [0, 1];
    // Patients lie with their right on the left side of the screen, front and head up.
    const flip = this.isVolume;
    return {
      width: this.size[across],
      height: this.size[down],
      depth: [x, y, z][axis],
      start: flip ? (this.size[across] - 1) * strides[across] + (this.size[down] - 1) * strides[down] : 0,
      steps: [flip ? -strides[across] : strides[across], flip ? -strides[down] : strides[down], strides[axis]],
      spacing: [this.spacing[across], this.spacing[down]],
    };
  }

  /** Take in the answer for a slice, which the server sees with its two other axes as rows and columns.
   * @param {number} slice @param {{labels_png: string, confidence_png: string}} answer */
  async take(slice, answer) {
    this.#put(this.labels, slice, (await decodePng(bytesOf(answer.labels_png))).pixels);
    await this.takeConfidence(slice, answer);
  }

  /** @param {number} slice @param {{confidence_png: string} | undefined} answer */
  async takeConfidence(slice, answer) {
    const { height, width } = this.sliced(slice);
    const pixels = answer ? (await decodePng(bytesOf(answer.confidence_png))).pixels : new Uint8Array(height * width);
    this.#put(this.confidence, slice, pixels);
  }

  /** How the server sees a slice: the voxel at (row, column) is at `start + row * down + column * across`.
   * @param {number} slice */
  sliced(slice) {
    const strides = [1, this.size[0], this.size[0] * this.size[1]];
    const [down, across] = this.isVolume ? [0, 1, 2].filter((axis) => axis !== this.slicing) : [1, 0];
    return {
      height: this.size[down], width: this.size[across], start: slice * strides[this.slicing], down: strides[down], across: strides[across],
    };
  }

  /** Row and column of a voxel of a slice, as the server sees it.
   * @param {number} slice @param {number} voxel */
  rowAndColumn(slice, voxel) {
    const { start, down, across, height, width } = this.sliced(slice);
    const at = voxel - start;
    return { row: Math.floor(at / down) % height, column: Math.floor(at / across) % width };
  }

  /** The middle of the server's pixel in columns and rows of the plane of the slices as acquired.
   * @param {number} row @param {number} column */
  inPlane(row, column) {
    if (!this.isVolume) return { column: column + 0.5, row: row + 0.5 };
    const { width, height } = this.plane(this.slicing);
    return { column: width - 0.5 - row, row: height - 0.5 - column };
  }

  /** A slice as the server sees it, row by row.
   * @template {import('./nrrd.js').Values} V
   * @param {V} source values of all voxels @param {number} slice @param {number} channels of each
   * @returns {V} */
  cut(source, slice, channels = 1) {
    const { height, width, start, down, across } = this.sliced(slice);
    const Type = /** @type {new (length: number) => V} */ (source.constructor);
    const out = new Type(height * width * channels);
    let at = 0;
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const voxel = start + row * down + column * across;
        for (let channel = 0; channel < channels; channel++) out[at++] = source[voxel * channels + channel];
      }
    }
    return out;
  }

  /** @param {Uint8Array} target @param {number} slice @param {Uint8Array} pixels row by row */
  #put(target, slice, pixels) {
    const { height, width, start, down, across } = this.sliced(slice);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) target[start + row * down + column * across] = pixels[row * width + column];
    }
  }

  /** Forget all answers. */
  clear() {
    this.labels.fill(0);
    this.confidence.fill(0);
  }

  #sorted() {
    const step = Math.max(1, Math.floor(this.values.length / SAMPLE));
    return Float64Array.from({ length: Math.ceil(this.values.length / step) }, (_, i) => this.values[i * step]).sort();
  }
}

/** @param {Float64Array} sorted values */
function robustWindow(sorted) {
  const [low, high] = ROBUST.map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  return { level: (low + high) / 2, width: high - low || 1 };
}
