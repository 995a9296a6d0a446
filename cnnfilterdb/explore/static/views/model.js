// A model, one of its layers, one of its kernels.

import { ask, askBytes, askLong, unpacked } from "../api.js";
import { charts, colourBar, distributions, kernelCanvas, valueBar } from "../charts.js";
import { failure, h, hideTip, labelled, number, replace, reproduce, select, showTip, table, text } from "../dom.js";

const FACTS = { architecture: "Architecture", family: "Family", task: "Task", domain: "Domain",
  training_dataset: "Trained on", pretraining_dataset: "Pretrained on", license: "Licence", framework: "Framework",
  file_format: "File format", parameters: "Parameters", conv_layers: "Convolution layers",
  stored_filters: "Stored filters", untrained: "Flagged untrained", metrics: "Published metrics", revision: "Revision",
  url: "Origin", paper: "Paper", weights_sha256: "SHA-256 of the file", ingested_at: "Imported" };

/** A link, if the text is an address of the web; anything else stays a text. */
function linked(value) {
  const [, doi] = String(value).match(/^(?:doi:)?(10\.\d{4,}\/\S+)$/i) ?? [];
  const [, arxiv] = String(value).match(/^(?:arxiv:)?(\d{4}\.\d{4,5})$/i) ?? [];
  const found = /^https?:\/\/\S+$/i.test(value) ? value
    : doi ? `https://doi.org/${encodeURI(doi)}` : arxiv ? `https://arxiv.org/abs/${arxiv}` : null;
  return found ? h("a", { href: found, rel: "noreferrer noopener", target: "_blank" }, value) : text(value);
}

/** A quantile of the absolute values of at most some 100,000 weights. */
function quantile(weights, share) {
  const step = Math.ceil(weights.length / 100_000);
  const some = weights.filter((_, i) => i % step === 0).map(Math.abs).sort();
  return some[Math.floor(share * (some.length - 1))];
}

function crumbs(context, key, ...more) {
  return h("p", { class: "crumbs" }, h("a", { href: context.href("models", {}) }, "Models"), " / ",
    more.length ? h("a", { href: context.href("model", { model: key }) }, key) : key,
    more.map((part) => [" / ", part]));
}

