const COLOURS = 8;
const DASHES = ["", "7 4", "2 4", "10 3 2 3"]; // beyond the colours, so that lines stay apart
const TOP = 12, BOTTOM = 46, RIGHT = 14, LEFT = 64;
const NAMED = 16; // points with their names beside them

const colour = (group) => `g${group % COLOURS}`;
const dash = (group) => DASHES[Math.floor(group / COLOURS) % DASHES.length];
function cut(text, most) {
  return text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
}
const path = (points) => points
  .map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`)
  .join("");

/** The mark of a group: circle, square, triangle or diamond. */
function mark(group, x, y, size, kind) {
  const [s, r] = [size * .88, size * 1.3];
  const shapes = [
    () => drawn("circle", { cx: x, cy: y, r: size }),
    () => drawn("rect", { x: x - s, y: y - s, width: 2 * s, height: 2 * s }),
    () => drawn("path", {
      d: `M${x} ${y - size * 1.2}L${x + size * 1.1} ${y + size * .85}H${x - size * 1.1}Z`,
    }),
    () => drawn("path", { d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z` }),
  ];
  const element = shapes[group % shapes.length]();
  element.setAttribute("class", `mark ${kind} ${colour(group)}`);
  return element;
}

/** A label with the line and the mark of its group. */
function key(group, label) {
  const svg = drawn("svg", { width: 26, height: 14, "aria-hidden": "true" });
  svg.append(
    drawn("path", {
      d: "M0 7H26", class: `mean ${colour(group)}`, "stroke-dasharray": dash(group),
    }),
    mark(group, 13, 7, 4.5, "point"),
  );
  return made("span", { class: "key" }, svg, made("span", {}, label));
}

// -- scales and axes ----------------------------------------------------------------------------

function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high) {
  const found = [];
  const factors = high / low > 1000 ? [1] : high / low > 30 ? [1, 3] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) {
      const value = Number((factor * 10 ** power).toPrecision(3));
      if (value >= low * .999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(low, high, 4);
}

/** Values to pixels: {at(value), ticks(count)}; pad: part of the range that is free at each end. */
function scale(values, from, to, log, pad = .05) {
  let [low, high] = values.length ? extent(values) : [0, 1];
  if (log) {
    if (low === high) [low, high] = [low / 2, high * 2];
    const room = (high / low) ** pad;
    [low, high] = [low / room, high * room];
    const span = Math.log(high / low);
    return {
      at: (value) => from + (to - from) * Math.log(value / low) / span,
      ticks: () => logTicks(low, high),
    };
  }
  const room = (high - low) * pad || Math.abs(low) * .1 || 1;
  if (pad) [low, high] = [low - room, high + room];
  else if (low === high) [low, high] = [low - 1, high + 1];
  return {
    at: (value) => from + (to - from) * (value - low) / (high - low),
    ticks: (count) => ticks(low, high, count),
  };
}

/** An empty SVG over the whole width of a chart. */
function canvas(id, height, label) {
  const width = Math.max(260, $(id).clientWidth);
  const svg = drawn("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label,
  });
  $(id).replaceChildren(svg);
  return { svg, width, height };
}

