// Elements without markup: texts are always text nodes.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element; properties that begin with "on" are listeners, children are nodes or texts. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Replace the children of an element; the focus stays on the child that has the same data-focus. */
export function replace(element, ...children) {
  const active = document.activeElement;
  const key = element.contains(active) ? active.dataset.focus : null;
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined));
  if (key) element.querySelector(`[data-focus="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** A number for reading: thousands apart, four digits. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  return value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
}

/** A value of a cell as text. */
export function text(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return String(value);
  if (/^\d{4}-\d\d-\d\dT[\d:.]+\+00:00$/.test(value)) return `${value.slice(0, 10)} ${value.slice(11, 16)} UTC`;
  const written = typeof value === "object" ? JSON.stringify(value) : String(value);
  return written.length > 300 ? `${written.slice(0, 300)}…` : written;
}

/**
 * A table that scrolls in its own region.
 *
 * Columns: {key, title, cell(row), numeric, sort}; sorted: {key, descending}; onsort(key) makes headings buttons.
 */
export function table(label, columns, rows, { sorted, onsort } = {}) {
  const heading = (column) => {
    const direction = sorted?.key === column.key ? (sorted.descending ? "descending" : "ascending") : null;
    const mark = direction ? (sorted.descending ? " ↓" : " ↑") : "";
    const title = onsort && column.sort !== false
      ? h("button", { type: "button", class: "plain", "data-focus": `sort-${column.key}`,
        onclick: () => onsort(column.key) }, column.title ?? column.key, mark)
      : column.title ?? column.key;
    return h("th", { scope: "col", class: column.numeric ? "numeric" : null, "aria-sort": direction }, title);
  };
  const cell = (column, row) => {
    const shown = column.cell ? column.cell(row) : text(row[column.key]);
    return h("td", { class: column.numeric ? "numeric" : null }, shown);
  };
  return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map(heading))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column) => cell(column, row)))))));
}

/** A labelled control. */
export function labelled(label, control, hint) {
  return h("label", { class: "control" }, h("span", {}, label), control, hint ? h("small", {}, hint) : null);
}

/** A list to choose from; options are texts or [value, text]. */
export function select(options, value, onchange, properties = {}) {
  const made = h("select", { ...properties, onchange: (event) => onchange(event.target.value) },
    options.map((option) => {
      const [key, shown] = Array.isArray(option) ? option : [option, option];
      return h("option", { value: key, selected: key === value }, shown);
    }));
  made.value = value;
  return made;
}

/** How to get the same numbers elsewhere. */
export function reproduce(ways) {
  const known = Object.entries(ways).filter(([, code]) => code);
  return h("details", { class: "reproduce" },
    h("summary", {}, "The same numbers by SQL and command line"),
    known.map(([name, code]) => h("div", { class: "way" },
      h("h3", {}, name),
      h("pre", { tabindex: "0", "aria-label": name }, code),
      h("button", { type: "button", onclick: (event) => copy(code, event.target) }, "Copy"),
      name === "SQL" ? h("a", { href: `#/sql?${new URLSearchParams({ query: code })}` }, "Open in SQL") : null)));
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select the text and copy it";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const tip = document.getElementById("tip");

/** Show lines beside the pointer. */
export function showTip(x, y, lines) {
  tip.replaceChildren(...lines.map((line) => (line instanceof Node ? line : h("div", {}, line))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? Math.max(4, x - width - 14) : x + 14;
  const top = y + 14 + height > innerHeight ? Math.max(4, y - height - 14) : y + 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

export function hideTip() {
  tip.hidden = true;
}

/** A message in place of what could not be shown. */
export function failure(error) {
  return h("p", { class: "error", role: "alert" }, error.message ?? String(error));
}
