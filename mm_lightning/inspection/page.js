"use strict";
// What is shown follows from `view` alone, which is kept in the address (#t=12&l=0&h=1...), so that any view is a link.

const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens.length, H = data.heads;
const NUMBERS = { "<f4": Float32Array, "<u2": Uint16Array, "<u4": Uint32Array };
const NAMES = {
  long: "Long-term memory", short: "Short-term memory", full: "Contextual memory",
  attention: { long: "Long attention", short: "Short attention", full: "Attention" },
};
const attends = data.network === "Transformer";
const mosaic = !attends;
const SHOWN = 12; // rows of a list before "show all"
const at = (id) => document.getElementById(id);
const PART = "◦"; // a token that is a part of a character, which the last of its tokens shows
const opened = new Set(); // levels whose list is shown whole

// ---- data

function unpack(array) {
  if (!array.values) {
    const bytes = Uint8Array.from(atob(array.data), (c) => c.charCodeAt(0));
    array.values = new NUMBERS[array.type](bytes.buffer);
    delete array.data;
  }
  return array.values;
}
const memoryOf = (layer, level) => data.memories.find((m) => m.layer === layer && m.level === level);
const number = (memory, name, h, t) => unpack(memory[name])[h * T + t];
const count = (memory, t) => Math.max(0, Math.min(t + 1 - memory.delay, memory.size ?? Infinity));
const weightOf = (code) => (code < 65535 ? 2 ** (-code / 3072) : 0); // as encode_weights stored it

/** The pairs kept of a read, largest weight first. */
function pairsOf(memory, h, t) {
  const key = memory.delay + "," + memory.size;
  if (!pairsOf[key]) {
    const starts = new Uint32Array(T + 1);
    for (let s = 0; s < T; s++) starts[s + 1] = starts[s] + Math.min(count(memory, s), data.pairs);
    pairsOf[key] = starts;
  }
  const starts = pairsOf[key], ages = unpack(memory.ages), codes = unpack(memory.codes);
  const found = [];
  for (let i = h * starts[T] + starts[t]; i < h * starts[T] + starts[t + 1]; i++) {
    found.push({ position: t - ages[i], age: ages[i], weight: weightOf(codes[i]) });
  }
  return found;
}

// ---- texts and numbers

const tokenText = (t) => data.pieces[t];
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length)).replace(/^ /, "␣");
const quoted = (t) => visible(tokenText(t)) || PART;
function past(t) { // recent tokens up to t, in one line
  let text = "";
  for (let s = Math.max(0, t - 7); s < t; s++) text += tokenText(s);
  return text.replace(/\s*\n\s*/g, " ↵ ").replace(/\s+/g, " ").slice(-44);
}
function percent(x) {
  if (x >= 0.9995) return "100%";
  if (x >= 0.0995) return (100 * x).toFixed(1) + "%";
  if (x >= 0.00095) return (100 * x).toFixed(2) + "%";
  return x > 0 ? (100 * x).toPrecision(1) + "%" : "0%";
}
const figures = (x, n = 3) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(n))).replace("-", "−");
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat());
  return made;
}
function paragraph(id, html) { at(id).innerHTML = html; } // for texts written here only, never for the document's
const levelName = (level) => (attends ? NAMES.attention : NAMES)[level];

// ---- the view

const METRICS = {
  effective: ["effective pairs", "Effective number of pairs read: exp(entropy of the weights). 1 is a look-up of one pair, n an average over all."],
  share: ["share of pairs read", "Effective number of pairs divided by the number n that could be read: near 0 is a sharp read, 1 is an average over all."],
  distance: ["mean distance", "Mean distance of what is read, in tokens: the sum of weight × (t − i)."],
  largest: ["largest weight", "The largest weight of a single pair."],
};
const AXES = { log: "logarithmic axes", linear: "linear axes" };
const LINES = { mean: "mean over heads, a line a layer", head: "this head, a line a layer", heads: "this layer, a line a head" };
const view = { t: T - 1, l: data.layers[0], h: 0, m: "effective", a: "log", c: "mean" };

