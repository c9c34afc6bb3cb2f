// The page asks for one document every two seconds and shows it. Everything is put in as text: what peers wrote is never markup.
const token = location.hash.slice(1);
const STAGES = ["posted", "matching", "matched", "requested", "contracted", "invoked", "running", "completed", "verified",
  "settled", "failed", "cancelled", "expired", "disputed", "resolved"];
const TONES = { settled: "good", completed: "good", failed: "bad", disputed: "bad", refused: "bad", expired: "wait",
  refunded: "wait", running: "wait", matching: "wait" };
const at = (id) => document.getElementById(id);
const seen = new Map();

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => child instanceof Node ? child : String(child ?? "")));
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => child instanceof Node ? child : String(child ?? "")));
  return made;
}

// puts new content in only where the data changed, so that focus and selection stay
function show(id, data, make) {
  const text = JSON.stringify(data);
  if (seen.get(id) === text) return;
  seen.set(id, text);
  at(id).replaceChildren(...[make(data)].flat());
}

const end = (text) => text ? (/^(12D3KooW|did:)/.test(text) ? "…" + text.slice(-8) : text.slice(0, 24)) : "–";
const time = (text) => text ? text.slice(0, 19).replace("T", " ") : "–";
const state = (text) => element("span", { class: TONES[text] ?? "" }, text);
const code = (text) => element("code", { title: text ?? "" }, end(text));

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (bytes >= 1024 && step < units.length - 1) { bytes /= 1024; step += 1; }
  return `${Math.round(bytes * 10) / 10} ${units[step]}`;
}

function table(caption, headers, rows) {
  if (!rows.length) return element("p", {}, `${caption}: none yet`);
  const head = element("tr", {}, ...headers.map((header) => element("th", { scope: "col" }, header)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) =>
    element("td", typeof cell === "string" && cell.length > 60 ? { class: "long" } : {}, cell))));
  return element("table", {}, element("caption", {}, `${caption} (${rows.length})`), element("thead", {}, head),
    element("tbody", {}, ...body));
}

function graph({ me, peers }) {
  const [width, height, reach] = [360, 300, 110];
  const near = [...peers].sort((a, b) => (a.rtt ?? 1e9) - (b.rtt ?? 1e9)).slice(0, 24);
  const parts = near.map((peer, index) => {
    const angle = 2 * Math.PI * index / near.length;
    // the farther ones stand a little farther out
    const distance = reach * (0.7 + 0.3 * (near.length > 1 ? index / (near.length - 1) : 1));
    const [x, y] = [width / 2 + distance * Math.cos(angle), height / 2 + distance * Math.sin(angle)];
    const rtt = peer.rtt === null ? "not measured" : `${peer.rtt} ms`;
    const roles = peer.roles.join(", ") || "node";
    const label = `peer ${end(peer.peer_id)}, ${roles}, ${rtt}`;
    return [
      drawn("line", { class: "edge", x1: width / 2, y1: height / 2, x2: x, y2: y }),
      drawn("text", { class: "label", x: (x + width / 2) / 2, y: (y + height / 2) / 2 - 5 }, rtt),
      drawn("g", { tabindex: 0, role: "img", "aria-label": label }, drawn("title", {}, label),
        drawn("circle", { cx: x, cy: y, r: 10 }), drawn("text", { x, y: y + 24 }, end(peer.peer_id)),
        drawn("text", { class: "label", x, y: y + 36 }, peer.roles[0] ?? "")),
    ];
  });
  const center = drawn("g", { class: "me", role: "img", "aria-label": "this node" }, drawn("title", {}, "this node"),
    drawn("circle", { cx: width / 2, cy: height / 2, r: 13 }), drawn("text", { x: width / 2, y: height / 2 + 28 }, "this node"));
  const title = `This node and ${peers.length} connected peers with their round-trip times`;
  return drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title }, drawn("title", {}, title),
    ...parts.flatMap((part) => part.slice(0, 2)), ...parts.map((part) => part[2]), center);
}

