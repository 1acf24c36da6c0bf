// The page's behaviour: a picture in, questions out, words and points as they come. Nothing is loaded from elsewhere.
"use strict";

const at = (id) => document.getElementById(id);
let picture = null; // data: URL of the picture that is asked about
let history = []; // messages of this conversation
let running = null; // AbortController of the answer that is coming

// ---- the picture

function show(file) {
  if (!file || !file.type.startsWith("image/")) return;
  const reader = new FileReader();
  reader.onload = () => {
    picture = reader.result;
    at("picture").src = picture;
    at("frame").hidden = false;
    at("stage").classList.add("full");
    clear();
    at("question").focus();
  };
  reader.readAsDataURL(file);
}

at("picture").addEventListener("load", () => {
  // a small picture is shown larger
  const { naturalWidth, naturalHeight, style } = at("picture");
  const scale = Math.max(1, Math.floor(448 / Math.max(naturalWidth, naturalHeight)));
  style.width = scale > 1 ? `${naturalWidth * scale}px` : "";
});
at("file").addEventListener("change", (event) => show(event.target.files[0]));
document.addEventListener("paste", (event) => show([...event.clipboardData.files][0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
document.addEventListener("dragleave", () => at("stage").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  show(event.dataTransfer.files[0]);
});

// ---- points: <point x="1.0" y="2.0" alt="..">..</point> and <points x1=".." y1=".." ..>, in per cent of the picture

const PAIR = /x\d*="\s*([\d.]+)"\s+y\d*="\s*([\d.]+)"/g;

function pointsOf(text) {
  return [...text.matchAll(PAIR)]
    .map((found) => ({ x: Number(found[1]), y: Number(found[2]) }))
    .filter((point) => point.x <= 100 && point.y <= 100);
}

function draw(text) {
  const points = pointsOf(text);
  const shown = [...at("frame").querySelectorAll(".point")];
  shown.slice(points.length).forEach((mark) => mark.remove());
  points.forEach((point, i) => {
    const mark = shown[i] || at("frame").appendChild(document.createElement("span"));
    mark.className = "point";
    mark.style.left = `${point.x}%`;
    mark.style.top = `${point.y}%`;
    mark.textContent = points.length > 1 ? i + 1 : "";
  });
}

function write(turn, text) {
  // tags of points become marked words; one that is not whole yet is not shown
  turn.replaceChildren();
  const whole = text.replace(/<points?\b[^>]*$/, "");
  for (const [i, part] of whole.split(/<points?\b[^>]*>([^<]*)(?:<\/points?>)?/).entries()) {
    const node = i % 2 ? document.createElement("mark") : document.createTextNode(part);
    if (i % 2) node.textContent = part;
    turn.append(node);
  }
  turn.dataset.text = text;
  draw(text);
}

// ---- the conversation

function add(kind, text) {
  const turn = document.createElement("li");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  at("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function clear() {
  running?.abort();
  history = [];
  at("turns").replaceChildren();
  draw("");
}

function message(text) {
  const parts = [{ type: "text", text }];
  if (picture && history.length === 0) parts.unshift({ type: "image_url", image_url: { url: picture } });
  return { role: "user", content: parts };
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection was closed before the answer was whole.");
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice("data: ".length));
    }
  }
}

async function answer(body, turn) {
  const key = at("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const options = { method: "POST", headers, body: JSON.stringify(body), signal: running.signal };
  const response = await fetch("v1/chat/completions", options);
  if (!response.ok) throw new Error((await response.json()).error.message);
  let text = "";
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    text += event.choices[0]?.delta.content ?? "";
    write(turn, text);
    turn.scrollIntoView({ block: "end" });
  }
  return text;
}

async function ask() {
  const question = at("question").value.trim();
  const asked = message(question);
  add("user", question || at("style").value);
  const turn = add("assistant busy", "");
  running = new AbortController();
  at("question").value = "";
  at("ask").textContent = "Stop";
  try {
    const text = await answer({
      messages: [...history, asked],
      stream: true,
      style: at("style").value,
      max_tokens: Number(at("tokens").value),
      temperature: Number(at("temperature").value),
      max_crops: at("crops").value ? Number(at("crops").value) : null,
    }, turn);
    history.push(asked, { role: "assistant", content: text });
  } catch (error) {
    if (error.name !== "AbortError") add("failed", error.message);
    if (!turn.textContent) turn.remove();
  } finally {
    running = null;
    turn.classList.remove("busy");
    at("ask").textContent = "Ask";
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else ask();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  if (!running) at("form").requestSubmit();
});
at("clear").addEventListener("click", clear);
at("turns").addEventListener("click", (event) => {
  const turn = event.target.closest(".assistant");
  if (turn) draw(turn.dataset.text ?? "");
});

// ---- is anybody there?

async function look() {
  let state = "gone";
  try {
    state = (await fetch("health")).ok ? "ready" : "wait";
  } catch {
    // the server is gone: the next look may find it
  }
  at("state").className = state;
  at("state").textContent = { ready: "ready", wait: "the model is loading", gone: "no connection" }[state];
}

look();
setInterval(look, 3000);
fetch("v1/models")
  .then((response) => response.json())
  .then((list) => { at("model").textContent = list.data?.[0]?.id ?? ""; })
  .catch(() => {});
