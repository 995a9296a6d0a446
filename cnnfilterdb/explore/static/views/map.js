// Map: the models in a plane, so that distances approach shifts.

import { ask } from "../api.js";
import { charts, ramp } from "../charts.js";
import { h, hideTip, labelled, number, replace, reproduce, select, showTip, table } from "../dom.js";
import { controls, grouping } from "./groups.js";

const COLOURS = [["domain", "domain"], ["task", "task"], ["family", "family"], ["architecture", "architecture"],
  ["training_dataset", "trained on"], ["source", "source"], ["license", "licence"], ["framework", "framework"],
  ["untrained", "flagged untrained"], ["parameters", "parameters"], ["stored_filters", "filters"], ["conv_layers", "layers"]];
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect", "emptyTriangle"];
const MOST = 8; // values with a colour of their own

export function map(root) {
  const form = h("form", { class: "controls", onsubmit: (event) => event.preventDefault() });
  const body = h("div", {});
  root.append(h("h1", {}, "Map"), form, body);

  return async function update(context) {
    const { about, options, selection, signal, go } = context;
    const colour = options.colour || "domain";
    const change = (changed) => go("map", { ...options, ...changed });
    replace(form, labelled("Colour", select(COLOURS, colour, (value) => change({ colour: value }), { "data-focus": "colour" })),
      controls(about, { balance: "models", ...options }, change,
        { by: false, order: false, metrics: about.metrics.filter((name) => name !== "directed") }));
    body.classList.add("stale");
    const request = grouping({ balance: "models", ...options }, selection);
    let found;
    let chart;
    try {
      [found, chart] = await Promise.all([ask("map", { ...request, colour }, signal), charts(signal)]);
    } finally {
      body.classList.remove("stale");
    }
    root.querySelectorAll(".error").forEach((old) => old.remove());
    const points = found.models.map((key, i) => ({ name: key, value: [found.x[i], found.y[i]], told: found.colour[i] }));
    const canvas = h("div", { class: "chart tall" });
    const lasso = h("button", { type: "button", "aria-pressed": "false" }, "Lasso");
    const state = h("span", { role: "status" });
    const use = h("button", { type: "button", hidden: true }, "Select these models");
    const reset = h("button", { type: "button" }, "Whole map");
    const share = found.explained.slice(0, 2).map((part) => `${(100 * part).toFixed(0)} %`);
    replace(body,
      h("div", { class: "line" }, lasso, reset, state, use),
      canvas,
      h("p", { class: "quiet" }, `${number(points.length)} models; their distances approach the shifts between them (classical scaling). Both axes have the same scale; they explain ${share.join(" and ")} of the variation. Wheel or pinch zooms, a point leads to its model.`),
      h("details", {}, h("summary", {}, "The same as a table"), table("Models on the map", [
        { key: "name", title: "Model", cell: (row) => h("a", { href: context.href("model", { model: row.name }) }, row.name) },
        { key: "told", title: colour }, { key: "x", title: "x", numeric: true, cell: (row) => number(row.value[0]) },
        { key: "y", title: "y", numeric: true, cell: (row) => number(row.value[1]) }], points)),
      reproduce({ SQL: found.sql, Python: found.python, "Command line": found.command }));

    const numeric = points.some((point) => typeof point.told === "number");
    const series = numeric ? byNumber(points) : byCategory(points);
    // Both axes have one scale, so that distances can be compared by eye.
    const ends = [0, 1].map((axis) => [Math.min, Math.max].map((end) => end(...points.map((point) => point.value[axis]))));
    const sides = [canvas.clientWidth - 20, canvas.clientHeight - (numeric ? 88 : 64)];
    const unit = 1.08 * Math.max(...ends.map(([low, high], axis) => (high - low || 1) / sides[axis]));
    const span = (axis) => {
      const middle = (ends[axis][0] + ends[axis][1]) / 2;
      return { min: middle - (unit * sides[axis]) / 2, max: middle + (unit * sides[axis]) / 2 };
    };
    const made = chart(canvas, {
      grid: { left: 8, right: 12, top: numeric ? 16 : 56, bottom: numeric ? 72 : 8, containLabel: false },
      legend: numeric ? undefined : { type: "scroll", top: 4, left: 4, right: 4 },
      xAxis: { type: "value", ...span(0), axisLabel: { show: false }, axisTick: { show: false } },
      yAxis: { type: "value", ...span(1), axisLabel: { show: false }, axisTick: { show: false } },
      dataZoom: [{ type: "inside", xAxisIndex: 0, filterMode: "none" }, { type: "inside", yAxisIndex: 0, filterMode: "none" }],
      brush: { brushLink: "all", xAxisIndex: 0, throttleType: "debounce", outOfBrush: { colorAlpha: 0.15 }, inBrush: {} },
      visualMap: numeric ? { type: "continuous", dimension: 2, min: numeric.low, max: numeric.high, calculable: true,
        orient: "horizontal", left: "center", bottom: 4, inRange: { color: ramp() }, ...limits(points),
        textStyle: { color: getComputedStyle(canvas).color } } : undefined,
      series,
    }, `Map of ${points.length} models, coloured by ${colour}. The table below has the same.`);
    made.on("mouseover", ({ data, event }) => data && showTip(event.event.clientX, event.event.clientY,
      [data.name, `${colour}: ${data.told ?? "unknown"}`]));
    made.on("mouseout", hideTip);
    made.on("click", ({ data }) => data && go("model", { model: data.name }));
    let active = false;
    const toggle = (on) => {
      active = on;
      lasso.setAttribute("aria-pressed", String(on));
      made.dispatchAction({ type: "takeGlobalCursor", key: "brush", brushOption: { brushType: on ? "polygon" : false, brushMode: "single" } });
    };
    lasso.addEventListener("click", () => toggle(!active));
    reset.addEventListener("click", () => {
      made.dispatchAction({ type: "brush", areas: [] });
      made.dispatchAction({ type: "dataZoom", start: 0, end: 100 });
      made.dispatchAction({ type: "dataZoom", dataZoomIndex: 1, start: 0, end: 100 });
      toggle(false);
    });
    let caught = [];
    made.on("brushselected", ({ batch }) => {
      caught = batch[0].selected.flatMap(({ seriesIndex, dataIndex }) => dataIndex.map((i) => series[seriesIndex].data[i].name));
      state.textContent = batch[0].areas.length ? `${number(caught.length)} models in the lasso` : "";
      use.hidden = !caught.length;
    });
    use.addEventListener("click", () => go("map", options, { ...selection, models: caught }));
  };
}

