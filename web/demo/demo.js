// The page at /demo: join a room, see who is there and who may be, write, call, share values. It uses
// the public API only, by way of the client library; the server fills in credentials in dev mode.

import { Api, ApiError, Calls, connect } from './ganglion.js';

const CHAT_LINES_MAX = 500;
const TOAST_MS = 6_000;
const STATS_EVERY_MS = 500;
/** How long a value that changed stands out; the style sheet's `flash` takes as long. */
const FLASH_MS = 2_000;
/** How long one may come back to a room that was joined. */
const STAY_S = 24 * 60 * 60;
/** What people here may: all but to send others away, which this page does as the account. */
const GRANTS = 'subscribe,publish,send,relay,watch,read,write';
const PICTURE = { width: { ideal: 1280 }, height: { ideal: 720 } };

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
/** What a test asks for in the address; to a visitor, no link may be a click. @param {string} flag */
const driven = (flag) => navigator.webdriver && query.has(flag);

/** @type {{ ident: string, secret: string, base: string, path: string } | null} */
let access = null;
try { access = JSON.parse($('ganglion').textContent ?? ''); } catch { /* not filled in: told below */ }
const api = access && new Api(access);

/** @type {import('./ganglion.js').Ganglion | null} */
let room = null;
/** @type {Calls | null} */
let calls = null;
/** The call on the stage. @type {import('./ganglion.js').Call | null} */
let call = null;
/** A call that rings here. @type {import('./ganglion.js').Call | null} */
let ringing = null;
let callSince = 0;
let remoteSends = { audio: true, video: true };
let video = { framesDecoded: 0, width: 0, height: 0 };
/** The room's path. @type {string[]} */
let place = [];
/** Whom a rule lets in; null is everybody. @type {string[] | null} */
let members = null;
/** Whether something may have been missed while this end was away. */
let missed = false;
/**
 * In the order of the room: what of this end's lines is not known to be heard comes last.
 * @typedef {{ from: string, text: string, row: HTMLElement, pending: boolean }} Line
 * @type {Line[]}
 */
const chat = [];
/** The room's data as it is shown. @type {Map<string, any> | null} */
let data = null;
/** Switched on by the user; a device may be missing all the same. */
const wanted = { audio: true, video: true };

// --- Camera and microphone -------------------------------------------------------------------------

const media = new MediaStream();
/** Why there is no picture, in words for the user. */
let mediaProblem = '';

const track = (/** @type {string} */ kind) => media.getTracks().find((each) => each.kind === kind) ?? null;

async function startMedia() {
  mediaProblem = 'Starting your camera…';
  showMedia(false);
  mediaProblem = '';
  if (!navigator.mediaDevices) {
    mediaProblem = 'Browsers allow the camera only over https:// or on localhost. Open the page there to call; you can join to read and write.';
    return showMedia(true);
  }
  // Both together ask the user once; if one device is missing, the other is still worth having.
  const asks = [{ audio: true, video: true }, { audio: true, video: false }, { audio: false, video: true }];
  for (const ask of wanted.video ? asks : asks.slice(1, 2)) {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ ...ask, video: ask.video && PICTURE });
      stream.getTracks().forEach(addTrack);
      if (wanted.video && !ask.video) mediaProblem = 'No camera: others will hear you. Plug one in, or close the program that holds it, and press Try again.';
      if (!ask.audio) mediaProblem = 'No microphone found: others will see you, but not hear you.';
      break;
    } catch (/** @type {any} */ error) {
      mediaProblem = mediaProblemOf(error);
      if (error.name === 'NotAllowedError') break;
    }
  }
  showMedia(true);
  await offerMedia();
}

/** Tells a running call what there is to send. */
async function offerMedia() {
  await call?.replace('audio', track('audio'));
  await call?.replace('video', track('video'));
  call?.announce(sending());
}

function mediaProblemOf(error) {
  switch (error.name) {
    case 'NotAllowedError': return 'Camera and microphone are blocked. Allow them beside the address bar, then press Try again.';
    case 'NotFoundError': return 'No camera or microphone found. Plug one in and press Try again, or join to listen and write.';
    case 'NotReadableError': return 'Another program holds the camera. Close it, then press Try again.';
    default: return `The camera did not start (${error.name}). Press Try again.`;
  }
}

/** @param {MediaStreamTrack} added */
function addTrack(added) {
  const old = track(added.kind);
  if (old) media.removeTrack(old);
  old?.stop();
  added.enabled = added.kind === 'video' || wanted.audio;
  media.addTrack(added);
  added.onended = () => {
    if (track(added.kind) !== added) return;
    media.removeTrack(added);
    mediaProblem = 'The camera or microphone was unplugged or taken away. Press Try again to go on.';
    showMedia(true);
    void offerMedia();
  };
}

