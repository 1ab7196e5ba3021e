"use strict";
// Texts of models reach the page through `put` and textContent only, never as HTML.

const $ = (id) => document.getElementById(id);
const ITEM = 52; // pixels of a list item, as in report.css
const KINDS = {
  loss: "Loss", reward: "Reward", chosen: "Chosen rate", evaluations: "Evaluations",
  audit: "Judge and audit", judge: "The judge's accuracy",
};
// Characters that would be invisible or reorder their surroundings; shown as their code. Joiners
// (U+200C, U+200D) are needed in some scripts and in emoji, but not after ASCII or each other.
const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u2800\ufff9-\ufffb\u{1d159}]|(?![\u200c\u200d])\p{Default_Ignorable_Code_Point}|(?<=^|[\0-\x7f\u200b-\u200d])[\u200c\u200d]/gu;

function make(tag, classes, ...children) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  element.append(...children);
  return element;
}

// ---- unpacking

async function unpack(id) {
  const element = $(id);
  const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  element.textContent = ""; // frees the text
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let drawing; // a promise of Plotly, once a plot is in view
function plotly() {
  drawing ??= unpack("plotly").then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return window.Plotly;
  });
  return drawing;
}

// ---- texts

function plain(text) {
  const found = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    found.append(text.slice(from, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    found.append(make("span", "code", `U+${code}`));
    from = match.index + match[0].length;
  }
  found.append(text.slice(from));
  return found;
}

function put(element, text, marks) {
  let from = 0;
  for (const [low, high] of marks || []) {
    element.append(plain(text.slice(from, low)), make("mark", "", plain(text.slice(low, high))));
    from = high;
  }
  element.append(plain(text.slice(from)));
  element.dir = "auto";
  return element;
}

const number = (x) => (x === null ? "" : String(Number(x.toPrecision(4))));

// ---- plots

function shade(color) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},.18)`;
}

function traces(panel, dashed, label) {
  const found = [];
  for (const line of panel.lines) {
    const name = label ? `${label} ${line.label}` : line.label;
    const style = { color: line.color, dash: dashed ? "dash" : "solid", width: 2 };
    if (line.spread) {
      const edge = (sign) => line.y.map((y, i) => y + sign * line.spread[i]);
      const none = { mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip", x: line.x };
      found.push({ ...none, y: edge(-1) });
      found.push({ ...none, y: edge(1), fill: "tonexty", fillcolor: shade(line.color) });
    }
    const mode = line.x.length === 1 ? "markers" : "lines";
    found.push({ x: line.x, y: line.y, name, mode, line: style, marker: { color: line.color } });
  }
  return found;
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { fore: of("--fore"), back: of("--back"), line: of("--line") };
}

function layout(title, y, more) {
  const { fore, back, line } = look();
  const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
  return {
    title: { text: title, font: { size: 14 } }, font: { color: fore, size: 11 },
    paper_bgcolor: back, plot_bgcolor: back, margin: { l: 52, r: 10, t: 34, b: 40 },
    xaxis: { ...axis, title: { text: "step", standoff: 2 } }, yaxis: { ...axis, title: { text: y } },
    legend: { orientation: "h", y: -0.3, yanchor: "top" }, showlegend: true, ...more,
  };
}

function levels(panel) {
  if (panel.level === null) return [];
  const line = { color: "#888", width: 1, dash: "dot" };
  return [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: panel.level, y1: panel.level, line }];
}

function figureOf(panels, places) {
  const [first] = panels;
  const label = (x) => places[x.place].label;
  const made = layout(first.title, first.label, { shapes: levels(first) });
  if (first.rate) made.yaxis.range = [-0.03, 1.03];
  return [panels.flatMap((x) => traces(x, x.place > 0, label(x))), made];
}

function phasesFigure(phases, places, palette) {
  const names = [...new Set(phases.flatMap((x) => Object.keys(x.seconds)))];
  const runs = phases.map((x) => `${places[x.place].label} ${x.run}`.trim());
  const bars = names.map((name, i) => ({
    type: "bar", orientation: "h", name, y: runs, x: phases.map((x) => x.seconds[name] || 0),
    marker: { color: palette[i % palette.length] },
  }));
  const legend = { orientation: "h", y: 1.02, yanchor: "bottom", traceorder: "normal" };
  const made = layout("", "", { barmode: "stack", legend });
  made.xaxis.title.text = "seconds";
  made.yaxis.autorange = "reversed";
  return [bars, made];
}

function showCurves(data) {
  const section = $("curves"), drawn = [];
  section.querySelector(".waiting").remove();
  const groups = Map.groupBy(data.panels, (x) => x.kind);
  const add = (parent, figure, height) => {
    const box = make("div", "plot");
    if (height) box.style.height = `${height}px`;
    parent.append(box);
    drawn.push([box, figure]);
  };
  for (const [kind, some] of groups) {
    const plots = make("div", "plots");
    section.append(make("h3", "", KINDS[kind] || kind), plots);
    for (const same of Map.groupBy(some, (x) => x.title).values())
      add(plots, () => figureOf(same, data.places));
  }
  if (data.phases.length) {
    section.append(make("h3", "", "Time per phase"));
    add(section, () => phasesFigure(data.phases, data.places, data.palette), 150 + 26 * data.phases.length);
  }
  if (!drawn.length) section.append(make("p", "", "No run has logged a curve that varies."));
  const seen = new Set();
  let last = Promise.resolve(); // one plot after the other, so that the page stays responsive
  const draw = ([box, figure]) => {
    const show = (p) => p.react(box, ...figure(), { responsive: true, displayModeBar: false });
    last = last.then(plotly).then(show).then(() => new Promise((done) => setTimeout(done)));
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((x) => x.isIntersecting)) {
      watch.unobserve(entry.target);
      const one = drawn.find(([box]) => box === entry.target);
      seen.add(one);
      draw(one);
    }
  }, { rootMargin: "150px" });
  drawn.forEach(([box]) => watch.observe(box));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => seen.forEach(draw));
}

// ---- samples

function showSamples(data) {
  if (!data.samples.length) return;
  $("samples").hidden = false;
  const name = (x) => `${data.places[x.place].label} ${x.run}`.trim();
  const runs = Map.groupBy(data.samples, name);
  for (const run of runs.keys()) $("sample-run").append(new Option(run));
  $("sample-run").selectedIndex = runs.size - 1; // the last run is what a reader came for
  const steps = () => [...new Set(runs.get($("sample-run").value).map((x) => x.step))].sort((a, b) => a - b);
  const show = () => {
    const step = steps()[$("sample-step").value];
    $("sample-at").textContent = step;
    const cards = runs.get($("sample-run").value).filter((x) => x.step === step).map((x) =>
      make("div", "card", put(make("div", "text small"), x.prompt), put(make("div", "text"), x.text)));
    $("sample-texts").replaceChildren(...cards);
  };
  const restart = () => {
    $("sample-step").max = steps().length - 1;
    $("sample-step").value = steps().length - 1;
    show();
  };
  $("sample-run").addEventListener("change", restart);
  $("sample-step").addEventListener("input", show);
  restart();
}

// ---- candidates

const FILTERS = ["run", "source", "low", "high", "valid", "with", "q"];
let rows = [], shown = [], at = 0, picked = 0, places = [], colors = {}, texts = [], rated = new Map();

const nameOf = (row) => `${places[row.place].label} ${row.run}`.trim();
const idOf = (row) => [row.place, row.run, row.step, row.row].join(":");
const ratingOf = (row) => `${idOf(row)}:${row.texts}`; // a rating is of these texts, not of the place
const filter = (name) => $(`f-${name}`).value;

function passes(candidate) {
  const source = filter("source"), low = filter("low"), high = filter("high"), valid = filter("valid");
  if (source && candidate.source !== source) return false;
  if (low !== "" && !(candidate.score !== null && candidate.score >= Number(low))) return false;
  if (high !== "" && !(candidate.score !== null && candidate.score <= Number(high))) return false;
  if (valid === "invalid" && candidate.valid) return false;
  if (valid === "valid" && !candidate.valid) return false;
  return valid !== "chosen" || candidate.chosen;
}

// All texts of a row in lower case, made at the first search.
function textOf(i) {
  const row = rows[i];
  texts[i] ??= [row.prompt, row.reference || "", ...row.candidates.flatMap((x) =>
    [x.text, x.why || "", ...x.said.map((y) => y.text)])].join("\n").toLowerCase();
  return texts[i];
}

function choose() {
  const run = filter("run"), q = filter("q").toLowerCase(), mine = filter("valid") === "rated";
  const before = shown[at];
  shown = [];
  rows.forEach((row, i) => {
    if (run && nameOf(row) !== run) return;
    if (mine && !rated.has(ratingOf(row))) return;
    if (!row.candidates.some(passes)) return;
    if (q && !textOf(i).includes(q)) return;
    shown.push(i);
  });
  at = Math.max(0, shown.indexOf(before));
  $("count").textContent = `${shown.length} of ${rows.length} prefixes`;
  $("rail").style.height = `${shown.length * ITEM}px`;
  go(at, 0);
}

function drawList() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ITEM) - 4);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ITEM) + 8);
  const items = [];
  for (let i = first; i < last; i++) {
    const row = rows[shown[i]];
    const preview = make("span");
    put(preview, row.prompt.slice(-160));
    const star = rated.has(ratingOf(row)) ? ", rated" : "";
    const item = make("div", i === at ? "item here" : "item",
      make("b", "", `${nameOf(row)}, step ${row.step}, row ${row.row}${star}`), preview);
    item.style.top = `${i * ITEM}px`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(i === at));
    item.addEventListener("click", () => go(i, 0));
    items.push(item);
  }
  $("rail").replaceChildren(...items);
}

function go(to, candidate, follow = false) {
  at = Math.min(Math.max(0, to), Math.max(0, shown.length - 1));
  const row = shown.length ? rows[shown[at]] : null;
  picked = row ? Math.min(Math.max(0, candidate), row.candidates.length - 1) : 0;
  const list = $("list"), top = at * ITEM;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ITEM > list.scrollTop + list.clientHeight) list.scrollTop = top + ITEM - list.clientHeight;
  drawList();
  drawDetail(row);
  if (follow) $("detail").querySelector(".card.here")?.scrollIntoView({ block: "nearest" });
  keepAddress(row);
}

function drawDetail(row) {
  if (!row) return $("detail").replaceChildren(make("p", "", "Nothing fits the filters."));
  const step = (name, by) => {
    const button = make("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => go(at + by, 0));
    return button;
  };
  const bar = make("p", "row", step("Previous", -1), step("Next", 1), `${at + 1} of ${shown.length}`);
  const other = twin(row);
  const sides = make("div", "sides", side(row, true), ...(other ? [side(other, false)] : []));
  $("detail").replaceChildren(bar, sides);
  const run = filter("with");
  if (run && run !== nameOf(row) && !other) bar.append(`${run} has not logged this prefix.`);
}

// The row that has the same prompt, at the nearest step: of the run to compare with, or of the other
// workdir.
let prompts;
function twin(row) {
  const run = filter("with");
  if (run ? run === nameOf(row) : places.length < 2) return null;
  prompts ??= Map.groupBy(rows, (x) => x.prompt);
  const same = prompts.get(row.prompt).filter((x) => (run ? nameOf(x) === run : x.place !== row.place));
  const far = (x) => Math.abs(x.step - row.step) + (x.run === row.run ? 0 : 0.5);
  return same.reduce((best, x) => (best && far(best) <= far(x) ? best : x), null);
}

function side(row, own) {
  const found = make("div", "side", make("h3", "", `${nameOf(row)}, step ${row.step}, row ${row.row}`));
  found.append(make("div", "prompt", put(make("div", "text"), row.prompt)));
  if (row.reference !== null) {
    const shownToo = make("details", "", make("summary", "", "reference"));
    shownToo.append(put(make("div", "text"), row.reference));
    found.append(shownToo);
  }
  row.candidates.forEach((x, i) => found.append(card(row, x, i, own)));
  return found;
}

function card(row, candidate, i, own) {
  const here = own && i === picked ? " here" : "", out = passes(candidate) ? "" : " out";
  const box = make("div", `card${here}${out}`);
  box.style.borderLeftColor = colors[candidate.source] || "var(--note)";
  const head = make("div", "head", make("b", "", `${i} ${candidate.source}`));
  const tag = (text, kind) => head.append(make("span", `tag ${kind || ""}`, plain(text)));
  if (candidate.score !== null) head.append(make("span", "score", number(candidate.score)));
  if (candidate.chosen) tag("chosen", "chosen");
  if (candidate.rejected) tag("rejected", "rejected");
  if (!candidate.valid) tag(`invalid${candidate.why ? `: ${candidate.why}` : ""}`, "invalid");
  for (const [name, value] of Object.entries(candidate.aspects)) tag(`${name} ${value === null ? "none" : number(value)}`);
  if (candidate.advantage !== null) tag(`advantage ${number(candidate.advantage)}`);
  if (candidate.tokens !== null) tag(`${candidate.tokens} tokens`);
  if (candidate.ended === false) tag("cut");
  const pair = row.compared || [], compared = pair.indexOf(i);
  const kind = compared < 0 ? "text" : compared === 0 ? "text chosen-text" : "text other-text";
  const body = put(make("div", kind), candidate.text, candidate.marks);
  box.append(head, body);
  if (candidate.marks === null) box.append(make("p", "small", "Too long to mark differences."));
  if (compared >= 0) body.title = `marked: words that candidate ${pair[1 - compared]} does not have`;
  if (candidate.said.length) box.append(words(candidate));
  if (own) box.append(buttons(row, i));
  if (own) box.addEventListener("click", (e) => e.target.closest("button, summary") || i === picked || String(getSelection()) || go(at, i));
  return box;
}

function words(candidate) {
  const votes = Object.entries(Object.groupBy(candidate.said, (x) => x.aspect)).map(([name, some]) =>
    `${name} ${some.map((x) => (x.value === null ? "unread" : number(x.value))).join(", ")}`);
  const found = make("details", "", make("summary", "", plain(`votes: ${votes.join("; ")}; the judge's words`)));
  for (const one of candidate.said) {
    const against = one.against === null ? "" : `, against candidate ${one.against}`;
    const value = one.value === null ? "unread" : number(one.value);
    found.append(make("p", "small", plain(`${one.aspect}${against}: ${value}`)), put(make("div", "text prompt"), one.text));
  }
  return found;
}

