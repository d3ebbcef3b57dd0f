// A page as a telephone: one call to an agent of this server, by the browser's microphone and speaker.
// It needs nothing but this server. How it is used, and what it tells, is in docs/browser.md.

const FRAME_MS = 20;
const MOST_UNSENT_MS = 3_000; // then the network is gone, whatever the socket says
const TICK_MS = 1_000; // as often as the server says that it is there
const MOST_FULL_TICKS = 2; // running; a page that stood still has much to send at once, and gets rid of it
const MOST_QUIET_TICKS = 4; // then it is not, or the way to it is gone
const COMES_BACK_S = 9; // where the server's answer does not say it
const ASK_MS = 4_000;
const SOUND_MS = 10_000; // for the browser to begin it: where nobody has clicked it never does
const EARLY_MS = 2_000; // before its ticket expires a call is made anew
const OVER = 1000;
const REFUSED = 1008;
const LOOK = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
const ON_LINE = ["connecting", "talking", "reconnecting"];
const KEYS = /^[0-9*#A-D]$/;

/** The time by two clocks: one stands still while the machine sleeps, the other can be set back. */
const clocks = () => [performance.now(), Date.now()];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const soundless = async () => {
  await sleep(SOUND_MS);
  throw new Error("the browser does not begin the sound");
};

/** @param {Uint8Array} bytes @returns {string} */
function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)); // of a frame: a few hundred
}

/** @param {string} text @returns {Uint8Array} */
function ofBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** @param {MediaStream} microphone */
function close(microphone) {
  for (const track of microphone.getTracks()) track.stop();
}