/** The sharpest read of the last token: a view that is worth looking at first. */
function startView() {
  const level = data.levels.includes("short") && data.levels.length === 1 ? "short" : data.levels.find((x) => x !== "short");
  let best = Infinity;
  for (const l of data.layers) for (let h = 0; h < H; h++) {
    const memory = memoryOf(l, level), share = number(memory, "effective", h, T - 1) / count(memory, T - 1);
    if (share > 0 && share < best) { best = share; view.l = l; view.h = h; }
  }
}
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (name, high) => {
    const n = Number(asked.get(name));
    return asked.has(name) && Number.isInteger(n) && n >= 0 && n < high ? n : view[name];
  };
  view.t = whole("t", T);
  const layer = whole("l", data.all_layers);
  if (data.layers.includes(layer)) view.l = layer;
  view.h = whole("h", H);
  for (const [name, table] of [["m", METRICS], ["a", AXES], ["c", LINES]]) if (asked.get(name) in table) view[name] = asked.get(name);
}
function show(change) {
  const before = { ...view };
  Object.assign(view, change);
  view.t = Math.max(0, Math.min(T - 1, view.t));
  view.h = Math.max(0, Math.min(H - 1, view.h));
  history.replaceState(null, "", "#" + new URLSearchParams(view));
  if (view.t !== before.t) opened.clear();
  draw();
}
function step(name, by) {
  if (name === "l") {
    const index = data.layers.indexOf(view.l) + by;
    if (index >= 0 && index < data.layers.length) show({ l: data.layers[index] });
  } else show({ [name]: view[name] + by });
}

// ---- one memory's panel

const panels = data.levels.map((level) => {
  const text = element("div", {
    class: "text", tabindex: 0, role: "listbox", "aria-label": `${levelName(level)}: the text; arrow keys choose a token`,
    "aria-activedescendant": "", onkeydown: moveInText, onclick: (event) => {
      const token = event.target.closest("[data-t]");
      if (token) show({ t: Number(token.dataset.t) });
    },
  });
  const spans = data.tokens.map((_, t) => {
    const span = element("span", { "data-t": t, id: `${level}-${t}`, role: "option" });
    const parts = tokenText(t).split("\n");
    parts.forEach((part, n) => { if (n) span.append(element("i", {}, "↵"), "\n"); span.append(part); });
    if (tokenText(t) === "") span.append(element("i", {}, PART));
    return span;
  });
  text.append(...spans);
  const panel = { level, text, spans, about: element("p", { class: "muted" }), facts: element("dl", { class: "facts" }),
    scale: element("div", { class: "scale" }), lists: element("div") };
  panel.card = element("article", { class: "card" }, element("h3", {}, levelName(level)), panel.about, panel.facts, text,
    panel.scale, panel.lists);
  return panel;
});
at("panels").append(...panels.map((panel) => panel.card));

function moveInText(event) {
  const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -T, End: T }[event.key];
  if (by === undefined && !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  show({ t: by === undefined ? lineAway(event.currentTarget, event.key === "ArrowUp" ? -1 : 1) : view.t + by });
}
/** The token above or below the chosen one. */
function lineAway(text, by) {
  const boxes = text.children, here = boxes[view.t].offsetTop, left = boxes[view.t].offsetLeft;
  let t = view.t;
  while (boxes[t + by] && boxes[t].offsetTop === here) t += by;
  const line = boxes[t].offsetTop;
  let best = t;
  for (; boxes[t] && boxes[t].offsetTop === line; t += by) {
    if (Math.abs(boxes[t].offsetLeft - left) < Math.abs(boxes[best].offsetLeft - left)) best = t;
  }
  return best;
}

