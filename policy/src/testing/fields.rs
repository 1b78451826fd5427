//! The words of the small town, and the fields that several dialects share.

use serde_json::{Map, Value, json};

use super::dice::Dice;

pub(super) const NAMESPACES: [&str; 3] = ["default", "shop", "data"];
pub(super) const TEAMS: [&str; 2] = ["red", "blue"];
pub(super) const APPS: [&str; 2] = ["web", "db"];
pub(super) const ZONES: [&str; 2] = ["a", "b"];
pub(super) const ACCOUNTS: [&str; 2] = ["default", "robot"];
pub(super) const PORTS: [u16; 6] = [80, 81, 443, 8080, 53, 5353];
pub(super) const PORT_NAMES: [&str; 2] = ["http", "dns"];
pub(super) const PROTOCOLS: [&str; 4] = ["TCP", "TCP", "UDP", "SCTP"];
pub(super) const NAMES: [&str; 4] = ["a.test", "x.a.test", "y.x.a.test", "b.test"];
pub(super) const SERVICES: [(&str, &str); 4] =
    [("shop", "ledger"), ("data", "store"), ("default", "kubernetes"), ("shop", "gone")];
pub(super) const PARTS: [&str; 2] = ["front", "back"];
pub(super) const SITES: [&str; 2] = ["north", "south"];
pub(super) const GROUPS: [&str; 3] = ["corp", "partner", "gone"];

/// Patterns that EgressPolicy takes; the last is not for ClusterNetworkPolicy (CNP-14).
pub(super) const PATTERNS: [&str; 6] =
    ["a.test", "*.a.test", "b.test", "*.x.a.test", "*.test", "*"];

/// Prefixes that contain each other and the town's addresses.
pub(super) const NETS: [&str; 14] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.0.0/30",
    "10.244.0.1/32",
    "10.96.0.0/24",
    "192.0.2.0/24",
    "203.0.113.0/31",
    "203.0.113.1/32",
    "2001:db8::/32",
    "2001:db8::1/128",
    "fd00:244::/64",
    "fd00:244::/126",
];

/// An object that grows by fields that are there or not.
#[derive(Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Sets the field in `percent` of a hundred.
    pub(super) fn maybe(
        &mut self,
        dice: &mut Dice,
        percent: usize,
        name: &str,
        make: impl FnOnce(&mut Dice) -> Value,
    ) {
        if dice.chance(percent) {
            let value = make(dice);
            self.set(name, value);
        }
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Self {
        Self::Object(fields.0)
    }
}

/// Whether and which label `key`.
pub(super) fn labels(dice: &mut Dice, key: &str, values: &[&str]) -> Value {
    let mut fields = Fields::default();
    fields.maybe(dice, 75, key, |dice| json!(dice.pick(values)));
    fields.into()
}

/// A selector over the label `key`.
pub(super) fn selector(dice: &mut Dice, key: &str, values: &[&str]) -> Value {
    selector_over(dice, &[(key, values)])
}

/// A selector over some of `labels`.
pub(super) fn selector_over(dice: &mut Dice, labels: &[(&str, &[&str])]) -> Value {
    let mut fields = Fields::default();
    let mut wanted = Fields::default();
    for (key, values) in labels {
        wanted.maybe(dice, 35, key, |dice| json!(dice.pick(values)));
    }
    if !wanted.0.is_empty() || dice.chance(20) {
        fields.set("matchLabels", wanted.into());
    }
    fields.maybe(dice, 35, "matchExpressions", |dice| {
        let expressions = dice.list(1, 2, |dice| {
            let (key, values) = dice.pick(labels);
            match dice.pick(&["In", "NotIn", "Exists", "DoesNotExist", "In"]) {
                operator @ ("In" | "NotIn") => {
                    json!({"key": key, "operator": operator, "values": dice.some(1, values)})
                }
                operator => json!({"key": key, "operator": operator}),
            }
        });
        json!(expressions)
    });
    fields.into()
}

/// A selector of namespaces, by a label of theirs or by name (NP-11).
pub(super) fn namespaces(dice: &mut Dice) -> Value {
    if dice.chance(60) {
        selector(dice, "team", &TEAMS)
    } else {
        selector(dice, "kubernetes.io/metadata.name", &NAMESPACES)
    }
}

/// A prefix, and prefixes strictly inside it.
pub(super) fn cidr(dice: &mut Dice) -> (&'static str, Vec<&'static str>) {
    let text: &'static str = dice.pick(&NETS);
    let net = super::net(text);
    let inside: Vec<&str> = NETS
        .into_iter()
        .filter(|inner| {
            let inner = super::net(inner);
            net.contains(&inner) && inner != net
        })
        .collect();
    let except = if dice.chance(50) { dice.some(0, &inside) } else { Vec::new() };
    (text, except)
}

/// One entry of `ports`, as NetworkPolicy and EgressPolicy write it.
pub(super) fn port(dice: &mut Dice) -> Value {
    let mut fields = Fields::default();
    fields.maybe(dice, 70, "protocol", |dice| json!(dice.pick(&PROTOCOLS)));
    match dice.below(10) {
        0 | 1 => {}
        2 | 3 => fields.set("port", json!(dice.pick(&PORT_NAMES))),
        4..=6 => {
            let start = dice.pick(&PORTS);
            fields.set("port", json!(start));
            fields.set("endPort", json!(start + dice.pick(&[0, 1, 2, 400])));
        }
        _ => fields.set("port", json!(dice.pick(&PORTS))),
    }
    fields.into()
}
