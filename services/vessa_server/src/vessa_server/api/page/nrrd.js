/** Images as `POST /image` sends them: raw NRRD, colours first, then columns, rows, slices. */

/** @typedef {Uint8Array | Int8Array | Uint16Array | Int16Array | Int32Array | Float32Array} Values */

const TYPES = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array, float: Float32Array };
const END = [10, 10];

/**
 * @typedef {object} Voxels
 * @property {Values} values
 * @property {number} channels 1, or 3 of colours
 * @property {[number, number, number]} size
 * @property {[number, number, number]} spacing
 * @property {number | null} axis along which the volume is sliced; null for a picture
 * @property {Stored | null} stored how the file has a volume
 * @property {boolean} isDicom
 * @property {[number, number] | null} window in which VESSA sees it; null for percentiles of each slice
 */
/**
 * How a file has a volume: its k-th axis is `axes[k]` here, or leads the other way where `signs[k]` is -1.
 * @typedef {object} Stored
 * @property {number[]} sizes
 * @property {number[]} axes
 * @property {number[]} signs
 * @property {number[]} affine three rows of four, from indices to mm
 */

/** @param {ArrayBuffer} buffer @returns {Voxels} */
export function parseNrrd(buffer) {
  const bytes = new Uint8Array(buffer);
  const end = bytes.findIndex((_, i) => bytes[i] === END[0] && bytes[i + 1] === END[1]);
  /** @type {Record<string, string>} */
  const header = {};
  for (const line of new TextDecoder().decode(bytes.subarray(0, end)).split('\n').slice(1)) {
    const [, name, value] = /^([^:]+):=?\s*(.*)$/.exec(line) ?? [];
    header[name] = value;
  }
  const sizes = header.sizes.split(' ').map(Number);
  const channels = header.kinds.startsWith('RGB') ? sizes.shift() ?? 3 : 1;
  const [x, y, z = 1] = sizes;
  const Type = TYPES[/** @type {keyof typeof TYPES} */ (header.type)];
  const vectors = header['space directions']?.match(/\([^)]*\)/g) ?? [];
  const lengths = vectors.map((text) => Math.hypot(...text.slice(1, -1).split(',').map(Number)) || 1);
  const axis = header['slice axis'];
  const [stored, axes, signs, affine] = ['sizes', 'axes', 'signs', 'affine'].map((name) => header[`stored ${name}`]?.split(' ').map(Number));
  return {
    values: new Type(buffer.slice(end + 2)),
    channels,
    size: [x, y, z],
    spacing: [lengths[0] ?? 1, lengths[1] ?? 1, lengths[2] ?? 1],
    axis: axis === undefined ? null : Number(axis),
    stored: stored ? { sizes: stored, axes, signs, affine } : null,
    isDicom: header.source === 'DICOM',
    window: header.window ? /** @type {[number, number]} */ (header.window.split(' ').map(Number)) : null,
  };
}
