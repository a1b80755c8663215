"use strict";
const { convsim, reports } = JSON.parse(document.getElementById("data").textContent);
const last = reports[reports.length - 1];  // of one report or of several
const several = reports.length > 1;
const label = (r) => several ? r.label : "";
const COLOURS = ["#1b7f5c", "#8a8a8a", "#c8621b", "#6f69b0", "#d2337f", "#5f9620", "#b98f00"];
const colour = (r) => COLOURS[(reports.length - 1 - reports.indexOf(r)) % COLOURS.length];
const state = { layer: 0, image: 0 };
const $ = (id) => document.getElementById(id);
const text = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
const named = (report, name) => report.layers.find((layer) => layer.name === name);
const shown = (layer) => layer.name || "(model)";

function element(tag, { parent, ...properties } = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (parent) parent.append(made);
  return made;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

// Colours: dark to light over eight anchors of viridis; blue, white, red for signed weights.
const ANCHORS = [[68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142], [31, 161, 135],
  [74, 194, 109], [159, 218, 58], [253, 231, 37]];
const SEQUENTIAL = Array.from({ length: 256 }, (_, v) => {
  const place = v / 255 * (ANCHORS.length - 1), n = Math.min(Math.floor(place), ANCHORS.length - 2);
  return ANCHORS[n].map((a, c) => a + (ANCHORS[n + 1][c] - a) * (place - n));
});
const UNDEFINED = [220, 220, 220];
const signed = (v) => v < 0 ? [255 + 2 * v, 255 + 1.2 * v, 255] : [255, 255 - 2 * v, 255 - 1.7 * v];

function paint(canvas, width, height, colour) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let n = 0; n < width * height; n++) pixels.data.set([...colour(n), 255], 4 * n);
  context.putImageData(pixels, 0, 0);
}

// Summary: bars and table ------------------------------------------------------------------------

// Name, cell, what it means, whether it is of the maps (and so differs by report), whether a detail.
const COLUMNS = [
  ["layer", shown, "The layer's name in the model", false, false],
  ["similarity", (x) => text(x.similarity), "Mean |cosine| of two maps of one image: 1 if all are equal", true, false],
  ["maps", (x) => x.filters, "How many feature maps", true, false],
  ["rank", (x) => text(x.effective_rank, 1), "How many directions the maps use (effective rank)", true, false],
  [last.pairs, (x) => x.twins, last.pairs === "twins" ?
    "Pairs of which one can be folded into the other" : "Pairs with similarity of 0.95 or more, of either sign", true, false],
  ...(last.pairs === "twins" ? [["spare", (x) => x.spare === null ? "–" : x.spare,
    "How many maps can go at 1 % of error, told linearly by the others: which layers to shrink first", true, false]] : []),
  ["dead", (x) => x.dead, "Maps that are zero on every image", true, false],
  ["shape", (x) => text(x.correlation), "Similarity less each map's mean (correlation)", true, false],
  ["type", (x) => x.kind, "The layer's type", false, true],
  ["kernels", (x) => text(x.mean_cosine), "Mean |cosine| of two filters", false, true],
  ["CS", (x) => text(x.mean_similarity), "Mean Convolutional Similarity of two filters, crossed and unit", false, true],
  ["bound", (x) => text(x.bound, 2), "The certificate's bound on |cosine|, which tells nothing from 1 on", false, true]];

