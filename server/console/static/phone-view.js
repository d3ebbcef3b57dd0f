// This page as a telephone: talk with an agent, and see the call's timeline grow.

import { address, agents, post, session } from "./api.js";
import { show as showCall } from "./call.js";
import { el, head, icon, options, problemLine, show as fill } from "./dom.js";
import { t, word } from "./words.js";

const MODULE = new URL("../phone.js", import.meta.url);
const ON = new Set(["preparing", "ready", "connecting", "talking", "reconnecting"]);
/** The newest call, which its view does not end where that is only drawn anew. @type {{phone: any, sid: string}|null} */
let newest = null;

/** @param {HTMLElement} root */
export function show(root) {
  const state = el("p", { class: "phone-state", role: "status" }, t("phone.idle"));
  const said = problemLine();
  const agent = el("select", { id: "phone-agent" });
  const call = el("button", { class: "button primary big", disabled: true }, icon("phone"), t("phone.call"));
  const end = el("button", { class: "button danger big", hidden: true, on: { click: () => newest.phone.hangUp() } }, t("now.hang-up"));
  const mute = el("button", { class: "button", hidden: true, on: { click: () => { newest.phone.mute(!newest.phone.muted); press(); } } }, t("phone.mute"));
  const heard = el("span", { class: "meter caller" }, el("i", {})), played = el("span", { class: "meter agent" }, el("i", {}));
  const below = el("div", { class: "below" });
  const left = new AbortController(), { signal } = left;
  let leave = () => {};

  const told = ({ state: now, reason }) => {
    state.textContent = [word("phone", now), word("reason", reason || null)].filter(Boolean).join(" · ");
    state.dataset.state = now;
    call.hidden = ON.has(now);
    end.hidden = mute.hidden = !ON.has(now);
  };
  const press = () => mute.setAttribute("aria-pressed", String(newest.phone.muted));
  const made = () => {
    leave();
    leave = newest.sid ? showCall(below, newest.sid, { inside: true }) : () => {};
  };
  /** Shows how the newest call does, whichever drawing of this view it was begun in. */
  const attend = () => {
    const acts = {
      made, state: told,
      level: (level) => { heard.style.setProperty("--level", String(level.heard)); played.style.setProperty("--level", String(level.played)); },
      problem: ({ message }) => { said.textContent = message; },
      say: ({ text }) => { said.textContent = text; },
    };
    for (const [kind, act] of Object.entries(acts)) newest.phone.addEventListener(kind, ({ detail }) => act(detail), { signal });
    press();
  };
  const begin = (Phone) => {
    call.disabled = !session.may_change;
    call.addEventListener("click", () => {
      const mine = newest = { sid: "", phone: new Phone({
        agent: agent.value || undefined,
        ask: async (wishes) => {
          const answer = await post("calls/browser", wishes);
          mine.sid = answer.call_sid;
          mine.phone.dispatchEvent(new CustomEvent("made"));
          return answer;
        },
      }) };
      said.textContent = "";
      attend();
      mine.phone.call().catch((error) => { said.textContent = error.message; });
    });
    if (!session.may_change) state.textContent = t("phone.only-look");
  };
  fill(root, head("phone"),
    el("section", { class: "card phone" }, el("p", { class: "faint" }, t("phone.what")),
      el("p", { class: "field" }, el("label", { for: "phone-agent" }, t("agent")), agent),
      el("div", { class: "row" }, call, end, mute), el("div", { class: "levels wide", "aria-hidden": "true" }, heard, played), state, said),
    below);
  agents().then((names) => fill(agent, options(names)));
  import(String(MODULE)).then(({ Phone }) => { if (!signal.aborted) begin(Phone); }, () => {
    fill(state, t("phone.missing"), " ", el("a", { href: String(address("phone")) }, "/phone"));
  });
  if (ON.has(newest?.phone.state)) {
    attend();
    told(newest.phone);
    made();
  }
  return (again) => { left.abort(); leave(); if (!again) newest?.phone.hangUp(); };
}
