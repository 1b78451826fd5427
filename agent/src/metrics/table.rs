//! The names of all metrics, and where each is read.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use namegate_egress_bpf::abi::Direction;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::lookups::Lookups;
use super::readings::Readings;

/// What every name begins with.
pub(super) const PREFIX: &str = "namegate";

/// A metric without its prefix; the suffix `_total` of counters is added when they are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

macro_rules! names {
    ($($constant:ident = $name:literal, $help:literal;)+) => {
        $(pub(super) const $constant: Name = Name { name: $name, help: $help };)+

        /// All of them.
        #[cfg(test)]
        pub(super) const ALL: &[Name] = &[$($constant),+];
    };
}

names! {
    BUILD = "build_info", "One, with the version of the agent";
    ENFORCING = "enforcing", "One where everything of the first read is enforced, zero before";
    QUERIES = "dns_queries", "Lookups by verdict, reason and response code";
    DURATION = "dns_query_duration_seconds", "From a lookup's arrival to its answer, by whether the proxy's cache had it";
    STAGES = "dns_stage_duration_seconds", "Time of a stage of a lookup: gate and policy of one lookup in 64, upstream, learn";
    PROXY = "dns_events", "What happened in the DNS proxy, by event";
    RESOLVERS = "dns_resolvers", "Resolvers that the proxy stands in for";
    NAMES = "learned_names", "Names that are known, once for each identity that learned them";
    LEARNED = "learned_addresses", "Addresses that names opened or that live flows need, all identities together";
    SHARED = "shared_addresses", "Addresses that also answered for names that whoever may reach them may not, once for each identity; counted once a minute at most";
    EVICTIONS = "learned_evictions", "Learned addresses that made room for others";
    PACKETS = "packets", "Packets of endpoints by direction, verdict and reason";
    HITS = "policy_hits", "Flows that a policy decided about, by the direction in which they are opened";
    WATCHES = "watch_up", "One for each kind of objects that the API server lets the agent follow, zero for one that it does not";
    ENDPOINTS = "endpoints", "Pods of the node by state";
    IDENTITIES = "identities", "Identities with a policy table";
    POLICIES = "policies", "Policies in force";
    FAILURES = "enforcement_failures", "What cannot be enforced at present and is tried again";
    HOOKS = "hook_faults", "Hooks of the kernel program that were found displaced or detached, and those put right";
    HOOKS_FAILING = "hooks_failing", "Interfaces whose hooks are not where they belong";
    REFUSED = "objects_refused", "Objects that were refused, each time that they were read";
    APPLY = "apply_duration_seconds", "Time that a change of policy, endpoints or addresses takes, by step";
    WINDOWS = "pod_window_seconds", "From the kernel's word of a pod's interface until its policy was in force there, by who told of the pod: plugin (its containers wait meanwhile) or object (what it sends meanwhile is not judged)";
    UNGUARDED = "pods_unguarded", "Pods that the CNI plugin let start while no agent said that their policy is in force";
    CNI = "cni_plugin_in_place", "One where the CNI plugin is in the node's list, zero where something keeps it from there";
    MAP_ENTRIES = "map_entries", "Entries of the kernel's maps";
    MAP_CAPACITY = "map_capacity", "Entries that the kernel's maps can hold";
    LOST = "records_lost", "Records of decisions that were lost, by where";
    SUPPRESSED = "records_suppressed", "Records of decisions that rates and sampling kept out of the log";
}

/// Tells the metrics that are not counted by the crate's own types.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) lookups: Arc<Lookups>,
    pub(super) readings: Arc<Mutex<Readings>>,
}

type Labels<'a> = [(&'static str, &'a str)];

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = Telling { encoder: &mut encoder };
        told.lookups(&self.lookups)?;
        told.state(&readings)?;
        told.kernel(&readings)
    }
}

/// Writes one family after the other.
struct Telling<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
}