function nothing({ svg, width, height }, words) {
  svg.append(drawn("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, words));
}

/** [value, label] of ticks, with as many digits as it takes to tell them apart. */
function labelled(values) {
  let found;
  for (let digits = 4; digits <= 12; digits++) {
    found = values.map((value) => brief(value, digits));
    if (new Set(found).size === values.length) break;
  }
  return values.map((value, place) => [value, found[place]]);
}

/** Grid, axes and their labels; y: null for none. */
function axes({ svg, width, height }, x, y, xLabel, yLabel) {
  const base = height - BOTTOM;
  const start = y ? LEFT : 0;
  let free = -Infinity; // where the last label ends
  for (const [value, label] of labelled(x.ticks(Math.max(4, Math.round(width / 110))))) {
    const at = x.at(value);
    svg.append(drawn("path", { d: `M${at} ${TOP}V${base}`, class: "grid" }));
    const half = label.length * 3.6;
    if (at - half < free) continue;
    free = at + half + 6;
    const attributes = { x: at, y: base + 17, "text-anchor": "middle", class: "tick" };
    svg.append(drawn("text", attributes, label));
  }
  if (y) {
    for (const [value, label] of labelled(y.ticks(5))) {
      const at = y.at(value);
      const attributes = { x: LEFT - 7, y: at + 4, "text-anchor": "end", class: "tick" };
      svg.append(
        drawn("path", { d: `M${LEFT} ${at}H${width - RIGHT}`, class: "grid" }),
        drawn("text", attributes, label),
      );
    }
    const transform = `translate(14 ${(TOP + base) / 2}) rotate(-90)`;
    svg.append(drawn("text", { transform, "text-anchor": "middle" },
      cut(yLabel, Math.floor(height / 7))));
  }
  const middle = (start + width - RIGHT) / 2;
  svg.append(
    drawn("path", { d: `M${start} ${base}H${width - RIGHT}`, class: "axis" }),
    drawn("text", { x: middle, y: height - 8, "text-anchor": "middle" },
      cut(xLabel, Math.floor((width - start) / 6.8))),
  );
}

// -- a metric against a cost --------------------------------------------------------------------

/** The points that no other beats in both: higher y (times sign) at lower x; by rising x. */
function paretoFront(points, sign) {
  const ordered = [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y));
  let best = -Infinity;
  let reached = null; // equal points are all on the front, or none
  return ordered.filter((point) => {
    const height = sign * point.y;
    if (height > best) {
      [best, reached] = [height, point.x];
      return true;
    }
    return height === best && point.x === reached;
  });
}

/** The first place beside a mark where a label covers nothing; null if there is none. */
function labelPlace(left, top, long, taken, width, height) {
  const places = [
    [11, 4, "start"], [-11, 4, "end"], [11, -14, "start"], [11, 22, "start"],
    [-11, -14, "end"], [-11, 22, "end"], [0, -13, "middle"], [0, 22, "middle"],
  ];
  for (const [dx, dy, anchor] of places) {
    const start = left + dx - { start: 0, end: long, middle: long / 2 }[anchor];
    const box = [start, top + dy - 11, start + long, top + dy + 4];
    const inside = box[0] >= LEFT && box[2] <= width && box[1] >= 0 && box[3] <= height - BOTTOM;
    const covers = ([x0, y0, x1, y1]) => box[0] < x1 && box[2] > x0 && box[1] < y1 && box[3] > y0;
    if (inside && !taken.some(covers)) return { x: left + dx, y: top + dy, anchor, box };
  }
  return null;
}

/**
 * Points of a metric against a cost. Filled marks are on the Pareto front, hollow ones are not.
 *
 * points: [{x, y, sd: or null, group, label, text: lines of the tooltip}]
 * dots: [{x, y, group, text}], small marks behind them
 * how: {title, x: label, y: label, mode: max or min, log: of x}
 */
function scatter(id, points, dots, how) {
  const area = canvas(id, Math.min(360, Math.max(280, innerHeight * .5)), how.title);
  const { svg, width, height } = area;
  const all = [...points, ...dots];
  if (!all.length) {
    nothing(area, "nothing to show: choose groups above");
    return;
  }
  const x = scale(all.map((one) => one.x), LEFT, width - RIGHT - 6, how.log, .08);
  const reach = (one) => [one.y - (one.sd ?? 0), one.y + (one.sd ?? 0)];
  const y = scale(all.flatMap(reach), height - BOTTOM, TOP, false, .08);
  axes(area, x, y, how.x, how.y);
  const at = (one) => [x.at(one.x), y.at(one.y)];
  const front = paretoFront(points, how.mode === "max" ? 1 : -1);
  if (front.length > 1) svg.append(drawn("path", { class: "front", d: path(front.map(at)) }));
  const best = new Set(front);
  for (const dot of dots) {
    const [cx, cy] = at(dot);
    const circle = drawn("circle", { class: `dot ${colour(dot.group)}`, cx, cy, r: 3.2 });
    svg.append(described(circle, dot.text));
  }
  const ordered = [...points.filter((point) => !best.has(point)), ...front];
  for (const point of ordered) {
    const [left, top] = at(point);
    const part = drawn("g", { class: colour(point.group) });
    if (point.sd) {
      const [low, high] = reach(point).map(y.at);
      part.append(drawn("path", { class: "bars", d: `M${left} ${low}V${high}` }));
    }
    part.append(mark(point.group, left, top, 6.5, best.has(point) ? "point" : "hollow"));
    const rank = best.has(point) ? "on the Pareto front" : "not on the Pareto front";
    svg.append(described(part, [...point.text, rank]));
  }
  names(area, ordered.reverse().slice(0, NAMED), points, at, y);
  roving(svg);
}

/** Names beside points, as far as there is room; those on the front come first. */
function names({ svg, width, height }, named, points, at, y) {
  const taken = points.map((point) => {
    const [left, top] = at(point);
    const reach = Math.max(7, y.at(point.y - (point.sd ?? 0)) - top);
    return [left - 7, top - reach, left + 7, top + reach];
  });
  for (const point of named) {
    const label = cut(point.label, Math.floor(width / 16));
    const place = labelPlace(...at(point), label.length * 6.8, taken, width, height);
    if (!place) continue;
    taken.push(place.box);
    const attributes = { x: place.x, y: place.y, "text-anchor": place.anchor, class: "halo" };
    svg.append(drawn("text", attributes, label));
  }
}

/** Runs redraw now, and whenever the width of an element changes. */
function onWidth(element, redraw) {
  let before = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width !== before) requestAnimationFrame(redraw);
    before = contentRect.width;
  }).observe(element);
}