// ---- ratings

const STORE = `sip-ratings:${document.title}`;

function buttons(row, i) {
  const line = make("div", "rate row");
  for (const which of ["better", "worse"]) {
    const button = make("button", "", which);
    button.type = "button";
    button.setAttribute("aria-pressed", String(rated.get(ratingOf(row))?.[which] === i));
    button.addEventListener("click", () => rate(which, i));
    line.append(button);
  }
  return line;
}

function rate(which, i) {
  if (!shown.length) return;
  const row = rows[shown[at]], key = ratingOf(row), other = which === "better" ? "worse" : "better";
  const mine = { ...rated.get(key) };
  if (mine[which] === i) delete mine[which];
  else mine[which] = i;
  if (mine[other] === i) delete mine[other];
  if (Object.keys(mine).length) rated.set(key, mine);
  else rated.delete(key);
  keep();
  go(at, i);
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify([...rated]));
  } catch { /* a private window: the ratings last as long as the page */ }
  $("rated").textContent = pairs().length;
}

// Pairs that teach something: two different texts that are not empty.
function pairs() {
  const known = new Map(rows.map((row) => [ratingOf(row), row]));
  return [...rated].flatMap(([key, { better, worse }]) => {
    const row = known.get(key), [chosen, rejected] = [better, worse].map((i) => row?.candidates[i]?.text);
    return chosen && rejected && chosen !== rejected ? [{ prompt: row.prompt, chosen, rejected }] : [];
  });
}