/** @param {'audio' | 'video'} kind */
async function toggle(kind) {
  if (wanted[kind] && !track(kind)) return startMedia();
  wanted[kind] = !wanted[kind];
  if (kind === 'audio') {
    const microphone = track('audio');
    if (microphone) microphone.enabled = wanted.audio;
  } else if (!wanted.video) {
    // Stopped, and not only blackened: the camera's light goes off.
    const camera = track('video');
    if (camera) media.removeTrack(camera);
    camera?.stop();
  } else {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: PICTURE });
      if (wanted.video) stream.getTracks().forEach(addTrack);
      else stream.getTracks().forEach((unwanted) => unwanted.stop());
      mediaProblem = '';
    } catch (error) {
      mediaProblem = mediaProblemOf(error);
    }
  }
  showMedia(true);
  await offerMedia();
}

const sending = () => ({ audio: wanted.audio && !!track('audio'), video: wanted.video && !!track('video') });

/** @param {boolean} settled */
function showMedia(settled) {
  const on = sending();
  for (const id of ['preview-video', 'local']) {
    const element = $(id);
    if (element.srcObject !== media) element.srcObject = media;
    const tile = element.parentElement;
    tile.dataset.picture = on.video ? 'on' : 'off';
    tile.dataset.sound = on.audio ? 'on' : 'off';
  }
  for (const each of all('[data-media-text]')) each.textContent = mediaProblem || (wanted.video ? '' : 'Your camera is off.');
  for (const each of all('[data-retry]')) each.hidden = !settled || !mediaProblem || !navigator.mediaDevices;
  for (const each of all('[data-toggle]')) {
    const kind = each.dataset.toggle;
    each.setAttribute('aria-pressed', String(on[kind]));
    each.querySelector('use')?.setAttribute('href', `#i-${kind === 'audio' ? 'mic' : 'cam'}${on[kind] ? '' : '-off'}`);
  }
}

const all = (/** @type {string} */ selector) => /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(selector));

// --- Joining and leaving ---------------------------------------------------------------------------

async function join() {
  if (room || !api || !access) return;
  const name = tidy($('name').value);
  const roomName = tidy($('room-name').value);
  if (!name || !roomName) return problem('Give a name and a room.');
  if ([name, roomName].some((word) => /^\.{1,2}$/.test(word))) return problem('A name or a room cannot be dots alone. Use letters and digits.');
  sessionStorage.setItem('ganglion.name', name);
  localStorage.setItem('ganglion.room', roomName);
  problem('');
  joining(true);
  place = [...access.path.split('/').filter(Boolean), roomName];
  try {
    await api.put(['_ns', ...place]).catch((error) => {
      if (error.code !== 'path_exists') throw error;
    });
  } catch (error) {
    joining(false);
    return problem(apiProblem(error));
  }
  // One for the whole stay: who is removed while the network is away does not come back with it.
  let token = '';
  room = connect({
    name,
    url: () => api.get('/_host', { type: 'signal', k: name }),
    token: async () => token ||= await api.put(['_token', ...place], { k: name, expire: STAY_S, grants: GRANTS }),
  });
  calls = new Calls(room, { iceServers: () => api.iceServers(place.join('/'), name) });
  calls.on('incoming', onIncoming);
  room.on('state', onState);
  room.on('peers', onPeers);
  room.on('gap', () => { missed = true; });
  room.on('peer_connected', (peer) => {
    event(`${peer} joined`);
    onPresence();
  });
  room.on('peer_removed', (peer) => {
    event(`${peer} left`);
    onPresence();
  });
  room.on('message', ({ from, op, payload }) => {
    if (op === 'message') line(from, String(payload?.msg ?? payload));
    if (op === 'rules') void readDoor();
  });
  room.on('close', ({ code, reason, retryMs }) => {
    // Without a room, this end has left by itself.
    if (retryMs === null && room) sentAway(code, reason);
    else if (retryMs !== null && $('room').hidden) problem('The neuron does not answer. Trying again…');
  });
}

/** @param {number} code @param {string} reason */
function sentAway(code, reason) {
  const wasIn = !$('room').hidden;
  leave(closeProblem(code, reason, wasIn));
  // Not on the button that joins again: whoever was typing may be about to press Enter.
  if (wasIn) $('join-problem').focus();
}

/** @param {import('./ganglion.js').RoomState} state */
function onState(state) {
  const wasAway = $('status').dataset.state === 'reconnecting';
  showStatus();
  if (state === 'reconnecting') for (const each of chat) if (each.pending) mark(each, WAITS);
  // After `gap`, which comes at once, and before what was said meanwhile, which follows.
  if (wasAway && state === 'open') queueMicrotask(() => {
    if (!room) return;
    event(missed ? 'You were cut off and are back. Something that was said may be missing here.'
      : 'You were cut off and are back. Nothing was missed.');
    missed = false;
  });
}

