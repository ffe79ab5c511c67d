/**
 * Ganglion for browsers: rooms, messages and direct video calls over a neuron's public API.
 *
 *   const api = new Api({ base: 'https://host:4443', ident: 'elena', secret: '…' });
 *   const room = connect({
 *     name: 'lily',
 *     url: () => api.get('/_host', { type: 'signal' }),
 *     token: () => api.put('/_token/demo/lobby', { k: 'lily', expire: 60 }),
 *   });
 *   room.on('message', ({ from, op, payload }) => …);
 *   room.send('message', { msg: 'hello' });
 *
 * Secrets belong on a server: a public page asks its own back end for `url` and `token`.
 * @module ganglion
 */

const PING_EVERY_MS = 30_000;
const REPLY_WAIT_MS = 10_000;
/** The same, when the browser says that the network changed. */
const CHANGE_WAIT_MS = 2_000;
/** The same, when something was said: a neuron that is there answers at once. */
const SAID_WAIT_MS = 5_000;
const CONNECT_WAIT_MS = 10_000;
const BACKOFF_FIRST_MS = 80;
const BACKOFF_MAX_MS = 10_000;
/** A connection that lived this long was a good one: the next backoff starts from the beginning. */
const STABLE_MS = 5_000;
/** Frames that wait while reconnecting; one more is refused by `send`. */
const OUTBOX_MAX = 256;
/** Tries in a row of a watch that the neuron cannot begin now, and how long apart the first are. */
const WATCH_TRIES = 6;
const WATCH_RETRY_MS = 1_000;
/** What passes: to be asked again later. */
const PASSING = ['overloaded', 'store_unavailable', 'store_degraded', 'internal', 'too_many_requests'];
/** Versions kept by a watch of what was deleted. */
const DELETED_MAX = 1_000;
/** Close codes after which trying again in the same way cannot help: not permitted, refused, removed, replaced. */
const FINAL = [1008, 4401, 4403, 4409];
/** Why a neuron closes that has not heard, in time, who comes: a page may have slept meanwhile. */
const LATE = 'no hello';
/** A frame was longer than the neuron takes. */
const TOO_LONG = 1009;
/** What this end closes with: it has left for good, or will be back. */
const LEFT = 1000;
const AWAY = 4000;

const RING_MS = 45_000;
/** How long a call may look for a network path, at its start and after losing one. */
const RECOVER_MS = 20_000;
/** The same, when the other end is no longer in the room. */
const LEFT_MS = 5_000;
/** Messages kept of a call that still rings. */
const EARLY_MAX = 256;
/** Why calls end. @type {CallEnd[]} */
const CALL_ENDS = ['hangup', 'declined', 'busy', 'no_answer', 'left', 'lost', 'no_path', 'replaced', 'failed'];

/**
 * Typed listeners. `on` returns a function that removes the listener.
 * @template {Record<string, any>} Events
 */
class Emitter {
  /** @type {Map<keyof Events, Set<(value: any) => void>>} */
  #listeners = new Map();

  /**
   * @template {keyof Events} Name
   * @param {Name} event
   * @param {(value: Events[Name]) => void} listener
   * @returns {() => void}
   */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /**
   * @protected
   * @template {keyof Events} Name
   * @param {Name} event
   * @param {Events[Name]} value
   */
  emit(event, value) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      // One listener's mistake must not stop the others, nor the connection.
      try { listener(value); } catch (error) { reportError(error); }
    }
  }
}

// --- HTTP API ------------------------------------------------------------------------------------

/** A word of the neuron's error vocabulary, or `unreachable` when there was no answer at all. */
export class ApiError extends Error {
  /**
   * @param {string} code
   * @param {{ status?: number, cause?: unknown }} [about]
   */
  constructor(code, { status = 0, cause } = {}) {
    super(code, { cause });
    this.name = 'ApiError';
    this.code = code;
    /** HTTP status; 200 for most errors of the compatible mode, 0 when there was no answer. */
    this.status = status;
  }

  /** Whether the same call may succeed later. */
  get transient() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/**
 * @typedef {string | string[]} ApiPath  `/_ns/demo`, or segments of any text: `['_ns', 'demo', room]`.
 *   `.`, `..` and empty segments are `bad_segment`: a URL with them names another place.
 * @typedef {Record<string, string | number | boolean | undefined>} Query
 */

/** The HTTP API. Every call gives the envelope's `v`, or throws {@link ApiError}. */
export class Api {
  #base;
  #authorization;

  /** @param {{ base?: string, ident: string, secret: string }} options `base` is empty for the page's own origin. */
  constructor({ base = '', ident, secret }) {
    this.#base = base.replace(/\/+$/, '');
    const bytes = new TextEncoder().encode(`${ident}:${secret}`);
    this.#authorization = `Basic ${btoa(String.fromCharCode(...bytes))}`;
  }

  /** @param {ApiPath} path @param {Query} [query] @returns {Promise<any>} */
  get(path, query) {
    return this.#call('GET', path, query);
  }

  /** @param {ApiPath} path @param {Query} [query] @param {unknown} [body] @returns {Promise<any>} */
  put(path, query, body) {
    return this.#call('PUT', path, query, body);
  }

