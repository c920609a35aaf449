// What the page asks of its edge: requests with the token, server-sent events, and one picture in the making.

const KEPT = "fedkd.token";
let token = "";
try {
  token = sessionStorage.getItem(KEPT) ?? "";
} catch {
  // Storage is turned off: the token lives as long as the page.
}

export function useToken(text) {
  token = text.trim();
  try {
    if (token) sessionStorage.setItem(KEPT, token);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // As above.
  }
}

export const hasToken = () => token !== "";

// An answer that is an error; `status` 0 when there was none at all.
export class EdgeError extends Error {
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export async function ask(path, { json, headers = {}, ...options } = {}) {
  const sent = { ...headers };
  if (token) sent.Authorization = `Bearer ${token}`;
  if (json !== undefined) {
    sent["Content-Type"] = "application/json";
    options = { method: "POST", body: JSON.stringify(json), ...options };
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: sent, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new EdgeError("The edge does not answer.", 0);
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  const said = found?.error?.message ?? `The edge answered ${answer.status}.`;
  const wait = answer.headers.get("Retry-After");
  throw new EdgeError(wait ? `${said} Try again in ${wait} s.` : said, answer.status, found?.error?.param ?? null);
}

export const get = async (path, options) => (await ask(path, options)).json();

export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const whole = waiting.split("\n\n");
    waiting = whole.pop();
    for (const text of whole) {
      const lines = Object.fromEntries(
        text.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      if (lines.event) yield { name: lines.event, data: JSON.parse(lines.data ?? "{}") };
    }
  }
}

// One picture: a session is opened at step 0, followed, and handed straight back, so that the edge does all steps
// and nothing of it is missed. `onEvent` is told each step and preview. Answers {blob, edgeSeconds}.
export async function draw(wish, { previewEvery, signal, onEvent }) {
  const opened = await ask("v1/sessions", {
    json: { ...wish, device_steps: 0, order: "device_first", with_conditions: false },
    signal,
  });
  const place = `v1/sessions/${opened.headers.get("X-Fedkd-Session")}`;
  let seconds = Number(opened.headers.get("X-Fedkd-Edge-Seconds"));
  let ended = false;
  const leaving = new AbortController();
  try {
    const handOff = await opened.arrayBuffer();
    // Awaited before the edge is let go: its first step is seen, too.
    const stream = await ask(`${place}/events?previews=${previewEvery}`, { signal: leaving.signal });
    const following = follow(stream, onEvent);
    const headers = { "Content-Type": "application/x-safetensors" };
    const answer = await ask(`${place}/handoff?result=png`, { method: "POST", body: handOff, headers, signal });
    seconds += Number(answer.headers.get("X-Fedkd-Edge-Seconds"));
    const blob = await answer.blob();
    ended = true;
    await following;
    return { blob, edgeSeconds: seconds };
  } finally {
    if (!ended) {
      leaving.abort();
      ask(place, { method: "DELETE", keepalive: true }).catch(() => {});
    }
  }
}

async function follow(stream, onEvent) {
  try {
    for await (const event of events(stream)) onEvent(event);
  } catch {
    // The line to the events broke; the picture itself comes on another.
  }
}
