// Shows the examples of a page and filters them; the data stand in the page as JSON.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("examples");
const chosen = { kind: "all", category: "", text: "" };

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawing(example) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${example.size[0]} ${example.size[1]}`);
  const shape = (kind, name, values) => {
    const made = document.createElementNS(svg.namespaceURI, kind);
    made.setAttribute("class", name);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    svg.append(made);
  };
  const radius = Math.max(...example.size) / 70;
  for (const [left, top, right, bottom] of example.boxes)
    shape("rect", "true", { x: left, y: top, width: right - left, height: bottom - top });
  for (const [cx, cy] of example.true_points) shape("circle", "true", { cx, cy, r: radius * 1.7 });
  for (const [cx, cy] of example.other?.points ?? []) shape("circle", "dot other", { cx, cy, r: radius });
  for (const [cx, cy] of example.points) shape("circle", "dot predicted", { cx, cy, r: radius });
  return svg;
}

function figure(example) {
  const source = data.pictures[example.picture];
  if (!source) return element("figure", {}, element("p", { textContent: "no picture" }));
  const picture = element("img", { src: source, alt: "", loading: "lazy" });
  return element("figure", {}, picture, drawing(example));
}

function tags(scores) {
  return Object.entries(scores).map(([name, value]) =>
    element("span", { className: "tag", textContent: `${name} ${Number(value.toFixed(3))}` }));
}

function card(example) {
  const words = element("dl");
  const add = (name, className, ...parts) =>
    words.append(element("dt", { textContent: name }), element("dd", { className }, ...parts));
  add("prompt", "", example.prompt);
  const ending = example.end === "stop" ? [] : [element("span", { className: "tag bad", textContent: example.end })];
  add("reply", "reply", example.reply + " ", ...ending);
  if (example.other) add(data.beside, "reply", example.other.reply);
  add("truth", "", example.truth ?? "not public");
  if (Object.keys(example.scores).length) add("score", "", ...tags(example.scores));
  if (example.other) add(`score, ${data.beside}`, "", ...tags(example.other.scores));
  const about = [...Object.entries(example.categories).map(([kind, name]) => `${kind} ${name}`), example.id];
  add("", "small", about.join(" · "));
  return element("article", { className: example.verdict }, figure(example), words);
}

const tests = {
  all: () => true,
  wrong: (example) => example.verdict === "wrong" || example.verdict === "part",
  truncated: (example) => example.end !== "stop",
  changed: (example) => example.other !== undefined && example.other.reply !== example.reply,
};

function show() {
  let shown = 0;
  data.examples.forEach((example, number) => {
    const kinds = Object.entries(example.categories).map((pair) => pair.join(" "));
    const words = `${example.prompt} ${example.reply} ${example.truth} ${example.id}`.toLowerCase();
    const fits = tests[chosen.kind](example) && (!chosen.category || kinds.includes(chosen.category))
      && words.includes(chosen.text.toLowerCase());
    list.children[number].hidden = !fits;
    shown += fits;
  });
  document.getElementById("count").textContent = `${shown} of the ${data.examples.length} on this page`;
}

list.append(...data.examples.map(card));
for (const button of document.querySelectorAll("nav button"))
  button.addEventListener("click", () => {
    chosen.kind = button.value;
    for (const each of document.querySelectorAll("nav button")) each.setAttribute("aria-pressed", each === button);
    show();
  });
document.getElementById("category").addEventListener("change", (event) => { chosen.category = event.target.value; show(); });
document.getElementById("text").addEventListener("input", (event) => { chosen.text = event.target.value; show(); });
const asked = document.querySelector(`nav button[value="${location.hash.slice(1)}"]`); // page.html#wrong
if (asked) asked.click();
show();
