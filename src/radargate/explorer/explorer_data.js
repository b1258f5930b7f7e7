"use strict";
/* From the numbers in the page to means over the chosen sites. */
const DATA = JSON.parse(document.getElementById("data").textContent);
let TRACES = [], NAMES = [];  // what is shown now, and the experts of all of it; `show` in explorer.js sets them

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

function numbers(packed) {
  const raw = bytes(packed.data);
  const whole = packed.bits === 16 ? new Int16Array(raw.buffer) : new Int8Array(raw.buffer);
  return Float32Array.from(whole, (value) => value * packed.step);
}

/* A trace as the file or the server has it, its packed numbers made into arrays. */
function unpack(trace) {
  for (const site of trace.sites) {
    site.n = site.experts.length;
    site.weights = numbers(site.weights);
    site.angles = site.angles && numbers(site.angles);
    site.length = site.weights.length / site.k;
    const raw = site.indices && bytes(site.indices);
    site.indices = raw && (site.wide ? new Int16Array(raw.buffer) : raw);
    site.pairs = site.pairs && site.pairs.map((one) => Array.from(numbers(one)));
  }
  return trace;
}

/* The expert of the composition that stands in a slot. */
const expertAt = (site, token, slot) => site.experts[site.indices ? site.indices[token * site.k + slot] : slot];
const matching = (trace, layer, kind) =>
  trace.sites.filter((s) => (layer === "" || s.layer === layer) && (kind === "" || s.kind === kind));
const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);

function entropyOf(weights) {
  let sum = 0, found = 0;
  for (const w of weights) sum += Math.abs(w);
  if (!sum) return 0;
  for (const w of weights) if (w) found -= (Math.abs(w) / sum) * Math.log(Math.abs(w) / sum);
  return found;
}

/* Weights [tokens × experts], entropy and angle of every token, averaged over sites with more than one expert. */
function perToken(trace, sites, encoder) {
  const T = (encoder ? trace.encoder : trace.tokens).length, N = trace.experts.length;
  const found = { N, weights: new Float64Array(T * N), entropy: new Float64Array(T), angle: new Float64Array(T), sites: 0, turning: 0 };
  for (const site of sites) {
    if (site.encoder !== encoder || site.n < 2) continue;
    found.sites++;
    if (site.angles) found.turning++;
    for (let t = 0; t < T; t++) {
      for (let s = 0; s < site.k; s++) found.weights[t * N + expertAt(site, t, s)] += site.weights[t * site.k + s];
      found.entropy[t] += entropyOf(site.weights.subarray(t * site.k, (t + 1) * site.k));
      if (site.angles) found.angle[t] += site.angles[t];
    }
  }
  const share = 1 / Math.max(found.sites, 1);
  for (const list of [found.weights, found.entropy]) for (let i = 0; i < list.length; i++) list[i] *= share;
  for (let t = 0; t < T; t++) found.angle[t] /= Math.max(found.turning, 1);
  return found;
}

/* Mean weights [experts] of some sites over the prompt (0) or the answer (1); null where there are none. */
function meanWeights(trace, sites, part) {
  const sums = new Float64Array(trace.experts.length);
  let count = 0;
  for (const site of sites) {
    const cut = site.encoder ? site.length : Math.min(trace.prompt, site.length);
    const [from, to] = part === 0 ? [0, cut] : [cut, site.length];
    for (let t = from; t < to; t++) for (let s = 0; s < site.k; s++) sums[expertAt(site, t, s)] += site.weights[t * site.k + s];
    count += to - from;
  }
  return count ? Array.from(sums, (v) => v / count) : null;
}

/* Entropy, experts in use and load variation over sites with more than one expert. */
function collapse(trace, sites) {
  const many = sites.filter((s) => s.n > 1), load = new Float64Array(trace.experts.length), there = new Set();
  let entropy = 0, count = 0, slots = 1;
  for (const site of many) {
    site.experts.forEach((e) => there.add(e));
    slots = Math.max(slots, site.k);
    for (let t = 0; t < site.length; t++) {
      const own = site.weights.subarray(t * site.k, (t + 1) * site.k);
      entropy += entropyOf(own);
      for (let s = 0; s < site.k; s++) load[expertAt(site, t, s)] += Math.abs(own[s]);
    }
    count += site.length;
  }
  if (!count) return null;
  const used = [...there].map((e) => load[e]), middle = mean(used);
  const spread = middle ? Math.sqrt(mean(used.map((v) => (v - middle) ** 2))) / middle : 0;
  return { entropy: entropy / count, highest: Math.log(slots), inUse: Math.exp(entropyOf(load)), experts: there.size, variation: spread };
}

const layersOf = (sites) => [...new Set(sites.map((s) => s.layer))];

/* Layer → mean length of what each expert adds, and of the base's own output, over prompt and answer. */
function lengths(trace, sites) {
  return layersOf(sites).map((layer) => {
    const added = new Float64Array(trace.experts.length);
    let base = 0, update = 0, count = 0;
    for (const site of sites.filter((s) => s.layer === layer)) {
      const cut = site.encoder ? site.length : Math.min(trace.prompt, site.length);
      [cut, site.length - cut].forEach((tokens, part) => {
        if (!tokens) return;
        site.experts.forEach((e, i) => { added[e] += tokens * site.norms[0][part][i]; });
        base += tokens * site.norms[1][part][0];
        update += tokens * site.norms[2][part][0];
        count += tokens;
      });
    }
    return { layer, added: Array.from(added, (v) => v / count), base: base / count, update: update / count };
  });
}
