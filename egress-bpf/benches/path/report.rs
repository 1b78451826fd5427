//! The tables, and the aims beside what came out.

use std::collections::BTreeMap;

use crate::stack::Kind;
use crate::verdict::Cost;
use crate::world::Size;

/// What a series of rounds is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Packet(Kind),
    /// Connections a second beside so many names.
    Connections {
        kind: Kind,
        names: u32,
        writes: bool,
    },
    SameFlow(Size),
    SameFlowV6(Size),
    FirstPacket(Size),
}

/// The rounds of each series.
#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<Row, Vec<f64>>,
}

/// A figure that there is an aim for.
struct Aim {
    what: String,
    at_most: bool,
    aim: f64,
    found: f64,
}

impl Report {
    pub(crate) fn add(&mut self, row: Row, value: f64) {
        self.rows.entry(row).or_default().push(value);
    }

    pub(crate) fn verdict(&mut self, size: Size, cost: &Cost) {
        self.add(Row::SameFlow(size), cost.same_flow);
        self.add(Row::SameFlowV6(size), cost.same_flow_v6);
        self.add(Row::FirstPacket(size), cost.first_packet);
    }

    pub(crate) fn print(&self, json: bool) {
        for (row, values) in &self.rows {
            let (name, unit) = (row.name(), row.unit());
            let (middle, least, most) = (median(values), least(values), -least(&negative(values)));
            if json {
                println!(
                    "{{\"figure\":\"{name}\",\"unit\":\"{unit}\",\"median\":{middle:.1},\
                     \"least\":{least:.1},\"most\":{most:.1},\"rounds\":{}}}",
                    values.len()
                );
            } else {
                println!("{name:<64} {middle:>10.1} {unit:<14} ({least:.1} to {most:.1})");
            }
        }
        for Aim { what, at_most, aim, found } in self.aims() {
            let is_met = if at_most { found <= aim } else { found >= aim };
            if json {
                println!(
                    "{{\"aim\":\"{what}\",\"{}\":{aim},\"found\":{found:.2},\"met\":{is_met}}}",
                    if at_most { "at_most" } else { "at_least" }
                );
            } else {
                let (limit, verdict) = (
                    if at_most { "at most" } else { "at least" },
                    if is_met { "" } else { "MISSED" },
                );
                println!("{what:<64} {found:>10.2} {limit} {aim} {verdict}");
            }
        }
    }

    fn aims(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        let mut aim = |what: String, at_most, aim, found: Option<f64>| {
            aims.extend(found.map(|found| Aim { what, at_most, aim, found }));
        };
        let of = |row| self.rows.get(&row).map(|values| median(values));
        let added = |kind| Some(of(Row::Packet(kind))? - of(Row::Packet(Kind::Nothing))?);
        let own = added(Kind::Namegate);
        for (other, limit) in
            [(Kind::EmptyTcx, 2.5), (Kind::NftSet, 0.65), (Kind::NftSetConntrack, 0.3)]
        {
            let ratio = own.zip(added(other)).map(|(own, other)| own / other);
            aim(
                format!("time added to a packet, over that of: {}", other.name()),
                true,
                limit,
                ratio,
            );
        }
        for row in self.rows.keys().copied() {
            if let Row::Connections { kind: Kind::Namegate, names, .. } = row {
                let bare = of(Row::Connections { kind: Kind::Nothing, names, writes: false });
                let ratio = of(row).zip(bare).map(|(own, bare)| own / bare);
                aim(format!("{}, over no firewall", row.name()), false, 0.97, ratio);
            }
        }
        for row in self.rows.keys().copied() {
            match row {
                Row::SameFlow(_) | Row::SameFlowV6(_) => aim(row.name(), true, 35.0, of(row)),
                Row::FirstPacket(size) => {
                    let limit = match size.names {
                        ..=1_000 => 110.0,
                        1_001..=100_000 => 330.0,
                        100_001.. => 480.0,
                    };
                    aim(row.name(), true, limit, of(row));
                }
                Row::Packet(_) | Row::Connections { .. } => {}
            }
        }
        let same = |names| of(Row::SameFlow(Size::of_names(names)));
        let growth = same(900_000).zip(same(10)).map(|(most, least)| most - least);
        aim("same flow, growth from 10 to 900,000 names, ns".into(), true, 40.0, growth);
        let many = self.rows.keys().find_map(|row| match row {
            Row::SameFlow(size) if size.pods > 1 => of(*row),
            Row::SameFlow(_)
            | Row::SameFlowV6(_)
            | Row::FirstPacket(_)
            | Row::Packet(_)
            | Row::Connections { .. } => None,
        });
        let growth = many.zip(same(1_000)).map(|(many, one)| many - one);
        aim("same flow, growth with policies, identities, pods, ns".into(), true, 15.0, growth);
        aims
    }
}

impl Row {
    fn name(self) -> String {
        match self {
            Self::Packet(kind) => format!("packet of a known flow: {}", kind.name()),
            Self::Connections { kind, names, writes } => {
                let busy = if writes { ", 5,000 writes a second" } else { "" };
                format!("connections beside {names} names{busy}: {}", kind.name())
            }
            Self::SameFlow(size) => format!("same flow: {}", size.name()),
            Self::SameFlowV6(size) => format!("same flow, IPv6: {}", size.name()),
            Self::FirstPacket(size) => format!("first packet: {}", size.name()),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Connections { .. } => "a CPU second",
            Self::Packet(_) => "ns",
            Self::SameFlow(_) | Self::SameFlowV6(_) | Self::FirstPacket(_) => "ns over empty",
        }
    }
}

impl Size {
    fn name(self) -> String {
        let Self { names, policies, identities, pods } = self;
        if pods == 1 {
            return format!("{names} names");
        }
        format!("{names} names, {policies} policies, {identities} identities, {pods} pods")
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn negative(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| -value).collect()
}
