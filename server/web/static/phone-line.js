// The sound of a call, in the browser's own audio thread: what the microphone hears becomes frames of
// 20 ms for the line, and what the line brings is played in its order, with the marks between.

const FRAME_S = 0.02;
const MOST_QUEUED_S = 60; // twice as much as a server sends ahead
const HALF_WIDTH = 16; // of a filter, in samples of the lower rate
const PHASES = 512;
const MULAW_BIAS = 0x84;
const MULAW_MOST = 32635;

const MULAW = Float32Array.from({ length: 256 }, (_, code) => {
  const bits = ~code & 0xff;
  const size = ((((bits & 0x0f) << 3) + MULAW_BIAS) << ((bits & 0x70) >> 4)) - MULAW_BIAS;
  return (bits & 0x80 ? -size : size) / 32768;
});

/** @param {number} sample from -1 to 1 @returns {number} its mu-law code (ITU-T G.711) */
function toMulaw(sample) {
  const value = Math.round(sample * 32768);
  const size = Math.min(Math.abs(value), MULAW_MOST) + MULAW_BIAS;
  const exponent = 31 - Math.clz32(size) - 7;
  return ~((value < 0 ? 0x80 : 0) | (exponent << 4) | ((size >> (exponent + 3)) & 0x0f)) & 0xff;
}

/** Changes the rate of a stream of samples, by a windowed sinc; what it needs of before, it keeps. */
class Resampler {
  /** @param {number} from @param {number} to in Hz */
  constructor(from, to) {
    this.step = from / to;
    const cutoff = 0.94 * Math.min(1, to / from);
    this.half = Math.ceil(HALF_WIDTH / Math.min(1, to / from));
    this.kernels = Array.from({ length: PHASES }, (_, phase) => this.kernel(phase / PHASES, cutoff));
    this.reset();
  }

  kernel(offset, cutoff) {
    const taps = new Float32Array(2 * this.half);
    let sum = 0;
    for (let at = 0; at < taps.length; at++) {
      const x = at - this.half + 1 - offset;
      const window = Math.abs(x) < this.half ? Math.cos((Math.PI * x) / (2 * this.half)) ** 2 : 0;
      taps[at] = window * (x === 0 ? cutoff : Math.sin(Math.PI * cutoff * x) / (Math.PI * x));
      sum += taps[at];
    }
    return taps.map((tap) => tap / sum);
  }

  reset() {
    this.kept = new Float32Array(2 * this.half - 1); // silence is what was before
    this.at = this.half - 1;
  }

  /** @param {Float32Array} samples @returns {Float32Array} */
  push(samples) {
    if (this.step === 1) return samples;
    const all = new Float32Array(this.kept.length + samples.length);
    all.set(this.kept);
    all.set(samples, this.kept.length);
    const made = [];
    while (this.at + this.half < all.length) {
      const whole = Math.floor(this.at);
      const kernel = this.kernels[Math.floor((this.at - whole) * PHASES)];
      let sum = 0;
      for (let tap = 0, from = whole - this.half + 1; tap < kernel.length; tap++) sum += kernel[tap] * all[from + tap];
      made.push(sum);
      this.at += this.step;
    }
    const unneeded = Math.max(0, Math.floor(this.at) - this.half + 1);
    this.kept = all.slice(unneeded);
    this.at -= unneeded;
    return Float32Array.from(made);
  }
}

class Line extends AudioWorkletProcessor {
  constructor({ processorOptions: { wide } }) {
    super();
    this.wide = wide;
    this.heardHz = wide ? 16000 : 8000; // by the model
    const saidHz = wide ? 24000 : 8000;
    this.down = new Resampler(sampleRate, this.heardHz);
    this.up = new Resampler(saidHz, sampleRate);
    this.frame = new Float32Array(Math.round(FRAME_S * this.heardHz));
    this.filled = 0;
    this.muted = false;
    this.over = false;
    this.queue = []; // Float32Array, or the name of a mark
    this.played = 0; // samples of the first piece
    this.queued = 0;
    this.loudest = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take({ play, mark, clear, mute, stop }) {
    if (play) this.add(this.decoded(new Uint8Array(play)));
    if (mark !== undefined) this.queue.push(mark);
    if (clear) this.clear();
    if (mute !== undefined) this.muted = mute;
    if (stop) this.over = true;
  }

  decoded(bytes) {
    if (!this.wide) return Float32Array.from(bytes, (code) => MULAW[code]);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return Float32Array.from({ length: bytes.byteLength >> 1 }, (_, at) => view.getInt16(2 * at, true) / 32768);
  }

  add(samples) {
    const piece = this.up.push(samples);
    if (!piece.length || this.queued > MOST_QUEUED_S * sampleRate) return;
    this.queue.push(piece);
    this.queued += piece.length;
  }

  clear() {
    const marks = this.queue.filter((each) => typeof each === "string");
    this.queue = [];
    this.played = this.queued = 0;
    this.up.reset();
    for (const name of marks) this.port.postMessage({ mark: name });
  }

  process([input], [output]) {
    const out = output[0];
    if (out) this.play(out);
    const heard = input[0];
    this.hear(heard && !this.muted ? heard : new Float32Array(out ? out.length : 128));
    return !this.over;
  }

  play(out) {
    for (let at = 0; at < out.length && this.queue.length;) {
      const piece = this.queue[0];
      if (typeof piece === "string") {
        this.queue.shift();
        this.port.postMessage({ mark: piece });
        continue;
      }
      const length = Math.min(out.length - at, piece.length - this.played);
      out.set(piece.subarray(this.played, this.played + length), at);
      at += length;
      this.played += length;
      this.queued -= length;
      if (this.played === piece.length) {
        this.queue.shift();
        this.played = 0;
      }
    }
    while (typeof this.queue[0] === "string") this.port.postMessage({ mark: this.queue.shift() });
    for (const sample of out) this.loudest = Math.max(this.loudest, Math.abs(sample));
  }

  hear(samples) {
    for (const sample of this.down.push(samples)) {
      this.frame[this.filled++] = Math.max(-1, Math.min(1, sample));
      if (this.filled === this.frame.length) this.send();
    }
  }

  send() {
    const { frame, wide } = this;
    const bytes = new Uint8Array(wide ? 2 * frame.length : frame.length);
    const view = new DataView(bytes.buffer);
    let heard = 0;
    frame.forEach((sample, at) => {
      heard = Math.max(heard, Math.abs(sample));
      if (wide) view.setInt16(2 * at, Math.round(sample * 32767), true);
      else bytes[at] = toMulaw(sample);
    });
    const level = { heard, played: this.loudest, at: currentTime };
    this.port.postMessage({ frame: bytes, level }, [bytes.buffer]);
    this.filled = 0;
    this.loudest = 0;
  }
}

registerProcessor("offhook-line", Line);
