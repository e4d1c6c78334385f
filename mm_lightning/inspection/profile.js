// Mean weight by distance.

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
