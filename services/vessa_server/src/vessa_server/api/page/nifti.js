/** NIfTI files that the page writes: slices that become templates, and labels in the place of a volume. */

/** @typedef {import('./nrrd.js').Values} Values */
/** @typedef {import('./scan.js').Scan} Scan */

const HEADER = 348;
const OFFSET = 352;
/** Codes of the types, by the name of the array.
 * @type {Record<string, number>} */
const CODES = { Uint8Array: 2, Int16Array: 4, Int32Array: 8, Float32Array: 16, Int8Array: 256, Uint16Array: 512 };
const MILLIMETRES = 2;
const SCANNER = 1;

/** @param {number[]} sizes @param {Values} values first axis fastest
 * @param {number[]} affine three rows of four, from indices to mm @returns {Blob} */
function niftiOf(sizes, values, affine) {
  const view = new DataView(new ArrayBuffer(OFFSET));
  view.setInt32(0, HEADER, true);
  [sizes.length, ...sizes].forEach((size, k) => view.setInt16(40 + 2 * k, size, true));
  for (let k = sizes.length + 1; k < 8; k++) view.setInt16(40 + 2 * k, 1, true);
  view.setInt16(70, CODES[values.constructor.name], true);
  view.setInt16(72, 8 * values.BYTES_PER_ELEMENT, true);
  for (let k = 0; k < 8; k++) {
    const length = k && k < 4 ? Math.hypot(...[0, 4, 8].map((row) => affine[row + k - 1])) : 1;
    view.setFloat32(76 + 4 * k, length || 1, true);
  }
  view.setFloat32(108, OFFSET, true);
  view.setFloat32(112, 1, true); // slope
  view.setUint8(123, MILLIMETRES);
  view.setInt16(254, SCANNER, true); // of the affine; there is no quaternion
  affine.forEach((value, k) => view.setFloat32(280 + 4 * k, value, true));
  [...'n+1'].forEach((letter, k) => view.setUint8(344 + k, letter.charCodeAt(0)));
  return new Blob([view.buffer, /** @type {Uint8Array<ArrayBuffer>} */ (values)], { type: 'application/x-nifti' });
}

/** A grey slice, as the server reads one: rows first.
 * @param {Scan} scan @param {number} slice */
export function sliceNifti(scan, slice) {
  const { height, width } = scan.sliced(slice);
  const rows = scan.cut(scan.values, slice);
  const values = rows.slice();
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) values[column * height + row] = rows[row * width + column];
  }
  return niftiOf([height, width], values, [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]);
}

/** The labels of a volume as its file has it.
 * @param {Scan} scan @returns {Blob} */
export function labelNifti(scan) {
  const { sizes, axes, signs, affine } = /** @type {import('./nrrd.js').Stored} */ (scan.stored);
  const strides = [1, scan.size[0], scan.size[0] * scan.size[1]];
  const lengths = axes.map((axis) => scan.size[axis]);
  const steps = axes.map((axis, k) => signs[k] * strides[axis]);
  const start = steps.reduce((sum, step, k) => sum + (step < 0 ? -step * (lengths[k] - 1) : 0), 0);
  const values = new Uint8Array(scan.labels.length);
  let at = 0;
  for (let c = 0; c < lengths[2]; c++) {
    for (let b = 0; b < lengths[1]; b++) {
      let voxel = start + b * steps[1] + c * steps[2];
      for (let a = 0; a < lengths[0]; a++, voxel += steps[0]) values[at++] = scan.labels[voxel];
    }
  }
  return niftiOf(sizes, values, affine);
}
