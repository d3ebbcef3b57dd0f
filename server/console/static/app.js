// The page: who is signed in, which view is shown, and in which language and light.

import { changes, look, session, signIn, signOut } from "./api.js";
import { button, el, icon, problemLine, show } from "./dom.js";
import { close, live, open, state } from "./live.js";
import { language, languages, speak, t } from "./words.js";

/** Each view's module. */
const VIEWS = { now: "now", calls: "calls", call: "call", latency: "latency", phone: "phone-view", health: "health" };
const MENU = ["now", "calls", "latency", "phone", "health"];
const LIGHTS = ["auto", "light", "dark"];
const app = /** @type {HTMLElement} */ (document.getElementById("app"));
/** @param {boolean} again whether the same view is drawn anew, as in another language */
let leave = (again) => {};
let drawn = "";
let shown = 0;

// What the reader likes is kept here; nothing of anybody else is.
const liked = {
  get: (name) => { try { return localStorage.getItem(`offhook-${name}`) ?? ""; } catch { return ""; } },
  set: (name, value) => { try { localStorage.setItem(`offhook-${name}`, value); } catch { /* private mode */ } },
};

function lightUp(light) {
  if (light === "light" || light === "dark") document.documentElement.dataset.light = light;
  else delete document.documentElement.dataset.light;
  dispatchEvent(new Event("light"));
}

const brand = (tag) => el(tag, { class: "brand" }, el("span", { class: "mark-dot", "aria-hidden": "true" }), "Offhook");

function choice(label, options, now, choose) {
  return el("select", { "aria-label": label, on: { change: (event) => choose(event.target.value) } },
    options.map(([value, text]) => el("option", { value, selected: value === now }, text)));
}

function likes() {
  return [
    choice(t("language"), languages, language, async (value) => { liked.set("language", value); await speak(value); draw(); }),
    choice(t("light"), LIGHTS.map((each) => [each, t(`light.${each}`)]), liked.get("light") || "auto",
      (value) => { liked.set("light", value); lightUp(value); }),
  ];
}

function drawSignIn() {
  const problem = problemLine();
  const key = el("input", { id: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const enter = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await signIn(key.value);
    } catch (error) {
      problem.textContent = error.status === 401 ? t("sign.wrong") : error.message;
      key.select();
    }
  };
  document.title = `Offhook · ${t("sign.in")}`;
  show(app, el("main", { class: "sign" },
    el("form", { class: "card", on: { submit: enter } },
      brand("h1"),
      el("p", { class: "faint" }, t("sign.why")),
      el("label", { for: "key" }, t("sign.key")), key, problem,
      el("button", { class: "button primary wide" }, t("sign.in")),
      el("div", { class: "row between" }, likes()))));
  key.focus();
}

function drawFrame() {
  const main = el("main", { id: "main", tabindex: "-1" });
  const link = (name) => el("a", { href: `#/${name}`, "data-view": name }, icon(name), el("span", {}, t(`view.${name}`)));
  const connection = el("p", { class: "connection", role: "status" });
  const tell = () => { connection.dataset.state = state; connection.textContent = t(`channel.${state}`); };
  live.addEventListener("state", tell);
  tell();
  show(app,
    el("a", { class: "skip", href: "#main", on: { click: (event) => { event.preventDefault(); main.focus(); } } }, t("skip")),
    el("header", { class: "side" },
      brand("p"),
      el("nav", { "aria-label": t("menu") }, MENU.map(link)),
      el("div", { class: "foot" }, connection,
        session.needs_key && el("p", { class: "who" }, session.name, session.may_change ? null : el("span", { class: "pill" }, t("only-look"))),
        el("div", { class: "likes" }, likes()),
        session.needs_key && button("quiet", signOut, t("sign.out")))),
    main);
  return main;
}

let main = null;

/** What stands in an address, which anybody may have written. */
function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** @param {string} [next] the view that comes after it */
function leaveView(next = "") {
  leave(next === drawn);
  leave = () => {};
  drawn = next;
}

/** What is shown of a view whose module does not load: browsers remember that of a page until it is loaded anew. */
function missing(root) {
  show(root, el("p", { class: "problem", role: "alert" }, t("view.missing")),
    button("primary", () => location.reload(), t("view.reload")));
}

async function drawView() {
  const mine = ++shown;
  const [, name = "", ...rest] = location.hash.split("/");
  const view = Object.hasOwn(VIEWS, name) ? name : "now";
  for (const link of app.querySelectorAll("nav a")) {
    const here = link.dataset.view === view || (view === "call" && link.dataset.view === "calls");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `Offhook · ${t(`view.${view}`)}`; // never whose call it is
  const module = await import(`./${VIEWS[view]}.js`).catch(() => ({ show: missing }));
  if (mine !== shown || !main) return;
  leaveView(view);
  const root = el("div", { class: `view view-${view}` });
  show(main, root);
  leave = module.show(root, decoded(rest.join("/"))) ?? (() => {});
}

function draw() {
  if (!session.signed_in) {
    leaveView();
    main = null;
    close();
    drawSignIn();
    return;
  }
  open();
  main = drawFrame();
  drawView();
}

let wasIn = null;
changes.addEventListener("session", () => {
  const is = `${session.signed_in} ${session.name} ${session.may_change}`;
  if (is !== wasIn) { wasIn = is; draw(); }
});
addEventListener("hashchange", () => { if (main) { drawView(); main.focus({ preventScroll: true }); scrollTo(0, 0); } });
addEventListener("keydown", (event) => { // g and a letter, as elsewhere: g n, g c …
  const typing = /** @type {HTMLElement} */ (event.target).closest?.("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !main) return;
  const view = MENU.find((name) => name[0] === event.key);
  if (event.key === "g") { drawFrame.waits = Date.now(); return; }
  if (view && Date.now() - (drawFrame.waits ?? 0) < 1500) location.hash = `#/${view}`;
  drawFrame.waits = 0;
});

lightUp(liked.get("light"));
await speak(liked.get("language"));
await look().catch(() => draw());