function summarize() {
  document.title = $("title").textContent = `Redundancy of ${last.model}`;
  const mean = reports.map((r) => text(r.similarity)).join(" → ");
  $("lead").textContent = `Two feature maps of one image have a mean |cosine| of ${mean}, over ` +
    `${last.layers.length} layers and ${last.images.toLocaleString("en")} images. ${last.origin}`;
  $("verdict").textContent = last.verdict;
  reports.forEach((r) => {
    const entry = element("span", { parent: $("key"), textContent: label(r) || "measured" });
    element("i", { parent: entry }).style.background = colour(r);
    entry.prepend(entry.lastChild);
  });
  const entry = element("span", { parent: $("key"), textContent: "unrelated maps" });
  entry.prepend(element("i", { className: "unrelated" }));
  $("ranks").textContent = "Rank correlation with feature-map similarity: " +
    last.ranks.map(([name, layers, pairs]) =>
      `${name} ${text(layers, 2)} across layers, ${text(pairs, 2)} across pairs`).join("; ") + ".";
  const of_pairs = last.pairs === "twins"
    ? "twins: pairs of which one can be folded into the other; spare: maps that can go if 1 % of the energy of " +
      "all may be lost when those that stay tell them"
    : "alike: pairs at 0.95 or more, of either sign";
  $("columns").textContent = `rank: how many directions the maps use; ${of_pairs}; dead: zero on every image; ` +
    "shape: similarity less each map’s mean. Each column’s head says more.";
  if (last.silent.length)
    $("ranks").textContent += ` All maps are zero in ${last.silent.join(", ")}: no similarity, left out of the mean.`;
  $("foot").textContent = `convsim ${convsim}`;
  const head = element("tr", { parent: $("layers").tHead });
  for (const [name, , meaning, , detail] of COLUMNS)
    element("th", { parent: head, textContent: name, title: meaning, className: detail ? "detail" : "" });
  last.layers.forEach((layer, n) => {
    const others = reports.map((r) => named(r, layer.name)).filter(Boolean);
    const bar = element("button", { parent: $("bars"), onclick: () => choose(n) });
    bar.setAttribute("aria-label", `${shown(layer)}: similarity ${text(layer.similarity)}`);
    others.forEach((x) => {
      const fill = element("i", { parent: bar });
      fill.style.height = `${100 * (x.similarity || 0)}%`;
      fill.style.background = colour(reports.find((r) => r.layers.includes(x)));
    });
    element("b", { parent: bar }).style.bottom = `${100 * Math.min(1, layer.unrelated)}%`;
    hover(bar, () => `${shown(layer)}\n${others.map((x) => text(x.similarity)).join(" → ")}`);
    const row = element("tr", { parent: $("layers").tBodies[0], onclick: () => choose(n) });
    for (const [, cell, , each, detail] of COLUMNS) {
      const values = each ? others.map(cell) : [cell(layer)];
      element("td", { parent: row, textContent: [...new Set(values)].join(" → "), className: detail ? "detail" : "" });
    }
    element("option", { parent: $("layer"), value: n, textContent: shown(layer) });
  });
}

// One layer: heat maps ---------------------------------------------------------------------------

function matrixOf(layer, quantity, order) {
  const kept = layer.matrices[quantity];
  if (!kept) return null;
  const ordered = order === "similarity", size = layer.bins;
  const values = bytes(ordered && kept.ordered ? kept.ordered : kept.values);
  const place = ordered && !kept.ordered ? layer.order : null;
  const row = (i) => place ? place[i] : i;
  const at = (i, j) => {  // the upper triangle alone is kept, row by row
    let a = row(i), b = row(j);
    if (a > b) [a, b] = [b, a];
    return values[a * size - a * (a - 1) / 2 + b - a];
  };
  const undefined_ = new Set(kept.undefined);  // filters whose maps are zero on every image
  const defined = (i, j) => !undefined_.has(row(i)) && !undefined_.has(row(j));
  return { size, top: kept.top, at, defined };
}

function filtersOf(layer, bin, order) {
  const filter = (n) => order === "similarity" ? layer.order[n] : n;
  if (layer.width === 1) return `${filter(bin)}`;
  const end = Math.min((bin + 1) * layer.width, layer.filters);
  return order === "similarity" ? `${end - bin * layer.width} filters with ${filter(bin * layer.width)}`
    : `${bin * layer.width}–${end - 1}`;
}

function showHeat() {
  const name = last.layers[state.layer].name, quantity = $("quantity").value, order = $("order").value;
  $("heat").replaceChildren();
  for (const report of reports) {
    const layer = named(report, name);
    if (!layer) continue;
    const figure = element("figure", { parent: $("heat") });
    const matrix = matrixOf(layer, quantity, order);
    if (!matrix) {
      element("figcaption", { parent: figure, textContent: `${label(report)} No such matrix: ${layer.why}` });
      continue;
    }
    const canvas = element("canvas", { parent: figure, className: "heat" });
    paint(canvas, matrix.size, matrix.size, (n) => {
      const i = Math.floor(n / matrix.size), j = n % matrix.size;
      return matrix.defined(i, j) ? SEQUENTIAL[matrix.at(i, j)] : UNDEFINED;
    });
    hover(canvas, (event) => {
      const box = canvas.getBoundingClientRect();
      const bin = (at, from, side) => Math.min(matrix.size - 1, Math.max(0, Math.floor((at - from) / side * matrix.size)));
      const i = bin(event.clientY, box.top, box.height), j = bin(event.clientX, box.left, box.width);
      const mean = layer.width > 1 ? "mean " : "";
      return `${filtersOf(layer, i, order)} × ${filtersOf(layer, j, order)}: ` +
        (matrix.defined(i, j) ? `${mean}${(matrix.at(i, j) / 255 * matrix.top).toFixed(2)}` : "undefined, for a map is zero");
    });
    paint(element("canvas", { parent: figure, className: "legend" }), 256, 1, (n) => SEQUENTIAL[n]);
    element("figcaption", { parent: figure, textContent:
      `${label(report)} 0 (dark) to ${matrix.top.toFixed(2)} (light)` });
    if (quantity !== "maps") continue;
    histogram(element("canvas", { parent: figure, className: "histogram" }), layer.histogram);
    element("figcaption", { parent: figure, textContent: "pairs by |cosine|, from 0 to 1" });
  }
  const layer = last.layers[state.layer];
  $("binned").textContent = layer.width > 1 && layer.matrices.maps ?
    `${layer.filters} filters are binned: each cell is the mean over pairs of ${layer.width} × ${layer.width} filters.` : "";
}

