// A call drawn on one time axis: both sides as waveforms, and above and below them what happened.
//
// Times are the call's own: seconds since it began. A recording begins when the call is answered.

import { el, show } from "./dom.js";
import { at as clock, t, word } from "./words.js";

const QUIET = 7; // of 128: below this nobody speaks
const JOIN_S = 0.45; // silence within speech
const SHORTEST_S = 0.12;
const NEAR_S = 3; // from a turn's first sound to its first words, at most
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800];
const TICK_PX = 70;
const MOST_PX = 120_000;
const MOST_GAIN = 4;
const AXIS_PX = 20, TURN_PX = 26; // below the lanes

/** What a line of the timeline is on the picture: its kind, where it is, and how long it was. */
export function placed(line, before) {
  const at = line.at_s;
  const is = (kind, from = at) => ({ kind, from, to: at });
  switch (line.what) {
    case "barge-in": {
      // The agent falls silent where it was held; what decides comes later.
      const held = before?.what === "agent held" && at - before.at_s < 3 ? before.at_s : at;
      return is("barge", held);
    }
    case "agent held": return is("hold");
    case "false alarm": return is("hold", before?.what === "agent held" ? before.at_s : at);
    case "tool": return is("tool", at - (line.took_ms ?? 0) / 1000);
    case "line back": case "model reconnected": case "taken up from another process": return is("gap", at - (line.gap_s ?? 0));
    case "line lost": case "caller back": case "model going away": case "recording stopped": return is("line");
    case "transfer": case "transfer failed": case "transfer refused": case "digit": case "keys": case "beep": case "outcome": case "apology":
    case "a person after all": case "wrapping up": case "caller silent": case "time running out": case "tools refused": return is("note");
    case "answered": case "ended": return is("edge");
    default:
      if (line.what.startsWith("watchdog")) return is("rung");
      return null;
  }
}

/** When the phone left the hook, in the call's own time. */
export function answeredAt(record) {
  const line = record.timeline.find((each) => each.what === "answered");
  if (line) return line.at_s;
  // Another process answered it, or it was so long ago that the line is gone.
  const ended = record.timeline.findLast((each) => each.what === "ended");
  return ended ? Math.max(0, ended.at_s - record.duration_s) : 0;
}

/** When each turn of the transcript began, in the call's own time; the transcript counts from the answer. */
export function beginnings(record) {
  const answered = answeredAt(record);
  const free = new Set(record.timeline.filter((line) => line.what === "agent turn").map((line) => line.at_s));
  return (record.transcript ?? []).map((turn) => {
    const at = answered + turn.at_s;
    if (turn.speaker !== "agent") return at;
    // The first sound comes before or after its words; of a recorded greeting there is no such line.
    const sound = [...free].filter((each) => Math.abs(each - at) < NEAR_S).sort((a, b) => Math.abs(a - at) - Math.abs(b - at))[0];
    free.delete(sound);
    return sound ?? at;
  });
}

/** Where a side speaks, from its peaks. @param {number} channel 0 the caller, 1 the agent */
export function speech(wave, channel, offset_s) {
  const found = [];
  const step = wave.samples_per_pixel / wave.sample_rate;
  for (let i = 0; i < wave.length; i += 1) {
    const low = wave.data[4 * i + 2 * channel], high = wave.data[4 * i + 2 * channel + 1];
    if (Math.max(-low, high) < QUIET) continue;
    const from = offset_s + i * step;
    const last = found.at(-1);
    if (last && from - last.to < JOIN_S) last.to = from + step;
    else found.push({ from, to: from + step, text: "" });
  }
  return found.filter(({ from, to }) => to - from >= SHORTEST_S);
}

/** Who spoke when, with their words: where there is a recording, as it is heard there. */
export function turnsOf(record, wave, offset_s) {
  const began = beginnings(record);
  const transcript = (record.transcript ?? []).map((turn, i) => ({ ...turn, at_s: began[i] }));
  const agent = transcript.filter((turn) => turn.speaker === "agent").map((turn) => {
    const from = Math.max(turn.at_s, offset_s);
    return { from, to: from + (turn.heard_s ?? 0), text: turn.text ?? "", unheard: turn.unheard ?? "", cut: turn.cut };
  }).filter((turn) => turn.to > turn.from);
  const said = transcript.filter((turn) => turn.speaker === "caller");
  let caller = wave ? speech(wave, 0, offset_s) : said.map((turn) => ({ from: Math.max(0, turn.at_s - 1.5), to: turn.at_s, text: turn.text ?? "" }));
  if (wave) {
    const free = new Set(caller);
    for (const turn of said) {
      const own = caller.findLast((each) => free.has(each) && each.from <= turn.at_s + 0.3) ?? null;
      if (own) { own.text = turn.text ?? ""; free.delete(own); }
    }
  }
  return { agent, caller };
}

