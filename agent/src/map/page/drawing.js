// The drawing: two trees of real elements, and curves between them on a canvas that is as large as
// what is seen of it. Edges that would lie on each other are one strand.

import { arrange, at, make, say } from "./dom.js";
import { label, strands } from "./model.js";
import { counted, number, OUTCOME, plain, reason, SIGN, VERDICTS } from "./words.js";

const DASH = { allowed: [], denied: [7, 5], audit: [1, 6], error: [10, 4, 2, 4] };

/** So many strands, and labels would cover more than they tell. */
const LABELS_MAX = 14;

/** Squares that stand for the rows of a folded group at most. */
const DOTS_MAX = 400;

export class Drawing {
  #stage = at("stage");
  #canvas = at("curves");
  #pens = {};
  #elements = new Map();
  #strands = [];
  #curves = [];
  #pointed = undefined;
  #waits = false;
  #chosen = { from: undefined, to: undefined };
  #hooks;
  #now = 0;

  /** `hooks` are told what somebody chooses, folds and points at. */
  constructor(hooks) {
    this.#hooks = hooks;
    for (const side of ["who", "whom"]) {
      const tree = at(side);
      tree.addEventListener("keydown", (event) => this.#key(event, side));
      tree.addEventListener("click", (event) => this.#click(event));
      tree.addEventListener("focusin", (event) => this.#point(nodeOf(event.target)));
      tree.addEventListener("focusout", () => this.#point(undefined));
    }
    this.#stage.addEventListener("pointermove", (event) => this.#move(event));
    this.#stage.addEventListener("pointerleave", () => this.#point(undefined));
    this.#stage.addEventListener("click", (event) => this.#clickCurve(event));
    this.#stage.addEventListener("scroll", () => this.redraw(), { passive: true });
    new ResizeObserver(() => this.redraw()).observe(this.#stage);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.#fetchPens());
    this.#fetchPens();
  }

  /** Shows these edges between these groups; `chosen` are the ends that the table is narrowed to. */
  show(edges, groups, chosen, now) {
    this.#chosen = chosen;
    this.#now = now;
    this.#tree("who", groups.who);
    this.#tree("whom", groups.whom);
    this.#strands = strands(edges, groups);
    this.#settle();
    this.redraw();
  }

  /** A column that is shorter than what is seen stays in view while the other one scrolls. */
  #settle() {
    const heights = ["who", "whom"].map((side) => at(side).offsetHeight);
    const room = this.#stage.clientHeight;
    const isLong = Math.max(...heights) > room;
    this.#stage.classList.toggle("is-long", isLong);
    ["who", "whom"].forEach((side, place) => at(side).classList.toggle("is-short", heights[place] <= room));
  }

  /** Draws once more before the next picture is shown. */
  redraw() {
    if (this.#waits) return;
    this.#waits = true;
    requestAnimationFrame(() => {
      this.#waits = false;
      this.#draw();
    });
  }

  /** How many rows, groups and strands there are: for tests. */
  get size() {
    return { elements: this.#elements.size, strands: this.#strands.length, curves: this.#curves.length };
  }

  #fetchPens() {
    const style = getComputedStyle(document.documentElement);
    this.#pens = Object.fromEntries([...VERDICTS, "surface", "ink", "line"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.redraw();
  }

  // Trees.

  #tree(side, groups) {
    const tree = at(side);
    const lines = [];
    for (const group of groups) {
      lines.push(this.#group(side, group));
      if (!group.isFolded) for (const row of group.rows) lines.push(this.#row(side, group, row));
    }
    const kept = new Set(lines.map((line) => line.dataset.id));
    for (const [id, line] of this.#elements) {
      if (line.dataset.side === side && !kept.has(id)) this.#elements.delete(id);
    }
    const hadFocus = tree.contains(document.activeElement);
    const focused = document.activeElement;
    arrange(tree, lines);
    if (hadFocus && document.activeElement !== focused) {
      if (lines.includes(focused)) focused.focus({ preventScroll: true });
      else lines[0]?.focus({ preventScroll: true });
    }
    if (!lines.some((line) => line.tabIndex === 0) && lines[0]) lines[0].tabIndex = 0;
  }

  #line(id, side, level) {
    let line = this.#elements.get(id);
    if (!line) {
      line = make("div", { role: "treeitem", tabindex: "-1", "aria-level": String(level), "data-id": id, "data-side": side });
      line.parts = { name: make("bdi", { class: "name" }), more: make("span", { class: "side" }), badge: make("span", { class: "badge" }) };
      line.append(line.parts.name, line.parts.more, line.parts.badge);
      this.#elements.set(id, line);
    }
    return line;
  }

  #group(side, group) {
    const line = this.#line(group.key, side, 1);
    line.className = "group";
    line.dataset.kind = group.kind;
    line.setAttribute("aria-expanded", String(!group.isFolded));
    say(line.parts.name, group.title);
    say(line.parts.more, group.isFolded || group.rows.length > 3 ? number(group.rows.length) : "");
    badge(line, group.counts);
    line.setAttribute("aria-label", `${groupWord(group)} ${group.title}, ${counted(group.rows.length, "row")}, ${tallied(group)}`);
    dots(line, group);
    return line;
  }

  #row(side, group, row) {
    const line = this.#line(`${group.key}|${row.id}`, side, 2);
    line.className = "row";
    line.party = row.party;
    line.partyKey = row.id;
    const chosen = side === "who" ? this.#chosen.from : this.#chosen.to;
    line.setAttribute("aria-selected", String(chosen === row.id));
    say(line.parts.name, plain(row.party.name));
    const isOpen = row.isGoverned === false;
    const more = side === "who"
      ? [row.pods > 1 ? `×${row.pods}` : "", isOpen ? "no policy" : row.talks ? "" : "quiet"]
      : [[...row.ports].slice(0, 2).join(" ") + (row.ports.size > 2 ? " …" : "")];
    say(line.parts.more, more.filter(Boolean).join(" "));
    badge(line, row.counts);
    line.classList.toggle("quiet", row.talks === 0);
    line.setAttribute("aria-label", `${label(row.party)}${row.pods > 1 ? `, ${row.pods} pods` : ""}, ${tallied(row)}${isOpen ? ", no policy selects it" : ""}`);
    line.title = label(row.party);
    return line;
  }

  #click(event) {
    const dot = event.target.closest("i[data-key]");
    const line = nodeOf(event.target);
    if (!line) return;
    event.stopPropagation();
    this.#rove(line);
    if (dot) this.#hooks.choose(line.dataset.side, dot.dataset.key);
    else if (line.classList.contains("group")) this.#hooks.fold(line.dataset.id, line.getAttribute("aria-expanded") === "true");
    else this.#hooks.choose(line.dataset.side, line.partyKey);
  }

  #key(event, side) {
    const line = nodeOf(event.target);
    if (!line || event.altKey || event.ctrlKey || event.metaKey) return;
    const lines = [...at(side).children];
    const here = lines.indexOf(line);
    const isGroup = line.classList.contains("group");
    const isOpen = line.getAttribute("aria-expanded") === "true";
    const isInward = event.key === (side === "who" ? "ArrowRight" : "ArrowLeft");
    if (event.key === "ArrowDown") this.#rove(lines[here + 1], true);
    else if (event.key === "ArrowUp") this.#rove(lines[here - 1], true);
    else if (event.key === "Home") this.#rove(lines[0], true);
    else if (event.key === "End") this.#rove(lines.at(-1), true);
    else if (event.key === "ArrowRight" && isGroup && !isOpen) this.#hooks.fold(line.dataset.id, false);
    else if (event.key === "ArrowLeft" && isGroup && isOpen) this.#hooks.fold(line.dataset.id, true);
    else if (event.key === "ArrowLeft" && !isGroup && side === "who") this.#rove(lines.slice(0, here).findLast((other) => other.classList.contains("group")), true);
    else if (isInward) this.#rove(this.#across(line), true);
    else if (event.key === "Enter" || event.key === " ") {
      if (isGroup) this.#hooks.fold(line.dataset.id, isOpen);
      else this.#hooks.choose(side, line.partyKey);
    } else return;
    event.preventDefault();
  }

  /** The first of what a line is joined to on the other side. */
  #across(line) {
    const strand = this.#strands.find(({ from, to }) => from === line.dataset.id || to === line.dataset.id);
    if (!strand) return undefined;
    return this.#elements.get(strand.from === line.dataset.id ? strand.to : strand.from);
  }

