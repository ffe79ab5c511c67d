// The page at /demo: join a room, see who is there, write, call. It uses the public API only, by
// way of the client library; the server fills in credentials in dev mode.

import { Api, ApiError, Calls, connect } from './ganglion.js';

const CHAT_LINES_MAX = 500;
const TOAST_MS = 6_000;
const STATS_EVERY_MS = 500;
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
/** @type {{ from: string, text: string }[]} */
const chat = [];
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
  const segments = [...access.path.split('/').filter(Boolean), roomName];
  try {
    await api.put(['_ns', ...segments]).catch((error) => {
      if (error.code !== 'path_exists') throw error;
    });
  } catch (error) {
    joining(false);
    return problem(apiProblem(error));
  }
  room = connect({
    name,
    url: () => api.get('/_host', { type: 'signal', k: name }),
    token: () => api.put(['_token', ...segments], { k: name, expire: 60 }),
  });
  calls = new Calls(room, { iceServers: () => api.iceServers(segments.join('/'), name) });
  calls.on('incoming', onIncoming);
  room.on('state', showStatus);
  room.on('peers', onPeers);
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
  });
  room.on('close', ({ code, reason, retryMs }) => {
    if (retryMs === null) leave(closeProblem(code, reason));
    else if ($('room').hidden) problem('The neuron does not answer. Trying again…');
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
    // On a phone, focus would push the keyboard over the page.
    if (matchMedia('(hover: hover)').matches) $('text').focus();
  }
  onPresence();
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
  $('room').hidden = true;
  $('join').hidden = false;
  document.title = 'Ganglion';
  joining(false);
  problem(why);
}

/** @param {number} code @param {string} reason */
function closeProblem(code, reason) {
  if (code === 4401 || reason === 'unauthorized') return 'The neuron refused the access token. Reload the page to get a new one, then join again.';
  if (code === 4403) return 'You were removed from this room. Ask its owner to let you in, then join again.';
  return code === 0 ? apiProblem(new ApiError(reason)) : '';
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

// --- People and chat -------------------------------------------------------------------------------

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
  $('hint').textContent = room?.state === 'reconnecting' ? 'The network is away: reconnecting…'
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
    row.append(button);
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

/** @param {string} text */
function say(text) {
  const trimmed = text.trim();
  if (!trimmed || !room) return false;
  // Not left to the library's queue: after an outage the others may come back later than this end.
  if (room.state !== 'open') {
    toast('Not sent: the network is away. Send it again when this page is connected.');
    return false;
  }
  room.send('message', { msg: trimmed });
  line(room.name, trimmed);
  return true;
}

/** @param {string} from @param {string} text */
function line(from, text) {
  const mine = from === room?.name;
  const more = chat.at(-1)?.from === from && !$('chat').lastElementChild?.classList.contains('event');
  chat.push({ from, text });
  const row = make('li', { className: `${mine ? 'mine' : ''} ${more ? 'more' : ''}`.trim() });
  if (!mine && !more) row.append(make('b', { textContent: from }));
  row.append(text);
  append(row, mine);
}

/** @param {string} text */
function event(text) {
  append(make('li', { className: 'event', textContent: text }), false);
}

/** @param {HTMLElement} row @param {boolean} follow */
function append(row, follow) {
  const list = $('chat');
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(row);
  if (list.children.length > CHAT_LINES_MAX) list.firstElementChild?.remove();
  if (chat.length > CHAT_LINES_MAX) chat.shift();
  // A reader who scrolled back is left in peace.
  if (follow || atEnd) list.scrollTop = list.scrollHeight;
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
      chat: chat.map((each) => ({ ...each })),
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
