// Drawing a tree on a canvas. The cost of a frame depends on what can be seen, not on the size of the tree: what is
// outside is skipped whole, and what is thinner than a pixel is drawn as one line.

const palette = (from, to) => {
  const hex = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  const [a, b] = [hex(from), hex(to)];
  return (share) => `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(" ")})`;
};

const inks = () => {
  const names = ["paper", "card", "ink", "soft", "line", "edge", "accent", "good", "bad", "low", "high", "minus", "zero", "plus", "link", "rim"];
  const ink = Object.fromEntries(names.map((name) => [name, theme.colour(name)]));
  const rising = palette(ink.low, ink.high);
  const [down, up] = [palette(ink.minus, ink.zero), palette(ink.zero, ink.plus)];
  const steps = Array.from({ length: 64 }, (_, i) => i / 63);
  ink.plain = steps.map(rising);
  ink.signed = steps.map((share) => (share < 0.5 ? down(share * 2) : up(share * 2 - 1)));
  // Labels stand on these colours: black or white, whichever is easier to read.
  const light = (rgb) => {
    const [r, g, b] = rgb.match(/\d+/g).map(Number);
    return 0.299 * r + 0.587 * g + 0.114 * b > 140;
  };
  ink.onPlain = ink.plain.map((rgb) => (light(rgb) ? "#10181c" : "#ffffff"));
  ink.onSigned = ink.signed.map((rgb) => (light(rgb) ? "#10181c" : "#ffffff"));
  return ink;
};

const FONT = 'ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace';

// scene: { model, view {x, y, kx, ky}, width, height, shades, time, selected, popped, ink }; gives what can be hit.
function drawIcicle(ctx, scene) {
  const { model, view, width, height, shades, time, ink } = scene;
  const colours = shades.signed ? ink.signed : ink.plain;
  const letters = shades.signed ? ink.onSigned : ink.onPlain;
  const reached = new Int32Array(Math.ceil(height) + 1).fill(-1);
  const stack = [0];
  let marks = 0;
  while (stack.length) {
    const node = stack.pop();
    if (model.born[node] >= time) continue;
    const y = (model.top[node] - view.y) * view.ky;
    const tall = model.span[node] * view.ky;
    if (y + tall < 0 || y > height) continue;
    const x = (model.depth[node] - view.x) * view.kx;
    if (x > width) continue;
    const shade = shades.shade[node];
    ctx.fillStyle = shade === 255 ? ink.zero : colours[shade];
    marks++;
    if (tall < 1) {
      const row = clamp(Math.floor(y), 0, reached.length - 1);
      const end = time > model.pops.length ? model.deepest[node] : model.depth[node];
      if (reached[row] < end) {
        ctx.fillRect(x, row, (end - model.depth[node] + 1) * view.kx - 1, 1);
        reached[row] = end;
      }
      if (time <= model.pops.length) for (let at = model.first[node]; at >= 0; at = model.next[at]) stack.push(at);
      continue;
    }
    const gap = tall > 4 ? 1 : 0;
    const wide = view.kx - 1;
    ctx.fillRect(x, y, wide, tall - gap);
    if (model.solved[node]) strip(ctx, x + wide - 4, y, tall - gap, ink.good);
    if (TROUBLE.has(model.status[node]) || model.flags[node] & 1) strip(ctx, x + wide - 4, y, tall - gap, ink.bad);
    if (model.chosen[node]) strip(ctx, x, y, tall - gap, ink.accent);
    if (tall >= 12 && wide > 34) {
      const top = Math.max(y, 0);
      const middle = top + (Math.min(y + tall, height) - top) / 2;
      ctx.fillStyle = shade === 255 ? ink.ink : letters[shade];
      ctx.font = `${tall >= 15 ? 12 : 10.5}px ${FONT}`;
      ctx.fillText(fitted(model.label(node), wide - 16, tall >= 15 ? 7.3 : 6.4), x + 8, middle);
    }
    for (let at = model.first[node]; at >= 0; at = model.next[at]) stack.push(at);
  }
  for (const [node, colour] of [[scene.popped, ink.accent], [scene.selected, ink.ink]]) {
    if (node < 0 || model.born[node] >= time) continue;
    const tall = Math.max(model.span[node] * view.ky, 3);
    ctx.strokeStyle = colour;
    ctx.lineWidth = 2.5;
    ctx.strokeRect((model.depth[node] - view.x) * view.kx, (model.top[node] - view.y) * view.ky, view.kx - 1, tall);
  }
  return marks;
}

const strip = (ctx, x, y, tall, colour) => {
  ctx.fillStyle = colour;
  ctx.fillRect(x, y, 4, tall);
};

const fitted = (text, room, letter) => {
  const most = Math.floor(room / letter);
  return text.length <= most ? text : most > 1 ? `${text.slice(0, most - 1)}…` : "";
};

// A mark stands amid its children, or as near to that as can be seen while some of what is below it can.
function linkY({ model, view, height }, node) {
  const own = (model.middle[node] - view.y) * view.ky;
  const top = (model.top[node] - view.y) * view.ky;
  const low = Math.max(top + view.ky / 2, 14);
  const high = Math.min(top + (model.span[node] - 0.5) * view.ky, height - 14);
  return low <= high ? clamp(own, low, high) : own;
}

