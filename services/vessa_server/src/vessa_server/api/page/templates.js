/** Pictures of the server, such as those of templates, fetched when they come into view. */

import { getBlob } from './api.js';
import { el } from './dom.js';

const KEPT = 200;
/** Addresses of pictures, by path; the oldest are forgotten.
 * @type {Map<string, Promise<string>>} */
const pictures = new Map();

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    const image = /** @type {HTMLImageElement} */ (target);
    pictureOf(image.dataset.path ?? '').then((address) => { image.src = address; }, (error) => { image.alt = error.message; });
  }
}, { rootMargin: '200px' });

/** @param {string} path @returns {Promise<string>} */
function pictureOf(path) {
  const known = pictures.get(path);
  if (known) return known;
  const found = getBlob(path, { accept: 'image/png' }).then((blob) => URL.createObjectURL(blob));
  found.catch(() => pictures.delete(path));
  pictures.set(path, found);
  if (pictures.size > KEPT) forgetOldest();
  return found;
}

function forgetOldest() {
  const [path, address] = /** @type {[string, Promise<string>]} */ (pictures.entries().next().value);
  pictures.delete(path);
  address.then(URL.revokeObjectURL, () => {});
}

/** The part of an address that names a bank.
 * @param {string} bank */
export const bankQuery = (bank) => (bank ? `?bank=${encodeURIComponent(bank)}` : '');

/** Choices of a bank, the default one first.
 * @param {string[]} banks names @returns {[string, string][]} */
export const bankOptions = (banks) => [['', 'default'], ...banks.filter(Boolean).map((name) => /** @type {[string, string]} */ ([name, name]))];

/** An image of a path that takes the token.
 * @param {string} path @param {string} alt @param {{width?: number, height?: number}} [size] */
export function servedImage(path, alt, size = {}) {
  const image = el('img', { alt, ...size });
  image.dataset.path = path;
  seen.observe(image);
  return image;
}

/** A template with its picture and lines of text.
 * @param {string} bank @param {string} id @param {string} name @param {string[]} lines @param {...Node} more */
export function templateFigure(bank, id, name, lines, ...more) {
  const path = `templates/${encodeURIComponent(id)}/overlay.png${bankQuery(bank)}`;
  const image = servedImage(path, `Template ${name}`, { width: 120, height: 120 });
  return el('figure', {}, image, el('figcaption', {}, el('strong', {}, name), ...lines.map((line) => el('span', {}, line)), ...more));
}
