/* Charts: each in a figure with its numbers as a table, a CSV file, and a picture to save. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = () => (dark.matches ? "#eceef0" : "#16181b");
/* An expert looks the same in two traces, wherever it stands in each: by its name's place among all. */
const colour = (name) => { const c = DATA.colours[NAMES.indexOf(name) % DATA.colours.length]; return c === "#000000" ? ink() : c; };
const DASHES = ["solid", "dash", "dot", "dashdot"], BORDERS = ["solid", "dashed", "dotted", "double"];
const cycle = (name, list) => list[Math.floor(NAMES.indexOf(name) / DATA.colours.length) % list.length];
const SCALE = "Cividis";
const narrow = () => innerWidth < 640;
/* Plotly reads some markup and %{…} in texts; names are plain. */
const plain = (text) => text.replaceAll("<", "‹").replaceAll(">", "›").replaceAll("%{", "% {").replaceAll("$", "＄");
const short = (text, most = 14) => plain(text.length > most ? text.slice(0, most - 1) + "…" : text);
const say = (value, digits = 3) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits));

function make(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) found.setAttribute(name, value);
  }
  found.append(...children);
  return found;
}

function save(name, text) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" })) });
  document.body.append(link);
  link.click();
  link.remove();
}

/* A cell that a spreadsheet would run as a formula is marked as text. */
function csvCell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value !== "number" && /^[=+@\-\t\r]/.test(text)) text = "'" + text;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const ROWS_SHOWN = 200;
function tableOf(rows) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((c) => make(tag, {}, typeof c === "number" ? String(+c.toPrecision(5)) : c ?? "–")));
  const found = make("table", {}, make("thead", {}, line(rows[0], "th")), make("tbody", {}, ...rows.slice(1, ROWS_SHOWN + 1).map((r) => line(r, "td"))));
  const left = rows.length - 1 - ROWS_SHOWN;
  return make("div", { tabindex: 0, role: "region", "aria-label": "Numbers" }, found, ...(left > 0 ? [make("p", {}, `${left} more rows are in the CSV file.`)] : []));
}

/* The table is written when somebody opens it: 2,000 tokens are many cells. `rows` is a function. */
function numbersBox(name, rows) {
  const box = make("details", { ontoggle: () => { if (box.open) box.lastChild.replaceWith(tableOf(rows())); } },
    make("summary", {}, "Numbers"), make("div"));
  const csv = make("button", { type: "button", onclick: () => save(`${name}.csv`, rows().map((r) => r.map(csvCell).join(",")).join("\n") + "\n") }, "CSV");
  return { box, csv };
}

const LAYOUT = () => ({
  font: { family: "system-ui, sans-serif", size: narrow() ? 11 : 12, color: ink() }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: false, hoverlabel: { font: { size: 12 } },
});
const LEGEND = { orientation: "h", yref: "container", y: 0, yanchor: "bottom" };
const axis = (more = {}) => ({ automargin: true, fixedrange: true, gridcolor: "rgba(136,136,136,.3)", zerolinecolor: "rgba(136,136,136,.6)", ...more });

/* A chart follows the room it has, which changes when its neighbours come in. */
const resized = new ResizeObserver((all) => requestAnimationFrame(() => {
  for (const { target } of all) {
    const width = target.clientWidth;
    if (target.isConnected && target._fullLayout && width && Math.abs(width - target._fullLayout.width) > 1) Plotly.relayout(target, { width });
  }
}));

/* Draw a chart into the view of one trace; a chart drawn before keeps its frame, and an open table stays open. */
function chart(view, name, caption, { data, layout, height = 320, rows }) {
  const id = `${view.id}-${name}`;
  let frame = document.getElementById(id);
  const open = frame && frame.querySelector("details") && frame.querySelector("details").open;
  const drawn = frame && frame.querySelector(".plot");
  if (drawn) { resized.unobserve(drawn); Plotly.purge(drawn); }
  const fresh = make("figure", { id }, make("figcaption", {}, caption));
  frame ? frame.replaceWith(fresh) : view.append(fresh);
  if (!data) { fresh.append(make("p", { class: "note" }, "Nothing to show for this choice.")); return; }
  const plot = make("div", { class: "plot", role: "img", "aria-label": `${caption}; its numbers are in the table below` });
  plot.style.height = `${height}px`;
  const { box, csv } = numbersBox(id, rows);
  const picture = (format) => make("button", { type: "button", onclick: () => Plotly.downloadImage(plot, { format, filename: id, scale: 2 }) }, format.toUpperCase());
  fresh.append(plot, make("div", { class: "tools" }, picture("svg"), picture("png"), csv), box);
  Plotly.newPlot(plot, data, { ...LAYOUT(), ...layout, height, width: plot.clientWidth }, { displayModeBar: false, scrollZoom: false });
  resized.observe(plot);
  if (open) box.open = true;
}

