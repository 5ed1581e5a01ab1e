// Learning curves of the shown groups.

/** [epoch, mean, sd, n] as far as every run of the group that logged the metric goes. */
function means(members, metric, first) {
  const at = new Map();
  const long = members.filter((run) => run.epochs.at(-1) >= first);
  for (const run of long) {
    run.epochs.forEach((epoch, place) => {
      const value = run.curves[metric][place];
      if (value === null || epoch < first) return;
      if (!at.has(epoch)) at.set(epoch, []);
      at.get(epoch).push(value);
    });
  }
  return [...at].filter(([, values]) => values.length === long.length)
    .sort((a, b) => a[0] - b[0])
    .map(([epoch, values]) => [epoch, average(values), deviation(values), values.length]);
}

/** What is drawn, before it is drawn. */
function curveData() {
  const metric = $("metric").value;
  const [banded, single, log] = ["bands", "singles", "logy"].map((id) => $(id).checked);
  const members = new Map(groups.filter((group) => shown.has(group.index))
    .map((group) => [group.index, []]));
  const visible = runs.filter((run) => members.has(run.group) && run.curves[metric]);
  for (const run of visible) members.get(run.group).push(run);
  const every = [...new Set(visible.flatMap((run) => run.epochs))].sort((a, b) => a - b);
  const first = $("late").checked ? every.at(-1) / 2 : 0;
  const epochs = every.filter((epoch) => epoch >= first);
  const curve = new Map([...members].map(([group, own]) => [group, means(own, metric, first)]));
  const points = new Map(visible.map((run) => [run, run.epochs
    .map((epoch, place) => [epoch, run.curves[metric][place]])
    .filter(([epoch, value]) => epoch >= first && value !== null && (!log || value > 0))]));
  const ends = ([, mean, sd]) => banded && sd !== null ? [mean, mean - sd, mean + sd] : [mean];
  const values = [...curve.values()].flat().flatMap(ends)
    .concat(single ? [...points.values()].flatMap((own) => own.map(([, value]) => value)) : []);
  return {
    metric, banded, single, log, members, epochs, curve, points,
    values: log ? values.filter((value) => value > 0) : values,
  };
}

/** A group: band, single runs and mean; {part, own: its single runs}. */
function drawGroup(group, { banded, single, log, members, curve, points }, x, upper) {
  const mids = curve.get(group);
  const part = drawn("g", { class: colour(group) });
  if (banded && mids.length && mids[0][2] !== null) {
    const edge = (sign) => mids.map(([epoch, mean, sd]) => [x.at(epoch), upper(mean + sign * sd)]);
    const outline = path([...edge(1), ...edge(-1).reverse()]);
    part.append(drawn("path", { class: "band", d: `${outline}Z` }));
  }
  const own = drawn("g", { visibility: single ? "visible" : "hidden" });
  for (const run of members.get(group)) {
    const at = points.get(run);
    const line = path(at.map(([epoch, value]) => [x.at(epoch), upper(value)]));
    own.append(drawn("path", { class: "single", d: line }));
    const best = at.find(([epoch]) => epoch === run.best_epoch);
    if (best) {
      const place = { cx: x.at(best[0]), cy: upper(best[1]), r: 3 };
      own.append(drawn("circle", { class: "dot", ...place }));
    }
  }
  const line = mids.filter(([, mean]) => !log || mean > 0)
    .map(([epoch, mean]) => [x.at(epoch), upper(mean)]);
  part.append(own, drawn("path", {
    class: "mean", "stroke-dasharray": dash(group), d: path(line),
  }));
  if (line.length) part.append(mark(group, ...line.at(-1), 4.5, "point"));
  return { part, own };
}