function limits(points) {
  const values = points.map((point) => point.told).filter((value) => typeof value === "number");
  return { min: Math.min(...values), max: Math.max(...values), formatter: (value) => number(Math.round(value)) };
}

const shape = (points, more) => ({ type: "scatter", symbolSize: points.length > 300 ? 8 : 11,
  itemStyle: { opacity: 0.85 }, cursor: "pointer", ...more });

function byNumber(points) {
  const known = points.map((point) => ({ ...point, value: [...point.value, point.told ?? 0] }));
  return [shape(points, { data: known })];
}

function byCategory(points) {
  const counts = new Map();
  for (const { told } of points) counts.set(told, (counts.get(told) ?? 0) + 1);
  const known = [...counts].filter(([value]) => value !== null).sort((a, b) => b[1] - a[1]).map(([value]) => value);
  const own = known.slice(0, MOST);
  const rest = known.length > MOST ? [["other", (point) => point.told !== null && !own.includes(point.told)]] : [];
  const named = [...own.map((value) => [String(value), (point) => point.told === value]), ...rest,
    ["unknown", (point) => point.told === null]];
  return named.map(([name, mine], i) => shape(points, { name, symbol: SYMBOLS[i % SYMBOLS.length], data: points.filter(mine),
    ...(name === "unknown" || name === "other" ? { color: name === "other" ? "#7a7a7a" : "#adadad", symbol: "circle" } : {}) }))
    .filter((one) => one.data.length);
}
