//! Cuts an object down to what the agent reads, before anything is compared or parsed: what changes
//! elsewhere in it is no event here.

use serde_json::{Map, Value};

use super::kinds::Watched;

/// Trims an object of this kind, and names its kind: the items of a list come without.
pub(super) fn trim(watched: &Watched, value: Value) -> Value {
    let Value::Object(mut object) = value else { return value };
    object.insert("apiVersion".to_owned(), watched.api_version().into());
    object.insert("kind".to_owned(), watched.kind.into());
    keep_inside(&mut object, "metadata", &["labels", "name", "namespace", "uid"]);
    match watched.kind {
        "Pod" => trim_pod(&mut object),
        "Node" => {
            object.remove("spec");
            keep_inside(&mut object, "status", &["addresses"]);
        }
        "Namespace" => keep(&mut object, &["apiVersion", "kind", "metadata"]),
        "Service" => keep_inside(&mut object, "status", &["loadBalancer"]),
        _ => {
            object.remove("status");
        }
    }
    Value::Object(object)
}

fn trim_pod(pod: &mut Map<String, Value>) {
    let spec = ["containers", "hostNetwork", "initContainers", "nodeName", "serviceAccountName"];
    keep_inside(pod, "spec", &spec);
    keep_inside(pod, "status", &["phase", "podIP", "podIPs"]);
    let Some(spec) = inner(pod, "spec") else { return };
    for list in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
        for container in containers {
            if let Value::Object(container) = container {
                keep(container, &["name", "ports", "restartPolicy"]);
            }
        }
    }
}

fn inner<'a>(object: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_object_mut)
}

fn keep(object: &mut Map<String, Value>, keys: &[&str]) {
    object.retain(|key, _| keys.contains(&key.as_str()));
}

fn keep_inside(object: &mut Map<String, Value>, key: &str, keys: &[&str]) {
    if let Some(found) = inner(object, key) {
        keep(found, keys);
    }
}

#[cfg(test)]
mod tests {
    use namegate_policy::object;
    use serde_json::json;

    use super::super::kinds::WATCHED;
    use super::*;

    fn of_kind(kind: &str) -> Watched {
        *WATCHED.iter().find(|watched| watched.kind == kind).unwrap()
    }

    fn mk_pod() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "7",
                "labels": {"app": "web"}, "managedFields": [{"manager": "kubelet"}],
                "annotations": {"namegate.dev/interface": "veth-web", "other/thing": "long"},
            },
            "spec": {
                "nodeName": "a", "serviceAccountName": "web", "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "web", "image": "web", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"name": "http", "containerPort": 80}],
                }],
                "initContainers": [{
                    "name": "proxy", "restartPolicy": "Always",
                    "ports": [{"name": "mesh", "containerPort": 15001}],
                }],
            },
            "status": {
                "phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}],
                "conditions": [{"type": "Ready"}],
            },
        })
    }

    #[test]
    fn a_trimmed_pod_says_the_same_to_the_agent() {
        let whole = object::parse(mk_pod()).unwrap();
        let trimmed = object::parse(trim(&of_kind("Pod"), mk_pod())).unwrap();
        let (object::Object::Pod(whole), object::Object::Pod(trimmed)) = (whole, trimmed) else {
            panic!("pods");
        };
        let annotations = trimmed.annotations.clone();
        assert!(annotations.is_empty(), "an annotation is the word of whoever creates the pod");
        assert_eq!(trimmed, namegate_policy::resource::Pod { annotations, ..whole });
    }

    #[test]
    fn a_heartbeat_changes_nothing() {
        let mut later = mk_pod();
        later["metadata"]["resourceVersion"] = "8".into();
        later["metadata"]["managedFields"] = json!([]);
        later["status"]["conditions"] = json!([{"type": "Ready", "lastProbeTime": "now"}]);
        let pod = of_kind("Pod");
        assert_eq!(trim(&pod, mk_pod()), trim(&pod, later));

        let node = |beat: &str| {
            json!({"metadata": {"name": "a"}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"lastHeartbeatTime": beat}],
            }})
        };
        assert_eq!(trim(&of_kind("Node"), node("1")), trim(&of_kind("Node"), node("2")));
    }

    #[test]
    fn items_of_lists_get_their_kind() {
        let item = json!({"metadata": {"name": "shop", "labels": {"team": "shop"}}});
        let parsed = object::parse(trim(&of_kind("Namespace"), item)).unwrap();
        assert_eq!(parsed.reference().to_string(), "Namespace shop");
    }

    #[test]
    fn what_is_no_object_stays_for_the_parser_to_refuse() {
        assert_eq!(trim(&of_kind("Pod"), json!([1])), json!([1]));
        let odd = json!({"metadata": 7, "spec": [], "status": "x"});
        assert!(object::parse(trim(&of_kind("Pod"), odd)).is_err());
    }
}
