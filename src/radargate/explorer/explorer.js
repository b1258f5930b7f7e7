/* The text, its tokens and their numbers, and what the reader chooses. */
const at = (id) => document.getElementById(id);
const choice = { layer: "", kind: "" };
const texts = [];

/* What a token looks like: white space and control characters get a sign. */
function shown(text) {
  const parts = [];
  for (const c of text) {
    const code = c.codePointAt(0);
    if (c === "\n") parts.push(make("span", { class: "sign" }, "↵"), "\n");
    else if (c === "\t") parts.push(make("span", { class: "sign" }, "⇥"), " ");
    else if (code < 32) parts.push(make("span", { class: "sign" }, String.fromCharCode(0x2400 + code)));
    else if (code >= 0xd800 && code <= 0xdfff) parts.push("\ufffd");
    else if ((code >= 127 && code < 160) || (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069))
      parts.push(make("span", { class: "sign" }, `<${code.toString(16)}>`));
    else parts.push(c);
  }
  return parts.length ? parts : [make("span", { class: "sign" }, "·")];
}

function leading(per, t) {
  let best = -1, most = 0;
  for (let e = 0; e < per.N; e++) { const w = Math.abs(per.weights[t * per.N + e]); if (w > most) { most = w; best = e; } }
  return [best, most];
}

class Text {
  constructor(trace, place, encoder) {
    Object.assign(this, { trace, encoder, prefix: `${place ? "b-" : ""}${encoder ? "encoder-" : ""}token-`, chosen: 0 });
    this.list = encoder ? trace.encoder : trace.tokens;
    this.box = make("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": `${encoder ? "What the encoder reads" : "Text"}, ${trace.name}` });
    this.spans = this.list.map((text, t) => make("span", { class: "tok", role: "option", id: this.prefix + t, tabindex: t ? -1 : 0, "aria-selected": "false" }, ...shown(text)));
    this.spans.forEach((span, t) => {
      if (!encoder && t === trace.prompt && t) this.box.append(make("span", { class: "answer", role: "presentation" }, "answer"));
      this.box.append(span);
    });
    this.panel = make("div", { class: "panel", "aria-live": "polite" });
    const id = `${this.prefix}numbers`, { box, csv } = numbersBox(id, () => this.rows());
    this.holder = make("div", {}, make("h3", {}, `${encoder ? "What the encoder reads" : encoder === false && trace.encoder.length ? "What the decoder reads" : "Text"}${TRACES.length > 1 ? `, ${trace.name}` : ""}`),
      this.box, this.panel, make("div", { class: "tools" }, csv), box);
    const tokenOf = (event) => this.spans.indexOf(event.target.closest(".tok"));
    this.box.addEventListener("pointerover", (event) => { const t = tokenOf(event); if (t >= 0) this.show(t); });
    this.box.addEventListener("focusin", (event) => { const t = tokenOf(event); if (t >= 0) this.select(t); });
    this.box.addEventListener("pointerleave", () => this.show(this.chosen));
    this.box.addEventListener("click", (event) => { const t = tokenOf(event); if (t >= 0) { this.select(t); history.replaceState(null, "", `#${this.prefix}${t}`); } });
    this.box.addEventListener("keydown", (event) => {
      const last = this.spans.length - 1, to = { ArrowRight: this.chosen + 1, ArrowLeft: this.chosen - 1, Home: 0, End: last, ArrowDown: this.chosen + 10, ArrowUp: this.chosen - 10 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.spans[Math.max(0, Math.min(last, to))].focus();
    });
  }

  rows() {
    const per = this.per;
    return [["token", "text", "part", "entropy", "mean angle", ...this.trace.experts], ...this.list.map((text, t) =>
      [t, text, !this.encoder && t >= this.trace.prompt ? "answer" : "prompt", per.entropy[t], per.angle[t], ...per.weights.slice(t * per.N, (t + 1) * per.N)])];
  }

  paint(sites) {
    this.per = perToken(this.trace, sites, this.encoder);
    this.spans.forEach((span, t) => {
      const [best, most] = leading(this.per, t), name = this.trace.experts[best];
      span.style.setProperty("--c", best < 0 ? "transparent" : colour(name));
      span.style.setProperty("--w", Math.min(1, 0.15 + most).toFixed(3));
      span.style.setProperty("--s", best < 0 ? "solid" : cycle(name, BORDERS));
    });
    const details = this.holder.querySelector("details");
    if (details.open) details.lastChild.replaceWith(tableOf(this.rows()));
    this.select(this.chosen);
  }

  select(t) {
    if (!this.spans[t]) return;
    const before = this.spans[this.chosen];
    before.setAttribute("aria-selected", "false");
    before.tabIndex = -1;
    this.chosen = t;
    this.spans[t].setAttribute("aria-selected", "true");
    this.spans[t].tabIndex = 0;
    this.show(t);
  }