function drawLinks(ctx, scene) {
  const { model, view, width, height, shades, time, ink } = scene;
  const colours = shades.signed ? ink.signed : ink.plain;
  const radius = clamp(view.ky * 0.36, 1.4, 7);
  const nodes = [];
  const bundles = [];
  const buckets = [0.8, 1.4, 2.4, 4].map((wide) => ({ wide, path: new Path2D(), chosen: new Path2D() }));
  const at = (node) => [(model.depth[node] + 0.5 - view.x) * view.kx, linkY(scene, node)];
  const stack = [0];
  while (stack.length) {
    const node = stack.pop();
    const [x, y] = at(node);
    if (x > width + view.kx) continue;
    nodes.push(node);
    let row = -10;
    for (let child = model.first[node]; child >= 0; child = model.next[child]) {
      if (model.born[child] >= time) continue;
      const [cx, cy] = at(child);
      const top = (model.top[child] - view.y) * view.ky;
      const tall = model.span[child] * view.ky;
      const outside = top + tall < -20 || top > height + 20;
      if (outside && (y < 0 || y > height)) continue;
      if (Math.abs(cy - row) < 0.7 && !model.chosen[child]) continue;
      row = cy;
      const bucket = buckets[model.mass[child] > 0.5 ? 3 : model.mass[child] > 0.1 ? 2 : model.mass[child] > 0.01 ? 1 : 0];
      const line = model.chosen[child] ? bucket.chosen : bucket.path;
      line.moveTo(x, y);
      line.bezierCurveTo(x + view.kx * 0.5, y, cx - view.kx * 0.5, cy, cx, cy);
      if (outside) continue;
      if (tall < 1.5 && !model.chosen[child]) bundles.push(child);
      else stack.push(child);
    }
  }
  ctx.lineCap = "round";
  for (const { wide, path } of buckets) stroke(ctx, path, wide, ink.edge);
  for (const { wide, chosen } of buckets) stroke(ctx, chosen, Math.max(wide, 2), ink.accent);
  for (const node of bundles) {
    const [x, y] = at(node);
    const shade = shades.shade[node];
    ctx.fillStyle = shade === 255 ? ink.zero : colours[shade];
    const levels = time > model.pops.length ? model.deepest[node] - model.depth[node] : 0;
    ctx.fillRect(x - 1, y - 0.6, levels * view.kx + 2, 1.2);
  }
  for (const node of nodes) {
    const [x, y] = at(node);
    if (x < -200 || y < -20 || y > height + 20) continue;
    const shade = shades.shade[node];
    mark(ctx, model, node, x, y, radius, shade === 255 ? ink.zero : colours[shade], ink);
    ring(ctx, scene, node, x, y, radius);
  }
  if (view.ky >= 11) for (const node of nodes) caption(ctx, scene, node, at(node), radius);
  return nodes.length + bundles.length;
}

const stroke = (ctx, path, wide, colour) => {
  ctx.lineWidth = wide;
  ctx.strokeStyle = colour;
  ctx.stroke(path);
};

// Shape by status: diamonds need all their children, squares ended, circles can go on, crosses are trouble; green ring: solved.
function mark(ctx, model, node, x, y, radius, colour, ink) {
  const status = model.status[node];
  ctx.fillStyle = colour;
  ctx.beginPath();
  if (radius < 2.2) ctx.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  else if (model.flags[node] & 4) {
    // All children are needed: a diamond.
    ctx.moveTo(x - 1.3 * radius, y);
    ctx.lineTo(x, y - 1.3 * radius);
    ctx.lineTo(x + 1.3 * radius, y);
    ctx.lineTo(x, y + 1.3 * radius);
    ctx.closePath();
  } else if (FINISHED.has(status)) ctx.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  else ctx.arc(x, y, status === 0 ? radius * 0.6 : radius, 0, 2 * Math.PI);
  ctx.fill();
  if (radius < 2.2) return;
  ctx.lineWidth = model.solved[node] ? 2.2 : 1;
  ctx.strokeStyle = model.solved[node] ? ink.good : ink.rim;
  if (TROUBLE.has(status) || model.flags[node] & 1) {
    ctx.lineWidth = 2;
    ctx.strokeStyle = ink.bad;
  }
  if (model.effect[node] >= 2 && node > 0) ctx.setLineDash([2.5, 2]);
  ctx.stroke();
  ctx.setLineDash([]);
}

function ring(ctx, scene, node, x, y, radius) {
  const colour = node === scene.selected ? scene.ink.ink : node === scene.popped ? scene.ink.accent : null;
  if (!colour) return;
  ctx.beginPath();
  ctx.arc(x, y, radius + 4, 0, 2 * Math.PI);
  ctx.lineWidth = 2.5;
  ctx.strokeStyle = colour;
  ctx.stroke();
}

function caption(ctx, scene, node, [x, y], radius) {
  const { model, view, ink } = scene;
  if (y < -20 || y > scene.height + 20) return;
  const leaf = model.first[node] < 0;
  const big = view.ky >= 16;
  const text = fitted(model.label(node), leaf ? 300 : view.kx - 2 * radius - 14, big ? 7.3 : 6.4);
  if (!text || (!leaf && view.kx < 60)) return;
  ctx.font = `${big ? 12 : 10.5}px ${FONT}`;
  const up = leaf ? 0 : -7;
  ctx.lineWidth = 3.5;
  ctx.lineJoin = "round";
  ctx.strokeStyle = ink.card;
  ctx.strokeText(text, x + radius + 5, y + up);
  ctx.fillStyle = node === scene.selected || model.chosen[node] ? ink.ink : ink.soft;
  ctx.fillText(text, x + radius + 5, y + up);
}
