// Search by text, vector, image, item or code; the address keeps what was asked, so that it can be sent on.

import { $, ApiError, ask, askForToken, count, element, one } from "./common.js";
import { drawBalance, drawCode, drawSizes, table } from "./draw.js";

const MOST_SHOWN = 1000;
const LONGEST_ADDRESS = 2000;
const LONG_TEXT = 120;
const IMAGE_ADDRESS = /^https?:\/\/\S+\.(?:avif|gif|jpe?g|png|svg|webp)(?:\?\S*)?$/i;
const IMAGE_STARTS = { iVBORw0KGgo: "png", "/9j/": "jpeg", UklGR: "webp", R0lGOD: "gif" };
const KINDS = {
  texts: { name: "Text", label: "Text", hint: "Enter searches, Shift+Enter begins a new line." },
  vectors: { name: "Vector", label: "Vector", hint: "Numbers with spaces or commas between them; brackets may stay." },
  images: { name: "Image", label: "Image file", hint: "A PNG, JPEG or WebP file." },
  items: { name: "Item", label: "Id of a row", hint: "Rows like this one; it is not among its own answers." },
  codes: { name: "Code", label: "Code", hint: "Hexadecimal or base64." },
};

let info = null;
let running = null;

function kind() {
  return $("kinds").querySelector("input:checked").value;
}

function makeKinds() {
  const kinds = [...(info.encodes ? [info.encodes] : []), "items", "codes"];
  $("kinds").replaceChildren(
    ...kinds.map((name, position) =>
      element(
        "label",
        {},
        element("input", { type: "radio", name: "kind", value: name, checked: !position, onchange: showKind }),
        KINDS[name].name,
      ),
    ),
  );
  showKind();
}

function showKind() {
  const { label, hint } = KINDS[kind()];
  $("query-label").textContent = label;
  $("query-label").htmlFor = kind() === "images" ? "image" : "query";
  $("hint").textContent = hint;
  $("query").rows = ["texts", "vectors"].includes(kind()) ? 2 : 1;
  $("query").hidden = kind() === "images";
  $("image").hidden = kind() !== "images";
  $("rescore-field").hidden = !["texts", "vectors", "images"].includes(kind()) || $("mode").value === "radius";
}

function showMode() {
  const radius = $("mode").value === "radius";
  $("number-label").textContent = radius ? "Bits" : "Rows";
  $("number").min = radius ? 0 : 1;
  $("number").max = radius ? info.bits : Math.min(MOST_SHOWN, info.limits.max_k);
  showKind();
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

function numbers(text) {
  const words = text.replace(/^[\s[]+|[\s\]]+$/g, "").split(/[\s,;]+/).filter(Boolean);
  const values = words.map(Number);
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (!words.length) throw new ApiError("Give the numbers of a vector.");
  if (bad >= 0) throw new ApiError(`"${words[bad]}" is not a number.`);
  return values;
}

async function queries() {
  if (kind() === "images") {
    const file = $("image").files[0];
    if (!file) throw new ApiError("Choose an image file.");
    return { images: [await base64(file)] };
  }
  const text = kind() === "texts" ? $("query").value : $("query").value.trim();
  if (!text.trim()) throw new ApiError(`Give ${kind() === "items" ? "an id" : `a ${KINDS[kind()].name.toLowerCase()}`}.`);
  return { [kind()]: [kind() === "vectors" ? numbers(text) : text] };
}

function settings() {
  const limit = Math.min(MOST_SHOWN, info.limits.max_k);
  const number = Number($("number").value);
  const asked = $("mode").value === "radius" ? { radius: number, limit } : { k: number };
  const filter = $("filter").value.trim();
  return { ...asked, columns: info.payload.map((column) => column.name), ...(filter && { filter }) };
}

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  $("search").setAttribute("aria-busy", "true");
  $("error").hidden = true;
  $("status").textContent = "Searching…";
  const began = performance.now();
  try {
    if (!info) await load();
    const asked = await queries();
    const encoded = await ask("v1/codes", asked, mine.signal);
    if (encoded.version !== info.version) await showVersion();
    const rescore = !$("rescore-field").hidden && $("rescore").checked;
    const by = asked.items ? asked : rescore ? { logits: encoded.logits, rescore } : { codes: encoded.codes };
    const found = await ask("v1/search", { ...by, ...settings() }, mine.signal);
    show(found, encoded.codes[0], performance.now() - began);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("status").textContent = "";
    $("results").replaceChildren();
    $("query-code").hidden = true;
    $("error").textContent = error instanceof ApiError ? error.message : String(error);
    $("error").hidden = false;
  }
  if (running === mine) $("search").removeAttribute("aria-busy");
  showStatistics();
}