  show(t) {
    if (!this.spans[t]) return;
    const per = this.per, fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
    const order = this.trace.experts.map((_, e) => e).sort((a, b) => Math.abs(per.weights[t * per.N + b]) - Math.abs(per.weights[t * per.N + a]));
    const most = Math.max(...order.map((e) => Math.abs(per.weights[t * per.N + e])), 1e-9), bars = make("div", { class: "bars" });
    for (const e of order) {
      const bar = make("span", { class: "bar" });
      bar.style.setProperty("--c", colour(this.trace.experts[e]));
      bar.style.setProperty("--w", Math.abs(per.weights[t * per.N + e]) / Math.max(most, 1));
      bars.append(make("span", {}, this.trace.experts[e]), bar, make("span", {}, say(per.weights[t * per.N + e])));
    }
    const surprise = !this.encoder && t > 0 && this.trace.nll.length ? [fact("−log p", say(this.trace.nll[t - 1]))] : [];
    this.panel.replaceChildren(
      make("div", {}, make("strong", {}, `Token ${t}: `), make("code", {}, ...shown(this.list[t])), " ", make("a", { href: `#${this.prefix}${t}` }, "link")),
      make("dl", {}, fact("entropy", `${say(per.entropy[t])} nats`), fact("mean angle", per.turning ? `${say(per.angle[t])} rad` : "nothing turns"), ...surprise),
      per.sites ? bars : make("p", {}, "None of the chosen sites has more than one expert here."));
  }
}

function views(section) {
  return TRACES.map((trace, i) => {
    const id = `${section}-${i}`;
    if (!at(id)) {
      const view = make("div", { id, class: TRACES.length > 1 ? "stack" : "views" }, ...(TRACES.length > 1 ? [make("h3", {}, trace.name)] : []));
      document.querySelector(`#${section} > .views`).append(view);
      if (TRACES.length === 1) view.style.gridColumn = "1 / -1";
    }
    return at(id);
  });
}

function drawChoice() {
  const sites = TRACES.map((trace) => matching(trace, choice.layer, choice.kind));
  at("chosen").value = [...new Set(TRACES.map((t, i) => `${sites[i].length} of ${t.sites.length} sites`))].join(" and ");
  texts.forEach(({ text, place }) => text.paint(sites[place]));
  views("layers").forEach((view, i) => drawLayers(view, TRACES[i], matching(TRACES[i], "", choice.kind)));
  views("norms").forEach((view, i) => drawNorms(view, TRACES[i], matching(TRACES[i], "", choice.kind)));
  views("collapse").forEach((view, i) => drawCollapse(view, TRACES[i], sites[i]));
}
const drawSite = () => views("rotation").forEach((view, i) => drawRotation(view, TRACES[i], at("site").value));
const drawEffects = () => views("effect").forEach((view, i) => drawEffect(view, TRACES[i]));

function legend() {
  at("legend").replaceChildren(...NAMES.map((name) => {
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" }, "A");
    swatch.style.setProperty("--c", colour(name));
    swatch.style.setProperty("--s", cycle(name, BORDERS));
    return make("li", {}, swatch, name);
  }));
}

function follow() {
  const found = location.hash.match(/^#(b-)?(encoder-)?token-(\d+)$/);
  if (!found || !at(location.hash.slice(1))) return;
  texts.filter(({ text }) => text.encoder === Boolean(found[2])).forEach(({ text }) => text.select(Number(found[3])));
  at(location.hash.slice(1)).scrollIntoView({ block: "center" });
  at(location.hash.slice(1)).focus({ preventScroll: true });
}

function options(select, values, all) {
  select.replaceChildren(...(all ? [make("option", { value: "" }, all)] : []), ...values.map((v) => make("option", { value: v }, v)));
}

/* Show one trace or two, in place of those shown before. */
function show(traces) {
  for (const plot of document.querySelectorAll(".plot")) { resized.unobserve(plot); Plotly.purge(plot); }
  for (const holder of [at("facts"), at("texts"), ...document.querySelectorAll("section > .views")]) holder.replaceChildren();
  texts.length = 0;
  Object.assign(choice, { layer: "", kind: "" });
  TRACES = traces.map(unpack);
  NAMES = [...new Set(TRACES.flatMap((trace) => trace.experts))];
  TRACES.forEach((trace, place) => {
    const { base, gate, architecture, top_k: k } = trace.facts;
    at("facts").append(make("p", { class: "fact" }, [`${TRACES.length > 1 ? `${trace.name}: ` : ""}${base ?? "a base model"}`, `gate ${gate}`, architecture, k ? `top ${k}` : "all experts kept",
      `${trace.experts.length} experts`, `${trace.sites.length} sites`, `${trace.tokens.length} tokens`].filter(Boolean).join(" · ")));
    const holder = make("div");
    for (const encoder of trace.encoder.length ? [true, false] : [false]) {
      const text = new Text(trace, place, encoder);
      texts.push({ text, place });
      holder.append(text.holder);
    }
    at("texts").append(holder);
  });
  const all = TRACES.flatMap((t) => t.sites);
  options(at("layer"), layersOf(all), "all");
  options(at("kind"), [...new Set(all.map((s) => s.kind))], "all");
  options(at("site"), [...new Set(all.filter((s) => s.maps).map((s) => s.name))]);
  drawAll();
  document.body.dataset.drawn = document.querySelectorAll(".main-svg").length ? "yes" : "no";
}
const drawAll = () => { legend(); drawChoice(); drawSite(); drawEffects(); };

function start() {
  for (const name of ["layer", "kind"]) at(name).addEventListener("change", (event) => { choice[name] = event.target.value; drawChoice(); });
  at("choice").addEventListener("submit", (event) => event.preventDefault());
  at("site").addEventListener("change", drawSite);
  dark.addEventListener("change", drawAll);
  addEventListener("hashchange", follow);
  if (!DATA.traces.length) return;
  show(DATA.traces);
  follow();
}
start();
