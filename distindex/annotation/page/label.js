// One item or pair after another, answered by keys. An answer is kept in this browser until the service has it on disk.

import { $, ApiError, ask, askForToken, authorization, count, element, one } from "./common.js";

const NAME = "distindex-annotator";
const UNSENT = "distindex-unsent-answer:";
const SHORTCUTS = "distindex-shortcuts";
const KEYS = [..."123456789abcdefghijklmnopqrtvwxyz"];
const RETRY_MS = 1000;
const LOOK_MS = 3000;
const FEW = 9;
const SMALL_PIXELS = 160;
const PAIR_ANSWERS = [
  { name: "Same", similar: true },
  { name: "Different", similar: false },
];

let task = null;
// The items that are shown; null where none is left, undefined before the first answer.
let shown;
let chosen = new Set();
let busy = false;
let looking = null;

const annotator = () => sessionStorage.getItem(NAME);
const unsent = () => UNSENT + annotator();
const later = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function complain(text) {
  $("error").hidden = !text;
  // What is said already is not said again.
  if ($("error").textContent !== text) $("error").textContent = text;
}

// Ask until there is an answer: the service may be starting again, and what is asked so means the same twice.
async function insist(path, body) {
  for (;;) {
    try {
      const answer = await ask(path, body);
      complain("");
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError) || (error.status && error.status < 500)) throw error;
      const kept = path === "v1/vote" ? " Your answer is kept here and sent again." : " Trying again.";
      complain(error.message + kept);
      await later(RETRY_MS);
    }
  }
}

// One request at a time: a key that is pressed meanwhile would answer what is not seen yet.
async function perform(work) {
  if (busy) return;
  busy = true;
  clearTimeout(looking);
  $("work").setAttribute("aria-busy", "true");
  try {
    await show(await work());
  } catch (error) {
    complain(error.message);
  } finally {
    busy = false;
    $("work").removeAttribute("aria-busy");
  }
}

const idsOf = (items) => items.map((item) => item.id);

async function vote(body) {
  localStorage.setItem(unsent(), JSON.stringify(body));
  try {
    const step = await insist("v1/vote", body);
    localStorage.removeItem(unsent());
    return step;
  } catch (error) {
    if (error.status !== 401) localStorage.removeItem(unsent());
    throw error;
  }
}

function answer(given, said) {
  if (!shown) return;
  perform(async () => {
    const step = await vote({ annotator: annotator(), ids: idsOf(shown), ...given });
    return { ...step, said: `Saved: ${said}.` };
  });
}

function skip() {
  if (!shown) return;
  perform(async () => ({
    ...(await insist("v1/skip", { annotator: annotator(), ids: idsOf(shown) })),
    said: "Skipped.",
  }));
}

function undo() {
  perform(async () => {
    const step = await ask("v1/undo", { annotator: annotator() });
    complain("");
    const back = step.taken_back;
    const words = back === null ? "a skip" : typeof back === "boolean" ? PAIR_ANSWERS[back ? 0 : 1].name : back.join(", ");
    return { ...step, said: `Taken back: ${words}.` };
  });
}

function next(again = false) {
  perform(() => insist("v1/next", { annotator: annotator(), again }));
}

