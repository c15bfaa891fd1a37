/**
 * One slice at a time on a canvas: window, zoom, labels over it.
 *
 * Events: `change` when what is shown has changed, and `imagepointer` for every pointer event, with
 * its place in the image: a tool that draws on the image takes it by preventing the default.
 */

import { confidencePixels, contours, imagePixels, labelPixels } from './draw.js';
import { drawMarks } from './marks.js';

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./draw.js').Colour} Colour */
/** @typedef {'fill' | 'contours' | 'confidence'} Layer */
/** @typedef {import('./marks.js').Marks} Marks */

/**
 * A pointer event in the image: columns and rows of the plane in view, of which whole numbers are
 * the pixels' upper left corners, and the voxel there; outside of the image none.
 * @typedef {object} ImagePointer
 * @property {PointerEvent} event
 * @property {number} column
 * @property {number} row
 * @property {number} slice
 * @property {number | null} voxel
 */

export const ZOOM_STEP = 1.25;
const MOST_ZOOM = 32;
const CONTOUR_PIXELS = 2;
const WHEEL_PIXELS = 40;

/** @param {ImageData} image */
function canvasOf(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext('2d')).putImageData(image, 0, 0);
  return canvas;
}

/** @param {number} value @param {number} low @param {number} high */
const within = (value, low, high) => Math.min(high, Math.max(low, value));

