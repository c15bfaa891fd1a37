/** Pixels of a slice: its values in a window, its labels, its confidence. */

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./scan.js').Plane} Plane */
/** @typedef {{level: number, width: number}} Window */
/** @typedef {[number, number, number]} Colour */

// The bright half of inferno: lightness rises with doubt, also for who does not see red and green apart.
/** @type {Colour[]} */
const SCALE = [[187, 55, 84], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
// What is surer than this fades.
const FADES = 1 / 3;

/** Colours of labels, over and over, as all pictures of VESSA have them.
 * @type {Colour[]} */
const COLOURS = [[230, 60, 60], [60, 200, 90], [70, 110, 240], [240, 200, 50], [200, 80, 220], [60, 210, 220], [250, 140, 40], [160, 160, 160]];

/** @param {number} label from 1 */
export const hexColour = (label) => `#${COLOURS[(label - 1) % COLOURS.length].map((v) => v.toString(16).padStart(2, '0')).join('')}`;

/** @param {string} hex such as #e63c3c @returns {Colour} */
export function rgb(hex) {
  const value = Number.parseInt(hex.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** Red, green, blue, and alpha of a confidence: what is unsure is bright, what is sure stays clear.
 * @param {number} confidence 0 to 1 @returns {number[]} each 0 to 255 */
export function scaled(confidence) {
  const doubt = 1 - confidence;
  const at = doubt * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  const colour = SCALE[low].map((v, i) => Math.round(v + (SCALE[low + 1][i] - v) * (at - low)));
  return [...colour, Math.round(255 * Math.min(1, doubt / FADES))];
}

/** Call for each pixel of a slice with the place of its voxel.
 * @param {Plane} plane @param {number} slice @param {(pixel: number, voxel: number) => void} visit */
function each(plane, slice, visit) {
  const [across, down, through] = plane.steps;
  let pixel = 0;
  for (let row = 0; row < plane.height; row++) {
    let voxel = plane.start + row * down + slice * through;
    for (let column = 0; column < plane.width; column++, voxel += across) visit(pixel++, voxel);
  }
}

/** @param {Scan} scan @param {Plane} plane @param {number} slice @param {Window} window */
export function imagePixels(scan, plane, slice, window) {
  const image = new ImageData(plane.width, plane.height);
  const out = image.data;
  const { values, channels } = scan;
  const low = window.level - window.width / 2;
  const factor = 255 / (window.width || 1);
  each(plane, slice, (pixel, voxel) => {
    const at = voxel * channels;
    out[pixel * 4] = (values[at] - low) * factor;
    out[pixel * 4 + 1] = channels > 1 ? (values[at + 1] - low) * factor : out[pixel * 4];
    out[pixel * 4 + 2] = channels > 1 ? (values[at + 2] - low) * factor : out[pixel * 4];
    out[pixel * 4 + 3] = 255;
  });
  return image;
}

/** @param {Scan} scan @param {Plane} plane @param {number} slice @param {(Colour | null)[]} colours by label; null is not shown */
export function labelPixels(scan, plane, slice, colours) {
  const image = new ImageData(plane.width, plane.height);
  const out = new Uint32Array(image.data.buffer);
  const table = new Uint32Array(256);
  const bytes = new Uint8Array(table.buffer);
  colours.forEach((colour, label) => { if (colour) bytes.set([...colour, 255], label * 4); });
  each(plane, slice, (pixel, voxel) => { out[pixel] = table[scan.labels[voxel]]; });
  return image;
}

/** @param {Scan} scan @param {Plane} plane @param {number} slice */
export function confidencePixels(scan, plane, slice) {
  const table = Array.from({ length: 256 }, (_, value) => scaled(value / 255));
  const image = new ImageData(plane.width, plane.height);
  each(plane, slice, (pixel, voxel) => image.data.set(table[scan.confidence[voxel]], pixel * 4));
  return image;
}

/** Borders of each label along the edges of its pixels, in pixels.
 * @param {Scan} scan @param {Plane} plane @param {number} slice @returns {Map<number, Path2D>} */
export function contours(scan, plane, slice) {
  /** @type {Map<number, Path2D>} */
  const paths = new Map();
  const { width, height } = plane;
  const labels = new Uint8Array(width * height);
  each(plane, slice, (pixel, voxel) => { labels[pixel] = scan.labels[voxel]; });
  /** @param {number} label @param {number} x @param {number} y @param {number} toX @param {number} toY */
  const edge = (label, x, y, toX, toY) => {
    const path = paths.get(label) ?? new Path2D();
    paths.set(label, path);
    path.moveTo(x, y);
    path.lineTo(toX, toY);
  };
  /** @param {number} column @param {number} row */
  const at = (column, row) => (column < 0 || row < 0 || column >= width || row >= height ? 0 : labels[row * width + column]);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const label = labels[row * width + column];
      if (!label) continue;
      if (at(column - 1, row) !== label) edge(label, column, row, column, row + 1);
      if (at(column + 1, row) !== label) edge(label, column + 1, row, column + 1, row + 1);
      if (at(column, row - 1) !== label) edge(label, column, row, column + 1, row);
      if (at(column, row + 1) !== label) edge(label, column, row + 1, column + 1, row + 1);
    }
  }
  return paths;
}