  #rove(line, focuses) {
    if (!line) return;
    for (const other of line.parentElement.children) other.tabIndex = other === line ? 0 : -1;
    if (focuses) line.focus();
  }

  // Curves.

  #draw() {
    const view = this.#stage.getBoundingClientRect();
    const [width, height] = [this.#stage.clientWidth, this.#stage.clientHeight];
    const scale = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale) || this.#canvas.height !== Math.round(height * scale)) {
      this.#canvas.width = Math.round(width * scale);
      this.#canvas.height = Math.round(height * scale);
      this.#canvas.style.width = `${width}px`;
      this.#canvas.style.height = `${height}px`;
      this.#canvas.style.marginBottom = `${-height}px`;
    }
    const context = this.#canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    this.#curves = this.#laid(view, height);
    const lit = this.#lit();
    for (const curve of this.#curves) {
      const isLit = lit ? lit.has(curve.strand) : undefined;
      this.#stroke(context, curve, isLit, this.#curves.length);
    }
    const shown = lit ? this.#curves.filter((curve) => lit.has(curve.strand)) : this.#curves;
    this.#label(context, shown, Boolean(lit));
    const near = lit && new Set([...lit].flatMap((strand) => [strand.from, strand.to]));
    for (const [id, line] of this.#elements) {
      line.classList.toggle("far", Boolean(near) && !near.has(id) && this.#pointed?.line !== line);
    }
  }

  #laid(view, height) {
    const places = new Map();
    const place = (id, isLeft) => {
      let found = places.get(id);
      if (!found) {
        const box = this.#elements.get(id)?.getBoundingClientRect();
        if (!box) return undefined;
        found = { x: (isLeft ? box.right : box.left) - view.left, y: box.top + box.height / 2 - view.top };
        places.set(id, found);
      }
      return found;
    };
    const curves = [];
    const beside = new Map();
    for (const strand of this.#strands) {
      const [from, to] = [place(strand.from, true), place(strand.to, false)];
      // A line of which neither end is in view tells nothing, and there may be thousands.
      const isSeen = (end) => end && end.y >= 0 && end.y <= height;
      if (!from || !to || !(isSeen(from) || isSeen(to))) continue;
      // Outcomes of one pair run beside each other.
      const pair = `${strand.from}\n${strand.to}`;
      const lane = beside.get(pair) ?? 0;
      beside.set(pair, lane + 1);
      const shift = lane * 7;
      curves.push({ strand, x1: from.x, y1: from.y + shift / 2, x2: to.x, y2: to.y + shift / 2, shift });
    }
    return curves;
  }

  #stroke(context, { strand, x1, y1, x2, y2, shift }, isLit, among) {
    const isFresh = this.#now - strand.last < 60_000;
    // Many lines are thin and faint, and refusals among them less so.
    const crowd = Math.min(1, (strand.verdict === "allowed" ? 6 : 14) / Math.sqrt(among));
    const plainly = crowd * (isFresh ? 0.9 : strand.verdict === "allowed" ? 0.5 : 0.75);
    context.globalAlpha = isLit === undefined ? plainly : isLit ? 1 : 0.08;
    context.strokeStyle = this.#pens[strand.verdict];
    context.lineWidth = Math.min(4.5, 1.5 + Math.log10(strand.count) * 0.7) * Math.max(0.35, Math.min(1, 8 / Math.sqrt(among)));
    context.setLineDash(DASH[strand.verdict]);
    context.lineCap = strand.verdict === "audit" ? "round" : "butt";
    context.beginPath();
    context.moveTo(x1, y1);
    const bend = (x2 - x1) * 0.5;
    context.bezierCurveTo(x1 + bend, y1 + shift, x2 - bend, y2 + shift, x2, y2);
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /** Says on the strand why, where there is room: of refusals, and of whatever is pointed at. */
  #label(context, curves, isLit) {
    const told = curves.filter(({ strand }) => isLit || strand.verdict !== "allowed");
    const boxes = [];
    const isRoomy = this.#canvas.clientWidth > 640;
    const says = told.length <= LABELS_MAX;
    // On a narrow stage the badges say it.
    if (!isRoomy) return;
    context.font = "500 11.5px Inter, system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const curve of told) {
      const { strand } = curve;
      if (strand.verdict === "allowed" && !says) continue;
      if (told.length > 24) continue;
      const text = says ? `${SIGN[strand.verdict]} ${shortly(strand)}` : SIGN[strand.verdict];
      const width = context.measureText(text).width + 12;
      const box = [0.76, 0.66, 0.56, 0.46, 0.36, 0.26]
        .map((t) => boxAt(curve, t, width))
        .find((candidate) => !boxes.some((other) => overlaps(candidate, other)));
      if (!box) continue;
      boxes.push(box);
      context.fillStyle = this.#pens.surface;
      context.strokeStyle = this.#pens[strand.verdict];
      context.lineWidth = 1;
      context.beginPath();
      context.roundRect(box.x, box.y, box.width, box.height, 9);
      context.fill();
      context.stroke();
      context.fillStyle = this.#pens[strand.verdict];
      context.fillText(text, box.x + 6, box.y + box.height / 2 + 0.5);
    }
  }

  // Pointing.

  /** The strands to be seen while the others stand back; nothing where nobody points or chose. */
  #lit() {
    const pointed = this.#pointed;
    if (pointed?.curve) return new Set(this.#strands.filter((strand) => strand.id === pointed.curve));
    if (pointed?.line) {
      const id = pointed.line.dataset.id;
      const joined = this.#strands.filter(({ from, to }) => from === id || to === id);
      return joined.length ? new Set(joined) : undefined;
    }
    const { from, to } = this.#chosen;
    if (!from && !to) return undefined;
    const isChosen = (edge) => (!from || edge.fromKey === from) && (!to || edge.toKey === to);
    return new Set(this.#strands.filter((strand) => strand.edges.some(isChosen)));
  }

  #point(line, curve) {
    if (this.#pointed?.line === line && this.#pointed?.curve === curve) return;
    this.#pointed = line || curve ? { line, curve } : undefined;
    const lit = this.#pointed && this.#lit();
    this.#hooks.point(lit ? [...lit].flatMap((strand) => strand.edges) : undefined, line);
    this.redraw();
  }

  #move(event) {
    const line = nodeOf(event.target);
    if (line) return this.#point(line);
    const curve = this.#curveAt(event);
    this.#stage.classList.toggle("at-curve", Boolean(curve));
    this.#point(undefined, curve?.strand.id);
  }

  #clickCurve(event) {
    const curve = this.#curveAt(event);
    const edge = curve?.strand.edges[0];
    if (edge && curve.strand.edges.every((other) => other.fromKey === edge.fromKey && other.toKey === edge.toKey)) {
      this.#hooks.choosePair(edge.fromKey, edge.toKey);
    }
  }

  #curveAt(event) {
    const view = this.#stage.getBoundingClientRect();
    const [x, y] = [event.clientX - view.left, event.clientY - view.top];
    let best;
    let distance = 7;
    for (const curve of this.#curves) {
      if (x < curve.x1 || x > curve.x2) continue;
      const near = nearness(curve, x, y);
      if (near < distance) [best, distance] = [curve, near];
    }
    return best;
  }
}

