// What the agent's words mean, for people.

export const VERDICTS = ["allowed", "denied", "audit", "error"];

export const OUTCOME = {
  allowed: "allowed",
  denied: "denied",
  audit: "audit only",
  error: "failed",
};

/** A sign for each outcome, so that colour is never alone. */
export const SIGN = { allowed: "✓", denied: "✕", audit: "!", error: "?" };

const REASONS = {
  "rule": "a rule allows it",
  "judged": "a rule allows it",
  "known-flow": "part of a known flow",
  "no-rule-needed": "no rule needed",
  "no-rule": "no rule allows it",
  "denied": "a rule denies it",
  "revoked": "the policy changed: it was allowed before",
  "new-names": "too many new names below a wildcard",
  "no-endpoint": "the interface belongs to no known pod",
  "no-table": "the pod has no policy in force yet",
  "missing-row": "a row of the policy is missing in the kernel",
  "conntrack-full": "the flow table is full",
  "conntrack-quota": "the pod holds as many flows as it may",
  "spoofed": "a source address that is not the pod's",
  "no-flow": "answers a flow that nobody opened",
  "tcp-flags": "TCP flags that no stack sends",
  "icmp-unrelated": "an ICMP error about no known flow",
  "icmp-type": "an ICMP type that is not judged",
  "protocol": "a protocol that is not judged",
  "truncated": "a packet that is cut short",
  "malformed": "headers that contradict each other",
  "ethertype": "neither IPv4 nor IPv6",
  "vlan": "a VLAN tag",
  "ip-options": "IPv4 options",
  "extension-header": "an IPv6 header that hides what follows",
  "fragment-tiny": "a first fragment that is too small",
  "fragment-unknown": "a fragment of no known datagram",
  "fragment-dns": "a lookup in fragments",
  "fragments-full": "too many datagrams in fragments",
  "fragment-hairpin": "fragments through a service to itself",
  "proxy-address": "the DNS proxy's own address",
  "no-proxy": "the DNS proxy is not there",
  "mapped-address": "a v4-mapped IPv6 address",
  "router-message": "a router message from a pod",
  "rewrite-failed": "the packet could not be rewritten",
  "not-addressed": "for an address that is not the pod's",
  "service-clash": "its ports are in use towards the backend",
  "service-no-backend": "the service has no backend",
  "service-protocol": "the service's port cannot be translated",
  "addresses-incomplete": "not every address could be written",
  "upstream-timeout": "the resolver did not answer in time",
  "upstream-unreachable": "the resolver cannot be reached",
  "overloaded": "too many lookups under way",
  "malformed-answer": "the resolver's answer cannot be read",
  "truncated-answer": "the answer could not be had whole",
  "learner-full": "no room for more addresses",
  "learner-failed": "the addresses could not be written",
  "stale": "the pod or its policy changed meanwhile",
  "internal": "the proxy could not go on",
};

/** Why, in a few words. */
export function reason(edge) {
  // A policy that isolates denies as a whole: no rule of it does.
  const isUnnamed = edge.reason === "no-rule" || (edge.reason === "denied" && edge.policy && !edge.policy.includes(" rule "));
  if (isUnnamed && edge.protocol === "dns") return "no rule names it";
  if (isUnnamed) return edge.direction === "ingress" ? "no ingress rule allows it" : "no rule allows it";
  return REASONS[edge.reason] ?? plain(edge.reason);
}

/** The word for a reason in a list of reasons. */
export function reasonWord(word) {
  return REASONS[word] ?? plain(word);
}

/** Text from outside, with what would not be seen or would turn the line around made visible. */
export function plain(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

const NUMBER = new Intl.NumberFormat("en");

export function number(value) {
  return NUMBER.format(value);
}

/** "1 talk", "2 talks". */
export function counted(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

/** How long ago, coarsely. */
export function ago(then, now) {
  const seconds = Math.max(0, Math.round((now - then) / 1000));
  if (seconds < 2) return "now";
  return `${span(seconds)} ago`;
}

export function span(seconds) {
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** "443/tcp", "lookup". */
export function port(edge) {
  if (edge.protocol === "dns") return "lookup";
  const protocol = plain(edge.protocol);
  return edge.port ? `${edge.port}/${protocol}` : protocol;
}
