/** Points and boxes that a person gives for a slice: in the server's rows and columns, and as they are seen. */

/** @typedef {import('./scan.js').Scan} Scan */
/** @typedef {import('./draw.js').Colour} Colour */
/** @typedef {{row: number, column: number, class_name: string}} Point background where there is no class */
/** @typedef {{top: number, left: number, height: number, width: number, class_name: string}} Box */
/** @typedef {{points: Point[], boxes: Box[]}} Marks */

const RADIUS = 5;
const LINE = 2;

/** @type {Marks} */
const NONE = { points: [], boxes: [] };

/** One more; a point takes the place of one at the same pixel, a box that of its class.
 * @param {Marks | undefined} marks @param {Scan} scan @param {number} slice
 * @param {number} from voxel @param {number | null} to voxel of a box's other corner; null of a point
 * @param {string} name of the class @returns {Marks} */
export function withMark(marks, scan, slice, from, to, name) {
  const { points, boxes } = marks ?? NONE;
  const [one, other] = [scan.rowAndColumn(slice, from), scan.rowAndColumn(slice, to ?? from)];
  if (to === null) {
    const others = points.filter(({ row, column }) => row !== one.row || column !== one.column);
    return { points: [...others, { ...one, class_name: name }], boxes };
  }
  const [top, left] = [Math.min(one.row, other.row), Math.min(one.column, other.column)];
  const box = { top, left, height: Math.abs(one.row - other.row) + 1, width: Math.abs(one.column - other.column) + 1, class_name: name };
  return { points, boxes: [...boxes.filter((b) => b.class_name !== name), box] };
}

/** Those of classes that are asked, and of background.
 * @param {Marks} marks @param {string[]} asked @returns {Marks} */
export function marksOf({ points, boxes }, asked) {
  return {
    points: points.filter(({ class_name: name }) => !name || asked.includes(name)),
    boxes: boxes.filter(({ class_name: name }) => asked.includes(name)),
  };
}

/** Draw those of the slice in view over the image.
 * @param {CanvasRenderingContext2D} context whose units are the plane's columns and rows
 * @param {Scan} scan @param {Marks} marks @param {(name: string) => Colour} colourOf
 * @param {number} ratio pixels of the screen for one of the page */
export function drawMarks(context, scan, { points, boxes }, colourOf, ratio) {
  const place = context.getTransform();
  context.resetTransform();
  /** @param {number} row @param {number} column */
  const onScreen = (row, column) => {
    const seen = scan.inPlane(row, column);
    return place.transformPoint(new DOMPoint(seen.column, seen.row));
  };
  context.lineWidth = LINE * ratio;
  for (const { top, left, height, width, class_name: name } of boxes) {
    const [one, other] = [onScreen(top - 0.5, left - 0.5), onScreen(top + height - 0.5, left + width - 0.5)];
    context.strokeStyle = `rgb(${colourOf(name).join()})`;
    context.strokeRect(one.x, one.y, other.x - one.x, other.y - one.y);
  }
  for (const { row, column, class_name: name } of points) {
    const { x, y } = onScreen(row, column);
    context.beginPath();
    context.arc(x, y, RADIUS * ratio, 0, 2 * Math.PI);
    context.fillStyle = name ? `rgb(${colourOf(name).join()})` : '#000';
    context.fill();
    context.strokeStyle = '#fff';
    context.stroke();
  }
  context.setTransform(place);
}
