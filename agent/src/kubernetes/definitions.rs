//! The CustomResourceDefinitions of Namegate's own kinds, made from the types that read them.
//!
//! The schema is what the types say, brought into the form that the API server takes (structural, no
//! references). What types cannot say is a rule in CEL; those are few, and a policy that the API
//! server lets through is read as strictly by the agent as one from a file.

use namegate_policy::api::{API_VERSION, ClusterEgressPolicySpec, EgressPolicySpec};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::status::{NodeStatus, PolicyStatus};

/// The most rules of a list, and the most peers, ports and exceptions of a rule. Rules in CEL need
/// lists that end; the agent itself takes more.
const RULES_MAX: usize = 256;
const ENTRIES_MAX: usize = 256;

/// `*`, a name, or `*.` before a name.
const FQDN_PATTERN: &str = r"^(\*|(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*)\.?$";

/// A kind, as its definition needs it.
struct Definition {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static str,
    scope: &'static str,
    about: &'static str,
    /// `None` for what no person writes.
    spec: Option<Value>,
    status: Value,
    columns: Vec<Value>,
}

/// The definitions, in the order in which to apply them.
pub fn definitions() -> Vec<Value> {
    let columns = |more: &[Value]| {
        let mut columns = more.to_vec();
        columns.extend([
            column("Mode", "string", ".spec.mode", "Whether it drops or only logs"),
            condition_column("Accepted", "status", "Whether what it says can be read"),
            condition_column("Programmed", "status", "Whether the nodes enforce it"),
            column("Endpoints", "integer", ".status.endpoints", "Pods that it selects"),
            column("Nodes", "integer", ".status.nodes", "Nodes that those pods run on"),
            age(),
            wide(condition_column("Accepted", "message", "What is wrong with it"), "Reading"),
            wide(condition_column("Programmed", "message", "Where it is in force"), "Enforcement"),
        ]);
        columns
    };
    let tier = [
        column("Tier", "string", ".spec.tier", "When it decides"),
        column("Priority", "integer", ".spec.priority", "Its place in the tier"),
    ];
    [
        Definition {
            kind: "EgressPolicy",
            plural: "egresspolicies",
            singular: "egresspolicy",
            short: "egp",
            scope: "Namespaced",
            about: "What pods of its namespace may reach: names, addresses, pods, services. \
                    A pod that it selects reaches what a rule allows and nothing else.",
            spec: Some(spec_schema::<EgressPolicySpec>()),
            status: policy_status(),
            columns: columns(&[]),
        },
        Definition {
            kind: "ClusterEgressPolicy",
            plural: "clusteregresspolicies",
            singular: "clusteregresspolicy",
            short: "cegp",
            scope: "Cluster",
            about: "What pods of the selected namespaces may reach. In a tier it decides before \
                    or after the namespaced policies.",
            spec: Some(with_rule(
                spec_schema::<ClusterEgressPolicySpec>(),
                "!has(self.priority) || has(self.tier)",
                "priority has a meaning in a tier only: set tier, or remove priority",
            )),
            status: policy_status(),
            columns: columns(&tier),
        },
        Definition {
            kind: "NamegateNode",
            plural: "namegatenodes",
            singular: "namegatenode",
            short: "ngn",
            scope: "Cluster",
            about: "What one node enforces, written by its agent. The status of policies is made \
                    from these.",
            spec: None,
            status: schema_of::<NodeStatus>(),
            columns: vec![
                column("Endpoints", "integer", ".status.endpoints", "Pods under policy"),
                column(
                    "Pending",
                    "integer",
                    ".status.pending",
                    "Pods whose policy is not in force yet",
                ),
                column("Version", "string", ".status.agentVersion", "Version of the agent"),
                age(),
            ],
        },
    ]
    .into_iter()
    .map(definition)
    .collect()
}

fn definition(definition: Definition) -> Value {
    let Definition { kind, plural, singular, short, scope, about, spec, status, columns } =
        definition;
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    let mut schema = json!({
        "description": about,
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "status": status,
        },
    });
    let mut version = json!({
        "name": version, "served": true, "storage": true, "additionalPrinterColumns": columns,
    });
    // What people write has a status apart from it.
    if let Some(spec) = spec {
        schema["required"] = json!(["spec"]);
        schema["properties"]["spec"] = spec;
        version["subresources"] = json!({"status": {}});
    }
    version["schema"] = json!({"openAPIV3Schema": schema});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            "labels": {"app.kubernetes.io/name": "namegate"},
            // Uninstalling the chart must not delete everybody's policies.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {
                "kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                "singular": singular, "shortNames": [short], "categories": ["namegate"],
            },
            "versions": [version],
        },
    })
}

