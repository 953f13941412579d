"""The map of a tree in a real Chromium: areas in proportion, convex polygons within their parents, none thin."""

from __future__ import annotations

from typing import Any

from view_pages import ended, marks, open_first, press, selected

pytestmark = marks

CHECK = """([seed, levels, fan, spread]) => {
  const { areaOf, aspectOf, divided, holds } = treewright.geometry;
  let state = seed;
  const random = () => (state = (state * 1664525 + 1013904223) % 4294967296) / 4294967296;
  const out = { nodes: 0, aspect: [], area: 0, outside: 0, bent: 0, worst: 0 };
  const within = (polygon, whole) => {
    const size = Math.sqrt(areaOf(whole));
    const [cx, cy] = [0, 1].map((axis) => whole.reduce((sum, point) => sum + point[axis], 0) / whole.length);
    return polygon.every(([x, y]) => holds(whole, x + (cx - x) * 1e-7, y + (cy - y) * 1e-7) || size < 1e-9);
  };
  const walk = (polygon, level) => {
    out.nodes++;
    out.aspect[level] = Math.max(out.aspect[level] || 0, aspectOf(polygon));
    for (let i = 0; i < polygon.length; i++) {
      const [a, b, c] = [polygon[i], polygon[(i + 1) % polygon.length], polygon[(i + 2) % polygon.length]];
      const turn = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0]);
      if (turn < -1e-9 * areaOf(polygon)) out.bent++;
    }
    if (level === levels || areaOf(polygon) < 1e-6) return;
    const weights = Array.from({ length: 2 + Math.floor(random() * fan) }, () => 10 ** (-spread * random()));
    const total = weights.reduce((a, b) => a + b);
    const pieces = divided(polygon, weights);
    pieces.forEach((piece, i) => {
      const wanted = areaOf(polygon) * weights[i] / total;
      out.area = Math.max(out.area, Math.abs(areaOf(piece) - wanted) / wanted);
      if (!within(piece, polygon)) out.outside++;
    });
    // Only the largest, the smallest and one of the rest go on: deep, and not large.
    const order = weights.map((_, i) => i).sort((a, b) => weights[a] - weights[b]);
    for (const i of new Set([order[0], order[order.length - 1]])) walk(pieces[i], level + 1);
  };
  walk([[0, 0], [1600, 0], [1600, 900], [0, 900]], 0);
  return out;
}"""


async def shape_of(view: Any, seed: int, levels: int, fan: int, spread: float) -> dict[str, Any]:
    return dict(await view.evaluate(CHECK, [seed, levels, fan, spread]))


async def test_polygons_are_convex_lie_within_their_parents_and_have_the_areas_of_their_weights(view: Any) -> None:
    for seed in range(4):
        found = await shape_of(view, seed, levels=6, fan=6, spread=3.0)
        assert found["nodes"] > 60 and found["bent"] == 0 == found["outside"]
        assert found["area"] < 1e-6


async def test_no_polygon_is_thin_whatever_the_weights_are(view: Any) -> None:
    """A square has 2. Slices of a rectangle would have a million here; the best cut keeps all within a small number."""
    for spread in (0.0, 2.0, 6.0):
        for seed in range(4):
            found = await shape_of(view, seed, levels=8, fan=8, spread=spread)
            assert max(found["aspect"]) < 8, (spread, seed, found["aspect"])


async def test_a_tree_is_drawn_as_a_map_walked_and_clicked(view: Any) -> None:
    await open_first(view)
    await press(view, "v", "v", "Home", "f")
    assert await view.evaluate("treewright.shape") == "tokens" and "view=tokens" in view.url
    await ended(view)
    shares = await view.evaluate("""() => {
        const { map, model } = treewright.panes[0], { areaOf } = treewright.geometry;
        const whole = areaOf(map.polygon(0));
        return model.children(0).map((node) => [areaOf(map.polygon(node)) / whole, map.total[node] / map.total[0]]);
    }""")
    assert len(shares) > 1 and all(abs(area - weight) < 1e-9 for area, weight in shares)
    spot = await view.evaluate("""() => {
        const pane = treewright.panes[0], { map, model } = pane, box = pane.canvas.getBoundingClientRect();
        let node = 0;
        for (let below = map.open(node); below.length; below = map.open(node)) node = below[below.length - 1];
        const polygon = map.polygon(node);
        const [x, y] = [0, 1].map((axis) => polygon.reduce((sum, point) => sum + point[axis], 0) / polygon.length);
        return { node, x: box.left + x, y: box.top + y };
    }""")
    await view.mouse.click(spot["x"], spot["y"])
    assert await selected(view) == spot["node"]
    await press(view, "z", "ArrowLeft", "v")
    assert await view.evaluate("treewright.shape") == "visits"
    await view.reload()
    await view.wait_for_selector(".node-head")
    assert await view.evaluate("treewright.shape") == "visits"
