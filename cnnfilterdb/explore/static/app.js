// The page: what the URL says is shown; what is chosen becomes a URL.

import { ask, cancelAll, onRunning, takeToken } from "./api.js";
import { onTheme } from "./charts.js";
import { failure, h, hideTip, number, replace } from "./dom.js";
import { everything, nothing, read, write } from "./state.js";
import { groups } from "./views/groups.js";
import { map } from "./views/map.js";
import { kernel, layer, model } from "./views/model.js";
import { models } from "./views/models.js";
import { sql } from "./views/sql.js";

// The empty text is the only markup that may be set: ECharts empties its element that way.
window.trustedTypes?.createPolicy("default", { createHTML: (markup) => (markup === "" ? markup : null) });

const VIEWS = { models, groups, map, model, layer, kernel, sql };
const TABS = { models: "Models", groups: "Groups", map: "Map", sql: "SQL" };
const main = document.getElementById("main");

let about;
let shown; // {name, update} of the view in the page
let controller = new AbortController();

/** Go to a view; the options and the selection are kept unless given. */
function go(view, options, selection, { replaced = false } = {}) {
  const next = write(view, options, selection ?? read().selection);
  if (replaced) {
    history.replaceState(null, "", next);
    render();
  } else location.hash = next;
}

function render() {
  hideTip();
  const state = read();
  const build = VIEWS[state.view];
  controller.abort("newer");
  controller = new AbortController();
  const { signal } = controller;
  const context = { ...state, about, go, href: (view, options) => write(view, options, state.selection), signal };
  delete main.dataset.shown;
  const { hash } = location;
  const views = Object.entries(TABS).map(([name, title]) => {
    const current = name === state.view || (name === "models" && ["model", "layer", "kernel"].includes(state.view));
    return h("a", { href: write(name, {}, state.selection), "aria-current": current ? "page" : null,
      "data-focus": `view-${name}` }, title);
  });
  replace(document.getElementById("views"), views);
  const selected = showSelection(state, signal);
  if (!build) {
    main.replaceChildren(failure(new Error(`There is no view ${state.view}.`)));
    shown = null;
    return;
  }
  if (shown?.name !== state.view) {
    const fresh = shown !== undefined;
    main.replaceChildren();
    shown = { name: state.view, update: build(main) };
    if (fresh && !location.hash.includes("focus=none")) main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  document.title = `${TABS[state.view] ?? state.options.model ?? state.view} · ${about.database} · cnnfilterdb`;
  const updated = shown.update(context).catch((error) => {
    if (error.message === "newer") return;
    main.querySelectorAll(".error.whole").forEach((old) => old.remove());
    const message = failure(error);
    message.classList.add("whole");
    main.prepend(message);
  });
  // For programs that drive the page: what is shown completely.
  Promise.all([selected, updated]).then(() => {
    if (!signal.aborted) main.dataset.shown = hash;
  });
}

/** The line that says which models are selected, on every view. */
async function showSelection({ view, options, selection }, signal) {
  const bar = document.getElementById("selection");
  bar.hidden = everything(selection);
  if (bar.hidden) return;
  const without = (change) => () => go(view, options, { ...selection, ...change });
  const chips = [];
  for (const [name, values] of Object.entries(selection.facets)) {
    for (const value of values) {
      const rest = { ...selection.facets, [name]: values.filter((one) => one !== value) };
      chips.push([`${name}: ${value ?? "unknown"}`, { facets: rest }]);
    }
  }
  if (selection.search) chips.push([`search: ${selection.search}`, { search: "" }]);
  if (selection.where) chips.push([selection.where, { where: "" }]);
  if (selection.models.length) {
    const [first] = selection.models;
    chips.push([selection.models.length === 1 ? first : `${selection.models.length} models`, { models: [] }]);
  }
  const count = h("strong", {}, "…");
  replace(bar, count, chips.map(([label, change], i) => h("button", {
    type: "button", class: "chip", "aria-label": `Remove ${label}`, "data-focus": `chip-${i}`, onclick: without(change),
  }, label, h("span", { "aria-hidden": "true" }, " ×"))),
  h("button", { type: "button", class: "plain", "data-focus": "clear", onclick: without(nothing) }, "Clear selection"));
  try {
    const { total } = await ask("models", { selection, limit: 0 }, signal);
    count.textContent = `${number(total)} of ${number(about.models)} models`;
  } catch (error) {
    if (error.message !== "newer") count.textContent = error.message;
  }
}

function showBusy(running) {
  const busy = document.getElementById("busy");
  const waited = running.size ? performance.now() - Math.min(...running.values()) : 0;
  busy.hidden = waited < 400;
  document.getElementById("busy-text").textContent = busy.hidden ? "" : "Working…";
  if (running.size && busy.hidden) setTimeout(() => showBusy(running), 100);
}

takeToken();
onRunning(showBusy);
document.getElementById("cancel").addEventListener("click", cancelAll);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.getElementById("busy").hidden) cancelAll();
});
try {
  about = await ask("start", {});
  document.getElementById("database").textContent = about.database;
  addEventListener("hashchange", () => {
    if (location.hash.includes("token=")) location.reload();
    else render();
  });
  onTheme(render);
  render();
} catch (error) {
  main.replaceChildren(failure(error));
}
