const PER_PAGE = 50;
const FILTERED = 10; // rows from which a table has a filter

/** Puts null last, text in the order of its numbers. */
function compared(left, right, rising) {
  if (left === null || right === null) return (left === null) - (right === null);
  const less = typeof left === "string"
    ? left.localeCompare(right, "en", { numeric: true })
    : left - right;
  return rising ? less : -less;
}

/**
 * A table that sorts, filters and pages: of any number of items, PER_PAGE are in the document.
 *
 * host: its element, which has a title of id h-HOST
 * columns: {name, of(item): node or text, by(item): what it is sorted and filtered by;
 *   head: it names the row; word, wrap, wide, slim: its look}
 * changed: called after the filter was changed
 * Returns {listed(): items after the filter, draw(), turn(pages), filter: its field or null}.
 */
function table(host, columns, items, caption, changed = () => {}) {
  let sorting = null;
  let rising = true;
  let page = 0;
  let listed = items;
  const texts = new Map();
  const element = made("table");
  const body = made("tbody");
  const region = made("div", {
    class: "scroll", tabindex: "0", role: "region", "aria-labelledby": `h-${host.id}`,
  }, element);
  const pages = () => Math.max(1, Math.ceil(listed.length / PER_PAGE));
  const look = (column, ...names) => names.filter((name) => column[name]).join(" ");

  function textOf(item) {
    if (!texts.has(item)) {
      const cells = columns.filter((column) => column.by).map((column) => column.by(item) ?? "");
      texts.set(item, cells.join(" ").toLowerCase());
    }
    return texts.get(item);
  }

  function row(item) {
    return made("tr", {}, ...columns.map((column) => column.head
      ? made("th", { scope: "row", class: look(column, "word", "wrap", "wide") }, column.of(item))
      : made("td", { class: look(column, "word", "wrap", "wide") }, column.of(item))));
  }

  function draw() {
    page = Math.min(page, pages() - 1);
    const first = page * PER_PAGE;
    const seen = listed.slice(first, first + PER_PAGE);
    body.replaceChildren(...seen.map(row));
    const range = seen.length ? `${first + 1}–${first + seen.length} of ` : "";
    const all = listed.length < items.length ? `, of ${whole(items.length)} in all` : "";
    count.textContent = `${range}${whole(listed.length)}${all}`;
    before.disabled = page === 0;
    after.disabled = page >= pages() - 1;
    pager.hidden = items.length <= PER_PAGE && listed.length === items.length;
  }

  function arrange() {
    const words = (filter?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    listed = items.filter((item) => words.every((word) => textOf(item).includes(word)));
    if (sorting) listed.sort((a, b) => compared(sorting.by(a), sorting.by(b), rising));
    page = 0;
    draw();
  }

  function turn(step) {
    page = Math.min(pages() - 1, Math.max(0, page + step));
    region.scrollTop = 0;
    draw();
  }

  const heads = columns.map((column) => {
    const head = made("th", { scope: "col", class: look(column, "word", "slim") });
    if (!column.by) {
      head.append(column.name);
      return head;
    }
    const button = made("button", { type: "button" }, column.name);
    button.onclick = () => {
      rising = sorting !== column || !rising;
      sorting = column;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      arrange();
    };
    head.append(button);
    return head;
  });
  const count = made("span", { "aria-live": "polite" });
  const before = made("button", { type: "button", "aria-label": "previous page" }, "‹");
  const after = made("button", { type: "button", "aria-label": "next page" }, "›");
  before.onclick = () => turn(-1);
  after.onclick = () => turn(1);
  const pager = made("span", { class: "bar soft" }, count, made("span", {}, before, " ", after));
  const bar = made("div", { class: "bar" });
  const filter = items.length > FILTERED ? made("input", { type: "search" }) : null;
  if (filter) {
    filter.oninput = () => {
      arrange();
      changed();
    };
    const title = `of ${caption}: rows with all of these words`;
    bar.append(made("label", { title }, "filter ", filter));
  }
  element.append(
    made("caption", { class: "hidden" }, caption),
    made("thead", {}, made("tr", {}, ...heads)),
    body,
  );
  bar.append(pager);
  host.append(bar, region);
  draw();
  return { listed: () => listed, draw, turn, filter };
}

/** The keys of a table, for the list of keys. */
const tableKeys = (of, name) => [
  { keys: ["/"], does: `filter the ${name}`, run: () => of().filter?.focus() },
  { keys: ["[", "]"], does: `previous, next page of the ${name}`,
    run: (key) => of().turn(key === "[" ? -1 : 1) },
  { keys: [], shown: ["Tab", "Enter"], does: "to the head of a column, sort by it" },
];
