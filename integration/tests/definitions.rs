//! What an API server would say to Namegate's objects, without one: the schemas of their definitions are
//! read as JSON Schema, the rules in them and in the chart's admission policies by an interpreter of CEL.

#[path = "definitions/rules.rs"]
mod rules;
#[path = "definitions/schema.rs"]
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::agent::binary;
use namegate_integration::manifests::examples;
use namegate_integration::objects::{documents, text};
use namegate_integration::process::run;
use namegate_policy::object;
use serde_json::{Value, json};

use rules::{Admission, Rule};

const ADMISSION: &str = include_str!("../../helm/namegate/templates/admission.yaml");

/// An object's kind, its spec, and what of it is refused: a part of each message, in order.
type Row = (&'static str, Value, &'static [&'static str]);

/// Everything that judges an object: the schema of its kind with the rules in it, and the chart's policies.
struct Judges {
    schemas: BTreeMap<String, Value>,
    admission: Vec<Admission>,
}

impl Judges {
    fn read() -> Result<Self> {
        let made = run(Command::new(binary()?).arg("crds"), Duration::from_secs(20))?.success()?;
        let mut schemas = BTreeMap::new();
        for definition in documents(&made)? {
            let kind = text(&definition, "/spec/names/kind")?.to_owned();
            let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema");
            schemas.insert(kind, schema.context("a definition without a schema")?.clone());
        }
        Ok(Self { schemas, admission: Admission::of_template(ADMISSION)? })
    }

    fn schema(&self, object: &Value) -> Result<&Value> {
        let kind = text(object, "/kind")?;
        self.schemas.get(kind).with_context(|| format!("no definition of {kind}"))
    }

    /// Everything that an object is refused for. Rules and policies are asked only about what the schema
    /// takes, as by the API server.
    fn faults(&self, object: &Value) -> Result<Vec<String>> {
        let schema = self.schema(object)?;
        let mut faults = schema::faults(schema, object)?;
        if faults.is_empty() {
            for (rule, value) in rules::of(schema, object)? {
                if !rule.holds(value)? {
                    faults.push(rule.message);
                }
            }
        }
        if faults.is_empty() {
            let variables = BTreeMap::from([("object".to_owned(), object.clone())]);
            for policy in self.admission.iter().filter(|policy| policy.is_about("policies")) {
                faults.extend(policy.faults(&variables)?);
            }
        }
        Ok(faults)
    }
}

fn mk_object(kind: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "namegate.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "a"}, "spec": spec,
    });
    if kind == "EgressPolicy" {
        object["metadata"]["namespace"] = "shop".into();
    }
    object
}

/// A rule of `list` with these peers and ports, in a policy for all pods.
fn mk_spec(list: &str, peers: Value, ports: Value) -> Value {
    let mut rule = json!({});
    for (entries, key) in [(peers, "to"), (ports, "ports")] {
        if !entries.is_null() {
            rule[key] = entries;
        }
    }
    json!({"podSelector": {}, list: [rule]})
}

fn to(peer: Value) -> Value {
    mk_spec("egress", json!([peer]), Value::Null)
}

fn ports(port: Value) -> Value {
    mk_spec("egress", json!([{"fqdn": "a.com"}]), json!([port]))
}

