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
const CONNECT_WAIT_MS = 10_000;
const BACKOFF_FIRST_MS = 80;
const BACKOFF_MAX_MS = 10_000;
/** A connection that lived this long was a good one: the next backoff starts from the beginning. */
const STABLE_MS = 5_000;
/** Frames kept while reconnecting; one more is refused by `send`. */
const OUTBOX_MAX = 256;
/** Close codes after which trying again with the same credentials cannot help. */
const REFUSED = 4401;
const REMOVED = 4403;

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
 * @typedef {{
 *   open: void, close: Closed, state: RoomState, peers: string[],
 *   peer_connected: string, peer_removed: string, message: Message,
 * }} RoomEvents
 */

/**
 * One name in one room. Reconnects by itself until `close()`, 4401 (token refused) or 4403
 * (removed from the room).
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
  /** @type {WebSocket | null} */
  #socket = null;
  /** Present names, each with the spelling that the neuron uses for it. @type {Map<string, string>} */
  #present = new Map();
  /** @type {string[]} */
  #outbox = [];
  #joined = false;
  #opening = false;
  #openedAt = 0;
  #failures = 0;
  #retryTimer = 0;
  #pingTimer = 0;
  #replyTimer = 0;
  #probe = () => this.#onNetworkChange();

  /** @param {{ url: Given<string>, token: Given<string>, name?: string }} options */
  constructor({ url, token, name = '' }) {
    super();
    this.#url = url;
    this.#token = token;
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
    this.#socket?.close(1000, reason);
    this.#lost({ code: 1000, reason }, true);
  }

  /**
   * Sends to everyone else in the room, or to one name. While reconnecting, frames wait until this
   * end is back (who is away at that moment misses them); `false` means that this one was not taken.
   * @param {string} op any word but `peers`, `peer_connected`, `peer_removed`
   * @param {unknown} payload
   * @param {string} [to]
   * @returns {boolean}
   */
  send(op, payload, to) {
    const m = { f: this.name, o: op, ...(to !== undefined && { t: this.#present.get(to) ?? to }) };
    const frame = JSON.stringify({ t: 'u', m, p: payload ?? null });
    if (this.#joined) {
      this.#socket?.send(frame);
      return true;
    }
    if (this.#ended || this.#outbox.length >= OUTBOX_MAX) return false;
    this.#outbox.push(frame);
    return true;
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
      socket = new WebSocket(`${url.replace(/\/+$/, '')}/v2/${encodeURIComponent(token)}`);
    } catch (error) {
      this.#lost({ code: 0, reason: reasonOf(error) }, true);
      return;
    }
    this.#socket = socket;
    this.#openedAt = 0;
    this.#expectFrame(CONNECT_WAIT_MS);
    socket.onopen = () => this.#onOpen(socket);
    socket.onmessage = ({ data }) => this.#onFrame(socket, data);
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket) this.#lost({ code, reason }, code === REFUSED || code === REMOVED);
    };
  }

  /** @param {WebSocket} socket */
  #onOpen(socket) {
    if (socket !== this.#socket) return;
    this.#openedAt = Date.now();
    this.#pingTimer = setInterval(() => this.#ping(), PING_EVERY_MS);
    this.emit('open', undefined);
  }

  /** @param {WebSocket} socket @param {unknown} data */
  #onFrame(socket, data) {
    if (socket !== this.#socket || typeof data !== 'string') return;
    clearTimeout(this.#replyTimer);
    this.#replyTimer = 0;
    let frame;
    try { frame = JSON.parse(data); } catch { return; }
    if (frame?.t === 'pong') this.rttMs = Math.max(0, Date.now() - frame.ts);
    if (frame?.t !== 'u' || typeof frame.m?.f !== 'string') return;
    const { f, o, t } = frame.m;
    const wire = f.slice(f.lastIndexOf('/') + 1);
    const from = nameOf(wire);
    switch (o) {
      case 'peers':
        this.#onJoined(f, frame.p?.users);
        break;
      case 'peer_connected':
        if (this.#present.has(from)) break;
        this.#present.set(from, wire);
        this.emit('peer_connected', from);
        break;
      case 'peer_removed':
        if (this.#present.delete(from)) this.emit('peer_removed', from);
        break;
      default: {
        const to = typeof t === 'string' && t ? nameOf(t.slice(t.lastIndexOf('/') + 1)) : null;
        this.emit('message', { from, op: String(o), payload: frame.p ?? null, to });
      }
    }
  }

  /** @param {string} sender `<path>/__sys__` @param {unknown} users */
  #onJoined(sender, users) {
    this.path = sender.slice(0, sender.lastIndexOf('/'));
    const names = Array.isArray(users) ? users.map(String) : [];
    this.#present = new Map(names.map((wire) => [nameOf(wire), wire]));
    this.#joined = true;
    this.#become('open');
    this.emit('peers', this.peers);
    for (const frame of this.#outbox.splice(0)) this.#socket?.send(frame);
  }

  /** @param {{ code: number, reason: string }} why @param {boolean} final */
  #lost(why, final) {
    clearInterval(this.#pingTimer);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#replyTimer);
    this.#replyTimer = 0;
    this.#socket = null;
    this.#joined = false;
    if (final) {
      for (const event of ['online', 'offline']) removeEventListener(event, this.#probe);
      this.#outbox = [];
      this.#present.clear();
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
    if (this.#replyTimer) return;
    this.#replyTimer = setTimeout(() => {
      const socket = this.#socket;
      // Told at once: on a dead network the browser waits long for the closing handshake.
      this.#lost({ code: 1006, reason: 'no reply' }, false);
      socket?.close();
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
 * A room that is connecting already.
 * @param {{ url: Given<string>, token: Given<string>, name?: string }} options
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

/** @param {unknown} error */
function reasonOf(error) {
  return error instanceof Error ? error.message : String(error);
}
