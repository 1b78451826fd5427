//! Where a field stands in the text of a document, and which field stands at a place of it.
//!
//! Nothing is kept of a document that was read. Only where there is something to say about it, its
//! text is walked once more, event by event; aliases are not expanded, so the walk is linear in the
//! text whatever the text says.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::granit_parser::{Event, Parser};

/// What is known of an object whose document cannot be read as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// Its `kind`.
    pub kind: Option<String>,
    /// Its `metadata.namespace`.
    pub namespace: Option<String>,
    /// Its `metadata.name`.
    pub name: Option<String>,
    /// The innermost field that was begun at the place asked about.
    pub field: Option<String>,
}

/// The lines of the fields named by `wanted`, counted from `first_line`. Where a field is not there,
/// the line is that of what should hold it.
pub fn lines<'a>(
    text: &str,
    first_line: usize,
    wanted: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<&'a str, usize> {
    let wanted: BTreeSet<&str> = wanted.into_iter().collect();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    walk(text, |seen| {
        let is_wanted =
            wanted.range(seen.path..).next().is_some_and(|path| path.starts_with(seen.path));
        if is_wanted && !found.contains_key(seen.path) {
            found.insert(seen.path.to_owned(), seen.line);
        }
    });
    let line_of = |path: &str| {
        let line = std::iter::successors(Some(path), |path| parent(path))
            .find_map(|path| found.get(path).copied());
        first_line + line.unwrap_or(1) - 1
    };
    wanted.into_iter().map(|path| (path, line_of(path))).collect()
}

/// What can be told of a document that was given up at `line` (counted from one) and `column`
/// (likewise) of its text.
pub fn broken(text: &str, line: usize, column: usize) -> Broken {
    let mut broken = Broken::default();
    let mut item = String::new();
    walk(text, |seen| {
        let is_before = (seen.line, seen.column) <= (line, column);
        let (holder, field) = split_item(seen.path);
        if is_before {
            if item != holder {
                item = holder.to_owned();
                broken = Broken::default();
            }
            broken.field = (!field.is_empty()).then(|| seen.path.to_owned());
        }
        if item == holder
            && let Some(value) = seen.scalar
        {
            let slot = match field {
                "kind" => &mut broken.kind,
                "metadata.namespace" => &mut broken.namespace,
                "metadata.name" => &mut broken.name,
                _ => return,
            };
            slot.get_or_insert_with(|| value.to_owned());
        }
    });
    broken
}

/// The path of the entry of a List that `path` leads into, and the rest of it.
fn split_item(path: &str) -> (&str, &str) {
    let mut end = 0;
    while let Some(rest) = path[end..].strip_prefix("items[")
        && let Some(close) = rest.find(']')
    {
        end = path.len() - rest.len() + close + 1;
        if path[end..].starts_with('.') {
            end += 1;
        }
    }
    path.split_at(end)
}

/// The path of what holds the field at `path`.
fn parent(path: &str) -> Option<&str> {
    path.rfind(['.', '[']).map(|at| &path[..at])
}

/// One key or entry of a document.
struct Seen<'a> {
    path: &'a str,
    line: usize,
    /// Counted from one.
    column: usize,
    /// The value where it is a scalar; the key itself is seen once before, without a value.
    scalar: Option<&'a str>,
}

/// A collection that was begun and not ended; `base` is the length of its path.
enum Frame {
    Mapping { base: usize, wants_key: bool },
    Sequence { base: usize, next: usize },
}