fn rows() -> Vec<Row> {
    const POLICY: &str = "EgressPolicy";
    const CLUSTER: &str = "ClusterEgressPolicy";
    let tiered = |more: Value| {
        let mut spec = json!({"namespaceSelector": {}, "egress": [{"to": [{"fqdn": "a.com"}]}]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        spec
    };
    let except = |inner: &str| to(json!({"cidr": "10.0.0.0/8", "except": [inner]}));
    let one_of: &[&str] = &["a peer is one of"];
    vec![
        (POLICY, to(json!({"fqdn": "api.example.com"})), &[]),
        (POLICY, to(json!({"fqdn": "*.example.com"})), &[]),
        (POLICY, to(json!({"fqdn": "api.*.com"})), &["/spec/egress/0/to/0/fqdn"]),
        (POLICY, to(json!({"fqdn": 7})), &["/spec/egress/0/to/0/fqdn"]),
        (POLICY, to(json!({"fqnd": "a.com"})), &["/spec/egress/0/to/0"]),
        (POLICY, to(json!({"podSelector": {}, "namespaceSelector": {}})), &[]),
        (POLICY, to(json!({})), one_of),
        (POLICY, to(json!({"fqdn": "a.com", "cidr": "10.0.0.0/8"})), one_of),
        (POLICY, to(json!({"entity": "nobody"})), &["/spec/egress/0/to/0/entity"]),
        (POLICY, ports(json!({"port": 443})), &[]),
        (POLICY, ports(json!({"port": "https"})), &[]),
        (POLICY, ports(json!({"port": 443, "endPort": 443})), &[]),
        (POLICY, ports(json!({"port": 443, "endPort": 442})), &["an endPort is below its port"]),
        (POLICY, ports(json!({"endPort": 443})), &["endPort needs a numeric port"]),
        (POLICY, ports(json!({"port": true})), &["/spec/egress/0/ports/0/port"]),
        (POLICY, mk_spec("egress", json!([]), Value::Null), &["/spec/egress/0/to"]),
        (POLICY, json!({"podSelector": {}, "mode": "Loud"}), &["/spec/mode"]),
        (POLICY, to(json!({"cidr": "10.0.0.0/8"})), &[]),
        (POLICY, to(json!({"cidr": "10.0.0.1"})), &["a cidr is no prefix"]),
        (POLICY, except("10.1.0.0/16"), &[]),
        (POLICY, except("11.0.0.0/16"), &["an except does not lie inside"]),
        (POLICY, except("10.0.0.0/8"), &["an except does not lie inside"]),
        (POLICY, mk_spec("deny", json!([{"cidr": "10.0.0.0/8"}]), Value::Null), &[]),
        (
            POLICY,
            mk_spec("deny", json!([{"fqdn": "a.com"}]), Value::Null),
            &["a denial by name cannot be complete"],
        ),
        (CLUSTER, tiered(json!({"tier": "Admin", "priority": 3})), &[]),
        (CLUSTER, tiered(json!({"priority": 3})), &["priority has a meaning in a tier only"]),
        (CLUSTER, tiered(json!({"tier": "Ground", "priority": 3})), &["/spec/tier"]),
    ]
}

#[test]
fn the_definitions_take_what_is_right_and_refuse_what_is_wrong() -> Result<()> {
    let judges = Judges::read()?;
    let (mut seen, mut every) = (BTreeSet::new(), BTreeSet::new());
    for (kind, spec, refusals) in rows() {
        let object = mk_object(kind, &spec);
        let faults = judges.faults(&object)?;
        let is_as_said = faults.len() == refusals.len()
            && faults.iter().zip(refusals).all(|(fault, part)| fault.contains(part));
        ensure!(is_as_said, "{kind} {spec}: {faults:?}, not {refusals:?}");
        let read = object::parse(object);
        ensure!(read.is_ok() == refusals.is_empty(), "{kind} {spec}: the agent says {read:?}");
        seen.extend(faults);
    }
    for schema in judges.schemas.values() {
        every.extend(rules::all(schema)?.into_iter().map(|Rule { message, .. }| message));
    }
    for policy in judges.admission.iter().filter(|policy| policy.is_about("policies")) {
        every.extend(policy.messages());
    }
    let unmet: Vec<_> = every.difference(&seen).collect();
    ensure!(every.len() >= 7 && unmet.is_empty(), "no object shows that this refuses: {unmet:?}");
    Ok(())
}

#[test]
fn every_example_of_namegates_kinds_is_taken() -> Result<()> {
    let judges = Judges::read()?;
    let mut taken = 0;
    for folder in [examples(), examples().join("town")] {
        for object in objects_in(&folder)? {
            if text(&object, "/apiVersion")?.starts_with("namegate.dev/") {
                let faults = judges.faults(&object)?;
                ensure!(faults.is_empty(), "{object}: {faults:?}");
                taken += 1;
            }
        }
    }
    ensure!(taken >= 5, "{taken} of them");
    Ok(())
}

#[test]
fn an_agent_may_report_about_its_own_node_alone() -> Result<()> {
    let judges = Judges::read()?;
    let policy = judges.admission.iter().find(|policy| policy.is_about("own-node"));
    let policy = policy.context("no such policy in the chart")?;
    let request = |user: &str, nodes: Value, name: &str| {
        let extra = if nodes.is_null() {
            json!({})
        } else {
            json!({"authentication.kubernetes.io/node-name": nodes})
        };
        let user = json!({"username": user, "extra": extra});
        BTreeMap::from([("request".to_owned(), json!({"userInfo": user, "name": name}))])
    };
    let agent = "system:serviceaccount:kube-system:namegate";
    let refused: &[&str] = &["an agent reports about its own node alone"];
    for (variables, expected) in [
        (request(agent, json!(["a"]), "a"), &[][..]),
        (request(agent, json!(["a"]), "b"), refused),
        (request(agent, Value::Null, "a"), refused),
        (request("admin", Value::Null, "a"), &[]),
    ] {
        assert_eq!(policy.faults(&variables)?, expected, "{variables:?}");
    }
    Ok(())
}

fn objects_in(folder: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            objects.extend(documents(&fs::read_to_string(path)?)?);
        }
    }
    Ok(objects)
}
