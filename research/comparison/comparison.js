const { groups, runs, reference } = data;
const FEW = 8;
const shown = new Set(groups.keys());
let groupRows, runRows;

const fixed = (value) => value.toFixed(data.digits);
const signed = (value) => (value < 0 ? "−" : "+") + fixed(Math.abs(value));
const spread = (group) => fixed(group.mean) + (group.sd === null ? "" : ` ± ${fixed(group.sd)}`);
const span = ([low, high]) => `[${signed(low)}, ${signed(high)}]`;
const groupKey = (group) => key(group, groups[group].label);

function plain(cost, value) {
  if (cost.key === "seconds") return time(value);
  return cost.key === "parameters" ? whole(value) : brief(value);
}

// -- tables -------------------------------------------------------------------------------------

const costColumns = (costs) => costs.map((cost) => ({
  name: cost.label + (cost.unit && cost.key !== "seconds" ? ` (${cost.unit})` : ""),
  of: ({ costs }) => (costs[cost.key] ?? null) === null ? "–" : plain(cost, costs[cost.key]),
  by: ({ costs }) => costs[cost.key] ?? null,
}));

function verdict({ verdictText: text }) {
  const kind = text.endsWith(": better") ? "better" : text.endsWith(": worse") ? "worse" : "soft";
  return made("span", { class: kind }, text);
}

function showBox(group) {
  const box = made("input", {
    type: "checkbox", "aria-label": `show ${group.label}`, "data-group": group.index,
  });
  box.checked = shown.has(group.index);
  box.onchange = () => {
    if (box.checked) shown.add(group.index);
    else shown.delete(group.index);
    rechosen();
  };
  return box;
}

function groupTable() {
  const differences = groups.length < 2 ? [] : [
    { name: `difference from ${reference + 1}`, by: (group) => group.difference?.mean ?? null,
      of: (group) => group.difference ? signed(group.difference.mean) : "–" },
    { name: "verdict", word: true, wrap: true, wide: true, by: (group) => group.verdictText,
      of: verdict },
  ];
  return table($("groups"), [
    { name: "show", slim: true, of: showBox },
    { name: "#", slim: true, of: (group) => String(group.index + 1), by: (group) => group.index },
    { name: "group", head: true, word: true, wrap: true, of: (group) => groupKey(group.index),
      by: (group) => group.label },
    { name: "seeds", slim: true, by: (group) => group.n,
      of: (group) => group.n + (group.runs > group.n ? ` (${group.runs} runs)` : "") },
    { name: "n", slim: true, of: (group) => group.samples || "–",
      by: (group) => parseInt(group.samples) || null },
    { name: `${data.metric}, mean ± sd`, of: spread, by: (group) => group.mean },
    { name: "min … max", by: (group) => group.min,
      of: (group) => group.sd === null ? "–" : `${fixed(group.min)} … ${fixed(group.max)}` },
    ...differences,
    ...costColumns(data.costs.filter((cost) => cost.key !== "epochs")),
  ], groups, "groups, best first");
}

function runTable() {
  return table($("runs"), [
    { name: "run", head: true, word: true, wrap: true, by: (run) => run.name,
      of: (run) => made("a", { href: run.href, title: run.folder }, run.name) },
    { name: "group", word: true, wrap: true, of: (run) => groupKey(run.group),
      by: (run) => groups[run.group].label },
    { name: "seed", slim: true, of: (run) => String(run.seed), by: (run) => run.seed },
    { name: data.metric, of: (run) => fixed(run.value), by: (run) => run.value },
    { name: "n", slim: true, of: (run) => String(run.samples ?? "–"), by: (run) => run.samples },
    { name: "best epoch", of: (run) => String(run.best_epoch), by: (run) => run.best_epoch },
    ...costColumns(data.costs),
    { name: "status", word: true, of: (run) => run.status, by: (run) => run.status },
  ], runs, "runs");
}

/** Of the shown groups: a column for each of hundreds could not be read. */
function settingTable() {
  const keys = Object.keys(groups[0].settings);
  $("s-settings").hidden = !keys.length;
  $("h-settings").textContent = `Settings that differ (${keys.length})`;
  $("settings").replaceChildren();
  table($("settings"), [
    { name: "setting", head: true, word: true, of: (name) => name, by: (name) => name },
    ...groups.filter((group) => shown.has(group.index)).map((group) => ({
      name: group.label, word: true, wrap: true,
      of: (name) => group.settings[name], by: (name) => group.settings[name],
    })),
  ], keys, "settings in which the groups differ");
}