function bars({ onboarded, whole, left }) {
  if (!onboarded) return element("p", {}, "This machine is not offered. To offer it, type: nunet onboard");
  return [["cpu", whole.cpu.cores, left.cpu.cores, (value) => `${Math.round(value * 100) / 100} cores`],
    ["memory", whole.memory, left.memory, size], ["disk", whole.disk, left.disk, size]].map(([name, all, free, write]) =>
    element("div", { class: "bar" }, element("label", { for: `bar-${name}` }, name),
      element("progress", { id: `bar-${name}`, max: all, value: all - free }), element("span", {}, `${write(all - free)} of ${write(all)} taken`)));
}

function render(data) {
  const { status, capability } = data;
  at("node").textContent = `${end(status.peer_id)} in ${status.network}, since ${time(status.started_at)} UTC, ` +
    `machine ${Math.round(status.machine.cpu_load * 100)} % busy`;
  document.title = `nunet ${end(status.peer_id)}`;
  show("money", [status.balances, status.earned, status.spent], () => [
    ...status.balances.flatMap((row) => [element("dt", {}, "balance"), element("dd", {}, `${row.balance} NTX`)]),
    element("dt", {}, "earned"), element("dd", {}, `${status.earned} NTX`),
    element("dt", {}, "spent"), element("dd", {}, `${status.spent} NTX`)]);
  show("capability", { onboarded: capability.onboarded, whole: capability.registered?.resources,
    left: capability.available?.resources }, bars);
  const peers = data.peers.filter((peer) => peer.connected);
  show("graph", { me: status.peer_id, peers: peers.map(({ peer_id, rtt, roles }) => ({ peer_id, rtt, roles })) }, graph);
  show("peer-table", data.peers, (rows) => table("Known peers", ["peer", "connected", "round trip", "roles", "address"],
    rows.map((row) => [code(row.peer_id), row.connected ? "yes" : "no", row.rtt === null ? "–" : `${row.rtt} ms`,
      row.roles.join(", ") || "–", row.addresses[0] ?? "–"])));
  show("stages", data.stages, (counts) => STAGES.map((stage) =>
    element("li", counts[stage] ? { class: "some" } : {}, element("b", {}, counts[stage] ?? 0), stage)));
  show("job-table", data.jobs, (rows) => table("The latest jobs", ["job", "name", "state", "paid", "since", "note"],
    rows.map((row) => [code(row.id), row.name, state(row.state), row.paid ? `${row.paid} NTX` : "–", time(row.created_at),
      row.waiting ? `waiting: ${row.waiting.for}` : row.error?.message ?? ""])));
  show("allocation-table", data.allocations, (rows) => table("The latest allocations",
    ["allocation", "for", "executor", "state", "processor", "memory"],
    rows.map((row) => [code(row.id), code(row.requester), row.executor, state(row.state),
      `${Math.round((row.usage?.cpu_seconds ?? 0) * 10) / 10} s`, size(row.usage?.max_memory ?? 0)])));
  show("bid-table", data.bids, (rows) => table("The latest bids", ["job", "who", "price", "score", "verdict", "why"],
    rows.map((row) => [code(row.job_id), code(row.bidder), row.price ? `${row.price.amount} ${row.price.currency}` : "–",
      row.score ?? "–", state(row.verdict), row.why || row.reasons.join("; ")])));
  show("contract-table", data.contracts, (rows) => table("The latest contracts",
    ["contract", "job", "as", "with", "deposit", "state", "message"],
    rows.map((row) => [code(row.id), code(row.job_id), row.role, code(row.role === "requester" ? row.provider : row.requester),
      `${row.deposit} NTX`, state(row.state), row.message])));
  show("ledger-table", data.ledger, (rows) => table("Movements on this node's account", ["when", "what", "amount", "contract"],
    rows.map((row) => [time(row.at), row.kind, `${row.amount} NTX`, code(row.contract_id)])));
}

async function look() {
  const note = at("state");
  try {
    const answer = await fetch("data", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.detail ?? answer.statusText);
    render(data);
    if (note.textContent !== "live") { note.className = ""; note.textContent = "live"; }
  } catch (error) {
    const text = `not live: ${error.message}`;
    if (note.textContent !== text) { note.className = "bad"; note.textContent = text; }
  }
  setTimeout(look, document.hidden ? 10000 : 2000);
}

look();
