const { runs, batches } = data;
const models = [...new Set(runs.map((run) => run.model))];
const rounded = (value, digits) => value === null ? "–" : value.toFixed(digits);
const score = (run) => run.metrics[data.ranked_by];
const batch = () => $("batch").value;

const COSTS = [
  { id: "latency", name: "latency", of: (run) => run.milliseconds[batch()],
    axis: () => `ms/image in batches of ${batch()}` },
  { id: "bytes", name: "network input", of: (run) => run.input_bytes,
    axis: () => "bytes/image of network input" },
  { id: "parameters", name: "parameters", of: (run) => run.parameters, axis: () => "parameters" },
];

/** Runs of the table as points of a metric against a cost; those without a value are left out. */
const pointsOf = (cost, of) => of.filter((run) => score(run) !== null).map((run) => ({
  run, x: cost.of(run), y: score(run), group: models.indexOf(run.model), label: run.name,
  text: [run.name, run.model, `${data.ranked_by} ${rounded(score(run), 4)}`,
    `${cost.name} ${brief(cost.of(run))}`],
}));

function frontOf(cost) {
  const front = paretoFront(pointsOf(cost, runs), data.mode === "max" ? 1 : -1);
  return new Set(front.map((point) => point.run));
}

function fronts(run) {
  const found = COSTS.filter((cost) => pareto.get(cost).has(run)).map((cost) => cost.name);
  return found.join(", ");
}

function runTable() {
  const rank = (name) => ({
    name: `${name} rank`, slim: true, of: (run) => String(run.ranks[name]),
    by: (run) => run.ranks[name],
  });
  const metric = (name) => ({
    name, of: (run) => rounded(run.metrics[name], 4), by: (run) => run.metrics[name],
  });
  return table($("runs"), [
    { name: "run", head: true, word: true, wrap: true, by: (run) => run.name,
      of: (run) => made("a", { href: run.href, title: run.run }, run.name) },
    { name: "model", word: true, wrap: true, by: (run) => run.model,
      of: (run) => key(models.indexOf(run.model), run.model) },
    rank("accuracy"),
    metric(data.ranked_by),
    { name: "on the Pareto front of", word: true, wrap: true, of: fronts,
      by: (run) => fronts(run) || null },
    rank("speed"),
    ...batches.map((size) => ({
      name: `ms/image, batch ${size}`, of: (run) => brief(run.milliseconds[size]),
      by: (run) => run.milliseconds[size],
    })),
    { name: "parameters", of: (run) => whole(run.parameters), by: (run) => run.parameters },
    rank("size"),
    { name: "weights (MB)", of: (run) => rounded(run.size / 1e6, 1), by: (run) => run.size },
    { name: "input (bytes/image)", of: (run) => whole(run.input_bytes),
      by: (run) => run.input_bytes },
    ...data.metrics.filter((name) => name !== data.ranked_by).map(metric),
    { name: `n (${data.unit})`, of: (run) => whole(run.n), by: (run) => run.n },
  ], runs, "runs, by accuracy", charts);
}

function charts() {
  for (const cost of COSTS) {
    const points = pointsOf(cost, runRows.listed());
    const title = `${data.ranked_by} against ${cost.name}`;
    scatter(cost.id, points, [], {
      title, x: cost.axis(), y: data.label, mode: data.mode,
      log: $("log").checked && points.every((point) => point.x > 0),
    });
  }
}

const pareto = new Map();
$("title").textContent = data.title;
$("what").textContent = `${whole(runs.length)} runs of ${models.length} `
  + `model${models.length > 1 ? "s" : ""} on ${data.split}; ${data.rounds} rounds on `
  + `${data.device}; ${data.created}.`;
$("h-costs").textContent = `${data.label} against cost; `
  + `${data.mode === "max" ? "higher" : "lower"} and further left is better`;
$("batch").append(...batches.map((size) => made("option", {}, size)));
$("batch").parentElement.hidden = batches.length < 2;
for (const cost of COSTS) pareto.set(cost, frontOf(cost));
const best = runs.find((run) => run.ranks.accuracy === 1);
$("result").textContent = `Best: ${best.name}, ${data.ranked_by} ${rounded(score(best), 4)}.`;
shortcuts([
  ...tableKeys(() => runRows, "runs"),
  { keys: ["l"], does: "costs on a log scale", run: () => $("log").click() },
  { keys: [], shown: ["←", "→", "Home", "End"], does: "along the marks of a chart" },
]);
const runRows = runTable();
$("log").onchange = charts;
$("batch").onchange = () => {
  pareto.set(COSTS[0], frontOf(COSTS[0]));
  runRows.draw();
  charts();
};
onWidth($("charts"), charts);
