// Where the data comes from: inside this file, or the local server that sent the page.

const embedded = JSON.parse(document.getElementById("data").textContent);

const ask = async (path, query = {}) => {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) words.append(name, one);
  }
  const text = words.toString();
  const response = await fetch(`api/${path}${text ? `?${text}` : ""}`);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || `the server answered ${response.status}`);
  return body;
};

const served = {
  live: true,
  list: (filters, offset, limit, sort = "") => ask("list", { ...filters, offset, limit, sort }),
  facets: () => ask("facets"),
  tree: (id) => ask(`tree/${id}`),
  path: (id, node) => ask(`path/${id}/${node}`),
  advantage: (id) => ask(`advantage/${id}`),
  plots: (filters) => ask("plots", filters),
  curves: () => ask("curves"),
  pulse: (ids) => ask("pulse", { tree: ids }),
  store: async () => (await ask("store")).store,
};

// The words of a search; what stands in "double quotes" is one of them. As the server takes them.
const termsOf = (text) => [...text.matchAll(/"([^"]+)"|(\S+)/g)]
  .map(([, quoted, bare]) => ((quoted || "").trim() || (bare || "").replaceAll('"', "")).normalize("NFC").toLowerCase()).filter(Boolean);

// Every text of a tree in this file: [node, kind, text, text to search].
const textsOf = (id) => {
  const entry = own(id);
  const add = (node, kind, text) => (text ? [[node, kind, text, text.normalize("NFC").toLowerCase()]] : []);
  entry.texts ??= [...add(0, "goal", entry.tree.goal), ...entry.turns.flatMap((turn) => [
    ...add(turn.node, "said", turn.text), ...(turn.action === turn.text ? [] : add(turn.node, "action", turn.action)),
    ...add(turn.node, "observation", turn.observation), ...add(turn.node, "error", turn.error), ...add(turn.node, "error", turn.fault)])];
  return entry.texts;
};

const hitIn = (row, terms) => {
  const texts = textsOf(row.id);
  for (const some of [terms, ...terms.map((term) => [term])]) {
    const found = texts.filter(([, , , folded]) => some.every((term) => folded.includes(term)));
    if (!found.length) continue;
    const [node, kind, text, folded] = found[0];
    const at = folded.indexOf(some[0]);
    const end = at + some[0].length;
    return { node, kind, nodes: new Set(found.map(([one]) => one)).size, before: `${at > 60 ? "…" : ""}${text.slice(Math.max(0, at - 60), at)}`,
      found: text.slice(at, end), after: `${text.slice(end, end + 60)}${text.length > end + 60 ? "…" : ""}` };
  }
  return undefined;
};

const matches = (row, filters, terms) => {
  const names = [row.run, row.suite, row.task_id, row.policy_version, row.weights, row.id].map((word) => word.toLowerCase());
  const shown = (term) => names.some((name) => name.includes(term)) || textsOf(row.id).some(([, , , folded]) => folded.includes(term));
  if (!terms.every(shown)) return false;
  if (filters.success && (row.success === null || row.success !== (filters.success === "yes"))) return false;
  return ["suite", "split", "run", "policy_version", "status", "task_id"].every((name) => !filters[name] || row[name] === filters[name]);
};

const SORTED = {
  sign: (row) => row.success, task: (row) => `${row.suite}/${row.task_id}`, goal: (row) => row.goal.toLowerCase(), status: (row) => row.status,
  outcome: (row) => row.outcome, nodes: (row) => row.nodes, expansions: (row) => row.expansions, tokens: (row) => row.tokens, steps: (row) => row.steps,
  exact: (row) => (row.status === "done" ? !row.reasons.length : null), version: (row) => row.weights.replace(/\d+/g, (digits) => digits.padStart(9, "0")), run: (row) => row.run, begun: (row) => row.created,
};

// What is not known comes last, both ways; equal ones stay newest first.
const sorted = (rows, sort) => {
  const of = SORTED[sort.replace(/^-/, "")];
  if (!of) return rows;
  const sign = sort.startsWith("-") ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [of(one), of(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * ((a > b) - (a < b));
  });
};

const own = (id) => {
  if (!Object.hasOwn(embedded.trees, id)) throw new Error(`tree ${id} is not in this file`);
  return embedded.trees[id];
};

const inside = {
  live: false,
  list: async (filters, offset, limit, sort = "") => {
    const terms = termsOf(filters.text || "");
    const rows = sorted(embedded.list.rows.filter((row) => matches(row, filters, terms)), sort)
      .map((row) => ({ ...row, hit: terms.length ? hitIn(row, terms) : undefined }));
    const done = rows.filter((row) => row.status === "done" && row.success !== null);
    const solved = done.filter((row) => row.success).length;
    return { rows: rows.slice(offset, offset + limit), total: rows.length, done: done.length, solved, indexed: 1 };
  },
  facets: async () => embedded.facets,
  tree: async (id) => own(id).tree,
  path: async (id, node) => {
    const entry = own(id);
    entry.parent ??= unpack(entry.tree.columns.parent, Int32Array);
    entry.byNode ??= new Map(entry.turns.map((turn) => [turn.node, turn]));
    const out = [];
    for (let at = node; at >= 0; at = entry.parent[at]) out.push(entry.byNode.get(at));
    return out.reverse();
  },
  advantage: async (id) => {
    const found = own(id).advantage;
    if (found.error) throw new Error(found.error);
    return found;
  },
  plots: async () => embedded.plots,
  curves: async () => embedded.curves,
  store: async () => embedded.store,
};

const source = embedded === null ? served : inside;

// Little-endian bytes in base64, as the server packs columns.
function unpack(text, Type) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Type(bytes.buffer);
}
