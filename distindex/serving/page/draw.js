// Codes as bits, and figures, as SVG and tables. Text goes in as text nodes only.

import { element } from "./common.js";

const SVG = "http://www.w3.org/2000/svg";
const PER_LINE = 32;
const CELL = 8;
const STEP = 10;
const LINE = 14;
const BYTE_GAP = 3;

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Bit j of a code is bit j % 8 of byte j / 8, as everywhere in distindex.
export function bitsOf(hex) {
  const bits = [];
  for (let at = 0; at < hex.length; at += 2) {
    const byte = parseInt(hex.slice(at, at + 2), 16);
    for (let bit = 0; bit < 8; bit++) bits.push((byte >> bit) & 1);
  }
  return bits;
}

export function drawCode(hex, queryHex) {
  const bits = bitsOf(hex);
  const query = queryHex ? bitsOf(queryHex) : bits;
  const perLine = Math.min(PER_LINE, bits.length);
  const width = perLine * STEP + (perLine / 8 - 1) * BYTE_GAP;
  const height = Math.ceil(bits.length / perLine) * LINE;
  const paths = { one: "", zero: "", "differing-one": "", "differing-zero": "", "differing-mark": "" };
  const differing = [];
  bits.forEach((bit, position) => {
    const inLine = position % perLine;
    const x = inLine * STEP + Math.floor(inLine / 8) * BYTE_GAP + 1;
    const y = Math.floor(position / perLine) * LINE + 1;
    const square = `M${x} ${y}h${CELL}v${CELL}h${-CELL}z`;
    const differs = bit !== query[position];
    paths[(differs ? "differing-" : "") + (bit ? "one" : "zero")] += square;
    if (differs) {
      differing.push(position);
      paths["differing-mark"] += `M${x} ${y + CELL + 1.5}h${CELL}v2h${-CELL}z`;
    }
  });
  const drawn = svg("svg", { class: "code", viewBox: `0 0 ${width} ${height}`, role: "img" });
  const compared = queryHex
    ? `, ${differing.length ? `differs from the query in bits ${differing.join(", ")}` : "equal to the query"}`
    : "";
  drawn.setAttribute("aria-label", `Code ${hex}${compared}`);
  for (const [name, path] of Object.entries(paths)) if (path) drawn.append(svg("path", { class: name, d: path }));
  return element("div", { className: "code-box" }, drawn, element("div", { className: "code-hex" }, hex));
}

export function drawBalance(shares) {
  const drawn = svg("svg", { class: "balance", viewBox: `0 0 ${shares.length} 1`, preserveAspectRatio: "none" });
  drawn.setAttribute("aria-hidden", "true");
  shares.forEach((share, bit) =>
    drawn.append(svg("rect", { class: "bar", x: bit + 0.1, width: 0.8, y: 1 - share, height: share })),
  );
  drawn.append(svg("line", { class: "half", x1: 0, x2: shares.length, y1: 0.5, y2: 0.5 }));
  return drawn;
}

export function table(caption, heads, rows) {
  const cell = (content, position) =>
    position ? element("td", {}, content) : element("th", { scope: "row" }, content);
  return element(
    "table",
    { "aria-label": caption },
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
  );
}

export function drawSizes(sizes) {
  const count = (number) => number.toLocaleString("en");
  const most = Math.max(...sizes.map((size) => size.codes));
  const made = table(
    "Rows that share a code",
    ["rows of a code", "codes"],
    sizes.map((size) => [
      size.fewest === size.most ? count(size.fewest) : `${count(size.fewest)}–${count(size.most)}`,
      count(size.codes),
    ]),
  );
  made.querySelector("thead tr").append(element("td", { className: "share" }));
  made.querySelectorAll("tbody tr").forEach((row, at) => {
    const bar = svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(svg("rect", { class: "bar", x: 0, y: 0, height: 1, width: (100 * sizes[at].codes) / most }));
    row.append(element("td", { className: "share" }, bar));
  });
  return made;
}