function heat(z, x, y, title, hover, more = {}) {
  return { type: "heatmap", z, x: x.map((_, i) => i), y: y.map((_, i) => i), colorscale: SCALE, xgap: 1, ygap: 1, hoverongaps: false,
    text: z.map((row, i) => row.map((v, j) => `${plain(y[i])}, ${plain(x[j])}: ${say(v)}`)), hovertemplate: `%{text}${hover}<extra></extra>`,
    colorbar: { title: { text: title, side: "right" }, thickness: 12, outlinewidth: 0 }, ...more };
}
const ticks = (names, more = {}) => {
  const step = Math.ceil(names.length / 24), shown = names.map((_, i) => i).filter((i) => i % step === 0);
  return axis({ tickvals: shown, ticktext: shown.map((i) => short(names[i])), showgrid: false, zeroline: false, ...more });
};

function drawLayers(view, trace, sites) {
  const layers = layersOf(sites.filter((s) => s.n > 1)), both = [[0, "prompt"], [1, "answer"]];
  const everything = both.map(([part]) => layers.map((layer) => meanWeights(trace, sites.filter((s) => s.layer === layer && s.n > 1), part) || []).flat()).flat();
  const range = { zmin: Math.min(0, ...everything), zmax: Math.max(...everything) };
  for (const [part, word] of both) {
    const found = layers.map((layer) => [layer, meanWeights(trace, sites.filter((s) => s.layer === layer && s.n > 1), part)]).filter((one) => one[1]);
    const z = found.map((one) => one[1]), y = found.map((one) => one[0]);
    chart(view, `weights-${word}`, `Mean weights over the ${word}`, !z.length ? {} : {
      data: [heat(z, trace.experts, y, "weight", "", range)], height: Math.max(220, 90 + 15 * y.length),
      layout: { xaxis: ticks(trace.experts, { tickangle: -40 }), yaxis: ticks(y, { title: { text: "layer" }, autorange: "reversed" }) },
      rows: () => [["layer", ...trace.experts], ...z.map((row, i) => [y[i], ...row])],
    });
  }
}

function drawNorms(view, trace, sites) {
  const found = lengths(trace, sites), x = found.map((one) => one.layer), there = trace.experts.map((_, e) => e).filter((e) => found.some((one) => one.added[e]));
  const line = (name, y, c, dash, width) => ({ type: "scatter", mode: "lines+markers", name, x: x.map((_, i) => i), y: y.map((v) => v || null), text: x, marker: { size: 5, color: c },
    line: { color: c, dash, width }, hovertemplate: `layer %{text}, ${name}: %{y:.3g}<extra></extra>` });
  chart(view, "norms", "Mean length of what is added, by layer", !found.length ? {} : {
    data: [...there.map((e) => line(short(trace.experts[e]), found.map((one) => one.added[e]), colour(trace.experts[e]), cycle(trace.experts[e], DASHES), 2)),
      line("base", found.map((one) => one.base), ink(), "dash", 3)],
    height: 360, layout: { xaxis: ticks(x, { title: { text: "layer" } }), yaxis: axis({ type: "log", dtick: 1, title: { text: "length" } }),
      showlegend: there.length <= 14, legend: LEGEND },
    rows: () => [["layer", "base", "whole update", ...trace.experts], ...found.map((one) => [one.layer, one.base, one.update, ...one.added])],
  });
}

