// Asks the server: the same API as everybody's. Who is signed in is in a cookie that this page cannot read.

const BASE = new URL("../../", import.meta.url);

/** @type {{signed_in: boolean, needs_key: boolean, name: string|null, may_change: boolean, token: string}} */
export let session = { signed_in: false, needs_key: true, name: null, may_change: false, token: "" };
export const changes = new EventTarget(); // "session": somebody has signed in or out

export class Refused extends Error {
  /** @param {number} status @param {any} body */
  constructor(status, body) {
    super(Object.values(body?.fields ?? {})[0] ?? body?.message ?? `HTTP ${status}`);
    this.status = status;
  }
}

/** @param {string} path below the server's address @param {Record<string, any>} [query] */
export function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, String(value));
  }
  return url;
}

async function send(method, path, { query, body, signal } = {}, isFirst = true) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET") headers["X-Console-Token"] = session.token;
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const options = { method, headers, body: sent, signal, credentials: "same-origin", cache: "no-store" };
  const answer = await fetch(address(path, query), /** @type {RequestInit} */ (options));
  const said = await answer.json().catch(() => null);
  signal?.throwIfAborted(); // in the middle of its body, too
  if (answer.status === 403 && said?.error === "forged" && path !== "console/session" && isFirst) {
    const { name, token } = session;
    await look(); // in another page of this browser somebody may have signed in: the cookie is that one's
    if (session.token !== token && session.name === name) return send(method, path, { query, body, signal }, false);
  }
  if (answer.status === 401 && path !== "console/session") await look();
  if (!answer.ok && (answer.status !== 503 || said?.ready === undefined)) throw new Refused(answer.status, said);
  return said;
}

export const get = (path, query, signal) => send("GET", path, { query, signal });
export const agents = () => get("agents").then((said) => said.agents.map((each) => each.name), () => []);
export const post = (path, body) => send("POST", path, { body });

function changed(said) {
  session = said;
  changes.dispatchEvent(new Event("session"));
  return said;
}

/** Asks who is signed in. */
export const look = async () => changed(await send("GET", "console/session"));
export const signIn = async (key) => changed(await send("POST", "console/session", { body: { key } }));
export const signOut = async () => changed(await send("DELETE", "console/session"));
