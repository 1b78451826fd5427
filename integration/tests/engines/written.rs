//! A town as a file: JSON values in YAML, one a line where they are short.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use namegate_policy::name::DnsName;
use namegate_policy::oracle::Flow;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::Protocol;
use namegate_policy::testing::{Documents, Lesson};
use serde::Deserialize;
use serde_json::{Value, json};

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    own_addresses: BTreeSet<IpAddr>,
    ranges: Vec<IpNet>,
    documents: Vec<Value>,
    #[serde(default)]
    lessons: Vec<WrittenLesson>,
    flows: Vec<WrittenFlow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLesson {
    pod: String,
    name: String,
    address: IpAddr,
    at: u64,
    ttl: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFlow {
    from: IpAddr,
    to: IpAddr,
    protocol: String,
    port: u16,
    at: u64,
}

/// Reads a town.
pub(crate) fn read(text: &str) -> Result<Documents> {
    let Written { own_addresses, ranges, documents, lessons, flows } =
        serde_saphyr::from_str(text)?;
    let lesson = |one: &WrittenLesson| {
        let (namespace, name) = one.pod.split_once('/').context("a pod without a namespace")?;
        Ok(Lesson {
            pod: PodRef { namespace: namespace.into(), name: name.into() },
            name: DnsName::parse(&one.name)?,
            address: one.address,
            at: one.at,
            ttl: one.ttl,
        })
    };
    let flow = |one: &WrittenFlow| {
        let protocol = match one.protocol.as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            "ICMP" => Protocol::Icmp,
            "ICMPv6" => Protocol::Icmpv6,
            other => bail!("{other} is no protocol"),
        };
        let flow = Flow { source: one.from, destination: one.to, protocol, port: one.port };
        Ok((flow, one.at))
    };
    Ok(Documents {
        documents,
        own_addresses,
        ranges,
        lessons: lessons.iter().map(lesson).collect::<Result<_>>()?,
        flows: flows.iter().map(flow).collect::<Result<_>>()?,
    })
}

/// Writes a town.
pub(crate) fn write(town: &Documents) -> Result<String> {
    let mut text = format!(
        "own_addresses: {}\nranges: {}\n",
        serde_json::to_string(&town.own_addresses)?,
        serde_json::to_string(&town.ranges)?
    );
    list(&mut text, "documents", town.documents.iter().cloned())?;
    let lesson = |one: &Lesson| {
        json!({
            "pod": one.pod.to_string(),
            "name": one.name.to_string(),
            "address": one.address,
            "at": one.at,
            "ttl": one.ttl,
        })
    };
    list(&mut text, "lessons", town.lessons.iter().map(lesson))?;
    let flow = |(flow, at): &(Flow, u64)| {
        json!({
            "from": flow.source,
            "to": flow.destination,
            "protocol": namegate_policy::explain::protocol(flow.protocol),
            "port": flow.port,
            "at": at,
        })
    };
    list(&mut text, "flows", town.flows.iter().map(flow))?;
    Ok(text)
}

/// JSON is YAML.
fn list(text: &mut String, name: &str, values: impl Iterator<Item = Value>) -> Result<()> {
    let values: Vec<Value> = values.collect();
    if values.is_empty() {
        return Ok(writeln!(text, "{name}: []")?);
    }
    writeln!(text, "{name}:")?;
    for value in values {
        writeln!(text, "- {}", serde_json::to_string(&value)?)?;
    }
    Ok(())
}