function exported() {
  return pairs().map((x) => `${JSON.stringify(x)}\n`).join("");
}

function download() {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/jsonl" }));
  link.download = "ratings.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- the address of a view

function keepAddress(row) {
  const view = new URLSearchParams();
  for (const name of FILTERS) if (filter(name) !== "") view.set(name, filter(name));
  if (row) view.set("at", idOf(row));
  if (picked) view.set("c", picked);
  if (location.hash.slice(1) !== view.toString() && !quiet) history.replaceState(null, "", `#${view}`);
}

let quiet = true; // the address of the page as it was opened stays until something is done

function readAddress() {
  const hash = location.hash.slice(1);
  if (!hash.includes("=")) return;
  const view = new URLSearchParams(hash);
  for (const name of FILTERS) $(`f-${name}`).value = view.get(name) ?? "";
  choose();
  const to = shown.findIndex((i) => idOf(rows[i]) === view.get("at"));
  if (to >= 0) go(to, Number(view.get("c") || 0));
  $("candidates").scrollIntoView();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const does = {
    n: () => go(at + 1, 0, true), p: () => go(at - 1, 0, true),
    j: () => go(at, picked + 1, true), k: () => go(at, picked - 1, true),
    b: () => rate("better", picked), w: () => rate("worse", picked), "/": () => $("f-q").focus(),
  }[event.key];
  if (!does || !rows.length) return;
  event.preventDefault();
  quiet = false;
  does();
}

function showCandidates(data) {
  ({ rows, places, colors } = data);
  $("no-candidates").hidden = rows.length > 0;
  $("browser").hidden = !rows.length;
  if (!rows.length) return;
  const runs = [...new Set(rows.map(nameOf))];
  for (const name of runs) for (const id of ["f-run", "f-with"]) $(id).append(new Option(name));
  $("compare").hidden = runs.length < 2;
  try {
    rated = new Map(JSON.parse(localStorage.getItem(STORE) || "[]"));
  } catch { /* no storage, or a damaged one */ }
  const changed = () => { quiet = false; choose(); };
  for (const name of FILTERS) $(`f-${name}`).addEventListener("input", changed);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(changed));
  $("list").addEventListener("scroll", drawList);
  $("browser").addEventListener("pointerdown", () => { quiet = false; });
  $("export").addEventListener("click", download);
  $("forget").addEventListener("click", () => { rated.clear(); keep(); go(at, picked); });
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", readAddress);
  addEventListener("resize", drawList);
  keep();
  choose();
  readAddress();
}

async function start() {
  const data = JSON.parse(await unpack("data"));
  showCurves(data);
  showSamples(data);
  showCandidates(data);
  document.body.dataset.ready = "1";
}

// After the first paint: verdict and tables are there at once.
if (typeof requestAnimationFrame === "function") {
  requestAnimationFrame(() => setTimeout(() => start().catch((error) => {
    const text = `This page cannot show plots and candidates (${error.message}); it needs a browser of 2024 or later.`;
    document.querySelector("main").prepend(make("p", "box bad", text));
    throw error;
  })));
}
