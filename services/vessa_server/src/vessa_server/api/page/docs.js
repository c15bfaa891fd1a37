/** The OpenAPI description, readable. */

import { byId, el } from './dom.js';

/** @typedef {Record<string, any>} Json */

/** @param {Json} schema @returns {string} */
function kind(schema) {
  const one = schema.anyOf ? schema.anyOf.find((/** @type {Json} */ s) => s.type !== 'null') : schema;
  if (one.format === 'binary' || one.contentMediaType) return 'file';
  return one.type === 'array' ? `several, ${kind(one.items || {})}` : one.type || '';
}

/** @param {string} name @param {string} place @param {Json} schema @param {boolean} required @param {string} [text] */
function row(name, place, schema, required, text) {
  const words = [required ? 'required' : '', text || schema.description || ''].filter(Boolean).join('. ');
  return el('tr', {}, el('td', {}, el('code', {}, name)), el('td', {}, place), el('td', {}, kind(schema)), el('td', {}, words));
}

/** @param {Json} schema @param {Json} api @returns {[string, Json, boolean][]} */
function fields(schema, api) {
  const found = schema.$ref ? api.components.schemas[schema.$ref.split('/').pop()] : schema;
  return Object.entries(found.properties || {}).map(([name, s]) => [name, s, (found.required || []).includes(name)]);
}

/** @param {string} method @param {string} path @param {Json} described @param {Json} api */
function operation(method, path, described, api) {
  const rows = (described.parameters || []).map((/** @type {Json} */ p) => row(p.name, p.in, p.schema || {}, p.required, p.description));
  for (const [media, content] of Object.entries(described.requestBody?.content || {})) {
    for (const [name, schema, required] of fields(content.schema || {}, api)) rows.push(row(name, media, schema, required));
  }
  const answers = Object.entries(described.responses || {}).map(([status, r]) => `${status}: ${r.description}`).join(' · ');
  const table = rows.length ? [el('div', { className: 'scroll', tabIndex: 0 }, el('table', {}, el('tr', {},
    ...['Field', 'In', 'Type', 'What'].map((h) => el('th', { scope: 'col' }, h))), ...rows))] : [];
  return el('details', {},
    el('summary', {}, el('code', {}, `${method.toUpperCase()} ${path}`), ' ', described.description || described.summary || ''),
    ...table, el('p', { className: 'muted' }, answers));
}

const api = await (await fetch('openapi.json')).json();
/** @type {Record<string, HTMLElement[]>} */
const groups = {};
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, described] of Object.entries(/** @type {Json} */ (methods))) {
    (groups[described.tags?.[0] || 'other'] ||= []).push(operation(method, path, described, api));
  }
}
byId('operations').replaceChildren(...Object.entries(groups).flatMap(([name, items]) => [el('h3', {}, name), ...items]));
