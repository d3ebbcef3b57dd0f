// One call: the timeline that explains it, its sound, its words, what it took and what it cost.

import { address, get, post, session } from "./api.js";
import { ask, button, card, el, icon, problemLine, renew, show as fill, way } from "./dom.js";
import { live } from "./live.js";
import { answeredAt, beginnings, placed, Timeline } from "./timeline.js";
import { at as clock, length, money, ms, number, t, whole, word } from "./words.js";

const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 2, 3];
const STEP_S = 2;
const POINTS = 6_000;
const SOON_MS = 400;
const STAGES = ["vad", "model", "codec", "playout"];

function fact(name, ...value) {
  return el("div", {}, el("dt", {}, t(`one.${name}`)), el("dd", {}, value));
}

function facts(record) {
  const { cost } = record;
  return el("dl", { class: "facts" },
    fact("began", whole(record.created_at)),
    fact("length", length(record.duration_s)),
    fact("agent", record.agent, record.model && el("small", {}, record.model)),
    record.reason || record.state === "live" ? fact("end", record.state === "live" ? el("span", { class: "pill good" }, t("live")) : word("reason", record.reason), record.detail && el("small", {}, record.detail)) : null,
    record.answered_by && fact("answered-by", word("answered-by", record.answered_by)),
    cost ? fact("cost", money(cost.known_usd), cost.total_usd === "unknown" && el("small", {}, t("one.at-least"))) : null);
}

function replies(record) {
  const all = (record.replies ?? []).filter((reply) => reply.total_ms);
  if (!all.length) return null;
  const most = Math.max(1000, ...all.map((reply) => reply.total_ms));
  return card(t("one.waits"),
    el("ul", { class: "legend", "aria-hidden": "true" }, STAGES.map((stage) => el("li", { class: stage }, t(`stage.${stage}`)))),
    el("ol", { class: "bars" }, all.map((reply) => {
      const label = STAGES.map((stage) => `${t(`stage.${stage}`)} ${ms(reply[`${stage}_ms`])}`).join(", ");
      return el("li", {}, el("span", { class: "faint" }, t("one.turn", { turn: reply.turn })),
        el("span", { class: "bar", role: "img", "aria-label": label, title: label }, STAGES.map((stage) => el("i", { class: stage, vars: { "--share": String(Math.max(0, reply[`${stage}_ms`] ?? 0) / most) } }))),
        el("span", { class: "number" }, ms(reply.total_ms)));
    })));
}

function transcript(record, seek) {
  const turns = record.transcript ?? [];
  if (!turns.length) return card(t("one.transcript"), el("p", { class: "faint" }, record.not_whole ?? t("one.no-words")));
  const began = beginnings(record);
  return card(t("one.transcript"),
    el("ol", { class: "talk" }, turns.map((turn, i) => {
      const at_s = began[i];
      return el("li", { class: turn.speaker },
        el("button", { class: "at", "aria-label": t("one.play-from", { at: clock(at_s) }), on: { click: () => seek(at_s) } }, clock(at_s)),
        el("p", {}, el("b", {}, t(`speaker.${turn.speaker}`)), " ", turn.text ?? t("one.not-kept"), turn.unheard && el("del", { title: t("one.unheard") }, ` ${turn.unheard}`),
          turn.cut && el("span", { class: "pill warn" }, t("one.cut"))));
    })));
}

function outcome(record) {
  const found = record.outcome;
  return found && pairs(t("one.outcome"), Object.entries(found.values ?? found).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
}

function pairs(title, all) {
  const shown = all.filter(([, value]) => (value ?? "") !== "");
  return shown.length ? card(title,
    el("dl", { class: "pairs" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { class: typeof value === "number" && "number" }, value))))) : null;
}

const measured = (value, say) => (value === undefined ? "" : say(value));
const spread = (timing) => (timing?.count ? `${ms(timing.p50_ms)} / ${ms(timing.p99_ms)}` : "");

function numbers(record) {
  const tokens = record.tokens ?? {}, cost = record.cost ?? {}, timings = record.timings ?? {};
  const counted = ["prompt", "response"].flatMap((way) => Object.entries(tokens[way] ?? {}).map(([kind, count]) => [`${t(`one.${way}`)}, ${word("modality", kind)}`, number(count)]));
  return [
    pairs(t("one.tokens"), [...counted, [t("one.model-cost"), measured(cost.model_usd, money)], [t("one.carrier-cost"), measured(cost.carrier_usd, money)], [t("one.minutes"), cost.billed_minutes ?? ""]]),
    pairs(t("one.measured"), [
      [t("latency.answer"), measured(timings.answer_to_first_audio_ms, ms)],
      [t("latency.clear"), timings.interrupt_to_clear?.count ? ms(timings.interrupt_to_clear.max_ms) : ""],
      [t("one.to-model"), spread(timings.caller_to_model)],
      [t("one.to-caller"), spread(timings.model_to_caller)],
      [t("one.lost"), timings.caller_audio_lost_s ? `${number(timings.caller_audio_lost_s, 2)} s` : ""],
    ]),
    pairs(t("one.metadata"), Object.entries(record.metadata ?? {}).map(([name, value]) => [name, String(value)])),
  ];
}

