/** Elements and text. Nothing on the pages makes HTML of a string: names in files are hostile. */

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** @param {string} id @returns {HTMLInputElement} */
export const inputOf = (id) => /** @type {HTMLInputElement} */ (byId(id));

/** @param {string} id @returns {HTMLSelectElement} */
export const selectOf = (id) => /** @type {HTMLSelectElement} */ (byId(id));

/**
 * An element with properties and children; strings become text.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Partial<Record<string, any>>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Fill a select, and keep what was chosen where it is still there.
 * @param {HTMLSelectElement} select @param {[string, string][]} options values and texts */
export function fill(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => el('option', { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** Save a file of the user.
 * @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = el('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
