// The list of trees with its filters, its order and its files, and the report.

const FILTERS = ["suite", "split", "run", "policy_version", "status"];
const PAGE = 100;
const MOST = 500; // trees of one answer
const COLUMNS = [
  ["sign", "", "solved first"], ["task", "task"], ["goal", "goal"], ["status", "status"], ["outcome", "outcome", "high first"],
  ["nodes", "nodes", "many first"], ["expansions", "expansions", "many first"], ["tokens", "tokens", "many first"], ["steps", "steps", "many first"],
  ["exact", "exact", "exact first"], ["version", "weights"], ["run", "run"], ["begun", "begun", "late first"],
];
const NUMBERS = new Set(["outcome", "nodes", "expansions", "tokens", "steps"]);
const NAMED = Object.fromEntries(COLUMNS.map(([name, word]) => [name, word]));
const FILES = [["", "export …"], ["csv", "the list as CSV"], ["messages", "answers as messages (JSONL)"], ["json", "answers as JSON lines"]];

class List {
  constructor(app) {
    this.app = app;
    this.filters = {};
    this.sort = "";
    this.text = el("input", { type: "search", placeholder: 'find words or "a phrase"', "aria-label": "find trees",
      title: "in goals, answers, actions, observations, errors and names" });
    this.text.addEventListener("input", () => this.later());
    this.selects = Object.fromEntries([...FILTERS, "success"].map((name) => [name, this.choice(name)]));
    this.summary = el("p", { class: "summary", "aria-live": "polite" });
    this.body = el("tbody", {});
    this.released = null;
    this.body.addEventListener("pointerdown", () => this.hold());
    this.more = el("button", { type: "button", class: "more", click: () => this.load(true) });
    this.heads = Object.fromEntries(COLUMNS.map((column) => [column[0], this.columnHead(...column)]));
    this.files = el("select", { "aria-label": "export what is listed", change: () => this.export(this.files.value) },
      FILES.map(([value, text]) => el("option", { value, text })));
    this.order = el("select", { "aria-label": "sort", class: "narrow-only", change: () => this.sortBy(this.order.value) },
      el("option", { value: "", text: "newest first" }),
      COLUMNS.flatMap(([name, word, first]) => (name === "begun" ? [["begun", "oldest first"]] : first ? [[`-${name}`, `${word || "outcome"}: ${first}`]] : [[name, `by ${word}`]])
        .map(([value, text]) => el("option", { value, text }))));
    this.element = el("main", { class: "list" },
      el("form", { class: "filters", submit: (event) => event.preventDefault() },
        this.text, Object.values(this.selects), this.order, el("button", { type: "reset", class: "quiet", text: "clear" })),
      el("div", { class: "under" }, this.summary, this.files),
      el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, Object.values(this.heads))), this.body)),
      this.more);
    this.element.querySelector("form").addEventListener("reset", () => setTimeout(() => this.changed()));
  }

  columnHead(name, word, first) {
    const arrow = el("span", { class: "arrow", "aria-hidden": "true" });
    const button = el("button", { type: "button", "aria-label": `sort by ${word || "outcome"}`, title: `sort by ${word || "outcome"}`, click: () => {
      const [one, other] = first ? [`-${name}`, name] : [name, `-${name}`];
      this.sortBy(this.sort === one ? other : this.sort === other ? "" : one);
    } }, word || "✓", arrow);
    return el("th", { scope: "col", class: `c-${name}${NUMBERS.has(name) ? " number" : ""}` }, button);
  }

  sortBy(sort) {
    this.sort = sort;
    this.app.remember(this.words);
    return this.load();
  }

  // What the address keeps of the list.
  get words() {
    return this.sort ? { ...this.filters, sort: this.sort } : this.filters;
  }

  showOrder() {
    for (const [name, head] of Object.entries(this.heads)) {
      const way = this.sort === name ? "ascending" : this.sort === `-${name}` ? "descending" : null;
      head.querySelector(".arrow").textContent = { ascending: " ▲", descending: " ▼" }[way] || "";
      if (way) head.setAttribute("aria-sort", way);
      else head.removeAttribute("aria-sort");
    }
    this.order.value = [...this.order.options].some((option) => option.value === this.sort) ? this.sort : "";
  }

  choice(name) {
    const options = name === "success" ? [["yes", "solved"], ["no", "not solved"]] : [];
    const word = { policy_version: "weights", success: "outcome" }[name] || name;
    const select = el("select", { "aria-label": word, change: () => this.changed() }, el("option", { value: "", text: `any ${word}` }));
    for (const [value, text] of options) select.append(el("option", { value, text }));
    return select;
  }

  async offer() {
    const facets = await source.facets();
    for (const name of FILTERS) {
      const select = this.selects[name];
      const before = this.filters[name] || select.value;
      const called = (value) => (name === "policy_version" && facets.weights[value]) || value;
      const values = [...facets[name]].sort((a, b) => called(a).localeCompare(called(b), undefined, { numeric: true }));
      clear(select, select.options[0], values.map((value) => el("option", { value, text: called(value), title: value })));
      select.value = facets[name].includes(before) ? before : "";
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.changed(), 120);
  }

  // Words typed just before something was opened count when the list comes back.
  settle() {
    if (!this.timer) return;
    this.read();
  }

  read() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.filters = { text: this.text.value.trim() };
    for (const [name, select] of Object.entries(this.selects)) this.filters[name] = select.value;
    for (const name of Object.keys(this.filters)) if (!this.filters[name]) delete this.filters[name];
  }

  changed() {
    this.read();
    this.app.remember(this.words);
    return this.load();
  }

  // From the address: filters that the page was opened with.
  set(words) {
    this.text.value = words.get("text") || "";
    for (const [name, select] of Object.entries(this.selects)) {
      const value = words.get(name) || "";
      if (value && ![...select.options].some((option) => option.value === value)) select.append(el("option", { value, text: value }));
      select.value = value;
    }
    this.sort = Object.hasOwn(SORTED, (words.get("sort") || "").replace(/^-/, "")) ? words.get("sort") : "";
    this.filters = Object.fromEntries([...words].filter(([name]) => name === "text" || name in this.selects));
    return this.load();
  }

  async load(more = false) {
    const asked = (this.asked = {});
    const offset = more ? this.rows.length : 0;
    const limit = more ? PAGE : Math.max(PAGE, this.keep || 0);
    const found = await source.list(this.filters, offset, limit, this.sort);
    await this.released;
    if (this.asked !== asked) return;
    this.showOrder();
    this.rows = more ? [...this.rows, ...found.rows] : found.rows;
    const focused = document.activeElement?.dataset?.tree;
    const shown = found.rows.map((row) => this.line(row));
    if (more) this.body.append(...shown);
    else clear(this.body, shown);
    if (focused) this.links.find((link) => link.dataset.tree === focused)?.focus();
    const solved = found.done ? ` · ${figure(found.solved)} of ${figure(found.done)} finished ones solved (${percent(found.solved / found.done)})` : "";
    const reading = found.indexed < 1 ? ` · reading texts, ${percent(found.indexed)} so far` : "";
    this.summary.textContent = `${figure(found.total)} ${found.total === 1 ? "tree" : "trees"}${solved}${reading}`;
    this.more.textContent = `show more (${figure(found.total - this.rows.length)} left)`;
    this.more.hidden = this.rows.length >= found.total;
    if (found.indexed < 1 && !more) setTimeout(() => this.asked === asked && this.app.place === "list" && this.load(), 50);
  }

  // Rows that are drawn anew while one of them is pressed would swallow the click: they wait until it has been heard.
  hold() {
    this.released = new Promise((done) => {
      const heard = () => setTimeout(done, 0);
      for (const end of ["pointerup", "pointercancel", "dragend"]) addEventListener(end, heard, { once: true, capture: true });
    });
  }

  // After something new came in: the same rows again, as many as there are now.
  refresh() {
    this.keep = Math.min(this.rows?.length || 0, 500);
    return this.load();
  }

  line(row) {
    const sign = row.status === "running" ? ["…", "soft", "running"] : row.success === null ? ["–", "soft", row.status === "done" && row.chosen !== null ? "reward not known" : "not finished"]
      : row.outcome === null ? ["–", "soft", "no episode ended"]
      : row.success ? ["✓", "good", "solved"] : ["✗", "bad", "not solved"];
    const exact = row.status !== "done" ? "–" : row.reasons.length ? "no" : "yes";
    const cell = (name, text, kind = "", title = null) => el("td", { class: `c-${name} ${kind}`, title, text, "data-name": NAMED[name] });
    return el("tr", { click: (event) => event.target.closest("a") || this.app.go({ tree: row.id }) },
      el("td", { class: `c-sign sign ${sign[1]}`, title: sign[2], text: sign[0] }),
      el("td", { class: "c-task" }, el("a", { href: `#tree=${encodeURIComponent(row.id)}`, "data-tree": row.id, text: `${row.suite}/${row.task_id}` }),
        row.attempt ? el("span", { class: "soft", text: ` attempt ${row.attempt}` }) : null),
      el("td", { class: "c-goal goal", title: row.goal }, row.goal.replaceAll("\n", " "), row.hit ? this.hit(row) : null),
      cell("status", row.status), cell("outcome", figure(row.outcome), "number"), cell("nodes", figure(row.nodes), "number"),
      cell("expansions", figure(row.expansions), "number"), cell("tokens", figure(row.tokens), "number"), cell("steps", figure(row.steps), "number"),
      cell("exact", exact, exact === "no" ? "bad" : "", row.reasons.join("; ") || null),
      cell("version", row.weights, "name", row.policy_version), cell("run", row.run, "name", row.run), cell("begun", when(row.created), "soft"));
  }

  // Where the words were found; a link to that node.
  hit(row) {
    const { node, kind, nodes, before, found, after } = row.hit;
    const place = kind === "goal" ? "goal" : `${kind}, node ${node}${nodes > 1 ? ` and ${figure(nodes - 1)} more` : ""}`;
    return el("a", { class: "hit", href: `#tree=${encodeURIComponent(row.id)}&node=${node}`, title: place },
      el("span", { class: "soft", text: `${place}: ` }), before.replaceAll("\n", " "), el("mark", { text: found }), after.replaceAll("\n", " "));
  }

  // Everything that matches, in the order of the list.
  async everything() {
    const rows = [];
    for (let total = 1; rows.length < total; ) {
      const found = await source.list(this.filters, rows.length, MOST, this.sort);
      if (!found.rows.length) break;
      rows.push(...found.rows);
      total = found.total;
    }
    return rows;
  }

  async export(kind) {
    this.files.value = "";
    if (!kind) return;
    try {
      const rows = await this.everything();
      if (kind === "csv") saveFile("trees.csv", asTable(rows), "text/csv;charset=utf-8");
      else await this.answers(kind, rows.filter((row) => row.chosen !== null));
      if (kind === "csv") this.app.tell(`${figure(rows.length)} trees in trees.csv`);
    } catch (error) {
      this.app.tell(error.message, true);
    }
  }

  async answers(kind, rows) {
    if (!rows.length) return this.app.tell("no tree of the list has an answer yet", true);
    const lines = [];
    for (const row of rows) {
      const turns = await source.path(row.id, row.chosen);
      lines.push(JSON.stringify(kind === "json" ? asJson(row, turns) : asMessages(row, turns)));
      if (lines.length % 50 === 0) this.app.tell(`${figure(lines.length)} of ${figure(rows.length)} answers`);
    }
    const name = kind === "json" ? "answers.jsonl" : "messages.jsonl";
    saveFile(name, `${lines.join("\n")}\n`, "application/x-ndjson");
    this.app.tell(`${figure(lines.length)} answers in ${name}`);
  }

  get links() {
    return [...this.body.querySelectorAll("a[data-tree]")];
  }

  step(by) {
    const links = this.links;
    const at = links.indexOf(document.activeElement);
    links[clamp(at < 0 ? 0 : at + by, 0, links.length - 1)]?.focus();
  }
}

