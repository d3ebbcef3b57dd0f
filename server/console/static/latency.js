// How long callers wait: over time, by agent and model, and which calls stand out.

import { get } from "./api.js";
import { card, column, el, head, options, problemLine, show as fill, svg, table } from "./dom.js";
import { ms, number, t, when, whole } from "./words.js";

const SPANS = { 1: 86_400, 7: 7 * 86_400, 30: 30 * 86_400 };
const USUAL = "7";
const BUCKETS = 20;
const KINDS = {
  reply: (call) => call.replies_ms,
  answer: (call) => (call.answer_ms === null ? [] : [call.answer_ms]),
  clear: (call) => (call.slowest_clear_ms === null ? [] : [call.slowest_clear_ms]), // percentiles are of calls
};
const WIDE = 340, HIGH = 130, LEFT = 48, BOTTOM = 20;
const OUTLIERS = 8;

/** @param {number[]} sorted @param {number} share */
export function percentile(sorted, share) {
  return sorted.length ? sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] : null;
}

const sortedOf = (calls, kind) => calls.flatMap(KINDS[kind]).sort((a, b) => a - b);

function nice(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= most) ?? most;
}

function chart(kind, calls, since, until) {
  const all = sortedOf(calls, kind);
  const title = t(`latency.${kind}`);
  if (!all.length) return card(title, el("p", { class: "faint" }, t("latency.none")));
  const step = (until - since) / BUCKETS;
  const buckets = Array.from({ length: BUCKETS }, (_, i) => sortedOf(calls.filter((call) => Math.min(BUCKETS - 1, Math.floor((call.created_at - since) / step)) === i), kind));
  const top = nice((percentile(all, 0.99) ?? 1) * 1.15);
  const x = (i) => LEFT + ((i + 0.5) / BUCKETS) * (WIDE - LEFT - 6), y = (value) => 8 + (1 - Math.min(1, value / top)) * (HIGH - BOTTOM - 8);
  const line = (share, name) => {
    const points = buckets.flatMap((each, i) => (each.length ? [[x(i), y(percentile(each, share))]] : []));
    return [svg("polyline", { class: `line ${name}`, points: points.join(" ") }), points.map(([cx, cy]) => svg("circle", { class: name, cx, cy, r: 2.5 }))];
  };
  const grid = [0, 0.5, 1].map((share) => svg("g", { class: "grid" }, svg("line", { x1: LEFT, x2: WIDE, y1: y(share * top), y2: y(share * top) }), svg("text", { x: LEFT - 6, y: y(share * top) + 4, "text-anchor": "end" }, ms(share * top))));
  const ends = [[LEFT, "start", since], [WIDE - 4, "end", until]].map(([at, anchor, seconds]) => svg("text", { x: at, y: HIGH - 4, "text-anchor": anchor }, when(seconds)));
  const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => ms(percentile(all, share)));
  return el("section", { class: "card chart" },
    el("h2", {}, title, el("small", { class: "faint" }, t("latency.count", { count: number(all.length) }))),
    el("dl", { class: "three" }, [["p50", p50], ["p95", p95], ["p99", p99]].map(([name, value]) => el("div", { class: name }, el("dt", {}, name), el("dd", {}, value)))),
    svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}: p50 ${p50}, p95 ${p95}, p99 ${p99}` }, grid, ends, line(0.95, "p95"), line(0.5, "p50")));
}

function byAgent(calls) {
  const groups = Map.groupBy(calls, (call) => JSON.stringify([call.agent, call.model ?? ""]));
  const shares = [["p50", 0.5], ["p95", 0.95]];
  return card(t("latency.by"),
    table(t("latency.by"),
      el("thead", {}, el("tr", {}, column(t("agent")), column(t("model")), column(t("view.calls"), true),
        Object.keys(KINDS).flatMap((kind) => shares.map(([name]) => column([t(`latency.short.${kind}`), " ", el("small", {}, name)], true))))),
      el("tbody", {}, [...groups].map(([name, group]) => {
        const [agent, model] = JSON.parse(name);
        return el("tr", {}, el("th", { scope: "row" }, agent), el("td", {}, model || "–"), el("td", { class: "number" }, number(group.length)),
          Object.keys(KINDS).flatMap((kind) => { const sorted = sortedOf(group, kind); return shares.map(([, share]) => el("td", { class: "number" }, ms(percentile(sorted, share)))); }));
      }))));
}

function outliers(calls) {
  const worst = Object.keys(KINDS).flatMap((kind) => {
    const usual = percentile(sortedOf(calls, kind), 0.5) ?? 0;
    return calls.flatMap((call) => { const most = Math.max(0, ...KINDS[kind](call)); return most > 2 * usual && most > 50 ? [{ call, kind, most, by: most / Math.max(usual, 1) }] : []; });
  }).sort((a, b) => b.by - a.by).slice(0, OUTLIERS);
  return card(t("latency.outliers"), worst.length
    ? el("ul", { class: "outliers" }, worst.map(({ call, kind, most }) => el("li", {}, el("a", { href: `#/call/${call.call_sid}`, title: whole(call.created_at) }, when(call.created_at)), el("span", {}, t(`latency.${kind}`)), el("span", { class: "faint" }, call.agent), el("strong", { class: "number" }, ms(most)))))
    : el("p", { class: "faint" }, t("latency.no-outliers")));
}

/** @param {HTMLElement} root */
export function show(root) {
  const body = el("div", {}), said = problemLine();
  let found = [], since = 0, until = 0, reading = new AbortController();
  const select = (id, label, all) => el("select", { id, "aria-label": label, on: { change: () => (id === "span" ? read() : draw()) } }, options(all));
  const span = select("span", t("latency.span"), Object.keys(SPANS).map((days) => [days, t(`latency.days.${days}`)]));
  const agent = select("by-agent", t("agent"), [["", t("latency.all-agents")]]), model = select("by-model", t("model"), [["", t("latency.all-models")]]);
  const offer = (node, values, all) => { const now = node.value; fill(node, options([["", all], ...[...new Set(values)].filter(Boolean).sort()])); node.value = now; if (node.value !== now) node.value = ""; };
  function draw() {
    const calls = found.filter((call) => (!agent.value || call.agent === agent.value) && (!model.value || call.model === model.value));
    const begin = Math.max(since, Math.min(...calls.map((call) => call.created_at), until) - 1);
    fill(body, el("div", { class: "charts" }, Object.keys(KINDS).map((kind) => chart(kind, calls, begin, until))), el("div", { class: "columns" }, byAgent(calls), outliers(calls)));
    body.dataset.drawn = String(calls.length);
  }
  async function read() {
    reading.abort();
    reading = new AbortController();
    const end = Date.now() / 1000, begin = end - SPANS[span.value];
    said.textContent = "";
    try {
      found = (await get("latency", { since: new Date(begin * 1000).toISOString() }, reading.signal)).calls;
      [since, until] = [begin, end];
      offer(agent, found.map((call) => call.agent), t("latency.all-agents"));
      offer(model, found.map((call) => call.model), t("latency.all-models"));
      draw();
    } catch (error) {
      if (error.name === "AbortError") return;
      said.textContent = error.message;
      fill(body); // what was there is of another time
    }
  }
  span.value = USUAL;
  fill(root, head("latency", el("div", { class: "row" }, span, agent, model)), said, body);
  read();
  return () => reading.abort();
}
