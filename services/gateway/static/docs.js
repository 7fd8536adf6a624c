// The API's page: reads /openapi.json and shows groups, operations and schemas; sends requests with the caller's token.
"use strict";

let api = { paths: {}, components: { schemas: {} } };
const METHODS = ["get", "post", "put", "patch", "delete", "head"];
const TOKEN = "atelier-token";
// Names of the task types that this installation serves; null until a token was given that it answers to.
let served = null;
const $ = (id) => document.getElementById(id);

// Every text goes in as text: nothing of the document or of an answer is ever read as markup.
function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// `code` in descriptions is the one mark that comments of the contracts use.
function prose(text) {
  return (text || "").split(/`([^`]+)`/).map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

const nameOf = (ref) => ref.split("/").pop();
const resolve = (schema) => (schema && schema.$ref ? api.components.schemas[nameOf(schema.$ref)] || {} : schema || {});
const isNull = (schema) => schema.type === "null";

function alternatives(schema) {
  const own = resolve(schema);
  const options = own.anyOf || own.oneOf;
  return options ? options.filter((one) => !isNull(one)) : [schema];
}

function typeNode(schema) {
  const box = make("span", { class: "type" });
  const add = (one) => {
    if (one.$ref) box.append(make("a", { href: `#schema-${nameOf(one.$ref)}` }, nameOf(one.$ref)));
    else if (one.anyOf || one.oneOf) (one.anyOf || one.oneOf).forEach((each, at) => { if (at) box.append(" | "); add(each); });
    else if (one.type === "array") { box.append("array<"); add(one.items || {}); box.append(">"); }
    else if (one.const !== undefined) box.append(JSON.stringify(one.const));
    else if (one.type === "object" && one.additionalProperties && one.additionalProperties !== true) {
      box.append("map<"); add(one.additionalProperties); box.append(">");
    } else box.append(one.format ? `${one.type} (${one.format})` : one.type || "any");
  };
  add(schema);
  return box;
}

function limits(schema) {
  const inner = alternatives(schema)[0] || {};
  const found = [];
  const say = (name, text) => { if (inner[name] !== undefined) found.push(`${text} ${inner[name]}`); };
  if (Math.abs(inner.minimum) < 2 ** 31 - 1 || inner.type === "number") say("minimum", "≥");
  if (Math.abs(inner.maximum) < 2 ** 31 - 1 || inner.type === "number") say("maximum", "≤");
  say("exclusiveMinimum", ">"); say("exclusiveMaximum", "<");
  say("minLength", "at least"); say("maxLength", "at most"); say("minItems", "items ≥"); say("maxItems", "items ≤");
  if (inner.enum && !schema.$ref) found.push(`one of ${inner.enum.join(", ")}`);
  if (schema.readOnly) found.push("read only");
  const line = found.join(" · ");
  const parts = [line];
  if (schema.default !== undefined) parts.push(line ? " · default " : "default ", make("code", {}, JSON.stringify(schema.default)));
  return line || parts.length > 1 ? make("span", { class: "limits" }, ...parts) : null;
}

function memberTable(schema) {
  const own = resolve(schema);
  if (own.enum) return make("p", { class: "text" }, ...own.enum.flatMap((one) => [make("code", {}, String(one)), " "]));
  if (!own.properties) return make("p", { class: "text none" }, typeNode(own));
  const required = new Set(own.required || []);
  const rows = Object.entries(own.properties).map(([name, one]) =>
    make("tr", {},
      make("td", { class: "member" }, name, required.has(name) ? make("i", { title: "required" }, " *") : null),
      make("td", {}, typeNode(one), " ", limits(one), one.description ? make("p", {}, ...prose(one.description)) : null)));
  return make("table", {}, make("tbody", {}, ...rows));
}

function taskTypeOf(schema) {
  const member = (resolve(schema).properties || {}).task_type || {};
  return String(member.const || member.default || (member.enum && member.enum.length === 1 ? member.enum[0] : "") || "");
}

// Variants of task types that are not served here stay readable and say so.
function markServed(place) {
  place.querySelectorAll(".chip[data-type]").forEach((chip) => {
    const off = Boolean(served && chip.dataset.type && !served.includes(chip.dataset.type));
    chip.classList.toggle("off", off);
    chip.title = off ? `${chip.dataset.type} is not served here` : "";
  });
}

