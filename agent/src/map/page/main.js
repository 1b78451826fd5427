// The page: asks the agent, keeps what it tells, and shows what the filters let through.

import { arrange, at, make, offer, say } from "./dom.js";
import { Drawing } from "./drawing.js";
import * as health from "./health.js";
import { columns, isAbsent, key, label, Model } from "./model.js";
import { explained, outcome, Table } from "./table.js";
import { ago, counted, number, OUTCOME, plain, port, reason, VERDICTS } from "./words.js";

const POLL_MS = 1_000;
const NODE_MS = 10_000;
const PATIENCE_MS = 8_000;
const RETRY_MS = [1_000, 2_000, 5_000, 10_000];

/** Refusals are read out at most this often. */
const SAY_MS = 10_000;

/** Edges that the box beside the drawing lists at most. */
const LISTED = 6;

const model = new Model();
const filters = { find: "", namespace: "", workload: "", peer: "", reason: "", seen: "", verdicts: new Set(), absent: false };
const folds = new Map();
const table = new Table();
const drawing = new Drawing({ choose, choosePair, fold, point });
const chips = makeChips();

let isPaused = false;
let failures = 0;
let heardAt = 0;
let clockLead = 0;
let hasHeard = false;
let hasNode = false;
let pointed;
let unsaid = [];
let saidAt = 0;

// Asking.

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return { answer: await response.json(), date: Date.parse(response.headers.get("date") ?? "") };
}

async function poll() {
  let wait = POLL_MS;
  try {
    if (!isPaused && !document.hidden) {
      const { answer, date } = await ask(`v1/map?run=${model.run}&since=${model.revision}&began=${model.began}`);
      if (Number.isFinite(date)) clockLead = date - Date.now();
      note(model.take(answer));
      hasHeard ||= !answer.has_more;
      if (answer.has_more) wait = 0;
      heard();
      if (!answer.has_more) refresh();
    }
  } catch (error) {
    wait = lost(error);
  }
  setTimeout(poll, wait);
}

async function pollNode() {
  try {
    if (!document.hidden) {
      const { answer } = await ask("v1/node");
      model.workloads = answer.workloads;
      hasNode = true;
      health.show(answer);
      refresh();
    }
  } catch {
    // The other poll says that the connection is lost.
  }
  setTimeout(pollNode, failures ? 2_000 : NODE_MS);
}

function heard() {
  if (failures) announce("Connected again.");
  failures = 0;
  heardAt = Date.now();
  at("lost").hidden = true;
  document.body.classList.remove("is-lost");
  link(isPaused ? "paused" : "live", isPaused ? "Paused" : "Live");
}

function lost() {
  failures += 1;
  const wait = RETRY_MS[Math.min(failures, RETRY_MS.length) - 1];
  // One answer that does not come is no reason to worry anybody.
  if (failures > 1) {
    const since = heardAt ? `What you see is from ${new Date(heardAt).toLocaleTimeString()}.` : "Nothing was heard yet.";
    say(at("lost"), `The agent does not answer. ${since} Trying again; if this page came through kubectl port-forward, see whether that still runs.`);
    at("lost").hidden = false;
    document.body.classList.add("is-lost");
    link("lost", "Connection lost");
  }
  return wait;
}

function link(state, text) {
  at("link").dataset.state = state;
  say(at("link-text"), text);
}

function now() {
  return Date.now() + clockLead;
}

// Saying.

/** Remembers refusals until it is time to read them out. */
function note(refusals) {
  unsaid.push(...refusals);
  if (!unsaid.length || Date.now() - saidAt < SAY_MS) return;
  const [first] = unsaid;
  const others = new Set(unsaid.map((edge) => edge.id)).size - 1;
  announce(`Refused: ${label(first.from)} to ${label(first.to)}, ${reason(first)}${others ? `, and ${counted(others, "other")}` : ""}.`);
  unsaid = [];
}

function announce(text) {
  saidAt = Date.now();
  say(at("say"), text);
}

// Showing.