export function model(root) {
  const body = h("div", {});
  root.append(body);
  return async function update(context) {
    const key = context.options.model;
    const [found, chart] = await Promise.all([ask("model", { model: key }, context.signal), charts(context.signal)]);
    const { facts, layers } = found;
    const original = Object.entries(facts.original ?? {});
    const stored = layers.filter((row) => row.stored);
    const depth = h("div", { class: "chart" });
    const relatives = h("section", { "aria-label": "Related models" });
    const link = (row) => (row.stored ? h("a", { href: context.href("layer", { model: key, layer: row.layer }) }, row.layer_name) : row.layer_name);
    const other = (name) => h("a", { href: context.href("model", { model: name }) }, name);
    replace(body,
      crumbs(context, key), h("h1", {}, facts.name),
      h("div", { class: "columns" },
        h("dl", { class: "facts" }, Object.entries(FACTS).filter(([name]) => facts[name] !== null && facts[name] !== false)
          .map(([name, title]) => [h("dt", {}, title), h("dd", {}, linked(facts[name]))]),
        facts.license === null ? [h("dt", {}, "Licence"), h("dd", { class: "quiet" }, "unknown")] : null),
        h("section", { "aria-label": "Nearest models" }, h("h2", {}, "Nearest models"),
          found.nearest.length ? table("Nearest models", [
            { key: "model_id", title: "Model", cell: (row) => other(row.model_id) },
            { key: "shift", title: "Shift (nats)", numeric: true, cell: (row) => row.shift.toFixed(4) }, { key: "filters", title: "Filters", numeric: true }], found.nearest)
            : h("p", { class: "quiet" }, found.nearest_reason || "There is no other model with kernels of this size."),
          found.nearest.length ? h("p", { class: "quiet" }, `By the shift of ${found.kernel} kernels.`) : null,
          found.shared.length ? [h("h2", {}, "Models that share layers"), table("Models that share layers", [
            { key: "model", title: "Model", cell: (row) => other(row.model_a === key ? row.model_b : row.model_a) },
            { key: "shared_layers", title: "Layers", numeric: true },
            { key: "share", title: "Share", numeric: true, cell: (row) => `${(100 * row.share).toFixed(0)} %` }], found.shared)] : null,
          relatives)),
      stored.length ? [h("h2", {}, "Quality by depth"), depth] : null,
      h("h2", {}, "Layers"),
      table("Layers", [
        { key: "layer", title: "No.", numeric: true }, { key: "layer_name", title: "Name", cell: link },
        { key: "kind", title: "Kind" }, { key: "kernel", title: "Kernel" },
        { key: "in_channels", title: "In", numeric: true }, { key: "out_channels", title: "Out", numeric: true },
        { key: "stride_h", title: "Stride", numeric: true }, { key: "conv_depth", title: "Depth", numeric: true },
        { key: "filters", title: "Kernels", numeric: true },
        ...[["sparsity", "Sparsity"], ["variance_entropy", "Variance entropy"], ["orthogonality", "Orthogonality"]].map(
          ([column, title]) => ({ key: column, title, numeric: true, cell: (row) => row[column]?.toFixed(4) ?? "" })),
        { key: "dtype", title: "Type" }], layers),
      original.length ? h("details", {}, h("summary", {}, "What the source states"),
        h("dl", { class: "facts" }, original.map(([name, value]) => [h("dt", {}, name), h("dd", {}, linked(value))]))) : null,
      facts.skipped?.length ? h("details", {}, h("summary", {}, `${facts.skipped.length} parts were left out`),
        h("ul", {}, facts.skipped.map((reason) => h("li", {}, reason)))) : null,
      reproduce({ SQL: found.sql, "Command line": found.command }));
    const related = showRelated(relatives, key, other, context.signal);
    if (!stored.length) {
      await related;
      return;
    }
    const line = (name, column, symbol, dash) => ({ name, type: "line", symbol, symbolSize: 7, lineStyle: { width: 1.5, type: dash },
      data: stored.map((row) => ({ value: [row.layer, row[column]], layer: row })) });
    const made = chart(depth, {
      grid: { left: 56, right: 16, top: 40, bottom: 48 }, legend: { top: 4, type: "scroll" },
      xAxis: { type: "value", name: "layer", min: "dataMin", max: "dataMax", minInterval: 1 },
      yAxis: { type: "value", min: 0 },
      series: [line("sparsity", "sparsity", "circle", "solid"), line("variance entropy", "variance_entropy", "rect", "dashed"),
        line("random kernels' entropy", "randomness_threshold", "none", "dotted"), line("orthogonality", "orthogonality", "triangle", "solid")],
    }, `Quality of ${stored.length} layers by depth. The table below has the same.`);
    made.on("mouseover", ({ data, event, seriesName }) => data && showTip(event.event.clientX, event.event.clientY,
      [`${data.layer.layer} ${data.layer.layer_name}`, `${seriesName} ${number(data.value[1])}`]));
    made.on("mouseout", hideTip);
    made.on("click", ({ data }) => data && context.go("layer", { model: key, layer: data.layer.layer }));
    await related;
  };
}

/** The models that were trained from one another, which take longer to find than the rest of the page. */
async function showRelated(section, key, other, signal) {
  replace(section, h("h2", {}, "Related models"), h("p", { class: "quiet" }, "Searching …"));
  try {
    const found = await ask("related", { model: key }, signal);
    replace(section, h("h2", {}, "Related models"),
      found.rows.length ? table("Related models", [
        { key: "model", title: "Model", cell: (row) => other(row.model_a === key ? row.model_b : row.model_a) },
        { key: "cosine", title: "Cosine", numeric: true, cell: (row) => row.cosine.toFixed(3) },
        { key: "layers", title: "Layers", numeric: true }], found.rows)
        : h("p", { class: "quiet" }, found.reason || "None was trained from this one, or the other way round."),
      reproduce({ SQL: found.sql, "Command line": found.command }));
  } catch (error) {
    if (error.message !== "newer") replace(section, h("h2", {}, "Related models"), failure(error));
  }
}