function drawRotation(view, trace, name) {
  const site = trace.sites.find((s) => s.name === name && s.maps);
  const names = site ? site.experts.map((e) => trace.experts[e]) : [];
  const rows = () => [["expert", "x before", "y before", "x after", "y after"], ...names.map((n, i) => [n, ...site.maps[0][i], ...site.maps[1][i]])];
  const legend = { showlegend: names.length <= 14, legend: LEGEND };
  const look = (i) => ({ mode: "lines+markers", name: short(names[i]), line: { color: colour(names[i]), dash: cycle(names[i], DASHES) },
    marker: { size: [10, 10], symbol: ["circle-open", "circle"], color: colour(names[i]) }, text: ["before", "after"] });
  const polar = ([x, y]) => [Math.hypot(x, y), Math.atan2(y, x) * 180 / Math.PI];
  const angular = { gridcolor: "rgba(136,136,136,.3)", linecolor: "rgba(136,136,136,.6)" };
  chart(view, "map", "Experts on the plane", !site ? {} : {
    data: names.map((_, i) => ({ type: "scatter", x: site.maps.map((m) => m[i][0]), y: site.maps.map((m) => m[i][1]), hovertemplate: "%{text}: %{x:.3g}, %{y:.3g}", ...look(i) })),
    height: 400, rows, layout: { xaxis: axis({ title: { text: "first axis" } }), yaxis: axis({ scaleanchor: "x", title: { text: "second axis" } }), ...legend } });
  chart(view, "polar", "The same by length and direction", !site ? {} : {
    data: names.map((_, i) => { const at = site.maps.map((m) => polar(m[i])); return { type: "scatterpolar", r: at.map((p) => p[0]), theta: at.map((p) => p[1]), hovertemplate: "%{text}: %{r:.3g} at %{theta:.1f}°", ...look(i) }; }),
    height: 400, layout: { polar: { bgcolor: "rgba(0,0,0,0)", radialaxis: { ...angular, angle: 90, tickangle: 90, nticks: 4 }, angularaxis: angular }, margin: { l: 30, r: 30, t: 30, b: 20 }, ...legend },
    rows: () => [["expert", "length before", "degrees before", "length after", "degrees after"], ...names.map((n, i) => [n, ...polar(site.maps[0][i]), ...polar(site.maps[1][i])])] });
  for (const [place, word] of [[0, "before"], [1, "after"]]) {
    const n = names.length, z = site && names.map((_, i) => names.map((_, j) => { const v = site.pairs[place][i * n + j]; return v < -0.5 ? null : Math.max(v, 0); }));
    const written = n <= 8 ? { texttemplate: "%{z:.0f}°", textfont: { size: 12 } } : {};
    chart(view, `angles-${word}`, `Angles between experts ${word} rotation`, !site ? {} : {
      data: [heat(z, names, names, "degrees", "°", { zmin: 0, zmax: Math.max(90, ...site.pairs.flat()), ...written })], height: 360,
      layout: { xaxis: ticks(names, { tickangle: -40 }), yaxis: ticks(names, { autorange: "reversed" }) },
      rows: () => [["degrees", ...names], ...z.map((row, i) => [names[i], ...row])] });
  }
}

function drawCollapse(view, trace, sites) {
  const found = collapse(trace, sites);
  const gauge = (name, caption, value, top) => chart(view, name, caption, !found ? {} : {
    data: [{ type: "indicator", mode: "gauge+number", value, number: { valueformat: ".3f", font: { size: 26 } },
      gauge: { axis: { range: [0, top], nticks: 5, tickcolor: ink() }, bar: { color: DATA.colours[0] }, borderwidth: 1, bordercolor: "rgba(136,136,136,.6)" } }],
    height: 190, layout: { margin: { l: 36, r: 36, t: 24, b: 8 } }, rows: () => [["measure", "value", "highest"], [caption, value, top]] });
  const all = found || {};
  gauge("entropy", "Entropy of a token’s weights, in nats", all.entropy, Math.max(all.highest, 1e-9));
  gauge("in-use", "Experts in use", all.inUse, all.experts);
  gauge("load", "Load variation", all.variation, Math.sqrt(Math.max((all.experts || 1) - 1, 1)));
}

function drawEffect(view, trace) {
  const names = Object.keys(trace.effect), values = Object.values(trace.effect);
  const reach = Math.max(...values.map(Math.abs), 1e-6) * 1.45, low = Math.min(0, ...values) < 0 ? -reach : 0;
  chart(view, "effect", "Rise of −log p without each expert, nats a token", !names.length ? {} : {
    data: [{ type: "bar", orientation: "h", x: values, y: names.map((_, i) => i), text: values.map((v) => (v >= 0 ? "+" : "−") + say(Math.abs(v))), textposition: "outside", cliponaxis: false,
      marker: { color: values.map((v) => DATA.colours[v >= 0 ? 0 : 1]) }, hovertemplate: "%{text}<extra></extra>", textfont: { color: ink() } }],
    height: Math.max(180, 60 + 26 * names.length), layout: { xaxis: axis({ range: [low, reach] }), yaxis: axis({ tickvals: names.map((_, i) => i), ticktext: names.map((n) => short(n, 18)), autorange: "reversed" }) },
    rows: () => [["switched off", "rise"], ...names.map((n, i) => [n, values[i]])] });
}