async function show(step) {
  const { progress } = step;
  if (!task || progress.round !== task.round || progress.classes !== task.classes.length) await loadTask();
  const same = shown !== undefined && JSON.stringify(shown) === JSON.stringify(step.shown);
  shown = step.shown;
  if (step.said) $("status").textContent = step.said;
  $("bar").max = Math.max(1, progress.asked);
  $("bar").value = progress.answered;
  const what = task.ask === "pairs" ? "pair" : "item";
  $("answered").textContent = `${count(progress.answered)} of ${one(progress.asked, what)} answered, ${count(progress.yours)} by you`;
  $("work").hidden = false;
  if (!same) {
    chosen = new Set(Array.isArray(step.taken_back) ? step.taken_back : []);
    $("find").value = "";
    for (const picture of $("shown").querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    $("shown").className = task.ask === "pairs" ? "pair" : "";
    $("shown").replaceChildren(...(shown ?? []).map(draw));
  }
  $("shown").hidden = !shown;
  $("over").hidden = !!shown;
  $("classes").hidden = $("skip").hidden = !shown;
  $("save").hidden = !shown || !task.multi || task.ask === "pairs";
  showClasses();
  if (shown) {
    $("title").textContent = task.ask === "pairs" ? "Are these two alike?" : `Item ${shown[0].id}`;
  } else {
    showOver(progress);
    looking = setTimeout(() => (document.hidden ? lookLater() : next()), LOOK_MS);
  }
  if (!same) {
    $("title").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function lookLater() {
  document.addEventListener("visibilitychange", () => next(), { once: true });
}

function showOver(progress) {
  const left = [];
  if (progress.skipped) left.push(`You have skipped ${count(progress.skipped)}.`);
  if (progress.elsewhere) left.push(`Others are looking at ${count(progress.elsewhere)}.`);
  if (progress.for_others) left.push(`${count(progress.for_others)} that you have answered need the answer of another.`);
  const done = progress.answered === progress.asked;
  if (done && task.round) {
    left.push("`distindex label run` trains on the answers. What it chooses next appears here by itself.");
  }
  $("title").textContent = done ? "All is answered. Thank you." : "Nothing is left for you now.";
  $("left").replaceChildren(...left.map((line) => element("li", {}, line)));
  $("again").hidden = !progress.skipped;
}

function draw(item) {
  const made = element("article", { className: "item" });
  if (task.ask === "pairs") made.append(element("h3", {}, `Item ${item.id}`));
  if (item.image) drawImage(item.id, made);
  if (item.text !== null) made.append(element("div", { className: "text" }, item.text));
  const payload = Object.entries(item.payload);
  if (payload.length) {
    const rows = payload.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value ?? "–")]);
    made.append(element("dl", { className: "payload" }, ...rows));
  }
  return made;
}

async function drawImage(id, place) {
  const picture = element("img", { alt: `Image of ${id}` });
  place.prepend(picture);
  try {
    const found = await fetch(`v1/image?${new URLSearchParams({ id })}`, { headers: authorization() });
    if (!found.ok) throw new ApiError((await found.json()).error.message);
    picture.onload = () => picture.classList.toggle("small", picture.naturalHeight < SMALL_PIXELS);
    picture.src = URL.createObjectURL(await found.blob());
  } catch (error) {
    picture.replaceWith(element("p", {}, `The image cannot be shown: ${error.message}`));
  }
}

const answers = () => (task.ask === "pairs" ? PAIR_ANSWERS : task.classes.map((name) => ({ name, labels: [name] })));

function choose({ name, labels, similar }) {
  if (similar !== undefined) answer({ similar }, name);
  else if (!task.multi) answer({ labels }, name);
  else {
    if (!chosen.delete(name)) chosen.add(name);
    if (!task.classes.includes(name)) task.classes.push(name);
    $("find").value = "";
    showClasses();
    $("status").textContent = [...chosen].join(", ") || "No label chosen.";
  }
}

function save() {
  if (!shown || $("save").hidden) return;
  if (chosen.size) answer({ labels: [...chosen] }, [...chosen].join(", "));
  else $("status").textContent = "Choose a label first, or skip.";
}