export class Viewer extends EventTarget {
  /** @type {Scan | null} */ scan = null;
  /** Points and boxes of a slice, and colours of their classes.
   * @type {(slice: number) => Marks | undefined} */ marksOf = () => undefined;
  /** @type {(name: string) => Colour} */ colourOf = () => [255, 255, 255];
  /** @type {(Colour | null)[]} */ #colours = [];
  /** @type {Layer} */ #layer = 'fill';
  #axis = 2;
  #slice = 0;
  #window = { level: 0, width: 1 };
  #opacity = 0.45;
  #isOriginal = false;
  #zoom = 1;
  #pan = { x: 0, y: 0 };
  #wheel = 0;
  #isDrawn = true;
  /** The slice without labels, and of what it was made.
   * @type {{key: string, scan: Scan, pixels: OffscreenCanvas} | null} */ #image = null;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    new ResizeObserver(() => this.refresh()).observe(canvas);
    this.#listen();
  }

  get axis() { return this.#axis; }
  get slice() { return this.#slice; }
  get window() { return this.#window; }
  get opacity() { return this.#opacity; }
  get layer() { return this.#layer; }
  get isOriginal() { return this.#isOriginal; }
  get plane() { return this.scan ? this.scan.plane(this.#axis) : null; }

  /** @param {Scan} scan */
  show(scan) {
    this.scan = scan;
    this.#axis = scan.slicing;
    this.#slice = Math.floor(scan.size[this.#axis] / 2);
    this.#window = { ...scan.window };
    this.fit();
  }

  /** Axis in which slices follow each other. */
  set axis(axis) {
    this.#axis = axis;
    this.#slice = Math.floor((this.scan?.size[axis] ?? 1) / 2);
    this.fit();
  }

  set slice(slice) {
    this.#slice = within(slice, 0, (this.plane?.depth ?? 1) - 1);
    this.refresh();
  }

  set window(window) {
    this.#window = { level: window.level, width: Math.max(window.width, 1e-9) };
    this.refresh();
  }

  set opacity(share) {
    this.#opacity = within(share, 0, 1);
    this.refresh();
  }

  set layer(layer) {
    this.#layer = layer;
    this.refresh();
  }

  set isOriginal(is) {
    if (is === this.#isOriginal) return;
    this.#isOriginal = is;
    this.refresh();
  }

  /** Colours of the labels; null for one that is not shown.
   * @param {(Colour | null)[]} colours by label */
  set colours(colours) {
    this.#colours = colours;
    this.refresh();
  }

  fit() {
    this.#zoom = 1;
    this.#pan = { x: 0, y: 0 };
    this.refresh();
  }

  /** Zoom around a place of the canvas, by default its middle.
   * @param {number} factor @param {{x: number, y: number}} [place] from the middle */
  zoomBy(factor, place = { x: 0, y: 0 }) {
    const zoom = within(this.#zoom * factor, 1, MOST_ZOOM);
    const change = zoom / this.#zoom;
    this.#pan = { x: place.x - (place.x - this.#pan.x) * change, y: place.y - (place.y - this.#pan.y) * change };
    this.#zoom = zoom;
    this.refresh();
  }

  /** @param {number} x @param {number} y in pixels of the page */
  move(x, y) {
    this.#pan = { x: this.#pan.x + x, y: this.#pan.y + y };
    this.refresh();
  }

  /** Draw before the next frame, once. */
  refresh() {
    if (!this.#isDrawn) return;
    this.#isDrawn = false;
    requestAnimationFrame(() => {
      this.#isDrawn = true;
      this.#draw();
      this.dispatchEvent(new Event('change'));
    });
  }

  /** Pixels of the page for a column and a row, and where the image begins. */
  get placed() {
    const plane = this.plane;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!plane) return { x: 0, y: 0, column: 1, row: 1 };
    const [across, down] = plane.spacing;
    const size = Math.min(width / (plane.width * across), height / (plane.height * down)) * this.#zoom;
    const [column, row] = [size * across, size * down];
    return {
      column,
      row,
      x: width / 2 + this.#pan.x - (plane.width * column) / 2,
      y: height / 2 + this.#pan.y - (plane.height * row) / 2,
    };
  }

  #draw() {
    const { canvas, context, scan, plane } = this;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    canvas.classList.toggle('zoomed', this.#zoom > 1);
    if (!scan || !plane || !canvas.width) return;
    const { x, y, column, row } = this.placed;
    context.setTransform(column * ratio, 0, 0, row * ratio, x * ratio, y * ratio);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.#imageOf(scan, plane), 0, 0);
    if (this.#isOriginal) return;
    if (this.#colours.length) this.#drawAnswer(ratio);
    const marks = this.#axis === scan.slicing && this.marksOf(this.#slice);
    if (marks) drawMarks(context, scan, marks, this.colourOf, ratio);
  }

  /** @param {Scan} scan @param {import('./scan.js').Plane} plane */
  #imageOf(scan, plane) {
    const key = [this.#axis, this.#slice, this.#window.level, this.#window.width].join();
    if (this.#image?.key !== key || this.#image.scan !== scan) {
      this.#image = { key, scan, pixels: canvasOf(imagePixels(scan, plane, this.#slice, this.#window)) };
    }
    return this.#image.pixels;
  }

  /** @param {number} ratio pixels of the screen for one of the page */
  #drawAnswer(ratio) {
    const { context, scan, plane } = this;
    if (!scan || !plane) return;
    context.imageSmoothingEnabled = false;
    if (this.#layer === 'contours') {
      const place = context.getTransform();
      for (const [label, path] of contours(scan, plane, this.#slice)) {
        const colour = this.#colours[label];
        if (!colour) continue;
        const moved = new Path2D();
        moved.addPath(path, place);
        context.resetTransform();
        context.strokeStyle = `rgb(${colour.join()})`;
        context.lineWidth = CONTOUR_PIXELS * ratio;
        context.lineCap = 'square';
        context.stroke(moved);
      }
      context.setTransform(place);
    } else {
      const pixels = this.#layer === 'confidence'
        ? confidencePixels(scan, plane, this.#slice)
        : labelPixels(scan, plane, this.#slice, this.#colours);
      context.globalAlpha = this.#opacity;
      context.drawImage(canvasOf(pixels), 0, 0);
      context.globalAlpha = 1;
    }
  }

  #listen() {
    const { canvas } = this;
    for (const kind of /** @type {const} */ (['pointerdown', 'pointermove', 'pointerup', 'pointercancel', 'pointerleave'])) {
      canvas.addEventListener(kind, (event) => this.#point(event));
    }
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('wheel', (event) => this.#turn(event), { passive: false });
  }

  /** @param {PointerEvent} event */
  #point(event) {
    if (!this.scan) return;
    if (event.type === 'pointerdown') this.canvas.setPointerCapture(event.pointerId);
    const isFree = this.dispatchEvent(new CustomEvent('imagepointer', { detail: this.#located(event), cancelable: true }));
    if (event.type !== 'pointermove' || !isFree) return;
    if (event.buttons & 2) this.#drag(event.movementX, event.movementY);
    else if (event.buttons & 5) this.move(event.movementX, event.movementY);
  }

  /** Width to the right, level upwards, as viewers of radiology have it.
   * @param {number} x @param {number} y */
  #drag(x, y) {
    const { level, width } = this.#window;
    const { low, high } = /** @type {Scan} */ (this.scan).range;
    const step = (high - low) / 600;
    this.window = { level: level - y * step, width: width + x * step };
  }

  /** @param {PointerEvent} event @returns {ImagePointer} */
  #located(event) {
    const { x, y, column, row } = this.placed;
    const plane = /** @type {import('./scan.js').Plane} */ (this.plane);
    const place = { column: (event.offsetX - x) / column, row: (event.offsetY - y) / row };
    const [across, down, through] = plane.steps;
    const [c, r] = [Math.floor(place.column), Math.floor(place.row)];
    const inside = event.type !== 'pointerleave' && c >= 0 && r >= 0 && c < plane.width && r < plane.height;
    const voxel = inside ? plane.start + c * across + r * down + this.#slice * through : null;
    return { event, ...place, slice: this.#slice, voxel };
  }

  /** @param {WheelEvent} event */
  #turn(event) {
    if (!this.scan) return;
    event.preventDefault();
    if (event.ctrlKey || (this.plane?.depth ?? 1) === 1) {
      const place = { x: event.offsetX - this.canvas.clientWidth / 2, y: event.offsetY - this.canvas.clientHeight / 2 };
      this.zoomBy(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, place);
      return;
    }
    this.#wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL_PIXELS;
    const steps = Math.trunc(this.#wheel / WHEEL_PIXELS);
    this.#wheel -= steps * WHEEL_PIXELS;
    if (steps) this.slice += steps;
  }
}
