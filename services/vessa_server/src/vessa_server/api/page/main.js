/** The page: three views, and the state of the server. */

import { getJson, setToken, watch } from './api.js';
import { BankView } from './bank.js';
import { byId, inputOf } from './dom.js';
import { clearErrors, guarded, showError } from './errors.js';
import { SegmentView } from './segment.js';
import { TrainingView } from './training.js';

const segment = new SegmentView(load);
const bank = new BankView(load);
/** @type {Record<string, {load: () => Promise<void>} | null>} */
const views = { segment: null, bank, training: new TrainingView() };

/** What the server is, and which banks it has. */
async function load() {
  const info = await getJson('info');
  byId('server').textContent = `${info.model_name}, ${(info.model_parameters / 1e6).toFixed(1)} M parameters, ${info.device}`;
  bank.showBanks(info.banks);
  await segment.showBanks(info.banks);
}

/** Show the view that the address names, and what it shows. */
async function showView() {
  const named = location.hash.slice(1).split('/')[0];
  const shown = named in views ? named : 'segment';
  for (const name of Object.keys(views)) {
    byId(`${name}-view`).hidden = name !== shown;
    const link = /** @type {Element} */ (document.querySelector(`nav a[href="#${name}"]`));
    if (name === shown) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  await views[shown]?.load();
}

function start() {
  byId('server').classList.remove('away');
  guarded(async () => {
    await load();
    await showView();
  });
}

window.addEventListener('hashchange', () => guarded(showView));
inputOf('token').addEventListener('change', () => {
  setToken(inputOf('token').value);
  clearErrors();
  start();
});
window.addEventListener('beforeunload', (event) => { if (segment.isUnsaved) event.preventDefault(); });
watch((error) => {
  clearErrors();
  if (error) {
    byId('server').textContent = 'Server does not answer';
    byId('server').classList.add('away');
    showError(error);
  } else start();
});
showView();
start();