function refresh() {
  const time = now();
  const { edges, counts, absent } = model.select(filters, time);
  const choices = model.choices(filters.namespace);
  offer(at("namespace"), [["", "all"], ...choices.namespaces], filters.namespace);
  offer(at("workload"), [["", "all"], ...choices.workloads], filters.workload);
  offer(at("peer"), [["", "all"], ...choices.peers], filters.peer);
  offer(at("reason"), [["", "any"], ...choices.reasons], filters.reason);
  for (const [verdict, chip] of chips) {
    say(chip.count, number(counts[verdict]));
    chip.button.setAttribute("aria-pressed", String(filters.verdicts.has(verdict)));
  }
  say(at("absent-count"), absent ? `(${number(absent)})` : "");
  at("clear").hidden = !isFiltered();
  const groups = columns(edges, quiet(edges), folds);
  showEmpty(edges);
  at("talks").hidden = !edges.length;
  at("picture").hidden = !groups.who.length && !groups.whom.length;
  drawing.show(edges, groups, { from: filters.workload || undefined, to: filters.peer || undefined }, time);
  say(at("sum"), summary(edges, groups));
  const hasGroups = groups.who.some((group) => group.rows.length > 1) || groups.whom.some((group) => group.rows.length > 1);
  at("fold").hidden = at("unfold").hidden = !hasGroups;
  table.show(edges, time);
  showAside(edges, time);
  const { kept, max, evicted, missed } = model.bounds;
  say(at("bounds"), [`${number(kept)} of ${number(max)} edges that the agent keeps`,
    evicted ? `${number(evicted)} made room for others` : "", missed ? `${counted(missed, "decision")} not heard of` : ""].filter(Boolean).join(" · "));
}

/** Workloads without edges, where nothing but a namespace narrows what is shown. */
function quiet(edges) {
  const narrows = filters.find || filters.workload || filters.peer || filters.reason || filters.verdicts.size;
  if (narrows) {
    const seen = new Set(edges.map((edge) => edge.fromKey));
    return model.workloads.filter((item) => seen.has(key({ kind: "workload", ...item })));
  }
  return model.workloads.filter((item) => !filters.namespace || item.namespace === filters.namespace);
}

function summary(edges, groups) {
  const rows = (side, kind) => side.flatMap((group) => group.rows).filter((row) => row.talks && (!kind || row.party.kind === kind)).length;
  if (!edges.length) return "";
  const denied = edges.filter((edge) => edge.verdict === "denied").length;
  return `${counted(rows(groups.who, "workload"), "workload")}, ${counted(rows(groups.whom), "name or peer", "names and peers")}, ${denied ? counted(denied, "kind of talk", "kinds of talk") : "nothing"} refused`;
}

function showEmpty(edges) {
  const empty = at("empty");
  empty.hidden = edges.length > 0;
  if (edges.length) return;
  if (!hasHeard) {
    empty.replaceChildren(make("p", {}, "Asking the agent…"));
  } else if (model.edges.size && isFiltered()) {
    const button = make("button", { type: "button" }, "Clear filters");
    button.addEventListener("click", clear);
    empty.replaceChildren(make("p", {}, make("strong", {}, "Nothing matches these filters. "),
      `${counted(model.edges.size, "kind of talk is", "kinds of talk are")} hidden. `), button);
  } else {
    empty.replaceChildren(...lesson());
  }
}

/** What to do where nothing was seen yet. */
function lesson() {
  const governed = model.workloads.filter((item) => item.is_governed);
  const first = governed[0] ?? model.workloads[0];
  const heading = make("p", {}, make("strong", {}, "No flows yet. "),
    "As soon as a pod of this node looks up a name or opens a connection, it appears here, and so does what is refused.");
  if (!hasNode) return [heading];
  if (!first) {
    return [heading, make("p", {}, "The agent enforces on no pod of this node yet. ", make("code", {}, "namegate status"), " says what it waits for.")];
  }
  const advice = governed.length
    ? `${counted(governed.length, "workload")} of this node ${governed.length === 1 ? "is" : "are"} under policy. Try one:`
    : "No policy selects a pod of this node: write an EgressPolicy for one and see here what it lets through. Then:";
  const command = `kubectl -n ${plain(first.namespace)} exec ${plain(first.name)} -- wget -qO- http://example.com`;
  return [heading, make("p", {}, advice), make("p", {}, make("code", {}, command))];
}

function showAside(edges, time) {
  const title = at("aside-title");
  const body = at("aside-body");
  if (body.contains(document.activeElement)) return;
  const isPointed = Boolean(pointed?.edges.length);
  const chosen = isPointed ? pointed.edges : edges.filter((edge) => edge.verdict !== "allowed");
  say(title, isPointed ? pointed.title : filters.workload || filters.peer ? "Refused of what is chosen" : "Refused lately");
  if (!chosen.length) {
    body.replaceChildren(make("p", { class: "muted" }, edges.length ? "Nothing was refused. Point at a line or a workload to see what it is." : "Nothing was refused."));
    return;
  }
  const rank = (edge) => (edge.verdict === "allowed" ? 1 : 0);
  const listed = [...chosen].sort((a, b) => rank(a) - rank(b) || b.last_ms - a.last_ms);
  const items = listed.slice(0, LISTED).map((edge) => item(edge, time));
  const rest = listed.length - items.length;
  body.replaceChildren(make("ol", {}, ...items), ...(rest > 0 ? [make("p", { class: "muted" }, `and ${counted(rest, "other")} in the table below`)] : []));
}

