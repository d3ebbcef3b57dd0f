// The page /phone: one telephone to try a server by hand. The key stays in this page's memory.

import { Phone } from "./phone.js";

const $ = (id) => document.getElementById(id);
const LIVE = ["connecting", "talking", "reconnecting"];
let phone = null;

function newPhone() {
  const agent = $("agent").value.trim();
  $("mute").setAttribute("aria-pressed", "false");
  phone = new Phone({ apiKey: $("key").value.trim(), quality: $("quality").value, ...(agent && { agent }) });
  phone.addEventListener("state", ({ detail: { state, reason } }) => show(state, reason));
  phone.addEventListener("level", ({ detail: { heard, played } }) => {
    $("heard").value = heard;
    $("played").value = played;
  });
  phone.addEventListener("say", ({ detail: { text } }) => { $("said").textContent = text; });
  phone.addEventListener("problem", ({ detail: { message } }) => { $("said").textContent = message; });
  globalThis.phone = phone; // to play with in the console
}

function show(state, reason) {
  const live = LIVE.includes(state);
  $("state").textContent = reason ? `${state} (${reason})` : state;
  $("call").textContent = live ? "Hang up" : "Call";
  $("ready").disabled = live || state === "preparing" || state === "ready";
  $("mute").disabled = !live;
  for (const key of $("keys").children) key.disabled = !live;
  if (!live) $("heard").value = $("played").value = 0;
}

async function begin(what) {
  $("said").textContent = "";
  if (!phone || phone.state === "over" || phone.state === "idle") newPhone();
  try {
    await what(phone);
  } catch {
    // the phone has told of it
  }
}

$("wishes").addEventListener("submit", (event) => {
  event.preventDefault();
  begin((each) => each.prepare());
});
$("call").addEventListener("click", () => {
  if (phone && LIVE.includes(phone.state)) phone.hangUp();
  else begin((each) => each.call());
});
$("mute").addEventListener("click", () => {
  phone.mute(!phone.muted);
  $("mute").setAttribute("aria-pressed", String(phone.muted));
});
for (const key of "123456789*0#") {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = key;
  button.disabled = true;
  button.addEventListener("click", () => phone.press(key));
  $("keys").append(button);
}
$("key").addEventListener("change", async () => {
  const key = $("key").value.trim();
  const answer = await fetch("agents", { headers: key ? { Authorization: `Bearer ${key}` } : {} }).catch(() => null);
  if (!answer?.ok) return;
  const { agents } = await answer.json();
  $("agents").replaceChildren(...agents.map(({ name }) => Object.assign(document.createElement("option"), { value: name })));
});
