/** Calls of the server. Whatever goes wrong is an ApiError in words. */

const WATCH_MS = 3000;
const SILENCE_MS = 8000;

/** @typedef {{code: string, message: string, field: string}} ErrorBody */

export class ApiError extends Error {
  /** @param {ErrorBody} body */
  constructor({ message, field, code }) {
    super(message);
    this.field = field;
    this.code = code;
  }
}

let token = '';
/** Calls under way, to be ended when the server has gone.
 * @type {Set<AbortController>} */
const underWay = new Set();

/** @param {string} value */
export function setToken(value) {
  token = value.trim();
}

function gone() {
  const message = `server does not answer: no connection to ${location.origin}; start it again with `
    + '`vessa-server serve`, this page goes on when it is back';
  return new ApiError({ message, field: '', code: 'UNAVAILABLE' });
}

function brokenOff() {
  const message = 'the connection broke off, or the file has changed or cannot be read; choose it again';
  return new ApiError({ message, field: '', code: 'UNAVAILABLE' });
}

async function isAlive() {
  try {
    await fetch('health/live', { cache: 'no-store', signal: AbortSignal.timeout(SILENCE_MS) });
    return true;
  } catch {
    return false;
  }
}

/** The error of an answer, or what stands in its place, such as a proxy's page.
 * @param {Response} response */
async function refusal(response) {
  const text = await response.text();
  try {
    return new ApiError(JSON.parse(text).error);
  } catch {
    return new ApiError({ message: `status ${response.status} ${response.statusText}`, field: '', code: '' });
  }
}

/**
 * @typedef {object} Call
 * @property {string} [method]
 * @property {FormData | string} [body]
 * @property {string} [accept]
 * @property {AbortSignal} [signal] of the person, who does not want it any more
 */

/**
 * Ask, and read the answer before the call counts as ended.
 * @template T
 * @param {string} path
 * @param {Call} call
 * @param {(response: Response) => Promise<T>} read
 * @returns {Promise<T>}
 */
async function ask(path, { method = 'GET', body, accept = 'application/json', signal }, read) {
  /** @type {Record<string, string>} */
  const headers = { Accept: accept };
  if (typeof body === 'string') headers['Content-Type'] = 'application/json';
  if (token) headers.Authorization = `Bearer ${token}`;
  const ending = new AbortController();
  underWay.add(ending);
  const signals = signal ? [signal, ending.signal] : [ending.signal];
  try {
    const response = await fetch(path, { method, body, headers, signal: AbortSignal.any(signals) });
    if (!response.ok) throw await refusal(response);
    return await read(response);
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
    if (error instanceof TypeError || ending.signal.aborted) throw await isAlive() ? brokenOff() : gone();
    throw error;
  } finally {
    underWay.delete(ending);
  }
}

/** @param {string} path @param {Call} [call] @returns {Promise<any>} */
export const getJson = (path, call = {}) => ask(path, call, (response) => response.json());

/** @param {string} path @param {Call} [call] @returns {Promise<Blob>} */
export const getBlob = (path, call = {}) => ask(path, call, (response) => response.blob());

/** @param {string} path @param {Call} [call] @returns {Promise<ArrayBuffer>} */
export const getBuffer = (path, call = {}) => ask(path, call, (response) => response.arrayBuffer());

/** Lines of JSON, as they come.
 * @param {string} path @param {Call} call @param {(line: any) => Promise<void>} take */
export function eachLine(path, call, take) {
  return ask(path, { ...call, accept: 'application/x-ndjson' }, async (response) => {
    const reader = /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body)
      .pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      const parts = (rest + (value ?? '')).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) await take(JSON.parse(part));
      if (done) return;
    }
  });
}

/** Look after the server, and end all calls when it does not answer.
 * @param {(error: ApiError | null) => void} changed called when it goes and when it is back */
export function watch(changed) {
  let isThere = true;
  const look = async () => {
    const answers = await isAlive();
    if (answers !== isThere) {
      isThere = answers;
      if (!answers) underWay.forEach((ending) => ending.abort());
      changed(answers ? null : gone());
    }
    setTimeout(look, WATCH_MS);
  };
  setTimeout(look, WATCH_MS);
}
