// Makes elements. Whatever comes from outside becomes text, never markup: there is no other way here.

import { t } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(node, facts, children) {
  for (const [name, value] of Object.entries(facts)) {
    if ((value ?? false) === false) continue;
    if (name === "class") node.setAttribute("class", value);
    else if (name === "on") for (const [kind, act] of Object.entries(value)) node.addEventListener(kind, act);
    else if (name === "vars") for (const [key, of] of Object.entries(value)) node.style.setProperty(key, of);
    else if (name === "value" || name === "checked" || name === "textContent") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...given(children));
  return node;
}

/** @param {string} tag @param {object} [facts] @param {...any} children nodes, or text @returns {any} */
export function el(tag, facts = {}, ...children) {
  return fill(document.createElement(tag), facts, children);
}

/** What has gone wrong is said in it, aloud, too. */
export const problemLine = () => el("p", { class: "problem", role: "alert" });

/** @param {string} view @param {...any} children */
export const head = (view, ...children) => el("div", { class: "head" }, el("h1", {}, t(`view.${view}`)), children);

/** @param {string} kind as its class says @param {() => any} act @param {...any} children */
export const button = (kind, act, ...children) => el("button", { class: `button ${kind}`, on: { click: act } }, children);

/** @param {string} title @param {...any} children */
export const card = (title, ...children) => el("section", { class: "card" }, el("h2", {}, title), children);

/** A table that may be wider than the page, and is moved by keyboard, too. @param {string} label @param {...any} children */
export const table = (label, ...children) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, children));

/** @param {any} text @param {boolean} [isNumber] */
export const column = (text, isNumber) => el("th", { scope: "col", class: isNumber && "number" }, text);

/** @param {string} tag @param {object} [facts] @param {...any} children @returns {any} */
export function svg(tag, facts = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), facts, children);
}

const given = (children) => children.flat(Infinity).filter((child) => (child ?? false) !== false);

/** Shows these and nothing else. @param {Element} node @param {...any} children */
export function show(node, ...children) {
  node.replaceChildren(...given(children));
  return node;
}

/** Shows these, too, but leaves what is the same where it is, with the focus that it has. @param {Element} node @param {...Node|Node[]|null} children */
export function renew(node, ...children) {
  const wanted = given(children);
  let is = node.firstChild;
  wanted.forEach((child, place) => {
    const old = is;
    if (!old || (!old.isEqualNode(child) && wanted.slice(place + 1).some((later) => old.isEqualNode(later)))) {
      node.insertBefore(child, old);
      return;
    }
    is = old.nextSibling;
    if (old.isEqualNode(child)) return;
    if (isAlike(old, child)) renew(old, [...child.childNodes]);
    else old.replaceWith(child);
  });
  while (is) { const old = is; is = is.nextSibling; old.remove(); }
}

/** Whether only what is inside differs, and nothing there listens for what was. */
function isAlike(is, child) {
  return is instanceof Element && !is.matches("a, button") && is.cloneNode().isEqualNode(child.cloneNode());
}

/** What a select offers: values, or each with what is shown for it. @param {(string|string[])[]} all */
export const options = (all) => all.map((each) => {
  const [value, text = value] = [each].flat();
  return el("option", { value }, text);
});

const SHAPES = {
  now: "M4 13h3l2-7 4 13 3-9 1 3h3",
  calls: "M4 6h16M4 12h16M4 18h10",
  latency: "M4 19V5M4 19h16M8 15l3-5 3 3 5-7",
  phone: "M6 3h3l2 5-2 1a11 11 0 0 0 5 5l1-2 5 2v3a2 2 0 0 1-2 2A15 15 0 0 1 4 5a2 2 0 0 1 2-2z",
  health: "M12 20s-7-4.5-7-10a4 4 0 0 1 7-2.6A4 4 0 0 1 19 10c0 5.5-7 10-7 10z",
  in: "M17 7 7 17M7 9v8h8",
  out: "M7 17 17 7M9 7h8v8",
  play: "M8 5v14l11-7z",
  pause: "M8 5v14M16 5v14",
  close: "M6 6l12 12M18 6 6 18",
  back: "M15 5l-7 7 7 7",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 8V4h4M20 8V4h-4M4 16v4h4M20 16v4h-4",
};

/** @param {keyof SHAPES} name */
export function icon(name) {
  const facts = { viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true" };
  return svg("svg", facts, svg("path", { d: SHAPES[name] }));
}

/** Who has called whom. @param {string} direction @param {object} [facts] */
export const way = (direction, facts) => el("span", { class: `way ${direction}`, ...facts }, icon(direction === "inbound" ? "in" : "out"));

/** Asks before something is done that ends calls. @returns {Promise<boolean>} */
export function ask(title, text) {
  return new Promise((answer) => {
    const dialog = el("dialog", { class: "dialog", "aria-labelledby": "ask-title" },
      el("form", { method: "dialog" },
        el("h2", { id: "ask-title" }, title), el("p", {}, text),
        el("div", { class: "row end" },
          el("button", { class: "button", value: "no" }, t("cancel")),
          el("button", { class: "button danger", value: "yes" }, title))));
    dialog.addEventListener("close", () => { answer(dialog.returnValue === "yes"); dialog.remove(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