/// Tells `see` of every key and entry, until the end or the first error.
fn walk(text: &str, mut see: impl FnMut(&Seen<'_>)) {
    let mut frames: Vec<Frame> = Vec::new();
    let mut path = String::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { return };
        let at = (span.start.line(), span.start.col() + 1);
        match event {
            Event::Scalar(value, ..) => {
                let is_key = begin(&mut frames, &mut path, Some(&value), at, &mut see);
                if !is_key {
                    let (line, column) = at;
                    see(&Seen { path: &path, line, column, scalar: Some(&value) });
                }
                end(&mut frames, &mut path, is_key);
            }
            Event::Alias(_) => {
                let is_key = begin(&mut frames, &mut path, None, at, &mut see);
                end(&mut frames, &mut path, is_key);
            }
            Event::MappingStart(..) => {
                begin(&mut frames, &mut path, None, at, &mut see);
                frames.push(Frame::Mapping { base: path.len(), wants_key: true });
            }
            Event::SequenceStart(..) => {
                begin(&mut frames, &mut path, None, at, &mut see);
                frames.push(Frame::Sequence { base: path.len(), next: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                frames.pop();
                let is_key = matches!(frames.last(), Some(Frame::Mapping { wants_key: true, .. }));
                end(&mut frames, &mut path, is_key);
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | _ => {}
        }
    }
}

/// A node begins: the path leads to it. Says whether it is the key of an entry.
fn begin(
    frames: &mut [Frame],
    path: &mut String,
    scalar: Option<&str>,
    (line, column): (usize, usize),
    see: &mut impl FnMut(&Seen<'_>),
) -> bool {
    match frames.last_mut() {
        Some(Frame::Mapping { wants_key: true, .. }) => {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(scalar.unwrap_or("?"));
            see(&Seen { path, line, column, scalar: None });
            true
        }
        Some(Frame::Sequence { next, .. }) => {
            path.push_str(&format!("[{next}]"));
            see(&Seen { path, line, column, scalar: None });
            false
        }
        Some(Frame::Mapping { wants_key: false, .. }) | None => false,
    }
}

/// A node ends: its key waits for a value, or the path leads back to what holds it.
fn end(frames: &mut [Frame], path: &mut String, is_key: bool) {
    match frames.last_mut() {
        Some(Frame::Mapping { base, wants_key }) => {
            if !is_key {
                path.truncate(*base);
            }
            *wants_key = !is_key;
        }
        Some(Frame::Sequence { base, next }) => {
            path.truncate(*base);
            *next += 1;
        }
        None => path.clear(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
kind: EgressPolicy
metadata:
  name: checkout   # a comment
  labels: {a: b}
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: checkout
  egress:
  - to: [{fqdn: a.test},
         {fqdn: b.test}]
    ports:
    - port: 443
  -
    to:
    - cidr: &net 10.0.0.0/8
    - cidr: *net
";

    #[test]
    fn fields_are_found_on_the_line_of_their_key() {
        for (path, line, why) in [
            ("kind", 1, "the first"),
            ("metadata.labels.a", 4, "flow mapping"),
            ("spec.podSelector.matchLabels.app.kubernetes.io/name", 8, "a key with dots"),
            ("spec.egress[0].to[0].fqdn", 10, "flow sequence"),
            ("spec.egress[0].to[1].fqdn", 11, "flow sequence over lines"),
            ("spec.egress[0].ports[0].port", 13, "block sequence"),
            ("spec.egress[1].to", 15, "an entry that begins on a line of its own"),
            ("spec.egress[1].to[1].cidr", 17, "an alias"),
            ("spec.egress[1].to[1].except[0]", 17, "missing: the line of what should hold it"),
            ("spec.mode", 5, "missing: the line of the mapping"),
            ("status.conditions", 1, "missing altogether"),
        ] {
            assert_eq!(lines(POLICY, 1, [path])[path], line, "{path}: {why}");
            assert_eq!(lines(POLICY, 40, [path])[path], line + 39, "{path}: from another line");
        }
        let both = lines(POLICY, 1, ["kind", "spec.egress[1].to"]);
        assert_eq!(both, BTreeMap::from([("kind", 1), ("spec.egress[1].to", 15)]));
    }

    #[test]
    fn complex_keys_and_nested_sequences_do_not_derail_the_walk() {
        let text = "? [a, {b: c}]\n: {d: 1}\ne:\n- - x\n  - y\nf: 1\n";
        assert_eq!(lines(text, 1, ["f"])["f"], 6);
        assert_eq!(lines(text, 1, ["e[0][1]"])["e[0][1]"], 5);
    }

    #[test]
    fn what_was_begun_before_the_error_is_told() {
        let text = POLICY.replace("- port: 443", "- port: [443");
        let found = broken(&text, 13, 14);
        assert_eq!(found.kind.as_deref(), Some("EgressPolicy"));
        assert_eq!(found.name.as_deref(), Some("checkout"));
        assert_eq!(found.field.as_deref(), Some("spec.egress[0].ports[0].port"));
    }

    #[test]
    fn names_after_the_place_count_too() {
        let found =
            broken("spec: {a: 1, a: 2}\nkind: Pod\nmetadata: {name: x, namespace: y}\n", 1, 14);
        let text = |text: &str| Some(text.to_owned());
        let expected = Broken {
            kind: text("Pod"),
            namespace: text("y"),
            name: text("x"),
            field: text("spec.a"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_entry_of_a_list_is_told_by_its_own_names() {
        let text = "kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n- kind: Node\n  \
                    metadata: {name: b}\n  x: 1\n- kind: Service\n  metadata: {name: c}\n";
        let found = broken(text, 7, 3);
        assert_eq!(found.kind.as_deref(), Some("Node"));
        assert_eq!(found.name.as_deref(), Some("b"));
        assert_eq!(found.field.as_deref(), Some("items[1].x"));
    }
}
