// The table of talks: the same edges as the drawing, one a row.

import { arrange, at, make, say } from "./dom.js";
import { compare, label } from "./model.js";
import { ago, counted, number, OUTCOME, plain, port, reason, SIGN } from "./words.js";

/** Rows that are shown at first, and how many come with each "more". */
const ROWS = 100;

const COLUMNS = [
  ["who", "Who", (a, b) => compare(label(a.from), label(b.from))],
  ["whom", "Whom", (a, b) => compare(label(a.to), label(b.to))],
  ["port", "Port", (a, b) => a.port - b.port || compare(a.protocol, b.protocol)],
  ["outcome", "Outcome", (a, b) => rank(a) - rank(b)],
  ["why", "Why", (a, b) => compare(reason(a), reason(b))],
  ["count", "Count", (a, b) => a.count - b.count],
  ["last", "Last", (a, b) => a.last_ms - b.last_ms],
];

/** Refusals first. */
function rank(edge) {
  return ["denied", "error", "audit", "allowed"].indexOf(edge.verdict);
}

export class Table {
  #rows = new Map();
  #order = "outcome";
  #descends = false;
  #shown = ROWS;
  #open = new Set();
  #edges = [];
  #now = 0;

  constructor() {
    at("heads").append(...COLUMNS.map(([name, title]) => {
      const button = make("button", { type: "button" }, title, make("span", { class: "arrow", "aria-hidden": "true" }));
      button.addEventListener("click", () => this.#sort(name));
      return make("th", { role: "columnheader", scope: "col", "data-name": name, class: name }, button);
    }));
    at("more").addEventListener("click", () => {
      this.#shown += ROWS;
      this.show(this.#edges, this.#now);
    });
    this.#mark();
  }

  /** Shows these edges. While somebody is in the table its order stays, so that nothing runs away. */
  show(edges, now) {
    this.#edges = edges;
    this.#now = now;
    const shown = this.#sorted().slice(0, this.#shown);
    const kept = new Set(shown.map((edge) => edge.id));
    for (const [id, row] of this.#rows) if (!kept.has(id) && !this.#holds(row)) this.#rows.delete(id);
    const lines = shown.map((edge) => this.#row(edge, now));
    const isBusy = at("rows").contains(document.activeElement);
    if (!isBusy) arrange(at("rows"), lines.flatMap((row) => (row.more ? [row.line, row.more] : [row.line])));
    const rest = edges.length - shown.length;
    at("more").hidden = rest <= 0;
    say(at("more"), `Show more (${number(rest)} are left)`);
    say(at("talks-sum"), edges.length ? counted(edges.length, "kind of talk", "kinds of talk") : "none");
  }

  /** Begins at the top again, for what is asked for now. */
  restart() {
    this.#shown = ROWS;
  }

  #holds(row) {
    return row.line.contains(document.activeElement) || row.more?.contains(document.activeElement);
  }

  #sorted() {
    const [, , by] = COLUMNS.find(([name]) => name === this.#order);
    const way = this.#descends ? -1 : 1;
    return [...this.#edges].sort((a, b) => way * by(a, b) || b.last_ms - a.last_ms || b.id - a.id);
  }

  #sort(name) {
    this.#descends = this.#order === name ? !this.#descends : name === "count" || name === "last";
    this.#order = name;
    this.#mark();
    this.show(this.#edges, this.#now);
  }

  #mark() {
    for (const head of at("heads").children) {
      const isIt = head.dataset.name === this.#order;
      head.setAttribute("aria-sort", !isIt ? "none" : this.#descends ? "descending" : "ascending");
    }
  }

  #row(edge, now) {
    let row = this.#rows.get(edge.id);
    if (!row) {
      row = this.#make(edge);
      this.#rows.set(edge.id, row);
    }
    if (row.edge !== edge) {
      row.edge = edge;
      if (row.more) row.more.replaceChildren(make("td", { role: "cell", colspan: "7" }, explained(edge)));
    }
    say(row.count, number(edge.count));
    say(row.last, ago(edge.last_ms, now));
    return row;
  }

  #make(edge) {
    const row = { edge, more: undefined };
    const cell = (name, title, ...children) => make("td", { role: "cell", class: name, "data-title": title }, ...children);
    row.count = cell("count", "Count");
    row.last = cell("last", "Last");
    row.button = make("button", { type: "button", class: "why-button", "aria-expanded": "false" }, why(edge));
    row.button.addEventListener("click", () => this.#toggle(row));
    row.line = make("tr", { role: "row", "data-verdict": edge.verdict },
      make("th", { role: "rowheader", scope: "row", class: "who", "data-title": "Who" }, party(edge.from)),
      cell("whom", "Whom", party(edge.to)),
      cell("port", "Port", port(edge)),
      cell("outcome", "Outcome", outcome(edge)),
      cell("why", "Why", row.button),
      row.count, row.last);
    return row;
  }

  #toggle(row) {
    if (row.more) {
      row.more.remove();
      row.more = undefined;
    } else {
      row.more = make("tr", { role: "row", class: "explained" },
        make("td", { role: "cell", colspan: "7" }, explained(row.edge)));
      row.line.after(row.more);
    }
    row.button.setAttribute("aria-expanded", String(Boolean(row.more)));
  }
}

function party(of) {
  if (of.kind !== "workload") return make("bdi", {}, plain(of.name));
  return make("bdi", {}, make("span", { class: "muted" }, `${plain(of.namespace)}/`), plain(of.name));
}

/** The outcome with its sign. */
export function outcome(edge) {
  return make("span", { class: "verdict", "data-verdict": edge.verdict },
    make("span", { class: "sign", "aria-hidden": "true" }, SIGN[edge.verdict]), OUTCOME[edge.verdict]);
}

function why(edge) {
  const rule = edge.policy ? plain(edge.policy) : "";
  return edge.verdict === "allowed" && rule ? rule : [reason(edge), rule].filter(Boolean).join(": ");
}

/** Everything that is known of an edge, as a list and the command that says more. */
export function explained(edge) {
  const isLookup = edge.protocol === "dns";
  const all = [
    ["What", `${label(edge.from)} ${isLookup ? "asks for" : "opens flows to"} ${label(edge.to)}${isLookup ? "" : `, ${port(edge)}`}: ${OUTCOME[edge.verdict]}, ${reason(edge)}`],
    ["Decided by", edge.policy ? plain(edge.policy) : undefined],
    ["Policies that select it", edge.selecting?.map(plain).join(", ")],
    ["Decided at", isLookup ? undefined : edge.direction === "egress" ? "the pod that opens (egress)" : "the pod that is reached (ingress)"],
    ["Answer", edge.rcode && plain(edge.rcode)],
    ["Through the service", edge.service && plain(edge.service)],
    ["Address", edge.address && plain(edge.address)],
    ["Also known as", edge.also?.map(plain).join(", ")],
    ["Pod", edge.pod && plain(edge.pod)],
    ["First seen", new Date(edge.first_ms).toLocaleString()],
    ["Last seen", new Date(edge.last_ms).toLocaleString()],
  ];
  const list = make("dl", { class: "about" });
  for (const [name, value] of all) if (value) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const command = asked(edge);
  return make("div", {}, list, ...(command ? [make("p", { class: "ask" }, "Ask the agent: ", make("code", {}, command))] : []));
}

/** `namegate why` for this edge; nothing where a word would have to be quoted. */
export function asked(edge) {
  const from = edge.from.kind === "workload" && edge.direction === "egress" && edge.pod ? `${edge.from.namespace}/${edge.pod}` : undefined;
  const to = edge.to.kind === "name" ? edge.to.name : edge.address ?? undefined;
  const words = [from, to, ...(edge.port ? [String(edge.port)] : edge.protocol === "dns" ? ["443"] : [])];
  if (words.some((word) => word === undefined || !/^[\w.:/-]+$/.test(word))) return undefined;
  return `namegate why ${words.join(" ")}`;
}
