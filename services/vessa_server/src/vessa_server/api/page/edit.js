/** Labels that a person corrects, slice by slice, and what was done, to be undone. Knows no page. */

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./scan.js').Plane} Plane */
/** @typedef {{column: number, row: number}} Place */

/**
 * What belongs to the labels before a step and after it.
 * @template T
 * @typedef {{before: T | undefined, after: T}} Note
 */

/**
 * One step: start, length, label before and after of each run of pixels that it changed.
 * @template T
 * @typedef {{id: number, runs: Uint32Array, note: Note<T> | null}} Step
 */

/**
 * Steps of a slice. Its state is named by the step that led to it; `base` is what is left of steps
 * that were forgotten.
 * @template T
 * @typedef {{done: Step<T>[], undone: Step<T>[], base: number, saved: number}} History
 */

// Of a slice, and of all slices together.
export const MOST_STEPS = 100;
export const MOST_BYTES = 64 * 2 ** 20;
const FIELDS = 4;

/** @template T */
export class LabelEdit {
  /** @type {Map<number, History<T>>} */ #slices = new Map();
  /** @type {{slice: number, before: Uint8Array} | null} */ #open = null;
  #lastId = 0;

  /** @param {Scan} scan whose labels are changed in place @param {number} mostBytes of all steps */
  constructor(scan, mostBytes = MOST_BYTES) {
    this.scan = scan;
    this.mostBytes = mostBytes;
  }

  /** Begin a step: until it ends, labels of this slice may be changed.
   * @param {number} slice */
  begin(slice) {
    this.#open = { slice, before: /** @type {Uint8Array} */ (this.scan.cut(this.scan.labels, slice)) };
  }

