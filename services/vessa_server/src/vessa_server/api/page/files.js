/** What a person drops or chooses, as one file for the server. */

import { zipped } from './zip.js';

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<File[]>} */
async function filesBelow(folder) {
  const reader = folder.createReader();
  /** @type {File[]} */
  const found = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    for (const entry of entries) found.push(...await filesOf(entry));
  }
}

/** @param {FileSystemEntry} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.isDirectory) return filesBelow(/** @type {FileSystemDirectoryEntry} */ (entry));
  return [await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject))];
}

/** @param {DataTransfer} dropped @returns {Promise<File[]>} */
export async function filesDropped(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (!entries.length) return [...dropped.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

/** One file as it is; several, which are a DICOM series, as a zip.
 * @param {File[]} files @returns {Promise<File>} */
export async function asOne(files) {
  const visible = files.filter((file) => !file.name.startsWith('.'));
  if (!visible.length) throw new Error('image: no files in it, expected an image, or a folder of DICOM');
  if (visible.length === 1) return visible[0];
  const folder = visible[0].webkitRelativePath.split('/')[0] || 'series';
  const named = visible.map((file, index) => /** @type {[string, File]} */ ([`${index}-${file.name}`, file]));
  return new File([await zipped(named)], `${folder}.zip`);
}

/** A name without what says its format.
 * @param {string} name */
export const stem = (name) => name.replace(/(\.seg)?\.(nii\.gz|nii|nrrd|zip|dcm|png|jpe?g|tiff?)$/i, '') || 'labels';
