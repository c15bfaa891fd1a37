/** PNG of labels and confidence, with one byte a pixel: browsers would turn labels into colours. */

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
