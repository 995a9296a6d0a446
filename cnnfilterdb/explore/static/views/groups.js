// Groups: how their distributions differ, as a heat map, distributions, quality and sizes; a pair by component.

import { ask, download, unpacked } from "../api.js";
import { colourBar, distributions, heatMap, valueBar } from "../charts.js";
import { failure, h, labelled, number, replace, reproduce, select, table } from "../dom.js";

const TABS = { shifts: "Shifts", distributions: "Distributions", quality: "Quality", sizes: "Sizes and exclusions" };
const METRICS = {
  kl: "KL divergence, symmetric", directed: "KL divergence, directed", jensen_shannon: "Jensen-Shannon divergence",
  total_variation: "total variation distance", wasserstein: "Wasserstein distance",
};
const UNITS = { kl: "nats", directed: "nats", jensen_shannon: "nats", total_variation: "", wasserstein: "" };

/** The options of a grouping in a URL, as a request has them. */
export function grouping(options, selection) {
  return {
    selection, by: options.by || "domain", kernel: options.kernel || "3x3", recipe: options.recipe || "cvpr2022",
    metric: options.metric || "kl", balance: options.balance || "filters", order: options.order || "mean",
    min_models: Number(options.min_models) || 1, min_filters: Number(options.min_filters) || 1,
    all_layers: options.all_layers === "true",
  };
}

/** The controls of a grouping; change(options) is called with what was changed. */
export function controls(about, options, change, { by = true, order = true, metrics } = {}) {
  const asked = grouping(options, null);
  const choice = (label, name, values) => labelled(label, select(values, asked[name],
    (value) => change({ [name]: value }), { "data-focus": name }));
  const least = (label, name) => labelled(label, h("input", { type: "number", min: 1, value: asked[name],
    "data-focus": name, onchange: (event) => change({ [name]: event.target.value }) }));
  const grouped = h("input", { type: "text", value: asked.by, list: "groupings", class: "code", spellcheck: "false",
    autocomplete: "off", "data-focus": "by", onchange: (event) => change({ by: event.target.value.trim() }) });
  return [
    by ? labelled("Group by (SQL)", grouped) : null,
    by ? h("datalist", { id: "groupings" }, about.groupings.map((text) => h("option", { value: text }))) : null,
    choice("Kernel", "kernel", about.compared),
    choice("Recipe", "recipe", about.recipes),
    choice("Metric", "metric", (metrics ?? about.metrics).map((name) => [name, METRICS[name] ?? name])),
    choice("Balance", "balance", about.balances),
    least("Min. models", "min_models"),
    least("Min. filters", "min_filters"),
    order ? choice("Order", "order", [["mean", "mean shift"], ["cluster", "similar together"], ["name", "name"]]) : null,
    h("label", { class: "value" }, h("input", { type: "checkbox", checked: asked.all_layers, "data-focus": "all_layers",
      onchange: (event) => change({ all_layers: event.target.checked ? "true" : "" }) }),
    h("span", {}, "Transposed and dead layers")),
  ];
}

function exports(kind, request, formats) {
  const error = h("span", { role: "alert" });
  return h("div", { class: "line" }, h("span", { class: "quiet" }, "Save"), formats.map((format) => h("button", {
    type: "button",
    onclick: () => download({ ...request, kind, format }).catch((problem) => { error.textContent = problem.message; }),
  }, format.toUpperCase())), error);
}