// -- differences --------------------------------------------------------------------------------

function forest() {
  const others = groups.filter((group) => group.difference && shown.has(group.index));
  $("s-forest").hidden = groups.length < 2;
  if (groups.length < 2) return;
  const share = `${Number((100 * data.confidence).toPrecision(4))} %`;
  $("h-forest").textContent = `Differences from ${groups[reference].label}`;
  $("forest-how").textContent = `Thick: ${share} bootstrap interval of the mean difference; thin: `
    + `${share} by Student's t. A filled mark: the difference is distinguishable, among all that `
    + "were compared; a hollow one: it is not.";
  const broad = $("forest").clientWidth > 760;
  const row = broad ? 34 : 58;
  const title = $("h-forest").textContent;
  const area = canvas("forest", TOP + others.length * row + BOTTOM, title);
  const { svg, width, height } = area;
  const [from, to] = broad ? [width * .27, width * .68] : [14, width - 14];
  const ends = others.flatMap(({ difference: d }) =>
    [d.mean, ...(d.bootstrap ?? []), ...(d.student ?? [])]);
  const x = scale([0, ...ends], from, to, false);
  const better = data.mode === "max" ? "right" : "left";
  axes({ svg, width: to + RIGHT, height }, x, null, "", "");
  svg.append(
    drawn("text", { x: (from + to) / 2, y: height - 8, "text-anchor": "middle" },
      cut(`difference in ${data.metric}; ${better} is better`, Math.floor((width - 8) / 6.8))),
    drawn("path", { d: `M${x.at(0)} ${TOP}V${height - BOTTOM}`, class: "zero" }),
  );
  others.forEach((group, place) => {
    const middle = TOP + place * row + (broad ? row / 2 : row - 14);
    svg.append(forestRow(group, middle, x, broad, from, to, width));
  });
  roving(svg);
}

function forestRow(group, middle, x, broad, from, to, width) {
  const { difference } = group;
  const parts = drawn("g", { class: colour(group.index) });
  if (difference.student) {
    const [low, high] = difference.student.map(x.at);
    const ends = `M${low} ${middle - 5}v10M${high} ${middle - 5}v10`;
    const [left, right] = difference.bootstrap.map(x.at);
    parts.append(
      drawn("path", { class: "span", d: `M${low} ${middle}H${high}${ends}` }),
      drawn("path", { class: "thick", d: `M${left} ${middle}H${right}` }),
    );
  }
  const kind = group.verdict?.significant ? "point" : "hollow";
  parts.append(mark(group.index, x.at(difference.mean), middle, 6, kind));
  const label = cut(group.label, Math.floor((broad ? from - 14 : width * .6) / 6.9));
  const short = group.verdictText.replace("distinguishable: needs", "distinguishable;");
  const mean = signed(difference.mean);
  const interval = difference.student ? ` ${span(difference.student)}` : "";
  const texts = broad
    ? [[0, 4, "", label], [to + 26, -3, "", mean + interval], [to + 26, 12, "tick", short]]
    : [[2, -27, "halo", `${label}  ${mean}`], [2, -12, "tick halo", short]];
  for (const [left, below, look, text] of texts) {
    parts.append(drawn("text", { x: left, y: middle + below, class: look }, text));
  }
  return described(parts, [
    group.label, `difference ${mean} (${group.pairing}, ${difference.n} seeds)`,
    ...(difference.student
      ? [`bootstrap ${span(difference.bootstrap)}`, `Student's t${interval}`] : []),
    ...(group.verdict ? [`p ${group.p}, adjusted`] : []), group.verdictText,
  ]);
}

// -- against cost -------------------------------------------------------------------------------

let costSeen = null;

function unitOf(cost, largest) {
  if (cost.key !== "seconds") return [1, cost.unit];
  return largest < 120 ? [1, "s"] : largest < 7200 ? [60, "min"] : [3600, "h"];
}