// A schema, or one of the variants of a union at a time; `chosen` is told which.
function schemaView(schema, chosen = () => {}, chipsPlace = null) {
  const options = alternatives(schema).filter((one) => one.$ref);
  const list = schema.type === "array" ? schema.items : null;
  if (list) return make("div", {}, make("p", { class: "text none" }, "A list of:"), schemaView(list, chosen, chipsPlace));
  if (options.length < 2) { chosen(schema); return memberTable(options[0] || schema); }
  const place = make("div");
  const chips = options.map((one) => make("button", { class: "chip", type: "button", "aria-pressed": "false",
    "data-type": taskTypeOf(one), on: { click: () => show(one) } }, nameOf(one.$ref)));
  const show = (one) => {
    chips.forEach((chip, at) => chip.setAttribute("aria-pressed", String(options[at] === one)));
    place.replaceChildren(memberTable(one));
    chosen(one);
  };
  const variants = make("div", { class: "variants" }, ...chips);
  const box = make("div", {}, chipsPlace ? null : variants, place);
  if (chipsPlace) chipsPlace.append(variants);
  markServed(variants);
  show(options[0]);
  return box;
}

function example(schema, name = "", depth = 0) {
  const own = resolve(schema);
  if (own.const !== undefined) return own.const;
  if (name === "origin_instance") return "docs";
  if (own.default !== undefined) return own.default;
  if (own.enum) return own.enum[0];
  const inner = own.anyOf || own.oneOf;
  if (inner) return example(inner.find((one) => !isNull(one)) || {}, name, depth + 1);
  if (own.type === "array") return [];
  if (own.type === "integer" || own.type === "number") return Math.max(own.minimum > -(2 ** 31) ? own.minimum : 0, 0);
  if (own.type === "boolean") return false;
  if (own.type === "string") return name === "prompt" ? "a red dress" : own.format === "date-time" ? new Date().toISOString() : "string";
  if (own.properties && depth < 4) {
    const required = new Set(own.required || []);
    const entries = Object.entries(own.properties).filter(([key, one]) => required.has(key) || one.const !== undefined
      || (one.default !== undefined && one.default !== null && !required.size));
    return Object.fromEntries(entries.map(([key, one]) => [key, example(one, key, depth + 1)]));
  }
  return {};
}

// JSON with line breaks. Reading and writing it anew would do the same and round whole numbers of 64 bits, such as seeds.
function indented(text) {
  const parts = text.match(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/g) || [];
  let depth = 0, out = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  parts.forEach((part, at) => {
    if (part === "{" || part === "[") {
      depth += 1;
      out += part + ("}]".includes(parts[at + 1]) ? "" : line());
    } else if (part === "}" || part === "]") {
      depth -= 1;
      out += ("{[".includes(parts[at - 1]) ? "" : line()) + part;
    } else out += part === "," ? part + line() : part === ":" ? ": " : part;
  });
  return out;
}

function highlighted(text) {
  const out = document.createDocumentFragment();
  const token = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  let last = 0;
  for (const match of text.matchAll(token)) {
    out.append(text.slice(last, match.index));
    const kind = match[1] ? (match[2] ? "k" : "s") : match[3] ? "l" : "n";
    out.append(make("span", { class: kind }, match[1] || match[0]), match[2] || "");
    last = match.index + match[0].length;
  }
  out.append(text.slice(last));
  return out;
}

function parameterField(one) {
  const schema = resolve(one.schema);
  const choices = schema.enum || (schema.type === "boolean" ? ["true", "false"] : null);
  const input = choices
    ? make("select", {}, make("option", { value: "" }, ""), ...choices.map((value) => make("option", { value }, value)))
    : make("input", { placeholder: schema.default !== undefined ? String(schema.default) : schema.format || schema.type || "", spellcheck: false });
  return { one, input, node: make("label", {}, `${one.name}${one.required ? " *" : ""}`, input) };
}

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

class Trial {
  constructor(method, path, operation) {
    this.method = method; this.path = path; this.operation = operation;
    const content = (operation.requestBody || {}).content || {};
    this.kind = Object.keys(content)[0] || "";
    this.fields = (operation.parameters || []).map(parameterField);
    this.editor = this.kind === "application/json" ? make("textarea", { rows: "10", spellcheck: false, "aria-label": "Request body" }) : null;
    this.file = this.kind.startsWith("multipart") ? make("input", { type: "file", accept: "image/*", "aria-label": "File" }) : null;
    this.button = make("button", { class: "send", type: "submit" }, "Send");
    this.stop = make("button", { class: "plain", type: "button", hidden: true, on: { click: () => this.abort.abort() } }, "Stop");
    this.outcome = make("span", { class: "outcome", role: "status" });
    this.answer = make("div");
    this.results = make("div");
    this.variants = make("div");
  }

