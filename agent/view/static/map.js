// A tree as a map: every node is a convex polygon within its parent's, with an area in proportion to the tokens, or the
// draws, of its subtree. Rectangles would become arbitrarily thin where weights differ much; polygons need not (de Berg,
// Onak and Sidiropoulos, arXiv 1009.1866). Each polygon is cut in two by the line that leaves the fatter pieces.

// Seen from its first corner: small polygons far from the origin keep their digits.
const areaOf = (polygon) => {
  let sum = 0;
  for (let i = 1; i + 1 < polygon.length; i++) {
    const [x, y] = [polygon[i][0] - polygon[0][0], polygon[i][1] - polygon[0][1]];
    sum += x * (polygon[i + 1][1] - polygon[0][1]) - y * (polygon[i + 1][0] - polygon[0][0]);
  }
  return sum / 2;
};

// Squared diameter over area: 2 for a square, large for what is thin.
const aspectOf = (polygon) => {
  let most = 0;
  for (let i = 0; i < polygon.length; i++) {
    for (let k = 0; k < i; k++) most = Math.max(most, (polygon[i][0] - polygon[k][0]) ** 2 + (polygon[i][1] - polygon[k][1]) ** 2);
  }
  return most / areaOf(polygon);
};

// Amid its corners, which is inside of what is convex.
const centreOf = (polygon) => [0, 1].map((axis) => polygon.reduce((sum, point) => sum + point[axis], 0) / polygon.length);

const holds = (polygon, x, y) => polygon.every(([ax, ay], i) => {
  const [bx, by] = polygon[(i + 1) % polygon.length];
  return (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0;
});

// The parts of a convex polygon (anticlockwise in its own axes) before and behind the line n · p = t.
const cutAt = (polygon, nx, ny, t) => {
  const [near, far] = [[], []];
  for (let i = 0; i < polygon.length; i++) {
    const a = polygon[i];
    const b = polygon[(i + 1) % polygon.length];
    const [da, db] = [a[0] * nx + a[1] * ny - t, b[0] * nx + b[1] * ny - t];
    if (da <= 0) near.push(a);
    if (da >= 0) far.push(a);
    if (da * db < 0) {
      const share = da / (da - db);
      const point = [a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])];
      near.push(point);
      far.push(point);
    }
  }
  return [near, far];
};

// Where the line of direction n must stand for `wanted` area before it: the width is linear between two corners.
const standsAt = (polygon, nx, ny, wanted) => {
  const marks = polygon.map(([x, y]) => x * nx + y * ny).sort((a, b) => a - b);
  const width = (t) => {
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < polygon.length; i++) {
      const a = polygon[i];
      const b = polygon[(i + 1) % polygon.length];
      const [da, db] = [a[0] * nx + a[1] * ny - t, b[0] * nx + b[1] * ny - t];
      if (da * db > 0) continue;
      const ends = da === db ? [a, b] : [[a[0] + (da / (da - db)) * (b[0] - a[0]), a[1] + (da / (da - db)) * (b[1] - a[1])]];
      for (const [x, y] of ends) {
        const across = y * nx - x * ny;
        low = Math.min(low, across);
        high = Math.max(high, across);
      }
    }
    return Math.max(0, high - low);
  };
  let sofar = 0;
  for (let i = 0; i + 1 < marks.length; i++) {
    const tall = marks[i + 1] - marks[i];
    if (tall <= 0) continue;
    const [from, to] = [width(marks[i]), width(marks[i + 1])];
    const here = (tall * (from + to)) / 2;
    if (sofar + here >= wanted || i + 2 === marks.length) {
      const rest = Math.min(Math.max(wanted - sofar, 0), here);
      const slope = (to - from) / tall;
      // from·s + slope·s²/2 = rest, in the form that does not cancel
      const step = rest === 0 ? 0 : (2 * rest) / (from + Math.sqrt(Math.max(0, from * from + 2 * slope * rest)));
      return marks[i] + Math.min(step, tall);
    }
    sofar += here;
  }
  return marks[marks.length - 1];
};

const turnsOf = Array.from({ length: 8 }, (_, i) => [Math.cos((i * Math.PI) / 8), Math.sin((i * Math.PI) / 8)]);

// Lines worth a try: eight directions, along every side, and across every corner, where small pieces stay fat.
const directions = (polygon) => {
  const out = [...turnsOf];
  for (let i = 0; i < polygon.length; i++) {
    const [a, b, c] = [polygon[(i + polygon.length - 1) % polygon.length], polygon[i], polygon[(i + 1) % polygon.length]];
    const long = Math.hypot(c[0] - b[0], c[1] - b[1]);
    const back = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (long === 0 || back === 0) continue;
    out.push([-(c[1] - b[1]) / long, (c[0] - b[0]) / long]);
    const inward = [(c[0] - b[0]) / long + (a[0] - b[0]) / back, (c[1] - b[1]) / long + (a[1] - b[1]) / back];
    const size = Math.hypot(...inward);
    if (size > 1e-9) out.push([inward[0] / size, inward[1] / size]);
  }
  return out;
};

// Two pieces of which the first has `share` of the area, the worse one as fat as any line tried makes it.
const halved = (polygon, share) => {
  const wanted = share * areaOf(polygon);
  let best = null;
  for (const [x, y] of directions(polygon)) {
    for (const sign of [1, -1]) {
      const pieces = cutAt(polygon, sign * x, sign * y, standsAt(polygon, sign * x, sign * y, wanted));
      if (pieces.some((piece) => piece.length < 3)) continue;
      const worst = Math.max(...pieces.map(aspectOf));
      if (!best || worst < best.worst) best = { worst, pieces };
    }
  }
  return best ? best.pieces : [polygon, polygon.slice(0, 1)];
};