function curves() {
  const seen = curveData();
  const { metric, epochs, values } = seen;
  const tall = Math.min(420, Math.max(260, innerHeight * .5));
  const area = canvas("curves", tall, `Learning curves of ${metric}`);
  const { svg, width, height } = area;
  if (!epochs.length || !values.length) {
    nothing(area, "nothing to show: choose groups above, or another scale");
    return;
  }
  const x = scale(epochs, LEFT, width - RIGHT, false, 0);
  const y = scale(values, height - BOTTOM, TOP, seen.log);
  const every = x.ticks;
  x.ticks = (count) => every(count).filter(Number.isInteger);
  axes(area, x, y, "epoch", data.labels[metric]);
  const clip = drawn("clipPath", { id: "inside" });
  clip.append(drawn("rect", {
    x: LEFT, y: 0, width: width - LEFT - RIGHT + 6, height: height - BOTTOM,
  }));
  const lowest = seen.log ? extent(values)[0] : -Infinity;
  const upper = (value) => y.at(Math.max(value, lowest));
  const layer = drawn("g", { "clip-path": "url(#inside)" });
  const parts = new Map();
  for (const group of seen.members.keys()) {
    parts.set(group, drawGroup(group, seen, x, upper));
    layer.append(parts.get(group).part);
  }
  svg.append(clip, layer);
  pointing(area, seen, x, upper, parts);
}

/** Values at an epoch, by pointer and arrow keys. */
function pointing({ svg, height }, { single, epochs, curve }, x, upper, parts) {
  const hair = drawn("path", { class: "axis", visibility: "hidden" });
  svg.append(hair);
  let cursor = null; // where the arrow keys are among the epochs

  function light(near) {
    for (const [group, { part, own }] of parts) {
      part.classList.toggle("faint", near !== null && group !== near);
      own.setAttribute("visibility", single || group === near ? "visible" : "hidden");
    }
  }
  function point(epoch, event, pointed) {
    hair.setAttribute("d", `M${x.at(epoch)} ${TOP}V${height - BOTTOM}`);
    hair.setAttribute("visibility", "visible");
    const here = [...curve]
      .map(([group, mids]) => [group, mids.find((entry) => entry[0] === epoch)])
      .filter(([, entry]) => entry)
      .sort((a, b) => b[1][1] - a[1][1]); // as they lie on the screen
    const away = ([, entry]) => Math.abs(upper(entry[1]) - pointed);
    const near = here.reduce((best, one) => !best || away(one) < away(best) ? one : best, null);
    light(pointed !== null && near && away(near) < 40 ? near[0] : null);
    const rows = here.slice(0, 12).map(([group, [, mean, sd, n]]) => {
      const spread = sd === null ? "" : ` ± ${brief(Number(sd.toPrecision(2)))}`;
      const value = made("span", {}, `${brief(mean)}${spread} (${n})`);
      return made("div", { class: "row" }, key(group, groups[group].label), value);
    });
    const more = here.length > 12 ? `and ${here.length - 12} more` : "";
    tip(event, made("strong", {}, `epoch ${epoch}: mean ± sd (runs)`), ...rows, more);
    const said = here.map(([group, entry]) => `${groups[group].label} ${brief(entry[1])}`);
    $("live").textContent = `epoch ${epoch}: ${said.join(", ")}`;
  }
  function leave() {
    untip();
    hair.setAttribute("visibility", "hidden");
    light(null);
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const away = (epoch) => Math.abs(x.at(epoch) - (event.clientX - box.left));
    const nearest = epochs.reduce((best, epoch) => away(epoch) < away(best) ? epoch : best);
    point(nearest, event, event.clientY - box.top);
  });
  svg.addEventListener("pointerleave", leave);
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const last = epochs.length - 1;
    const now = cursor ?? (event.key === "ArrowRight" ? -1 : last + 1);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    cursor = Math.min(last, Math.max(0, next));
    const box = svg.getBoundingClientRect();
    const left = box.left + x.at(epochs[cursor]);
    point(epochs[cursor], { clientX: left, clientY: box.top + TOP }, null);
  });
}