function onPeers() {
  if ($('room').hidden) {
    $('room-title').textContent = $('room-name').value;
    document.title = `${$('room-name').value} · Ganglion`;
    $('join').hidden = true;
    $('room').hidden = false;
    history.replaceState(null, '', inviteUrl());
    joining(false);
    problem('');
    room?.watch(room.path, onData, { refused: () => dataClosed(true) });
    showCommands();
    // On a phone, focus would push the keyboard over the page.
    if (matchMedia('(hover: hover)').matches) $('text').focus();
  }
  onPresence();
  void readDoor();
}

/** @param {string} [why] shown on the join screen */
function leave(why = '') {
  const left = room;
  room = null;
  // Leaving tells a caller more than declining would.
  ringing?.end('left');
  call?.hangup();
  left?.close();
  calls = null;
  chat.length = 0;
  $('chat').replaceChildren();
  data = members = null;
  missed = false;
  $('data').replaceChildren();
  $('data-told').textContent = '';
  dataClosed(false);
  for (const each of all('.news')) each.hidden = true;
  $('room').hidden = true;
  $('join').hidden = false;
  document.title = 'Ganglion';
  joining(false);
  problem(why);
}

/** @param {number} code @param {string} reason @param {boolean} wasIn */
function closeProblem(code, reason, wasIn) {
  if (code === 4401 && wasIn) return 'You were removed from this room: someone in it, or its owner, took your access back, or you were here for a day. You can join again, unless the room is closed to you.';
  if (code === 4401 || reason === 'unauthorized') return 'The neuron refused the access token. Reload the page to get a new one, then join again.';
  if (code === 4403) {
    if (reason === 'kicked') return 'You were removed from this room: someone in it, or its owner, sent you away. You can join again, unless the room is closed to you.';
    if (reason === 'session ended') return 'Your session was ended by the account that this room is of. Join again to begin another.';
    if (wasIn) return 'You were removed from this room by its rule of who may be there, which no longer names you. Ask someone in the room to open it, then join again.';
    return 'This room is closed to you: its rule of who may be there does not name you. Ask someone in the room to open it, or pick another room.';
  }
  if (code === 0) return apiProblem(new ApiError(reason));
  if (code === 1000) return '';
  if (code === 4409) return 'You are in this room by another tab or window, which this one made way for.';
  return `The neuron did not let you in: ${reason || `code ${code}`}. Join again, perhaps by another name.`;
}

function apiProblem(error) {
  switch (error.code) {
    case 'unauthorized': return 'The neuron refused this page’s credentials. Reload the page; if it goes on, restart the neuron in dev mode.';
    case 'unreachable': return 'The neuron does not answer. Check that it runs and that you are online, then join again.';
    case 'no_namespace': return 'This room is not open any more. Join again to open it.';
    case 'bad_segment': return 'That room name does not work. Use letters and digits, and no “.” alone.';
    default: return `The neuron answered “${error.code ?? error.message}”. Try again in a moment.`;
  }
}

/** Names are one path segment: no slash. @param {string} text */
const tidy = (text) => text.replaceAll('/', ' ').replace(/\s+/g, ' ').trim();

/** @param {string} text */
function problem(text) {
  $('join-problem').textContent = text;
  if (text) $('join-problem').scrollIntoView({ block: 'nearest' });
}

/** @param {boolean} busy */
function joining(busy) {
  const button = $('join-button');
  button.disabled = busy || !api;
  button.textContent = busy ? 'Joining…' : 'Join room';
}

function inviteUrl() {
  const link = new URL(location.pathname, location.href);
  link.searchParams.set('room', $('room-name').value);
  return link.href;
}

// --- People ----------------------------------------------------------------------------------------

const others = () => room?.peers.filter((name) => name !== room?.name) ?? [];

function onPresence() {
  showPeople();
  showHint();
  if (driven('autocall') && !call && !ringing && others().length) startCall(others()[0]);
}

function showStatus() {
  const state = room?.state ?? 'closed';
  const words = { open: 'Connected', reconnecting: 'Reconnecting…', connecting: 'Connecting…' };
  $('status').dataset.state = state;
  $('status').textContent = words[state] ?? 'Disconnected';
  showHint();
}

function showHint() {
  $('hint').textContent = room?.state === 'reconnecting' ? 'The network is away: reconnecting. What you write is sent then.'
    : others().length ? 'Pick someone to call.'
      : 'Nobody else is here yet. Copy the link and send it to someone.';
}

function showPeople() {
  const names = room ? [room.name, ...others()] : [];
  $('people-count').textContent = String(names.length);
  // Rows are kept, so that focus and a screen reader's place survive a change.
  const rows = new Map([...$('people').children].map((row) => [row.dataset.name, row]));
  $('people').replaceChildren(...names.map((name) => rows.get(name) ?? personRow(name)));
  for (const name of names) showCallButton(name);
}

