// This page as a telephone: talk with an agent, and see the call's timeline grow.

import { address, agents, post, session } from "./api.js";
import { show as showCall } from "./call.js";
import { el, head, icon, options, problemLine, show as fill } from "./dom.js";
import { t, word } from "./words.js";

const MODULE = new URL("../phone.js", import.meta.url);
const ON = new Set(["preparing", "ready", "connecting", "talking", "reconnecting"]);

/** @param {HTMLElement} root */
export function show(root) {
  const state = el("p", { class: "phone-state", role: "status" }, t("phone.idle"));
  const said = problemLine();
  const agent = el("select", { id: "phone-agent" });
  const call = el("button", { class: "button primary big", disabled: true }, icon("phone"), t("phone.call"));
  const end = el("button", { class: "button danger big", hidden: true }, t("now.hang-up"));
  const mute = el("button", { class: "button", hidden: true, "aria-pressed": "false" }, t("phone.mute"));
  const heard = el("span", { class: "meter caller" }, el("i", {})), played = el("span", { class: "meter agent" }, el("i", {}));
  const below = el("div", { class: "below" });
  let phone = null, leave = () => {}, gone = false;

  const told = ({ state: now, reason }) => {
    state.textContent = [word("phone", now), reason ? word("reason", reason) : ""].filter(Boolean).join(" · ");
    state.dataset.state = now;
    call.hidden = ON.has(now);
    end.hidden = mute.hidden = !ON.has(now);
  };
  const begin = (Phone) => {
    call.disabled = !session.may_change;
    call.addEventListener("click", () => {
      phone = new Phone({
        agent: agent.value || undefined,
        ask: async (wishes) => {
          const made = await post("calls/browser", wishes);
          leave();
          leave = made.call_sid && !gone ? showCall(below, made.call_sid, { inside: true }) : () => {};
          return made;
        },
      });
      said.textContent = "";
      mute.setAttribute("aria-pressed", "false"); // as every new telephone is
      phone.addEventListener("state", ({ detail }) => told(detail));
      phone.addEventListener("level", ({ detail }) => { heard.style.setProperty("--level", String(detail.heard)); played.style.setProperty("--level", String(detail.played)); });
      phone.addEventListener("problem", ({ detail }) => { said.textContent = detail.message; });
      phone.addEventListener("say", ({ detail }) => { said.textContent = detail.text; });
      phone.call().catch((error) => { said.textContent = error.message; });
    });
    end.addEventListener("click", () => phone?.hangUp());
    mute.addEventListener("click", () => {
      phone.mute(!phone.muted);
      mute.setAttribute("aria-pressed", String(phone.muted));
    });
    if (!session.may_change) state.textContent = t("phone.only-look");
  };
  fill(root, head("phone"),
    el("section", { class: "card phone" }, el("p", { class: "faint" }, t("phone.what")),
      el("p", { class: "field" }, el("label", { for: "phone-agent" }, t("agent")), agent),
      el("div", { class: "row" }, call, end, mute), el("div", { class: "levels wide", "aria-hidden": "true" }, heard, played), state, said),
    below);
  agents().then((names) => fill(agent, options(names)));
  import(String(MODULE)).then(({ Phone }) => { if (!gone) begin(Phone); }, () => {
    fill(state, t("phone.missing"), " ", el("a", { href: String(address("phone")) }, "/phone"));
  });
  return () => { gone = true; phone?.hangUp(); leave(); };
}