export function groups(root) {
  const form = h("form", { class: "controls", onsubmit: (event) => event.preventDefault() });
  const tabs = h("div", { class: "tabs" });
  const body = h("div", {});
  root.append(h("h1", {}, "Groups"), form, tabs, body);
  let former = "";

  return async function update(context) {
    const { about, options, selection, go } = context;
    const request = grouping(options, selection);
    const change = (changed) => go("groups", { ...options, a: "", b: "", ...changed });
    replace(form, controls(about, options, change));
    const tab = options.tab in TABS ? options.tab : "shifts";
    replace(tabs, Object.entries(TABS).map(([name, title]) => h("a", {
      href: context.href("groups", { ...options, tab: name === "shifts" ? "" : name }), "data-focus": `tab-${name}`,
      "aria-current": name === tab ? "page" : null }, title)));
    root.querySelectorAll(".error").forEach((old) => old.remove());
    const question = JSON.stringify([tab, request]);
    if (question !== former) {
      former = "";
      body.classList.add("stale");
      try {
        replace(body, await { shifts, distributions: ridges, quality, sizes }[tab](context, request));
      } catch (error) {
        if (error.message !== "newer") body.replaceChildren();
        throw error;
      } finally {
        body.classList.remove("stale");
      }
      former = question;
    }
    const panel = body.querySelector(".pair");
    if (panel) await pair(panel, context, request);
  };

  async function shifts(context, request) {
    const found = await ask("groups", request, context.signal);
    const { labels, sizes: counts } = found;
    const matrix = unpacked(found.matrix);
    const unit = UNITS[request.metric];
    const describe = (row, column, value) => [
      row === column ? labels[row] : `${labels[row]} – ${labels[column]}`,
      row === column ? "" : `${number(value)} ${unit}`,
      ...(row === column ? [row] : [row, column]).map((i) =>
        `${labels[i]}: ${number(counts[i].models)} models, ${number(counts[i].filters)} filters`),
    ].filter(Boolean);
    const open = (row, column) => context.go("groups", { ...currentOptions(), a: labels[row], b: labels[column] });
    if (labels.length < 2) {
      return [h("p", {}, `Only one group: ${labels[0]}. Group by something else, or select more models.`), method(found)];
    }
    const { element, high, clipped } = heatMap(labels, matrix, { describe, onpick: open });
    return [
      h("div", { class: "line" },
        colourBar("shift", "0", `${clipped ? "≥ " : ""}${number(high)}`, `${METRICS[request.metric]}${unit ? ` in ${unit}` : ""}, square-root scale`),
        exports("shift", request, ["png", "svg", "pdf", "csv"])),
      h("div", { class: "scroll", role: "region", "aria-label": "Heat map", tabindex: "0" }, element),
      h("p", { class: "quiet" }, "Select a cell to compare two groups by component."),
      h("section", { class: "pair", "aria-label": "Pair of groups" }),
      method(found), reproduce({ SQL: found.sql, "Command line": found.command })];
  }

  function currentOptions() {
    const query = new URLSearchParams(location.hash.split("?")[1] ?? "");
    return Object.fromEntries([...query].filter(([name]) => !/^(f\.|u\.|q$|where$|m$)/.test(name)));
  }

  async function ridges(context, request) {
    const found = await ask("ridges", request, context.signal);
    found.shares = unpacked(found.shares);
    const more = found.total - found.labels.length;
    return [
      h("div", { class: "line" }, h("p", {}, "Distributions of the coefficients: one column per component, with its share of the variance. Each has its own height."),
        exports("ridge", request, ["png", "svg", "pdf"])),
      more ? h("p", {}, `The first ${found.labels.length} of ${number(found.total)} groups.`) : null,
      h("div", { class: "scroll", role: "region", "aria-label": "Distributions", tabindex: "0" }, distributions(found)),
      reproduce({ SQL: found.sql, "Command line": found.command })];
  }

  async function quality(context, request) {
    const found = await ask("quality", request, context.signal);
    const share = ["sparsity", "random_layers", "collapsed_layers", "sparse_layers", "repetitive_layers", "degenerated_layers", "quantised_layers"];
    const measures = new Set(["variance_entropy", "variance_entropy_clean", "normalised_entropy", "orthogonality"]);
    const columns = Object.keys(found.rows[0] ?? {}).map((key) => ({
      key, title: (key[0].toUpperCase() + key.slice(1)).replaceAll("_", " "), numeric: key !== "group",
      cell: share.includes(key) ? (row) => (row[key] === null ? "" : `${(100 * row[key]).toFixed(1)} %`)
        : measures.has(key) ? (row) => row[key]?.toFixed(4) ?? "" : undefined }));
    const order = context.options.sort ?? "group";
    const descending = context.options.descending === "true";
    const rows = found.rows.toSorted((a, b) => {
      const [first, second] = [a[order], b[order]];
      const way = typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(String(second));
      return descending ? -way : way;
    });
    const onsort = (key) => context.go("groups", { ...context.options, sort: key,
      descending: order === key && !descending ? "true" : "" });
    former = "";
    return [exports("quality", request, ["png", "svg", "pdf", "csv"]),
      table("Quality by group", columns, rows, { sorted: { key: order, descending }, onsort }),
      reproduce({ SQL: found.sql, "Command line": found.command })];
  }

  async function sizes(context, request) {
    const found = await ask("groups", request, context.signal);
    const rows = found.labels.map((label, i) => ({ label, ...found.sizes[i] }));
    const columns = [
      { key: "label", title: "Group" }, { key: "models", title: "Models", numeric: true },
      { key: "layers", title: "Layers", numeric: true }, { key: "filters", title: "Filters", numeric: true },
      { key: "outside", title: "Outside the range", numeric: true, cell: (row) => `${(100 * row.outside).toFixed(3)} %` },
    ];
    const left = found.excluded;
    return [
      h("h2", {}, `${number(rows.length)} groups`), table("Sizes of groups", columns, rows),
      left.length ? [h("h2", {}, `${number(left.length)} groups below the minimum`),
        table("Groups below the minimum", [{ key: "group", title: "Group" }, ...columns.slice(1, 4)], left)] : null,
      method(found), reproduce({ SQL: found.sql, "Command line": found.command })];
  }

  function method(found) {
    const { basis, recipe, metric, balance, bins, range } = found.method;
    return h("div", { class: "method" },
      h("p", {}, `${found.coverage[0].toUpperCase()}${found.coverage.slice(1)}.`),
      found.warnings.map((warning) => h("p", { class: "warning" }, warning)),
      h("p", { class: "quiet" }, `Basis ${basis}, recipe ${recipe}, metric ${metric}, balance ${balance}, ${bins} bins from ${number(range[0])} to ${number(range[1])}.`));
  }

  async function pair(panel, context, request) {
    const { a, b } = context.options;
    if (!a || !b) {
      panel.replaceChildren();
      return;
    }
    try {
      const found = await ask("pair", { ...request, a, b }, context.signal);
      found.shares = unpacked(found.shares);
      const most = Math.max(...found.components.map((one) => one.shift), 1e-12);
      replace(panel,
        h("div", { class: "line" }, h("h2", {}, `${a} – ${b}: ${number(found.shift)} ${UNITS[request.metric]}`),
          h("a", { class: "button", href: context.href("groups", { ...context.options, a: "", b: "" }) }, "Close")),
        h("p", { class: "legend" }, h("span", { class: "swatch a0" }), a, h("span", { class: "swatch a1" }), b),
        h("div", { class: "scroll", role: "region", "aria-label": "Distributions of both", tabindex: "0" },
          distributions(found, { overlay: true })),
        table("Shift by component", [
          { key: "component", title: "Component", cell: (row) => `c${row.component}` },
          ...[["divergence", "Divergence"], ["weight", "Weight"], ["shift", "Weighted"]].map(([key, title]) => (
            { key, title, numeric: true, cell: (row) => row[key].toFixed(5) })),
          { key: "bar", title: "Share of the shift", cell: (row) => valueBar(row.shift, most, false) },
        ], found.components),
        reproduce({ SQL: found.sql, "Command line": found.command }));
      panel.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (error.message !== "newer") replace(panel, failure(error));
    }
  }
}
