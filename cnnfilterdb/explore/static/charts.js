// Pictures: heat map and kernels on a canvas, distributions as SVG, axes and points by ECharts.

import { hideTip, number, showTip, svg } from "./dom.js";

// Blue, white, red for weights; light to dark for shifts. Both can be told apart without red and green.
const DIVERGING = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];
const LIGHT = [[255, 255, 255], [222, 235, 247], [158, 202, 225], [66, 146, 198], [8, 81, 156], [8, 37, 88]];
const DARK = [[24, 28, 36], [20, 54, 98], [32, 102, 160], [86, 160, 206], [168, 212, 236], [246, 251, 255]];

/** Colours of categories (Okabe and Ito's, which do not depend on red and green), then three greys. */
const CATEGORIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#b59f00", "#7f7f7f"];

const dark = matchMedia("(prefers-color-scheme: dark)");

export function onTheme(call) {
  dark.addEventListener("change", call);
}

function mixed(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const part = place - low;
  return stops[low].map((value, i) => Math.round(value + part * (stops[low + 1][i] - value)));
}

/** 256 colours of a scale as 32-bit pixels. */
function palette(stops) {
  const pixels = new Uint32Array(256);
  for (let i = 0; i < 256; i += 1) {
    const [r, g, b] = mixed(stops, i / 255);
    pixels[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return pixels;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A bar that explains colours, with a number at each end. */
export function colourBar(kind, low, high, label) {
  const canvas = document.createElement("canvas");
  canvas.width = 256;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(palette(kind === "weights" ? DIVERGING : dark.matches ? DARK : LIGHT));
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-hidden", "true");
  const bar = document.createElement("div");
  bar.className = "colour-bar";
  const text = (value) => Object.assign(document.createElement("span"), { textContent: value });
  bar.append(text(low), canvas, text(high), text(label));
  return bar;
}

/**
 * A square matrix as a heat map. The largest colour is that of the 95th percentile, so that a group of few filters does
 * not make the others look alike.
 *
 * Returns {element, high}; onpick(row, column) is called for a cell that is clicked, or chosen with Enter.
 */
export function heatMap(labels, values, { describe, onpick, picked }) {
  const count = labels.length;
  const others = values.filter((value, i) => Number.isFinite(value) && Math.floor(i / count) !== i % count);
  const sorted = Float64Array.from(others).sort();
  const largest = sorted.at(-1) ?? 1;
  const upper = sorted.length > 20 ? sorted[Math.floor(0.95 * (sorted.length - 1))] : largest;
  const high = upper > 0 && largest > 1.5 * upper ? upper : largest || 1;
  const ratio = window.devicePixelRatio || 1;
  const named = count <= 80;
  const room = Math.max(320, Math.min(innerWidth, 1600) - 280);
  const size = named ? Math.max(13, Math.min(46, Math.floor(room / count))) : Math.max(2, Math.floor(900 / count));
  const font = named ? Math.min(13, Math.max(9, size - 3)) : 0;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const family = css("--font");
  context.font = `${font}px ${family}`;
  const cut = (label) => (label.length > 32 ? `${label.slice(0, 20)}…${label.slice(-10)}` : label);
  const margin = named ? Math.ceil(Math.max(...labels.map((label) => context.measureText(cut(label)).width))) + 8 : 0;
  const side = count * size;
  canvas.width = Math.round((margin + side + (named ? 0 : 2)) * ratio);
  canvas.height = Math.round((margin + side + (named ? 0 : 2)) * ratio);
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.style.height = `${canvas.height / ratio}px`;
  canvas.className = "heat";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "heat map");

  const colours = palette(dark.matches ? DARK : LIGHT);
  const small = document.createElement("canvas");
  small.width = small.height = count;
  const image = small.getContext("2d").createImageData(count, count);
  const pixels = new Uint32Array(image.data.buffer);
  const place = (value) => Math.round(255 * Math.min(1, Math.sqrt(Math.max(0, value) / high)));
  for (let i = 0; i < values.length; i += 1) {
    pixels[i] = Number.isFinite(values[i]) ? colours[place(values[i])] : 0xff888888;
  }
  small.getContext("2d").putImageData(image, 0, 0);

  let cell = picked ?? [0, Math.min(1, count - 1)];
  let active = Boolean(picked);

  function draw() {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, margin, margin, side, side);
    if (named) {
      context.font = `${font}px ${family}`;
      context.fillStyle = css("--ink");
      context.textBaseline = "middle";
      context.textAlign = "right";
      labels.forEach((label, i) => context.fillText(cut(label), margin - 5, margin + (i + 0.5) * size));
      context.save();
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      labels.forEach((label, i) => context.fillText(cut(label), -margin + 5, margin + (i + 0.5) * size));
      context.restore();
    }
    if (size >= 34) {
      context.textAlign = "center";
      context.font = `${11}px ${family}`;
      for (let i = 0; i < values.length; i += 1) {
        const shade = place(values[i]) / 255;
        context.fillStyle = (shade > 0.55) !== dark.matches ? "#fff" : "#111";
        const shown = values[i] >= 10 ? values[i].toFixed(0) : values[i] >= 1 ? values[i].toFixed(2) : values[i].toFixed(3);
        const x = margin + ((i % count) + 0.5) * size;
        context.fillText(shown, x, margin + (Math.floor(i / count) + 0.5) * size);
      }
    }
    if (active) {
      context.strokeStyle = css("--accent");
      context.lineWidth = 2;
      const width = Math.max(size, 5);
      context.strokeRect(margin + cell[1] * size - 1, margin + cell[0] * size - 1, width + 2, width + 2);
    }
  }

  const told = ([row, column]) => describe(row, column, values[row * count + column]);
  function move(next) {
    cell = next;
    active = true;
    canvas.setAttribute("aria-label", `Shifts between ${count} groups. ${told(cell).join(", ")}. Enter opens the pair.`);
    draw();
  }
  canvas.setAttribute("aria-label", `Shifts between ${count} groups. Arrow keys move, Enter opens a pair.`);
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = box.width / (canvas.width / ratio);
    const column = Math.floor(((event.clientX - box.left) / scale - margin) / size);
    const row = Math.floor(((event.clientY - box.top) / scale - margin) / size);
    return row >= 0 && column >= 0 && row < count && column < count ? [row, column] : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    const found = at(event);
    if (found) showTip(event.clientX, event.clientY, told(found));
    else hideTip();
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (found) {
      move(found);
      onpick(...found);
    }
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      const clipped = (value) => Math.min(Math.max(value, 0), count - 1);
      const next = active ? [clipped(cell[0] + step[0]), clipped(cell[1] + step[1])] : cell;
      move(next);
      const box = canvas.getBoundingClientRect();
      showTip(box.left + margin + (next[1] + 1) * size, box.top + margin + (next[0] + 1) * size, told(next));
    } else if (event.key === "Enter") onpick(...cell);
    else if (event.key === "Escape") hideTip();
  });
  canvas.addEventListener("blur", hideTip);
  draw();
  return { element: canvas, high, clipped: high < largest };
}

