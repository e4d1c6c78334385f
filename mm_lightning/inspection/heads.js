// Next-token predictions, and a map of all heads.

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

function metric(memory, h, t) {
  const n = count(memory, t), values = memory[view.m];
  if (Array.isArray(values)) return values[h]; // learned scalars: one a head, whatever the token
  if (!n || (!values && view.m !== "largest" && view.m !== "share")) return NaN;
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
        const share = x === x && high > 0 ? Math.max(0, x / high) : 0, chosen = data.layers[row] === view.l && h === view.h;
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
    const shares = view.m === "largest" || view.m === "share", unit = { effective: " pairs", distance: " tokens" }[view.m] ?? "";
    const text = (x) => (shares ? percent(x) : figures(x) + unit);
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