function nodeOf(target) {
  return target.closest?.("[role=treeitem]") ?? undefined;
}

function groupWord(group) {
  return group.kind === "namespace" ? "namespace" : "group";
}

function tallied(of) {
  if (!of.talks) return "no talks yet";
  const told = VERDICTS.filter((verdict) => of.counts[verdict]).map((verdict) => `${number(of.counts[verdict])} ${OUTCOME[verdict]}`);
  return `${counted(of.talks, "talk")}: ${told.join(", ")}`;
}

function badge(line, counts) {
  const worst = ["denied", "error", "audit"].find((verdict) => counts[verdict]);
  say(line.parts.badge, worst ? `${SIGN[worst]} ${number(counts[worst])}` : "");
  line.parts.badge.dataset.verdict = worst ?? "";
}

/** A folded group shows each of its rows as a square. */
function dots(line, group) {
  if (!group.isFolded) {
    line.parts.dots?.remove();
    line.parts.dots = undefined;
    return;
  }
  if (!line.parts.dots) {
    line.parts.dots = make("span", { class: "dots", "aria-hidden": "true" });
    line.parts.badge.before(line.parts.dots);
  }
  const squares = line.parts.dots.children;
  const rows = group.rows.slice(0, DOTS_MAX);
  while (squares.length > rows.length) squares[squares.length - 1].remove();
  rows.forEach((row, place) => {
    const square = squares[place] ?? line.parts.dots.appendChild(make("i"));
    const worst = ["denied", "error", "audit", "allowed"].find((verdict) => row.counts[verdict]) ?? "quiet";
    if (square.dataset.verdict !== worst) square.dataset.verdict = worst;
    if (square.dataset.key !== row.id) {
      square.dataset.key = row.id;
      square.title = label(row.party);
    }
  });
}