/** @param {string} name */
function personRow(name) {
  const row = make('li', {});
  row.dataset.name = name;
  const who = make('span', { className: 'who', textContent: name, title: name });
  row.append(avatar(name, make('span', { className: 'avatar' })), who);
  if (name === room?.name) {
    row.className = 'me';
    who.append(' ', make('small', { textContent: '(you)' }));
  } else {
    const button = make('button', { type: 'button', className: 'button' });
    button.addEventListener('click', () => (call?.peer === name ? call.hangup() : startCall(name)));
    const remove = make('button', { type: 'button', className: 'quiet', title: `Remove ${name} from the room` });
    remove.setAttribute('aria-label', remove.title);
    remove.append(icon('i-remove'));
    remove.addEventListener('click', () => void removePerson(name));
    row.append(button, remove);
  }
  return row;
}

/** @param {string} name */
function showCallButton(name) {
  const button = [...$('people').children].find((row) => row.dataset.name === name)?.querySelector('button');
  if (!button) return;
  const mine = call?.peer === name;
  const word = mine ? (call?.state === 'calling' ? 'Cancel' : 'Hang up') : ringing?.peer === name ? 'Accept' : 'Call';
  if (button.dataset.word === word) return;
  button.dataset.word = word;
  button.replaceChildren(icon(mine ? 'i-end' : 'i-call'), word);
  button.className = `button ${mine ? 'danger' : ''}`;
  button.setAttribute('aria-label', mine ? `${word}: ${name}` : `${word} ${name}`);
}

// --- Who may be here -------------------------------------------------------------------------------

/** Asks what the rule is; it may have been set from a terminal. */
async function readDoor() {
  const asked = room;
  try {
    const names = await api?.get(['_conf', ...place], { k: 'join' });
    members = Array.isArray(names) ? names.map(String) : null;
  } catch (/** @type {any} */ error) {
    if (error.code !== 'not_found') return;
    members = null;
  }
  if (asked && asked === room) showDoor();
}

function showDoor() {
  const word = members ? 'Open to everybody' : 'Only those here now';
  $('door').dataset.closed = String(!!members);
  $('door').title = $('door').querySelector('span').textContent = word;
  $('door').querySelector('use').setAttribute('href', members ? '#i-lock' : '#i-unlock');
  const text = members ? `Closed: only ${list(members)} may be here.` : '';
  if ($('door-text').textContent !== text) $('door-text').textContent = text;
}

/** Closes the room to all but those who are in it, or opens it to everybody. */
async function turnDoor() {
  if (!api || !room) return;
  $('door').disabled = true;
  try {
    if (members) {
      await api.delete(['_conf', ...place], { k: 'join' });
      toast('The room is open to everybody.');
    } else {
      await api.put(['_conf', ...place], {}, { k: 'join', v: room.peers });
      toast('The room is closed: others are refused until you open it.');
    }
    room?.send('rules', null);
    await readDoor();
  } catch (error) {
    toast(apiProblem(error));
  }
  $('door').disabled = false;
}

/** @param {string} name */
async function removePerson(name) {
  if (!api) return;
  try {
    await api.delete(['_subs', ...place], { k: name });
    if (members?.includes(name)) {
      await api.put(['_conf', ...place], {}, { k: 'join', v: members.filter((each) => each !== name) });
      room?.send('rules', null);
      await readDoor();
      toast(`${name} was removed, and cannot come back while the room is closed.`);
    } else {
      toast(`${name} was removed. To keep others out, close the room to all but those who are here.`);
    }
  } catch (/** @type {any} */ error) {
    toast(error.code === 'not_found' ? `${name} has left already.` : apiProblem(error));
  }
}

/** @param {string[]} names */
const list = (names) => new Intl.ListFormat('en').format(names) || 'nobody';

// --- Chat ------------------------------------------------------------------------------------------

/** @param {string} text */
function say(text) {
  const trimmed = text.trim();
  if (!trimmed || !room) return false;
  const said = room;
  const mine = line(room.name, trimmed, true);
  if (room.state !== 'open') mark(mine, WAITS);
  room.publish('message', { msg: trimmed }).then(() => settle(mine, ''), (error) => {
    settle(mine, 'Not sent');
    if (said !== room) return;
    toast(NOT_SENT[error.code] ?? NOT_SENT.unreachable);
  });
  return true;
}

const WAITS = 'Waits for the network';
/** @type {Record<string, string>} */
const NOT_SENT = {
  not_allowed: 'Not sent: a rule of this room does not let you write.',
  too_large: 'Not sent: that is longer than the neuron takes at once.',
  unreachable: 'Not sent: too much waits for the network already. Send it again when this page is connected.',
};

/** This end's line was heard, or never will be. @param {Line} mine @param {string} note */
function settle(mine, note) {
  mine.pending = false;
  mine.row.classList.remove('pending');
  mine.row.classList.toggle('failed', !!note);
  mark(mine, note);
}

/** @param {Line} mine @param {string} note */
function mark(mine, note) {
  mine.row.querySelector('small')?.remove();
  if (note) mine.row.append(make('small', { textContent: note }));
}