  /** End the step; one that changed nothing, and has no note, is none.
   * @param {Note<T> | null} note @returns {boolean} whether it counts */
  end(note = null) {
    if (!this.#open) return false;
    const { slice, before } = this.#open;
    this.#open = null;
    const runs = changed(before, /** @type {Uint8Array} */ (this.scan.cut(this.scan.labels, slice)));
    if (!runs.length && !note) return false;
    const history = this.#slices.get(slice) ?? { done: [], undone: [], base: 0, saved: 0 };
    this.#slices.set(slice, history);
    history.done.push({ id: ++this.#lastId, runs, note });
    history.undone = [];
    if (history.done.length > MOST_STEPS) forgetOldest(history);
    this.#forget(history);
    return true;
  }

  /** @param {number} slice @returns {Step<T> | null} what was undone */
  undo(slice) {
    const history = this.#slices.get(slice);
    const step = history?.done.pop();
    if (!history || !step) return null;
    history.undone.push(step);
    this.#write(slice, step.runs, 2);
    return step;
  }

  /** @param {number} slice @returns {Step<T> | null} what was done again */
  redo(slice) {
    const history = this.#slices.get(slice);
    const step = history?.undone.pop();
    if (!history || !step) return null;
    history.done.push(step);
    this.#write(slice, step.runs, 3);
    return step;
  }

  /** @param {number} slice */
  canUndo(slice) { return !!this.#slices.get(slice)?.done.length; }

  /** @param {number} slice */
  canRedo(slice) { return !!this.#slices.get(slice)?.undone.length; }

  /** Whether a slice's labels are an answer as it came.
   * @param {number} slice */
  isAnswer(slice) {
    return this.#state(slice) === 0 || !!this.#slices.get(slice)?.done.at(-1)?.note;
  }

  /** Where a person has changed the labels of a slice, 1 or 0 row by row; what answers changed does not count.
   * @param {number} slice */
  painted(slice) {
    const { height, width } = this.scan.sliced(slice);
    const painted = new Uint8Array(height * width);
    for (const { runs, note } of this.#slices.get(slice)?.done ?? []) {
      if (note) continue;
      for (let at = 0; at < runs.length; at += FIELDS) painted.fill(1, runs[at], runs[at] + runs[at + 1]);
    }
    return painted;
  }

  /** Slices with steps, in order. */
  get edited() { return this.#where((slice) => this.#state(slice) !== 0); }

  /** Slices that have changed since they were saved. */
  get unsaved() { return this.#where((slice, { saved }) => this.#state(slice) !== saved); }

  /** @param {number[]} slices whose labels are in a file or a bank now */
  keep(slices) {
    for (const slice of slices) {
      const history = this.#slices.get(slice);
      if (history) history.saved = this.#state(slice);
    }
  }

  /** Bytes of all steps. */
  get bytes() {
    const steps = [...this.#slices.values()].flatMap(({ done, undone }) => [...done, ...undone]);
    return steps.reduce((sum, step) => sum + step.runs.byteLength, 0);
  }

  /** @param {(slice: number, history: History<T>) => boolean} is */
  #where(is) {
    return [...this.#slices].filter(([slice, history]) => is(slice, history)).map(([slice]) => slice).sort((a, b) => a - b);
  }

  /** @param {number} slice */
  #state(slice) {
    const history = this.#slices.get(slice);
    return history ? history.done.at(-1)?.id ?? history.base : 0;
  }

  /** Forget the oldest steps of all slices while they are too large, but not the newest.
   * @param {History<T>} newest */
  #forget(newest) {
    while (this.bytes > this.mostBytes) {
      const others = [...this.#slices.values()].filter((h) => h.done.length > (h === newest ? 1 : 0));
      others.sort((a, b) => a.done[0].id - b.done[0].id);
      if (!others.length) break;
      forgetOldest(others[0]);
    }
  }

  /** @param {number} slice @param {Uint32Array} runs @param {number} field of a run that has the label */
  #write(slice, runs, field) {
    const { start, down, across, width } = this.scan.sliced(slice);
    for (let at = 0; at < runs.length; at += FIELDS) {
      for (let pixel = runs[at]; pixel < runs[at] + runs[at + 1]; pixel++) {
        this.scan.labels[start + Math.floor(pixel / width) * down + (pixel % width) * across] = runs[at + field];
      }
    }
  }
}

/** @param {History<any>} history */
function forgetOldest(history) {
  history.base = history.done.shift()?.id ?? history.base;
}

/** Runs of pixels that differ.
 * @param {Uint8Array} before @param {Uint8Array} after */
function changed(before, after) {
  /** @type {number[]} */
  const runs = [];
  let isOpen = false;
  for (let pixel = 0; pixel < after.length; pixel++) {
    const isSame = isOpen && before[pixel] === before[pixel - 1] && after[pixel] === after[pixel - 1];
    if (before[pixel] === after[pixel]) isOpen = false;
    else if (isSame) runs[runs.length - FIELDS + 1] += 1;
    else {
      runs.push(pixel, 1, before[pixel], after[pixel]);
      isOpen = true;
    }
  }
  return Uint32Array.from(runs);
}

/** Voxels that a round brush covers between two places: on the screen it is round, whatever the
 * pixels' shape, and it covers at least the pixel that it is on.
 * @param {Plane} plane @param {number} slice @param {Place} from @param {Place} to
 * @param {number} size diameter in columns @param {(voxel: number) => void} visit */
export function covered(plane, slice, from, to, size, visit) {
  const [across, down, through] = plane.steps;
  const tall = plane.spacing[1] / plane.spacing[0];
  const radius = size / 2;
  const [dx, dy] = [to.column - from.column, (to.row - from.row) * tall];
  const squared = dx * dx + dy * dy;
  const [left, right] = [Math.min(from.column, to.column) - radius, Math.max(from.column, to.column) + radius];
  const [top, bottom] = [Math.min(from.row, to.row) - radius / tall, Math.max(from.row, to.row) + radius / tall];
  for (let row = Math.max(0, Math.floor(top)); row < Math.min(plane.height, Math.ceil(bottom)); row++) {
    for (let column = Math.max(0, Math.floor(left)); column < Math.min(plane.width, Math.ceil(right)); column++) {
      const [x, y] = [column + 0.5 - from.column, (row + 0.5 - from.row) * tall];
      const along = squared ? Math.min(1, Math.max(0, (x * dx + y * dy) / squared)) : 0;
      const isOn = column === Math.floor(to.column) && row === Math.floor(to.row);
      if (isOn || (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius) {
        visit(plane.start + column * across + row * down + slice * through);
      }
    }
  }
}