const HISTOGRAM = matchMedia("(prefers-color-scheme: dark)").matches ? [44, 48, 50] : [246, 246, 246];

function histogram(canvas, counts) {
  const most = Math.max(1, ...counts), height = 40;
  paint(canvas, 10 * counts.length, height, (n) => {
    const column = Math.floor(n % (10 * counts.length) / 10), above = height - Math.floor(n / (10 * counts.length));
    return above <= Math.ceil(height * counts[column] / most) && n % 10 ? [80, 130, 110] : HISTOGRAM;
  });
  hover(canvas, (event) => {
    const box = canvas.getBoundingClientRect();
    const n = Math.min(counts.length - 1, Math.floor((event.clientX - box.left) / box.width * counts.length));
    return `${counts[n].toLocaleString("en")} pairs in ${(n / counts.length).toFixed(2)}–${((n + 1) / counts.length).toFixed(2)}`;
  });
}

// One layer: the pairs most alike, on one image --------------------------------------------------

function showPairs() {
  const name = last.layers[state.layer].name;
  $("pairs").replaceChildren();
  for (const report of reports) {
    const layer = named(report, name);
    if (!layer) continue;
    const cards = element("div", { parent: $("pairs"), className: "cards" });
    if (several) element("h3", { parent: cards, textContent: label(report) });
    if (!layer.worst.length) element("p", { parent: cards, textContent: `No pairs: ${layer.why}` });
    layer.worst.forEach((pair, n) => card(cards, layer, pair, n));
  }
  const pictures = last.examples;
  if (!pictures.count) return;
  const { values, count, channels, height, width } = pictures, area = height * width;
  const data = bytes(values), base = (state.image % count) * channels * area;
  paint($("input"), width, height, (n) =>
    [0, 1, 2].map((c) => data[base + (c % channels) * area + n]));
}

function card(parent, layer, pair, n) {
  const box = element("div", { parent, className: "card" });
  element("p", { parent: box, textContent: `${pair.first} and ${pair.second}: similarity ${text(pair.similarity)}` +
    (pair.cosine === null ? "; " : `, ${pair.cosine < 0 ? "negatives" : "of one sign"} (cosine ${text(pair.cosine)}); `) +
    `kernels ${text(pair.kernel_cosine)}, CS ${text(pair.convolutional_similarity)}` });
  const pictures = layer.pictures;
  if (!pictures) return;
  [pair.first, pair.second].forEach((filter, which) => {
    const row = element("div", { parent: box, className: "row" });
    element("span", { parent: row, textContent: filter });
    const { slices, kernel_height: kh, kernel_width: kw } = pictures;
    const weights = bytes(pictures.kernels);
    for (let s = 0; s < slices; s++) {
      const from = ((2 * n + which) * slices + s) * kh * kw;
      const canvas = element("canvas", { parent: row, className: "kernel" });
      paint(canvas, kw, kh, (p) => signed(weights[from + p] << 24 >> 24));
    }
    const { height, width } = pictures, values = bytes(pictures.maps);
    const from = (((state.image % pictures.images) * layer.worst.length + n) * 2 + which) * height * width;
    paint(element("canvas", { parent: row, className: "map" }), width, height, (p) => SEQUENTIAL[values[from + p]]);
  });
}

// Choosing and hovering --------------------------------------------------------------------------

function hover(target, describe) {
  target.addEventListener("pointermove", (event) => {
    const tip = $("tip");
    tip.textContent = describe(event);
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${event.clientY + 14}px`;
  });
  target.addEventListener("pointerleave", () => { $("tip").hidden = true; });
}

function choose(n) {
  state.layer = (n + last.layers.length) % last.layers.length;
  const layer = last.layers[state.layer];
  $("layer").value = state.layer;
  $("layer-title").textContent = `${shown(layer)}: ${layer.filters} maps, similarity ${text(layer.similarity)}`;
  for (const list of [$("bars").children, $("layers").tBodies[0].rows])
    [...list].forEach((item, i) => item.classList.toggle("chosen", i === state.layer));
  showHeat();
  showPairs();
}

summarize();
for (let n = 0; n < last.examples.count; n++) element("option", { parent: $("image"), value: n, textContent: n + 1 });
$("image").onchange = () => { state.image = Number($("image").value); showPairs(); };
$("layer").onchange = () => choose(Number($("layer").value));
$("previous").onclick = () => choose(state.layer - 1);
$("next").onclick = () => choose(state.layer + 1);
$("quantity").onchange = $("order").onchange = showHeat;
$("details").onchange = () => $("layers").classList.toggle("detailed", $("details").checked);
choose(last.first);