  /** @param {ApiPath} path @param {Query} [query] @param {unknown} [body] @returns {Promise<any>} */
  post(path, query, body) {
    return this.#call('POST', path, query, body);
  }

  /** @param {ApiPath} path @param {Query} [query] @returns {Promise<any>} */
  delete(path, query) {
    return this.#call('DELETE', path, query);
  }

  /**
   * STUN and TURN servers for calls on a path; none when the system has no relay (`no_service`).
   * @param {string} path
   * @param {string} [name]
   * @returns {Promise<RTCIceServer[]>}
   */
  async iceServers(path, name) {
    try {
      const { iceServers } = await this.put(['_turn', ...path.split('/').filter(Boolean)], { webrtc: 1, k: name });
      return [iceServers ?? []].flat();
    } catch (error) {
      if (error instanceof ApiError && error.code === 'no_service') return [];
      throw error;
    }
  }

  /** @param {string} method @param {ApiPath} path @param {Query} [query] @param {unknown} [body] */
  async #call(method, path, query = {}, body) {
    const asked = pathOf(path);
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    const search = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
    /** @type {Response} */
    let response;
    try {
      response = await fetch(`${this.#base}/${asked}${search && `?${search}`}`, {
        method,
        headers: {
          Authorization: this.#authorization,
          ...(body !== undefined && { 'Content-Type': 'application/json' }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: 'omit',
        cache: 'no-store',
        signal: AbortSignal.timeout(REPLY_WAIT_MS),
      });
    } catch (cause) {
      throw new ApiError('unreachable', { cause });
    }
    const envelope = await response.json().catch(() => null);
    if (envelope?.s === 'ok') return envelope.v;
    const code = envelope?.s === 'error' ? String(envelope.v) : `http_${response.status}`;
    throw new ApiError(code, { status: response.status });
  }
}

// --- Signalling ----------------------------------------------------------------------------------

/**
 * @template T
 * @typedef {T | (() => T | Promise<T>)} Given  a value, or a function asked before every connection
 */

/**
 * @typedef {{ from: string, op: string, payload: any, to: string | null }} Message
 * @typedef {{ code: number, reason: string, retryMs: number | null }} Closed
 *   `code` 0: there was no connection to close (`reason` says why); `retryMs` null: it stays closed.
 * @typedef {'idle' | 'connecting' | 'open' | 'reconnecting' | 'closed'} RoomState
 * @typedef {{ name: string, data: any }} Shown  what stands beside a name
 * @typedef {Map<string, any>} Entries  values by key
 * @typedef {{
 *   open: void, close: Closed, state: RoomState, peers: string[],
 *   peer_connected: string, peer_removed: string, presence: Shown, message: Message, gap: void,
 * }} RoomEvents
 *   `gap`: this end was away, and something that was said may have been missed.
 */

/**
 * One name in one room, and the data of its account that its token opens. Reconnects by itself until
 * `close()`, 4401 (token refused), 4403 (removed from the room), 4409 (its session goes on elsewhere) or
 * 1008 (what it came with is not taken), and hears what was said meanwhile.
 * @extends {Emitter<RoomEvents>}
 */
export class Ganglion extends Emitter {
  /** The name this end has in the room. */
  name;
  /** The room's path, known once joined. */
  path = '';
  /** Round trip of the last ping. @type {number | null} */
  rttMs = null;
  /** @type {RoomState} */
  state = 'idle';

  #url;
  #token;
  /** What the others see beside the name. @type {any} */
  #data;
  /** What of that the neuron was told last, and as JSON. @type {{ data: any, json: string | undefined }} */
  #told = { data: undefined, json: undefined };
  /** What of that it has taken. @type {any} */
  #taken;
  /** @type {WebSocket | null} */
  #socket = null;
  /** Present names, each with the spelling that the neuron uses for it. @type {Map<string, string>} */
  #present = new Map();
  /** What stands beside them. @type {Map<string, any>} */
  #shown = new Map();
  /** What the neuron has not answered yet, in order. @type {{ id: number, frame: string }[]} */
  #unheard = [];
  /** What was heard before this end came back; told once it knows what it missed. @type {number[]} */
  #heard = [];
  /** @type {Map<number, { resolve: (value: any) => void, reject: (error: ApiError) => void }>} */
  #asked = new Map();
  /** The longest frame of this connection that is not in `#unheard`. */
  #longestAsk = { id: 0, bytes: 0 };
  /** @type {Map<number, Watch>} */
  #watches = new Map();
  #nextId = 1;
  /** To come back with. @type {string | undefined} */
  #session;
  /** @type {string | undefined} */
  #cursor;
  #joined = false;
  #opening = false;
  #openedAt = 0;
  #failures = 0;
  #retryTimer = 0;
  #pingTimer = 0;
  #replyTimer = 0;
  /** When it rings. */
  #replyBy = 0;
  #probe = () => this.#onNetworkChange();

  /** @param {{ url: Given<string>, token: Given<string>, name?: string, data?: any }} options */
  constructor({ url, token, name = '', data }) {
    super();
    this.#url = url;
    this.#token = token;
    this.#data = data;
    this.name = name;
  }

