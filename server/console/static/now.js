// What happens now: live calls, and how the server does.

import { agents, post, session } from "./api.js";
import { ask, button, column, el, head, icon, options, problemLine, renew, show as fill, way } from "./dom.js";
import { calls, live, loads, total } from "./live.js";
import { length, money, ms, number, t, word } from "./words.js";

const STEP_MS = 500;

function tile(name, value, more, tone) {
  return el("div", { class: "tile", "data-tile": name, "data-tone": tone },
    el("dt", {}, t(`now.${name}`)), el("dd", {}, value, more && el("small", {}, more)));
}

function tiles(root) {
  const all = total();
  const is = (text) => (all.processes ? text : "–"); // nobody says anything: nothing is known
  const state = !all.processes ? "" : all.draining ? "draining" : all.paused ? "paused" : all.reason ? "refuses" : "ready";
  const tone = state === "ready" ? "good" : state ? "bad" : undefined;
  fill(root,
    tile("live", is(number(all.live)), all.max_calls ? t("now.of", { most: number(all.max_calls) }) : ""),
    tile("per-core", is(number(all.live / all.processes, all.live % all.processes ? 1 : 0)), all.processes > 1 ? t("now.processes", { count: all.processes }) : ""),
    tile("waiting", is(number(all.waiting)), "", all.waiting ? "warn" : undefined),
    tile("sessions", is(number(all.sessions))),
    tile("lag", is(ms(all.lag_ms)), "", all.lag_ms > 20 ? "warn" : undefined),
    tile("state", state ? t(`now.${state}`) : "–", all.paused ? word("refusal", all.paused) : state === "refuses" ? word("refusal", all.reason) : "", tone));
}

function processes(root) {
  if (loads.size < 2) { fill(root); return; }
  const columns = ["live", "waiting", "sessions", "lag_ms"];
  const open = root.querySelector("details")?.open ?? false;
  renew(root, el("details", { class: "card", open },
    el("summary", {}, t("now.processes", { count: loads.size })),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, column(t("process")), columns.map((each) => column(t(`now.${each.replace("_ms", "")}`), true)))),
      el("tbody", {}, [...loads.values()].sort((a, b) => a.process.localeCompare(b.process)).map((load) =>
        el("tr", {}, el("th", { scope: "row" }, load.process), columns.map((each) => el("td", { class: "number" }, each === "lag_ms" ? ms(load[each]) : number(load[each]))))))))));
}

function meter(name) {
  return el("span", { class: `meter ${name}`, "aria-hidden": "true" }, el("i", {}));
}

/** One live call, and what keeps it as it is. */
function row(call, hangUp) {
  const parts = {
    time: el("span", { class: "time" }), turn: el("span", { class: "turn" }), last: el("span", { class: "last faint" }),
    cost: el("span", { class: "cost number" }), caller: meter("caller"), agent: meter("agent"),
  };
  const end = session.may_change && el("button", { class: "button quiet danger", "aria-label": t("now.hang-up-of", { number: call.number }), on: { click: () => hangUp(call) } }, t("now.hang-up"));
  const node = el("li", { class: "call", "data-call": call.call_sid },
    el("a", { class: "who", href: `#/call/${call.call_sid}`, "aria-label": t("now.open", { number: call.number }) },
      way(call.direction, { title: word("direction", call.direction) }),
      el("strong", {}, call.number || t("unknown")), el("span", { class: "faint" }, call.agent)),
    el("span", { class: "levels" }, parts.caller, parts.agent),
    parts.turn, parts.last, parts.time, parts.cost, end || el("span", {}));
  const put = (part, text) => { if (part.textContent !== text) part.textContent = text; };
  const update = () => {
    const now = calls.get(call.call_sid);
    if (!now) return;
    node.dataset.turn = now.turn;
    put(parts.time, now.began ? length((Date.now() - now.began) / 1000) : word("status", now.status));
    put(parts.turn, now.began ? t(`turn.${now.turn}`) : "");
    put(parts.last, word("line", now.last));
    put(parts.cost, now.usd === null ? "" : money(now.usd));
    parts.caller.style.setProperty("--level", String(now.levels[0] / 100));
    parts.agent.style.setProperty("--level", String(now.levels[1] / 100));
  };
  update();
  return { node, update };
}