/** @param {string} from @param {string} text @param {boolean} [pending] @returns {Line} */
function line(from, text, pending = false) {
  const mine = from === room?.name;
  const row = make('li', { className: `${mine ? 'mine' : ''} ${pending ? 'pending' : ''}`.trim() });
  row.dataset.from = from;
  if (!mine) row.append(make('b', { textContent: from }));
  row.append(text);
  const said = { from, text, row, pending };
  const waiting = pending ? -1 : chat.findIndex((each) => each.pending);
  chat.splice(waiting < 0 ? chat.length : waiting, 0, said);
  append(row, pending);
  if (!mine) news('chat');
  return said;
}

/** @param {string} text */
function event(text) {
  append(make('li', { className: 'event', textContent: text }), false);
}

/** @param {HTMLElement} row @param {boolean} follow */
function append(row, follow) {
  const rows = $('chat');
  const atEnd = rows.scrollHeight - rows.scrollTop - rows.clientHeight < 40;
  // What the others said was heard before what still waits here.
  rows.insertBefore(row, row.classList.contains('pending') ? null : rows.querySelector('.pending'));
  if (rows.children.length > CHAT_LINES_MAX) rows.firstElementChild?.remove();
  if (chat.length > CHAT_LINES_MAX) chat.shift();
  for (const each of [row, row.nextElementSibling]) {
    if (!(each instanceof HTMLElement)) continue;
    const before = /** @type {HTMLElement | null} */ (each.previousElementSibling)?.dataset.from;
    each.classList.toggle('more', before !== undefined && before === each.dataset.from);
  }
  // A reader who scrolled back is left in peace.
  if (follow || atEnd) rows.scrollTop = rows.scrollHeight;
}

// --- Data ------------------------------------------------------------------------------------------

/** @param {import('./ganglion.js').Entries} entries */
function onData(entries) {
  if (!room) return;
  const before = data;
  data = entries;
  const rows = new Map([...$('data').children].map((row) => [row.dataset.key, row]));
  const told = [];
  for (const [key, row] of rows) {
    if (entries.has(key)) continue;
    if (row.contains(document.activeElement)) $('data-key').focus();
    row.remove();
    told.push(`${key} is gone`);
  }
  // Rows that stay are not moved, so that focus and a screen reader's place survive a change.
  let at = $('data').firstElementChild;
  for (const key of [...entries.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }))) {
    const row = rows.get(key) ?? dataRow(key);
    if (row === at) at = at.nextElementSibling;
    else $('data').insertBefore(row, at);
    if (!showValue(row, shown(entries.get(key))) || !before) continue;
    flash(row);
    // Whoever is about to press something there is left in peace.
    if (!$('data').matches(':hover, :focus-within')) row.scrollIntoView({ block: 'nearest' });
    told.push(`${key} is ${shown(entries.get(key))}`);
  }
  $('data-count').textContent = entries.size ? String(entries.size) : '';
  if (!before || !told.length) return;
  $('data-told').textContent = told.join('; ');
  news('data');
}

/** @param {string} key */
function dataRow(key) {
  const row = make('li', {});
  row.dataset.key = key;
  const entry = make('button', { type: 'button', className: 'entry', title: `Change ${key}` });
  entry.append(make('span', { className: 'key', textContent: key }), make('span', { className: 'value' }));
  entry.addEventListener('click', () => {
    $('data-key').value = key;
    $('data-value').value = editable(data?.get(key));
    showCommands();
    $('data-value').focus();
    $('data-value').select();
  });
  const remove = make('button', { type: 'button', className: 'quiet', title: `Delete ${key}` });
  remove.setAttribute('aria-label', remove.title);
  remove.append(icon('i-delete'));
  remove.addEventListener('click', () => room?.ask('delete', { k: key }).catch((error) => toast(dataProblem(error))));
  row.append(entry, remove);
  return row;
}

/** Puts a value into its row, where it moves in and the old one out. @param {HTMLElement} row @param {string} text */
function showValue(row, text) {
  const value = /** @type {HTMLElement} */ (row.querySelector('.value'));
  const old = /** @type {HTMLElement | null} */ (value.querySelector('.now'));
  if (old?.textContent === text) return false;
  const parts = [make('span', { className: 'now', textContent: text })];
  if (old) {
    old.className = 'was';
    old.setAttribute('aria-hidden', 'true');
    parts.push(old);
  }
  value.replaceChildren(...parts);
  return true;
}

/** @type {WeakMap<HTMLElement, number>} */
const flashes = new WeakMap();
/** Shows for a moment that a row changed. @param {HTMLElement} row */
function flash(row) {
  clearTimeout(flashes.get(row));
  row.classList.remove('changed');
  // Read, so that the animation begins anew.
  void row.offsetWidth;
  row.classList.add('changed');
  flashes.set(row, setTimeout(() => {
    row.classList.remove('changed');
    row.querySelector('.was')?.remove();
  }, FLASH_MS));
}