function drawPanel(panel) {
  const { level, spans } = panel, memory = memoryOf(view.l, level), { t, h } = view;
  const pairs = pairsOf(memory, h, t), n = count(memory, t), highest = pairs.length ? pairs[0].weight : 0;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const newest = t - memory.delay, oldest = newest - n + 1;
  const weights = new Map(pairs.map((pair) => [pair.position, pair.weight]));
  spans.forEach((span, i) => {
    let kind = "later", w = 0, tip = "comes later";
    if (i === t) [kind, tip] = ["query", "the token that reads"];
    else if (i < t && i > newest) [kind, tip] = ["waiting", "not readable yet"];
    else if (i < oldest) [kind, tip] = ["gone", "older than the window"];
    else if (i <= newest) {
      [kind, tip] = ["rest", "read, but its weight is too small to be kept here"];
      if (weights.has(i)) {
        w = Math.sqrt(weights.get(i) / (highest || 1));
        kind = w > (dark ? 0.5 : 0.72) ? "read strong" : "read";
        tip = `weight ${percent(weights.get(i))}`;
      }
    }
    if (i === t && weights.has(i)) tip += `, of itself with weight ${percent(weights.get(i))}`;
    if (span.className !== kind) span.className = kind;
    span.style.setProperty("--w", w.toFixed(3));
    span.title = `token ${i}, ${tip}`;
    span.setAttribute("aria-selected", i === t);
  });
  panel.text.setAttribute("aria-activedescendant", spans[t].id);
  const box = panel.text, top = spans[t].offsetTop;
  if (top < box.scrollTop + 30 || top > box.scrollTop + box.clientHeight - 50) box.scrollTop = top - box.clientHeight * 0.6;
  panel.about.textContent = describeSpan(memory);
  panel.facts.replaceChildren(...facts(memory, n));
  panel.scale.replaceChildren("0", element("div", { "aria-hidden": "true" }), `${percent(highest)}, the largest (colour ∝ √weight)`);
  panel.lists.replaceChildren(...(n ? lists(panel, memory, pairs, n) : [element("p", { class: "muted" },
    `Nothing is stored for this token yet: the answer is 0. The first pair can be read at token ${memory.delay}.`)]));
}

function describeSpan(memory) {
  const d = memory.delay;
  const wait = d > 1 ? `The newest ${d - 1} pairs (t−${d - 1} … t−1) cannot be read yet.` : "";
  if (attends && d === 0) return memory.size ? `Reads the newest ${memory.size} tokens, its own included.` : "Reads all tokens so far, its own included.";
  if (memory.size) return `Reads the newest ${memory.size} pairs, t−${d + memory.size - 1} … t−${d}. What is older is cut off.`;
  return `Reads all pairs up to t−${d}. ${wait}`;
}

function facts(memory, n) {
  const { t, h } = view, value = (name) => figures(number(memory, name, h, t));
  const rows = [[attends ? "keys n" : "pairs n", n.toLocaleString("en")], ["effective pairs", value("effective")],
    ["mean distance", n ? value("distance") + " tokens" : "–"]];
  if (memory.beta) rows.push(["bandwidth β", value("beta")], ["gate g", value("gate")], ["decay λ", value("decay")]);
  if (memory.alpha_psi) rows.push(["value norm α_ψ", figures(memory.alpha_psi[h])]);
  if (memory.gamma) rows.push(["γ", figures(memory.gamma[h])]);
  if (attends) rows.push(["factor 1/√D", figures(data.head_dim ** -0.5)]);
  return rows.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text)));
}

function lists(panel, memory, pairs, n) {
  const kept = pairs.reduce((sum, pair) => sum + pair.weight, 0), ahead = memory.ahead ? 1 : 0;
  const whole = opened.has(panel.level), rows = whole ? pairs : pairs.slice(0, SHOWN);
  const sums = new Map();
  for (const { position, weight } of pairs) {
    const token = data.tokens[position + ahead];
    sums.set(token, (sums.get(token) ?? 0) + weight);
  }
  const votes = [...sums].sort((a, b) => b[1] - a[1]).slice(0, 6);
  const table = element("table", { class: "pairs" }, element("caption", {}, `Pairs of largest weight`),
    element("thead", {}, element("tr", {}, ...["weight", "i", "t−i", "key: the past up to i",
      ahead ? "value: next" : "value: token i"].map((name, c) => element("th", { scope: "col", class: c === 4 ? "next" : null }, name)))),
    element("tbody", {}, rows.map((pair) => pairRow(panel, pair, ahead, pairs[0].weight))));
  const left = Math.max(0, 1 - kept), rest = n - pairs.length;
  const total = rest
    ? `Total weight of the ${pairs.length} pairs kept: ${percent(kept)}. The other ${rest.toLocaleString("en")} share ${percent(left)}.`
    : `Total weight of all ${n} pairs: ${percent(kept)}.`;
  const more = pairs.length > SHOWN && element("button", { type: "button", onclick: () => {
    if (whole) opened.delete(panel.level); else opened.add(panel.level);
    drawPanel(panel);
    panel.lists.querySelector(":scope > button").focus();
  } }, whole ? `show the first ${SHOWN}` : `show all ${pairs.length}`);
  return [element("div", { class: "votes" }, element("span", { class: "muted" }, ahead ? "What follows, by total weight:" : "Tokens, by total weight:"),
    votes.map(([token, weight]) => element("span", { class: "number" }, element("span", { class: "piece" }, visible(data.texts[token])), ` ${percent(weight)}`))),
  element("div", { class: "wide" }, table), element("p", { class: "muted" }, total, " "), more || ""];
}

