// The list of trees with its filters, and the report.

const FILTERS = ["suite", "split", "run", "policy_version", "status"];
const PAGE = 100;

class List {
  constructor(app) {
    this.app = app;
    this.filters = {};
    this.text = el("input", { type: "search", placeholder: "task, run, version or tree id", "aria-label": "find trees" });
    this.text.addEventListener("input", () => this.later());
    this.selects = Object.fromEntries([...FILTERS, "success"].map((name) => [name, this.choice(name)]));
    this.summary = el("p", { class: "summary", "aria-live": "polite" });
    this.body = el("tbody", {});
    this.more = el("button", { type: "button", class: "more", click: () => this.load(true) });
    const columns = ["", "task", "goal", "status", "outcome", "nodes", "expansions", "tokens", "steps", "exact", "version", "run", "begun"];
    this.element = el("main", { class: "list" },
      el("form", { class: "filters", submit: (event) => event.preventDefault() },
        this.text, Object.values(this.selects), el("button", { type: "reset", class: "quiet", text: "clear" })),
      this.summary,
      el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col", text: name })))), this.body)),
      this.more);
    this.element.querySelector("form").addEventListener("reset", () => setTimeout(() => this.changed()));
  }

  choice(name) {
    const options = name === "success" ? [["yes", "solved"], ["no", "not solved"]] : [];
    const word = { policy_version: "version", success: "outcome" }[name] || name;
    const select = el("select", { "aria-label": word, change: () => this.changed() }, el("option", { value: "", text: `any ${word}` }));
    for (const [value, text] of options) select.append(el("option", { value, text }));
    return select;
  }

  async offer() {
    const facets = await source.facets();
    for (const name of FILTERS) {
      const select = this.selects[name];
      const before = this.filters[name] || select.value;
      clear(select, select.options[0], facets[name].map((value) => el("option", { value, text: value })));
      select.value = facets[name].includes(before) ? before : "";
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.changed(), 120);
  }

  changed() {
    this.filters = { text: this.text.value.trim() };
    for (const [name, select] of Object.entries(this.selects)) this.filters[name] = select.value;
    for (const name of Object.keys(this.filters)) if (!this.filters[name]) delete this.filters[name];
    this.app.remember(this.filters);
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
    this.filters = Object.fromEntries([...words].filter(([name]) => name === "text" || name in this.selects));
    return this.load();
  }

  async load(more = false) {
    const asked = (this.asked = {});
    const offset = more ? this.rows.length : 0;
    const limit = more ? PAGE : Math.max(PAGE, this.keep || 0);
    const found = await source.list(this.filters, offset, limit);
    if (this.asked !== asked) return;
    this.rows = more ? [...this.rows, ...found.rows] : found.rows;
    const focused = document.activeElement?.dataset?.tree;
    const shown = found.rows.map((row) => this.line(row));
    if (more) this.body.append(...shown);
    else clear(this.body, shown);
    if (focused) this.links.find((link) => link.dataset.tree === focused)?.focus();
    const solved = found.done ? ` · ${figure(found.solved)} of ${figure(found.done)} finished ones solved (${percent(found.solved / found.done)})` : "";
    this.summary.textContent = `${figure(found.total)} ${found.total === 1 ? "tree" : "trees"}${solved}`;
    this.more.textContent = `show more (${figure(found.total - this.rows.length)} left)`;
    this.more.hidden = this.rows.length >= found.total;
  }

  // After something new came in: the same rows again, as many as there are now.
  refresh() {
    this.keep = Math.min(this.rows?.length || 0, 500);
    return this.load();
  }

  line(row) {
    const sign = row.status === "running" ? ["…", "soft", "running"] : row.success === null ? ["–", "soft", "not finished"]
      : row.outcome === null ? ["–", "soft", "no episode ended"]
      : row.success ? ["✓", "good", "solved"] : ["✗", "bad", "not solved"];
    const exact = row.status !== "done" ? "–" : row.reasons.length ? "no" : "yes";
    const cell = (text, kind = "", title = null) => el("td", { class: kind, text, title });
    return el("tr", { click: (event) => event.target.closest("a") || this.app.go({ tree: row.id }) },
      el("td", { class: `sign ${sign[1]}`, title: sign[2], text: sign[0] }),
      el("td", {}, el("a", { href: `#tree=${encodeURIComponent(row.id)}`, "data-tree": row.id, text: `${row.suite}/${row.task_id}` }),
        row.attempt ? el("span", { class: "soft", text: ` attempt ${row.attempt}` }) : null),
      cell(row.goal.replaceAll("\n", " "), "goal", row.goal),
      cell(row.status), cell(figure(row.outcome), "number"), cell(figure(row.nodes), "number"),
      cell(figure(row.expansions), "number"), cell(figure(row.tokens), "number"), cell(figure(row.steps), "number"),
      cell(exact, exact === "no" ? "bad" : "", row.reasons.join("; ") || null),
      cell(row.policy_version, "name", row.policy_version), cell(row.run, "name", row.run), cell(when(row.created), "soft"));
  }

  get links() {
    return [...this.body.querySelectorAll("a")];
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
    try {
      this.found = await source.plots(filters);
      this.draw();
    } catch (error) {
      clear(this.element, el("p", { class: "trouble", text: error.message }));
    }
  }

  draw() {
    if (!this.found) return;
    clear(this.element, el("p", { class: "summary", text: this.found.note }),
      el("div", { class: "plots" }, this.found.plots.map((plot) =>
        el("figure", {}, el("img", { src: `data:image/svg+xml;base64,${theme.dark ? plot.dark : plot.light}`, alt: plot.title }),
          el("figcaption", { text: plot.caption })))));
  }
}
