// All calls: searched, filtered, and exported. What is asked for is in this page's memory, never in its address.

import { address, agents, get } from "./api.js";
import { column, el, head, options, renew, show as fill, way } from "./dom.js";
import { live } from "./live.js";
import { length, t, values, when, whole, word } from "./words.js";

const PAGE = 50;
const MOST = 1_000; // that the API gives at once
const SOON_MS = 200; // after the last key
const LATER_MS = 1_000; // however much happens, the list is read no more often for it
const KEPT_MS = 60_000; // a fetched file, for the browser to save it
const asked = { number: "", direction: "", agent: "", reason: "", day: "", min_duration_s: "", min_cost_usd: "", trouble: "" };

/** What the form says, as the API is asked. A day is the reader's own. */
function query() {
  const { day, trouble, ...rest } = asked;
  const found = { ...rest, trouble: trouble ? "true" : "" };
  if (!day) return found;
  const [year, month, date] = day.split("-").map(Number);
  const [since, until] = [0, 1].map((more) => new Date(year, month - 1, date + more).toISOString());
  return { ...found, since, until };
}

function row(call) {
  const trouble = call.had_trouble ?? /^(model-|error|busy|no-answer|failed|carrier)/.test(call.reason ?? ""); // older records do not say
  return el("tr", { "data-call": call.call_sid },
    el("td", {}, el("a", { href: `#/call/${call.call_sid}`, title: whole(call.created_at) }, when(call.created_at))),
    el("td", {}, way(call.direction), el("span", { class: "hidden" }, word("direction", call.direction))),
    el("td", { class: "strong" }, call.number || t("unknown")),
    el("td", {}, call.agent),
    el("td", {}, call.state === "live" ? el("span", { class: "pill good" }, t("live")) : el("span", { class: trouble ? "pill bad" : "faint" }, word("reason", call.reason))),
    el("td", { class: "number" }, length(call.duration_s)));
}

/** @param {HTMLElement} root */
export function show(root) {
  let next = null, isLong = false; // "More" was asked for
  let reading = new AbortController(), isBusy = false;
  let timer = 0, later = 0;
  const body = el("tbody", {});
  const said = el("p", { class: "faint", role: "status" });
  const more = el("button", { class: "button", hidden: true, on: { click: () => read(true) } }, t("calls.more"));
  const csv = exported("calls.csv", "CSV"), lines = exported("calls.jsonl", "JSON Lines");

  /** A link to a file; where it would have a number in it, which browsers keep, the file is fetched instead. */
  function exported(file, label) {
    const fetched = async (event) => {
      if (!asked.number) return;
      event.preventDefault();
      const answer = await fetch(address(file, query()), { cache: "no-store" }).catch(() => null);
      if (!answer?.ok) { said.textContent = t("calls.not-exported"); return; }
      const url = URL.createObjectURL(await answer.blob());
      el("a", { href: url, download: file }).click();
      setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
    };
    return el("a", { class: "button", download: file, on: { click: fetched } }, label);
  }

  async function read(further = false, limit = PAGE) {
    clearTimeout(timer);
    reading.abort();
    const mine = (reading = new AbortController());
    isBusy = true;
    for (const link of [csv, lines]) link.href = asked.number ? "#/calls" : String(address(link.download, query()));
    try {
      const page = await get("calls", { ...query(), limit, before: further ? next : "" }, mine.signal);
      if (further) body.append(...page.calls.map(row));
      else renew(body, page.calls.map(row));
      isLong = further || limit > PAGE;
      next = page.next;
      more.hidden = !next;
      said.textContent = body.children.length ? (page.complete ? "" : t("calls.incomplete")) : t("calls.none");
      body.dataset.read = String(Number(body.dataset.read ?? 0) + 1);
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = error.message;
    }
    if (mine === reading) isBusy = false;
  }
  const soon = () => { clearTimeout(timer); timer = setTimeout(read, SOON_MS); };
  /** Reads again as much as is shown, when nothing is being read. */
  const refresh = () => {
    later = isBusy ? setTimeout(refresh, LATER_MS) : 0;
    if (!isBusy) read(false, isLong ? Math.min(MOST, body.children.length) : PAGE);
  };
  const field = (name, input) => {
    input.id = `filter-${name}`;
    input.name = name;
    if (input.type === "checkbox") input.checked = Boolean(asked[name]);
    else input.value = asked[name];
    input.addEventListener("input", () => { asked[name] = input.type === "checkbox" ? (input.checked ? "true" : "") : input.value.trim(); soon(); });
    return el("p", { class: "field" }, el("label", { for: input.id }, t(`calls.${name}`)), input);
  };
  const select = (all) => el("select", {}, options([["", t("calls.any")], ...all]));
  const agent = select([]);
  agents().then((names) => { agent.append(...options(names)); agent.value = asked.agent; });
  const form = el("form", { class: "filters card", role: "search", "aria-label": t("calls.search"), on: { submit: (event) => { event.preventDefault(); read(); } } },
    field("number", el("input", { type: "search", inputmode: "tel", placeholder: "+15005550006", autocomplete: "off" })),
    field("day", el("input", { type: "date" })),
    field("direction", select(["inbound", "outbound"].map((each) => [each, word("direction", each)]))),
    field("agent", agent),
    field("reason", select(values("reason").map((each) => [each, word("reason", each)]))),
    field("min_duration_s", el("input", { type: "number", min: "0", step: "1" })),
    field("min_cost_usd", el("input", { type: "number", min: "0", step: "0.01" })),
    el("div", { class: "check" }, field("trouble", el("input", { type: "checkbox" }))));
  const heads = ["when", "direction", "who", "agent", "reason", "length"];
  fill(root,
    head("calls", el("div", { class: "row", role: "group", "aria-label": t("calls.export") }, el("span", { class: "faint" }, t("calls.export")), csv, lines)),
    form,
    el("div", { class: "scroll card flush", tabindex: "0", role: "region", "aria-label": t("view.calls") }, el("table", {},
      el("thead", {}, el("tr", {}, heads.map((each) => column(each === "direction" ? el("span", { class: "hidden" }, t("calls.direction")) : t(`calls.${each}`), each === "length")))), body)),
    said, more);
  read();
  const changed = ({ detail: call }) => {
    if (!isLong || !call) later ||= setTimeout(refresh, LATER_MS);
    else for (const is of body.children) if (is.dataset.call === call.call_sid) renew(is, [...row(call).children]);
  };
  live.addEventListener("calls", changed);
  return () => { live.removeEventListener("calls", changed); clearTimeout(timer); clearTimeout(later); reading.abort(); };
}
