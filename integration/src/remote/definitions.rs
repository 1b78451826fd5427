//! The definitions of the kinds that a cluster can be without.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::agent::binary;
use crate::apiserver::Resource;
use crate::objects::documents;
use crate::process::run;

/// The definition of a kind: Namegate's own as it ships, others' with any content.
pub(super) fn of(resource: Resource) -> Result<Value> {
    if resource.group != "namegate.dev" {
        return Ok(anything(resource));
    }
    let finished = run(Command::new(binary()?).arg("crds"), Duration::from_secs(20))?;
    let all = documents(&finished.success()?)?;
    let own = all.into_iter().find(|one| one["spec"]["names"]["kind"] == resource.kind);
    own.with_context(|| format!("`namegate crds` defines no {}", resource.kind))
}

fn anything(resource: Resource) -> Value {
    let Resource { group, version, kind, plural, .. } = resource;
    let scope = if resource.is_namespaced { "Namespaced" } else { "Cluster" };
    let status = if resource.has_status { json!({"status": {}}) } else { json!({}) };
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": version, "served": true, "storage": true, "subresources": status,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    });
    if group.ends_with(".k8s.io") {
        let note = "unapproved, for a test";
        definition["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": note});
    }
    definition
}
