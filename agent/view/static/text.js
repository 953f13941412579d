// Trees and paths as text: to compare, to copy, and to take away as files.

const FORMATS = ["Python", "JSON", "messages"];

const callsOf = (turn) => turn.calls || [];

// What a path says, one list of lines for each turn, without numbers of nodes: equal lines are equal texts.
const pathParts = (row, turns) => turns.map((turn, depth) => {
  const out = depth ? [`── turn ${depth}`, ...(turn.text || turn.action || "(nothing)").split("\n")] : ["── goal", ...row.goal.split("\n")];
  if (depth && turn.action && turn.action !== turn.text) out.push(`→ ${turn.action}`);
  if (turn.error) out.push(...`error: ${turn.error}`.split("\n"));
  if (turn.fault) out.push(...`fault: ${turn.fault}`.split("\n"));
  if (turn.observation !== null) out.push("── observation", ...turn.observation.split("\n"));
  return out;
});

// A tree as an outline: one line for each node, indented by its depth.
const treeLines = (model) => {
  const out = ["── goal", ...model.row.goal.split("\n"), "── nodes"];
  const waiting = [0];
  while (waiting.length) {
    const node = waiting.pop();
    const { [node]: reward } = model.reward;
    const facts = [STATUSES[model.status[node]], Number.isNaN(reward) || !node ? "" : `reward ${figure(reward)}`, model.chosen[node] ? "chosen" : ""];
    out.push(`${"  ".repeat(model.depth[node])}${model.label(node)} · ${facts.filter(Boolean).join(" · ")}`);
    waiting.push(...model.children(node).reverse());
  }
  return out;
};

const DIFFERENT = 1500; // edits beyond which what differs is shown as one block

// Edits that turn one list of lines into another, by Myers' greedy walk: [sign, line] with sign " ", "-" or "+".
const diffLines = (left, right) => {
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  const a = left.slice(start, left.length - end);
  const b = right.slice(start, right.length - end);
  const same = (lines) => lines.map((line) => [" ", line]);
  return [...same(left.slice(0, start)), ...edits(a, b), ...same(left.slice(left.length - end))];
};

// The same turn by turn: the third turn of one path stands opposite the third of the other.
const diffParts = (left, right) =>
  Array.from({ length: Math.max(left.length, right.length) }, (_, i) => diffLines(left[i] || [], right[i] || [])).flat();

const edits = (a, b) => {
  const most = Math.min(a.length + b.length, DIFFERENT);
  const trace = [];
  let reach = new Map([[1, 0]]);
  for (let d = 0; d <= most; d++) {
    trace.push(reach);
    const next = new Map();
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      next.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, trace, d);
    }
    reach = next;
  }
  return [...a.map((line) => ["-", line]), ...b.map((line) => ["+", line])];
};

const walkBack = (a, b, trace, last) => {
  const out = [];
  let [x, y] = [a.length, b.length];
  for (let d = last; d >= 0; d--) {
    const reach = trace[d];
    const k = x - y;
    const down = k === -d || (k !== d && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1;
    const px = d ? reach.get(from) : 0;
    const py = d ? px - from : 0;
    while (x > px && y > py && a[x - 1] === b[y - 1]) out.push([" ", a[--x], y--]);
    if (d) out.push(down ? ["+", b[--y]] : ["-", a[--x]]);
  }
  return out.reverse().map(([sign, line]) => [sign, line]);
};

// -- copying ---------------------------------------------------------------------------------------------------

const python = (value, indent = "") => {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number" || typeof value === "string") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, indent)}`).join(", ")}}`;
};

const asPython = (row, turns, store) => {
  const acts = turns.slice(1).map((turn) => {
    const calls = callsOf(turn).map((call) => `Call(${python(call.name)}, ${python(call.arguments)})`);
    return `    ${calls.length ? `Action((${calls.join(", ")},))` : "None"},  # node ${turn.node}`;
  });
  return [
    `# ${`${row.suite}/${row.task_id}, run ${row.run}, ${row.weights}`.replaceAll("\n", " ")}`,
    "from treewright.envs.types import Action, Call", "from treewright.search.store import TreeStore", "",
    `with TreeStore.open(${python(store)}, read_only=True) as store:`, `    tree = store.load(${python(row.id)})`,
    `path = tree.path(${turns[turns.length - 1].node})`, "actions = [", ...acts, "]", "",
  ].join("\n");
};

const asJson = (row, turns, model = null) => ({
  ...Object.fromEntries(["id", "run", "suite", "task_id", "split", "attempt", "policy_version", "weights", "goal", "outcome", "success"].map((name) => [name, row[name]])),
  path: turns.map((turn) => ({
    node: turn.node, text: turn.text, calls: turn.calls, observation: turn.observation, error: turn.error, fault: turn.fault,
    ...(model ? { status: STATUSES[model.status[turn.node]], reward: number(model.reward[turn.node]), score: number(model.score[turn.node]) } : {}),
    token_ids: turn.ids, logprobs: turn.logprobs,
  })),
});

const number = (value) => (Number.isFinite(value) ? value : null);

// A conversation as chat APIs and `treewright import` take it; what was said stands as it was said.
const asMessages = (row, turns) => {
  const first = turns[0].observation || "";
  const out = [{ role: "user", content: first.includes(row.goal) ? first : `${row.goal}\n\n${first}`.trim() }];
  for (const turn of turns.slice(1)) {
    const calls = callsOf(turn).map((call, i) => ({
      id: `call_${turn.node}_${i}`, type: "function", function: { name: call.name, arguments: JSON.stringify(call.arguments) },
    }));
    const spoken = turn.text.trim() || !calls.length;
    out.push(spoken ? { role: "assistant", content: turn.text } : { role: "assistant", content: null, tool_calls: calls });
    if (turn.observation === null) continue;
    if (spoken) out.push({ role: "user", content: turn.observation });
    else calls.forEach((call, i) => out.push({ role: "tool", tool_call_id: call.id, content: i ? "" : turn.observation }));
  }
  return { messages: out, id: row.task_id, suite: row.suite, split: row.split, reward: row.outcome, model: row.policy_version };
};

const written = async (format, row, turns, model) => {
  if (format === "Python") return asPython(row, turns, await source.store());
  return JSON.stringify(format === "JSON" ? asJson(row, turns, model) : asMessages(row, turns), null, 1);
};

const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const held = document.activeElement;
    const box = el("textarea", { class: "unseen", "aria-hidden": "true" });
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    held?.focus();
    if (!done) throw new Error("the browser does not allow this page to copy");
  }
};

// -- files -----------------------------------------------------------------------------------------------------

const TABLE = ["id", "run", "suite", "task_id", "split", "attempt", "policy_version", "weights", "status", "outcome", "success",
  "nodes", "expansions", "tokens", "steps", "seconds", "stopped_by", "goal"];

// Text that a spreadsheet would take for a formula gets an apostrophe before it.
const csvCell = (value) => {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

const asTable = (rows) => [TABLE, ...rows.map((row) => TABLE.map((name) => row[name]))].map((cells) => cells.map(csvCell).join(",")).join("\r\n") + "\r\n";

const saveFile = (name, text, type) => {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
};
