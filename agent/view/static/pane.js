// One canvas with one tree: pan, zoom, select, and walk by keys.

class Pane {
  constructor(app) {
    this.app = app;
    this.canvas = el("canvas", { tabindex: "0", role: "application" });
    this.caption = el("div", { class: "pane-caption" });
    this.element = el("div", { class: "pane" }, this.caption, this.canvas);
    this.selected = 0;
    this.model = null;
    this.frames = [];
    this.listen();
    new ResizeObserver(() => this.resized()).observe(this.canvas);
  }

  show(model, keepView = false) {
    const before = this.model;
    this.model = model;
    if (!keepView || !before) {
      this.selected = model.row.chosen ?? 0;
      this.view = null;
    }
    this.selected = Math.min(this.selected, model.size - 1);
    this.recolour();
  }

  recolour() {
    if (!this.model) return;
    this.shades = this.model.shades(this.app.mode);
    this.ink = inks();
    this.redraw();
  }

  resized() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const grown = this.fitted && this.width !== undefined;
    this.ratio = window.devicePixelRatio || 1;
    this.width = box.width;
    this.height = box.height;
    this.canvas.width = Math.round(box.width * this.ratio);
    this.canvas.height = Math.round(box.height * this.ratio);
    if (grown) this.view = null;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.model || !this.width) return;
    const began = performance.now();
    this.view ??= this.whole();
    const ctx = this.canvas.getContext("2d", { alpha: false });
    ctx.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    ctx.fillStyle = this.ink.card;
    ctx.fillRect(0, 0, this.width, this.height);
    ctx.textBaseline = "middle";
    const draw = this.mapped ? drawMap : this.app.shape === "icicle" ? drawIcicle : drawLinks;
    const { model, view, width, height, shades, ink, selected } = this;
    const scene = { model, view, width, height, shades, ink, selected, time: this.time, popped: this.popped };
    this.marks = draw(ctx, this.mapped ? { ...scene, map: this.map } : scene);
    this.frames.push(performance.now() - began);
    if (this.frames.length > 240) this.frames.shift();
    this.describe();
  }

  get mapped() {
    return this.app.shape === "tokens" || this.app.shape === "visits";
  }

  // The map of this tree in this size: made once, and filled as it is looked at.
  get map() {
    const { model, width, height } = this;
    const now = this.madeMap;
    if (now && now.model === model && now.measure === this.app.shape && now.width === width && now.height === height) return now;
    this.madeMap = new TreeMap(model, this.app.shape, width, height);
    return this.madeMap;
  }

  // The moment that is shown, in pops; Infinity once everything is.
  get time() {
    return this.app.time >= this.model.pops.length ? Infinity : this.app.time;
  }

  get popped() {
    const at = Math.min(this.app.time, this.model.pops.length);
    return this.app.time <= this.app.lastPop && this.app.replaying && at > 0 ? this.model.pops[at - 1] : -1;
  }

  describe() {
    const { model, selected } = this;
    this.canvas.setAttribute("aria-label", `search tree of ${model.size} nodes; arrow keys walk, question mark helps`);
    this.app.announce(`node ${selected}, ${STATUSES[model.status[selected]]}, ${model.label(selected)}`);
  }

  // -- where we look ---------------------------------------------------------------------------------------------

  whole() {
    this.fitted = true;
    if (this.mapped) return { x: 0, y: 0, kx: 1, ky: 1 };
    const { model, width, height } = this;
    const labelled = (height - 24) / model.leaves >= 11;
    const room = this.app.shape === "icicle" ? 0 : labelled ? Math.min(150, width / 4) : 0;
    const kx = clamp((width - 24 - room) / model.levels, 14, 260);
    const ky = Math.min((height - 24) / model.leaves, 30);
    return { x: -12 / kx, y: (model.leaves - height / ky) / 2, kx, ky };
  }

  fit() {
    this.view = null;
    this.redraw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const { view, model } = this;
    this.fitted = false;
    if (this.mapped) return this.zoomMap(clamp(view.kx * factor, 0.5, 1e5), px, py);
    const ky = clamp(view.ky * factor, Math.min(0.5 * (this.height / model.leaves), 30), 60);
    const kx = clamp(view.kx * Math.sqrt(factor), 10, 360);
    view.x += px / view.kx - px / kx;
    view.y += py / view.ky - py / ky;
    view.kx = kx;
    view.ky = ky;
    this.redraw();
  }

  zoomMap(scale, px, py) {
    const { view } = this;
    this.view = { x: view.x + px / view.kx - px / scale, y: view.y + py / view.ky - py / scale, kx: scale, ky: scale };
    this.redraw();
  }

  // The middle of a node's polygon, and how wide and tall it is.
  placeOnMap(node) {
    const polygon = this.map.polygon(node) || this.map.polygon(0);
    const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
    const [left, right, top, low] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    return { x: (left + right) / 2, y: (top + low) / 2, wide: right - left, tall: low - top };
  }

  pan(dx, dy) {
    this.fitted = false;
    this.view.x -= dx / this.view.kx;
    this.view.y -= dy / this.view.ky;
    this.redraw();
  }

  zoomTo(node) {
    const { model, width, height } = this;
    if (this.mapped) {
      const { x, y, wide, tall } = this.placeOnMap(node);
      const scale = clamp(Math.min((width - 40) / wide, (height - 40) / tall), 0.5, 1e5);
      this.fitted = false;
      this.view = { x: x - width / scale / 2, y: y - height / scale / 2, kx: scale, ky: scale };
      return this.redraw();
    }
    const levels = model.deepest[node] - model.depth[node] + 1;
    const ky = clamp((height - 40) / model.span[node], 0.001, 40);
    const kx = clamp((width - 40) / Math.max(levels + 0.5, 2), 30, 260);
    this.fitted = false;
    this.view = { x: model.depth[node] - 0.4, y: model.top[node] + model.span[node] / 2 - height / ky / 2, kx, ky };
    this.redraw();
  }

  // Moves the view as little as needed to see a node.
  reveal(node) {
    if (!this.view || !this.width) return;
    const { model, view, width, height } = this;
    if (this.mapped) return this.revealOnMap(node);
    const x = (model.depth[node] + 0.5 - view.x) * view.kx;
    const y = this.app.shape === "link" ? linkY(this, node) : (model.middle[node] - view.y) * view.ky;
    const [mx, my] = [Math.min(24, width / 4), Math.min(16, height / 4)];
    const dx = clamp(x, mx, width - mx) - x;
    const dy = clamp(y, my, height - my) - y;
    if (dx || dy) this.pan(dx, dy);
  }

  revealOnMap(node) {
    const place = this.placeOnMap(node);
    const [x, y] = [(place.x - this.view.x) * this.view.kx, (place.y - this.view.y) * this.view.ky];
    const dx = clamp(x, Math.min(24, this.width / 4), this.width - 24) - x;
    const dy = clamp(y, Math.min(16, this.height / 4), this.height - 16) - y;
    if (dx || dy) this.pan(dx, dy);
  }

  // -- selecting -------------------------------------------------------------------------------------------------

  select(node, follow = true) {
    if (node === undefined || node < 0 || node >= this.model.size) return;
    this.selected = node;
    if (follow) this.reveal(node);
    this.redraw();
    this.app.selected(this);
  }

  hit(px, py) {
    const { model, view } = this;
    const y = py / view.ky + view.y;
    if (this.mapped) {
      const x = px / view.kx + view.x;
      return holds(this.map.polygon(0), x, y) ? this.map.at(x, y, this.time) : -1;
    }
    if (this.app.shape === "icicle") return this.under(Math.floor(px / view.kx + view.x), y);
    const depth = Math.round(px / view.kx + view.x - 0.5);
    let best = -1;
    let nearest = 16;
    for (const node of model.column(clamp(depth, 0, model.levels - 1))) {
      const dx = (model.depth[node] + 0.5 - view.x) * view.kx - px;
      const far = Math.hypot(Math.abs(dx) < view.kx / 2 ? dx / 4 : dx, linkY(this, node) - py);
      if (far < nearest && model.born[node] < this.time) [best, nearest] = [node, far];
    }
    return best;
  }

  under(depth, y) {
    const { model } = this;
    let node = y >= 0 && y < model.leaves && depth >= 0 ? 0 : -1;
    while (node >= 0 && model.depth[node] < depth) {
      node = model.children(node).find((child) => y >= model.top[child] && y < model.top[child] + model.span[child]) ?? -1;
    }
    return node >= 0 && model.born[node] < this.time ? node : -1;
  }

  walk(key) {
    const { model, selected } = this;
    const alive = (node) => model.born[node] < this.time;
    if (key === "ArrowLeft") return this.select(model.parent[selected]);
    if (key === "ArrowRight") {
      const children = model.children(selected).filter(alive);
      return this.select(children.find((child) => model.chosen[child]) ?? children[Math.floor((children.length - 1) / 2)]);
    }
    if (key === "Home") return this.select(0);
    if (key === "End") return this.select(model.row.chosen ?? model.size - 1);
    const column = model.column(model.depth[selected]).filter(alive);
    return this.select(column[column.indexOf(selected) + (key === "ArrowDown" ? 1 : -1)]);
  }

  // Two fingers zoom around the point between them.
  pinch(fingers, id, to) {
    const [other] = [...fingers].filter(([one]) => one !== id).map(([, at]) => at);
    const far = (at) => Math.max(8, Math.hypot(at[0] - other[0], at[1] - other[1]));
    this.zoom(far(to) / far(fingers.get(id)), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
    fingers.set(id, to);
  }

  listen() {
    const { canvas } = this;
    let grip = null;
    const fingers = new Map();
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, place(event));
      grip = { at: place(event), moved: fingers.size > 1 };
      canvas.setPointerCapture(event.pointerId);
      this.app.activate(this);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.model || !this.view) return;
      const [x, y] = place(event);
      if (fingers.size > 1 && fingers.has(event.pointerId)) return this.pinch(fingers, event.pointerId, [x, y]);
      if (!grip) return this.app.hint(this, this.hit(x, y), event);
      const [dx, dy] = [x - grip.at[0], y - grip.at[1]];
      if (!grip.moved && Math.hypot(dx, dy) < 4) return;
      this.pan(dx, dy);
      grip = { at: [x, y], moved: true };
    });
    const lift = (event) => fingers.delete(event.pointerId);
    canvas.addEventListener("pointercancel", (event) => {
      lift(event);
      grip = null;
    });
    canvas.addEventListener("pointerup", (event) => {
      lift(event);
      if (grip && !grip.moved) {
        const node = this.hit(...place(event));
        if (node >= 0) this.select(node, false);
      }
      grip = null;
    });
    canvas.addEventListener("pointerleave", () => this.app.hint(this, -1));
    canvas.addEventListener("dblclick", (event) => {
      const node = this.hit(...place(event));
      if (node >= 0) this.zoomTo(node);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.shiftKey) return this.pan(-event.deltaY - event.deltaX, 0);
      this.zoom(Math.exp(-clamp(event.deltaY, -120, 120) / 240), ...place(event));
    }, { passive: false });
    canvas.addEventListener("focus", () => this.app.activate(this));
  }
}