async function setValue() {
  const key = $('data-key').value.trim();
  if (!key) return $('data-key').focus();
  try {
    await room?.ask('put', { k: key, v: valueOf($('data-value').value) });
  } catch (error) {
    toast(dataProblem(error));
  }
}

function dataProblem(error) {
  switch (error.code) {
    case 'unreachable': return 'Not changed: the network is away. Try again when this page is connected.';
    case 'not_allowed': return 'Not changed: a rule of this room does not let you write its data.';
    case 'bad_name': return 'Not changed: that key does not work. Use letters and digits.';
    case 'not_found': return 'It is gone already.';
    default: return `Not changed: the neuron answered “${error.code ?? error.message}”.`;
  }
}

/** @param {boolean} closed by a rule */
function dataClosed(closed) {
  $('data').dataset.empty = closed ? 'A rule of this room does not let you see its data. Leave and join again when it does.' : DATA_EMPTY;
  if (closed) $('data').replaceChildren();
  $('data-count').textContent = '';
}
const DATA_EMPTY = $('data').dataset.empty;

/** A value as it is read: text without quotes. @param {any} value */
const shown = (value) => (typeof value === 'string' ? value : JSON.stringify(value));

/** What somebody typed: JSON, or else text. @param {string} typed */
function valueOf(typed) {
  try { return JSON.parse(typed); } catch { return typed; }
}

/** The same backwards. @param {any} value */
const editable = (value) => (typeof value === 'string' && valueOf(value) === value ? value : JSON.stringify(value));

// --- Tabs and commands -----------------------------------------------------------------------------

const TABS = ['chat', 'data', 'terminal'];

/** @param {string} shown */
function showTab(shown) {
  for (const each of TABS) {
    const tab = $(`tab-${each}`);
    tab.setAttribute('aria-selected', String(each === shown));
    tab.tabIndex = each === shown ? 0 : -1;
    $(`panel-${each}`).hidden = each !== shown;
  }
  const seen = $(`tab-${shown}`).querySelector('.news');
  if (seen) seen.hidden = true;
  if (shown === 'chat') $('chat').scrollTop = $('chat').scrollHeight;
}

/** Marks a tab behind which something changed. @param {string} tab */
function news(tab) {
  $(`tab-${tab}`).querySelector('.news').hidden = !$(`panel-${tab}`).hidden;
}

/** Lines that do in a terminal what this page does. */
function showCommands() {
  if (!access) return;
  const path = `/${place.map(encodeURIComponent).join('/')}`;
  const where = [`--url ${quoted(new URL(access.base || '/', location.href).href.replace(/\/$/, ''))}`, `--user ${quoted(`${access.ident}:${access.secret}`)}`];
  const lines = (/** @type {string[]} */ ...parts) => [...parts, ...where].join(' \\\n  ');
  const k = $('data-key').value.trim() || $('data-key').placeholder;
  const v = valueOf($('data-value').value || $('data-value').placeholder);
  $('put-command').textContent = lines(`ganglion put ${quoted(`/_data${path}`)}`, quoted(JSON.stringify({ k, v })));
  $('chat-command').textContent = lines(`ganglion chat ${quoted(path)} --name terminal`);
  $('get-command').textContent = lines(`ganglion get ${quoted(`/_data${path}?k=${encodeURIComponent(k)}`)}`);
  $('who-command').textContent = lines(`ganglion get ${quoted(`/_subs${path}`)}`);
}

/** One word of a shell. @param {string} text */
const quoted = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** @param {string} id of the element whose text it is */
async function copy(id) {
  try {
    await navigator.clipboard.writeText($(id).textContent);
    toast('Copied. Paste it into a terminal.');
  } catch {
    getSelection()?.selectAllChildren($(id));
    toast('The line is selected: copy it from there.');
  }
}

// --- Calls -----------------------------------------------------------------------------------------

/** @param {string} name */
function startCall(name) {
  if (ringing?.peer === name) return answer();
  if (!calls || call?.peer === name || name === room?.name) return;
  call?.hangup();
  show(calls.start(name, media));
}

/** @param {import('./ganglion.js').Call} incoming */
function onIncoming(incoming) {
  if (ringing || call) return incoming.busy();
  ringing = incoming;
  incoming.on('ended', (why) => {
    if (ringing !== incoming) return;
    if (room && why !== 'declined') event(`Missed call from ${incoming.peer}`);
    stopRinging();
  });
  if (driven('autoaccept')) return answer();
  $('ring-name').textContent = incoming.peer;
  avatar(incoming.peer, $('ring-avatar'));
  $('ring').hidden = false;
  document.title = `${incoming.peer} is calling · Ganglion`;
  showCallButton(incoming.peer);
  ringTone.start();
  // Someone who is typing keeps the keyboard; the dialog is announced all the same.
  if (!$('text').value) $('accept').focus();
}

function answer() {
  const accepted = ringing;
  if (!accepted) return;
  stopRinging();
  show(accepted);
  accepted.accept(media);
}