  fill(schema) { if (this.editor) this.editor.value = JSON.stringify(example(schema), null, 2); }

  view() {
    return make("form", { class: "try", on: { submit: (event) => { event.preventDefault(); this.send(); } } },
      make("h3", {}, "Try it"), this.variants,
      this.fields.length ? make("div", { class: "fields" }, ...this.fields.map((field) => field.node)) : null,
      this.editor ? make("label", { class: "content" }, "body", this.editor) : null,
      this.file ? make("label", { class: "content" }, "file", this.file) : null,
      make("div", { class: "row" }, this.button, this.stop, this.outcome), this.results, this.answer);
  }

  request() {
    let path = this.path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { one, input } of this.fields) {
      const value = input.value.trim();
      if (one.in === "path") path = path.replace(`{${one.name}}`, encodeURIComponent(value).replaceAll("%2F", "/"));
      else if (value && one.in === "query") query.append(one.name, value);
      else if (value && one.in === "header") headers[one.name] = value;
    }
    if (this.operation.security) Object.assign(headers, authorization());
    const options = { method: this.method.toUpperCase(), headers, signal: this.abort.signal };
    if (this.editor) { headers["Content-Type"] = "application/json"; options.body = this.editor.value; }
    if (this.file) { const form = new FormData(); if (this.file.files[0]) form.append("file", this.file.files[0]); options.body = form; }
    return [path + (query.size ? `?${query}` : ""), options];
  }

  async send() {
    const lacking = this.fields.find(({ one, input }) => one.in === "path" && !input.value.trim());
    if (lacking) { lacking.input.focus(); this.outcome.textContent = `${lacking.one.name} is needed`; return; }
    this.abort = new AbortController();
    this.button.disabled = true;
    this.answer.replaceChildren();
    this.results.replaceChildren();
    this.outcome.textContent = "…";
    const started = performance.now();
    try {
      const answer = await fetch(...this.request());
      const mood = answer.ok ? "ok" : "bad";
      const told = () => this.outcome.replaceChildren(make("span", { class: mood }, `${answer.status} ${answer.statusText}`),
        ` · ${Math.round(performance.now() - started)} ms · ${answer.headers.get("x-request-id") || ""}`);
      told();
      await this.show(answer);
      told();
    } catch (error) {
      if (error.name !== "AbortError") this.outcome.replaceChildren(make("span", { class: "bad" }, `No answer: ${error.message}`));
    } finally {
      this.button.disabled = false;
      this.stop.hidden = true;
    }
  }

  async show(answer) {
    const kind = answer.headers.get("content-type") || "";
    if (kind.startsWith("text/event-stream")) return this.follow(answer);
    if (kind.startsWith("image/") || kind.startsWith("video/")) {
      const url = URL.createObjectURL(await answer.blob());
      const image = make("img", { class: "shown", alt: "The answer", src: url });
      image.addEventListener("load", () => URL.revokeObjectURL(url));
      this.answer.replaceChildren(image);
      return undefined;
    }
    const text = await answer.text();
    if (text) this.answer.replaceChildren(make("pre", {}, kind.includes("json") ? highlighted(indented(text)) : text));
    if (answer.ok && kind.includes("json")) await this.offer(JSON.parse(text));
    return undefined;
  }

  // Of a task: its pictures once it has some, else a button that follows it to them.
  async offer(task) {
    if (!task || typeof task.id !== "string" || !task.task_type) return;
    if (["PENDING", "EXECUTING"].includes(task.status)) {
      const follow = make("button", { class: "send", type: "button", on: { click: () => this.watch(task.id) } }, "Follow it to its result");
      this.results.replaceChildren(follow);
    } else await this.showResults(task);
  }

  async watch(id) {
    this.abort = new AbortController();
    this.results.replaceChildren();
    try {
      const answer = await fetch(`/api/v1/tasks/${encodeURIComponent(id)}/events`, { headers: authorization(), signal: this.abort.signal });
      await this.show(answer);
    } catch (error) {
      if (error.name !== "AbortError") this.outcome.replaceChildren(make("span", { class: "bad" }, `No answer: ${error.message}`));
    } finally { this.stop.hidden = true; }
  }

  async showResults(task) {
    const paths = Object.entries(task).filter(([name]) => /^result_\w+_paths?$/.test(name)).flatMap(([, value]) => value || []).filter(Boolean);
    this.results.replaceChildren();
    for (const path of paths) {
      const address = `/api/v1/storage/images/${path.split("/").map(encodeURIComponent).join("/")}`;
      const file = await fetch(address, { headers: authorization() });
      const kind = file.headers.get("content-type") || "";
      if (!file.ok || !/^(image|video)\//.test(kind)) continue;
      const url = URL.createObjectURL(await file.blob());
      this.results.append(kind.startsWith("video/") ? make("video", { class: "shown", controls: true, src: url })
        : make("img", { class: "shown", alt: "The result", src: url }), make("p", { class: "limits" }, path));
    }
  }

  async follow(answer) {
    const log = make("pre");
    const preview = make("img", { class: "shown", alt: "Preview", hidden: true });
    // Half a picture is none: what the browser cannot show is not shown as broken.
    preview.addEventListener("error", () => { preview.hidden = true; });
    preview.addEventListener("load", () => { preview.hidden = false; });
    this.answer.replaceChildren(preview, log);
    this.stop.hidden = false;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "));
        if (!data) continue;
        let text = data.slice(6);
        const event = JSON.parse(text);
        if (event.preview) { preview.src = `data:image/jpeg;base64,${event.preview}`; text = text.replace(event.preview, "…"); }
        log.append(highlighted(indented(text)), "\n");
        log.scrollTop = log.scrollHeight;
        if (event.final && event.task) {
          await this.showResults(event.task);
          if (this.results.children.length) preview.remove();
        }
      }
    }
  }
}

