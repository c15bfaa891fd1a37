/** The third view: runs of the trainer, and how the chosen one goes. */

import { getJson } from './api.js';
import { Chart } from './chart.js';
import { byId, el } from './dom.js';
import { guarded } from './errors.js';
import { servedImage } from './templates.js';

/** @typedef {import('./chart.js').Curves} Curves */
/** @typedef {{name: string, step: number, steps: number | null, best_dice: number | null, answered: number | null,
 *   written: number, age_seconds: number, finished: boolean, problems: string[]}} Run */
/** @typedef {{of: string, cases: number, worst: {name: string, dice: number[], hd95: number[], unit: string}[]}} Scores */
/** @typedef {{steps: number | null, classes: string[], labelled: string[], server: string, bank: string, method: string,
 *   student: string, size: string, seed: string}} Told */
/** @typedef {Run & {told: Told, charts: Curves[], scores: Scores[], pictures: {name: string, version: string}[]}} WholeRun */

const PREFIX = '#training/';
const REFRESH_MS = 4000;
// A run that wrote nothing for longer does not go on, as far as its files say.
const SILENT_SECONDS = 900;
// Curves are drawn anew.
/** @type {Record<string, string>} */
const PICTURES = {
  gallery: 'Slices, from the best to the worst',
  regions: 'Regions of interest: of the student (green), of VESSA (red)',
  pseudo_labels: 'Pseudo-labels over time',
};

/** @param {number | null} value */
const fixed = (value) => (value === null ? '–' : value.toFixed(3));

/** Rounded down: 100 % is all of them.
 * @param {number | null} share */
const percent = (share) => (share === null ? '–' : `${Math.floor(1000 * share) / 10} %`);