function stopRinging() {
  const hadFocus = $('ring').contains(document.activeElement);
  const peer = ringing?.peer;
  ringing = null;
  ringTone.stop();
  $('ring').hidden = true;
  document.title = `${$('room-title').textContent} · Ganglion`;
  if (peer) showCallButton(peer);
  if (hadFocus) $('text').focus();
}

/** @param {import('./ganglion.js').Call} shown */
function show(shown) {
  call = shown;
  callSince = 0;
  remoteSends = { audio: true, video: true };
  video = { framesDecoded: 0, width: 0, height: 0 };
  $('remote-name').textContent = shown.peer;
  avatar(shown.peer, $('remote-avatar'));
  $('remote').setAttribute('aria-label', `${shown.peer}’s camera`);
  $('hangup').disabled = false;
  shown.on('state', onCallState);
  shown.on('stream', (stream) => void play(stream));
  shown.on('sending', (sends) => {
    remoteSends = sends;
    showCall();
  });
  shown.on('ended', onCallEnded);
  onCallState(shown.state);
}

/** @param {import('./ganglion.js').CallState} state */
function onCallState(state) {
  if (state === 'connected') {
    callSince ||= Date.now();
    call?.announce(sending());
  }
  if (call) showCallButton(call.peer);
  showCall();
}

/** @param {import('./ganglion.js').CallEnd} why */
function onCallEnded(why) {
  const peer = call?.peer ?? '';
  call = null;
  $('remote').srcObject = null;
  $('hangup').disabled = true;
  showCallButton(peer);
  showCall();
  const words = {
    declined: `${peer} declined the call.`,
    busy: `${peer} is in another call. Try again later.`,
    no_answer: `${peer} did not answer. Try again later, or leave a message.`,
    left: `${peer} left the room.`,
    lost: `The connection to ${peer} was lost. Check your network and call again.`,
    no_path: `No network path to ${peer}. A relay (TURN) is needed between your networks; ask who runs this neuron.`,
    failed: `The call with ${peer} failed. Reload the page and call again.`,
  };
  if (room && Object.hasOwn(words, why)) toast(words[why]);
}

function showCall() {
  const state = call?.state ?? 'idle';
  $('stage').dataset.call = state;
  const remote = $('remote').parentElement;
  const flowing = state === 'connected' && remoteSends.video && video.framesDecoded > 0;
  remote.dataset.picture = flowing ? 'on' : 'off';
  remote.dataset.sound = state === 'connected' && !remoteSends.audio ? 'off' : 'on';
  const peer = call?.peer ?? '';
  const words = {
    calling: `Calling ${peer}…`, connecting: 'Connecting…', reconnecting: 'The connection is away: reconnecting…',
    connected: remoteSends.video ? 'Waiting for the picture…' : `${peer}’s camera is off`,
  };
  const text = flowing ? '' : words[state] ?? '';
  if ($('call-text').textContent !== text) $('call-text').textContent = text;
  const seconds = callSince ? Math.floor((Date.now() - callSince) / 1000) : 0;
  $('call-time').textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

/** @param {MediaStream} stream */
async function play(stream) {
  const element = $('remote');
  if (element.srcObject !== stream) element.srcObject = stream;
  try {
    await element.play();
  } catch (/** @type {any} */ error) {
    if (error.name !== 'NotAllowedError') return;
    toast('Click anywhere to start the sound.');
    addEventListener('pointerdown', () => void element.play(), { once: true });
  }
}

setInterval(async () => {
  const counted = call;
  if (!counted?.connection) return;
  const stats = await counted.videoStats();
  if (counted !== call) return;
  video = stats;
  showCall();
}, STATS_EVERY_MS);

/** A soft two-note ring; silent where the browser wants a click first. */
const ringTone = {
  /** @type {AudioContext | null} */
  context: null,
  start() {
    const context = this.context = new AudioContext();
    const gain = new GainNode(context, { gain: 0 });
    const tone = new OscillatorNode(context, { type: 'sine', frequency: 660 });
    tone.connect(gain).connect(context.destination);
    for (let second = 0; second < 45; second += 2) {
      const at = context.currentTime + second;
      tone.frequency.setValueAtTime(660, at).setValueAtTime(880, at + 0.22);
      gain.gain.setTargetAtTime(0.12, at, 0.02).setTargetAtTime(0, at + 0.42, 0.05);
    }
    tone.start();
  },
  stop() {
    void this.context?.close();
    this.context = null;
  },
};

// --- Small things ----------------------------------------------------------------------------------

/** @template {keyof HTMLElementTagNameMap} Tag @param {Tag} tag @param {Partial<HTMLElementTagNameMap[Tag]>} properties */
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

/** @param {string} id */
function icon(id) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#${id}`);
  svg.append(use);
  return svg;
}