function pairRow(panel, { position, age, weight }, ahead, highest) {
  const mark = (on) => () => {
    panel.spans[position].classList.toggle("key", on);
    if (ahead) panel.spans[position + 1].classList.toggle("value", on);
  };
  const jump = element("button", { type: "button", "aria-label": `choose token ${position}`, onclick: () => {
    show({ t: position });
    panel.text.focus({ preventScroll: true }); // the list was drawn anew
  } }, String(position));
  return element("tr", { onmouseenter: mark(true), onmouseleave: mark(false), onfocusin: mark(true), onfocusout: mark(false) },
    element("td", {}, element("span", { class: "bar", style: `--w:${weight / (highest || 1)}`, "aria-hidden": "true" }), element("span", { class: "share" }, percent(weight))),
    element("td", {}, jump), element("td", {}, String(age)),
    element("td", { class: "past" }, element("bdi", {}, past(position), element("b", {}, quoted(position)))),
    element("td", { class: "next" }, position + ahead < T ? element("span", { class: "piece" }, quoted(position + ahead)) : "–"));
}

// ---- next-token predictions

function drawGuess() {
  const { t } = view, k = data.guesses.shape[1], ids = unpack(data.guesses), chances = unpack(data.probabilities);
  const actual = t + 1 < T ? data.tokens[t + 1] : null, rows = [];
  for (let i = t * k; i < (t + 1) * k; i++) {
    const came = ids[i] === actual;
    rows.push(element("span", { class: came ? "came" : "" }, element("span", { class: "piece" }, visible(data.texts[ids[i]])), came ? " ✓" : ""),
      element("span", { class: "bar", style: `--w:${chances[i]}`, "aria-hidden": "true" }), element("span", { class: "number" }, percent(chances[i])));
  }
  const loss = unpack(data.loss)[t];
  const came = actual === null ? ["The text ends here: nothing came."]
    : ["What came: ", element("span", { class: "piece" }, quoted(t + 1)), `, probability ${percent(Math.exp(-loss))}, loss ${figures(loss)} nats.`];
  at("guess").replaceChildren(
    element("p", { class: "muted" }, "The five most probable tokens after ", element("span", { class: "piece" }, quoted(t)), " and their probability (full bar: 100%)."),
    element("div", { class: "guesses" }, rows), element("p", {}, came));
}

// ---- overview

function metric(memory, h, t) {
  const n = count(memory, t);
  if (!n) return NaN;
  if (view.m === "largest") return pairsOf(memory, h, t)[0].weight;
  if (view.m === "share") return number(memory, "effective", h, t) / n;
  return number(memory, view.m, h, t);
}