/// The schema of a policy's status: conditions by type, so that each writer owns its own.
fn policy_status() -> Value {
    let mut status = schema_of::<PolicyStatus>();
    let conditions = &mut status["properties"]["conditions"];
    conditions["x-kubernetes-list-type"] = "map".into();
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    status
}

fn column(name: &str, kind: &str, path: &str, about: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path, "description": about})
}

fn condition_column(condition: &str, field: &str, about: &str) -> Value {
    let path = format!(".status.conditions[?(@.type==\"{condition}\")].{field}");
    column(condition, "string", &path, about)
}

/// The same column under another name, shown by `-o wide` alone.
fn wide(mut column: Value, name: &str) -> Value {
    column["name"] = name.into();
    column["priority"] = 1.into();
    column
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp", "Time since it was created")
}

/// The schema of a spec, with the rules that types cannot say.
fn spec_schema<T: JsonSchema>() -> Value {
    let mut spec = schema_of::<T>();
    spec["properties"]["mode"]["default"] = "Enforce".into();
    for (list, is_denial) in [("egress", false), ("deny", true)] {
        let rules = &mut spec["properties"][list];
        rules["maxItems"] = RULES_MAX.into();
        let rule = &mut rules["items"]["properties"];
        for entries in ["to", "ports"] {
            rule[entries]["minItems"] = 1.into();
            rule[entries]["maxItems"] = ENTRIES_MAX.into();
        }
        let mut peer = with_rule(
            rule["to"]["items"].take(),
            "(has(self.fqdn) ? 1 : 0) + (has(self.cidr) ? 1 : 0) + (has(self.service) ? 1 : 0) + \
             (has(self.entity) ? 1 : 0) + \
             (has(self.namespaceSelector) || has(self.podSelector) ? 1 : 0) == 1",
            "a peer is one of fqdn, cidr, service, entity or selectors; entries of the list add up",
        );
        peer["properties"]["fqdn"]["pattern"] = FQDN_PATTERN.into();
        peer["properties"]["fqdn"]["maxLength"] = 255.into();
        peer["properties"]["except"]["maxItems"] = ENTRIES_MAX.into();
        if is_denial {
            peer = with_rule(
                peer,
                "!has(self.fqdn)",
                "a denial by name cannot be complete: deny by cidr, or leave the name out of the allow rules",
            );
        }
        rule["to"]["items"] = peer;
        rule["ports"]["items"] = with_rule(
            rule["ports"]["items"].take(),
            "!has(self.endPort) || has(self.port)",
            "endPort needs a numeric port beside it",
        );
    }
    spec
}

fn with_rule(mut schema: Value, rule: &str, message: &str) -> Value {
    let rule = json!({"rule": rule, "message": message});
    match schema.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
        Some(rules) => rules.push(rule),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
    schema
}

/// The structural schema of a type.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = Value::from(schema);
    make_structural(&mut schema);
    schema
}

/// Rewrites a schema and everything below it: what the API server does not take goes, and what it
/// wants said otherwise is said otherwise.
fn make_structural(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    for key in ["$schema", "title", "nullable", "default"] {
        schema.remove(key);
    }
    join_all_of(schema);
    if schema.contains_key("x-kubernetes-int-or-string") {
        for key in ["anyOf", "oneOf", "type", "format"] {
            schema.remove(key);
        }
    }
    join_variants(schema);
    // Formats of Rust's own; the bounds say the same.
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint"))
    {
        schema.remove("format");
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(make_structural);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key) {
            make_structural(inner);
        }
    }
}

/// A field that may be left out, or one with a description of its own over that of its type: one
/// schema for both.
fn join_all_of(schema: &mut Map<String, Value>) {
    for key in ["allOf", "anyOf"] {
        let Some(Value::Array(all)) = schema.get(key) else { continue };
        let is_null = |inner: &&Value| {
            let only = inner.get("const").or_else(|| inner.pointer("/enum/0"));
            only.is_some_and(Value::is_null)
        };
        let mut left = all.iter().filter(|inner| !is_null(inner));
        let (Some(Value::Object(only)), None) = (left.next(), left.next()) else { continue };
        let only = only.clone();
        schema.remove(key);
        for (key, value) in only {
            schema.entry(key).or_insert(value);
        }
    }
}

/// An enumeration whose values have descriptions: the values in one list, what they mean in the
/// description.
fn join_variants(schema: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = schema.get("oneOf") else { return };
    let mut values = Vec::new();
    let mut lines = Vec::new();
    for variant in variants {
        let listed = variant.get("enum").and_then(Value::as_array).cloned();
        let single = variant.get("const").cloned().map(|value| vec![value]);
        let Some(found) = listed.or(single) else { return };
        if let (Some(value), Some(about)) = (
            found.first().and_then(Value::as_str),
            variant.get("description").and_then(Value::as_str),
        ) {
            lines.push(format!("{value}: {about}"));
        }
        values.extend(found);
    }
    schema.remove("oneOf");
    schema.insert("type".to_owned(), "string".into());
    schema.insert("enum".to_owned(), values.into());
    let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let about = std::iter::once(about).chain(lines.iter().map(String::as_str));
    let about: Vec<&str> = about.filter(|line| !line.is_empty()).collect();
    schema.insert("description".to_owned(), about.join("\n").into());
}

