/** The second view: what is in the banks, what is added, what goes. */

import { getJson } from './api.js';
import { CheckView } from './check.js';
import { byId, el, fill, selectOf } from './dom.js';
import { clearErrors, guarded } from './errors.js';
import { confirmed } from './question.js';
import { swatch } from './results.js';
import { bankOptions, bankQuery, templateFigure } from './templates.js';

/** @typedef {{template_id: string, name: string, height: number, width: number, class_names: string[]}} Template */
/** @typedef {{name: string, description: string, colour: string}} Class */

/** The file that a template comes from: `vessa templates add` names slices `scan slice 4`.
 * @param {string} name */
const sourceOf = (name) => name.replace(/ slice \d+$/, '') || 'without a name';

export class BankView {
  /** @type {Template[]} */ #templates = [];
  /** @type {Class[]} */ #classes = [];
  #check = new CheckView(() => bankQuery(this.#bank));

  /** @param {() => Promise<void>} changed called when a bank has changed */
  constructor(changed) {
    this.changed = changed;
    selectOf('bank-shown').addEventListener('change', () => guarded(() => this.load()));
    selectOf('class-shown').addEventListener('change', () => this.#show());
    byId('add-form').addEventListener('submit', (event) => {
      event.preventDefault();
      clearErrors();
      guarded(() => this.#add());
    });
  }

  /** @param {string[]} banks names */
  showBanks(banks) {
    const options = bankOptions(banks);
    fill(selectOf('bank-shown'), options);
    byId('bank-names').replaceChildren(...options.slice(1).map(([value]) => el('option', { value })));
  }

  get #bank() {
    return selectOf('bank-shown').value;
  }

  async load() {
    const listing = await getJson(`templates${bankQuery(this.#bank)}`);
    this.#templates = listing.templates;
    this.#classes = listing.classes;
    this.#check.show(listing.version, this.#classes.map((c) => c.name));
    const classes = this.#classes.map((c) => /** @type {[string, string]} */ ([c.name, c.name]));
    fill(selectOf('class-shown'), [['', 'all'], ...classes]);
    this.#show();
  }

  #show() {
    const chosen = selectOf('class-shown').value;
    const classes = this.#classes.filter((c) => !chosen || c.name === chosen);
    const shown = classes.map((c) => this.#ofClass(c)).filter((part) => part !== null);
    const [count, sources] = [this.#templates.length, new Set(this.#templates.map((t) => sourceOf(t.name))).size];
    byId('bank-text').textContent = `${count} template${count === 1 ? '' : 's'} of ${sources} source${sources === 1 ? '' : 's'}, ${this.#classes.length} class${this.#classes.length === 1 ? '' : 'es'}`;
    byId('bank').replaceChildren(...shown);
    if (!shown.length) byId('bank').textContent = 'Empty. Add a template above, or scans with `vessa templates add`.';
  }

  /** Templates that show a class, by the file that they come from.
   * @param {Class} shown */
  #ofClass(shown) {
    /** @type {Map<string, Template[]>} */
    const sources = new Map();
    for (const template of this.#templates.filter((t) => t.class_names.includes(shown.name))) {
      const source = sourceOf(template.name);
      sources.set(source, [...sources.get(source) ?? [], template]);
    }
    if (!sources.size) return null;
    const groups = [...sources].map(([source, templates]) => el('details', { open: sources.size <= 3 },
      el('summary', {}, `${source} (${templates.length})`),
      el('div', { className: 'figures' }, ...templates.map((t) => this.#figure(t)))));
    return el('section', {}, el('h2', {}, swatch(shown.colour), shown.name),
      ...(shown.description ? [el('p', { className: 'muted' }, shown.description)] : []), ...groups);
  }

  /** @param {Template} template */
  #figure(template) {
    const name = template.name || template.template_id;
    const remove = el('button', { type: 'button', ariaLabel: `Remove ${name}`, onclick: () => this.#remove(template) }, 'Remove');
    return templateFigure(this.#bank, template.template_id, name, [`${template.height} × ${template.width}`, template.class_names.join(', ')], remove);
  }

  /** @param {Template} template */
  async #remove(template) {
    const bank = this.#bank;
    const question = `Remove the template ${template.name || template.template_id} from the ${bank || 'default'} bank? It cannot be brought back.`;
    if (!await confirmed(question, 'Remove', 'Keep')) return;
    clearErrors();
    await guarded(async () => {
      await getJson(`templates/${encodeURIComponent(template.template_id)}${bankQuery(bank)}`, { method: 'DELETE' });
      await this.changed();
      await this.load();
    });
  }

  async #add() {
    const form = /** @type {HTMLFormElement} */ (byId('add-form'));
    const body = new FormData(form);
    const bank = String(body.get('bank')).trim();
    const added = await getJson('templates', { method: 'POST', body });
    form.reset();
    await this.changed();
    selectOf('bank-shown').value = bank;
    await this.load();
    byId('bank-text').textContent += added.created ? ': added' : ': it is there already';
  }
}