impl Telling<'_, '_> {
    fn lookups(&mut self, lookups: &Lookups) -> fmt::Result {
        self.counters(
            QUERIES,
            lookups.decided().map(|(verdict, reason, rcode, count)| {
                let labels = [("verdict", verdict.to_string()), ("reason", reason.to_owned())];
                (labels.into_iter().chain([("rcode", rcode.to_owned())]).collect(), count)
            }),
        )?;
        let mut family = self.encoder.encode_descriptor(
            DURATION.name,
            DURATION.help,
            None,
            MetricType::Histogram,
        )?;
        for (source, reading) in lookups.latencies() {
            family.encode_family(&[("source", source)])?.encode_histogram::<NoLabelSet>(
                reading.sum,
                reading.count,
                &reading.buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn state(&mut self, readings: &Readings) -> fmt::Result {
        self.gauges(BUILD, [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1)])?;
        self.gauge(ENFORCING, u64::from(readings.is_enforcing))?;
        self.counters(
            PROXY,
            readings.proxy.iter().map(|(event, count)| (one("event", event), *count)),
        )?;
        let mut family = self.encoder.encode_descriptor(
            STAGES.name,
            STAGES.help,
            None,
            MetricType::Histogram,
        )?;
        for (stage, reading) in &readings.stages {
            family.encode_family(&[("stage", *stage)])?.encode_histogram::<NoLabelSet>(
                reading.sum,
                reading.count,
                &reading.buckets,
                None,
            )?;
        }
        self.counters(
            HOOKS,
            readings.hooks.iter().map(|(event, count)| (one("event", event), *count)),
        )?;
        self.gauge(HOOKS_FAILING, readings.hooks_failing)?;
        self.counters(UNGUARDED, [(Vec::new(), readings.unguarded)])?;
        self.gauges(CNI, readings.cni_plugin.map(|is_in_place| (&[][..], u64::from(is_in_place))))?;
        self.gauge(RESOLVERS, readings.resolvers)?;
        self.gauge(NAMES, readings.learned_names)?;
        self.gauge(LEARNED, readings.learned_addresses)?;
        self.gauge(SHARED, readings.shared_addresses)?;
        self.counters(EVICTIONS, [(Vec::new(), readings.evictions)])?;
        let watches: Vec<_> = readings
            .watches
            .iter()
            .map(|(kind, is_up)| ([("resource", *kind)], u64::from(*is_up)))
            .collect();
        self.gauges(WATCHES, watches.iter().map(|(labels, is_up)| (&labels[..], *is_up)))?;
        let endpoints =
            readings.endpoints.iter().map(|(state, count)| ([("state", *state)], *count));
        let endpoints: Vec<_> = endpoints.collect();
        self.gauges(ENDPOINTS, endpoints.iter().map(|(labels, count)| (&labels[..], *count)))?;
        self.gauge(IDENTITIES, readings.identities)?;
        self.gauge(POLICIES, readings.policy_count)?;
        self.gauge(FAILURES, readings.failures)?;
        self.counters(
            HITS,
            readings.policies.iter().map(|policy| {
                let labels = vec![
                    ("kind", policy.kind.clone()),
                    ("namespace", policy.namespace.to_string()),
                    ("name", policy.name.to_string()),
                    ("direction", way(policy.direction).to_owned()),
                ];
                (labels, policy.hits)
            }),
        )
    }

    fn kernel(&mut self, readings: &Readings) -> fmt::Result {
        self.counters(
            PACKETS,
            readings.packets.packets.iter().map(|((direction, reason), count)| {
                let labels = vec![
                    ("direction", way(*direction).to_owned()),
                    ("verdict", reason.verdict().to_owned()),
                    ("reason", reason.as_str().to_owned()),
                ];
                (labels, *count)
            }),
        )?;
        let fill: Vec<_> = readings.fill.iter().map(|fill| ([("map", fill.map)], *fill)).collect();
        self.gauges(MAP_ENTRIES, fill.iter().map(|(labels, fill)| (&labels[..], fill.used)))?;
        self.gauges(MAP_CAPACITY, fill.iter().map(|(labels, fill)| (&labels[..], fill.max)))?;
        self.counters(
            LOST,
            readings.lost.iter().map(|(place, count)| (one("where", place), *count)),
        )?;
        self.counters(SUPPRESSED, [(Vec::new(), readings.suppressed)])
    }

    fn counters(
        &mut self,
        name: Name,
        counts: impl IntoIterator<Item = (Vec<(&'static str, String)>, u64)>,
    ) -> fmt::Result {
        let mut family =
            self.encoder.encode_descriptor(name.name, name.help, None, MetricType::Counter)?;
        for (labels, count) in counts {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            } else {
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: Name, value: u64) -> fmt::Result {
        self.gauges(name, [(&[][..], value)])
    }

    fn gauges<'l>(
        &mut self,
        name: Name,
        values: impl IntoIterator<Item = (&'l Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family =
            self.encoder.encode_descriptor(name.name, name.help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

fn one(name: &'static str, value: &str) -> Vec<(&'static str, String)> {
    vec![(name, value.to_owned())]
}

const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}