/** @template {HTMLElement} T @param {string} name @param {T} element */
function avatar(name, element) {
  const words = name.split(/[\s._-]+/).filter(Boolean);
  const initials = [words[0], words.length > 1 ? words.at(-1) : ''].map((word) => [...word ?? ''][0] ?? '');
  let hue = 0;
  for (const letter of name) hue = (hue * 31 + (letter.codePointAt(0) ?? 0)) % 360;
  element.textContent = initials.join('').toUpperCase();
  element.style.setProperty('--hue', String(hue));
  element.setAttribute('aria-hidden', 'true');
  return element;
}

let toastTimer = 0;
/** @param {string} text */
function toast(text) {
  $('toast').textContent = text;
  $('toast').classList.add('shown');
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $('toast').classList.remove('shown'), TOAST_MS);
}

function suggestedName() {
  const pick = (/** @type {string} */ words) => words.split(' ')[Math.floor(Math.random() * words.split(' ').length)];
  return `${pick('Amber Brisk Calm Clever Fern Gentle Misty Quiet Sunny Swift')} ${pick('Badger Crane Finch Fox Hare Heron Otter Owl Robin Wren')}`;
}

// --- Start -----------------------------------------------------------------------------------------

$('name').value = query.get('name') ?? sessionStorage.getItem('ganglion.name') ?? suggestedName();
$('room-name').value = query.get('room') ?? localStorage.getItem('ganglion.room') ?? 'lobby';
const showMe = () => all('[data-me]').forEach((each) => avatar(tidy($('name').value) || '?', each));
showMe();
$('name').addEventListener('input', showMe);

$('join-form').addEventListener('submit', (submitted) => {
  submitted.preventDefault();
  void join();
});
$('say').addEventListener('submit', (submitted) => {
  submitted.preventDefault();
  if (say($('text').value)) $('text').value = '';
});
$('leave').addEventListener('click', () => leave());
$('door').addEventListener('click', () => void turnDoor());
$('set').addEventListener('submit', (submitted) => {
  submitted.preventDefault();
  void setValue();
});
$('set').addEventListener('input', showCommands);
for (const each of all('[data-copy]')) each.addEventListener('click', () => void copy(each.dataset.copy ?? ''));
for (const each of TABS) $(`tab-${each}`).addEventListener('click', () => showTab(each));
all('[role="tablist"]')[0].addEventListener('keydown', (pressed) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[pressed.key];
  if (!step) return;
  const now = TABS.findIndex((each) => $(`tab-${each}`).tabIndex === 0);
  const next = TABS[(now + step + TABS.length) % TABS.length];
  showTab(next);
  $(`tab-${next}`).focus();
});
$('hangup').addEventListener('click', () => call?.hangup());
$('accept').addEventListener('click', answer);
$('decline').addEventListener('click', () => ringing?.decline());
$('invite').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText(inviteUrl());
    toast('Link copied. Send it to whoever should join.');
  } catch {
    toast(`Copy this link: ${inviteUrl()}`);
  }
});
for (const each of all('[data-toggle]')) each.addEventListener('click', () => void toggle(each.dataset.toggle === 'audio' ? 'audio' : 'video'));
for (const each of all('[data-retry]')) each.addEventListener('click', () => {
  Object.assign(wanted, { audio: true, video: true });
  void startMedia();
});
addEventListener('keydown', (pressed) => {
  const typing = pressed.target instanceof HTMLInputElement || pressed.ctrlKey || pressed.metaKey || pressed.altKey;
  if (!typing && pressed.key === 'm') void toggle('audio');
  if (!typing && pressed.key === 'v') void toggle('video');
  if (pressed.key === 'Escape' && ringing) ringing.decline();
});
// The others are told at once; nobody waits for a timeout.
addEventListener('pagehide', () => leave());

/** For tests: what the page shows, and what a user can do, without a mouse. */
Object.assign(window, {
  demo: {
    state: () => ({
      joined: !$('room').hidden,
      connection: room?.state ?? 'idle',
      name: room?.name ?? '',
      peers: room?.peers ?? [],
      chat: chat.map(({ from, text, pending }) => ({ from, text, pending })),
      events: [...$('chat').querySelectorAll('.event')].map((each) => each.textContent),
      members,
      data: [...$('data').children].map((row) => ({
        key: row.dataset.key,
        value: data?.get(row.dataset.key),
        shown: row.querySelector('.now').textContent,
        changed: row.classList.contains('changed'),
      })),
      call: { state: call?.state ?? (ringing ? 'ringing' : 'idle'), remote: (call ?? ringing)?.peer ?? null },
      video,
      problem: $('join-problem').textContent,
      toast: $('toast').classList.contains('shown') ? $('toast').textContent : '',
    }),
    say,
    call: startCall,
    hangup: () => call?.hangup(),
    accept: answer,
    decline: () => ringing?.decline(),
    leave,
  },
});

joining(false);
if (!api) problem('This page works only when a neuron serves it. Run “ganglion serve --dev” and open /demo there.');
await startMedia();
if (driven('autojoin')) void join();