function answersView(operation) {
  const rows = Object.entries(operation.responses || {}).map(([code, answer]) => {
    const content = Object.values(answer.content || {})[0];
    return make("div", {}, make("span", { class: `code ${code < 400 ? "ok" : "bad"}` }, code),
      make("span", {}, answer.description || "", content && content.schema && code >= 400 ? " " : null,
        content && content.schema && code >= 400 ? typeNode(content.schema) : null));
  });
  return make("div", { class: "answers" }, ...rows);
}

function operationBody(method, path, operation) {
  const trial = new Trial(method, path, operation);
  const box = make("div", { class: "body" }, make("p", { class: "text" }, ...prose(operation.description)), trial.view());
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const rows = parameters.map((one) => make("tr", {},
      make("td", { class: "member" }, one.name, one.required ? make("i", { title: "required" }, " *") : null),
      make("td", {}, typeNode(one.schema), " ", make("span", { class: "limits" }, one.in), " ", limits(one.schema),
        one.description ? make("p", {}, ...prose(one.description)) : null)));
    box.append(make("h3", {}, "Parameters"), make("table", {}, make("tbody", {}, ...rows)));
  }
  const content = Object.values((operation.requestBody || {}).content || {})[0];
  if (content) box.append(make("h3", {}, "Request"), schemaView(content.schema, (one) => trial.fill(one), trial.variants));
  const good = Object.values(((operation.responses || {})["200"] || {}).content || {})[0];
  box.append(make("h3", {}, "Answers"), answersView(operation));
  if (good && good.schema && (good.schema.$ref || good.schema.anyOf || good.schema.items)) box.append(make("h3", {}, "Answer 200"), schemaView(good.schema));
  return box;
}

// Bodies are made when they are first opened: there are hundreds of members.
function lazily(node, build) {
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(build()); });
  return node;
}

function pathNode(path) {
  return make("span", { class: "path" }, ...path.split(/(\{[^}]+\})/).filter(Boolean).map((part) => (part[0] === "{" ? make("b", {}, part) : part)));
}

function operationView({ method, path, operation, id }) {
  const head = make("summary", {}, make("span", { class: `method ${method}` }, method), pathNode(path), make("span", { class: "name" }, operation.summary || ""));
  const node = make("details", { class: "op", id, "data-find": `${method} ${path} ${operation.summary} ${operation.operationId}`.toLowerCase() }, head);
  return lazily(node, () => operationBody(method, path, operation));
}

function modelView(name) {
  const schema = api.components.schemas[name];
  const head = make("summary", {}, make("span", { class: "path" }, name), make("span", { class: "name" }, ...prose(schema.description)));
  const node = make("details", { class: "model", id: `schema-${name}`, "data-find": name.toLowerCase() }, head);
  return lazily(node, () => make("div", { class: "body" }, make("p", { class: "text" }, ...prose(schema.description)), schemaView(schema)));
}

function groups() {
  const found = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((one) => item[one])) {
      const operation = item[method];
      const group = (operation.tags || ["other"])[0];
      if (!found.has(group)) found.set(group, []);
      found.get(group).push({ method, path, operation, id: `op-${operation.operationId}` });
    }
  }
  return new Map([...found].sort(([one], [other]) => (other === "tasks") - (one === "tasks"))); // what most come for
}

