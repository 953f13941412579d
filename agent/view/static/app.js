// What is on the screen: the list, the report, or one or two trees; keys, replay, and what is live.

const SHAPES = [["icicle", "icicle"], ["link", "node-link"], ["tokens", "map of tokens"], ["visits", "map of draws"]];
const MODES = [["score", "score"], ["value", "value"], ["advantage", "advantage"], ["weight", "weight"]];

class App {
  constructor() {
    this.shape = "icicle";
    this.mode = null;
    this.time = Infinity;
    this.list = new List(this);
    this.report = new Report();
    this.compare = new Compare(this);
    this.details = new Details(this);
    this.panes = [new Pane(this), new Pane(this)];
    this.active = this.panes[0];
    this.said = el("p", { class: "unseen", "aria-live": "polite" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.live = el("span", { class: "live", hidden: true, title: "a search is writing this store" }, "live");
    this.help = this.makeHelp();
    this.stage = el("div", { class: "stage" });
    this.toast = el("p", { class: "toast", role: "status", hidden: true });
    document.body.append(this.bar(), this.stage, this.help, this.tip, this.said, this.toast);
    this.toolbar = this.makeToolbar();
    this.columns = el("div", { class: "panes" });
    this.workspace = el("div", { class: "workspace" }, this.columns, this.details.element);
    theme.listeners.push(() => this.panes.forEach((pane) => pane.recolour()));
    addEventListener("hashchange", () => this.route());
    this.keys = new Keys(this);
    addEventListener("keydown", (event) => this.keys.pressed(event));
    this.start();
  }

  async start() {
    await this.guard(async () => {
      await this.list.offer();
      await this.route();
    });
    if (source.live) this.beat();
    document.documentElement.dataset.ready = "yes";
  }

  async guard(work) {
    try {
      await work();
    } catch (error) {
      clear(this.stage, el("main", { class: "list" }, el("p", { class: "trouble", text: error.message }),
        el("p", {}, el("a", { href: "#", text: "back to the list" }))));
    }
  }

  bar() {
    return el("nav", { class: "bar" },
      el("a", { href: "#", class: "brand", text: "treewright" }),
      el("a", { href: "#", text: "trees" }), el("a", { href: "#report=1", text: "report" }),
      this.live, el("span", { class: "spring" }),
      el("button", { type: "button", class: "quiet", title: "light or dark (t)", click: () => theme.toggle(), text: "◐" }),
      el("button", { type: "button", class: "quiet", title: "keys (?)", click: () => this.help.showModal(), text: "?" }));
  }

  makeHelp() {
    return el("dialog", { class: "help", "aria-label": "keys" }, el("h2", { text: "keys" }),
      el("dl", {}, HELP.map(([key, what]) => el("div", {}, el("dt", { text: key }), el("dd", { text: what })))),
      el("form", { method: "dialog" }, el("button", { text: "close" })));
  }

  makeToolbar() {
    this.shapes = el("select", { "aria-label": "drawing", change: () => this.setShape(this.shapes.value) },
      SHAPES.map(([value, text]) => el("option", { value, text })));
    this.modes = el("select", { "aria-label": "colour", change: () => this.setMode(this.modes.value) },
      MODES.map(([value, text]) => el("option", { value, text: `colour: ${text}` })));
    this.beside = el("select", { "aria-label": "beside", change: () => this.setBeside(this.beside.value) });
    this.play = el("button", { type: "button", title: "replay (Space)", click: () => this.toggle(), text: "▶" });
    this.slider = el("input", { type: "range", min: "0", step: "1", "aria-label": "pops shown", input: () => this.seek(Number(this.slider.value)) });
    this.clock = el("output", { class: "soft" });
    this.legend = el("span", { class: "legend" });
    this.title = el("h1", {});
    this.facts = el("p", { class: "tree-facts" });
    return el("header", { class: "toolbar" },
      el("div", { class: "headline" }, this.title, this.facts),
      el("div", { class: "tools" }, this.shapes, this.modes, this.beside, this.legend, el("span", { class: "spring" }),
        this.play, this.slider, this.clock));
  }

  // -- where we are ----------------------------------------------------------------------------------------------

  words() {
    return new URLSearchParams(location.hash.slice(1));
  }

  go(words) {
    const hash = new URLSearchParams(words).toString();
    if (location.hash.slice(1) === hash) this.route();
    else location.hash = hash;
  }

  // An address that somebody followed a moment ago and that has not been routed yet is not written over.
  remember(words) {
    if (location.hash !== this.routed) return;
    history.replaceState(null, "", `#${new URLSearchParams(words)}`);
    this.routed = location.hash;
  }

  // Answers to an earlier address that come late are left alone: only the latest trip may change the screen.
  async route() {
    const words = this.words();
    this.routed = location.hash;
    const trip = (this.trip = {});
    this.stop();
    this.list.settle();
    this.tip.hidden = this.toast.hidden = true;
    await this.guard(async () => {
      if (words.get("compare")) return this.openCompare(words);
      if (words.get("tree")) return this.openTree(words, trip);
      this.place = words.get("report") ? "report" : "list";
      clear(this.stage, this[this.place].element);
      document.title = "treewright";
      await (this.place === "report" ? this.report.show(this.list.filters) : this.list.set(words));
    });
  }

  async openCompare(words) {
    this.place = "compare";
    this.compared = words;
    clear(this.stage, this.compare.element);
    document.title = "two branches";
    await this.compare.show(words);
  }

  async openTree(words, trip) {
    const id = words.get("tree");
    const model = new Model(await source.tree(id));
    const task = { suite: model.row.suite, task_id: model.row.task_id };
    const besides = (await source.list(task, 0, 200)).rows.filter((row) => row.id !== id);
    const other = besides.find((row) => row.id === words.get("beside"));
    const second = other ? new Model(await source.tree(other.id)) : null;
    if (this.trip !== trip) return;
    this.place = "tree";
    this.besides = besides;
    this.mode = words.get("colour") || this.mode || model.bestMode;
    this.shape = this.shapes.value = SHAPES.some(([name]) => name === words.get("view")) ? words.get("view") : this.shape;
    this.panes[0].show(model);
    this.active = this.panes[0];
    const node = Number(words.get("node") ?? NaN);
    if (Number.isInteger(node) && node >= 0 && node < model.size) this.panes[0].selected = node;
    clear(this.beside, el("option", { value: "", text: besides.length ? "beside: nothing" : "no other tree of this task" }),
      besides.map((row) => el("option", { value: row.id, text: `beside: ${row.run} · ${row.weights} · attempt ${row.attempt} ${row.success ? "✓" : ""}` })));
    this.beside.disabled = !besides.length;
    this.time = Infinity;
    document.title = `${task.suite}/${task.task_id}`;
    await this.arrange(second);
    this.panes[0].canvas.focus();
  }

  async setBeside(id) {
    const trip = this.trip;
    const second = id ? new Model(await source.tree(id)) : null;
    if (this.trip !== trip) return;
    const done = this.arrange(second);
    this.note();
    await done;
  }

  async arrange(second) {
    this.beside.value = second ? second.row.id : "";
    this.panes[1].model = null;
    if (second) this.panes[1].show(second);
    else this.active = this.panes[0];
    this.layout();
    this.seek(this.replaying ? this.time : Infinity);
    await Promise.all([this.setMode(this.mode, false), this.details.show(this.active)]);
  }

  get shown() {
    return this.panes.filter((pane) => pane.model);
  }

  layout() {
    const [first, second] = this.panes;
    const { row } = first.model;
    this.title.textContent = row.goal.split("\n")[0];
    this.title.title = row.goal;
    clear(this.facts, this.summary(row, `${row.suite}/${row.task_id}`));
    for (const pane of this.shown) {
      pane.caption.hidden = !second.model;
      clear(pane.caption, this.summary(pane.model.row, `${pane.model.row.run} · ${pane.model.row.weights}`, 2));
      pane.element.classList.toggle("active", pane === this.active && Boolean(second.model));
    }
    // Nothing that stands already is taken away and put back: it would lose the focus.
    const held = document.activeElement;
    const wanted = this.shown.map((pane) => pane.element);
    if (wanted.some((element, i) => this.columns.children[i] !== element) || this.columns.children.length !== wanted.length) {
      clear(this.columns, wanted);
    }
    if (!this.workspace.isConnected) clear(this.stage, this.toolbar, this.workspace);
    if (held.matches("canvas") && document.activeElement !== held) this.active.canvas.focus();
  }

  summary(row, name, most = 4) {
    const word = row.success ? "solved" : row.outcome === null ? "no episode ended" : "not solved";
    const sign = row.success === null ? (row.chosen === null ? null : el("b", { text: "reward not known" })) : el("b", { class: row.success ? "good" : "bad", text: word });
    const facts = [["nodes", row.nodes], ["tokens", row.tokens], ["expansions", row.expansions], ["steps", row.steps]].slice(0, most);
    return [el("span", { text: name }), row.status === "done" ? sign : el("b", { text: row.status }),
      ...facts.map(([word, value]) => el("span", {}, `${word} `, el("b", { text: figure(value) }))),
      row.reasons.length ? el("span", { class: "bad", title: row.reasons.join("; "), text: "not exact" }) : null];
  }

  note() {
    if (this.place !== "tree") return;
    const words = { tree: this.panes[0].model.row.id, node: this.panes[0].selected, view: this.shape, colour: this.mode };
    if (this.panes[1].model) words.beside = this.panes[1].model.row.id;
    this.remember(words);
  }

  // -- copying and comparing -------------------------------------------------------------------------------------

  // Says something for a moment.
  tell(text, trouble = false) {
    this.toast.textContent = text;
    this.toast.classList.toggle("trouble", trouble);
    this.toast.hidden = false;
    clearTimeout(this.telling);
    this.telling = setTimeout(() => { this.toast.hidden = true; }, 4000);
  }

  async copy(text, what) {
    try {
      await copyText(await text);
      this.tell(`copied: ${what}`);
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  setMark() {
    const { model, selected } = this.active;
    this.mark = { tree: model.row.id, node: selected };
    this.tell(`node ${selected} is marked; select another, here or in another tree, and press c`);
  }

  // The selected branch against the marked one, else against the other pane's, else against the chosen one.
  compareNow() {
    const { active } = this;
    const here = { tree: active.model.row.id, node: active.selected };
    const other = this.shown.find((pane) => pane !== active);
    const chosen = active.model.row.chosen;
    const same = (one) => one.tree === here.tree && one.node === here.node;
    const choices = [this.mark, other && { tree: other.model.row.id, node: other.selected }, chosen !== null && { tree: here.tree, node: chosen }];
    const found = choices.find((one) => one && !same(one));
    if (!found) return this.tell("nothing to compare with: mark a node (m), then select another one");
    const swap = !this.mark && other && active === this.panes[0];
    const [left, right] = swap ? [here, found] : [found, here];
    this.came = Object.fromEntries(this.words());
    this.go({ compare: 1, tree: left.tree, node: left.node, with: right.tree, other: right.node, as: "path" });
  }

  // -- how it is drawn -------------------------------------------------------------------------------------------

  setShape(shape) {
    this.shape = this.shapes.value = shape;
    for (const pane of this.shown) pane.fit();
    this.note();
  }

  async setMode(mode, note = true) {
    this.mode = this.modes.value = MODES.some(([name]) => name === mode) ? mode : "value";
    let trouble = "";
    if (this.mode === "advantage") {
      for (const { model } of this.shown) {
        if (model.advantage) continue;
        try {
          const found = await source.advantage(model.row.id);
          model.advantage = unpack(found.values, Float32Array);
          model.biased = found.biased;
        } catch (error) {
          trouble = error.message;
        }
      }
    }
    for (const pane of this.shown) pane.recolour();
    this.explain(trouble);
    if (note) this.note();
    if (note && this.mode === "advantage") await this.details.show(this.active);
  }

  explain(trouble) {
    const { shades, ink, model } = this.active;
    const colours = shades.signed ? ink.signed : ink.plain;
    const cells = Array.from({ length: 16 }, (_, i) => {
      const cell = el("i", {});
      cell.style.background = colours[Math.round((i / 15) * 63)];
      return cell;
    });
    const biased = this.mode === "advantage" && model.biased.length ? el("span", { class: "bad", title: model.biased.join("; "), text: "biased" }) : null;
    const key = [["accent", "chosen"], ["good", "solved"], ["bad", "trouble"]].map(([colour, word]) =>
      el("span", { class: "key" }, el("i", { class: colour }), word));
    clear(this.legend, trouble ? el("span", { class: "bad", text: trouble }) : [
      el("span", { text: shades.low }), el("span", { class: "scale", "aria-hidden": "true" }, cells), el("span", { text: shades.high })], biased, key);
  }

  // -- growth ----------------------------------------------------------------------------------------------------

  get lastPop() {
    return Math.max(...this.shown.map((pane) => pane.model.pops.length));
  }

  seek(time) {
    const last = this.lastPop;
    this.replaying = time < last;
    this.time = time < last ? Math.max(0, time) : Infinity;
    this.slider.max = String(last);
    this.slider.value = String(Math.min(time, last));
    const at = Math.min(time, last);
    const { sampled } = this.active.model;
    const tokens = at > 0 && sampled.length ? sampled[Math.min(at, sampled.length) - 1] : 0;
    this.clock.textContent = `pop ${figure(at)} of ${figure(last)} · ${figure(tokens)} tokens`;
    for (const pane of this.shown) pane.redraw();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (!this.replaying) this.seek(0);
    this.play.textContent = "❚❚";
    const pace = Math.max(1, this.lastPop / 240);
    const each = clamp(10000 / this.lastPop, 40, 600);
    let exact = this.time;
    this.playing = setInterval(() => {
      exact += pace;
      this.seek(Math.floor(exact));
      if (!this.replaying) this.stop();
    }, each);
  }

  stop() {
    clearInterval(this.playing);
    this.playing = 0;
    this.play.textContent = "▶";
  }

  // What a running search adds: asked for once a second, and less often where an answer takes long.
  async beat() {
    let pause = 1000;
    if (!document.hidden) {
      const began = performance.now();
      try {
        await this.catchUp();
        this.live.classList.remove("lost");
      } catch {
        this.live.hidden = false;
        this.live.classList.add("lost");
      }
      pause = Math.max(1000, 4 * (performance.now() - began));
    }
    setTimeout(() => this.beat(), pause);
  }

  async catchUp() {
    const open = this.place === "tree" ? this.shown : [];
    const pulse = await source.pulse(open.map((pane) => pane.model.row.id));
    this.live.hidden = !pulse.running;
    const told = JSON.stringify([pulse.trees, pulse.running]);
    if (this.place === "list" && (told !== this.told || pulse.running)) {
      if (this.told !== undefined) await this.list.refresh();
      if (this.told !== undefined && told !== this.told) await this.list.offer();
    }
    this.told = told;
    if (this.place === "report" && this.updates !== undefined && pulse.updates !== this.updates) await this.report.refresh();
    this.updates = pulse.updates;
    for (const pane of open) {
      const now = pulse.pops[pane.model.row.id];
      if (now && (now[0] !== pane.model.row.status || now[1] !== pane.model.pops.length)) await this.renew(pane);
    }
  }

  async renew(pane) {
    const model = new Model(await source.tree(pane.model.row.id));
    if (this.place !== "tree" || !pane.model || pane.model.row.id !== model.row.id) return;
    const time = this.time;
    if (pane.fitted) pane.view = null;
    pane.show(model, true);
    this.layout();
    await this.setMode(this.mode, false);
    this.seek(time);
    if (pane === this.active) await this.details.show(pane);
  }

  // -- panes tell ------------------------------------------------------------------------------------------------

  activate(pane) {
    if (this.active === pane || !pane.model) return;
    this.active = pane;
    for (const other of this.shown) other.element.classList.toggle("active", other === pane);
    this.explain("");
    this.details.show(pane);
  }

  selected(pane) {
    this.active = pane;
    for (const other of this.shown) other.element.classList.toggle("active", other === pane && this.shown.length > 1);
    clearTimeout(this.asking);
    this.asking = setTimeout(() => this.details.show(pane), 30);
    this.note();
  }

  announce(text) {
    if (this.said.textContent !== text) this.said.textContent = text;
  }

  hint(pane, node, event) {
    this.tip.hidden = node < 0;
    if (node < 0) return;
    const { model } = pane;
    const numbers = [["score", model.score[node]], ["value", model.value[node]], ["weight", model.mass[node]]]
      .filter(([, value]) => !Number.isNaN(value)).map(([name, value]) => `${name} ${figure(value)}`).join(" · ");
    clear(this.tip, el("b", { text: model.label(node) }), el("span", { text: `node ${node} · ${STATUSES[model.status[node]]} · ${numbers}` }));
    this.tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - 340))}px`;
    this.tip.style.top = `${Math.min(event.clientY + 16, innerHeight - 70)}px`;
  }

  // -- the other tree --------------------------------------------------------------------------------------------

  // One step up: from a comparison to its tree, from everything else to the list.
  leave() {
    const words = this.compared;
    if (this.place === "compare") return this.go(this.came || { tree: words.get("with") || words.get("tree"), node: words.get("other") || 0 });
    return this.go(this.list.words);
  }

  async find() {
    if (this.place !== "list") {
      this.go(this.list.words);
      if (this.place !== "list") await new Promise((done) => addEventListener("hashchange", done, { once: true }));
    }
    this.list.text.focus();
    this.list.text.select();
  }

  nextBeside() {
    const ids = ["", ...this.besides.map((row) => row.id)];
    const next = ids[(ids.indexOf(this.beside.value) + 1) % ids.length];
    return this.guard(() => this.setBeside(next));
  }
}

const app = new App();
app.geometry = { areaOf, aspectOf, divided, holds };
window.treewright = app; // for those who look with the browser's own tools