function costs() {
  const cost = data.costs.find((entry) => entry.key === $("cost-of").value);
  const dots = runs.filter((run) => shown.has(run.group) && cost.key in run.costs);
  const visible = groups
    .filter((group) => shown.has(group.index) && group.costs[cost.key] !== null);
  const [low, high] = extent(dots.map((run) => run.costs[cost.key]));
  if (costSeen !== cost.key) {
    $("logx").checked = low > 0 && high / low > 20;
    costSeen = cost.key;
  }
  const [factor, unit] = unitOf(cost, high);
  const amount = (value) => `${cost.label} ${plain(cost, value)}`
    + (unit && cost.key !== "seconds" ? ` ${unit}` : "");
  const title = `${data.metric} against ${cost.label}`;
  $("h-cost").textContent = title;
  scatter("cost", visible.map((group) => ({
    x: group.costs[cost.key] / factor, y: group.mean, sd: group.sd, group: group.index,
    label: group.label,
    text: [group.label, `${data.metric} ${spread(group)}, ${group.n} seeds`,
      amount(group.costs[cost.key])],
  })), dots.map((run) => ({
    x: run.costs[cost.key] / factor, y: run.value, group: run.group,
    text: [run.name, groups[run.group].label,
      `seed ${run.seed}: ${data.metric} ${fixed(run.value)}`, amount(run.costs[cost.key])],
  })), {
    title, x: `${cost.label}${unit ? ` (${unit})` : ""}; left is better`,
    y: data.labels[data.metric], mode: data.mode, log: $("logx").checked && low > 0,
  });
}

// -- the page -----------------------------------------------------------------------------------

function redraw() {
  forest();
  curves();
  costs();
}

/** After other groups were chosen. */
function rechosen() {
  settingTable();
  redraw();
}

function choose(chosen) {
  shown.clear();
  for (const group of chosen) shown.add(group.index);
  groupRows.draw();
  rechosen();
}

function heading() {
  const better = data.mode === "max" ? "higher" : "lower";
  $("title").textContent = data.title;
  $("what").textContent = `${whole(runs.length)} runs in ${groups.length} `
    + `group${groups.length > 1 ? "s" : ""}; ${data.metric} (${better} is better) in each run's `
    + `best epoch; n: ${data.unit}; ${data.created}.`
    + (data.left_out ? ` Left out: ${data.left_out}.` : "");
  const [first] = groups;
  const others = groups.filter((group) => group.difference);
  const distinct = others.filter((group) => group.verdict?.significant).length;
  const unknown = others.filter((group) => !group.verdict).length;
  const name = reference ? groups[reference].label : "it";
  const rest = unknown ? `; of ${unknown} that is not known (one seed, or no spread).` : ".";
  $("result").textContent = `Best: ${first.label}, ${spread(first)} over ${first.n} `
    + `seed${first.n > 1 ? "s" : ""}. `
    + (others.length ? `Of ${others.length} other${others.length > 1 ? "s" : ""}, ${distinct} `
      + `${distinct === 1 ? "is" : "are"} distinguishable from ${name}${rest}` : "");
  $("warnings").append(...data.warnings.map((warning) => made("p", {}, warning)));
  if (data.notes.length) {
    $("notes").append(made("ul", {}, ...data.notes.map((note) => made("li", {}, note))));
  }
}

const isFew = (group) => group.index < FEW || group.index === reference;

heading();
shortcuts([
  ...tableKeys(() => runRows, "runs"),
  { keys: ["b", "a"], does: "show the best 8 groups, all groups of the table",
    run: (pressed) => $(pressed === "b" ? "few" : "all").click() },
  { keys: [], shown: ["←", "→", "Home", "End"], does: "along the marks or epochs of a chart" },
]);
$("choose").hidden = groups.length <= FEW;
$("metric").append(...data.metrics.map((name) => made("option", {}, name)));
$("cost-of").append(...data.costs.map((cost) => made("option", { value: cost.key }, cost.label)));
for (const id of ["metric", "singles", "bands", "late", "logy"]) $(id).onchange = curves;
for (const id of ["cost-of", "logx"]) $(id).onchange = costs;
if (groups.length > FEW) {
  shown.clear();
  for (const group of groups.filter(isFew)) shown.add(group.index);
}
groupRows = groupTable();
runRows = runTable();
settingTable();
$("all").onclick = () => choose(groupRows.listed());
$("few").onclick = () => choose(groups.filter(isFew));
onWidth($("curves"), redraw);