function drawMaps() {
  at("metric-about").textContent = METRICS[view.m][1] + " Choose a cell to see that head; arrow keys move.";
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  at("maps").replaceChildren(...data.levels.map((level) => {
    const values = data.layers.map((l) => Array.from({ length: H }, (_, h) => metric(memoryOf(l, level), h, view.t)));
    const known = values.flat().filter((x) => x === x), high = Math.max(...known, 0), low = Math.min(...known, Infinity);
    const rows = [...data.layers.keys()].reverse().map((row) => element("div", { role: "row" },
      element("span", { class: "axis", role: "rowheader" }, String(data.layers[row])),
      values[row].map((x, h) => {
        const share = x === x && high > 0 ? x / high : 0, chosen = data.layers[row] === view.l && h === view.h;
        const color = share > (dark ? 0.5 : 0.72) ? "var(--on-heat)" : "inherit";
        const text = x === x ? (view.m === "largest" || view.m === "share" ? percent(x) : figures(x)) : "–";
        return element("span", { class: "cell", role: "gridcell", "aria-selected": chosen, "aria-label": `layer ${data.layers[row]}, head ${h}: ${text}`,
          title: `layer ${data.layers[row]}, head ${h}: ${text}`, id: `${level}-map-${data.layers[row]}-${h}`,
          style: `background: color-mix(in srgb, var(--heat) ${(100 * share).toFixed(1)}%, transparent); color: ${color}`,
          onclick: () => show({ l: data.layers[row], h }) }, text);
      })));
    const grid = element("div", { class: "map" + (H > 12 ? " dense" : ""), role: "grid", tabindex: 0, "aria-label": `${METRICS[view.m][0]}, ${levelName(level)}`,
      "aria-activedescendant": `${level}-map-${view.l}-${view.h}`, style: `grid-template-columns: max-content repeat(${H}, 1fr)`,
      onkeydown: (event) => moveInMap(event, level) }, ...rows,
    element("div", { role: "row" }, element("span", { class: "axis", role: "columnheader" }, "layer ↑ head →"),
      Array.from({ length: H }, (_, h) => element("span", { class: "axis top", role: "columnheader" }, String(h)))));
    grid.dataset.level = level;
    const unit = { effective: " pairs", distance: " tokens" }[view.m] ?? "";
    const text = (x) => (unit ? figures(x) + unit : percent(x));
    return element("article", { class: "card" }, element("h3", {}, `${levelName(level)}: ${METRICS[view.m][0]}`), grid,
      known.length ? element("div", { class: "scale" }, "0", element("div", { "aria-hidden": "true" }), text(high), ` (smallest here ${text(low)})`)
        : element("p", { class: "muted" }, "Nothing can be read at this token yet."));
  }));
}
function moveInMap(event, level) {
  const move = { ArrowLeft: ["h", -1], ArrowRight: ["h", 1], ArrowUp: ["l", 1], ArrowDown: ["l", -1] }[event.key];
  if (!move) return;
  event.preventDefault();
  step(...move);
  document.querySelector(`.map[data-level="${level}"]`).focus(); // it was drawn anew
}

// ---- mean weight by distance

