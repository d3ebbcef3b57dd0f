// Whether the server is well, and what to do where it is not.
//
// A finding is {name, state: "good" | "warn" | "bad", title, text, todo}. Each source says some; another
// one is one more function in SOURCES. What costs something to ask (accounts, models, numbers, receivers:
// as `offhook check`) is asked when somebody wants to know.

import { get, post, session } from "./api.js";
import { button, el, head, problemLine, show as fill, table } from "./dom.js";
import { live, loads, total } from "./live.js";
import { ms, number, t, when, word } from "./words.js";

const [good, warn, bad] = ["good", "warn", "bad"].map((state) => (name, title, text, todo) => ({ name, state, title, text, todo }));
const SLOW_MS = 20;
const SHOWN_EVENTS = 20;

async function readiness() {
  const ready = await get("readyz");
  const found = [ready.ready
    ? good("ready", t("health.ready"), t("health.ready-text", { live: ready.live_calls, waiting: ready.waiting_calls }))
    : bad("ready", t("health.not-ready"), word("refusal", ready.reason), t(ready.draining ? "health.todo-draining" : "health.todo-refuses"))];
  found.push(ready.simulated
    ? warn("accounts", t("health.simulated"), t("health.simulated-text"), t("health.todo-simulated"))
    : good("accounts", t("health.accounts"), `${ready.carrier}, ${ready.model}`));
  return found;
}

async function load() {
  const all = total();
  if (!all.processes) return [];
  const room = [t("health.room"), t("health.room-text", { live: number(all.live), most: number(all.max_calls) })];
  return [
    all.paused ? bad("model", t("health.paused"), word("refusal", all.paused), t("health.todo-paused"))
      : good("model", t("health.model"), t("health.sessions", { count: all.sessions })),
    all.lag_ms > SLOW_MS ? warn("lag", t("health.slow"), ms(all.lag_ms), t("health.todo-slow"))
      : good("lag", t("health.quick"), t("health.lag", { lag: ms(all.lag_ms) })),
    all.live + all.waiting < all.max_calls ? good("room", ...room) : warn("room", ...room, t("health.todo-room")),
  ];
}

let dead = [];

async function receivers() {
  dead = (await get("events/dead", { limit: SHOWN_EVENTS })).events;
  return [dead.length ? warn("receivers", t("health.dead", { count: dead.length }), dead[0].error, t("health.todo-dead"))
    : good("receivers", t("health.receivers"), t("health.receivers-text"))];
}

const STATES = { ok: good, doubt: warn, failed: bad };

async function accounts() {
  const { findings, age_s } = await post("check");
  const cards = findings.map(({ subject, state, found, todo }) => (STATES[state] ?? warn)(subject, subject, found, todo));
  return { cards, age_s };
}

export const SOURCES = [readiness, load, receivers];

function card({ name, state, title, text, todo }) {
  return el("li", { class: "card finding", "data-finding": name, "data-state": state },
    el("span", { class: `pill ${state}` }, t(`health.${state}`)), el("div", {}, el("h2", {}, title), el("p", { class: "faint" }, text), todo && el("p", { class: "todo" }, todo)));
}

function undelivered(again) {
  if (!dead.length) return null;
  return el("section", { class: "card" }, el("h2", {}, t("health.undelivered")), table(t("health.undelivered"),
    el("tbody", {}, dead.map((event) => el("tr", {}, el("td", {}, when(event.at)), el("td", {}, event.type), el("td", {}, event.target), el("td", { class: "faint" }, event.error),
      el("td", {}, session.may_change && button("quiet", () => again(event), t("health.again"))))))));
}

/** @param {HTMLElement} root */
export function show(root) {
  const list = el("ul", { class: "findings" }), tried = el("ul", { class: "findings" }), more = el("div", {}), said = problemLine();
  let over = false;
  async function read() {
    const found = await Promise.all(SOURCES.map((source) => source().catch((error) => [bad(source.name, t(`health.of.${source.name}`), error.message)])));
    if (over) return;
    fill(list, found.flat().map(card));
    fill(more, undelivered(async (event) => {
      said.textContent = "";
      await post(`events/${encodeURIComponent(event.id)}/replay`).catch((error) => { said.textContent = error.message; });
      read();
    }));
  }
  const check = async ({ target }) => {
    target.disabled = true;
    said.textContent = "";
    try {
      const { cards, age_s } = await accounts();
      const kept = age_s >= 1 ? el("li", { class: "faint" }, t("health.kept", { ago: number(age_s) })) : null;
      if (!over) fill(tried, kept, cards.map(card));
    } catch (error) { said.textContent = error.message; }
    target.disabled = false;
  };
  const heard = () => { if (!loads.size) return; live.removeEventListener("load", heard); read(); };
  fill(root, head("health", el("div", { class: "row" },
    session.may_change && button("", check, t("health.check")),
    button("", read, t("health.look")))), said, list, tried, more);
  read();
  live.addEventListener("load", heard);
  return () => { over = true; live.removeEventListener("load", heard); };
}