function story(record, seek, open) {
  let before = null;
  return el("details", { class: "card", open }, el("summary", {}, el("h2", {}, t("one.events", { count: record.timeline.length }))),
    el("ol", { class: "story" }, record.timeline.map((line) => {
      const kind = placed(line, before)?.kind ?? "";
      before = line;
      const more = Object.entries(line).filter(([name]) => !["at_s", "what", "timestamp"].includes(name)).map(([name, value]) => `${name} ${value}`).join(", ");
      return el("li", { class: kind }, el("button", { class: "at", on: { click: () => seek(line.at_s) } }, clock(line.at_s)), el("span", {}, word("line", line.what)), el("span", { class: "faint" }, more));
    })));
}

/** Plays a recording, and says where it is. */
class Player {
  audio = new Audio();
  #frame = 0;

  constructor(url, offset_s, moved, changed) {
    Object.assign(this.audio, { src: String(url), preload: "metadata" });
    this.offset_s = offset_s;
    const tell = (follow) => moved(this.offset_s + this.audio.currentTime, follow);
    const step = () => { tell(true); this.#frame = requestAnimationFrame(step); };
    this.audio.addEventListener("play", () => { changed(); cancelAnimationFrame(this.#frame); step(); });
    for (const kind of ["pause", "ended"]) this.audio.addEventListener(kind, () => { cancelAnimationFrame(this.#frame); tell(false); changed(); });
    this.audio.addEventListener("seeked", () => tell(false));
  }

  seek(at_s) {
    const end = Number.isFinite(this.audio.duration) ? this.audio.duration : Infinity;
    this.audio.currentTime = Math.max(0, Math.min(end, at_s - this.offset_s));
  }

  toggle() { if (this.audio.paused) this.audio.play().catch(() => {}); else this.audio.pause(); }

  close() { cancelAnimationFrame(this.#frame); this.audio.pause(); this.audio.removeAttribute("src"); this.audio.load(); }
}

/** @param {HTMLElement} root @param {string} call_sid @param {{inside?: boolean}} [how] inside another view */
export function show(root, call_sid, { inside = false } = {}) {
  const path = `calls/${encodeURIComponent(call_sid)}`;
  const head = el("div", { class: "head" }), known = el("div", {}), rest = el("div", { class: "columns" }), said = problemLine();
  const canvas = el("div", { class: "timeline" });
  const place = el("output", { class: "number clock" }, clock(0));
  const toggle = el("button", { class: "button primary round", disabled: true, "aria-label": t("one.play"), on: { click: () => player?.toggle() } }, icon("play"));
  const speed = el("select", { id: "speed", "aria-label": t("one.speed"), on: { change: () => { if (player) player.audio.playbackRate = Number(speed.value); } } }, SPEEDS.map((each) => el("option", { value: each, selected: each === 1 }, `${number(each, each % 1 ? 2 : 0)}×`)));
  let player = null, over = false, timer = 0, part = 1, url = "";
  const seek = (at_s) => { if (player) player.seek(at_s); line.moveTo(at_s, true); place.textContent = clock(at_s); };
  const line = new Timeline(canvas, seek);
  const tool = (shape, label, act) => el("button", { class: "button round", "aria-label": label, title: label, on: { click: act } }, icon(shape));
  const parts = el("select", { "aria-label": t("one.part"), hidden: true, on: { change: () => { part = Number(parts.value); read(); } } });
  const bar = el("div", { class: "row player" }, toggle, place, speed, parts,
    el("span", { class: "lanes faint" }, el("i", { class: "caller" }), t("speaker.caller"), el("i", { class: "agent" }), t("speaker.agent")),
    tool("minus", t("one.out"), () => line.zoom(0.5)), tool("plus", t("one.in"), () => line.zoom(2)), tool("fit", t("one.fit"), () => line.fit()));
  const changed = () => {
    const plays = player !== null && !player.audio.paused;
    fill(toggle, icon(plays ? "pause" : "play"));
    toggle.setAttribute("aria-label", t(plays ? "one.pause" : "one.play"));
  };

  const sound = () => address(`${path}/recording`, { part });
  function listen(record, offset_s) {
    const wanted = record.recording ? String(sound()) : "";
    // One that grows is read anew when its call is over.
    const key = wanted && `${wanted} ${record.state}`;
    if (key === url) return;
    const was = player && { at_s: player.offset_s + player.audio.currentTime, plays: !player.audio.paused };
    player?.close();
    [player, url] = [null, key];
    toggle.disabled = !wanted;
    if (!wanted) return;
    player = new Player(wanted, offset_s, (at_s, follow) => { line.moveTo(at_s, follow); place.textContent = clock(at_s); }, changed);
    player.audio.playbackRate = Number(speed.value);
    if (was) {
      const next_s = record.recording.parts_at_s?.[part] ?? Infinity; // back to a part that is over by then: all of it
      seek(was.at_s < next_s ? Math.max(offset_s, was.at_s) : offset_s);
      if (was.plays) player.toggle();
    }
    changed();
  }

  /** Where a part of the recording begins, in the call's own time. */
  function begins(record) {
    const at_s = record.recording?.parts_at_s?.[part - 1];
    if (part === 1) return at_s ?? answeredAt(record);
    return at_s ?? record.timeline.findLast((each) => each.what === "taken up from another process")?.at_s ?? 0;
  }

  const left = new AbortController(), { signal } = left;
  let reading = false, again = false, failed = false;
  /** Reads the call, once at a time: what happens meanwhile is read after that. */
  async function read() {
    again = reading;
    if (reading) return;
    reading = true;
    const wanted = part;
    try {
      const record = await get(path, {}, signal);
      record.timeline ??= [];
      const wave = record.recording ? await get(`${path}/waveform`, { points: POINTS, part: wanted }, signal).catch(() => null) : null;
      if (failed) said.textContent = "";
      failed = false;
      if (!over && wanted === part) draw(record, wave);
    } catch (error) {
      failed = true;
      if (!over) said.textContent = error.status === 404 ? t("one.unknown") : error.message;
    }
    reading = false;
    if (again && !over) later();
  }
  function later() {
    clearTimeout(timer);
    timer = setTimeout(read, SOON_MS);
  }

  function draw(record, wave) {
    const offset_s = begins(record);
    const count = record.recording?.parts?.length ?? 1;
    parts.hidden = count < 2;
    if (parts.children.length !== count) fill(parts, Array.from({ length: count }, (_, i) => el("option", { value: i + 1, selected: i + 1 === part }, t("one.part-of", { part: i + 1, count }))));
    const down = (label, href, name) => el("a", { class: "button", href: String(href), download: name }, label);
    renew(head,
      el("div", { class: "title" }, !inside && el("a", { class: "button round quiet", href: "#/calls", "aria-label": t("view.calls") }, icon("back")),
        el(inside ? "h2" : "h1", {}, way(record.direction), record.number || t("unknown"))),
      el("div", { class: "row" },
        record.recording && down("WAV", sound(), `${call_sid}.wav`),
        down("JSON", address(path), `${call_sid}.json`),
        record.state === "live" && session.may_change && button("danger", hangUp, t("now.hang-up"))));
    renew(known, facts(record));
    line.draw(record, wave, offset_s);
    canvas.dataset.drawn = record.state;
    listen(record, offset_s);
    const open = rest.querySelector("details")?.open ?? false;
    renew(rest, el("div", {}, transcript(record, seek), story(record, seek, open)), el("div", {}, replies(record), outcome(record), numbers(record)));
  }

  const hangUp = async () => {
    const yes = await ask(t("now.hang-up"), t("now.hang-up-ask", { number: "" }));
    if (!yes) return;
    said.textContent = "";
    await post(`${path}/hang-up`).catch((error) => { said.textContent = error.message; });
  };
  const soon = ({ detail }) => { if (!detail || detail.call_sid === call_sid) later(); };
  const keys = (event) => {
    if (/** @type {HTMLElement} */ (event.target).closest?.("input, select, textarea, dialog, button, a, summary")) return;
    const acts = {
      " ": () => player?.toggle(), ArrowLeft: () => seek(line.cursor_s - STEP_S), ArrowRight: () => seek(line.cursor_s + STEP_S),
      Home: () => seek(0), "+": () => line.zoom(2), "-": () => line.zoom(0.5), 0: () => line.fit(),
    };
    if (event.key in acts && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); acts[event.key](); }
  };
  fill(root, head, said, known, el("section", { class: "card stage", "aria-label": t("one.timeline") }, bar, canvas), rest);
  read();
  live.addEventListener("line", soon, { signal });
  live.addEventListener("calls", soon, { signal });
  addEventListener("keydown", keys, { signal });
  return () => {
    over = true;
    left.abort();
    clearTimeout(timer);
    player?.close();
    line.close();
  };
}