function placeForm() {
  const problem = problemLine();
  const to = el("input", { id: "place-number", type: "tel", required: true, placeholder: "+15005550006", autocomplete: "off" });
  const agent = el("select", { id: "place-agent" });
  const greeting = el("textarea", { id: "place-greeting", rows: "2", maxlength: "4000" });
  const field = (id, label, input) => el("p", { class: "field" }, el("label", { for: id }, label), input);
  const which = field("place-agent", t("agent"), agent);
  which.hidden = true; // until there is a choice
  agents().then((names) => { fill(agent, options(names)); which.hidden = names.length < 2; });
  const place = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    call.disabled = true;
    try {
      const body = { destination_number: to.value };
      if (!which.hidden) Object.assign(body, { agent: agent.value });
      if (greeting.value.trim()) Object.assign(body, { greeting: greeting.value.trim() });
      await post("make-call", body);
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      call.disabled = false;
    }
  };
  const call = el("button", { class: "button primary", value: "yes" }, t("now.call"));
  const dialog = el("dialog", { class: "dialog", "aria-labelledby": "place-title", on: { close: () => dialog.remove() } },
    el("form", { on: { submit: place } },
      el("h2", { id: "place-title" }, t("now.place")),
      field("place-number", t("now.number"), to),
      which, field("place-greeting", t("now.greeting"), greeting), problem,
      el("div", { class: "row end" },
        el("button", { class: "button", type: "button", on: { click: () => dialog.close() } }, t("cancel")), call)));
  document.body.append(dialog);
  dialog.showModal();
}

/** @param {HTMLElement} root */
export function show(root) {
  const load = el("dl", { class: "tiles", "aria-label": t("now.load") });
  const each = el("div", {});
  const list = el("ul", { class: "live", "aria-label": t("now.live") });
  const empty = el("p", { class: "empty" }, t("now.nobody"));
  const said = el("p", { class: "hidden", role: "status" }), problem = problemLine();
  /** @type {Map<string, {node: HTMLElement, update: () => void}>} */
  const rows = new Map();

  /** Asks, and has the server do it; why it did not is there to be read until something else is tried. */
  const order = async (what, question, path) => {
    if (!await ask(what, question)) return;
    problem.textContent = "";
    await post(path).catch((error) => { problem.textContent = error.message; });
  };
  const hangUp = (call) => order(t("now.hang-up"), t("now.hang-up-ask", { number: call.number }), `calls/${encodeURIComponent(call.call_sid)}/hang-up`);
  const drain = () => order(t("now.drain"), t("now.drain-ask"), "drain");
  const redraw = () => {
    for (const [sid, { node }] of rows) if (!calls.has(sid)) { node.remove(); rows.delete(sid); }
    const newest = [...calls.values()].sort((a, b) => b.created_at - a.created_at);
    newest.forEach((call, place) => {
      let found = rows.get(call.call_sid);
      if (!found) rows.set(call.call_sid, (found = row(call, hangUp)));
      if (list.children[place] !== found.node) list.insertBefore(found.node, list.children[place] ?? null);
    });
    empty.hidden = rows.size > 0;
    said.textContent = t("now.count", { count: rows.size });
    tiles(load);
  };
  const update = () => { for (const found of rows.values()) found.update(); };
  const loaded = () => { tiles(load); processes(each); update(); };

  fill(root,
    head("now",
      session.may_change && el("div", { class: "row" },
        button("primary", placeForm, icon("plus"), t("now.place")),
        button("", drain, t("now.drain")))),
    problem, load, each, said, list, empty);
  redraw();
  loaded();
  const left = new AbortController();
  for (const [kind, act] of [["calls", redraw], ["load", loaded], ["line", update]]) live.addEventListener(kind, act, { signal: left.signal });
  // Where no process says anything any more, nobody knows whether its calls go on: their clocks stand still.
  const ticking = setInterval(() => { if (loads.size) update(); }, STEP_MS);
  return () => { clearInterval(ticking); left.abort(); };
}
