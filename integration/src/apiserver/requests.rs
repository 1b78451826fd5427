//! One request, answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::patch;
use super::resources::Resource;
use super::selection::Selection;
use super::store::{Part, Place, Refusal, Store};
use super::{Shared, TOKEN, groups, watches};

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// What a path names.
#[derive(Debug)]
struct Target {
    resource: Resource,
    namespace: Option<String>,
    name: Option<String>,
    part: Part,
}

/// Answers one request.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let uri = request.uri().clone();
    shared.lock().requests.push(format!("{} {uri}", request.method()));
    if shared.lock().faults.hangs {
        // The sender lives as long as the server.
        let _closed = shared.cuts.subscribe().changed().await;
    }
    let outcome = respond(&shared, request).await;
    let retry_after = shared.lock().faults.retry_after;
    Ok(outcome.unwrap_or_else(|refusal| {
        let mut response = reply(refusal.code, &refusal.status());
        if let Some(wait) = retry_after.filter(|_| matches!(refusal.code, 429 | 503)) {
            response.headers_mut().insert(RETRY_AFTER, wait.as_secs().into());
        }
        response
    }))
}

async fn respond(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let taken = shared.lock().faults.token.unwrap_or(TOKEN);
    if token != Some(&format!("Bearer {taken}")) {
        return Err(Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    shared.note_whether_early(&format!("{} {}", request.method(), request.uri().path()));
    if let Some(code) = shared.lock().faults.fail_with {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            429 => ("TooManyRequests", "too many requests, please try again later"),
            _ => ("InternalError", "the double was told to fail"),
        };
        return Err(Refusal::new(code, reason, message));
    }
    let method = request.method().clone();
    let query = query(request.uri().query().unwrap_or_default());
    let path: Vec<String> = request.uri().path().split('/').skip(1).map(str::to_owned).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if method == Method::GET
        && let Some(document) = discovery(&shared.lock().store, &path)
    {
        return Ok(reply(200, &document));
    }
    let target = target(&shared.lock().store, &path)?;
    check_access(shared, &method, &target, &query)?;
    if method == Method::GET && target.name.is_none() && is_true(&query, "watch") {
        return watches::begin(shared, target.resource, target.namespace, &query);
    }
    let is_apply = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"));
    if is_apply && !query.contains_key("fieldManager") {
        return Err(Refusal::new(422, "Invalid", "fieldManager: Required value"));
    }
    let how = if is_apply { patch::How::Apply } else { patch::How::Merge };
    let body = request.into_body().collect().await;
    let body = body.map_err(|error| Refusal::new(400, "BadRequest", error.to_string()))?.to_bytes();
    let (code, document) = work(shared, &method, &target, &query, how, &body)?;
    Ok(reply(code, &document))
}

fn check_access(
    shared: &Shared,
    method: &Method,
    target: &Target,
    query: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let verb = match *method {
        Method::GET if target.name.is_some() => "get",
        Method::GET if is_true(query, "watch") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => "delete",
    };
    let Resource { plural, group, .. } = target.resource;
    let is_status = target.part == Part::Status;
    let subject = if is_status { format!("{plural}/status") } else { plural.to_owned() };
    let inner = shared.lock();
    let forbidden = inner.faults.forbidden.get(verb);
    if forbidden.is_some_and(|subjects| subjects.contains(&subject.as_str())) {
        let message = format!(
            "{plural}.{group} is forbidden: User \"system:serviceaccount:namegate:namegate\" cannot {verb} resource \"{subject}\" in API group \"{group}\" at the cluster scope"
        );
        return Err(Refusal::new(403, "Forbidden", message));
    }
    Ok(())
}

fn work(
    shared: &Shared,
    method: &Method,
    target: &Target,
    query: &BTreeMap<String, String>,
    how: patch::How,
    body: &[u8],
) -> Result<(u16, Value), Refusal> {
    let resource = target.resource;
    let namespace = target.namespace.clone().unwrap_or_default();
    let Some(name) = target.name.clone() else {
        return match *method {
            Method::GET => list(shared, target, query).map(|list| (200, list)),
            Method::POST => {
                let object = parse(body)?;
                let named = object.pointer("/metadata/name").and_then(Value::as_str);
                let generated = object.pointer("/metadata/generateName").and_then(Value::as_str);
                let name = match (named, generated) {
                    (Some(name), _) => name.to_owned(),
                    (None, Some(prefix)) => format!("{prefix}{}", shared.lock().store.version()),
                    (None, None) => {
                        return Err(Refusal::new(422, "Invalid", "metadata.name: Required value"));
                    }
                };
                let place = (namespace, name);
                let made = shared.change(|store| store.create(resource, &place, object))?;
                Ok((201, made))
            }
            _ => Err(Refusal::new(405, "MethodNotAllowed", "the double has no such verb here")),
        };
    };
    let place: Place = (namespace, name);
    match *method {
        Method::GET => Ok((200, shared.lock().store.get(resource, &place)?.clone())),
        Method::PUT => {
            let object = parse(body)?;
            let put = |store: &mut Store| store.replace(resource, &place, object, target.part);
            Ok((200, shared.change(put)?))
        }
        Method::PATCH => {
            let patch = parse(body)?;
            if target.part == Part::Status && shared.take_conflict() {
                return Err(Refusal::conflict(resource, &place));
            }
            let write = |store: &mut Store| how.write(store, resource, &place, patch, target.part);
            shared.change(write)
        }
        Method::DELETE => Ok((200, shared.change(|store| store.delete(resource, &place))?)),
        _ => Err(Refusal::new(405, "MethodNotAllowed", "the double has no such verb here")),
    }
}

fn list(
    shared: &Shared,
    target: &Target,
    query: &BTreeMap<String, String>,
) -> Result<Value, Refusal> {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let next = query.get("continue").map(String::as_str);
    let namespace = target.namespace.as_deref();
    let selection = Selection::of(query)?;
    let page = shared.lock().store.list(target.resource, namespace, &selection, limit, next)?;
    // Items of the core kinds come without apiVersion and kind, as from the real one.
    let mut items = page.items;
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("apiVersion");
        item.remove("kind");
    }
    Ok(json!({
        "apiVersion": target.resource.api_version(),
        "kind": format!("{}List", target.resource.kind),
        "metadata": {
            "resourceVersion": page.version.to_string(),
            "continue": page.next.unwrap_or_default(),
        },
        "items": items,
    }))
}

