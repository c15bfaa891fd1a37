/** The page: two views, and the state of the server. */

import { getJson, setToken, watch } from './api.js';
import { BankView } from './bank.js';
import { byId, inputOf } from './dom.js';
import { clearErrors, guarded, showError } from './errors.js';
import { SegmentView } from './segment.js';

const segment = new SegmentView(load);
const bank = new BankView(load);

/** What the server is, and which banks it has. */
async function load() {
  const info = await getJson('info');
  byId('server').textContent = `${info.model_name}, ${(info.model_parameters / 1e6).toFixed(1)} M parameters, ${info.device}`;
  bank.showBanks(info.banks);
  await segment.showBanks(info.banks);
}

/** Show the view that the address names; returns whether it is the bank's. */
function showView() {
  const isBank = location.hash === '#bank';
  byId('segment-view').hidden = isBank;
  byId('bank-view').hidden = !isBank;
  for (const link of document.querySelectorAll('nav a')) {
    const isCurrent = link.getAttribute('href') === (isBank ? '#bank' : '#segment');
    if (isCurrent) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  return isBank;
}

function start() {
  byId('server').classList.remove('away');
  guarded(async () => {
    await load();
    if (showView()) await bank.load();
  });
}

window.addEventListener('hashchange', () => { if (showView()) guarded(() => bank.load()); });
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