function draw() {
  const main = $("main"), contents = $("contents");
  main.replaceChildren(make("div", { class: "lead" }, make("h1", {}, `${api.info.title} API`), make("p", {}, api.info.description || "", " ",
    make("a", { href: "/openapi.json" }, "openapi.json")),
    make("p", { id: "served", role: "status" }),
    make("p", {}, ...prose("Requests need a bearer token: `atelier token` prints one on the machine of the mesh (with `--data` where its folder is not `.data`); elsewhere ask who runs it. Paste it above; it stays in this tab."))));
  tellServed();
  contents.replaceChildren();
  for (const [group, operations] of groups()) {
    main.append(make("section", { "aria-label": group }, make("h2", { id: `group-${group}` }, group), ...operations.map(operationView)));
    contents.append(make("h2", {}, group), ...operations.map(({ method, id, operation }) =>
      make("a", { href: `#${id}`, "data-find": `${operation.summary}`.toLowerCase() }, make("span", { class: `method ${method}` }, method), operation.summary || id)));
  }
  const names = Object.keys(api.components.schemas);
  main.append(make("section", { "aria-label": "Schemas" }, make("h2", { id: "group-schemas" }, "Schemas"), ...names.map(modelView)));
  contents.append(make("h2", {}, "Schemas"), ...names.map((name) => make("a", { href: `#schema-${name}`, "data-find": name.toLowerCase() }, name)));
}

function goTo() {
  const node = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  document.querySelectorAll(".contents a").forEach((link) => link.classList.toggle("here", link.hash === location.hash && Boolean(location.hash)));
  $("contents").classList.remove("open");
  if (!node) return;
  if (node.tagName === "DETAILS") node.open = true;
  node.scrollIntoView();
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  document.querySelectorAll("[data-find]").forEach((node) => { node.hidden = !node.dataset.find.includes(wanted); node.style.setProperty("display", node.hidden ? "none" : ""); });
  document.querySelectorAll(".contents h2").forEach((head) => {
    let some = false;
    for (let next = head.nextElementSibling; next && next.tagName === "A"; next = next.nextElementSibling) some ||= !next.hidden;
    head.hidden = !some;
  });
  document.querySelectorAll("main section").forEach((section) => { section.hidden = ![...section.children].some((node) => node.dataset.find && !node.hidden); });
}

// What the token says of itself; only the gateway knows whether it holds.
function tokenState(token) {
  if (!token) return "";
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    if (claims.exp * 1000 < Date.now()) return "expired";
    return claims.tenant || claims.sub || "set";
  } catch { return "not a JWT"; }
}

function keepToken() {
  const token = $("token").value.trim().replace(/^Bearer\s+/i, "");
  if (token) sessionStorage.setItem(TOKEN, token); else sessionStorage.removeItem(TOKEN);
  $("token-state").textContent = tokenState(token);
  askServed();
}

let asking = 0;
async function askServed() {
  const mine = ++asking;
  let found = null;
  const token = sessionStorage.getItem(TOKEN);
  if (token && !["expired", "not a JWT"].includes(tokenState(token))) {
    try {
      const answer = await fetch("/api/v1/catalog", { headers: authorization() });
      if (answer.ok) found = (await answer.json()).task_types;
    } catch { /* The page serves to read without it. */ }
  }
  if (mine !== asking) return;
  served = found;
  tellServed();
  markServed(document);
}

function tellServed() {
  const place = $("served");
  if (!place) return;
  place.replaceChildren(...prose(served ? `This installation serves ${served.map((name) => `\`${name}\``).join(", ")}.`
    : "With a token, this page says which task types the installation serves."));
}

async function start() {
  $("token").value = sessionStorage.getItem(TOKEN) || "";
  keepToken();
  $("token").addEventListener("input", keepToken);
  $("token-form").addEventListener("submit", (event) => event.preventDefault());
  $("find").addEventListener("input", (event) => find(event.target.value));
  $("menu").addEventListener("click", () => $("menu").setAttribute("aria-expanded", String($("contents").classList.toggle("open"))));
  window.addEventListener("hashchange", goTo);
  try {
    api = await (await fetch("/openapi.json")).json();
  } catch (error) {
    $("main").replaceChildren(make("p", { class: "loading" }, `The document could not be read: ${error.message}`));
    return;
  }
  $("title").textContent = api.info.title;
  $("version").textContent = api.info.version;
  draw();
  goTo();
}

start();