/// What the paths above all resources say.
fn discovery(store: &Store, path: &[&str]) -> Option<Value> {
    let group_document = |(group, version): &(&str, &str)| {
        let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
        json!({"name": group, "versions": [version], "preferredVersion": version})
    };
    match path {
        ["apis"] => {
            let groups: Vec<Value> = groups(store).iter().map(group_document).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group, version] => {
            let served =
                |resource: &&Resource| resource.group == *group && resource.version == *version;
            let resources: Vec<Value> = store
                .resources
                .iter()
                .filter(served)
                .map(|resource| {
                    json!({
                        "name": resource.plural, "singularName": "", "kind": resource.kind,
                        "namespaced": resource.is_namespaced, "verbs": ["get", "list", "watch"],
                    })
                })
                .collect();
            (!resources.is_empty()).then(|| {
                json!({
                    "kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": format!("{group}/{version}"), "resources": resources,
                })
            })
        }
        _ => None,
    }
}

fn target(store: &Store, path: &[&str]) -> Result<Target, Refusal> {
    let missing =
        || Refusal::new(404, "NotFound", "the server could not find the requested resource");
    let (group, version, rest) = match path {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(missing()),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..]
            if rest.first().is_some_and(|word| *word != "status") =>
        {
            (Some((*namespace).to_owned()), rest)
        }
        _ => (None, rest),
    };
    let (plural, name, part) = match rest {
        [plural] => (*plural, None, Part::Spec),
        [plural, name] => (*plural, Some((*name).to_owned()), Part::Spec),
        [plural, name, "status"] => (*plural, Some((*name).to_owned()), Part::Status),
        _ => return Err(missing()),
    };
    let served = store.resources.iter().find(|resource| {
        resource.group == group && resource.version == version && resource.plural == plural
    });
    let resource = *served.ok_or_else(missing)?;
    if part == Part::Status && !resource.has_status {
        return Err(missing());
    }
    Ok(Target { resource, namespace, name, part })
}

/// A response with one document.
pub(super) fn reply(code: u16, document: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(document.to_string()));
    respond_with(code, body.map_err(|never| match never {}).boxed())
}

/// A response with a body of JSON.
pub(super) fn respond_with(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Whether a parameter is set and not to `false`.
pub(super) fn is_true(query: &BTreeMap<String, String>, key: &str) -> bool {
    query.get(key).is_some_and(|value| !matches!(value.as_str(), "false" | "0"))
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), unescape(value))
        })
        .collect()
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        let hex = |octet: Option<u8>| octet.and_then(|octet| char::from(octet).to_digit(16));
        octets.push(match octet {
            b'%' => {
                let value = hex(rest.next()).zip(hex(rest.next()));
                value.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()).unwrap_or(b'?')
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8_lossy(&octets).into_owned()
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, "BadRequest", format!("unreadable body: {error}")))
}
