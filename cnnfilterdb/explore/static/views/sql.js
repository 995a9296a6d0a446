// SQL: an editor that knows views, macros and columns; the rows as a table and as a chart.

import { ask, download } from "../api.js";
import { charts } from "../charts.js";
import { failure, h, hideTip, labelled, number, replace, select, showTip, table, text } from "../dom.js";

const KINDS = [["bar", "Bars"], ["line", "Lines"], ["scatter", "Points"]];
const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
  .cm-editor { border: 1px solid var(--control); border-radius: 4px; background: var(--paper); color: var(--ink); min-height: 8em; max-height: 50vh; }
  .cm-editor.cm-focused { outline: 2px solid var(--accent); outline-offset: 1px; }
`);

/** Replace the selected text by what is typed. Chromium would give it an inline style, which the content policy blocks. */
function typedOver(event, view) {
  if (event.inputType !== "insertText" || !event.data || view.composing || view.state.selection.main.empty) return false;
  event.preventDefault();
  view.dispatch(view.state.replaceSelection(event.data), { userEvent: "input.type", scrollIntoView: true });
  return true;
}

let library;

async function editor(host, about, run) {
  library ??= await import("../vendor/editor.js");
  const { autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap, defaultKeymap, history: undo, historyKeymap,
    PostgreSQL, SQLDialect, sql: support, bracketMatching, HighlightStyle, syntaxHighlighting, drawSelection, EditorView, keymap,
    lineNumbers, placeholder, Prec, EditorState, tags } = library;
  const dialect = SQLDialect.define({ ...PostgreSQL.spec, keywords: `${PostgreSQL.spec.keywords} summarize describe pivot unpivot qualify exclude replace semi anti asof`,
    operatorChars: "*+-%<>!=&|~^/?:" });
  const macros = about.macros.map(({ name, arguments: list, about: told, table: rows }) => ({
    label: name, detail: `(${list.length > 60 ? `${list.slice(0, 60)}…` : list})`, info: told, type: rows ? "class" : "function", apply: `${name}(` }));
  const columns = Object.entries(about.columns).map(([name, told]) => ({ label: name, type: "property", info: told }));
  const words = [...macros, ...columns];
  const known = (context) => {
    const word = context.matchBefore(/\w+/);
    return word && (context.explicit || word.text.length > 1) ? { from: word.from, options: words, validFor: /^\w*$/ } : null;
  };
  const language = support({ dialect, schema: about.tables, upperCaseKeywords: true });
  // The editor writes its styles into the root that it is in: a shadow root takes them as style sheets, which the
  // content policy allows; in the document they would be an inline style.
  const root = host.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [STYLE];
  const colours = HighlightStyle.define([
    { tag: tags.keyword, color: "var(--accent)", fontWeight: "600" }, { tag: tags.string, color: "var(--good)" },
    { tag: tags.number, color: "var(--warn)" }, { tag: tags.comment, color: "var(--quiet)", fontStyle: "italic" }]);
  const theme = EditorView.theme({
    ".cm-content": { fontFamily: "var(--mono)", fontSize: "14px", caretColor: "var(--ink)" },
    ".cm-cursor": { borderLeftColor: "var(--ink)" },
    ".cm-gutters": { background: "var(--panel)", color: "var(--quiet)", border: "none" },
    ".cm-selectionBackground, &.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground": { background: "var(--mark)" },
    ".cm-tooltip": { background: "var(--panel)", color: "var(--ink)", border: "1px solid var(--control)" },
    ".cm-tooltip.cm-tooltip-autocomplete > ul > li[aria-selected]": { background: "var(--accent)", color: "var(--paper)" },
    ".cm-completionInfo": { maxWidth: "28em" }, ".cm-placeholder": { color: "var(--quiet)" },
  });
  return new EditorView({ parent: root, root, extensions: [
    lineNumbers(), undo(), drawSelection(), bracketMatching(), closeBrackets(), EditorView.lineWrapping,
    EditorState.tabSize.of(2), autocompletion({ icons: false }), language, language.language.data.of({ autocomplete: known }),
    syntaxHighlighting(colours), theme, placeholder("FROM models"),
    EditorView.contentAttributes.of({ "aria-label": "SQL", spellcheck: "false" }),
    EditorView.domEventHandlers({ beforeinput: typedOver }),
    Prec.highest(keymap.of([{ key: "Mod-Enter", run: () => { run(); return true; } }])),
    keymap.of([...closeBracketsKeymap, ...defaultKeymap, ...historyKeymap, ...completionKeymap])] });
}

export function sql(root) {
  const host = h("div", { class: "editor" });
  const result = h("div", {});
  const bar = h("div", { class: "line" });
  const side = h("details", { class: "side" });
  root.append(h("h1", {}, "SQL"), h("div", { class: "with-side" }, side, h("div", { class: "results" }, host, bar, result)));
  let view;
  let context;
  let asked = null;

  const query = () => view.state.doc.toString().trim();
  const run = () => {
    if (query() === (context.options.query ?? "")) {
      asked = null;
      context.go("sql", context.options, undefined, { replaced: true });
    } else context.go("sql", { ...context.options, query: query(), x: "", y: "", kind: "" });
  };
  const insert = (word) => {
    view.dispatch(view.state.replaceSelection(word));
    view.focus();
  };

  function draw(found, canvas, controls, chart) {
    const { options } = context;
    const numbers = found.columns.filter((column) => column.type === "number").map((column) => column.name);
    const names = found.columns.map((column) => column.name);
    if (!numbers.length || found.rows.length < 2) return;
    const other = names.find((name) => !numbers.includes(name)) ?? names[0];
    const x = names.includes(options.x) ? options.x : other;
    const y = numbers.includes(options.y) ? options.y : numbers.find((name) => name !== x) ?? numbers[0];
    const kind = options.kind || (numbers.includes(x) ? (found.rows.length > 60 ? "scatter" : "line") : "bar");
    const change = (changed) => context.go("sql", { ...context.options, ...changed }, undefined, { replaced: true });
    replace(controls, labelled("Chart", select(KINDS, kind, (value) => change({ kind: value }), { "data-focus": "kind" })),
      labelled("Across", select(names, x, (value) => change({ x: value }), { "data-focus": "x" })),
      labelled("Up", select(numbers, y, (value) => change({ y: value }), { "data-focus": "y" })));
    const [at, up] = [names.indexOf(x), names.indexOf(y)];
    const category = kind === "bar" || !numbers.includes(x);
    const rows = category ? found.rows.slice(0, 200) : found.rows.toSorted((a, b) => a[at] - b[at]);
    canvas.hidden = false;
    const made = chart(canvas, {
      grid: { left: 84, right: 16, top: 16, bottom: category ? 96 : 56 },
      xAxis: category ? { type: "category", data: rows.map((row) => text(row[at]) || "NULL"), name: "",
        axisLabel: { rotate: rows.length > 6 ? 35 : 0, width: 110, overflow: "truncate", hideOverlap: true } }
        : { type: "value", name: x, scale: true },
      yAxis: { type: "value", name: y, nameGap: 64, scale: kind === "scatter" },
      series: [{ type: kind, symbolSize: kind === "scatter" ? 6 : 4, barMaxWidth: 40,
        data: rows.map((row) => (category ? row[up] : [row[at], row[up]])) }],
    }, `Chart of ${y} by ${x}. The table below has the same.`);
    made.on("mouseover", ({ dataIndex, event }) => rows[dataIndex] && showTip(event.event.clientX, event.event.clientY,
      found.columns.slice(0, 8).map((column, i) => `${column.name}: ${text(rows[dataIndex][i])}`)));
    made.on("mouseout", hideTip);
  }

  let found = null;
  function show(chart) {
    const canvas = h("div", { class: "chart", hidden: true });
    const controls = h("div", { class: "line" });
    const error = h("span", { role: "alert" });
    const save = (format) => h("button", { type: "button", onclick: () => download({ kind: "sql", format, query: context.options.query })
      .catch((problem) => { error.textContent = problem.message; }) }, format === "csv" ? "CSV" : "Parquet");
    const columns = found.columns.map(({ name, type }, i) => ({ key: name, numeric: type === "number", cell: (row) =>
      (name === "model_id" && row[i] ? h("a", { href: context.href("model", { model: row[i] }) }, row[i]) : row[i] === null ? h("span", { class: "quiet" }, "NULL") : text(row[i])) }));
    replace(result,
      h("div", { class: "line" }, h("p", { role: "status" }, `${number(found.rows.length)} rows${found.more ? ", and more: download, or ask for more rows" : ""}`),
        save("csv"), save("parquet"), error),
      controls, canvas, found.columns.length ? table("Result", columns, found.rows) : null,
      h("details", { class: "reproduce" }, h("summary", {}, "The same by command line"), h("pre", { tabindex: "0" }, found.command)));
    draw(found, canvas, controls, chart);
  }

  return async function update(given) {
    context = given;
    const { about, options } = context;
    view ??= await editor(host, about, run);
    if (!bar.childElementCount) {
      replace(bar, h("button", { type: "button", class: "main", onclick: run }, "Run (Ctrl+Enter)"),
        labelled("Queries", select([["", "Choose one"], ...about.queries.map((one, i) => [String(i), one.title])], "", (value) => {
          if (value) context.go("sql", { query: about.queries[value].sql });
        })),
        labelled("Rows", select(["100", "1000", "10000"], options.rows || "1000", (value) => context.go("sql", { ...context.options, rows: value }))));
      replace(side, h("summary", {}, "Views and macros"),
        Object.entries(about.tables).map(([name, columns]) => h("details", {}, h("summary", {}, name),
          h("ul", {}, columns.map((column) => h("li", {}, h("button", { type: "button", class: "plain code", onclick: () => insert(column) }, column),
            about.columns[column] ? h("small", {}, about.columns[column]) : null))))),
        h("h2", {}, "Macros"), about.macros.map((one) => h("details", {}, h("summary", {}, one.name),
          h("p", {}, h("code", {}, `${one.name}(${one.arguments})`)), h("p", {}, one.about),
          h("button", { type: "button", onclick: () => insert(`${one.name}(`) }, "Insert"))));
    }
    if (options.query && query() !== options.query) {
      view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: options.query } });
    }
    if (!options.query) {
      asked = null;
      replace(result, h("p", { class: "quiet" }, "One SELECT, DESCRIBE or SUMMARIZE. The selection of models does not apply here; the SQL of other views contains it."));
      return;
    }
    const question = JSON.stringify([options.query, options.rows]);
    root.querySelectorAll(".error").forEach((old) => old.remove());
    if (question !== asked) {
      result.classList.add("stale");
      try {
        found = await ask("sql", { query: options.query, rows: Number(options.rows) || 1000 }, context.signal);
        asked = question;
      } catch (error) {
        if (error.message !== "newer") replace(result, failure(error));
        return;
      } finally {
        result.classList.remove("stale");
      }
    }
    show(await charts(context.signal));
  };
}
