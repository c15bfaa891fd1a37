/** A folder as one file: a zip without compression, which scans would hardly gain by. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});
const MOST_FILES = 65_535;
const MOST_BYTES = 2 ** 32 - 1;
const UTF8 = 0x0800;

/** CRC-32.
 * @param {Uint8Array} bytes */
export function checksum(bytes) {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) value = TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/** Numbers in little endian; the second of each pair is its size in bytes.
 * @param {...[number, number]} fields */
function packed(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += size;
  }
  return view.buffer;
}

/** @param {[string, File][]} files by name @returns {Promise<Blob>} */
export async function zipped(files) {
  const total = files.reduce((sum, [, file]) => sum + file.size + 300, 0);
  if (files.length > MOST_FILES || total > MOST_BYTES) {
    throw new Error(`folder: ${files.length} files, ${total} bytes, expected at most ${MOST_FILES} and 4 GiB; choose the folder of one series`);
  }
  /** @type {BlobPart[]} */
  const parts = [];
  /** @type {BlobPart[]} */
  const list = [];
  let at = 0;
  let listed = 0;
  for (const [path, file] of files) {
    const name = new TextEncoder().encode(path);
    const sum = checksum(new Uint8Array(await file.arrayBuffer()));
    /** @type {[number, number][]} */
    const shared = [[20, 2], [UTF8, 2], [0, 2], [0, 2], [33, 2], [sum, 4], [file.size, 4], [file.size, 4], [name.length, 2], [0, 2]];
    parts.push(packed([0x04034b50, 4], ...shared), name, file);
    list.push(packed([0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]), name);
    at += 30 + name.length + file.size;
    listed += 46 + name.length;
  }
  const end = packed([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [listed, 4], [at, 4], [0, 2]);
  return new Blob([...parts, ...list, end]);
}
