"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const data = JSON.parse($("data").textContent);

const fail = (reason) => { $("problem").textContent = String(reason); };
addEventListener("error", (event) => fail(event.message));
addEventListener("unhandledrejection", (event) => fail(event.reason));

// -- elements -----------------------------------------------------------------------------------

function made(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

function drawn(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

// -- numbers ------------------------------------------------------------------------------------

const whole = (value) => Math.round(value).toLocaleString("en");

function brief(value, digits = 4) {
  const size = Math.abs(value);
  if (size >= 1e5) {
    const compact = { notation: "compact", maximumSignificantDigits: digits - 1 };
    return value.toLocaleString("en", compact);
  }
  if (size >= 1e4) return whole(value);
  if (value && size < 1e-3) return value.toExponential(digits - 3);
  return String(Number(value.toPrecision(digits)));
}

function time(seconds) {
  if (seconds < 120) return `${brief(seconds)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function deviation(values) {
  if (values.length < 2) return null;
  const mean = average(values);
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

/** Smallest and largest of any number of values: as arguments, a hundred thousand are too many. */
function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// -- tooltips -----------------------------------------------------------------------------------

function tip(event, ...inside) {
  const box = $("tip");
  box.replaceChildren(...inside);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const over = event.clientX + 16 + width > innerWidth;
  const left = over ? event.clientX - 16 - width : event.clientX + 16;
  const top = Math.min(event.clientY + 14, innerHeight - height - 4);
  box.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
  box.style.top = `${Math.max(4, top)}px`;
}
const untip = () => { $("tip").hidden = true; };
addEventListener("scroll", untip, { passive: true });

/** Describes an element to pointer, keyboard and screen reader alike. */
function described(element, text) {
  element.classList.add("described");
  element.setAttribute("tabindex", "-1");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", text.join("; "));
  const lines = () => text.slice(1).map((line) => made("div", {}, line));
  const say = (event) => tip(event, made("strong", {}, text[0]), ...lines());
  element.addEventListener("pointermove", say);
  element.addEventListener("pointerleave", untip);
  element.addEventListener("focus", () => {
    const { right, bottom } = element.getBoundingClientRect();
    say({ clientX: right, clientY: bottom });
  });
  element.addEventListener("blur", untip);
  return element;
}

/** Makes the described elements of a chart one tab stop; arrows, Home and End go along them. */
function roving(svg) {
  const elements = [...svg.querySelectorAll(".described")];
  elements[0]?.setAttribute("tabindex", "0");
  elements.forEach((element, place) => element.addEventListener("keydown", (event) => {
    const last = elements.length - 1;
    const target = {
      ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
      Home: 0, End: last,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const next = elements[Math.min(last, Math.max(0, target))];
    element.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }));
}

// -- keyboard -----------------------------------------------------------------------------------

const MOVES = /^(Arrow|Page|Home|End)/;
const WRITING = "input[type=search], input[type=number], select, textarea, dialog";

/** Whether the element with the focus has a use of its own for a key. */
function isTaken(target, key) {
  if (!(target instanceof Element) || target === document.body) return false;
  if (target.closest(WRITING)) return true;
  if (key === " " || key === "Enter") return target.closest("button, a, summary, input") !== null;
  return MOVES.test(key) && target.closest("input, svg, .scroll") !== null;
}

/** Keys of the page: [{keys, shown: in the list of keys, does, run}], beside ? and Escape. */
function shortcuts(own) {
  const all = [
    ...own,
    { keys: ["?"], does: "this list", run: () => $("keys").showModal() },
    { keys: ["Escape"], does: "close this list, or the tooltip", run: untip },
  ];
  for (const { keys, shown, does } of all) {
    const caps = (shown ?? keys).flatMap((key) => [" ", made("kbd", {}, key)]).slice(1);
    $("key-list").append(made("dt", {}, ...caps), made("dd", {}, does));
  }
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = all.find(({ keys, run }) => run && keys.includes(event.key));
    if (!found || isTaken(event.target, event.key)) return;
    event.preventDefault();
    found.run(event.key);
  });
  const button = made("button", { type: "button", "aria-keyshortcuts": "?" }, "Keyboard ?");
  button.onclick = () => $("keys").showModal();
  document.querySelector("header .bar").append(button);
}
