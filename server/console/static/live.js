// The live channel, and what it has told: one for the whole page, whatever is shown of it.

import { address, get, look, session } from "./api.js";

const AGAIN_MS = 3_000; // after an answer that was no channel, or that had not all calls in it
const SELDOM_MS = 60_000; // the longest pause from one incomplete answer to the next
const MISSED_MS = 50_000; // so long named by nobody, from one incomplete answer to a later one: a call is over
const HIDDEN_MS = 60_000; // a page that nobody looks at gives its connection back: a browser has few
const QUIET_MS = 6_000; // a process that says nothing for so long is not shown
const DEAD_MS = 15_000; // an open channel that brings nothing for so long is dead: there is something every second
const FORGET_EVERY_MS = 1_000;
const PAGE = 1_000;
const MOST_PAGES = 20; // of live calls

export const live = new EventTarget(); // "calls", "load", "line", "state"
/** @type {Map<string, any>} */
export const calls = new Map(); // live ones, by call_sid
/** @type {Map<string, any>} */
export const loads = new Map(); // by process
export let state = "closed"; // connecting, open, closed
export let lines = 0; // how many lines of timelines have come
/** @type {EventSource|null} */
let source = null;
let timer = 0;
let heardAt = 0;
let reading = 0;
/** Calls that news have told of since the newest reading began: it knows less of them. */
let toldSince = new Set();

const tell = (kind, detail) => live.dispatchEvent(new CustomEvent(kind, { detail }));

function become(now) {
  if (state !== now) tell("state", (state = now));
}

export function open() {
  if (source) return;
  become("connecting");
  if (document.hidden) return; // it is opened when somebody looks
  source = new EventSource(address("events"));
  for (const kind of ["open", "news", "gap"]) source.addEventListener(kind, () => { heardAt = Date.now(); });
  source.addEventListener("open", () => become("open"));
  source.addEventListener("news", ({ data }) => take(JSON.parse(data)));
  source.addEventListener("gap", read);
  source.addEventListener("error", () => {
    become("connecting");
    if (source?.readyState !== EventSource.CLOSED) return; // the browser comes again by itself
    source = null;
    comeAgain();
  });
}

/** Opens again after an answer that was no channel, unless it was because nobody is signed in any more. */
async function comeAgain() {
  await look().catch(() => {}); // who is not there cannot say
  if (state === "closed" || !session.signed_in || source) return;
  clearTimeout(timer);
  timer = setTimeout(open, AGAIN_MS);
}

function leave() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (state === "closed") return;
  if (document.hidden) hidden = setTimeout(leave, HIDDEN_MS);
  else open();
});

export function close() {
  leave();
  calls.clear();
  loads.clear();
  become("closed");
}

/**
 * Reads which calls live: what happened before the channel, or in a gap of it, is not told in it. After an answer that
 * has not all of them, as none has where processes are many, it reads ever more seldom, and tells only of what is new.
 */
async function read(changed, pause = AGAIN_MS) {
  const mine = ++reading;
  const told = (toldSince = new Set());
  const there = new Set();
  const again = () => setTimeout(() => mine === reading && source && read(changed, Math.min(2 * pause, SELDOM_MS)), pause);
  let before = "", complete = true;
  try {
    for (let pages = 0; pages < MOST_PAGES && before !== null; pages += 1) {
      const page = await get("calls", { state: "live", limit: PAGE, before });
      if (mine !== reading) return;
      for (const call of page.calls) {
        there.add(call.call_sid);
        if (!told.has(call.call_sid) && keep(call)) changed = true;
      }
      before = page.next;
      complete = complete && page.complete;
    }
  } catch {
    again();
    return;
  }
  // Which of them are over is known at once only of an answer that has all of them in it.
  for (const [sid, call] of calls) {
    if (before !== null || there.has(sid) || told.has(sid)) continue;
    call.missed ||= Date.now();
    if (complete || Date.now() - call.missed > MISSED_MS) changed = calls.delete(sid);
  }
  if (changed || complete) tell("calls");
  changed = false;
  if (!complete) again();
}

/** Whether the call was not known yet. */
function keep(call) {
  const known = calls.get(call.call_sid);
  const began = call.status === "in-progress" ? Date.now() - call.duration_s * 1000 : 0;
  calls.set(call.call_sid, { turn: "nobody", levels: [0, 0], usd: null, last: "", ...known, ...call, began, missed: 0 });
  return !known;
}

function take(news) {
  if (news.type === "call") {
    toldSince.add(news.call.call_sid);
    if (news.call.state === "live") keep(news.call);
    else calls.delete(news.call.call_sid);
    tell("calls", news.call);
  } else if (news.type === "line") {
    lines += 1;
    const call = calls.get(news.call_sid);
    if (call) Object.assign(call, { last: news.line.what, missed: 0 });
    tell("line", news);
  } else if (news.type === "load") {
    loads.set(news.load.process, { ...news.load, seen: Date.now() });
    for (const [sid, status, turn, caller, agent, seconds, usd] of news.calls) {
      const call = calls.get(sid);
      if (call) Object.assign(call, { status, turn, levels: [caller, agent], usd, missed: 0, began: status === "in-progress" ? Date.now() - seconds * 1000 : 0 });
    }
    tell("load");
  }
}

function forgetTheQuiet() {
  if (source?.readyState === EventSource.OPEN && Date.now() - heardAt > DEAD_MS) { leave(); open(); }
  const before = loads.size;
  for (const [name, load] of loads) if (Date.now() - load.seen > QUIET_MS) loads.delete(name);
  if (loads.size < before) tell("load");
}
setInterval(forgetTheQuiet, FORGET_EVERY_MS);

/** How all processes do together. */
export function total() {
  const all = [...loads.values()];
  const sum = (name) => all.reduce((so, load) => so + load[name], 0);
  return {
    processes: all.length, live: sum("live"), waiting: sum("waiting"), sessions: sum("sessions"),
    in_setup: sum("in_setup"), lag_ms: Math.max(0, ...all.map((load) => load.lag_ms)),
    max_calls: all[0]?.max_calls ?? 0, draining: all.some((load) => load.draining),
    paused: all.find((load) => load.paused)?.paused ?? null,
    reason: all.length > 0 && all.every((load) => load.reason) ? all[0].reason : null,
  };
}
