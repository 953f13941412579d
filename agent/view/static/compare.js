// Two branches, or two trees, as text beside each other.

const AROUND = 3; // equal lines that are shown around what differs

class Compare {
  constructor(app) {
    this.app = app;
    this.element = el("main", { class: "compare" });
  }

  // words: tree, node, with, other, as ("path" or "tree")
  async show(words) {
    const asked = (this.asked = {});
    clear(this.element, el("p", { class: "soft", text: "comparing…" }));
    const whole = words.get("as") === "tree";
    const sides = [[words.get("tree"), words.get("node")], [words.get("with") || words.get("tree"), words.get("other")]];
    const found = await Promise.all(sides.map(([tree, node]) => this.side(tree, Number(node) || 0, whole)));
    if (this.asked === asked) this.fill(words, found, whole);
  }

  async side(tree, node, whole) {
    const data = await source.tree(tree);
    if (whole) return { row: data, node, parts: [treeLines(new Model(data))] };
    return { row: data, node, parts: pathParts(data, await source.path(tree, node)) };
  }

  fill(words, sides, whole) {
    const found = diffParts(sides[0].parts, sides[1].parts);
    const count = (sign) => found.filter(([one]) => one === sign).length;
    const lines = (n) => `${figure(n)} ${n === 1 ? "line" : "lines"}`;
    const [less, more] = [count("-"), count("+")];
    const told = less + more ? `${lines(less)} only left, ${lines(more)} only right, ${lines(count(" "))} in both` : "both are equal";
    const change = (as) => this.app.go({ ...Object.fromEntries(words), as });
    const choose = el("select", { "aria-label": "what is compared", change: () => change(choose.value) },
      [["path", "the paths to both nodes"], ["tree", "whole trees"]].map(([value, text]) => el("option", { value, text })));
    choose.value = whole ? "tree" : "path";
    const text = () => found.map(([sign, line]) => `${sign}${line}`).join("\n");
    clear(this.element,
      el("div", { class: "compare-head" }, el("h1", { text: whole ? "two trees" : "two branches" }), el("span", { class: "soft", text: told }),
        el("span", { class: "spring" }), choose,
        el("button", { type: "button", text: "copy", click: () => this.app.copy(text(), "the comparison") })),
      el("div", { class: "sides" }, sides.map((side, i) => this.head(side, i, whole))),
      el("div", { class: "diff", role: "table", "aria-label": "left and right" }, this.rows(found)));
  }

  differences(left, right) {
    return diffLines(left, right);
  }

  head({ row, node }, i, whole) {
    const where = whole ? "" : ` · node ${node}`;
    return el("p", { class: i ? "side plus" : "side minus" },
      el("b", { class: "side-sign", text: i ? "+" : "−" }),
      el("a", { href: `#tree=${encodeURIComponent(row.id)}&node=${node}`, text: `${row.suite}/${row.task_id}${where}` }),
      el("span", { class: "soft", text: `${row.run} · ${row.weights}${row.attempt ? ` · attempt ${row.attempt}` : ""}` }));
  }

  // Lines that go and lines that come stand opposite each other; long equal stretches are folded.
  rows(found) {
    const out = [];
    for (let at = 0; at < found.length; ) {
      const sign = found[at][0];
      let end = at;
      if (sign === " ") {
        while (end < found.length && found[end][0] === " ") end++;
        out.push(...this.equal(found.slice(at, end).map(([, line]) => line), at > 0, end < found.length));
      } else {
        while (end < found.length && found[end][0] !== " ") end++;
        const part = found.slice(at, end);
        const side = (wanted) => part.filter(([one]) => one === wanted).map(([, line]) => line);
        const [left, right] = [side("-"), side("+")];
        const pairs = Array.from({ length: Math.max(left.length, right.length) }, (_, i) => this.row(left[i], right[i]));
        out.push(el("div", { class: "block", role: "rowgroup" }, pairs));
      }
      at = end;
    }
    return out;
  }

  equal(lines, before, after) {
    const row = (line) => this.row(line, line, true);
    const head = before ? AROUND : 0;
    const tail = after ? AROUND : 0;
    if (lines.length <= head + tail + 2 || (!before && !after)) return lines.map(row);
    const hidden = lines.slice(head, lines.length - tail);
    const fold = el("button", { type: "button", class: "folded", text: `${figure(hidden.length)} equal lines`,
      click: () => fold.replaceWith(...hidden.map(row)) });
    return [...lines.slice(0, head).map(row), fold, ...lines.slice(lines.length - tail).map(row)];
  }

  row(left, right, equal = false) {
    const cell = (text, kind) => el("span", { role: "cell", class: text === undefined ? `${kind} none` : kind, text: text ?? "" });
    return el("div", { role: "row", class: equal ? "line" : "line changed" }, cell(left, "minus"), cell(right, "plus"));
  }
}
