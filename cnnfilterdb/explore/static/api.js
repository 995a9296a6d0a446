// Questions to the server. The token stands behind the # of the URL that was printed; it is kept for this origin.

const KEY = "cnnfilterdb-token";

/** Take the token out of the URL, so that it is in no history and no bookmark. */
export function takeToken() {
  const match = location.hash.match(/[#&]token=([\w-]+)/);
  if (match) {
    localStorage.setItem(KEY, match[1]);
    history.replaceState(null, "", `${location.pathname}#/models`);
  }
}

const running = new Map();
let listener = () => {};

/** Call a function whenever the set of running questions changes. */
export function onRunning(call) {
  listener = call;
}

/** Cancel all questions; the server interrupts their queries. */
export function cancelAll() {
  for (const controller of running.keys()) controller.abort("cancelled");
}

async function post(view, body, signal, { quiet = false } = {}) {
  const controller = new AbortController();
  signal?.addEventListener("abort", () => controller.abort(signal.reason));
  if (signal?.aborted) controller.abort(signal.reason);
  if (!quiet) running.set(controller, performance.now());
  listener(running);
  try {
    const response = await fetch(`/api/${view}`, {
      method: "POST",
      headers: { Authorization: `Bearer ${localStorage.getItem(KEY) ?? ""}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: controller.signal,
    });
    if (!response.ok) {
      const { error } = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
      throw new Error(error);
    }
    return { response, data: await response.arrayBuffer() };
  } catch (error) {
    if (controller.signal.aborted) throw new Error(controller.signal.reason === "newer" ? "newer" : "Cancelled.", { cause: error });
    if (error instanceof TypeError) {
      throw new Error("The server does not answer. Is `cnnfilterdb explore` running?", { cause: error });
    }
    throw error;
  } finally {
    running.delete(controller);
    listener(running);
  }
}

/** The answer to a question as an object. */
export async function ask(view, body, signal) {
  const { data } = await post(view, body, signal);
  return JSON.parse(new TextDecoder().decode(data));
}

/** The answer to a long question; onprogress(filters) is called with the number of filters searched so far. */
export async function askLong(view, body, signal, onprogress) {
  const job = String(Math.random());
  const timer = setInterval(async () => {
    const { data } = await post("progress", { job }, signal, { quiet: true }).catch(() => ({}));
    const { done } = data ? JSON.parse(new TextDecoder().decode(data)) : {};
    if (done) onprogress(done);
  }, 400);
  try {
    return await ask(view, { ...body, job }, signal);
  } finally {
    clearInterval(timer);
  }
}

/** The answer as bytes. */
export async function askBytes(view, body, signal) {
  return (await post(view, body, signal)).data;
}

/** Let the browser save a file. */
export async function download(body) {
  const { response, data } = await post("file", body);
  const name = response.headers.get("Content-Disposition")?.match(/filename="([^"]+)"/)?.[1] ?? "download";
  const url = URL.createObjectURL(new Blob([data], { type: response.headers.get("Content-Type") }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Numbers that the server packed: base64 of float64, little-endian. */
export function unpacked(packed) {
  const letters = atob(packed);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return new Float64Array(bytes.buffer);
}
