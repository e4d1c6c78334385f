"use strict";
// What the page knows, and how it is written.

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
