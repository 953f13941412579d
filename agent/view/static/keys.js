// What keys do, and the list of them.

const HELP = [
  ["/", "find trees"], ["↑ ↓ or k j", "walk the list"], ["Enter", "open a tree"], ["r", "report"], ["Esc", "back to the list"],
  ["← →", "parent, child"], ["↑ ↓", "neighbours in the column"], ["Home, End", "root, chosen node"],
  ["+ − or wheel", "zoom"], ["Shift + arrows or drag", "pan"], ["f", "fit the tree"], ["z or double click", "zoom to the subtree"],
  ["v", "icicle, node-link, maps"], ["1 2 3 4", "colour by score, value, advantage, weight"], ["b", "another tree of the task beside"],
  ["m, c", "mark a branch, compare with it"], ["Tab", "other pane"], ["Space", "replay the growth, or stop"], [", and .", "one pop back, one on"], ["t", "light or dark"], ["?", "this help"],
];

class Keys {
  constructor(app) {
    this.app = app;
  }

  pressed(event) {
    const { app } = this;
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || app.help.open) return;
    const typing = target.matches("input[type=search], select, textarea");
    if (typing) {
      if (key === "Escape") target.blur();
      if (target === app.list.text && (key === "ArrowDown" || key === "Enter")) {
        event.preventDefault();
        app.list.step(0);
      }
      return;
    }
    const work = this.common(key) || (app.place === "list" ? this.listKey(key) : app.place === "tree" ? this.treeKey(event) : null);
    if (!work) return;
    event.preventDefault();
    work();
  }

  common(key) {
    const { app } = this;
    return {
      "?": () => app.help.showModal(),
      t: () => theme.toggle(),
      r: () => app.go({ report: 1 }),
      "/": () => app.find(),
      Escape: app.place === "list" ? null : () => app.leave(),
    }[key];
  }

  listKey(key) {
    const { app } = this;
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[key];
    return by ? () => app.list.step(by) : null;
  }

  treeKey(event) {
    const { app } = this;
    const pane = app.active;
    const { key } = event;
    if (event.target === app.slider && key.startsWith("Arrow")) return null;
    if (event.target.matches("button") && (key === " " || key === "Enter")) return null;
    const far = 60;
    if (event.shiftKey && key.startsWith("Arrow")) {
      const [dx, dy] = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] }[key];
      return () => pane.pan(dx, dy);
    }
    if (key.startsWith("Arrow") || key === "Home" || key === "End") return () => pane.walk(key);
    const now = Math.min(app.time, app.lastPop);
    const own = {
      "+": () => pane.zoom(1.4), "=": () => pane.zoom(1.4), "-": () => pane.zoom(1 / 1.4), f: () => pane.fit(), z: () => pane.zoomTo(pane.selected),
      v: () => app.setShape(SHAPES[(SHAPES.findIndex(([name]) => name === app.shape) + 1) % SHAPES.length][0]), b: () => app.nextBeside(),
      m: () => app.setMark(), c: () => app.compareNow(),
      " ": () => app.toggle(), ",": () => (app.stop(), app.seek(now - 1)), ".": () => (app.stop(), app.seek(now + 1)),
    };
    if (key === "Tab" && app.shown.length > 1 && event.target.matches("canvas") && !event.shiftKey) {
      const other = app.shown.find((shown) => shown !== pane);
      return () => other.canvas.focus();
    }
    const mode = MODES[Number(key) - 1];
    return own[key] || (mode ? () => app.setMode(mode[0]) : null);
  }
}
