//! From what is told of a policy, and from what the nodes say, to its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::facts::{PolicyFact, Refused};
use super::object::{ACCEPTED, Condition, NodePolicy, PROGRAMMED, PolicyStatus};

/// How many nodes a message names.
const NODES_NAMED: usize = 3;

/// The longest message; the API server takes 32,768.
const MESSAGE_MAX: usize = 1_024;

/// What a node says of a policy.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word<'a> {
    /// This.
    Line(&'a NodePolicy),
    /// It reports, and not of this policy.
    Nothing,
    /// Nobody reports for it, or what was reported is of before its last start.
    Silence,
}

/// A condition without its time.
struct Finding {
    kind: &'static str,
    is_true: bool,
    reason: &'static str,
    message: String,
}

/// The status of a policy that selects so many pods on each of these nodes, which say this of it. The
/// present is `now`; a condition that is as it was keeps its time.
pub(super) fn judge(
    fact: &PolicyFact,
    nodes: &BTreeMap<Arc<str>, (u32, Word<'_>)>,
    now: &str,
) -> PolicyStatus {
    let pods: u32 = nodes.values().map(|(pods, _)| pods).sum();
    let findings = match &fact.refusal {
        Some(refused) => [not_accepted(refused), not_in_force(fact, nodes)],
        None => [accepted(), programmed(fact, pods, nodes)],
    };
    let condition = |finding: Finding| {
        let status = if finding.is_true { "True" } else { "False" };
        let before = fact.status.conditions.iter().find(|before| before.kind == finding.kind);
        let since = before.filter(|before| before.status == status);
        Condition {
            kind: finding.kind.to_owned(),
            status: status.to_owned(),
            observed_generation: fact.generation,
            last_transition_time: since
                .map_or_else(|| now.to_owned(), |since| since.last_transition_time.clone()),
            reason: finding.reason.to_owned(),
            message: cut(finding.message),
        }
    };
    PolicyStatus {
        conditions: findings.map(condition).into(),
        endpoints: Some(pods),
        nodes: Some(u32::try_from(nodes.len()).unwrap_or(u32::MAX)),
    }
}

fn accepted() -> Finding {
    let message = "every field is understood and supported".to_owned();
    Finding { kind: ACCEPTED, is_true: true, reason: "Accepted", message }
}

fn not_accepted(refused: &Refused) -> Finding {
    let message = refused.sentence();
    Finding { kind: ACCEPTED, is_true: false, reason: "Invalid", message }
}

/// What is in force of a policy that is refused.
fn not_in_force(fact: &PolicyFact, nodes: &BTreeMap<Arc<str>, (u32, Word<'_>)>) -> Finding {
    let (mut kept, mut closed) = (0, 0);
    for (_, word) in nodes.values() {
        if let Word::Line(line) = word
            && line.uid == *fact.uid
        {
            match line.generation {
                0 => closed += line.endpoints,
                _ => kept += line.endpoints,
            }
        }
    }
    let mut message = format!("generation {} is refused", fact.generation);
    if kept > 0 {
        message.push_str(&format!(
            "; an earlier generation stays in force for {}",
            plural(kept, "pod")
        ));
    }
    if closed > 0 {
        message.push_str(&format!("; {} closed", are(closed, "pod")));
    }
    Finding { kind: PROGRAMMED, is_true: false, reason: "NotAccepted", message }
}

fn programmed(
    fact: &PolicyFact,
    pods: u32,
    nodes: &BTreeMap<Arc<str>, (u32, Word<'_>)>,
) -> Finding {
    let behind: Vec<String> = nodes
        .iter()
        .filter_map(|(node, (_, word))| {
            let why = shortcoming(fact, *word)?;
            Some(format!("{node}: {why}"))
        })
        .collect();
    let finding = |is_true, reason, message| Finding { kind: PROGRAMMED, is_true, reason, message };
    if nodes.is_empty() {
        return finding(true, "NothingSelected", "it selects no pod that runs".to_owned());
    }
    let total = plural(nodes.len(), "node");
    if behind.is_empty() {
        let message = format!("in force for {} on {total}", plural(pods, "pod"));
        return finding(true, "Programmed", message);
    }
    let mut message = format!("not in force on {} of {total}: ", behind.len());
    message.push_str(&behind[..behind.len().min(NODES_NAMED)].join("; "));
    if behind.len() > NODES_NAMED {
        message.push_str(&format!("; and {} more", behind.len() - NODES_NAMED));
    }
    finding(false, "Pending", message)
}

/// What is missing on a node; `None` where the policy is in force for all its pods.
fn shortcoming(fact: &PolicyFact, word: Word<'_>) -> Option<String> {
    match word {
        Word::Silence => {
            Some("no agent reports from there; check that the DaemonSet's pod runs".to_owned())
        }
        Word::Line(line) if line.uid == *fact.uid && line.generation == fact.generation => {
            let waiting = || format!("{} waiting", are(line.pending, "pod"));
            match (&line.problem, line.pending) {
                (None, 0) => None,
                (Some(problem), 0 | 1) => Some(problem.clone()),
                (Some(problem), _) => Some(format!("{}, one of them: {problem}", waiting())),
                (None, _) => Some(waiting()),
            }
        }
        Word::Line(line) if line.uid == *fact.uid && line.generation > 0 => {
            Some(format!("generation {} is in force still", line.generation))
        }
        Word::Line(_) | Word::Nothing => Some("it was not told yet".to_owned()),
    }
}

fn plural(count: impl TryInto<u64>, what: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn are(count: u32, what: &str) -> String {
    format!("{} {}", plural(count, what), if count == 1 { "is" } else { "are" })
}

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX - 3).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn mk_fact(generation: i64) -> PolicyFact {
        PolicyFact {
            uid: "u".into(),
            generation,
            version: "7".to_owned(),
            refusal: None,
            status: PolicyStatus::default(),
        }
    }

    fn mk_line(generation: i64, endpoints: u32, pending: u32) -> NodePolicy {
        NodePolicy {
            kind: "EgressPolicy".to_owned(),
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            generation,
            endpoints,
            pending,
            problem: (pending > 0).then(|| "Pod shop/a: no interface".to_owned()),
        }
    }

    /// Status, reason and message of Programmed.
    fn programmed_of(fact: &PolicyFact, nodes: &[(&str, u32, Word<'_>)]) -> (String, String) {
        let nodes = nodes.iter().map(|(name, pods, word)| ((*name).into(), (*pods, *word)));
        let status = judge(fact, &nodes.collect(), NOW);
        let found = status.conditions.into_iter().find(|found| found.kind == PROGRAMMED).unwrap();
        assert_eq!(found.observed_generation, fact.generation);
        (format!("{} {}", found.status, found.reason), found.message)
    }

    #[test]
    fn programmed_says_where_a_policy_is_not_in_force() {
        let (old, new, half) = (mk_line(1, 2, 0), mk_line(2, 2, 0), mk_line(2, 1, 1));
        let mut other = mk_line(2, 1, 0);
        other.uid = "another".to_owned();
        let in_force = "True Programmed";
        for (nodes, expected, words) in [
            (&[][..], "True NothingSelected", "no pod"),
            (&[("a", 2, Word::Line(&new))], in_force, "in force for 2 pods on 1 node"),
            (&[("a", 2, Word::Line(&old))], "False Pending", "1 of 1 node: a: generation 1"),
            (&[("a", 2, Word::Line(&half))], "False Pending", "a: Pod shop/a: no interface"),
            (&[("a", 1, Word::Line(&other))], "False Pending", "a: it was not told yet"),
            (
                &[("a", 2, Word::Line(&new)), ("b", 1, Word::Nothing)],
                "False Pending",
                "1 of 2 nodes: b: it was not told yet",
            ),
            (&[("b", 1, Word::Silence)], "False Pending", "b: no agent reports from there"),
        ] {
            let (condition, message) = programmed_of(&mk_fact(2), nodes);
            assert_eq!(condition, expected, "{nodes:?}: {message}");
            assert!(message.contains(words), "{nodes:?}: {message}");
        }
    }

    #[test]
    fn a_refused_policy_says_why_and_what_is_in_force_instead() {
        let refused = |keeps_last_good, is_closed| PolicyFact {
            refusal: Some(Arc::new(Refused {
                why: "spec.egress[0]: no".to_owned(),
                keeps_last_good,
                is_closed,
            })),
            ..mk_fact(3)
        };
        let (kept, closed) = (mk_line(2, 4, 0), mk_line(0, 1, 0));
        for (fact, line, accepted, programmed) in [
            (refused(true, false), &kept, "the last good version stays", "in force for 4 pods"),
            (refused(false, true), &closed, "what it selects is closed", "1 pod is closed"),
        ] {
            let nodes = BTreeMap::from([("a".into(), (1, Word::Line(line)))]);
            let status = judge(&fact, &nodes, NOW);
            let [first, second] = &status.conditions[..] else { panic!("{status:?}") };
            assert_eq!((&*first.status, &*first.reason), ("False", "Invalid"));
            assert!(first.message.starts_with("spec.egress[0]: no"), "{}", first.message);
            assert!(first.message.contains(accepted), "{}", first.message);
            assert_eq!((&*second.status, &*second.reason), ("False", "NotAccepted"));
            assert!(second.message.contains(programmed), "{}", second.message);
        }
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let line = mk_line(1, 1, 0);
        let nodes = BTreeMap::from([("a".into(), (1, Word::Line(&line)))]);
        let mut fact = mk_fact(1);
        fact.status = judge(&fact, &nodes, NOW);
        assert_eq!(judge(&fact, &nodes, "later"), fact.status, "nothing to write");
        let status = judge(&fact, &BTreeMap::from([("a".into(), (1, Word::Silence))]), "later");
        let times: Vec<&str> =
            status.conditions.iter().map(|found| &*found.last_transition_time).collect();
        assert_eq!(times, [NOW, "later"]);
    }

    #[test]
    fn messages_have_an_end() {
        let names: Vec<Arc<str>> = (0..9).map(|n| format!("{n}").into()).collect();
        let nodes = names.iter().map(|name| (Arc::clone(name), (1, Word::Nothing))).collect();
        let status = judge(&mk_fact(1), &nodes, NOW);
        let message = &status.conditions[1].message;
        assert!(message.ends_with("; and 6 more"), "{message}");
        assert!((MESSAGE_MAX - 1..=MESSAGE_MAX).contains(&cut("ä".repeat(2_000)).len()));
    }
}