function show(found, queryCode, milliseconds) {
  const [answers] = found.results;
  const duration = `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  const most = answers.length === MOST_SHOWN && $("mode").value === "radius" ? "the nearest " : "";
  $("status").textContent = answers.length
    ? `${most}${one(answers.length, "row")} in ${duration}, version ${found.version} of the index.`
    : `No row was found in version ${found.version} of the index. Ask for a larger radius or without the filter.`;
  $("query-code").replaceChildren(
    element("p", { className: "legend" }, "The query's code: full squares are ones. Bits in which a row differs are coloured and underlined."),
    drawCode(queryCode),
  );
  $("query-code").hidden = false;
  $("results").replaceChildren(...answers.map((answer) => result(answer, queryCode)));
}

function result(answer, queryCode) {
  const id = String(answer.id);
  const score = answer.score === undefined || answer.score === null ? "" : `, score ${answer.score.toFixed(2)}`;
  const similar = element("button", { type: "button", className: "plain" }, "Find similar");
  similar.setAttribute("aria-label", `Find rows similar to ${id}`);
  similar.onclick = () => {
    choose("items");
    $("query").value = id;
    submit();
    $("results-title").focus();
  };
  const head = element(
    "div",
    { className: "result-head" },
    element("h3", {}, id),
    element("span", { className: "distance" }, `${one(answer.distance, "bit")} away${score}`),
    similar,
  );
  const rows = Object.entries(answer.payload).flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, shown(name, value, id)),
  ]);
  const body = element("div", { className: "result-body" });
  if (rows.length) body.append(element("dl", { className: "payload" }, ...rows));
  body.append(drawCode(answer.code, queryCode));
  return element("li", { className: "result" }, head, body);
}

function shown(name, value, id) {
  if (value === null || value === undefined) return "–";
  const type = info.payload.find((column) => column.name === name)?.type ?? "";
  if (typeof value === "string" && /binary/.test(type)) {
    const start = Object.keys(IMAGE_STARTS).find((known) => value.startsWith(known));
    if (!start) return `${count(Math.floor((value.replace(/=+$/, "").length * 3) / 4))} bytes`;
    return element("img", { src: `data:image/${IMAGE_STARTS[start]};base64,${value}`, alt: `${name} of ${id}` });
  }
  if (typeof value === "string" && IMAGE_ADDRESS.test(value)) {
    return element("img", { loading: "lazy", referrerPolicy: "no-referrer", src: value, alt: `${name} of ${id}` });
  }
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > LONG_TEXT ? element("span", { className: "long", title: text }, text) : text;
}

function fact(name, value, className = "") {
  return element("div", { className }, element("dt", {}, name), element("dd", {}, value));
}

function showInfo() {
  $("served").textContent = `${info.index} · version ${info.version} · ${one(info.rows, "row")}`;
  document.title = `${info.index} · distindex`;
  $("facts").replaceChildren(
    fact("Rows", count(info.rows)),
    fact("Distinct codes", count(info.distinct)),
    fact("Bits", count(info.bits)),
    fact("Kind", info.kind),
    fact("Shards", count(info.shards)),
    fact("Version", count(info.version)),
    fact("Created", info.created.replace("T", " ").replace("+00:00", " UTC")),
    fact("Reads", info.encodes ?? "codes only"),
    fact("Payload", info.payload.map((column) => `${column.name} (${column.type})`).join(", ") || "none", "wide"),
    fact("Name", info.index, "wide"),
    fact("Hasher", info.hasher ? info.hasher.uri : "not known", "wide"),
  );
}

function figure(title, ...children) {
  return element("div", { className: "figure" }, element("h3", {}, title), ...children);
}

async function showStatistics() {
  let about;
  try {
    about = await ask("v1/statistics");
  } catch {
    return; // the search says why
  }
  const shares = about.bit_balance;
  const made = [];
  if (shares) {
    const constant = shares.filter((share) => share === 0 || share === 1).length;
    const range = `${Math.min(...shares).toFixed(2)} to ${Math.max(...shares).toFixed(2)}`;
    const same = constant ? ` ${one(constant, "bit")} the same in all rows.` : "";
    made.push(
      figure("Bit balance", drawBalance(shares), element("p", {}, `Ones in ${range} of the rows, by bit; best is 0.5.${same}`)),
      figure("Rows that share a code", drawSizes(about.bucket_sizes)),
    );
  }
  const { latest, latency_ms, stages_ms } = about.searches;
  if (latest) {
    const line = (name, figures) => [name, ...["p50", "p95", "p99"].map((share) => figures[share].toFixed(1))];
    const stages = Object.entries(stages_ms).map(([name, figures]) => line(name, figures));
    made.push(
      figure(
        `Latency of the latest ${one(latest, "search").replace("searchs", "searches")}, ms`,
        table("Latency in milliseconds", ["stage", "p50", "p95", "p99"], [line("all", latency_ms), ...stages]),
      ),
    );
  }
  $("figures").replaceChildren(...made);
}

function choose(name) {
  const choice = $("kinds").querySelector(`input[value="${CSS.escape(name)}"]`);
  if (choice) choice.checked = true;
  showKind();
}

function asAddress() {
  const asked = new URLSearchParams({ by: kind(), query: $("query").value, [$("mode").value]: $("number").value });
  if ($("filter").value.trim()) asked.set("filter", $("filter").value.trim());
  if (!$("rescore-field").hidden && $("rescore").checked) asked.set("rescore", "1");
  return `#${asked}`;
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("by")) return false;
  $("mode").value = asked.has("radius") ? "radius" : "k";
  choose(asked.get("by"));
  showMode();
  $("query").value = asked.get("query") ?? "";
  $("number").value = asked.get("radius") ?? asked.get("k") ?? 10;
  $("filter").value = asked.get("filter") ?? "";
  $("rescore").checked = asked.has("rescore");
  return true;
}

function submit() {
  const address = asAddress();
  if (kind() !== "images" && address.length < LONGEST_ADDRESS && address !== location.hash) {
    history.pushState(null, "", address);
  }
  search();
}

// Another version has taken the place of the one that was shown; what it reads and its bits are the same.
async function showVersion() {
  info = await ask("v1/index");
  showInfo();
}

async function load() {
  info = await ask("v1/index");
  makeKinds();
  showInfo();
  showMode();
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("search").requestSubmit();
});
$("mode").addEventListener("change", () => {
  $("number").value = $("mode").value === "radius" ? Math.round(info.bits / 8) : 10;
  showMode();
});
window.addEventListener("popstate", () => fromAddress() && search());

async function begin() {
  $("error").hidden = true;
  try {
    await load();
    $("access").hidden = true;
    if (fromAddress()) search();
    else showStatistics();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

askForToken(begin);
begin();
