// The selected node: what it was asked, what it said token by token, what it did and what the world answered.

const CALM = [0.9, 0.5, 0.2, 0.05]; // token probabilities that bound the tints

const spell = (piece) => {
  const shown = piece.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥");
  return shown.trim() ? shown : shown.replaceAll(" ", "␣") || "∅";
};

const tokenSpans = (turn) =>
  turn.ids.map((id, i) => {
    const logprob = turn.logprobs.length === turn.ids.length ? turn.logprobs[i] : null;
    const note = logprob === null ? `token ${id}` : `token ${id}, log-prob ${figure(logprob)}, probability ${figure(Math.exp(logprob))}`;
    const tint = logprob === null ? 0 : CALM.filter((bound) => Math.exp(logprob) < bound).length;
    const text = turn.pieces ? turn.pieces[i] : `${id} `;
    const hidden = turn.pieces && text === "" && i + 1 < turn.ids.length;
    return el("span", { class: `t p${tint}`, title: note, text: hidden ? "" : spell(text) });
  });

// The prompt that the selected node was drawn from: exact tokens where they can be decoded, else the conversation.
const promptOf = (turns, goal) => {
  const above = turns.slice(0, -1);
  if (above.length && above.every((turn) => turn.added) && above.some((turn) => turn.added.length)) {
    let pieces = [];
    for (const turn of above) pieces = [...pieces, ...turn.pieces].slice(0, turn.keep).concat(turn.added);
    return [{ role: `${pieces.length} tokens, as the policy got them`, text: pieces.join("") }];
  }
  const out = [{ role: "goal", text: goal }];
  for (const turn of above) {
    if (turn.text) out.push({ role: "policy", text: turn.text });
    if (turn.observation !== null) out.push({ role: "world", text: turn.observation });
  }
  return out;
};

class Details {
  constructor(app) {
    this.app = app;
    this.element = el("aside", { class: "details", "aria-label": "selected node" });
    this.open = new Set();
  }

  async show(pane) {
    const { model, selected } = pane;
    const asked = (this.asked = {});
    try {
      const turns = await source.path(model.row.id, selected);
      if (this.asked === asked) this.fill(pane, turns);
    } catch (error) {
      if (this.asked === asked) clear(this.element, el("p", { class: "trouble", text: error.message }));
    }
  }

  fill(pane, turns) {
    const { model, selected } = pane;
    const turn = turns[turns.length - 1];
    const scroll = this.node === turn.node ? this.element.scrollTop : 0;
    this.node = turn.node;
    clear(
      this.element,
      this.crumbs(pane, turns),
      this.head(model, selected, turn),
      this.acts(pane, turns),
      turns.length > 1 ? this.prompt(turns, model.row.goal) : null,
      turn.ids.length ? this.tokens(turn) : turn.text ? this.block("said", turn.text) : null,
      turn.action && turn.action !== turn.text ? this.block("action", turn.action) : null,
      turn.error ? this.block("error", turn.error, "trouble") : null,
      turn.fault ? this.block("fault", turn.fault, "trouble") : null,
      turn.observation === null
        ? el("p", { class: "hint", text: "not executed: there is no observation" })
        : this.block(`observation${turn.provenance ? `, written by ${turn.provenance}` : ""}`, turn.observation),
      this.pictures(turn, turns),
      this.small(turn, model.row),
    );
    this.element.scrollTop = scroll;
  }

  crumbs(pane, turns) {
    const { model } = pane;
    return el("ol", { class: "crumbs" }, turns.map((turn) =>
      el("li", { class: turn.node === pane.selected ? "here" : "" },
        el("button", { type: "button", title: `node ${turn.node}`, click: () => pane.select(turn.node) },
          el("span", { class: "depth", text: String(model.depth[turn.node]) }), model.label(turn.node)))));
  }

