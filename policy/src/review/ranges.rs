//! Prefixes: what they open beside what was meant.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{Code, Finding, Part, Place, Report, Review, listed};
use crate::rule::{Action, CidrPeer, CidrReach, Direction, Peer, Policy, Rule};

/// Where clouds answer for a machine's credentials.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let mut report = Report { policy, findings };
    for rule in &policy.rules {
        for peer in listed(rule) {
            if let Peer::Cidr(cidr) = peer {
                exceptions(&mut report, rule, cidr);
                mapped(&mut report, rule, cidr);
                if rule.action == Action::Allow {
                    opened(review, &mut report, rule, cidr);
                }
            }
        }
    }
}

fn place(rule: &Rule, cidr: &CidrPeer) -> Place {
    Place::of(&rule.label, Part::Net(cidr.net))
}

fn opened(review: &Review<'_>, report: &mut Report<'_>, rule: &Rule, cidr: &CidrPeer) {
    let is_egress = rule.direction == Direction::Egress;
    if cidr.net.prefix_len() == 0 && cidr.except.is_empty() && cidr.reach == CidrReach::All {
        let (message, advice) = if is_egress {
            (
                format!(
                    "{} is every address: pods, nodes and the metadata address 169.254.169.254 too",
                    cidr.net
                ),
                "name what is meant by fqdn or a narrower prefix, or cut out the cluster's ranges and \
                 169.254.0.0/16 with except",
            )
        } else {
            (
                format!("{} is every address, those outside the cluster too", cidr.net),
                "leave `from` out if everybody is meant: that says so, for both families",
            )
        };
        report.say(Code::CidrAny, place(rule, cidr), message, advice);
        return;
    }
    if is_egress && cidr.contains(METADATA) {
        report.say(
            Code::CidrMetadata,
            place(rule, cidr),
            format!("{} holds the metadata address 169.254.169.254", cidr.net),
            if cidr.net.prefix_len() < 16 {
                "add `except: [169.254.0.0/16]`, unless the pods are to have the machine's credentials"
            } else {
                "narrow it, unless the pods are to have the machine's credentials"
            },
        );
    }
    if cidr.reach == CidrReach::All && !is_egress && cidr.net.prefix_len() == 0 {
        return;
    }
    let overlap = review.pod_ranges.iter().find(|range| overlaps(cidr, range));
    if let Some(range) = overlap.filter(|_| cidr.reach == CidrReach::All) {
        report.say(
            Code::CidrOverlapsPods,
            place(rule, cidr),
            format!("{} overlaps {range}, where pods have their addresses", cidr.net),
            "cut the pods' range out with except, and select pods by labels: their addresses change",
        );
    }
}

fn overlaps(cidr: &CidrPeer, range: &IpNet) -> bool {
    let touches = cidr.net.contains(range) || range.contains(&cidr.net);
    touches && !cidr.except.iter().any(|except| except.contains(range))
}

/// RFC 4291 section 2.5.5.2.
fn mapped(report: &mut Report<'_>, rule: &Rule, cidr: &CidrPeer) {
    let IpNet::V6(net) = cidr.net else { return };
    let Some(inner) = net.addr().to_ipv4_mapped().filter(|_| net.prefix_len() >= 96) else {
        return;
    };
    report.say(
        Code::CidrMapped,
        place(rule, cidr),
        format!("{net} stands for IPv4 addresses, and no IPv6 packet carries one"),
        &format!("write {inner}/{}", net.prefix_len() - 96),
    );
}

/// NP-12.
fn exceptions(report: &mut Report<'_>, rule: &Rule, cidr: &CidrPeer) {
    for (index, except) in cidr.except.iter().enumerate() {
        let mut others = cidr.except.iter().enumerate();
        let holder = others.find(|(at, other)| {
            *at != index && other.contains(except) && (*other != except || *at < index)
        });
        if let Some((_, other)) = holder {
            report.say(
                Code::ExceptIdle,
                Place::of(&rule.label, Part::NetExcept(*except)),
                format!("{except} is already cut out by {other}"),
                "remove it",
            );
        }
    }
    let halves = cidr.net.subnets(cidr.net.prefix_len().saturating_add(1));
    let mut halves = halves.into_iter().flatten();
    if !cidr.except.is_empty() && halves.all(|half| cidr.except.contains(&half)) {
        report.say(
            Code::ExceptEverything,
            place(rule, cidr),
            format!("the exceptions leave nothing of {}", cidr.net),
            "remove the peer, or an exception",
        );
    }
}