#[cfg(test)]
mod tests {
    use namegate_policy::object;

    use super::*;

    fn each(schema: &Value, path: &str, see: &mut dyn FnMut(&str, &Map<String, Value>)) {
        let Value::Object(found) = schema else { return };
        see(path, found);
        for (name, inner) in
            found.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            each(inner, &format!("{path}.{name}"), see);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = found.get(key) {
                each(inner, &format!("{path}[]"), see);
            }
        }
    }

    #[test]
    fn schemas_are_structural_and_described() {
        const KNOWN: [&str; 18] = [
            "additionalProperties",
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
            "minItems",
            "minimum",
            "pattern",
            "properties",
            "required",
            "type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
            "x-kubernetes-validations",
        ];
        for definition in definitions() {
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            each(schema, "", &mut |path, found| {
                let is_port = found.contains_key("x-kubernetes-int-or-string");
                for key in found.keys() {
                    let known = KNOWN.contains(&key.as_str()) || (is_port && key.starts_with("x-"));
                    assert!(known, "{path}: {key} is nothing that a structural schema has");
                }
                assert!(is_port || found.contains_key("type"), "{path}: no type");
                let is_own = path.starts_with(".spec.") && !path.ends_with("[]");
                assert!(!is_own || found.contains_key("description"), "{path}: no description");
            });
        }
    }

    /// The schema of what a column shows; `None` where its path leads nowhere.
    fn shown<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
        const CONDITION: &str = "conditions[?(@.type==\"";
        if let Some(rest) = path.strip_prefix(".metadata.") {
            return (rest == "creationTimestamp").then_some(&schema["properties"]["metadata"]);
        }
        let mut at = schema;
        let mut rest = path;
        while let Some(field) = rest.strip_prefix('.') {
            if let Some(found) = field.strip_prefix(CONDITION) {
                let (kind, after) = found.split_once("\")]")?;
                assert!(["Accepted", "Programmed"].contains(&kind), "{path}");
                at = at["properties"].get("conditions")?.get("items")?;
                rest = after;
                continue;
            }
            let (name, after) = field.split_at(field.find('.').unwrap_or(field.len()));
            at = at["properties"].get(name)?;
            rest = after;
        }
        rest.is_empty().then_some(at)
    }

    #[test]
    fn columns_show_fields_that_there_are() {
        for definition in definitions() {
            let version = &definition["spec"]["versions"][0];
            let schema = &version["schema"]["openAPIV3Schema"];
            let columns = version["additionalPrinterColumns"].as_array().unwrap();
            assert!(columns.len() > 3, "{definition}");
            for column in columns {
                let path = column["jsonPath"].as_str().unwrap();
                let field = shown(schema, path);
                assert!(field.is_some(), "{path} leads nowhere");
                let is_date = column["type"] == "date";
                assert!(is_date || field.unwrap()["type"] == column["type"], "{path}: {field:?}");
            }
        }
        let policy = definitions().remove(0);
        let schema = &policy["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for path in [".spec.mood", ".status.conditions[?(@.type==\"Accepted\")].state", "spec.mode"]
        {
            assert!(shown(schema, path).is_none(), "{path}");
        }
    }

    #[test]
    fn the_pattern_takes_the_names_that_the_agent_takes() {
        let pattern = regex::Regex::new(FQDN_PATTERN).unwrap();
        for fqdn in [
            "*",
            "example.com",
            "example.com.",
            "*.example.com",
            "_dmarc.a-b.example",
            "EXAMPLE.com",
            "",
            "**.example.com",
            "a.*.com",
            "*example.com",
            "exa mple.com",
            "a..b",
            ".a",
            "*.",
            "http://a.com",
            "a/b",
        ] {
            let policy = json!({
                "apiVersion": API_VERSION, "kind": "EgressPolicy",
                "metadata": {"name": "p", "namespace": "shop"},
                "spec": {"podSelector": {}, "egress": [{"to": [{"fqdn": fqdn}]}]},
            });
            assert_eq!(pattern.is_match(fqdn), object::parse(policy).is_ok(), "{fqdn:?}");
        }
    }

    #[test]
    fn the_chart_has_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/namegate/files/crds.yaml");
        let chart = std::fs::read_to_string(path).unwrap();
        let printed = crate::cli::crds::print(&definitions()).unwrap();
        assert!(chart == printed, "run `namegate crds > helm/namegate/files/crds.yaml`");
    }
}