// A polygon for each weight. Weights are halved into groups as even as may be, so that few cuts lie above each.
const divided = (polygon, weights) => {
  const out = new Array(weights.length).fill(null);
  const order = weights.map((_, i) => i).filter((i) => weights[i] > 0).sort((a, b) => weights[b] - weights[a] || a - b);
  const sum = (group) => group.reduce((total, i) => total + weights[i], 0);
  const give = (piece, group) => {
    if (group.length === 1 || piece.length < 3) {
      for (const i of group) out[i] = piece;
      return;
    }
    const groups = [[], []];
    const sums = [0, 0];
    for (const i of group) {
      const least = sums[0] <= sums[1] ? 0 : 1;
      groups[least].push(i);
      sums[least] += weights[i];
    }
    const pieces = halved(piece, sum(groups[0]) / sum(group));
    give(pieces[0], groups[0]);
    give(pieces[1], groups[1]);
  };
  if (order.length) give(polygon, order);
  return out;
};

// The map of one model in a rectangle; polygons are found when they are first asked for.
class TreeMap {
  constructor(model, measure, width, height) {
    Object.assign(this, { model, measure, width, height });
    const own = measure === "visits" ? model.mult : model.tokens;
    this.own = Float64Array.from(own, (value) => Math.max(value, 0));
    this.own[0] = 0;
    this.total = Float64Array.from(this.own);
    for (let i = model.size - 1; i > 0; i--) this.total[model.parent[i]] += this.total[i];
    this.polygons = new Map([[0, [[0, 0], [width, 0], [width, height], [0, height]]]]);
    this.opened = new Set();
  }

  // The node's polygon, undefined where it has no weight.
  polygon(node) {
    if (!this.polygons.has(node)) {
      for (const above of this.model.path(node).slice(0, -1)) this.open(above);
    }
    return this.polygons.get(node);
  }

  // Its children, each with its polygon; what is left of the node's own is its own weight.
  open(node) {
    const children = this.model.children(node);
    if (!this.opened.has(node)) {
      this.opened.add(node);
      const whole = this.polygons.get(node);
      if (whole && children.length) {
        const pieces = divided(whole, [this.own[node], ...children.map((child) => this.total[child])]);
        children.forEach((child, i) => {
          if (pieces[i + 1] && pieces[i + 1].length >= 3) this.polygons.set(child, pieces[i + 1]);
        });
      }
    }
    return children.filter((child) => this.polygons.has(child));
  }

  at(x, y, time) {
    let node = 0;
    for (;;) {
      const next = this.open(node).find((child) => this.model.born[child] < time && holds(this.polygons.get(child), x, y));
      if (next === undefined) return node;
      node = next;
    }
  }
}

function drawMap(ctx, scene) {
  const { model, map, view, width, height, shades, time, ink } = scene;
  const colours = shades.signed ? ink.signed : ink.plain;
  const letters = shades.signed ? ink.onSigned : ink.onPlain;
  const place = ([x, y]) => [(x - view.x) * view.kx, (y - view.y) * view.ky];
  const [named, lines] = [[], []];
  let marks = 0;
  const outline = (polygon) => {
    ctx.beginPath();
    polygon.forEach((point, i) => (i ? ctx.lineTo(...place(point)) : ctx.moveTo(...place(point))));
    ctx.closePath();
  };
  const stack = [0];
  while (stack.length) {
    const node = stack.pop();
    const polygon = map.polygons.get(node);
    const corners = polygon.map(place);
    const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
    const [left, right, top, low] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    if (right < 0 || left > width || low < 0 || top > height) continue;
    marks++;
    outline(polygon);
    const shade = shades.shade[node];
    ctx.fillStyle = shade === 255 ? ink.zero : colours[shade];
    ctx.fill();
    const area = areaOf(polygon) * view.kx * view.ky;
    if (area > 24) lines.push([node, polygon]);
    const children = area > 12 ? map.open(node).filter((child) => model.born[child] < time) : [];
    stack.push(...children);
    if (!children.length && right - left > 50 && low - top > 14 && area > 1200) named.push([node, polygon, right - left, shade]);
  }
  // Borders after all surfaces, those that say something last: nothing is half hidden by a neighbour.
  const border = ([node]) => (model.chosen[node] ? ink.accent : model.solved[node] ? ink.good : TROUBLE.has(model.status[node]) ? ink.bad : ink.card);
  const telling = (line) => border(line) !== ink.card;
  for (const line of [...lines.filter((one) => !telling(one)), ...lines.filter(telling)]) {
    outline(line[1]);
    ctx.lineWidth = telling(line) ? 2.5 : clamp(3 - model.depth[line[0]] / 2, 0.5, 3);
    ctx.strokeStyle = border(line);
    ctx.stroke();
  }
  ctx.textAlign = "center";
  ctx.font = `11.5px ${FONT}`;
  for (const [node, polygon, wide, shade] of named) {
    ctx.fillStyle = shade === 255 ? ink.ink : letters[shade];
    ctx.fillText(fitted(model.label(node), wide * 0.6, 7), ...place(centreOf(polygon)));
  }
  ctx.textAlign = "start";
  for (const [node, colour] of [[scene.popped, ink.accent], [scene.selected, ink.ink]]) {
    const polygon = node >= 0 && model.born[node] < time ? map.polygon(node) : null;
    if (!polygon) continue;
    outline(polygon);
    ctx.lineWidth = 3;
    ctx.strokeStyle = colour;
    ctx.stroke();
  }
  return marks;
}