/** Lines of one level: points, name, whether it is the chosen one, how dark. */
function linesOf(level) {
  const mean = data.profile.means[level], values = unpack(mean), [L, , N] = mean.shape;
  const line = (l, h) => values.subarray((l * H + h) * N, (l * H + h + 1) * N);
  const shade = (i, n) => 30 + (70 * (i + 1)) / n;
  if (view.c === "heads") return Array.from({ length: H }, (_, h) => ({ values: line(view.l, h), name: `head ${h}`, now: h === view.h, shade: shade(h, H) }));
  return Array.from({ length: L }, (_, l) => ({ name: `layer ${l}`, now: l === view.l, shade: shade(l, L),
    values: view.c === "head" ? line(l, view.h) : Float64Array.from({ length: N }, (_, d) => {
      let sum = 0;
      for (let h = 0; h < H; h++) sum += values[(l * H + h) * N + d];
      return sum / H;
    }) }));
}
/** What a memory would give that reads all its pairs alike. */
function evenLine(level) {
  const { distances, queries, documents } = data.profile, memory = memoryOf(data.layers[0], level), each = queries / (documents || 1);
  return Float64Array.from({ length: distances }, (_, d) => {
    let sum = 0;
    for (let t = distances - 1; t < distances - 1 + each; t++) {
      const n = count(memory, t);
      if (n && d >= memory.delay && d < memory.delay + n) sum += 1 / n;
    }
    return sum / each;
  });
}
/** [distance, weight] points; on logarithmic axes means over ever wider ranges of distance, as noise would hide the far ones. */
function points(values, { delay, size }) {
  const found = [], last = Math.min(values.length, size ? delay + size : Infinity);
  for (let d = Math.max(delay, view.a === "log" ? 1 : 0); d < last;) {
    const end = view.a === "log" ? Math.max(d + 1, Math.min(last, Math.round(d * 1.09))) : d + 1;
    let sum = 0;
    for (let s = d; s < end; s++) sum += values[s];
    const y = sum / (end - d);
    if (view.a !== "log" || y > 0) found.push([view.a === "log" ? Math.sqrt(d * (end - 1)) : d, y]);
    d = end;
  }
  return found;
}
function ticks(low, high) {
  const found = [];
  if (view.a === "log") {
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(10 ** e);
    const inside = found.filter((x) => x >= low && x <= high);
    return inside.length > 1 ? inside : found.flatMap((x) => [x, 2 * x, 5 * x]).filter((x) => x >= low && x <= high);
  }
  const size = 10 ** Math.floor(Math.log10(high / 2)), by = [1, 2, 5, 10].map((f) => f * size).find((f) => high / f <= 5);
  for (let x = 0; x <= high; x += by) found.push(x);
  return found;
}
const plain = (x) => (x >= 0.001 ? String(+x.toPrecision(2)) : x === 0 ? "0" : x.toExponential(0).replace("e-", "·10⁻").replace(/\d+$/, (s) => [...s].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")));

function drawProfiles() {
  const { distances, queries, documents } = data.profile;
  const source = documents ? `the last quarter of ${documents} documents of ${distances - 1 + queries / documents} tokens` : "the last quarter of this text";
  at("profile-about").textContent = `Figure 1 of the paper, which takes the last token alone as query. Here: mean over ${queries.toLocaleString("en")} queries, ${source}: all of them have ${distances - 1} `
    + `tokens before them, so that every distance is averaged over the same queries. Dashed: all pairs read alike. `
    + (view.a === "log" ? "Means over ranges of distance that widen with distance; weights of 0 cannot be drawn." : "");
  const all = data.levels.map((level) => ({ level, lines: linesOf(level), even: evenLine(level), memory: memoryOf(data.layers[0], level) }));
  for (const one of all) {
    const drawn = one.lines.map((line) => ({ ...line, points: points(line.values, one.memory) }));
    one.lines = drawn.filter((line) => line.points.length).sort((a, b) => a.now - b.now);
  }
  const weights = (one) => one.lines.flatMap((line) => line.points.map((p) => p[1])).filter((y) => y > 0);
  const rangeOf = (one) => { // levels share the logarithmic axis of weights, and nothing else
    const ys = view.a === "log" ? all.flatMap(weights) : weights(one), { delay, size } = one.memory;
    return { x: [view.a === "log" ? 1 : 0, Math.max(2, Math.min(distances - 1, size ? delay + size - 1 : Infinity))],
      y: [view.a === "log" ? Math.max(Math.min(...ys), 1e-7) * 0.8 : 0, Math.max(...ys) * 1.1] };
  };
  at("profiles").replaceChildren(...all.map((one) => element("article", { class: "card" }, element("h3", {}, levelName(one.level)),
    one.lines.length ? chart(one, rangeOf(one)) : element("p", { class: "muted" }, "These queries have nothing to read here: the text is too short."))));
}
function chart({ level, lines, even, memory }, range) {
  const wide = Math.max(280, (at("profiles").clientWidth - (data.levels.length > 1 && at("profiles").clientWidth > 980 ? 16 : 0)) / (at("profiles").clientWidth > 980 ? data.levels.length : 1) - 34);
  const size = [wide, Math.min(340, 0.62 * wide + 60)], box = [62, 10, 62, 44]; // left, top, right, bottom
  const scale = (value, [low, high], length) => (view.a === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low)) * length;
  const x = (d) => box[0] + scale(d, range.x, size[0] - box[0] - box[2]);
  const y = (w) => size[1] - box[3] - scale(w, range.y, size[1] - box[1] - box[3]);
  const svg = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };
  const path = (found) => found.map(([d, w], i) => `${i ? "L" : "M"}${x(d).toFixed(1)} ${y(Math.max(w, range.y[0])).toFixed(1)}`).join("");
  const made = svg("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, role: "img", "aria-label": `${levelName(level)}: mean retrieval weight by distance, ${LINES[view.c]}, ${AXES[view.a]}` });
  for (const d of ticks(...range.x)) {
    made.append(svg("line", { class: "grid", x1: x(d), x2: x(d), y1: box[1], y2: size[1] - box[3] }), svg("text", { x: x(d), y: size[1] - box[3] + 16, "text-anchor": "middle" }, String(d)));
  }
  for (const w of ticks(...range.y)) {
    made.append(svg("line", { class: "grid", x1: box[0], x2: size[0] - box[2], y1: y(w), y2: y(w) }), svg("text", { x: box[0] - 6, y: y(w) + 4, "text-anchor": "end" }, plain(w)));
  }
  made.append(svg("text", { x: (box[0] + size[0] - box[2]) / 2, y: size[1] - 6, "text-anchor": "middle" }, "distance t − i (tokens)"),
    svg("text", { transform: `translate(12 ${(size[1] - box[3]) / 2 + box[1]}) rotate(-90)`, "text-anchor": "middle" }, "mean weight"));
  if (memory.delay > 1) {
    const [from, to] = [x(range.x[0]), x(memory.delay - 0.5)];
    made.append(svg("rect", { class: "waits", x: from, y: box[1], width: to - from, height: size[1] - box[1] - box[3] }),
      svg("text", { x: (from + to) / 2, y: box[1] + 16, "text-anchor": "middle" }, to - from > 110 ? "not readable yet" : ""));
  }
  const dashed = points(even, memory).filter(([, w]) => w > 0);
  made.append(svg("path", { class: "even", d: path(dashed) }));
  const labels = lines.map((line) => ({ line, at: y(Math.max(line.points.at(-1)[1], range.y[0])) })).sort((a, b) => a.at - b.at);
  let free = -Infinity;
  const named = labels.length <= 12 ? labels : labels.filter(({ line }) => line.now);
  named.reduceRight((room, label) => (label.at = Math.min(label.at, room)) - 12.5, size[1] - box[3]); // none below the axis
  for (const line of lines) made.append(svg("path", { class: line.now ? "line now" : "line", style: `--share:${line.shade}%`, d: path(line.points) }));
  for (const { line, at: place } of named) {
    free = Math.max(place, free + 12.5);
    made.append(svg("text", { class: line.now ? "end now" : "end", x: x(line.points.at(-1)[0]) + 5, y: free + 4 }, line.name));
  }
  const under = element("p", { class: "muted under number", "aria-hidden": "true" }, "");
  const hand = made.appendChild(svg("line", { class: "hand", y1: box[1], y2: size[1] - box[3], visibility: "hidden" }));
  const chosen = lines.at(-1);
  made.addEventListener("pointermove", (event) => {
    const place = made.getBoundingClientRect(), here = ((event.clientX - place.left) / place.width) * size[0];
    const near = chosen.points.reduce((a, b) => (Math.abs(x(b[0]) - here) < Math.abs(x(a[0]) - here) ? b : a));
    hand.setAttribute("visibility", "visible");
    hand.setAttribute("x1", x(near[0]));
    hand.setAttribute("x2", x(near[0]));
    under.textContent = `${chosen.name}, distance ${figures(near[0])}: mean weight ${figures(near[1])}`;
  });
  made.addEventListener("pointerleave", () => { hand.setAttribute("visibility", "hidden"); under.textContent = ""; });
  const holder = document.createDocumentFragment();
  holder.append(made, under);
  return holder;
}

// ---- everything

function draw() {
  const { t, l, h } = view;
  at("token").replaceChildren(`${t} of ${T - 1} `, element("span", { class: "piece" }, quoted(t)));
  at("layer").value = l;
  at("head").value = h;
  const ends = { "t-1": t === 0, "t+1": t === T - 1, "l-1": l === data.layers[0], "l+1": l === data.layers.at(-1), "h-1": h === 0, "h+1": h === H - 1 };
  for (const input of document.querySelectorAll("input[type=radio]")) input.checked = Object.values(view).includes(input.value);
  for (const button of document.querySelectorAll("[data-step]")) button.disabled = ends[button.dataset.step];
  at("reads-about").textContent = `Layer ${l}, head ${h}, token t = ${t}. Choose another token in either text: click, or arrow keys.`;
  panels.forEach(drawPanel);
  drawGuess();
  drawMaps();
  drawProfiles();
  at("said").textContent = `Token ${t} ${quoted(t)}, layer ${l}, head ${h}. ` + data.levels.map((level) => {
    const memory = memoryOf(l, level);
    return `${levelName(level)}: ${figures(number(memory, "effective", h, t))} effective of ${count(memory, t)} pairs.`;
  }).join(" ");
}

function choices(id, name, table) {
  at(id).append(...Object.entries(table).map(([value, text]) => element("label", {},
    element("input", { type: "radio", name: id, value, onchange: () => show({ [name]: value }) }),
    Array.isArray(text) ? text[0] : text)));
}

function writeTexts() {
  const spans = data.levels.map((level) => {
    const { delay, size } = memoryOf(data.layers[0], level);
    return `${levelName(level).toLowerCase()} (${mosaic && !size && delay > 1 ? `m = ${delay}` : mosaic && size ? `h = ${size + 1}` : size ? `window ${size}` : "all"})`;
  });
  const some = data.layers.length < data.all_layers ? `, of which this page looks into ${data.layers.length}` : "";
  at("network").textContent = `${data.network}, ${data.parameters.toLocaleString("en")} parameters, ${data.all_layers} layers${some}, ${H} heads: ${spans.join(", ")}. ${T.toLocaleString("en")} tokens of text${data.cut ? `; the ${data.cut.toLocaleString("en")} tokens after them were left out` : ""}.`;
  at("lead").textContent = mosaic
    ? "At every token, each head looks up its key among the pairs it has stored and answers with a weighted mean of their values. Here you see which pairs, and with what weight."
    : "At every token, each head of attention answers with a weighted mean of values of earlier tokens. Here you see which tokens, and with what weight.";
  paragraph("guide", (mosaic ? `<p>A <b>pair</b> is stored for each position i: its <b>key</b> describes the recent past up to token i, its <b>value</b> the
    near future${memoryOf(data.layers[0], data.levels[0]).ahead ? ", token i and the one that follows" : ""}. The token you choose is the <b>query</b>. It asks: when the past looked like this, what came next?
    So look at the keys that are read (do they resemble the query's past?) and at what follows them.</p>` : "")
    + `<p>Colour in the texts is weight. Above the lists, the weights are added up by the token that the values stand for: compare these with what the
    network expects next. The map of all heads leads to the sharp ones (few effective pairs). The last figure shows how weight depends on distance alone.</p>
    <p>Keys: in a text ← → choose a token, ↑ ↓ one a line away, Home, End, Page Up and Down; in a map the arrow keys choose layer and head. The
    address of the page follows what you see, so a view can be kept as a link.</p>`);
  const mark = (kind, text, style = "") => element("span", {}, element("span", { class: `mark ${kind}`, style }, "abc"), text);
  const memories = data.levels.map((level) => memoryOf(data.layers[0], level));
  at("legend").append(mark("query", "the query"), mark("read", "read, by weight", "--w:0.45"),
    ...(memories.some((m) => Math.min(T, m.size ?? T) > data.pairs) ? [mark("rest", "read, weight too small to be kept")] : []),
    ...(memories.some((m) => m.delay > 1) ? [mark("waiting", "not readable yet (newest m−1 pairs)")] : []),
    ...(memories.some((m) => m.size) ? [mark("gone", "cut off by the window h")] : []), mark("later", "comes later"));
  const words = [
    ["weight", "exp(β k·kᵢ) divided by its sum over all pairs that can be read, equation (4); the weights of a read add up to 1, or to 0 where nothing is stored."],
    ["effective pairs", "exp(−Σ w ln w), the exponential of the entropy of the weights: 1 if one pair has all the weight, n if all n have the same."],
    ["n", "Pairs that can be read at this token."],
    ...(mosaic ? [["bandwidth β", "How sharply the memory is read; with adaptive bandwidth β₁ n^α + β₀, equation (6)."],
      ["gate g, decay λ", "The key of a token is the normalised average g k̃ + λ × (the average before), equations (7) and (8): a small λ looks at the token alone, λ near 1 far back."],
      ["α_ψ, γ", "Norm of the values, and the share of a pair's own token in its value; 1−γ is that of the next token, equation (9). γ is free to leave 0 … 1."]]
      : [["factor 1/√D", "Attention has no bandwidth of its own: q·k is divided by √D, and norms of q and k are free."]]),
    ["left out", `Of each read the ${data.pairs} pairs of largest weight are kept${memories.some((m) => Math.min(T, m.size ?? T) > data.pairs) ? "; what the others add up to is said below each list" : ", here all of them"}. Effective pairs, mean distances and the figure were computed from all weights. `
      + `Weights are stored to 0.012% of themselves, and below 5·10⁻⁷ as 0.`],
  ];
  at("words").append(...words.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  at("footer").textContent = `${data.checkpoint} · mm-lightning ${data.version}`;
}

startView();
readAddress();
at("layer").append(...data.layers.map((l) => element("option", { value: l }, String(l))));
at("head").append(...Array.from({ length: H }, (_, h) => element("option", { value: h }, String(h))));
at("layer").addEventListener("change", (event) => show({ l: Number(event.target.value) }));
at("head").addEventListener("change", (event) => show({ h: Number(event.target.value) }));
for (const button of document.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => step(button.dataset.step[0], Number(button.dataset.step.slice(1))));
}
choices("metrics", "m", METRICS);
choices("axes", "a", AXES);
choices("lines", "c", LINES);
writeTexts();
draw();
addEventListener("hashchange", () => { readAddress(); draw(); });
addEventListener("resize", drawProfiles);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
