// How the node is: what `namegate status` says.

import { at, make, say } from "./dom.js";
import { counted, number, plain, span } from "./words.js";

/** Shows a report of `/v1/node`. */
export function show(report) {
  say(at("node"), plain(report.node));
  document.title = `${plain(report.node)} – Namegate service map`;
  const { status } = report;
  if (!status) {
    mark("unknown", "No word on the node's health", plain(report.trouble ?? ""));
    return;
  }
  const errors = status.findings.filter((finding) => finding.severity === "error").length;
  const warnings = status.findings.length - errors;
  const pods = status.endpoints.enforced ?? 0;
  const line = `${counted(pods, "pod")} under enforcement, ${counted(status.policies, "policy", "policies")}, up ${span(status.uptime_s)}`;
  if (errors) mark("bad", `${counted(errors, "thing")} wrong`, line);
  else if (warnings) mark("odd", `Working, with ${counted(warnings, "warning")}`, line);
  else mark("good", `Healthy, ${plain(status.phase)}`, line);
  at("findings").replaceChildren(...status.findings.map(finding));
  at("facts").replaceChildren(...facts(status));
}

function mark(state, word, line) {
  at("health-mark").dataset.mark = state;
  say(at("health-word"), word);
  say(at("health-line"), line);
}

function finding({ severity, what, fix }) {
  return make("li", { "data-severity": severity },
    make("strong", {}, severity === "error" ? "Wrong: " : "Odd: "), plain(what),
    make("span", { class: "fix" }, ` What to do: ${plain(fix)}.`));
}

function facts(status) {
  const [flows, room] = status.flows;
  const all = [
    ["Pods", words(status.endpoints)],
    ["Policies", number(status.policies)],
    ["Identities", number(status.identities)],
    ["Lookups", words(status.lookups)],
    ["Packets", words(status.packets)],
    ["Learned addresses", number(status.learned)],
    ["Live flows", room ? `${number(flows)} of ${number(room)}` : number(flows)],
    ["Resolvers", status.resolvers.map(plain).join(", ") || "none"],
    ["Lost records", words(status.lost)],
    ["Version", plain(status.version)],
  ];
  return all.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}

function words(counts) {
  const all = Object.entries(counts).map(([word, count]) => `${number(count)} ${plain(word)}`);
  return all.join(", ") || "none";
}
