// The page's behaviour: a picture or a video in, questions out, words and points as they come. Nothing is loaded from elsewhere.
"use strict";

const at = (id) => document.getElementById(id);
let shown = null; // part of a message: the picture or the video that is asked about
let spoken = ""; // the answer whose points are drawn
let history = []; // messages of this conversation
let running = null; // AbortController of the answer that is coming

// ---- the picture or the video

const isVideo = () => shown?.type === "video_url";

function show(file) {
  const kind = file?.type.match(/^(image|video)\//)?.[1];
  if (!kind) return;
  const reader = new FileReader();
  reader.onload = () => {
    shown = { type: `${kind}_url`, [`${kind}_url`]: { url: reader.result } };
    URL.revokeObjectURL(at("video").src);
    at("video").removeAttribute("src");
    if (isVideo()) at("video").src = URL.createObjectURL(file);
    else at("picture").src = reader.result;
    at("picture").hidden = isVideo();
    at("video").hidden = !isVideo();
    at("frame").hidden = false;
    at("stage").classList.add("full");
    clear();
    at("question").focus();
  };
  reader.readAsDataURL(file);
}

function enlarge(element, width, height) {
  // what is small is shown larger
  const scale = Math.max(1, Math.floor(448 / Math.max(width, height)));
  element.style.width = scale > 1 ? `${width * scale}px` : "";
}

at("picture").addEventListener("load", ({ target }) => enlarge(target, target.naturalWidth, target.naturalHeight));
at("video").addEventListener("loadedmetadata", ({ target }) => enlarge(target, target.videoWidth, target.videoHeight));
at("video").addEventListener("timeupdate", () => draw(spoken));
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

// and Molmo2's <points coords="PLACE 1 250 750 2 300 410;PLACE ..">, in thousandths; a place of a video is its seconds

const COORDS = /<(?:points|tracks).*? coords="([0-9\t:;, .]+)"\/?>/g;
const GROUP = /(?:^|[\t:,;])([0-9.]+) ([0-9. ]+)/g;
const POINT = /([0-9]+) ([0-9]{3,4}) ([0-9]{3,4})/g;

function pointsOf(text) {
  const pairs = [...text.matchAll(PAIR)].map(([, x, y], i) => ({ x: Number(x), y: Number(y), name: i + 1 }));
  const groups = [...text.matchAll(COORDS)].flatMap(([, coords]) => [...coords.matchAll(GROUP)]);
  const placed = groups.flatMap(([, place, points]) => [...points.matchAll(POINT)].map(
    ([, name, x, y]) => ({ x: x / 10, y: y / 10, name, place: Number(place) }),
  ));
  return [...pairs, ...placed].filter((point) => point.x <= 100 && point.y <= 100);
}

function now(points) {
  // those of the last moment that the video has reached
  const reached = points.map((point) => point.place).filter((place) => place <= at("video").currentTime + 0.05);
  return points.filter((point) => point.place === Math.max(...reached));
}

function draw(text) {
  spoken = text;
  const all = pointsOf(text);
  const points = isVideo() ? now(all) : all;
  const marks = [...at("frame").querySelectorAll(".point")];
  marks.slice(points.length).forEach((mark) => mark.remove());
  points.forEach((point, i) => {
    const mark = marks[i] || at("frame").appendChild(document.createElement("span"));
    mark.className = "point";
    mark.style.left = `${point.x}%`;
    mark.style.top = `${point.y}%`;
    mark.textContent = points.length > 1 ? point.name : "";
  });
}

function write(turn, text) {
  // tags of points become marked words; one that is not whole yet is not shown
  turn.replaceChildren();
  const whole = text.replace(/<(?:points?|tracks)\b[^>]*$/, "");
  for (const [i, part] of whole.split(/<(?:points?|tracks)\b[^>]*>([^<]*)(?:<\/(?:points?|tracks)>)?/).entries()) {
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
  if (shown && history.length === 0) parts.unshift(shown);
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