function newSid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `MZ${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * One telephone. Events: `state` ({state, reason}), `level` ({heard, played, at}: peaks of 20 ms, from 0
 * to 1), `say` ({text, language}: last words that the server has the page say), `problem` ({message}).
 *
 * States: idle, preparing, ready, connecting, talking, reconnecting, over.
 */
export class Phone extends EventTarget {
  #server;
  #ask;
  #quality;
  #wishes;
  #state = "idle";
  #preparing = null;
  #call = null; // the server's answer
  #askedAt = clocks(); // for it
  #socket = null;
  #sid = "";
  #chunk = 0;
  #lostAt = 0;
  #mostUnsent = Infinity; // bytes
  #fullTicks = 0;
  #quietTicks = 0; // since something came
  #isTold = false; // whether who is at the socket's other end says that they are there
  #context = null;
  #line = null;
  #microphone = null;
  #muted = false;
  #life = 0; // how often it has ended: what was begun before has no say after
  #leave = () => this.hangUp();
  #offline = () => this.#lose(this.#socket);
  #wake = () => { // another call, or a closed lid, takes a page's sound away, and does not give it back
    if (!this.#context || !ON_LINE.includes(this.#state) || this.#context.state === "running") return;
    this.#context.resume().catch(() => {}); // not yet: there is another time
  };

  /**
   * @param {object} options
   * @param {string|URL} [options.server] where the server is; where this module came from by default
   * @param {string} [options.apiKey] a key of its API, if the page may have one
   * @param {(wishes: object) => Promise<object>} [options.ask] asks for the call in the page's own way, and
   *   returns what `POST /calls/browser` answers
   * @param {"telephone"|"wide"} [options.quality]
   * Everything else (agent, prompt, variables, metadata …) goes into the request for the call.
   */
  constructor({ server = new URL("../", import.meta.url), apiKey = "", ask, quality = "telephone", ...wishes } = {}) {
    super();
    this.#server = new URL(server, document.baseURI);
    this.#quality = quality;
    this.#wishes = wishes;
    this.#ask = ask ?? ((body) => this.#askServer(body, apiKey));
  }

  get state() { return this.#state; }
  get callSid() { return this.#call?.call_sid ?? ""; }
  get muted() { return this.#muted; }

  /** Have everything there for a call to begin at once: microphone, sound, and an agent that waits. */
  async prepare() {
    if (this.#preparing && this.#isFresh()) return this.#preparing;
    if (!["idle", "ready", "over", "preparing"].includes(this.#state)) return undefined;
    const life = this.#life;
    if (this.#state === "ready") this.#giveBack(this.#call); // it is too old, and another is asked for
    this.#set("preparing");
    if (life !== this.#life) return undefined;
    this.#preparing = this.#prepare();
    try {
      await this.#preparing;
    } catch (error) {
      if (life !== this.#life) return undefined; // hung up meanwhile: nobody is concerned
      this.#tell("problem", { message: String(error.message ?? error) });
      this.#end("failed");
      throw error;
    }
    return undefined;
  }

  /** Call; returns when the agent can be heard. Has to be asked for by a click, or browsers stay mute. */
  async call() {
    if (ON_LINE.includes(this.#state)) return;
    const life = this.#life;
    await this.prepare();
    // An agent that was asked for at once has waited for the microphone, perhaps for too long.
    if (life === this.#life && this.#state === "ready" && !this.#isFresh()) await this.prepare();
    if (life !== this.#life || this.#state !== "ready") return; // hung up meanwhile
    this.#set("connecting");
    try {
      await Promise.race([this.#context?.resume(), soundless()]);
    } catch (error) { // there is no way to play anything
      if (life !== this.#life) return;
      this.#giveUp(error);
      throw error;
    }
    if (life !== this.#life) return;
    addEventListener("offline", this.#offline);
    document.addEventListener("visibilitychange", this.#wake);
    this.#connect(this.#call.url, this.#call.ticket);
  }

  /** Hang up, whatever state the call is in. */
  hangUp() {
    if (this.#state === "idle" || this.#state === "over") return;
    const talks = this.#state === "talking" && this.#socket?.readyState === WebSocket.OPEN;
    if (talks) this.#send("stop");
    else if (this.#state !== "preparing") this.#giveBack(this.#call);
    this.#end("hung-up");
  }

  /** @param {boolean} muted whether the agent hears silence */
  mute(muted) {
    this.#muted = Boolean(muted);
    this.#line?.port.postMessage({ mute: this.#muted });
  }

  /** @param {string} key of a telephone: 0-9, *, #, A-D */
  press(key) {
    if (!KEYS.test(key)) throw new RangeError(`no key ${key} on a telephone`);
    this.#send("dtmf", { digit: key });
  }

  #giveUp(error) {
    this.#tell("problem", { message: String(error.message ?? error) });
    this.#giveBack(this.#call);
    this.#end("failed");
  }

  /** Nobody here wants this call any more, and there is no stream to say so: its key is enough. */
  #giveBack(call) {
    this.#askAgain(call, { hang_up: true }, { keepalive: true }).catch(() => {}); // it ends by itself, too
  }

  #askAgain({ call_sid, key }, wish, options) {
    return fetch(new URL("calls/browser/resume", this.#server), {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ call_sid, key, ...wish }), ...options,
    });
  }

  // Before it ------------------------------------------------------------------------------------

  #isFresh() {
    if (this.#state !== "ready") return this.#state === "preparing";
    const ageMs = Math.max(...clocks().map((now, which) => now - this.#askedAt[which]));
    const lastsMs = 1_000 * (this.#call.expires_s ?? Infinity);
    return ageMs < Math.max(lastsMs - EARLY_MS, lastsMs / 2);
  }

  async #prepare() {
    // An agent costs money from the moment it waits: it is not asked for before the microphone is there,
    // unless nothing is asked of anybody for that.
    const body = { quality: this.#quality, ...this.#wishes };
    const life = this.#life;
    let askedAt;
    const ask = async () => {
      askedAt = clocks();
      const call = await this.#ask(body);
      if (!call?.ticket) throw new Error(call?.message ?? "the server gave no call");
      return call;
    };
    const granted = await isGranted();
    if (life !== this.#life) return;
    const asked = granted ? ask() : null;
    asked?.catch(() => {});
    try {
      await this.#openSound();
    } catch (error) {
      asked?.then((call) => this.#giveBack(call), () => {});
      throw error;
    }
    if (life !== this.#life && !asked) return;
    const call = await (asked ?? ask());
    if (life !== this.#life) {
      this.#giveBack(call);
      return;
    }
    this.#call = call;
    this.#askedAt = askedAt;
    addEventListener("pagehide", this.#leave);
    this.#set("ready");
  }

  async #askServer(body, apiKey) {
    const headers = { "Content-Type": "application/json", ...(apiKey && { Authorization: `Bearer ${apiKey}` }) };
    const answer = await fetch(new URL("calls/browser", this.#server), {
      method: "POST", headers, body: JSON.stringify(body),
    });
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(told.message ?? `the server answered ${answer.status}`);
    return told;
  }

  async #openSound() {
    if (this.#line) return;
    if (!navigator.mediaDevices) throw new Error("browsers give a microphone to pages from https:// or this machine only");
    const context = (this.#context = new AudioContext({ latencyHint: "interactive" }));
    context.onstatechange = this.#wake;
    const [microphone] = await Promise.all([
      navigator.mediaDevices.getUserMedia({ audio: LOOK }).then((given) => this.#keep(given, context)),
      context.audioWorklet.addModule(new URL("phone-line.js", import.meta.url)),
    ]);
    if (this.#context !== context) return;
    for (const track of microphone.getTracks()) {
      track.onended = () => this.#tell("problem", { message: "the microphone is gone" });
    }
    this.#line = new AudioWorkletNode(context, "offhook-line", {
      numberOfInputs: 1, numberOfOutputs: 1, outputChannelCount: [1],
      channelCount: 1, channelCountMode: "explicit",
      processorOptions: { wide: this.#quality === "wide" },
    });
    this.#line.port.onmessage = ({ data }) => this.#takeSound(data);
    context.createMediaStreamSource(microphone).connect(this.#line).connect(context.destination);
    this.mute(this.#muted);
  }

  /** There is a microphone, which is on no longer than this sound is wanted. */
  #keep(microphone, context) {
    if (this.#context === context) this.#microphone = microphone;
    else close(microphone);
    return microphone;
  }

  // On the line ----------------------------------------------------------------------------------

  #connect(url, ticket) {
    let socket;
    try {
      socket = this.#socket = new WebSocket(url);
    } catch (error) { // an address that this page may not open
      this.#giveUp(error);
      return;
    }
    this.#sid = newSid();
    this.#chunk = 0;
    this.#quietTicks = this.#fullTicks = 0;
    this.#isTold = false;
    const watch = setInterval(() => {
      if (socket !== this.#socket) clearInterval(watch);
      else this.#tick(socket);
    }, TICK_MS);
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      this.#quietTicks = 0;
      socket.send(JSON.stringify(this.#startOf(this.#sid, ticket)));
      this.#set("talking");
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      this.#quietTicks = 0;
      this.#take(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.#socket) return;
      if (code === OVER) this.#end("over");
      else if (code === REFUSED) this.#end(`refused: ${reason}`);
      else this.#lose(socket);
    };
  }

  /** Ticks are counted and no time is measured: a page that slept has not listened meanwhile. */
  #tick(socket) {
    this.#fullTicks = socket.bufferedAmount > this.#mostUnsent ? this.#fullTicks + 1 : 0;
    if (this.#fullTicks === MOST_FULL_TICKS) {
      this.#lose(socket);
      return;
    }
    if (socket.readyState === WebSocket.OPEN && !this.#isTold) return; // a server that does not say it
    this.#quietTicks += 1;
    if (this.#quietTicks >= MOST_QUIET_TICKS) this.#lose(socket);
  }

  #startOf(streamSid, ticket) {
    const wide = this.#quality === "wide";
    const mediaFormat = { encoding: wide ? "audio/l16" : "audio/x-mulaw", sampleRate: wide ? 16_000 : 8_000, channels: 1 };
    const start = { callSid: this.#call.call_sid, mediaFormat, customParameters: { ticket } };
    return { event: "start", streamSid, start };
  }

  #take(message) {
    const sound = this.#line.port;
    switch (message.event) {
      case "media": {
        const play = ofBase64(message.media.payload).buffer;
        sound.postMessage({ play }, [play]);
        break;
      }
      case "mark":
        sound.postMessage({ mark: message.mark.name });
        break;
      case "clear":
        sound.postMessage({ clear: true });
        break;
      case "alive":
        this.#isTold = true;
        break;
      case "say":
        this.#say(message.say.text, message.say.language);
        break;
    }
  }

  #takeSound({ frame, level, mark }) {
    if (mark !== undefined) this.#send("mark", { name: mark });
    if (!frame) return;
    this.#tell("level", level);
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const payload = toBase64(frame);
    this.#mostUnsent = (MOST_UNSENT_MS / FRAME_MS) * payload.length;
    this.#send("media", { chunk: String(this.#chunk + 1), timestamp: String(this.#chunk * FRAME_MS), payload });
    this.#chunk += 1;
  }

  #send(event, facts) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ event, streamSid: this.#sid, ...(facts && { [event]: facts }) }));
  }

  // The line is lost -----------------------------------------------------------------------------

  #lose(socket) {
    if (!socket || socket !== this.#socket || !ON_LINE.includes(this.#state)) return;
    this.#socket = null;
    socket?.close();
    this.#line.port.postMessage({ clear: true }); // the server goes on where it was lost
    if (this.#state !== "reconnecting") this.#lostAt = performance.now();
    this.#set("reconnecting");
    this.#comeBack();
  }

  async #comeBack() {
    const call = this.#call;
    const life = this.#life;
    const isOver = () => life !== this.#life || this.#state !== "reconnecting" || this.#socket;
    let pauseMs = 50;
    const giveUpAt = this.#lostAt + 1_000 * (call.comes_back_s ?? COMES_BACK_S);
    while (performance.now() < giveUpAt) {
      await sleep(pauseMs);
      pauseMs = Math.min(1_000, 2 * pauseMs);
      if (isOver()) return;
      let answer, told;
      try {
        answer = await this.#askAgain(call, {}, { signal: AbortSignal.timeout(ASK_MS) });
        told = await answer.json();
      } catch {
        continue; // there is no network yet
      }
      if (isOver()) return;
      if (answer.status >= 500) continue;
      if (answer.ok && !told.over) {
        this.#connect(told.url, told.ticket);
        return;
      }
      if (told.say) this.#say(told.say, told.language);
      this.#end("over");
      return;
    }
    if (!isOver()) this.#end("lost");
  }

  // Its end --------------------------------------------------------------------------------------

  #say(text, language) {
    this.#tell("say", { text, language });
    if (globalThis.speechSynthesis) {
      const spoken = new SpeechSynthesisUtterance(text);
      spoken.lang = language;
      speechSynthesis.speak(spoken);
    }
    this.#end("failed");
  }

  #end(reason) {
    if (this.#state === "over") return;
    removeEventListener("pagehide", this.#leave);
    removeEventListener("offline", this.#offline);
    document.removeEventListener("visibilitychange", this.#wake);
    const socket = this.#socket;
    this.#life += 1;
    this.#socket = this.#preparing = null;
    socket?.close(OVER);
    this.#line?.port.postMessage({ stop: true });
    if (this.#microphone) close(this.#microphone);
    this.#context?.close();
    this.#context = this.#line = this.#microphone = null;
    this.#set("over", reason);
  }

  #set(state, reason = "") {
    if (this.#state === state) return;
    this.#state = state;
    this.#tell("state", { state, reason });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

async function isGranted() {
  try {
    return (await navigator.permissions.query({ name: "microphone" })).state === "granted";
  } catch {
    return false; // this browser does not say
  }
}
