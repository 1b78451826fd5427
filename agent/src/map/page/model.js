// What is known and what of it is wanted. Knows no document, so that it can be tried without one.

import { plain, port, reason, reasonWord, VERDICTS } from "./words.js";

/** Everything that the agent told so far. */
export class Model {
  run = 0;
  revision = 0;
  began = 0;
  /** Edges by number. */
  edges = new Map();
  bounds = { kept: 0, max: 0, evicted: 0, missed: 0 };
  /** Workloads that live on the node, with or without edges. */
  workloads = [];
  /** The agent's clock less this one's, in milliseconds. */
  refused = 0;

  /** Takes what `/v1/map` answered; returns the edges of refusals that came or grew. */
  take(told) {
    const isFirst = told.is_whole;
    if (told.is_whole) this.edges.clear();
    for (const id of told.gone) this.edges.delete(id);
    const refusals = [];
    for (const edge of told.edges) {
      const before = this.edges.get(edge.id);
      edge.fromKey = before?.fromKey ?? key(edge.from);
      edge.toKey = before?.toKey ?? key(edge.to);
      edge.text = before?.text ?? searched(edge);
      this.edges.set(edge.id, edge);
      if (!isFirst && edge.verdict === "denied" && edge.count > (before?.count ?? 0)) refusals.push(edge);
    }
    this.run = told.run;
    this.revision = told.revision;
    this.began = told.began;
    this.bounds = { kept: told.kept, max: told.max, evicted: told.evicted, missed: told.missed };
    return refusals;
  }

  /** The edges that the filters let through, and how many of names that do not exist they hide. */
  select(filters, now) {
    const words = filters.find.toLowerCase().split(/\s+/).filter(Boolean);
    const since = filters.seen ? now - Number(filters.seen) * 1000 : 0;
    const chosen = [];
    const counts = Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0]));
    let absent = 0;
    for (const edge of this.edges.values()) {
      if (edge.last_ms < since || !words.every((word) => edge.text.includes(word))) continue;
      if (filters.reason && edge.reason !== filters.reason) continue;
      if (filters.namespace && edge.from.namespace !== filters.namespace && edge.to.namespace !== filters.namespace) continue;
      if (filters.workload && edge.fromKey !== filters.workload && edge.toKey !== filters.workload) continue;
      if (filters.peer && edge.toKey !== filters.peer) continue;
      if (isAbsent(edge)) {
        absent += 1;
        if (!filters.absent) continue;
      }
      counts[edge.verdict] += 1;
      if (filters.verdicts.size && !filters.verdicts.has(edge.verdict)) continue;
      chosen.push(edge);
    }
    return { edges: chosen, counts, absent };
  }

  /** What can be chosen in the filters. */
  choices(namespace) {
    const namespaces = new Set();
    const workloads = new Map();
    const peers = new Map();
    const reasons = new Set();
    const note = (party) => {
      if (party.kind !== "workload") return;
      namespaces.add(party.namespace);
      if (!namespace || party.namespace === namespace) workloads.set(key(party), label(party));
    };
    for (const item of this.workloads) note({ kind: "workload", ...item });
    for (const edge of this.edges.values()) {
      note(edge.from);
      note(edge.to);
      peers.set(edge.toKey, label(edge.to));
      reasons.add(edge.reason);
    }
    const byText = (a, b) => compare(a[1], b[1]);
    return {
      namespaces: [...namespaces].sort(compare).map((name) => [name, plain(name)]),
      workloads: [...workloads].sort(byText),
      peers: [...peers].sort(byText),
      reasons: [...reasons].map((word) => [word, reasonWord(word)]).sort(byText),
    };
  }
}

/** A lookup of a name that does not exist: search domains make many, and few care. */
export function isAbsent(edge) {
  return edge.rcode === "NXDOMAIN" && edge.verdict === "allowed";
}

/** What tells parties apart. */
export function key(party) {
  return party.kind === "workload" ? `workload/${party.namespace}/${party.name}` : `${party.kind}//${party.name}`;
}

/** What a party is called where nothing around says more. */
export function label(party) {
  return party.kind === "workload" ? `${plain(party.namespace)}/${plain(party.name)}` : plain(party.name);
}

const TEXT = new Intl.Collator("en", { numeric: true });

export function compare(a, b) {
  return TEXT.compare(a, b);
}

function searched(edge) {
  return [label(edge.from), label(edge.to), port(edge), edge.verdict, reason(edge), edge.reason, edge.policy ?? "",
    edge.pod ?? "", edge.service ?? "", edge.address ?? "", ...(edge.also ?? []), ...(edge.selecting ?? [])].join(" ").toLowerCase();
}

/** Rows of a column above which its groups are folded unless somebody unfolds them. */
export const ROWS_MAX = 48;

/**
 * The two columns: groups with their rows, and how each fares. `quiet` are workloads without edges,
 * `folds` what somebody folded or unfolded.
 */
