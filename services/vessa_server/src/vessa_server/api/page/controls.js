/** Sliders, buttons and keys around the viewer. */

import { byId, el, inputOf, selectOf } from './dom.js';

/** @typedef {import('./viewer.js').Viewer} Viewer */

/** Level and width in Hounsfield units.
 * @type {[string, number, number][]} */
const CT = [['soft tissue', 40, 400], ['liver', 60, 160], ['brain', 40, 80], ['lung', -600, 1500], ['bone', 400, 1800]];
const AUTOMATIC = 'automatic';
const OPACITY_STEP = 0.1;
const MOVE_PIXELS = 20;
const ZOOM_STEP = 1.25;

/** @param {number} value */
const short = (value) => Number(value.toPrecision(4)).toString();

/** @param {Viewer} viewer */
export function connectControls(viewer) {
  const [slice, level, width, opacity] = ['slice', 'level', 'width', 'opacity'].map(inputOf);
  const [plane, preset, layer] = ['plane', 'preset', 'layer'].map(selectOf);
  preset.replaceChildren(el('option', { value: AUTOMATIC }, 'automatic'), el('option', { value: '', hidden: true }, 'own'),
    ...CT.map(([name, centre, wide]) => el('option', { value: `${centre} ${wide}` }, `CT ${name}`)));

  slice.addEventListener('input', () => { viewer.slice = slice.valueAsNumber; });
  plane.addEventListener('change', () => { viewer.axis = Number(plane.value); });
  layer.addEventListener('change', () => { viewer.layer = /** @type {import('./viewer.js').Layer} */ (layer.value); });
  opacity.addEventListener('input', () => { viewer.opacity = opacity.valueAsNumber; });
  level.addEventListener('input', () => { viewer.window = { ...viewer.window, level: level.valueAsNumber }; });
  width.addEventListener('input', () => { viewer.window = { ...viewer.window, width: width.valueAsNumber }; });
  preset.addEventListener('change', () => {
    const [centre, wide] = preset.value.split(' ').map(Number);
    if (preset.value === AUTOMATIC && viewer.scan) viewer.window = { ...viewer.scan.window };
    else viewer.window = { level: centre, width: wide };
  });
  byId('zoom-in').addEventListener('click', () => viewer.zoomBy(ZOOM_STEP));
  byId('zoom-out').addEventListener('click', () => viewer.zoomBy(1 / ZOOM_STEP));
  byId('zoom-fit').addEventListener('click', () => viewer.fit());
  holdOriginal(viewer);
  byId('viewer').addEventListener('keydown', (event) => pressed(viewer, event));
  viewer.addEventListener('change', () => showState(viewer));
}

/** The original as long as the key or the button is held.
 * @param {Viewer} viewer */
function holdOriginal(viewer) {
  const button = byId('original');
  /** @param {boolean} is */
  const hold = (is) => { viewer.isOriginal = is; };
  button.addEventListener('pointerdown', () => hold(true));
  for (const kind of ['pointerup', 'pointerleave', 'pointercancel', 'blur']) button.addEventListener(kind, () => hold(false));
  button.addEventListener('keydown', (event) => { if ([' ', 'Enter'].includes(event.key)) hold(true); });
  button.addEventListener('keyup', () => hold(false));
  document.addEventListener('keydown', (event) => {
    const typed = event.target instanceof HTMLInputElement && !['range', 'checkbox', 'file'].includes(event.target.type);
    if (event.key.toLowerCase() === 'o' && !typed && !event.ctrlKey && !event.metaKey && !event.altKey) hold(true);
  });
  document.addEventListener('keyup', (event) => { if (event.key.toLowerCase() === 'o') hold(false); });
  window.addEventListener('blur', () => hold(false));
}

/** @param {Viewer} viewer @param {KeyboardEvent} event */
function pressed(viewer, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = (/** @type {number} */ steps) => () => { viewer.slice += steps; };
  /** @type {Record<string, () => void>} */
  const moves = {
    ArrowUp: () => viewer.move(0, MOVE_PIXELS),
    ArrowDown: () => viewer.move(0, -MOVE_PIXELS),
    ArrowLeft: () => viewer.move(MOVE_PIXELS, 0),
    ArrowRight: () => viewer.move(-MOVE_PIXELS, 0),
  };
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowUp: by(1), ArrowRight: by(1), ArrowDown: by(-1), ArrowLeft: by(-1), PageUp: by(5), PageDown: by(-5),
    Home: () => { viewer.slice = 0; },
    End: () => { viewer.slice = Infinity; },
    '+': () => viewer.zoomBy(ZOOM_STEP),
    '=': () => viewer.zoomBy(ZOOM_STEP),
    '-': () => viewer.zoomBy(1 / ZOOM_STEP),
    0: () => viewer.fit(),
    c: () => { viewer.layer = viewer.layer === 'contours' ? 'fill' : 'contours'; },
    '[': () => { viewer.opacity -= OPACITY_STEP; },
    ']': () => { viewer.opacity += OPACITY_STEP; },
  };
  const act = (event.shiftKey && moves[event.key]) || keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

/** @param {Viewer} viewer */
function showState(viewer) {
  const { scan, plane } = viewer;
  if (!scan || !plane) return;
  const slice = inputOf('slice');
  slice.max = String(plane.depth - 1);
  slice.value = String(viewer.slice);
  byId('slice-text').textContent = `Slice ${viewer.slice + 1} of ${plane.depth}`;
  byId('slices').hidden = plane.depth === 1;
  byId('planes').hidden = !scan.isVolume;
  selectOf('plane').value = String(viewer.axis);
  byId('original').setAttribute('aria-pressed', String(viewer.isOriginal));
  selectOf('layer').value = viewer.layer;
  inputOf('opacity').value = String(viewer.opacity);
  byId('opacity-text').textContent = `Opacity ${Math.round(viewer.opacity * 100)} %`;
  byId('opacity-field').hidden = viewer.layer === 'contours';
  byId('scale').hidden = viewer.layer !== 'confidence';
  showWindow(viewer, scan);
}

/** @param {Viewer} viewer @param {import('./scan.js').Scan} scan */
function showWindow(viewer, scan) {
  const { level, width } = viewer.window;
  const { low, high } = scan.range;
  for (const [id, value, least, most] of /** @type {[string, number, number, number][]} */ ([
    ['level', level, Math.min(low, level), Math.max(high, level)],
    ['width', width, 0, Math.max(high - low, width)],
  ])) {
    Object.assign(inputOf(id), { min: String(least), max: String(most) });
    inputOf(id).value = String(value);
    byId(`${id}-text`).textContent = `${id === 'level' ? 'Level' : 'Width'} ${short(value)}`;
  }
  const isAutomatic = level === scan.window.level && width === scan.window.width;
  const own = `${level} ${width}`;
  const known = CT.some(([, centre, wide]) => own === `${centre} ${wide}`);
  selectOf('preset').value = isAutomatic ? AUTOMATIC : known ? own : '';
}
