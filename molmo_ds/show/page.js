// Draws the curves of a run: hover to read, drag to zoom, click twice for the whole run. The data stand in the page.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const place = document.getElementById("charts");
const COLOURS = ["#2b6cff", "#e0721b", "#18a558", "#8a4fd3", "#d64545", "#0f9aa8", "#b0892a", "#d14a9b"];
const WIDTH = 420, HEIGHT = 220, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 24;
const kept = JSON.parse(sessionStorage.getItem(location.pathname) ?? "{}"); // over a reload
const view = { from: kept.from ?? null, to: kept.to ?? null, smoothing: kept.smoothing ?? 0,
  logarithmic: kept.logarithmic ?? false, follow: kept.follow ?? false };

function shape(name, properties, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function short(value) {
  if (value === null || value === undefined) return "not finite";
  const size = Math.abs(value);
  if (size >= 1e4) return Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function smoothed(values) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = view.smoothing * mean + (1 - view.smoothing) * value;
    weight = view.smoothing * weight + 1 - view.smoothing;
    return mean / weight;
  });
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) out.push(value);
  return out;
}

function nearest(steps, step) { // index of the step that is closest
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

function wholeRange() {
  const steps = data.charts.flatMap((chart) => chart.curves.flatMap((curve) => [curve.steps[0], curve.steps.at(-1)]));
  const from = Math.min(...steps), to = Math.max(...steps);
  return from < to ? [from, to] : [from - 1, to + 1];
}

function range() {
  const whole = wholeRange();
  return [view.from ?? whole[0], view.to ?? whole[1]];
}

function bounds(curves, from, to) {
  const seen = curves.flatMap((curve) => curve.values.filter((value, i) =>
    value !== null && curve.steps[i] >= from && curve.steps[i] <= to && (!view.logarithmic || value > 0)));
  if (!seen.length) return [view.logarithmic ? 1 : 0, view.logarithmic ? 10 : 1];
  const low = seen.reduce((a, b) => Math.min(a, b)), high = seen.reduce((a, b) => Math.max(a, b));
  if (view.logarithmic) return low < high ? [low, high] : [low / 2, low * 2];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.box = document.createElement("div");
    this.box.className = "chart";
    const title = document.createElement("h4");
    title.textContent = chart.title;
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", `${chart.title} by step`);
    this.legend = document.createElement("ul");
    this.labels = chart.curves.map((curve, i) => {
      const item = document.createElement("li"), dot = document.createElement("i"), label = document.createElement("span");
      dot.style.background = COLOURS[i % COLOURS.length];
      item.append(dot, label);
      this.legend.append(item);
      return label;
    });
    this.box.append(title, this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerleave", () => point(null));
    this.svg.addEventListener("pointerdown", (event) => { this.begun = this.step(event); this.svg.setPointerCapture(event.pointerId); });
    this.svg.addEventListener("pointerup", (event) => this.release(event));
    this.svg.addEventListener("dblclick", () => zoom(null, null));
  }

  step(event) {
    const box = this.svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * WIDTH;
    const share = Math.min(1, Math.max(0, (x - LEFT) / (WIDTH - LEFT - RIGHT)));
    return this.from + share * (this.to - this.from);
  }

  x(step) { return LEFT + (step - this.from) / (this.to - this.from) * (WIDTH - LEFT - RIGHT); }

  y(value) {
    const by = view.logarithmic ? Math.log : (one) => one;
    const share = (by(value) - by(this.low)) / (by(this.high) - by(this.low));
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  }

  line(steps, values, name, colour) {
    let path = "", pen = "M";
    for (let i = 0; i < steps.length; i += 1) {
      const drawn = values[i] !== null && (!view.logarithmic || values[i] > 0);
      if (drawn && steps[i] >= this.first && steps[i] <= this.last) path += `${pen}${this.x(steps[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
      pen = drawn ? (path ? "L" : "M") : "M";
    }
    if (path && !path.includes("L")) path += "h0.1"; // a single point
    shape("path", { d: path, class: name, stroke: colour, "stroke-linecap": "round" }, this.svg);
  }

  draw() {
    [this.from, this.to] = range();
    const pad = (this.to - this.from) * 1e-9;
    this.first = this.from - pad;
    this.last = this.to + pad;
    [this.low, this.high] = bounds(this.chart.curves, this.first, this.last);
    this.svg.replaceChildren();
    const heights = view.logarithmic
      ? ticks(Math.log10(this.low), Math.log10(this.high), 4).map((power) => 10 ** power)
      : ticks(this.low, this.high, 4);
    for (const value of heights) {
      const y = this.y(value);
      shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }, this.svg);
      shape("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.svg).textContent = short(value);
    }
    for (const step of ticks(this.from, this.to, 5))
      shape("text", { x: this.x(step), y: HEIGHT - 8, "text-anchor": "middle" }, this.svg).textContent = short(step);
    shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }, this.svg);
    for (const mark of data.marks) {
      if (mark.step < this.first || mark.step > this.last) continue;
      const x = this.x(mark.step), name = mark.what === "start" ? "mark start" : "mark";
      const line = shape("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: name }, this.svg);
      shape("title", {}, line).textContent = `${mark.what}, step ${mark.step}`;
    }
    this.chart.curves.forEach((curve, i) => {
      const colour = COLOURS[i % COLOURS.length];
      if (view.smoothing > 0) this.line(curve.steps, curve.values, "raw", colour);
      this.line(curve.steps, view.smoothing > 0 ? smoothed(curve.values) : curve.values, "curve", colour);
    });
    this.pointer = shape("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "pointer", visibility: "hidden" }, this.svg);
    this.span = shape("rect", { y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0, class: "span" }, this.svg);
    this.read(null);
  }

  read(step) { // the values at a step, else the last ones
    this.pointer.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) this.pointer.setAttribute(end, this.x(step));
    this.chart.curves.forEach((curve, i) => {
      const at = step === null ? curve.steps.length - 1 : nearest(curve.steps, step);
      const where = curve.steps[at] === step ? "" : ` (step ${curve.steps[at]})`;
      this.labels[i].textContent = `${curve.name} ${short(curve.values[at])}${step === null ? "" : where}`;
    });
  }

  move(event) {
    const step = this.step(event);
    if (this.begun !== undefined) {
      const left = Math.min(this.begun, step), right = Math.max(this.begun, step);
      this.span.setAttribute("x", this.x(left));
      this.span.setAttribute("width", this.x(right) - this.x(left));
    }
    const steps = this.chart.curves[0].steps;
    point(steps[nearest(steps, step)]);
  }

  release(event) {
    const [left, right] = [this.begun, this.step(event)].sort((a, b) => a - b);
    this.begun = undefined;
    this.span.setAttribute("width", 0);
    if (right - left > (this.to - this.from) / 100) zoom(left, right);
  }
}

const charts = place ? data.charts.map((chart) => new Chart(chart)) : [];

function point(step) {
  for (const chart of charts) chart.read(step);
  document.getElementById("range").textContent = step === null ? "" : `step ${step}`;
}

function zoom(from, to) {
  Object.assign(view, { from, to });
  draw();
}

function draw() {
  sessionStorage.setItem(location.pathname, JSON.stringify(view));
  for (const chart of charts) chart.draw();
  if (place) document.getElementById("whole").hidden = view.from === null;
}

if (place) {
  place.append(...charts.map((chart) => chart.box));
  const smoothing = document.getElementById("smoothing"), logarithmic = document.getElementById("logarithmic");
  smoothing.value = view.smoothing;
  logarithmic.checked = view.logarithmic;
  smoothing.addEventListener("input", () => { view.smoothing = Number(smoothing.value); draw(); });
  logarithmic.addEventListener("change", () => { view.logarithmic = logarithmic.checked; draw(); });
  document.getElementById("whole").addEventListener("click", () => zoom(null, null));
}
draw();

const follow = document.getElementById("follow");
if (follow && location.protocol.startsWith("http")) { // served: each load renders the page again
  const box = follow.querySelector("input");
  follow.hidden = false;
  box.checked = view.follow;
  box.addEventListener("change", () => { view.follow = box.checked; draw(); });
  setInterval(() => { if (view.follow) location.reload(); }, 10000);
}