  /** Everyone in the room, this end included, in alphabetical order. */
  get peers() {
    return [...this.#present.keys()].sort((a, b) => a.localeCompare(b));
  }

  /** @param {string} name */
  has(name) {
    return this.#present.has(name);
  }

  /** What a name shows beside itself. @param {string} name */
  dataOf(name) {
    return this.#shown.get(name) ?? null;
  }

  connect() {
    if (!this.#ended) return;
    for (const event of ['online', 'offline']) addEventListener(event, this.#probe);
    this.#failures = 0;
    this.#become('connecting');
    void this.#open();
  }

  /** @param {string} [reason] */
  close(reason = '') {
    if (this.#ended) return;
    this.#socket?.close(LEFT, reason);
    this.#lost({ code: LEFT, reason }, true);
  }

  /**
   * Sends to everyone else in the room, or to one name. While reconnecting, frames wait until this
   * end is back; `false` means that this one was not taken.
   * @param {string} op any word but `peers`, `peer_connected`, `peer_removed`
   * @param {unknown} payload
   * @param {string} [to]
   * @returns {boolean}
   */
  send(op, payload, to) {
    const taken = this.#say(op, payload, to);
    taken?.catch(() => {});
    return taken !== null;
  }

  /**
   * The same, and waits until the neuron has taken it. After an outage that is told when what the others
   * said meanwhile has been. It is said once, whatever the network does; but when the neuron was restarted,
   * or this end was away for longer than it remembers (`gap` is told then), what was not answered is said
   * again, and may be heard twice.
   * @param {string} op
   * @param {unknown} payload
   * @param {string} [to]
   * @returns {Promise<void>} rejects with an {@link ApiError}: `not_found` for a name that is nobody's,
   *   `too_large` for a frame that is longer than the neuron takes
   */
  publish(op, payload, to) {
    return this.#say(op, payload, to) ?? Promise.reject(new ApiError('unreachable'));
  }

  /**
   * Shows something beside this end's name; `null` takes it away.
   * @param {any} data
   * @returns {Promise<void>} done when the neuron has taken it, or at once while there is no connection;
   *   rejects with an {@link ApiError}, and what the neuron took last stays; but when the connection is lost
   *   meanwhile (`unreachable`), it is shown once this end is back
   */
  show(data) {
    this.#data = data ?? null;
    if (!this.#joined) return Promise.resolve();
    const told = this.#tellData();
    // Whoever does not care need not say so.
    told.catch(() => {});
    return told;
  }

  #tellData() {
    const data = this.#data;
    this.#told = { data, json: JSON.stringify(data) };
    const id = this.#nextId++;
    const answer = this.#answer(id).then(() => {
      this.#taken = data;
    }, (error) => {
      if (error.code !== 'unreachable' && this.#data === data) this.#data = this.#taken;
      throw error;
    });
    this.#sendOnce(id, `{"t":"presence","m":{"id":${id}},"p":${this.#told.json}}`);
    return answer;
  }

  /**
   * Asks for data, as the HTTP API does: `get`, `put`, `delete` of a key, `list` and `series`. Paths are
   * those of the account; the room's own when left out.
   * @param {'get' | 'put' | 'delete' | 'list' | 'series'} verb
   * @param {Record<string, unknown>} params `path`, `k`, `v`, and what else the API takes
   * @returns {Promise<any>} the envelope's `v`; rejects with an {@link ApiError}
   */
  ask(verb, params = {}) {
    if (!this.#joined) return Promise.reject(new ApiError('unreachable'));
    const id = this.#nextId++;
    const answer = this.#answer(id);
    const frame = JSON.stringify({ t: verb, m: { id }, p: params });
    this.#sendOnce(id, frame);
    return answer;
  }

  /**
   * Follows the entries of a path, or one key of it, from now on and across reconnections.
   * @param {string} path
   * @param {(entries: Entries) => void} listener called with all of them, at first and after each change
   * @param {{ k?: string, refused?: (error: ApiError) => void }} [options] `refused` is called when the
   *   neuron does not let this end watch, or no longer: then it is over
   * @returns {() => void} stops it
   */
  watch(path, listener, { k, refused = () => {} } = {}) {
    const id = this.#nextId++;
    const watch = { path: `/${path.split('/').filter(Boolean).join('/')}`, k, listener, refused, values: new Map(), versions: new Map(), started: false, tries: 0, timer: 0 };
    this.#watches.set(id, watch);
    if (this.#joined) this.#startWatch(id, watch);
    return () => {
      clearTimeout(watch.timer);
      if (this.#watches.delete(id) && this.#joined) {
        const p = { watch: id };
        this.#socket?.send(JSON.stringify({ t: 'unwatch', m: { id: this.#nextId++ }, p }));
      }
    };
  }

  /** @param {string} op @param {unknown} payload @param {string} [to] @returns {Promise<void> | null} */
  #say(op, payload, to) {
    if (this.#ended || (!this.#joined && this.#unheard.length >= OUTBOX_MAX)) return null;
    const id = this.#nextId++;
    const m = { id, o: op, ...(to !== undefined && { t: this.#present.get(to) ?? to }) };
    const frame = JSON.stringify({ t: 'u', m, p: payload ?? null });
    this.#unheard.push({ id, frame });
    if (this.#joined) {
      this.#socket?.send(frame);
      this.#expectFrame(SAID_WAIT_MS);
    }
    return this.#answer(id);
  }

  /** @param {number} id @returns {Promise<any>} */
  #answer(id) {
    return new Promise((resolve, reject) => void this.#asked.set(id, { resolve, reject }));
  }

  async #open() {
    clearTimeout(this.#retryTimer);
    if (this.#opening || this.#socket || this.#ended) return;
    this.#opening = true;
    let url, token;
    try {
      [url, token] = await Promise.all([ask(this.#url), ask(this.#token)]);
    } catch (error) {
      this.#opening = false;
      const refused = error instanceof ApiError && !error.transient;
      if (!this.#ended) this.#lost({ code: 0, reason: reasonOf(error) }, refused);
      return;
    }
    this.#opening = false;
    // close() may have been called while waiting.
    if (this.#ended) return;
    let socket;
    try {
      socket = new WebSocket(`${url.replace(/\/+$/, '')}/v4`);
    } catch (error) {
      this.#lost({ code: 0, reason: reasonOf(error) }, true);
      return;
    }
    this.#socket = socket;
    this.#openedAt = 0;
    this.#expectFrame(CONNECT_WAIT_MS);
    socket.onopen = () => this.#onOpen(socket, token);
    socket.onmessage = ({ data }) => this.#onFrame(socket, data);
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.#socket) return;
      const isFinal = (FINAL.includes(code) && reason !== LATE) || (code === TOO_LONG && !this.#dropLongest());
      this.#lost({ code, reason }, isFinal);
    };
  }

  /** @param {WebSocket} socket @param {string} token */
  #onOpen(socket, token) {
    if (socket !== this.#socket) return;
    this.#openedAt = Date.now();
    this.#pingTimer = setInterval(() => this.#ping(), PING_EVERY_MS);
    // Left out, it leaves what another socket of the name shows.
    this.#told = { data: this.#data, json: JSON.stringify(this.#data) };
    const p = { token, data: this.#data, session: this.#session, cursor: this.#cursor };
    socket.send(JSON.stringify({ t: 'hello', p }));
    this.emit('open', undefined);
  }

  /** @param {WebSocket} socket @param {unknown} data */
  #onFrame(socket, data) {
    if (socket !== this.#socket || typeof data !== 'string') return;
    clearTimeout(this.#replyTimer);
    this.#replyTimer = 0;
    let frame;
    try { frame = JSON.parse(data); } catch { return; }
    if (frame?.t === 'pong') {
      this.rttMs = Math.max(0, Date.now() - frame.ts);
      this.#tellHeard();
    }
    if (typeof frame?.m !== 'object') return;
    const { f = '', o, t, c, id, path, watch, service } = frame.m;
    const wire = String(f).slice(String(f).lastIndexOf('/') + 1);
    const from = nameOf(wire);
    switch (frame.t) {
      case 'welcome':
        this.#onWelcome(frame);
        break;
      case 'joined':
        this.#present.set(from, wire);
        this.#setShown(from, frame.p);
        this.emit('peer_connected', from);
        break;
      case 'left':
        this.#present.delete(from);
        this.#shown.delete(from);
        this.emit('peer_removed', from);
        break;
      case 'presence':
        this.#setShown(from, frame.p);
        this.emit('presence', { name: from, data: frame.p ?? null });
        break;
      case 'u': {
        const to = typeof t === 'string' && t ? nameOf(t.slice(t.lastIndexOf('/') + 1)) : null;
        this.emit('message', { from, op: String(o), payload: frame.p ?? null, to });
        break;
      }
      case 'r':
        this.#onReply(id, frame.p);
        break;
      case 'w':
        if (service === undefined) this.#onChange(path, frame.p);
        break;
      case 'end':
        this.#onWatchEnd(watch, frame.p);
        break;
    }
    // Noted when it was acted on, so that a cut in between repeats it and does not lose it.
    if (typeof c === 'string') this.#cursor = c;
  }

  /** @param {any} frame */
  #onWelcome({ p }) {
    const isBack = this.#session !== undefined;
    this.path = p.path;
    this.name ||= nameOf(p.name);
    this.#session = p.session;
    this.#present = new Map(p.users.map((/** @type {string} */ wire) => [nameOf(wire), wire]));
    this.#shown = new Map(Object.entries(p.data).map(([wire, data]) => [nameOf(wire), data]));
    this.#joined = true;
    if (this.#told.json !== undefined) this.#taken = this.#told.data;
    if (JSON.stringify(this.#data) !== this.#told.json) this.#tellData().catch(() => {});
    for (const [id, code] of p.refused ?? []) this.#onReply(id, { s: 'error', v: code });
    if (p.last !== undefined) {
      const heard = this.#unheard.findIndex(({ id }) => id === p.last);
      this.#heard.push(...this.#unheard.splice(0, heard + 1).map(({ id }) => id));
    }
    // Its answer comes behind all that was missed.
    if (this.#heard.length) this.#ping();
    for (const { frame } of this.#unheard) this.#socket?.send(frame);
    if (this.#unheard.length) this.#expectFrame(SAID_WAIT_MS);
    for (const [id, watch] of this.#watches) this.#startWatch(id, watch);
    this.#become('open');
    this.emit('peers', this.peers);
    if (isBack && !p.resumed) this.emit('gap', undefined);
  }

  /** Sends what is answered, and is not said again after an outage. @param {number} id @param {string} frame */
  #sendOnce(id, frame) {
    const bytes = bytesOf(frame);
    if (bytes > this.#longestAsk.bytes) this.#longestAsk = { id, bytes };
    this.#socket?.send(frame);
    // The answer may take its time; that to a ping passes it by, and says that the neuron is there.
    if (!this.#replyTimer) this.#ping();
  }

  /**
   * One frame of this connection was longer than the neuron takes, so the longest was: it is not said
   * again. Answers whether coming back is of use; not so when that is what this end comes with.
   */
  #dropLongest() {
    if (!this.#joined) return false;
    let { id: longest, bytes } = this.#longestAsk;
    for (const { id, frame } of this.#unheard) {
      if (bytesOf(frame) > bytes) [longest, bytes] = [id, bytesOf(frame)];
    }
    this.#onReply(longest, { s: 'error', v: 'too_large' });
    return true;
  }

  #tellHeard() {
    for (const id of this.#heard.splice(0)) this.#onReply(id, { s: 'ok', v: null });
  }

  /** @param {number} id @param {any} envelope */
  #onReply(id, envelope) {
    this.#unheard = this.#unheard.filter((each) => each.id !== id);
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    if (envelope?.s === 'ok') asked?.resolve(envelope.v);
    else asked?.reject(new ApiError(String(envelope?.v), { status: 200 }));
  }

  /** @param {string} name @param {any} data */
  #setShown(name, data) {
    if (data === null || data === undefined) this.#shown.delete(name);
    else this.#shown.set(name, data);
  }

  /** @param {number} id @param {Watch} watch */
  #startWatch(id, watch) {
    clearTimeout(watch.timer);
    watch.started = false;
    this.#answer(id).then(({ entries }) => {
      if (this.#watches.get(id) !== watch) return;
      watch.values = new Map(entries.map((/** @type {any} */ each) => [each.k, each.v]));
      watch.versions = new Map(entries.map((/** @type {any} */ each) => [each.k, each._ver_]));
      watch.started = true;
      watch.tries = 0;
      watch.listener(new Map(watch.values));
    }, (error) => this.#onWatchError(id, watch, error));
    const p = { path: watch.path, ...(watch.k !== undefined && { k: watch.k }) };
    this.#sendOnce(id, JSON.stringify({ t: 'watch', m: { id }, p }));
  }

  /** @param {number} id @param {Watch} watch @param {ApiError} error */
  #onWatchError(id, watch, error) {
    // Without a connection it is asked for again on the next.
    if (error.code === 'unreachable' || this.#watches.get(id) !== watch) return;
    if (PASSING.includes(error.code) && this.#joined && watch.tries < WATCH_TRIES) {
      const ms = WATCH_RETRY_MS * 2 ** watch.tries++ * (0.5 + Math.random() / 2);
      watch.timer = setTimeout(() => this.#startWatch(id, watch), ms);
      return;
    }
    this.#watches.delete(id);
    watch.refused(error);
  }

  /** @param {string} path @param {any} change */
  #onChange(path, { k, v, _ver_: version, deleted }) {
    for (const watch of this.#watches.values()) {
      const isOfIt = watch.started && watch.path === path && (watch.k === undefined || watch.k === k);
      if (!isOfIt || isOlder(version, watch.versions.get(k))) continue;
      if (deleted) watch.values.delete(k);
      else watch.values.set(k, v);
      // Those of what was deleted are kept for a while, against changes that come late.
      watch.versions.delete(k);
      watch.versions.set(k, version);
      if (watch.versions.size > watch.values.size + DELETED_MAX) {
        const oldest = [...watch.versions.keys()].find((each) => !watch.values.has(each));
        if (oldest !== undefined) watch.versions.delete(oldest);
      }
      watch.listener(new Map(watch.values));
    }
  }

  /** @param {number} id @param {any} envelope why the neuron ended it */
  #onWatchEnd(id, envelope) {
    const watch = this.#watches.get(id);
    if (!watch) return;
    watch.started = false;
    this.#onWatchError(id, watch, new ApiError(String(envelope?.v), { status: 200 }));
  }

  /** @param {{ code: number, reason: string }} why @param {boolean} final */
  #lost(why, final) {
    clearInterval(this.#pingTimer);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#replyTimer);
    this.#replyTimer = 0;
    this.#socket = null;
    this.#joined = false;
    this.#longestAsk = { id: 0, bytes: 0 };
    for (const { timer } of this.#watches.values()) clearTimeout(timer);
    this.#tellHeard();
    // What is said again when this end is back is not answered yet; what was asked is.
    const waits = new Set(final ? [] : this.#unheard.map(({ id }) => id));
    for (const [id, { reject }] of [...this.#asked]) {
      if (waits.has(id)) continue;
      this.#asked.delete(id);
      reject(new ApiError('unreachable'));
    }
    if (final) {
      for (const event of ['online', 'offline']) removeEventListener(event, this.#probe);
      this.#unheard = [];
      this.#present.clear();
      this.#shown.clear();
      this.#session = this.#cursor = undefined;
      this.#become('closed');
      this.emit('close', { ...why, retryMs: null });
      return;
    }
    if (this.#openedAt && Date.now() - this.#openedAt >= STABLE_MS) this.#failures = 0;
    this.#openedAt = 0;
    const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** this.#failures++);
    const retryMs = Math.round(ceiling * (0.5 + Math.random() / 2));
    this.#retryTimer = setTimeout(() => this.#open(), retryMs);
    if (this.state === 'open') this.#become('reconnecting');
    this.emit('close', { ...why, retryMs });
  }

  /** @param {number} [withinMs] */
  #ping(withinMs = REPLY_WAIT_MS) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ t: 'ping', ts: Date.now() }));
    this.#expectFrame(withinMs);
  }

  /** Any frame within this time proves the connection; silence ends it. @param {number} withinMs */
  #expectFrame(withinMs) {
    const by = Date.now() + withinMs;
    if (this.#replyTimer && this.#replyBy <= by) return;
    clearTimeout(this.#replyTimer);
    this.#replyBy = by;
    this.#replyTimer = setTimeout(() => {
      const socket = this.#socket;
      // Told at once: on a dead network the browser waits long for the closing handshake.
      this.#lost({ code: 1006, reason: 'no reply' }, false);
      socket?.close(AWAY);
    }, withinMs);
  }

  #onNetworkChange() {
    if (this.#socket) this.#ping(CHANGE_WAIT_MS);
    else if (navigator.onLine) void this.#open();
  }

  get #ended() {
    return this.state === 'idle' || this.state === 'closed';
  }

  /** @param {RoomState} state */
  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.emit('state', state);
  }
}

/**
 * @typedef {{
 *   path: string, k: string | undefined, listener: (entries: Entries) => void,
 *   refused: (error: ApiError) => void, values: Entries, versions: Map<string, string>, started: boolean,
 *   tries: number, timer: number,
 * }} Watch
 */

/** Whether a version is not newer than one that is known: they count up before the dash. @param {string | undefined} version @param {string | undefined} known */
function isOlder(version, known) {
  return version !== undefined && known !== undefined && parseInt(version) <= parseInt(known);
}

/**
 * A room that is connecting already.
 * @param {{ url: Given<string>, token: Given<string>, name?: string, data?: any }} options
 */
export function connect(options) {
  const room = new Ganglion(options);
  room.connect();
  return room;
}

// --- Calls ---------------------------------------------------------------------------------------

/**
 * @typedef {'calling' | 'ringing' | 'connecting' | 'connected' | 'reconnecting' | 'ended'} CallState
 * @typedef {'hangup' | 'declined' | 'busy' | 'no_answer' | 'left' | 'lost' | 'no_path' | 'replaced' | 'failed'} CallEnd
 * @typedef {{ audio: boolean, video: boolean }} Sending  what an end has switched on
 * @typedef {{
 *   call: string, description?: RTCSessionDescriptionInit, candidate?: RTCIceCandidateInit,
 *   sending?: Sending, bye?: CallEnd,
 * }} CallMessage  payload of op `session`
 * @typedef {{ state: CallState, stream: MediaStream, sending: Sending, ended: CallEnd }} CallEvents
 */

/**
 * The calls of one room: answers op `session` and keeps at most one call with each name.
 * @extends {Emitter<{ incoming: Call }>}
 */
export class Calls extends Emitter {
  #room;
  #iceServers;
  /** @type {Map<string, Call>} */
  #calls = new Map();

  /**
   * @param {Ganglion} room its `name` must be set: the order of names settles who yields
   * @param {{ iceServers?: Given<RTCIceServer[]> }} [options]
   */
  constructor(room, { iceServers = [] } = {}) {
    super();
    this.#room = room;
    this.#iceServers = iceServers;
    room.on('message', ({ from, op, payload }) => {
      if (op === 'session' && typeof payload?.call === 'string') this.#onMessage(from, payload);
    });
    room.on('peer_removed', (name) => this.#calls.get(name)?.onPeerGone());
    room.on('peers', () => this.#calls.forEach((call) => call.onRoomBack()));
    room.on('close', ({ retryMs }) => {
      if (retryMs === null) this.#calls.forEach((call) => call.hangup());
    });
  }

  /**
   * Calls a name; a call from it that rings is taken instead.
   * @param {string} peer
   * @param {MediaStream | null} stream
   * @returns {Call}
   */
  start(peer, stream) {
    const present = this.#calls.get(peer);
    if (present?.state === 'ringing') present.accept(stream);
    if (present) return present;
    const call = this.#create(peer, crypto.randomUUID(), 'calling');
    call.accept(stream);
    return call;
  }

  /** @param {string} from @param {CallMessage} message */
  #onMessage(from, message) {
    let call = this.#calls.get(from);
    const offer = message.description?.type === 'offer';
    if (message.bye !== undefined) {
      if (call?.id === message.call) call.end(CALL_ENDS.includes(message.bye) ? message.bye : 'hangup');
    } else if (offer && call?.id !== message.call && call?.state !== 'calling') {
      // A new call; if there was one, its other end has forgotten it (a page was loaded anew).
      call?.end('replaced');
      call = this.#create(from, message.call, 'ringing');
      call.receive(message);
      this.emit('incoming', call);
    } else {
      call?.receive(message);
    }
  }

  /** @param {string} peer @param {string} id @param {'calling' | 'ringing'} state */
  #create(peer, id, state) {
    const call = new Call({
      peer, id, state,
      polite: this.#room.name > peer,
      iceServers: this.#iceServers,
      present: () => this.#room.has(peer),
      send: (message) => void this.#room.send('session', message, peer),
    });
    this.#calls.set(peer, call);
    call.on('ended', () => {
      if (this.#calls.get(peer) === call) this.#calls.delete(peer);
    });
    return call;
  }
}

/**
 * A direct call with one name, by perfect negotiation. Made by {@link Calls}.
 * @extends {Emitter<CallEvents>}
 */
export class Call extends Emitter {
  /** The other end's name. */
  peer;
  /** Tells this call's messages from those of an earlier one with the same name. */
  id;
  /** @type {CallState} */
  state;
  /** What the other end sends; its tracks come and go. */
  remote = new MediaStream();
  /** @type {RTCPeerConnection | null} */
  connection = null;

  #polite;
  #iceServers;
  #present;
  #send;
  /** @type {MediaStream | null} */
  #stream = null;
  #makingOffer = false;
  #ignoring = false;
  #early = 0;
  #timer = 0;
  /** Opens the queue of messages, which waits until the call is accepted and can take them. */
  #begin;
  /** @type {Promise<void>} */
  #queue;

  /**
   * @param {{
   *   peer: string, id: string, state: 'calling' | 'ringing', polite: boolean,
   *   iceServers: Given<RTCIceServer[]>, present: () => boolean, send: (message: CallMessage) => void,
   * }} options
   */
  constructor({ peer, id, state, polite, iceServers, present, send }) {
    super();
    this.peer = peer;
    this.id = id;
    this.state = state;
    this.#polite = polite;
    this.#iceServers = iceServers;
    this.#present = present;
    this.#send = (/** @type {Omit<CallMessage, 'call'>} */ message) => send({ call: this.id, ...message });
    const gate = Promise.withResolvers();
    this.#queue = gate.promise;
    this.#begin = gate.resolve;
    this.#endAfter(RING_MS, 'no_answer');
  }

  /**
   * Takes a ringing call. `stream` may lack a camera or a microphone, or be null: then this end
   * only receives.
   * @param {MediaStream | null} stream
   */
  accept(stream) {
    if (this.connection || this.#stream || this.state === 'ended') return;
    this.#stream = stream ?? new MediaStream();
    if (this.state === 'ringing') this.#become('connecting');
    this.#begin(this.#start().catch((error) => this.#fail(error)));
  }

  decline() {
    this.#leave('declined');
  }

  hangup() {
    this.#leave('hangup');
  }

  /** Ends an incoming call because this end is in another one. */
  busy() {
    this.#leave('busy');
  }

  /**
   * Swaps a track without negotiating: another camera, or null while it is off.
   * @param {'audio' | 'video'} kind
   * @param {MediaStreamTrack | null} track
   */
  async replace(kind, track) {
    const transceivers = (this.connection?.getTransceivers() ?? []).filter((t) => t.receiver.track.kind === kind);
    const used = transceivers.find((t) => t.currentDirection?.startsWith('send')) ?? transceivers[0];
    await used?.sender.replaceTrack(track);
  }

  /** Tells the other end what this end has switched on. @param {Sending} sending */
  announce(sending) {
    if (this.state !== 'ended' && this.state !== 'ringing') this.#send({ sending });
  }

  /** Video received: frames decoded since the start, and the picture's size. */
  async videoStats() {
    const stats = { framesDecoded: 0, width: 0, height: 0 };
    const report = await this.connection?.getStats();
    report?.forEach((entry) => {
      if (entry.type !== 'inbound-rtp' || entry.kind !== 'video') return;
      stats.framesDecoded += entry.framesDecoded ?? 0;
      stats.width = entry.frameWidth ?? stats.width;
      stats.height = entry.frameHeight ?? stats.height;
    });
    return stats;
  }

  /** @internal @param {CallMessage} message */
  receive(message) {
    if (this.state === 'ringing' && this.#early++ >= EARLY_MAX) return;
    // Both ends called at once: the polite one's call becomes the other's.
    if (message.description?.type === 'offer' && this.#polite) this.id = message.call;
    this.#queue = this.#queue.then(() => this.#apply(message)).catch((error) => this.#fail(error));
  }

  /** @internal The other end left the room. Media may still flow: its socket may only be changing. */
  onPeerGone() {
    if (this.state === 'calling' || this.state === 'ringing') this.end('left');
    else if (this.state === 'reconnecting') this.#endAfter(LEFT_MS, 'left');
  }

  /** @internal This end is in the room again. */
  onRoomBack() {
    if (!this.#present()) this.onPeerGone();
    else if (this.state === 'reconnecting') this.connection?.restartIce();
  }

  /** Ends this side only, without a word to the other. @param {CallEnd} reason */
  end(reason) {
    if (this.state === 'ended') return;
    clearTimeout(this.#timer);
    this.connection?.close();
    this.remote.getTracks().forEach((track) => this.remote.removeTrack(track));
    this.#become('ended');
    this.emit('ended', reason);
  }

  async #start() {
    const iceServers = await ask(this.#iceServers);
    if (this.state === 'ended') return;
    const connection = new RTCPeerConnection({ iceServers, bundlePolicy: 'max-bundle' });
    this.connection = connection;
    connection.onnegotiationneeded = () => this.#offer(connection);
    connection.onicecandidate = ({ candidate }) => {
      if (candidate) this.#send({ candidate: candidate.toJSON() });
    };
    connection.ontrack = ({ track }) => {
      this.remote.addTrack(track);
      this.emit('stream', this.remote);
    };
    connection.onconnectionstatechange = () => this.#onConnection(connection.connectionState);
    // The called end attaches its tracks to what the offer brings.
    if (this.state === 'calling') this.#attach(connection);
  }

  /** @param {RTCPeerConnection} connection */
  async #offer(connection) {
    try {
      this.#makingOffer = true;
      await connection.setLocalDescription();
      if (connection === this.connection && connection.localDescription) {
        this.#send({ description: connection.localDescription });
      }
    } catch (error) {
      if (connection === this.connection) this.#fail(error);
    } finally {
      this.#makingOffer = false;
    }
  }

  /** @param {CallMessage} message */
  async #apply({ call, description, candidate, sending }) {
    let connection = this.connection;
    if (!connection || this.state === 'ended') return;
    if (description) {
      const offer = description.type === 'offer';
      if (offer && this.#polite && this.state === 'calling') {
        // Both called at once, and this end yields: by a new connection, since Chromium 156 may
        // gather nothing after a rollback that comes just when it began to gather.
        connection.close();
        this.#become('connecting');
        await this.#start();
        connection = /** @type {RTCPeerConnection} */ (this.connection);
      }
      this.#ignoring = offer && !this.#polite && (this.#makingOffer || connection.signalingState !== 'stable');
      if (this.#ignoring) return;
      this.id = call;
      await connection.setRemoteDescription(description);
      if (offer) {
        this.#attach(connection);
        await connection.setLocalDescription();
        if (connection.localDescription) this.#send({ description: connection.localDescription });
      }
      if (this.state === 'calling') this.#become('connecting');
      if (this.state === 'connecting') this.#endAfter(RECOVER_MS, 'no_path');
    } else if (candidate && call === this.id) {
      await connection.addIceCandidate(candidate).catch((error) => {
        if (!this.#ignoring) throw error;
      });
    } else if (sending && call === this.id) {
      this.emit('sending', { audio: !!sending.audio, video: !!sending.video });
    }
  }

  /**
   * Sends what this end has, and keeps a way open for what it may switch on later.
   * @param {RTCPeerConnection} connection
   */
  #attach(connection) {
    const stream = /** @type {MediaStream} */ (this.#stream);
    for (const kind of ['audio', 'video']) {
      const track = stream.getTracks().find((each) => each.kind === kind);
      const open = connection.getTransceivers().find((each) => each.receiver.track.kind === kind);
      if (!track && open) open.direction = 'sendrecv';
      else if (!track) connection.addTransceiver(kind, { streams: [stream] });
      else if (!connection.getSenders().some((sender) => sender.track === track)) connection.addTrack(track, stream);
    }
  }

  /** @param {RTCPeerConnectionState} state */
  #onConnection(state) {
    if (state === 'connected') {
      clearTimeout(this.#timer);
      this.#become('connected');
    } else if (state === 'disconnected' || state === 'failed') {
      if (this.state === 'connected') {
        this.#become('reconnecting');
        this.#endAfter(this.#present() ? RECOVER_MS : LEFT_MS, 'lost');
      }
      // One end restarts, so that the two do not collide each time.
      if (state === 'failed' && !this.#polite) this.connection?.restartIce();
    }
  }

  /** @param {CallEnd} reason */
  #leave(reason) {
    if (this.state === 'ended') return;
    this.#send({ bye: reason });
    this.end(reason);
  }

  /** @param {unknown} error */
  #fail(error) {
    if (this.state === 'ended') return;
    reportError(error);
    this.#leave('failed');
  }

  /** @param {number} afterMs @param {CallEnd} reason */
  #endAfter(afterMs, reason) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#leave(reason), afterMs);
  }

  /** @param {CallState} state */
  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.emit('state', state);
  }
}

// --- Small things --------------------------------------------------------------------------------

/**
 * @template T
 * @param {Given<T>} given
 * @returns {Promise<T>}
 */
async function ask(given) {
  return typeof given === 'function' ? /** @type {() => T | Promise<T>} */ (given)() : given;
}

/** The path of a URL, without its first slash. @param {ApiPath} path */
function pathOf(path) {
  const segments = Array.isArray(path) ? path.map(encodeURIComponent) : path.replace(/^\/+/, '').split('/');
  // URLs know the escaped spelling of a dot too.
  const wrong = segments.some((segment) => /^(\.|%2e){1,2}$/i.test(segment) || (Array.isArray(path) && !segment));
  if (wrong) throw new ApiError('bad_segment', { status: 400 });
  return segments.join('/');
}

/** @param {string} wire a name as frames carry it: percent-encoded where it must be */
function nameOf(wire) {
  try { return decodeURIComponent(wire); } catch { return wire; }
}

/** @param {string} text */
function bytesOf(text) {
  return new TextEncoder().encode(text).length;
}

/** @param {unknown} error */
function reasonOf(error) {
  return error instanceof Error ? error.message : String(error);
}
