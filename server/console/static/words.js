// Every word that is shown, in the reader's language. Another language is one more file, and its name here.

import en from "./en.js";

const LANGUAGES = { en: "English", es: "Español" };
let words = en;
export let language = "en";

/** @param {string} name @param {Record<string, string|number>} [facts] */
export function t(name, facts = {}) {
  const text = words[name] ?? en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, key) => (key in facts ? String(facts[key]) : whole));
}

/** A word of the server's (a reason, a state), translated as far as it is known. */
export const word = (kind, value) => (value === null || value === undefined ? "" : (words[`${kind}.${value}`] ?? en[`${kind}.${value}`] ?? String(value)));

/** All of a kind that there is a word for. @param {string} kind */
export const values = (kind) => Object.keys(en).filter((name) => name.startsWith(`${kind}.`)).map((name) => name.slice(kind.length + 1));

export const languages = Object.entries(LANGUAGES);

/** @param {string} [wanted] */
export async function speak(wanted) {
  const asked = [wanted, ...navigator.languages].map((each) => each?.slice(0, 2).toLowerCase());
  const found = asked.find((each) => each !== undefined && each in LANGUAGES) ?? "en";
  const other = found !== "en" && await import(`./${found}.js`).catch(() => 0);
  [words, language] = other ? [other.default, found] : [en, "en"];
  document.documentElement.lang = language;
}

const locale = () => navigator.languages.find((each) => each.startsWith(language)) ?? language;
const format = (options) => new Intl.DateTimeFormat(locale(), options);
const moment = (seconds) => new Date(seconds * 1000);

export const time = (seconds) => format({ hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(moment(seconds));
export function when(seconds) {
  const at = moment(seconds);
  const today = at.toDateString() === new Date().toDateString();
  return today ? time(seconds) : format({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }).format(at);
}
export const whole = (seconds) => format({ dateStyle: "medium", timeStyle: "medium" }).format(moment(seconds));

export function length(seconds) {
  const all = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(all / 60) % 60, all % 60].map((part) => String(part).padStart(2, "0"));
  return all >= 3600 ? `${Math.floor(all / 3600)}:${parts.join(":")}` : parts.join(":");
}

export const number = (value, digits = 0) => new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
export const money = (usd) => (typeof usd === "number" ? `$${number(usd, usd < 0.1 ? 4 : 2)}` : t("unknown"));
export const ms = (value) => (value === null || value === undefined ? "–" : value >= 1000 ? `${number(value / 1000, 2)} s` : `${number(value, value > 0 && value < 10 ? 1 : 0)} ms`);
export const at = (seconds) => `${length(Math.floor(seconds))}.${Math.floor((seconds % 1) * 10)}`;
