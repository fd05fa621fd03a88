// What the pages share: the elements of a page, and requests with a token. Text goes in as text nodes only.

const TOKEN = "distindex-token";

export const $ = (id) => document.getElementById(id);
export const count = (number) => number.toLocaleString("en");
export const one = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// `status` is that of the answer; none where there was no answer.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// Integers of 64 bits, such as ids, stay as they were written: JavaScript would round them.
function parse(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context
      ? context.source
      : value,
  );
}

export async function ask(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: { ...(body && { "Content-Type": "application/json" }), ...authorization() },
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service cannot be reached; is it running?");
  }
  const text = await response.text();
  let answer;
  try {
    answer = parse(text);
  } catch {
    throw new ApiError(`The service answered with status ${response.status} and no JSON.`, response.status);
  }
  if (response.ok) return answer;
  if (response.status === 401) {
    $("access").hidden = false;
    $("token").focus();
    const known = sessionStorage.getItem(TOKEN);
    throw new ApiError(known ? "The service does not know this token." : "Give a token first.", response.status);
  }
  const { message, field } = answer.error ?? {};
  throw new ApiError((field ? `${field}: ` : "") + (message ?? `status ${response.status}`), response.status);
}

// A page with a form `access` begins again when a token is given.
export function askForToken(begin) {
  $("access").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, $("token").value.trim());
    begin();
  });
}