export class Timeline {
  #canvas = el("canvas", { "aria-hidden": "true" });
  #inner = el("div", { class: "tl-inner" });
  #scroll = el("div", { class: "tl-scroll", tabindex: "0", role: "group", "aria-label": t("one.timeline") });
  #cursor = el("div", { class: "tl-cursor", "data-cursor": "0", tabindex: "0", role: "slider", "aria-label": t("one.position"), "aria-valuemin": "0", "aria-valuenow": "0" });
  #layer = el("div", { class: "tl-layer" });
  #wave = null;
  #record = null;
  #offset = 0;
  #until = 1;
  #zoom = 1;
  #gain = 1;
  #seek;
  #observer;
  #frame = 0;

  /** @param {HTMLElement} root @param {(at_s: number) => void} seek */
  constructor(root, seek) {
    this.#seek = seek;
    this.#inner.append(this.#canvas, this.#layer, this.#cursor);
    this.#scroll.append(this.#inner);
    show(root, this.#scroll);
    this.#scroll.addEventListener("scroll", () => this.#redraw());
    this.#inner.addEventListener("click", (event) => {
      if (event.target.closest("button")) return;
      this.#seek(this.#time(event.clientX));
    });
    this.#scroll.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.25 : 0.8, this.#time(event.clientX));
    }, { passive: false });
    this.#observer = new ResizeObserver(() => this.#lay());
    this.#observer.observe(this.#scroll);
    this.light = matchMedia("(prefers-color-scheme: dark)");
    this.light.addEventListener("change", this.#onLight);
    addEventListener("light", this.#onLight);
  }

  #onLight = () => this.#redraw();

  close() {
    this.#observer.disconnect();
    this.light.removeEventListener("change", this.#onLight);
    removeEventListener("light", this.#onLight);
    cancelAnimationFrame(this.#frame);
  }

  get scroller() { return this.#scroll; }
  get #width() { return Math.min(MOST_PX, Math.max(1, this.#scroll.clientWidth) * this.#zoom); }
  #x(at_s) { return (at_s / this.#until) * this.#width; }
  #time(clientX) { return Math.max(0, Math.min(this.#until, ((clientX - this.#inner.getBoundingClientRect().left) / this.#width) * this.#until)); }

  /** @param {any} record @param {any} wave a waveform, or null @param {number} offset_s where it begins */
  draw(record, wave, offset_s) {
    const recorded = wave ? (wave.length * wave.samples_per_pixel) / wave.sample_rate : 0;
    const last = record.timeline.filter((line) => placed(line, null)).at(-1)?.at_s ?? 0;
    [this.#record, this.#wave, this.#offset] = [record, wave, offset_s];
    const loudest = (wave?.data ?? []).reduce((most, each) => Math.max(most, Math.abs(each)), 1);
    this.#gain = Math.min(MOST_GAIN, 128 / loudest); // both sides alike
    this.#until = Math.max(1, offset_s + recorded, last + 0.1);
    this.#cursor.setAttribute("aria-valuemax", this.#until.toFixed(1));
    this.#mark();
    this.#lay();
  }

  /** @param {number} by @param {number} [around] a time that stays where it is */
  zoom(by, around = this.cursor_s) {
    const before = this.#x(around) - this.#scroll.scrollLeft;
    this.#zoom = Math.max(1, Math.min(MOST_PX / Math.max(1, this.#scroll.clientWidth), this.#zoom * by, 400));
    this.#lay();
    this.#scroll.scrollLeft = this.#x(around) - before;
  }

  fit() { this.#zoom = 1; this.#lay(); }

  cursor_s = 0;

  /** @param {number} at_s @param {boolean} [follow] keep it in sight */
  moveTo(at_s, follow = false) {
    this.cursor_s = Math.max(0, Math.min(this.#until, at_s));
    const x = this.#x(this.cursor_s);
    this.#cursor.style.setProperty("transform", `translateX(${x}px)`);
    this.#cursor.dataset.cursor = this.cursor_s.toFixed(3);
    this.#cursor.setAttribute("aria-valuenow", this.cursor_s.toFixed(1));
    this.#cursor.setAttribute("aria-valuetext", clock(this.cursor_s));
    const { scrollLeft: left, clientWidth: wide } = this.#scroll;
    if (follow && (x < left || x > left + wide * 0.85)) this.#scroll.scrollLeft = x - wide * 0.2;
  }

  #mark() {
    const { agent, caller } = turnsOf(this.#record, this.#wave, this.#offset);
    const nodes = [];
    const box = (kind, from, to, facts, ...inner) => {
      const node = el("div", { class: `tl-${kind}`, "data-from": from.toFixed(3), "data-to": to.toFixed(3), ...facts }, inner);
      nodes.push(node);
    };
    for (const turn of caller) box("turn caller", turn.from, turn.to, { title: turn.text }, el("span", {}, turn.text));
    for (const turn of agent) {
      box(`turn agent${turn.cut ? " cut" : ""}`, turn.from, turn.to, { title: [turn.text, turn.unheard].filter(Boolean).join(" ⟂ ") }, el("span", {}, turn.text, turn.unheard && el("s", {}, ` ${turn.unheard}`)));
    }
    for (const reply of this.#record.replies ?? []) {
      if (reply.at_s !== undefined && reply.total_ms) box("wait", reply.at_s, reply.at_s + reply.total_ms / 1000, { title: `${t("one.waited")} ${Math.round(reply.total_ms)} ms` });
    }
    const held = new Set();
    this.#record.timeline.forEach((line, i, all) => {
      const before = all[i - 1] ?? null;
      if ((line.what === "barge-in" || line.what === "false alarm") && before?.what === "agent held") held.add(before);
    });
    let before = null;
    for (const line of this.#record.timeline) {
      const place = held.has(line) ? null : placed(line, before);
      before = line;
      if (!place) continue;
      const { kind, from, to } = place;
      const name = word("line", line.what);
      const detail = [line.name, line.by && word("by", line.by), line.reason && word("reason", line.reason), line.outcome && word("tool", line.outcome)].filter(Boolean).join(", ");
      const label = `${clock(from)} ${name}${detail ? `: ${detail}` : ""}`;
      if (to > from) box(`span ${kind}`, from, to, {});
      const mark = el("button", { class: `tl-mark ${kind}`, "data-from": from.toFixed(3), title: label, "aria-label": label, on: { click: () => this.#seek(from) } }, el("span", {}, kind === "tool" ? line.name ?? name : name));
      nodes.push(mark);
    }
    const focused = this.#layer.querySelector(":focus")?.ariaLabel;
    show(this.#layer, nodes);
    if (focused) nodes.find((node) => node.ariaLabel === focused)?.focus({ preventScroll: true });
  }

  #lay() {
    if (!this.#record) return;
    this.#inner.style.setProperty("width", `${this.#width}px`);
    const ends = new Map(); // where the last label of each row ends
    for (const node of this.#layer.children) {
      const [from, to] = [Number(node.dataset.from), Number(node.dataset.to)];
      const x = this.#x(from);
      node.style.setProperty("left", `${x}px`);
      if (node.matches("button")) {
        const row = [0, 1, 2].find((each) => (ends.get(each) ?? -1) <= x) ?? -1;
        const text = Math.min(150, 16 + 6.4 * node.textContent.length);
        node.dataset.row = String(row);
        node.toggleAttribute("data-flip", row >= 0 && x + text > this.#width && x > text);
        if (row >= 0) ends.set(row, x + text);
      } else node.style.setProperty("width", `${Math.max(1, this.#x(to) - x)}px`);
    }
    this.#inner.style.setProperty("--rows", String(ends.size || 1));
    this.moveTo(this.cursor_s);
    this.#redraw();
  }

  #redraw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    const wide = this.#scroll.clientWidth, high = this.#canvas.clientHeight || 200;
    if (!wide || !this.#record) return;
    const dots = Math.min(2, devicePixelRatio || 1);
    this.#canvas.style.setProperty("width", `${wide}px`);
    this.#canvas.width = wide * dots;
    this.#canvas.height = high * dots;
    const pen = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    const colour = (name) => getComputedStyle(this.#scroll).getPropertyValue(name).trim();
    pen.scale(dots, dots);
    pen.clearRect(0, 0, wide, high);
    const left = this.#scroll.scrollLeft, second = this.#width / this.#until;
    const step = STEPS_S.find((each) => each * second >= TICK_PX) ?? 3600;
    pen.font = "11px system-ui, sans-serif";
    for (let i = Math.floor(left / second / step); i * step * second < left + wide; i += 1) {
      const x = Math.round(i * step * second - left) + 0.5;
      pen.fillStyle = colour("--grid");
      pen.fillRect(x, 0, 1, high);
      pen.fillStyle = colour("--faint");
      if (x + 34 < wide) pen.fillText(step < 1 ? clock(i * step) : clock(i * step).replace(/\.\d$/, ""), x + 4, high - 5);
    }
    if (!this.#wave) return;
    const lane = (high - AXIS_PX - TURN_PX) / 2;
    [["--caller", 0], ["--agent", 1]].forEach(([name, channel]) => this.#lane(pen, colour(name), Number(channel), Number(channel) * lane, lane, left, wide, second));
  }

  #lane(pen, colour, channel, top, high, left, wide, second) {
    const { data, length, samples_per_pixel, sample_rate } = this.#wave;
    const step = samples_per_pixel / sample_rate, middle = top + high / 2, half = high / 2 - 4;
    pen.fillStyle = colour;
    for (let x = 0; x < wide; x += 1) {
      const from = ((left + x) / second - this.#offset) / step, to = ((left + x + 1) / second - this.#offset) / step;
      if (to < 0 || from >= length) continue;
      let low = 0, peak = 0;
      for (let i = Math.max(0, Math.floor(from)); i < Math.min(length, Math.max(Math.floor(from) + 1, Math.ceil(to))); i += 1) {
        low = Math.min(low, data[4 * i + 2 * channel]);
        peak = Math.max(peak, data[4 * i + 2 * channel + 1]);
      }
      const [up, down] = [peak, -low].map((each) => Math.max(0.5, ((each * this.#gain) / 128) * half));
      pen.fillRect(x, middle - up, 1, up + down);
    }
  }
}
