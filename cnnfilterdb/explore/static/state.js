// What is shown, as the part of the URL behind the #: a view, its options, and the selected models.

const FACET = "f.";
const UNKNOWN = "u."; // facets of which "unknown" is chosen

/** The state in the URL: {view, options, selection}. */
export function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const selection = { facets: {}, search: "", where: "", models: [] };
  const options = {};
  for (const [name, value] of new URLSearchParams(query)) {
    if (name.startsWith(FACET)) (selection.facets[name.slice(2)] ??= []).push(value);
    else if (name.startsWith(UNKNOWN)) (selection.facets[name.slice(2)] ??= []).push(null);
    else if (name === "q") selection.search = value;
    else if (name === "where") selection.where = value;
    else if (name === "m") selection.models.push(value);
    else options[name] = value;
  }
  return { view: path || "models", options, selection };
}

/** The URL of a state; options without a value are left out. */
export function write(view, options, selection) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && value !== null && value !== "" && value !== false) query.append(name, value);
  }
  for (const [name, values] of Object.entries(selection.facets)) {
    for (const value of values) query.append((value === null ? UNKNOWN : FACET) + name, value ?? "");
  }
  if (selection.search) query.append("q", selection.search);
  if (selection.where) query.append("where", selection.where);
  for (const key of selection.models) query.append("m", key);
  const text = query.toString();
  return `#/${view}${text ? `?${text}` : ""}`;
}

export const nothing = { facets: {}, search: "", where: "", models: [] };

/** Whether a selection selects everything. */
export function everything(selection) {
  return !selection.search && !selection.where && !selection.models.length
    && Object.values(selection.facets).every((values) => !values.length);
}
