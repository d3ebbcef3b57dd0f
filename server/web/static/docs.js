// The API's description as a page to read and to try it on. The key stays in this page's memory.

const METHODS = ["get", "post", "put", "patch", "delete"];
const MOST_SHOWN = 200_000; // characters of an answer
let key = "";

function make(name, facts = {}, ...children) {
  const node = document.createElement(name);
  for (const [fact, value] of Object.entries(facts)) node[fact] = value;
  node.append(...children);
  return node;
}

function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

// Schemas -------------------------------------------------------------------------------------

function resolved(schema, whole) {
  const parts = schema?.$ref?.split("/").slice(1);
  return parts ? parts.reduce((at, part) => at?.[part], whole) ?? {} : (schema ?? {});
}

function typeOf(schema, whole) {
  const one = resolved(schema, whole);
  if (one.anyOf) return one.anyOf.map((each) => typeOf(each, whole)).join(" or ");
  if (one.enum) return one.enum.map((each) => JSON.stringify(each)).join(" or ");
  if (one.type === "array") return `array of ${typeOf(one.items, whole)}`;
  return one.title && one.properties ? one.title : (one.type ?? "anything");
}

const LIMITS = {
  minimum: "at least", maximum: "at most", exclusiveMinimum: "more than",
  exclusiveMaximum: "less than", minLength: "characters at least", maxLength: "characters at most",
  maxItems: "items at most", maxProperties: "entries at most", pattern: "matches", default: "by default",
};

function limitsOf(schema, whole) {
  const all = [schema, ...(schema.anyOf ?? [])].map((each) => resolved(each, whole));
  const found = all.flatMap((each) =>
    Object.entries(LIMITS)
      .filter(([name]) => each[name] !== undefined && each[name] !== null)
      .map(([name, words]) => `${words} ${JSON.stringify(each[name])}`));
  return [...new Set(found)].join(", ");
}