class Report {
  constructor() {
    this.element = el("main", { class: "report" });
    theme.listeners.push(() => this.draw());
  }

  async show(filters) {
    clear(this.element, el("p", { class: "soft", text: "counting…" }));
    this.filters = filters;
    await this.refresh();
  }

  async refresh() {
    try {
      [this.found, this.curves] = await Promise.all([source.plots(this.filters), source.curves()]);
      this.draw();
    } catch (error) {
      clear(this.element, el("p", { class: "trouble", text: error.message }));
    }
  }

  draw() {
    if (!this.found) return;
    const { updates, plots } = this.curves;
    clear(this.element, updates.length ? [el("h2", { text: "training" }), this.plots(plots), this.table(updates), el("h2", { text: "trees" })] : null,
      el("p", { class: "summary", text: this.found.note }), this.plots(this.found.plots));
  }

  plots(plots) {
    return el("div", { class: "plots" }, plots.map((plot) =>
      el("figure", {}, el("img", { src: `data:image/svg+xml;base64,${theme.dark ? plot.dark : plot.light}`, alt: plot.title }),
        el("figcaption", { text: plot.caption }))));
  }

  // Every update, newest first, with a way to the trees that it was trained on.
  table(updates) {
    const names = ["loss", "kl", "entropy", "sampler_gap", "tokens_per_s"];
    const said = (value) => (value === null || value === undefined ? "–" : figure(value));
    const success = (row) => Object.entries(row.success).map(([suite, rate]) => `${suite} ${rate === null ? "–" : `${Math.round(100 * rate)} %`}`).join("  ");
    const trees = (row) => (row.trees ? el("a", { href: `#${new URLSearchParams({ run: row.trees })}`, text: `trees of ${row.trees}` }) : el("span", { text: row.recipe }));
    const head = ["step", "trained on", "success", "loss", "KL", "entropy", "sampler gap", "tokens / s"];
    return el("div", { class: "scroll updates" }, el("table", {}, el("thead", {}, el("tr", {}, head.map((text) => el("th", { text })))),
      el("tbody", {}, [...updates].reverse().map((row) => el("tr", {}, el("td", { class: "number", text: said(row.step) }), el("td", {}, trees(row)),
        el("td", { text: success(row) }), names.map((name) => el("td", { class: "number", text: said(row[name]) })))))));
  }
}