/** @param {number} seconds */
function ago(seconds) {
  const [size, unit] = /** @type {[number, string][]} */ ([[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']]).find(([s]) => seconds >= s) ?? [1, 's'];
  return `${Math.floor(seconds / size)} ${unit} ago`;
}

/** @param {Run} run */
function stateOf(run) {
  if (run.finished) return 'finished';
  return run.age_seconds < SILENT_SECONDS ? 'not finished, goes on' : 'not finished, silent';
}

/** @param {string} name @param {string[]} titles @param {Node[]} rows */
const table = (name, titles, rows) => el('div', { className: 'scroll', tabIndex: 0, role: 'group', ariaLabel: name }, el('table', {},
  el('thead', {}, el('tr', {}, ...titles.map((title) => el('th', { scope: 'col' }, title)))), el('tbody', {}, ...rows)));

/** @param {(string | Node)[]} cells the first one names the row */
const row = ([first, ...cells]) => el('tr', {}, el('th', { scope: 'row' }, first), ...cells.map((cell) => el('td', {}, cell)));

export class TrainingView {
  /** @type {Chart[]} */ #charts = [];
  /** What is shown of the chosen run, and of which of its states. */
  #shown = '';
  #chosen = '';
  #newest = '';

  constructor() {
    const again = async () => {
      if (!byId('training-view').hidden && !document.hidden) await guarded(() => this.load());
      setTimeout(again, REFRESH_MS);
    };
    setTimeout(again, REFRESH_MS);
  }

  async load() {
    /** @type {{folder: string | null, runs: Run[], count: number}} */
    const { folder, runs, count } = await getJson('runs');
    this.#newest ||= runs[0]?.name ?? '';
    const chosen = location.hash.startsWith(PREFIX) ? decodeURIComponent(location.hash.slice(PREFIX.length)) : this.#newest;
    if (chosen !== this.#chosen) byId('run').hidden = true;
    this.#chosen = chosen;
    this.#list(folder, runs, count, chosen);
    const run = runs.find(({ name }) => name === chosen);
    const state = JSON.stringify([chosen, run?.written, run?.step]);
    if (!chosen || (state === this.#shown && !byId('run').hidden)) return;
    const whole = await getJson(`runs/${encodeURIComponent(chosen)}`);
    if (chosen !== this.#chosen) return; // another one was asked for meanwhile
    this.#shown = state;
    byId('run').hidden = false;
    this.#show(whole);
  }

  /** @param {string | null} folder @param {Run[]} runs @param {number} count @param {string} chosen */
  #list(folder, runs, count, chosen) {
    let text = `${count} run${count === 1 ? '' : 's'} in ${folder}${count > runs.length ? `; the newest ${runs.length} are listed` : ''}`;
    if (!count) text = `The folder ${folder} has no run yet. One appears with its first update: ssl-trainer train CONFIG --out ${folder}/NAME`;
    if (folder === null) text = 'No folder of runs is set. Start the server with it: vessa-server serve --runs DIR, or VESSA_RUNS_DIR=DIR; '
      + 'DIR is where the runs of ssl-trainer train --out DIR/NAME lie.';
    if (byId('runs-text').textContent !== text) byId('runs-text').textContent = text;
    const isFocused = byId('runs').contains(document.activeElement) ? document.activeElement?.textContent : null;
    const rows = runs.map((run) => {
      const link = el('a', { href: PREFIX + encodeURIComponent(run.name) }, run.name);
      if (run.name === chosen) link.ariaCurrent = 'true';
      const written = el('span', { title: new Date(1000 * run.written).toLocaleString() }, ago(run.age_seconds));
      const state = stateOf(run) + (run.problems.length ? '; see below what is wrong' : '');
      return row([link, `${run.step} of ${run.steps ?? '?'}`, fixed(run.best_dice), percent(run.answered), written, state]);
    });
    const titles = ['Run', 'Updates', 'Best Dice', "VESSA's answers", 'Written', 'State'];
    byId('runs').replaceChildren(...(rows.length ? [table('Runs', titles, rows)] : []));
    if (isFocused) [...byId('runs').querySelectorAll('a')].find((link) => link.textContent === isFocused)?.focus();
  }

  /** @param {WholeRun} run */
  #show(run) {
    byId('run-name').textContent = run.name;
    byId('run-problems').replaceChildren(...run.problems.map((problem) => el('li', {}, problem)));
    this.#tell(run);
    while (this.#charts.length < run.charts.length) this.#charts.push(new Chart());
    byId('charts').replaceChildren(...this.#kept(run));
    byId('scores').replaceChildren(...(run.scores.length ? run.scores.map((scores) => this.#worst(scores, run.told.classes))
      : [el('p', { className: 'muted' }, 'No scores of cases yet: ssl-trainer evaluate RUN writes them.')]));
    byId('run-pictures').replaceChildren(...run.pictures.filter(({ name }) => PICTURES[name]).map(({ name, version }) => {
      const path = `runs/${encodeURIComponent(run.name)}/${name}.png?v=${version}`;
      return el('figure', { className: 'wide' }, el('figcaption', {}, el('strong', {}, PICTURES[name])), servedImage(path, PICTURES[name]));
    }));
  }

  /** @param {WholeRun} run */
  #kept(run) {
    run.charts.forEach((curves, i) => this.#charts[i].show(curves));
    return this.#charts.map((chart) => chart.element);
  }

  /** @param {WholeRun} run */
  #tell({ told }) {
    /** @type {[string, string][]} */
    const lines = [
      ['Classes', told.classes.join(', ')], ['Annotated', told.labelled.join(', ')],
      ['Server', told.server || 'none: trains alone'], ['Bank', told.server && (told.bank || 'the default one')],
      ['Method', told.method], ['Student', told.student && `${told.student}, ${told.size} × ${told.size} pixels, seed ${told.seed}`],
    ];
    byId('told').replaceChildren(...lines.filter(([, text]) => text).flatMap(([name, text]) => [el('dt', {}, name), el('dd', {}, text)]));
  }

  /** @param {Scores} scores @param {string[]} classes */
  #worst({ of, cases, worst }, classes) {
    const titles = ['Case', ...classes.flatMap((name) => [`${name}: Dice`, `HD95 (${worst[0]?.unit ?? ''})`])];
    const rows = worst.map((c) => row([c.name, ...c.dice.flatMap((dice, i) => [fixed(dice), c.hd95[i]?.toFixed(1) ?? '–'])]));
    const name = `Worst of ${cases} case${cases === 1 ? '' : 's'}: ${of}`;
    return el('section', {}, el('h3', {}, name), table(name, titles, rows));
  }
}