function table(rows, whole) {
  const cells = rows.map(({ schema, description }) => [
    typeOf(schema, whole), limitsOf(resolved(schema, whole), whole), description ?? resolved(schema, whole).description ?? ""]);
  const columns = ["type", "limits", "what"].map((title, at) => ({ title, at })).filter(({ at }) => cells.some((row) => row[at]));
  const head = make("tr", {}, ...["name", ...columns.map(({ title }) => title)].map((title) => make("th", { scope: "col", textContent: title })));
  const lines = rows.map(({ name, required }, row) =>
    make("tr", {},
      make("th", { scope: "row" }, make("code", { textContent: name }), required ? " *" : ""),
      ...columns.map(({ at }) => prose("td", cells[row][at]))));
  return make("div", { className: "table", tabIndex: 0 },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}

function propertiesOf(schema, whole) {
  const one = resolved(schema, whole);
  return Object.entries(one.properties ?? {}).map(([name, each]) => (
    { name, schema: each, required: one.required?.includes(name) }));
}

function example(schema, whole) {
  const one = resolved(schema, whole);
  if (one.examples?.length) return one.examples[0];
  const wanted = propertiesOf(one, whole).filter((each) => each.required);
  return Object.fromEntries(wanted.map(({ name, schema: each }) => [name, resolved(each, whole).examples?.[0] ?? ""]));
}

// Trying --------------------------------------------------------------------------------------

let fields = 0;

function field(title, node) {
  node.id = `field-${++fields}`;
  return [make("label", { htmlFor: node.id, textContent: title }), node];
}

function trying(method, path, operation, body, whole) {
  const inputs = (operation.parameters ?? []).map((parameter) => ({ parameter, node: make("input", { required: parameter.required ?? false }) }));
  const text = body && make("textarea", { value: JSON.stringify(example(body, whole), null, 2), spellcheck: false });
  const answer = make("div", { role: "status" });
  const form = make("form", { className: "try" },
    ...inputs.flatMap(({ parameter, node }) => field(`${parameter.name} (${parameter.in})`, node)),
    ...(text ? field("body", text) : []),
    make("button", { textContent: "Send" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    const more = {};
    let asked = path;
    for (const { parameter, node } of inputs) {
      if (parameter.in === "path") asked = asked.replace(`{${parameter.name}}`, encodeURIComponent(node.value));
      else if (node.value && parameter.in === "query") query.set(parameter.name, node.value);
      else if (node.value && parameter.in === "header") more[parameter.name] = node.value;
    }
    const url = asked.slice(1) + (query.size ? `?${query}` : "");
    if (text) more["Content-Type"] = "application/json";
    answer.replaceChildren("…");
    try {
      const response = await fetch(url, { method: method.toUpperCase(), headers: headers(more), body: text?.value });
      answer.replaceChildren(...await shown(response));
    } catch (error) {
      answer.replaceChildren(make("p", { className: "bad", textContent: `No answer: ${error.message}` }));
    }
  });
  return make("div", {}, form, answer);
}

async function shown(response) {
  const kind = response.headers.get("Content-Type") ?? "";
  const status = make("p", {
    className: response.ok ? "good" : "bad", textContent: `${response.status} ${response.statusText}`,
  });
  if (kind.startsWith("audio/")) {
    const blob = await response.blob();
    return [status, make("a", { href: URL.createObjectURL(blob), download: "recording.wav", textContent: `${blob.size} bytes` })];
  }
  let text = await response.text();
  if (kind.includes("json")) text = JSON.stringify(JSON.parse(text), null, 2);
  return [status, make("pre", { textContent: text.slice(0, MOST_SHOWN), tabIndex: 0 })];
}

// The page ------------------------------------------------------------------------------------

function prose(name, text, facts = {}) {
  const parts = (text ?? "").split("``");
  return make(name, facts, ...parts.map((part, at) => at % 2 ? make("code", { textContent: part }) : part));
}

// Answers that are alike, as all that tell of an error are, are shown once.
function answersOf(operation) {
  const found = new Map();
  for (const [status, response] of Object.entries(operation.responses ?? {})) {
    const same = JSON.stringify(response);
    if (!found.has(same)) found.set(same, [[], response]);
    found.get(same)[0].push(status);
  }
  return found.values();
}

function operationOf(method, path, operation, whole) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const inside = make("div", { className: "inside" });
  if (operation.description) inside.append(prose("p", operation.description));
  if (operation.parameters?.length) {
    inside.append(make("h2", { textContent: "Parameters" }), table(operation.parameters, whole));
  }
  if (body) inside.append(make("h2", { textContent: "Body" }), table(propertiesOf(body, whole), whole));
  for (const [statuses, response] of answersOf(operation)) {
    inside.append(make("h2", { textContent: `Answer ${statuses.join(", ")}` }), prose("p", response.description));
    const schema = Object.values(response.content ?? {})[0]?.schema;
    const properties = schema ? propertiesOf(schema, whole) : [];
    if (properties.length) inside.append(table(properties, whole));
  }
  inside.append(make("h2", { textContent: "Try it" }), trying(method, path, operation, body, whole));
  return make("details", {},
    make("summary", {},
      make("b", { textContent: method.toUpperCase() }),
      make("code", { textContent: path }),
      prose("span", operation.summary, { className: "what" })),
    inside);
}

async function show() {
  const state = document.getElementById("state");
  let response;
  try {
    response = await fetch("openapi.json", { headers: headers() });
  } catch (error) {
    state.textContent = `The server does not answer: ${error.message}`;
    return;
  }
  if (response.status === 401) {
    state.textContent = key ? "This key is not known here." : "Show an API key to read the description.";
    document.getElementById("key-text").focus();
    return;
  }
  if (!response.ok) {
    state.textContent = `The description cannot be had: ${response.status}`;
    return;
  }
  const whole = await response.json();
  const all = Object.entries(whole.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => operationOf(method, path, item[method], whole)));
  document.getElementById("operations").replaceChildren(...all);
  state.textContent = `${whole.info.title} ${whole.info.version}, ${all.length} operations; * must be given.`;
}

document.getElementById("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("key-text").value.trim();
  show();
});
show();