function item(edge, time) {
  return make("li", { "data-verdict": edge.verdict },
    make("p", { class: "pair" }, make("bdi", {}, label(edge.from)), make("span", { class: "muted" }, edge.protocol === "dns" ? " asks for " : " → "), make("bdi", {}, label(edge.to)),
      make("span", { class: "muted" }, edge.protocol === "dns" ? "" : ` ${port(edge)}`)),
    make("p", { class: "because" }, outcome(edge), ` ${reason(edge)}`, edge.policy ? make("span", { class: "muted" }, ` (${plain(edge.policy)})`) : ""),
    make("p", { class: "muted small" }, `${number(edge.count)} ×, ${ago(edge.last_ms, time)}`));
}

// Filtering.

function makeChips() {
  const made = new Map();
  for (const verdict of VERDICTS) {
    const count = make("span", { class: "count" }, "0");
    const button = make("button", { type: "button", class: "chip", "data-verdict": verdict, "aria-pressed": "false" },
      make("span", { class: "stroke", "aria-hidden": "true" }), OUTCOME[verdict], count);
    button.addEventListener("click", () => {
      if (!filters.verdicts.delete(verdict)) filters.verdicts.add(verdict);
      changed();
    });
    at("verdicts").append(button);
    made.set(verdict, { button, count });
  }
  return made;
}

function isFiltered() {
  return Boolean(filters.find || filters.namespace || filters.workload || filters.peer || filters.reason || filters.seen || filters.verdicts.size);
}

function clear() {
  Object.assign(filters, { find: "", namespace: "", workload: "", peer: "", reason: "", seen: "" });
  filters.verdicts.clear();
  at("find").value = at("seen").value = "";
  changed();
  announce("Filters cleared.");
}

/** After a filter changed: shows, and keeps the filters in the address, so that it can be passed on. */
function changed() {
  table.restart();
  const words = new URLSearchParams();
  for (const name of ["find", "namespace", "workload", "peer", "reason", "seen"]) if (filters[name]) words.set(name, filters[name]);
  if (filters.verdicts.size) words.set("outcome", [...filters.verdicts].join(","));
  if (filters.absent) words.set("absent", "1");
  history.replaceState(null, "", words.size ? `#${words}` : location.pathname);
  refresh();
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of ["find", "namespace", "workload", "peer", "reason", "seen"]) filters[name] = words.get(name) ?? "";
  filters.verdicts = new Set((words.get("outcome") ?? "").split(",").filter((verdict) => VERDICTS.includes(verdict)));
  filters.absent = words.get("absent") === "1";
  at("find").value = filters.find;
  at("seen").value = filters.seen;
  at("absent").checked = filters.absent;
}

function choose(side, id) {
  const name = side === "who" ? "workload" : "peer";
  filters[name] = filters[name] === id ? "" : id;
  changed();
}

function choosePair(from, to) {
  const isChosen = filters.workload === from && filters.peer === to;
  filters.workload = isChosen ? "" : from;
  filters.peer = isChosen ? "" : to;
  changed();
}

function fold(id, isFolded) {
  folds.set(id, isFolded);
  refresh();
}

function foldAll(isFolded) {
  const { edges } = model.select(filters, now());
  const groups = columns(edges, quiet(edges), folds);
  for (const group of [...groups.who, ...groups.whom]) folds.set(group.key, isFolded && group.rows.length > 1);
  refresh();
}

function point(edges, line) {
  pointed = edges?.length ? { edges, title: line?.party ? label(line.party) : line ? line.querySelector(".name").textContent : "This talk" } : undefined;
  showAside(model.select(filters, now()).edges, now());
}

function bind() {
  for (const name of ["namespace", "workload", "peer", "reason", "seen"]) {
    at(name).addEventListener("change", (event) => {
      filters[name] = event.target.value;
      if (name === "namespace") filters.workload = "";
      changed();
    });
  }
  at("find").addEventListener("input", (event) => {
    filters.find = event.target.value.trim();
    changed();
  });
  at("absent").addEventListener("change", (event) => {
    filters.absent = event.target.checked;
    changed();
  });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("clear").addEventListener("click", clear);
  at("fold").addEventListener("click", () => foldAll(true));
  at("unfold").addEventListener("click", () => foldAll(false));
  at("pause").addEventListener("click", () => {
    isPaused = !isPaused;
    at("pause").setAttribute("aria-pressed", String(isPaused));
    say(at("pause"), isPaused ? "Go on" : "Pause");
    link(isPaused ? "paused" : "live", isPaused ? "Paused" : "Live");
    announce(isPaused ? "Paused." : "Following again.");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isFiltered()) clear();
    else if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      event.preventDefault();
      at("find").focus();
    }
  });
}

readAddress();
bind();
refresh();
poll();
pollNode();

export { drawing, explained, isAbsent, model, arrange };