export function layer(root) {
  const body = h("div", {});
  root.append(body);
  return async function update(context) {
    const { model: key } = context.options;
    const [chosen, out, into] = ["layer", "out", "in"].map((name) => Number(context.options[name]) || 0);
    const request = { model: key, layer: chosen, out, in: into };
    const bytes = await askBytes("layer", request, context.signal);
    const size = new DataView(bytes).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, size)));
    const weights = new Float32Array(bytes.slice(4 + size));
    const [outs, ins, height, width] = head.shape;
    const whole = head.whole;
    const scale = context.options.scale || "layer";
    // One output channel per row; several where there are few input channels.
    const perRow = Math.max(1, Math.min(outs, Math.floor(Math.sqrt(outs * ins) / ins)));
    const columns = perRow * ins;
    const room = Math.max(320, Math.min(1100, document.documentElement.clientWidth - 60));
    const zoom = Math.max(1, Math.min(Math.floor(40 / width) || 1, Math.floor(room / (columns * width + columns))));
    // One weight that is far larger than all others would leave these white.
    const bound = Math.min(head.largest, 1.5 * quantile(weights, 0.995) || head.largest);
    const canvas = kernelCanvas(weights, [outs * ins, height, width],
      { columns, zoom, bound: scale === "layer" ? bound : 0, gap: 1 });
    canvas.element.className = zoom < 3 ? "kernels dense" : "kernels";
    canvas.element.tabIndex = 0;
    canvas.element.setAttribute("role", "application");
    canvas.element.setAttribute("aria-roledescription", "picture of kernels");
    const name = (place) => [head.start[0] + Math.floor(place / ins), head.start[1] + (place % ins)];
    const told = (place) => {
      const [o, i] = name(place);
      return [`out ${o}, in ${i}`, ...Array.from({ length: height }, (_, row) => Array.from(
        weights.subarray((place * height + row) * width, (place * height + row + 1) * width), (value) => value.toPrecision(3)).join("  "))];
    };
    const open = (place) => {
      const [o, i] = name(place);
      context.go("kernel", { model: key, layer: chosen, out: o, in: i });
    };
    let current = 0;
    canvas.element.setAttribute("aria-label", `${outs * ins} kernels. Arrow keys move, Enter opens one.`);
    canvas.element.addEventListener("pointermove", (event) => {
      const place = canvas.at(event);
      if (place === null) hideTip();
      else showTip(event.clientX, event.clientY, told(place));
    });
    canvas.element.addEventListener("pointerleave", hideTip);
    canvas.element.addEventListener("blur", hideTip);
    canvas.element.addEventListener("click", (event) => {
      const place = canvas.at(event);
      if (place !== null) open(place);
    });
    canvas.element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (step) {
        event.preventDefault();
        if (current + step >= 0 && current + step < outs * ins) current += step;
        const box = canvas.element.getBoundingClientRect();
        const [unitX, unitY] = [width * zoom + 1, height * zoom + 1];
        const lines = told(current);
        canvas.element.setAttribute("aria-label", lines.join("; "));
        showTip(box.left + ((current % columns) + 1) * unitX, box.top + (Math.floor(current / columns) + 1) * unitY, lines);
      } else if (event.key === "Enter") open(current);
    });
    const page = (label, change, possible) => (possible ? h("a", { class: "button",
      href: context.href("layer", { ...context.options, ...change }) }, label) : null);
    const family = h("section", { "aria-label": "Coefficients" });
    const facts = head.layer;
    const peak = Number(bound.toPrecision(3));
    const beyond = bound < head.largest;
    replace(body,
      crumbs(context, key, `layer ${chosen}`), h("h1", {}, facts.layer_name),
      h("p", {}, [`${number(facts.filters)} ${facts.kernel} kernels`, facts.kind, `${whole[0]} out × ${whole[1]} in`,
        facts.conv_depth === null ? null : `depth ${facts.conv_depth}`, `sparsity ${number(facts.sparsity)}`,
        `variance entropy ${number(facts.variance_entropy)}`, `orthogonality ${number(facts.orthogonality)}`]
        .filter(Boolean).join(" · ")),
      h("div", { class: "line" },
        labelled("Colours", select([["layer", "over the layer's weights"], ["kernel", "over each kernel's weights"]], scale,
          (value) => context.go("layer", { ...context.options, scale: value }), { "data-focus": "scale" })),
        scale === "layer" ? colourBar("weights", `${beyond ? "≤ " : ""}−${peak}`, `${beyond ? "≥ " : ""}${peak}`, `weight${beyond ? `; the largest is ${number(head.largest)}` : ""}`) : colourBar("weights", "−max", "max", "of each kernel"),
        page("Previous output channels", { out: Math.max(0, out - outs) }, out > 0),
        page("Next output channels", { out: out + outs }, out + outs < whole[0]),
        page("Previous input channels", { in: Math.max(0, into - ins) }, into > 0),
        page("Next input channels", { in: into + ins }, into + ins < whole[1])),
      h("p", { class: "quiet" }, `Output channels ${out} to ${out + outs - 1}, ${perRow > 1 ? `${perRow} per row, ` : "one per row, "}input channels ${into} to ${into + ins - 1} from left to right.`),
      h("div", { class: "scroll image", role: "region", "aria-label": "Kernels", tabindex: "0" }, canvas.element),
      family, reproduce({ SQL: head.sql, "Command line": head.command }));
    try {
      const found = await ask("coefficients", { model: key, layer: chosen }, context.signal);
      found.shares = unpacked(found.shares);
      replace(family, h("h2", {}, "Coefficients"),
        h("p", { class: "legend" }, found.labels.map((label, i) => [h("span", { class: `swatch a${i}` }), label])),
        h("div", { class: "scroll", role: "region", "aria-label": "Distributions", tabindex: "0" }, distributions(found, { overlay: true })),
        reproduce({ SQL: found.sql }));
    } catch (error) {
      if (error.message !== "newer") replace(family, h("p", { class: "quiet" }, error.message));
    }
  };
}