function shortly(strand) {
  // What is allowed is allowed by somebody.
  const rule = (edge) => (edge.verdict === "allowed" && edge.policy ? plain(edge.policy.match(/rule .*$/)?.[0] ?? edge.policy) : reason(edge));
  const reasons = new Set(strand.edges.map(rule));
  const [first] = reasons;
  return reasons.size > 1 ? `${first} +${reasons.size - 1}` : first;
}

function pointAt({ x1, y1, x2, y2, shift }, t) {
  const [u, bend] = [1 - t, (x2 - x1) * 0.5];
  const mix = (a, b, c, d) => u * u * u * a + 3 * u * u * t * b + 3 * u * t * t * c + t * t * t * d;
  return [mix(x1, x1 + bend, x2 - bend, x2), mix(y1, y1 + shift, y2 + shift, y2)];
}

function boxAt(curve, t, width) {
  const [x, y] = pointAt(curve, t);
  const left = Math.max(curve.x1 + 6, Math.min(x - width / 2, curve.x2 - width - 8));
  return { x: left, y: y - 9, width, height: 18 };
}

function overlaps(a, b) {
  return a.x < b.x + b.width + 2 && b.x < a.x + a.width + 2 && a.y < b.y + b.height + 2 && b.y < a.y + a.height + 2;
}

function nearness(curve, x, y) {
  let near = Infinity;
  for (let step = 0; step <= 24; step += 1) {
    const [px, py] = pointAt(curve, step / 24);
    near = Math.min(near, Math.hypot(px - x, py - y));
  }
  return near;
}