/** Kernels on a canvas: {element, at(event)}; kernel(i) gives the weights of the i-th. */
export function kernelCanvas(weights, [count, height, width], { columns, zoom, bound, gap = 1 }) {
  const canvas = document.createElement("canvas");
  const rows = Math.ceil(count / columns);
  const [stepX, stepY] = [width * zoom + gap, height * zoom + gap];
  canvas.width = columns * stepX - gap;
  canvas.height = rows * stepY - gap;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = palette(DIVERGING);
  const size = height * width;
  for (let i = 0; i < count; i += 1) {
    const left = (i % columns) * stepX;
    const top = Math.floor(i / columns) * stepY;
    let peak = bound;
    if (!bound) {
      peak = 0;
      for (let j = 0; j < size; j += 1) peak = Math.max(peak, Math.abs(weights[i * size + j]));
    }
    for (let j = 0; j < size; j += 1) {
      const weight = weights[i * size + j];
      const share = peak ? Math.min(1, Math.max(-1, weight / peak)) : 0;
      const colour = Number.isFinite(weight) ? colours[Math.round(127.5 + 127.5 * share)] : 0xff00ff00;
      const x = left + (j % width) * zoom;
      const y = top + Math.floor(j / width) * zoom;
      for (let dy = 0; dy < zoom; dy += 1) {
        const start = (y + dy) * canvas.width + x;
        pixels.fill(colour, start, start + zoom);
      }
    }
  }
  context.putImageData(image, 0, 0);
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale) / stepX);
    const row = Math.floor(((event.clientY - box.top) * scale) / stepY);
    const place = row * columns + column;
    return column >= 0 && column < columns && row >= 0 && place < count ? place : null;
  };
  return { element: canvas, at };
}

