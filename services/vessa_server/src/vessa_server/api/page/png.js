/** PNG of labels and confidence, with one byte a pixel: browsers would turn labels into colours. */

import { checksum } from './zip.js';

/** @typedef {{width: number, height: number, pixels: Uint8Array}} Picture */

/** @param {string} base64 @returns {Uint8Array<ArrayBuffer>} */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** @param {Uint8Array<ArrayBuffer>} bytes @returns {Promise<Picture>} */
export async function decodePng(bytes) {
  const view = new DataView(bytes.buffer);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const parts = [];
  for (let at = 8; at < bytes.length; at += view.getUint32(at) + 12) {
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === 'IHDR' && (bytes[at + 16] !== 8 || ![0, 3].includes(bytes[at + 17]) || bytes[at + 20])) {
      throw new Error('PNG with other than one byte a pixel');
    }
    if (kind === 'IDAT') parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const unpacked = new Blob(parts).stream().pipeThrough(new DecompressionStream('deflate'));
  const lines = new Uint8Array(await new Response(unpacked).arrayBuffer());
  const pixels = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) unfilter(lines, pixels, row, width);
  return { width, height, pixels };
}

/** A part of a PNG: length, kind, content, checksum.
 * @param {string} kind @param {Uint8Array} content */
function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, checksum(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** @param {Picture} picture of one byte a pixel, or of three where there is no palette
 * @param {[number, number, number][]} [palette] colours of the values @returns {Promise<Blob>} */
export async function encodePng({ width, height, pixels }, palette) {
  const row = pixels.length / height;
  const lines = new Uint8Array(pixels.length + height);
  for (let y = 0; y < height; y++) lines.set(pixels.subarray(y * row, (y + 1) * row), y * (row + 1) + 1);
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream('deflate'));
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([8, palette ? 3 : 2], 8);
  const colours = palette ? [chunk('PLTE', Uint8Array.from(palette.flat()))] : [];
  const content = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  return new Blob([signature, chunk('IHDR', header), ...colours, chunk('IDAT', content), chunk('IEND', new Uint8Array())], { type: 'image/png' });
}

/** One row, from the filter that it names.
 * @param {Uint8Array} lines @param {Uint8Array} pixels @param {number} row @param {number} width */
function unfilter(lines, pixels, row, width) {
  const from = row * (width + 1);
  const to = row * width;
  const filter = lines[from];
  for (let column = 0; column < width; column++) {
    const left = column ? pixels[to + column - 1] : 0;
    const above = row ? pixels[to + column - width] : 0;
    const corner = row && column ? pixels[to + column - width - 1] : 0;
    const guesses = [0, left, above, (left + above) >> 1];
    const guess = filter === 4 ? nearest(left, above, corner) : guesses[filter];
    pixels[to + column] = lines[from + 1 + column] + guess;
  }
}

/** Paeth's predictor.
 * @param {number} left @param {number} above @param {number} corner */
function nearest(left, above, corner) {
  const sum = left + above - corner;
  const [a, b, c] = [Math.abs(sum - left), Math.abs(sum - above), Math.abs(sum - corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? above : corner;
}
