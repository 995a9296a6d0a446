// Models: facets with counts, search, a table to sort and to select from.

import { ask, download } from "../api.js";
import { h, labelled, number, replace, reproduce, table } from "../dom.js";

const FACETS = {
  domain: "Domain", task: "Task", family: "Family", source: "Source", license: "Licence", framework: "Framework",
  size: "Parameters", flags: "Flags",
};
const COLUMNS = [
  ["model_id", "Model"], ["architecture", "Architecture"], ["task", "Task"], ["domain", "Domain"], ["license", "Licence"],
  ["parameters", "Parameters"], ["conv_layers", "Layers"], ["stored_filters", "Filters"], ["family", "Family"],
  ["training_dataset", "Trained on"],
];
const FEW = 6; // values of a facet that are shown at first

export function models(root) {
  const unfolded = new Set();
  const search = h("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const where = h("input", { type: "text", autocomplete: "off", spellcheck: "false", class: "code",
    placeholder: "parameters > 1e6 AND kernel = '5x5'" });
  const facets = h("div", { class: "facets" });
  const fold = h("details", { class: "side", open: innerWidth > 800 }, h("summary", {}, "Filters"), facets);
  const results = h("div", { class: "results" });
  const form = h("form", { class: "controls", role: "search" }, labelled("Search", search),
    labelled("Condition (SQL)", where), h("button", { type: "submit" }, "Apply"));
  root.append(h("h1", {}, "Models"), form, h("div", { class: "with-side" }, fold, results));
  let context;
  const choose = (change) => context.go("models", context.options, { ...context.selection, ...change });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    choose({ search: search.value.trim(), where: where.value.trim() });
  });
  let timer;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => context.go("models", context.options,
      { ...context.selection, search: search.value.trim() }, { replaced: true }), 250);
  });

  function facet(name, values) {
    const chosen = context.selection.facets[name] ?? [];
    const all = unfolded.has(name) || values.length <= FEW + 1;
    const visible = all ? values : values.filter((one, i) => i < FEW || chosen.includes(one.value));
    const toggle = (value, on) => choose({ facets: { ...context.selection.facets,
      [name]: on ? [...chosen, value] : chosen.filter((one) => one !== value) } });
    return h("fieldset", {}, h("legend", {}, FACETS[name]),
      visible.map(({ value, models: count }) => h("label", { class: "value" },
        h("input", { type: "checkbox", checked: chosen.includes(value), "data-focus": `${name}-${value}`,
          onchange: (event) => toggle(value, event.target.checked) }),
        h("span", { class: value === null ? "quiet" : "" }, value ?? "unknown"),
        h("span", { class: "count" }, number(count)))),
      all ? null : h("button", { type: "button", class: "plain", "data-focus": `more-${name}`, onclick: () => {
        unfolded.add(name);
        replace(facets, Object.keys(FACETS).filter((key) => last[key]?.length).map((key) => facet(key, last[key])));
      } }, `${values.length - visible.length} more`));
  }

  let last = {};
  return async function update(given) {
    context = given;
    const { selection, options } = context;
    if (document.activeElement !== search) search.value = selection.search;
    where.value = selection.where;
    const limit = Number(options.limit ?? 100);
    const [order, descending] = [options.order ?? "model_id", options.descending === "true"];
    const found = await ask("models", { selection, order, descending, limit }, context.signal);
    last = found.facets;
    root.querySelectorAll(".error").forEach((old) => old.remove());
    replace(facets, Object.keys(FACETS).filter((key) => last[key]?.length).map((key) => facet(key, last[key])));
    const picked = new Set(selection.models);
    const pick = (key, on) => {
      if (on) picked.add(key);
      else picked.delete(key);
      chosen.textContent = `${picked.size} picked`;
      apply.disabled = !picked.size;
    };
    const chosen = h("span", { role: "status" }, picked.size ? `${picked.size} picked` : "");
    const apply = h("button", { type: "button", disabled: !picked.size,
      onclick: () => choose({ models: [...picked] }) }, "Select the picked only");
    const columns = [
      { key: "pick", title: "Pick", sort: false, cell: (row) => h("input", { type: "checkbox",
        "aria-label": `Pick ${row.model_id}`, checked: picked.has(row.model_id),
        onchange: (event) => pick(row.model_id, event.target.checked) }) },
      ...COLUMNS.map(([key, title]) => ({
        key, title, numeric: ["parameters", "conv_layers", "stored_filters"].includes(key),
        cell: key !== "model_id" ? undefined : (row) => [
          h("a", { href: context.href("model", { model: row.model_id }) }, row.model_id),
          row.untrained ? h("span", { class: "flag" }, "flagged untrained") : null],
      })),
    ];
    const onsort = (key) => context.go("models",
      { ...options, order: key, descending: order === key && !descending ? "true" : undefined });
    replace(results,
      h("div", { class: "line" }, h("p", { role: "status" }, `${number(found.total)} models`), chosen, apply,
        h("a", { class: "button", href: context.href("groups", {}) }, "Compare them in groups"),
        h("button", { type: "button", onclick: () => download({ kind: "models", format: "csv", selection }) }, "CSV")),
      found.rows.length ? table("Models", columns, found.rows, { sorted: { key: order, descending }, onsort })
        : h("p", {}, "No model is selected. Remove a filter above."),
      found.rows.length < found.total ? h("button", { type: "button", "data-focus": "more-rows",
        onclick: () => context.go("models", { ...options, limit: limit + 300 }, undefined, { replaced: true }) },
      "Show more") : null,
      reproduce({ SQL: found.sql, "Command line": found.command }));
  };
}