/** Distributions: one row per group and one column per component; with `overlay` all groups in one row. */
export function distributions({ labels, shares, shape: [groups, components, bins], low, high, ratios, filters },
  { overlay = false, describe } = {}) {
  const [left, top, cellW, cellH, gapX] = [overlay ? 8 : 190, 34, 104, overlay ? 84 : 40, 10];
  const rows = overlay ? 1 : groups;
  const width = left + components * (cellW + gapX);
  const height = top + rows * (cellH + 6) + 22;
  const root = svg("svg", {
    class: "ridges", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `Distributions of ${components} coefficients of ${labels.join(", ")}`.slice(0, 500),
  });
  // Only the bins that hold something in any group are drawn.
  for (let c = 0; c < components; c += 1) {
    let first = bins - 1;
    let last = 0;
    let peak = 0;
    for (let g = 0; g < groups; g += 1) {
      for (let b = 0; b < bins; b += 1) {
        const share = shares[(g * components + c) * bins + b];
        if (share > 0.0005) {
          first = Math.min(first, b);
          last = Math.max(last, b);
        }
        peak = Math.max(peak, share);
      }
    }
    if (last <= first) [first, last] = [0, bins - 1];
    const x0 = left + c * (cellW + gapX);
    const x = (b) => x0 + (cellW * (b - first)) / (last - first + 1);
    root.append(svg("text", { x: x0 + cellW / 2, y: 14, "text-anchor": "middle" }, `c${c}`),
      svg("text", { x: x0 + cellW / 2, y: 28, "text-anchor": "middle", class: "small" },
        `${(100 * ratios[c]).toFixed(1)} %`));
    for (let g = 0; g < groups; g += 1) {
      const base = top + (overlay ? 0 : g * (cellH + 6)) + cellH;
      // Each group has its own height, as in the papers: the shape counts.
      let own = 0;
      for (let b = first; b <= last; b += 1) own = Math.max(own, shares[(g * components + c) * bins + b]);
      const scale = cellH / ((overlay ? peak : own) || 1);
      let path = `M${x(first)} ${base}`;
      for (let b = first; b <= last; b += 1) {
        const y = (base - scale * shares[(g * components + c) * bins + b]).toFixed(1);
        path += `L${x(b).toFixed(1)} ${y}L${x(b + 1).toFixed(1)} ${y}`;
      }
      const line = svg("path", { d: `${path}L${x(last + 1).toFixed(1)} ${base}`, class: `area a${g % 2}${overlay ? " over" : ""}` });
      root.append(line);
    }
    const edge = (b) => number(Number((low + ((high - low) * b) / bins).toPrecision(2)));
    const bottom = top + rows * (cellH + 6) + 8;
    root.append(svg("text", { x: x0, y: bottom, class: "small" }, edge(first)),
      svg("text", { x: x0 + cellW, y: bottom, "text-anchor": "end", class: "small" }, edge(last + 1)));
  }
  if (!overlay) {
    labels.forEach((label, g) => {
      const y = top + g * (cellH + 6) + cellH / 2;
      const shown = label.length > 26 ? `${label.slice(0, 16)}…${label.slice(-8)}` : label;
      root.append(svg("text", { x: left - 8, y, "text-anchor": "end" }, shown, svg("title", {}, label)),
        svg("text", { x: left - 8, y: y + 14, "text-anchor": "end", class: "small" },
          describe ? describe(g) : `${number(filters[g])} filters`));
    });
  }
  return root;
}

/** A bar for a number, to the left of the middle for a negative one if there are such numbers. */
export function valueBar(value, largest, signed) {
  const [width, height] = [160, 12];
  const origin = signed ? width / 2 : 0;
  const length = ((width - origin) * Math.abs(value)) / (largest || 1);
  return svg("svg", { class: "bar", width, height, "aria-hidden": "true" },
    svg("rect", { x: value < 0 ? origin - length : origin, y: 2, width: length, height: height - 4, class: value < 0 ? "a1" : "a0" }),
    svg("line", { x1: origin + 0.5, x2: origin + 0.5, y1: 0, y2: height }));
}

let library;

/**
 * Load what draws charts, and return it: chart(element, option, label).
 *
 * A view waits for it together with its data, so that its controls appear with the chart that they act on.
 */
export async function charts(signal) {
  library ??= await import("./vendor/charts.js");
  if (signal.aborted) throw new Error("newer");
  return chart;
}

/** A chart by ECharts in an element of the document. */
function chart(element, option, label) {
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
  const made = library.init(element, null, { renderer: "canvas" });
  const ink = css("--ink");
  const axis = (given) => ({
    axisLine: { lineStyle: { color: css("--quiet") } },
    nameTextStyle: { color: ink }, splitLine: { lineStyle: { color: css("--rule") } },
    nameLocation: "middle", nameGap: 34, ...given,
    axisLabel: { color: ink, hideOverlap: true, ...given.axisLabel },
  });
  made.setOption({
    animation: false, backgroundColor: "transparent", color: CATEGORIES, textStyle: { fontFamily: css("--font") },
    ...option,
    ...(option.legend ? { legend: { itemWidth: 14, itemHeight: 12, textStyle: { color: ink }, pageTextStyle: { color: ink }, ...option.legend } } : {}),
    xAxis: axis(option.xAxis), yAxis: axis(option.yAxis),
  });
  // It is called at the start, too, when there is nothing to do.
  const observer = new ResizeObserver(() => {
    if (!element.isConnected) observer.disconnect();
    else if (made.getWidth() !== element.clientWidth || made.getHeight() !== element.clientHeight) made.resize();
  });
  observer.observe(element);
  return made;
}

/** The ramp of colours for a number, as CSS colours. */
export function ramp() {
  return (dark.matches ? DARK.slice(2) : LIGHT.slice(2)).map((rgb) => `rgb(${rgb.join(",")})`);
}
