// What is shown follows from `view` alone, which is kept in the address (#t=12&l=0&h=1...), so that any view is a link.

const METRICS = {
  effective: ["effective pairs", "Effective number of pairs read: exp(entropy of the weights). 1 is a look-up of one pair, n an average over all."],
  share: ["share of pairs read", "Effective number of pairs divided by the number n that could be read: near 0 is a sharp read, 1 is an average over all."],
  distance: ["mean distance", "Mean distance of what is read, in tokens: the sum of weight × (t − i)."],
  largest: ["largest weight", "The largest weight of a single pair."],
  beta: ["bandwidth β", "How sharply each head reads at this token, equation (6)."],
  alpha: ["exponent α", "The learned exponent of the number of pairs in the bandwidth, equation (6): one number a head, the same at all tokens."],
  gate: ["gate g", "How much of the token goes into its key, equation (8)."],
  decay: ["decay λ", "How much of the average before stays in the key, equation (7)."],
  alpha_psi: ["value norm α_ψ", "The learned norm of the values, equation (9): one number a head, the same at all tokens."],
  gamma: ["γ", "The learned share of a pair's own token in its value, equation (9): one number a head, the same at all tokens."],
};
for (const name of ["beta", "alpha", "gate", "decay", "alpha_psi", "gamma"]) if (!data.memories.some((memory) => memory[name])) delete METRICS[name];
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
    return `${levelName(level).toLowerCase()} (${mosaic && !size && delay > 1 ? `m = ${delay}` : size ? `${mosaic ? "h =" : "window"} ${size + delay}` : "all"})`;
  });
  const some = data.layers.length < data.all_layers ? `, of which this page looks into ${data.layers.length}` : "";
  at("network").textContent = `${data.network}, ${data.parameters.toLocaleString("en")} parameters, ${data.all_layers} layers${some}, ${H} heads: ${spans.join(", ")}. ${T.toLocaleString("en")} tokens of text${data.cut ? `; the ${data.cut.toLocaleString("en")} tokens after them were left out` : ""}.`;
  at("lead").textContent = mosaic
    ? "At every token, each head looks up its key among the pairs it has stored and answers with a weighted mean of their values. Here you see which pairs, and with what weight."
    : "At every token, each head of attention answers with a weighted mean of values of earlier tokens. Here you see which tokens, and with what weight.";
  paragraph("guide", (mosaic ? `<p>A <b>pair</b> is stored for each position i: its <b>key</b> describes the recent past up to token i, its <b>value</b> the
    near future${memoryOf(data.layers[0], data.levels[0]).ahead ? ", token i and the one that follows" : ""}. The token you choose is the <b>query</b>. It asks: when the past looked like this, what came next?
    So look at the keys that are read (do they resemble the query's past?) and at what follows them.</p>` : "")
    + `<p>Color in the texts is weight. Above the lists, the weights are added up by the token that the values stand for: compare these with what the
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