function showClasses() {
  const wanted = $("find").value.trim();
  const all = answers();
  $("find-field").hidden = !shown || task.ask === "pairs" || (!task.open && all.length <= FEW);
  const made = all.map((each, position) => {
    const button = element("button", { type: "button", onclick: () => choose(each) });
    if (task.multi && task.ask === "items") button.setAttribute("aria-pressed", chosen.has(each.name));
    const key = KEYS[position];
    if (key) button.setAttribute("aria-keyshortcuts", key);
    button.append(...(key ? [element("kbd", {}, key), " "] : []), each.name);
    button.hidden = !each.name.toLowerCase().includes(wanted.toLowerCase());
    return button;
  });
  if (task.open && wanted && task.ask === "items" && !all.some((each) => each.name === wanted)) {
    const add = () => choose({ name: wanted, labels: [wanted] });
    made.push(element("button", { type: "button", className: "add", onclick: add }, `Add “${wanted}”`));
  }
  $("classes").replaceChildren(...made);
}

async function loadTask() {
  task = await insist("v1/task");
  $("served").textContent = [task.round ? `Round ${task.round}` : "", annotator()].filter(Boolean).join(" · ");
  $("find-label").textContent = task.open ? "Find or add a label" : "Find a label";
  const { gain } = task;
  $("gain").hidden = !task.round;
  if (!gain) {
    $("gain").textContent = "What answers bring is known when two rounds have been judged.";
    return;
  }
  const sign = gain.gain < 0 ? "−" : "+";
  const judged = gain.held_out ? "on held-out labels" : "on the queries";
  $("gain").textContent =
    `The ${one(gain.answers, gain.pairs ? "answer" : "label")} of round ${gain.round} brought ${sign}${Math.abs(gain.gain).toFixed(3)} of precision: ` +
    `${gain.precision.toFixed(3)} ${judged}.`;
}

function help() {
  $("help").showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("help").open || $("work").hidden) return;
  if (event.target.matches("input, textarea, select") || !$("shortcuts").checked) return;
  if (event.key === "Enter") {
    if (event.target.matches("button") || event.repeat) return;
    save();
    return;
  }
  const act = { s: skip, u: undo, "?": help, "/": () => $("find").focus() }[event.key];
  const position = KEYS.indexOf(event.key);
  const given = !act && shown && position >= 0 ? answers()[position] : null;
  if (!act && !given) return;
  event.preventDefault();
  // A key that is held down answers once.
  if (event.repeat) return;
  if (act) act();
  else choose(given);
});

$("find").addEventListener("input", showClasses);
$("find").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") {
    $("find").value = "";
    showClasses();
    $("title").focus();
  }
  if (event.key !== "Enter") return;
  event.preventDefault();
  if (event.repeat || !$("find").value.trim()) return;
  const wanted = $("find").value.trim().toLowerCase();
  const exact = answers().find((each) => each.name.toLowerCase() === wanted);
  if (exact) choose(exact);
  else $("classes").querySelector("button:not([hidden])")?.click();
});
$("save").addEventListener("click", save);
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("keys").addEventListener("click", help);
$("again").addEventListener("click", () => next(true));
$("shortcuts").checked = localStorage.getItem(SHORTCUTS) !== "off";
$("shortcuts").addEventListener("change", () =>
  localStorage.setItem(SHORTCUTS, $("shortcuts").checked ? "on" : "off"),
);
$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  sessionStorage.setItem(NAME, name);
  localStorage.setItem(NAME, name);
  begin();
});

async function begin() {
  complain("");
  try {
    await loadTask();
  } catch (error) {
    complain(error.message);
    return;
  }
  $("access").hidden = true;
  $("who").hidden = !!annotator();
  if (!annotator()) {
    $("name").value = localStorage.getItem(NAME) ?? "";
    $("name").focus();
    return;
  }
  const left = localStorage.getItem(unsent());
  perform(async () => {
    let said = "";
    if (left) {
      try {
        return { ...(await vote(JSON.parse(left))), said: "Your last answer is saved." };
      } catch (error) {
        if (error.status === 401) throw error;
        said = `Your last answer was not taken: ${error.message}`;
      }
    }
    return { ...(await insist("v1/next", { annotator: annotator() })), said };
  });
}

askForToken(begin);
begin();