export function kernel(root) {
  const body = h("div", {});
  root.append(body);
  return async function update(context) {
    const { options, selection } = context;
    const number_ = (name) => Number(options[name]) || 0;
    const flags = { sign: options.sign === "true", centred: options.centred === "true", rotation: options.rotation === "true" };
    const request = { model: options.model, layer: number_("layer"), out: number_("out"), in: number_("in"), selection, ...flags };
    const found = await ask("kernel", request, context.signal);
    const bar = h("progress", { max: Math.max(found.searched, 1), value: 0, "aria-label": "Search of the kernels" });
    const count = h("span", { class: "quiet" }, `Searching ${number(found.searched)} ${found.shape.join("x")} kernels …`);
    const nearest = h("div", {}, h("p", { class: "line" }, bar, count));
    const [height, width] = found.shape;
    const small = (weights, zoom) => kernelCanvas(Float32Array.from(weights), [1, height, width], { columns: 1, zoom, bound: 0, gap: 0 }).element;
    const most = Math.max(...found.weights.map(Math.abs), 1e-30);
    const rows = Array.from({ length: height }, (_, row) => found.weights.slice(row * width, (row + 1) * width));
    const flag = (name, label) => h("label", { class: "value" }, h("input", { type: "checkbox", checked: flags[name], "data-focus": name,
      onchange: (event) => context.go("kernel", { ...options, [name]: event.target.checked ? "true" : "" }) }), h("span", {}, label));
    const layerLink = h("a", { href: context.href("layer", { model: options.model, layer: request.layer }) }, `layer ${request.layer}`);
    const near = ({ similarity, variant, model_id: key, layer: at, out_channel: out, in_channel: into, weights }) => h("li", {},
      h("a", { href: context.href("kernel", { model: key, layer: at, out, in: into }) }, small(weights, Math.max(1, Math.floor(60 / width))),
        h("span", {}, similarity.toFixed(3)), variant === "identity" ? null : h("span", { class: "quiet" }, variant),
        h("span", { class: "name" }, `${key}, layer ${at}, out ${out}, in ${into}`)));
    const big = small(found.weights, Math.max(2, Math.floor(180 / Math.max(width, height))));
    big.setAttribute("role", "img");
    big.setAttribute("aria-label", "Picture of the kernel; the table has its weights");
    const reach = Math.max(...found.coefficients.map(Math.abs), 1e-12);
    replace(body,
      crumbs(context, options.model, layerLink, `out ${request.out}, in ${request.in}`),
      h("h1", {}, `Kernel out ${request.out}, in ${request.in}`),
      h("div", { class: "columns" },
        h("div", {}, h("div", { class: "line" }, big,
          width <= 7 ? h("table", { class: "weights" }, h("caption", {}, `Weights; largest ${number(most)}`),
            h("tbody", {}, rows.map((row) => h("tr", {}, row.map((weight) => h("td", { class: "numeric" }, weight.toPrecision(3))))))) : null),
        colourBar("weights", `−${Number(most.toPrecision(3))}`, String(Number(most.toPrecision(3))), "weight")),
        found.coefficients.length ? h("div", {}, table("Coefficients", [
          { key: "i", title: "Coefficient", cell: (row) => `c${row.i}` }, { key: "value", title: "Value", numeric: true },
          { key: "bar", title: "", cell: (row) => valueBar(row.value, reach, true) }],
        found.coefficients.slice(0, 49).map((value, i) => ({ i, value })))) : null),
      found.coefficients_reason ? h("p", { class: "quiet" }, found.coefficients_reason) : null,
      reproduce({ SQL: found.sql }),
      h("h2", {}, "Nearest kernels"),
      h("div", { class: "line" }, flag("sign", "Negatives count too"), flag("centred", "Ignore an added constant"), flag("rotation", "Rotations and reflections count too")),
      nearest);
    try {
      const search = await askLong("nearest", request, context.signal, (done) => {
        bar.value = done;
        count.textContent = `${number(Math.min(done, found.searched))} of ${number(found.searched)} kernels searched`;
      });
      replace(nearest,
        search.nearest.length ? h("ol", { class: "gallery" }, search.nearest.map(near)) : failure(new Error(search.nearest_reason || "None.")),
        reproduce({ SQL: search.sql, "Command line": search.command }));
    } catch (error) {
      if (error.message !== "newer") replace(nearest, failure(error));
    }
  };
}
