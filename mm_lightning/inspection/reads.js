// What the chosen head reads at the chosen token: a panel for each level.

const opened = new Set(); // levels whose list is shown whole

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
  panel.scale.replaceChildren("0", element("div", { "aria-hidden": "true" }), `${percent(highest)}, the largest (color ∝ √weight)`);
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
