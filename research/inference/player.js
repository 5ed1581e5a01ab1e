const WAIT = 250; // milliseconds between two questions for more frames
const TALLEST = "68vh";
const ENLARGED = 4; // times at most
const LETTERS = 14; // height of labels, in pixels of the screen

const frames = [];
let done = false;
let shown = -1;
let playing = true;
let asked = 0; // the latest frame asked for; an older one that arrives later is not shown

function draw() {
  if (shown < 0) return;
  const frame = frames[shown];
  const level = Number($("objectness").value);
  $("level").textContent = level.toFixed(2);
  $("boxes").setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  $("boxes").replaceChildren();
  const letters = LETTERS * frame.width / Math.max(1, $("stage").clientWidth);
  const texts = [];
  frame.boxes.forEach(([x0, y0, x1, y1], number) => {
    if (frame.scores[number] < level) return;
    const stroke = frame.colours[Math.min(number, frame.colours.length - 1)];
    const [x, y] = [x0 * frame.width, y0 * frame.height];
    const [width, height] = [(x1 - x0) * frame.width, (y1 - y0) * frame.height];
    const above = y < 1.2 * letters ? y + letters : y - 0.2 * letters;
    texts.push(frame.texts[number]);
    const text = drawn("text", { x, y: above }, frame.texts[number]);
    text.style.fontSize = `${letters}px`;
    text.style.fill = stroke;
    $("boxes").append(drawn("rect", { x, y, width, height, stroke }), text);
  });
  $("boxes").setAttribute("aria-label", `${texts.length} boxes: ${texts.join(", ")}`);
}

function count() {
  if (shown < 0) return;
  $("counter").textContent = `${shown + 1} / ${frames.length}${done ? "" : " so far"}`;
}

async function show(number) {
  asked = number;
  const image = new Image();
  image.src = `frame/${number}.jpg`;
  try {
    await image.decode();
  } catch {
    throw `frame ${number + 1} cannot be loaded: has the command ended?`;
  }
  if (number !== asked) return;
  const frame = frames[number];
  shown = number;
  $("stage").style.aspectRatio = `${frame.width} / ${frame.height}`;
  const widest = `calc(${TALLEST} * ${frame.width / frame.height})`;
  $("stage").style.maxWidth = `min(${widest}, ${ENLARGED * frame.width}px)`;
  $("frame").hidden = false;
  $("frame").src = image.src;
  $("frame").alt = frame.name;
  $("place").value = number;
  count();
  $("latency").textContent = `${frame.milliseconds.toFixed(1)} ms a frame`;
  $("name").textContent = frame.name;
  $("caption").textContent = frame.caption;
  draw();
}

function press(play) {
  playing = play;
  $("play").textContent = play ? "Pause" : "Play";
}

async function follow() {
  while (!done) {
    const answer = await fetch(`frames.json?after=${frames.length}`);
    if (!answer.ok) throw `the command answers ${answer.status}`;
    const { frames: more, done: last } = await answer.json();
    frames.push(...more);
    done = last;
    $("place").max = Math.max(0, frames.length - 1);
    count();
    // A long list comes in parts.
    if (!more.length) await new Promise((resolve) => setTimeout(resolve, WAIT));
  }
  if (!frames.length) $("counter").textContent = "no frame could be read";
}

const pace = () => Math.min(60, Math.max(1, Number($("pace").value) || 10));

async function run() {
  for (;;) {
    const began = performance.now();
    if (playing && shown + 1 < frames.length) {
      await show(shown + 1).catch((reason) => { press(false); fail(reason); });
    } else if (playing && done && frames.length) press(false);
    const left = began + 1000 / pace() - performance.now();
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, left)));
  }
}

function go(number) {
  press(false);
  if (frames.length) show(Math.min(frames.length - 1, Math.max(0, number)));
}

function setLevel(change) {
  $("objectness").value = Number($("objectness").value) + change;
  draw();
}

$("title").textContent = data.title;
$("threshold").hidden = data.objectness === null;
$("objectness").value = data.objectness ?? 0;
$("play").onclick = () => {
  if (!playing && shown === frames.length - 1 && done) shown = -1;
  press(!playing);
};
$("back").onclick = () => go(shown - 1);
$("on").onclick = () => go(shown + 1);
$("place").oninput = () => go(Number($("place").value));
$("objectness").oninput = draw;
const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
shortcuts([
  { keys: [" "], shown: ["Space"], does: "play or pause", run: () => $("play").click() },
  { keys: ["ArrowLeft", "ArrowRight"], shown: ["←", "→"], does: "previous, next frame",
    run: (key) => go(shown + steps[key]) },
  { keys: ["PageUp", "PageDown"], does: "ten frames back, on",
    run: (key) => go(shown + steps[key]) },
  { keys: ["Home", "End"], does: "first, last frame",
    run: (key) => go(key === "Home" ? 0 : frames.length - 1) },
  ...(data.objectness === null ? [] : [{
    keys: ["ArrowDown", "ArrowUp"], shown: ["↓", "↑"], does: "lower, higher objectness",
    run: (key) => setLevel(key === "ArrowUp" ? 0.05 : -0.05),
  }]),
  { keys: ["-", "+"], does: "slower, faster",
    run: (key) => { $("pace").value = Math.round(pace() * (key === "+" ? 1.5 : 1 / 1.5)); } },
]);
addEventListener("resize", draw);
follow();
run();