  head(model, node, turn) {
    const status = STATUSES[model.status[node]];
    const badges = [el("span", { class: `badge ${TROUBLE.has(model.status[node]) ? "bad" : ""}`, text: status })];
    if (node > 0 && turn.action) {
      const effect = EFFECTS[model.effect[node]];
      badges.push(el("span", { class: `badge ${model.effect[node] >= 2 ? "bad" : ""}`, text: effect }));
    }
    if (model.solved[node]) badges.push(el("span", { class: "badge good", text: "solved" }));
    if (model.flags[node] & 4) badges.push(el("span", { class: "badge", text: "all needed" }));
    if (model.flags[node] & 2) badges.push(el("span", { class: "badge", text: "closing" }));
    if (turn.origin !== "policy") badges.push(el("span", { class: "badge", text: turn.origin }));
    const facts = [
      ["score", model.score[node]],
      ["value", model.value[node]],
      ["advantage", model.advantage && node > 0 ? model.advantage[node] : NaN],
      ["weight", model.mass[node]],
      ["reward", node > 0 ? model.reward[node] : NaN],
      ["drawn", model.mult[node] > 1 ? model.mult[node] : NaN],
      ["K", model.drawn[node] || NaN],
      ["log-prob", turn.logprobs.length ? turn.logprobs.reduce((sum, value) => sum + value, 0) : NaN],
      ["pop", node > 0 ? model.born[node] + 1 : NaN],
    ].filter(([, value]) => !Number.isNaN(value));
    return el("header", { class: "node-head" },
      el("h2", {}, `node ${node}`, ...badges),
      el("dl", { class: "facts" }, facts.map(([name, value]) =>
        el("div", {}, el("dt", { text: name }), el("dd", { text: figure(value) })))));
  }

  // What can be done with the path to this node.
  acts(pane, turns) {
    const { model } = pane;
    const copy = (format) => el("button", { type: "button", text: format, "aria-label": `copy as ${format}`,
      click: () => this.app.copy(written(format, model.row, turns, model), format) });
    return el("div", { class: "acts" }, el("span", { class: "soft", text: "copy" }), FORMATS.map(copy), 
      el("span", { class: "pair" },
      el("button", { type: "button", text: "mark", title: "mark this branch to compare it with another (m)", click: () => this.app.setMark() }),
      el("button", { type: "button", text: "compare", title: "this branch with the marked one, the one beside, or the chosen one (c)", click: () => this.app.compareNow() })));
  }

  prompt(turns, goal) {
    const parts = promptOf(turns, goal);
    const box = el("details", { class: "fold", open: this.open.has("prompt") },
      el("summary", { text: "prompt" }),
      parts.map(({ role, text }) => [el("h4", { text: role }), el("pre", { text })]).flat());
    box.addEventListener("toggle", () => (box.open ? this.open.add("prompt") : this.open.delete("prompt")));
    return box;
  }

  tokens(turn) {
    const bare = turn.pieces ? null : el("p", { class: "said", text: turn.text });
    const total = turn.logprobs.length ? "tinted tokens were unlikely draws" : "no log-probs were recorded";
    return el("section", {},
      el("h3", {}, "said ", el("span", { class: "soft", text: `${turn.ids.length} tokens, ${total}` })),
      bare, el("div", { class: "tokens" }, tokenSpans(turn)));
  }

  block(name, text, kind = "") {
    return el("section", {}, el("h3", { text: name }), el("pre", { class: kind, text: text || "(empty)" }));
  }

  pictures(turn, turns) {
    const before = turns[turns.indexOf(turn) - 1];
    const marks = before ? turn.refs.map((ref) => before.boxes[ref]).filter(Boolean) : [];
    const acted = marks.length && before.pictures.length ? this.marked(before.pictures[0], marks) : null;
    const shown = turn.pictures.map((address) => this.picture(address, "what the world showed"));
    return acted || shown.length
      ? el("section", {}, acted ? el("h3", { text: "acted on" }) : null, acted,
          shown.length ? el("h3", { text: "pictures" }) : null, shown)
      : null;
  }

  picture(address, alt) {
    return /^data:image\/(png|jpeg);base64,[A-Za-z0-9+/=]*$/.test(address)
      ? el("img", { src: address, alt })
      : el("p", { class: "hint", text: "a part that is not a PNG or JPEG picture is not shown" });
  }

  marked(address, marks) {
    const frames = marks.map((mark) => {
      const frame = el("div", { class: "frame" });
      ["left", "top", "width", "height"].forEach((side, i) => { frame.style[side] = `${100 * mark[i]}%`; });
      return frame;
    });
    return el("div", { class: "marked" }, this.picture(address, "the page with what was acted on"), frames);
  }

  small(turn, row) {
    const words = [];
    if (turn.version) words.push(`policy ${turn.version === row.policy_version ? row.weights : turn.version}`);
    if (turn.finish) words.push(`finish ${turn.finish}`);
    if (turn.ids.length) words.push(turn.trainable ? "trainable" : "not trainable");
    if (turn.temperature !== null && turn.temperature !== 1) words.push(`temperature ${figure(turn.temperature)}`);
    if (turn.distance) words.push(`its parent was come back to at a distance of ${figure(turn.distance)}`);
    words.push(`prompt keeps ${figure(turn.keep)} and adds ${figure(turn.delta)} tokens`, `seed ${turn.seed}`);
    return el("p", { class: "hint", text: words.join(" · ") });
  }
}
