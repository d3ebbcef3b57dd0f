// Whether the server is well, and what to do where it is not.
//
// A finding is {name, state: "good" | "warn" | "bad", title, text, todo}. Each source says some; another
// one is one more function in SOURCES. What costs something to ask (accounts, models, numbers, receivers:
// as `offhook check`) is asked when somebody wants to know.

import { get, post, session } from "./api.js";
import { el, show as fill } from "./dom.js";
import { live, loads, total } from "./live.js";
import { ms, number, t, when, word } from "./words.js";

const SLOW_MS = 20;
const SHOWN_EVENTS = 20;

async function readiness() {
  const ready = await get("readyz");
  const found = [ready.ready
    ? { name: "ready", state: "good", title: t("health.ready"), text: t("health.ready-text", { live: ready.live_calls, waiting: ready.waiting_calls }) }
    : { name: "ready", state: "bad", title: t("health.not-ready"), text: word("refusal", ready.reason), todo: t(ready.draining ? "health.todo-draining" : "health.todo-refuses") }];
  found.push(ready.simulated
    ? { name: "accounts", state: "warn", title: t("health.simulated"), text: t("health.simulated-text"), todo: t("health.todo-simulated") }
    : { name: "accounts", state: "good", title: t("health.accounts"), text: `${ready.carrier}, ${ready.model}` });
  return found;
}

async function load() {
  const all = total();
  if (!all.processes) return [];
  return [
    all.paused ? { name: "model", state: "bad", title: t("health.paused"), text: word("refusal", all.paused), todo: t("health.todo-paused") }
      : { name: "model", state: "good", title: t("health.model"), text: t("health.sessions", { count: all.sessions }) },
    all.lag_ms > SLOW_MS ? { name: "lag", state: "warn", title: t("health.slow"), text: ms(all.lag_ms), todo: t("health.todo-slow") }
      : { name: "lag", state: "good", title: t("health.quick"), text: t("health.lag", { lag: ms(all.lag_ms) }) },
    { name: "room", state: all.live + all.waiting < all.max_calls ? "good" : "warn", title: t("health.room"), text: t("health.room-text", { live: number(all.live), most: number(all.max_calls) }), todo: all.live + all.waiting < all.max_calls ? "" : t("health.todo-room") },
  ];
}

let dead = [];

async function receivers() {
  dead = (await get("events/dead", { limit: SHOWN_EVENTS })).events;
  return [dead.length ? { name: "receivers", state: "warn", title: t("health.dead", { count: dead.length }), text: dead[0].error, todo: t("health.todo-dead") }
    : { name: "receivers", state: "good", title: t("health.receivers"), text: t("health.receivers-text") }];
}

const STATES = { ok: "good", doubt: "warn", failed: "bad" };

async function accounts() {
  const { findings, age_s } = await post("check");
  const cards = findings.map(({ subject, state, found, todo }) => ({ name: subject, state: STATES[state] ?? "warn", title: subject, text: found, todo }));
  return { cards, age_s };
}

export const SOURCES = [readiness, load, receivers];

function card({ name, state, title, text, todo }) {
  return el("li", { class: "card finding", "data-finding": name, "data-state": state },
    el("span", { class: `pill ${state}` }, t(`health.${state}`)), el("div", {}, el("h2", {}, title), el("p", { class: "faint" }, text), todo ? el("p", { class: "todo" }, todo) : null));
}

function undelivered(again) {
  if (!dead.length) return null;
  return el("section", { class: "card" }, el("h2", {}, t("health.undelivered")), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("health.undelivered") }, el("table", { class: "list" },
    el("tbody", {}, dead.map((event) => el("tr", {}, el("td", {}, when(event.at)), el("td", {}, event.type), el("td", {}, event.target), el("td", { class: "faint" }, event.error),
      el("td", {}, session.may_change ? el("button", { class: "button quiet", on: { click: () => again(event) } }, t("health.again")) : null)))))));
}

/** @param {HTMLElement} root */
export function show(root) {
  const list = el("ul", { class: "findings" }), tried = el("ul", { class: "findings" }), more = el("div", {}), said = el("p", { class: "problem", role: "alert" });
  let over = false;
  async function read() {
    const found = await Promise.all(SOURCES.map((source) => source().catch((error) => [{ name: source.name, state: "bad", title: t(`health.of.${source.name}`), text: error.message }])));
    if (over) return;
    fill(list, found.flat().map(card));
    fill(more, undelivered(async (event) => {
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
  fill(root, el("div", { class: "head" }, el("h1", {}, t("view.health")), el("div", { class: "row" },
    session.may_change ? el("button", { class: "button", on: { click: check } }, t("health.check")) : null,
    el("button", { class: "button", on: { click: read } }, t("health.look")))), said, list, tried, more);
  read();
  live.addEventListener("load", heard);
  return () => { over = true; live.removeEventListener("load", heard); };
}