export function columns(edges, quiet, folds) {
  const who = new Map();
  const whom = new Map();
  for (const edge of edges) {
    tally(who, edge.from, edge.fromKey, edge);
    tally(whom, edge.to, edge.toKey, edge);
  }
  for (const item of quiet) {
    const party = { kind: "workload", namespace: item.namespace, name: item.name };
    const row = place(who, party, key(party));
    row.pods = item.pods;
    row.isGoverned = item.is_governed;
  }
  return { who: grouped(who, whoGroup, folds, "who"), whom: grouped(whom, whomGroup, folds, "whom") };
}

function place(rows, party, id) {
  let row = rows.get(id);
  if (!row) {
    row = { id, party, counts: { allowed: 0, denied: 0, audit: 0, error: 0 }, talks: 0, last: 0, ports: new Set(), pods: 0, isGoverned: undefined };
    rows.set(id, row);
  }
  return row;
}

function tally(rows, party, id, edge) {
  const row = place(rows, party, id);
  row.counts[edge.verdict] += 1;
  row.talks += 1;
  row.last = Math.max(row.last, edge.last_ms);
  if (edge.protocol !== "dns" && row.ports.size < 4) row.ports.add(port(edge));
}

function whoGroup(party) {
  if (party.kind === "workload") return { order: 1, id: `ns/${party.namespace}`, title: plain(party.namespace), kind: "namespace" };
  return { order: 2, id: "outside", title: "outside the node's pods", kind: "outside" };
}

function whomGroup(party, isMany) {
  switch (party.kind) {
    case "workload":
      return { order: 2, id: `ns/${party.namespace}`, title: plain(party.namespace), kind: "namespace" };
    case "name": {
      const domain = isMany ? party.name.split(".").slice(-2).join(".") : "";
      return { order: 1, id: `names/${domain}`, title: domain ? plain(domain) : "names", kind: "names" };
    }
    case "address":
      return { order: 3, id: "addresses", title: "addresses without a name", kind: "addresses" };
    default:
      return { order: 4, id: "elsewhere", title: "elsewhere", kind: "outside" };
  }
}

function grouped(rows, group, folds, side) {
  const isMany = rows.size > ROWS_MAX;
  const groups = new Map();
  for (const row of rows.values()) {
    const of = group(row.party, isMany);
    let found = groups.get(of.id);
    if (!found) {
      found = { ...of, rows: [], counts: { allowed: 0, denied: 0, audit: 0, error: 0 }, talks: 0, key: `${side}:${of.id}` };
      groups.set(of.id, found);
    }
    found.rows.push(row);
    found.talks += row.talks;
    for (const verdict of VERDICTS) found.counts[verdict] += row.counts[verdict];
  }
  gatherLonely(groups, side);
  const sorted = [...groups.values()].sort((a, b) => a.order - b.order || compare(a.title, b.title));
  for (const one of sorted) {
    one.rows.sort((a, b) => compare(a.party.name, b.party.name));
    one.isFolded = folds.get(one.key) ?? (isMany && one.rows.length > 1);
  }
  return sorted;
}

/** Domains with one name alone are one group: a heading for each row would tell nothing. */
function gatherLonely(groups, side) {
  const lonely = [...groups.values()].filter((group) => group.kind === "names" && group.rows.length === 1);
  if (lonely.length < 2) return;
  const id = "names/*";
  const all = { order: 1, id, title: "other names", kind: "names", rows: [], counts: { allowed: 0, denied: 0, audit: 0, error: 0 }, talks: 0, key: `${side}:${id}` };
  for (const group of lonely) {
    groups.delete(group.id);
    all.rows.push(...group.rows);
    all.talks += group.talks;
    for (const verdict of VERDICTS) all.counts[verdict] += group.counts[verdict];
  }
  groups.set(id, all);
}

/** Edges as they are drawn: one for each pair of what is to be seen and each outcome. */
export function strands(edges, groups) {
  const whoAt = anchors(groups.who);
  const whomAt = anchors(groups.whom);
  const drawn = new Map();
  for (const edge of edges) {
    const from = whoAt.get(edge.fromKey);
    const to = whomAt.get(edge.toKey);
    const id = `${from}\n${to}\n${edge.verdict}`;
    let strand = drawn.get(id);
    if (!strand) {
      strand = { id, from, to, verdict: edge.verdict, count: 0, last: 0, edges: [] };
      drawn.set(id, strand);
    }
    strand.count += edge.count;
    strand.last = Math.max(strand.last, edge.last_ms);
    strand.edges.push(edge);
  }
  const order = (strand) => VERDICTS.indexOf(strand.verdict);
  return [...drawn.values()].sort((a, b) => (order(a) === 1 ? 9 : order(a)) - (order(b) === 1 ? 9 : order(b)));
}

/** Which row or folded group stands for a party. */
function anchors(groups) {
  const at = new Map();
  for (const group of groups) {
    for (const row of group.rows) at.set(row.id, group.isFolded ? group.key : `${group.key}|${row.id}`);
  }
  return at;
}
