//! Selectors of lists and watches.

use std::collections::BTreeMap;

use serde_json::Value;

use super::store::Refusal;

/// What of a kind is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection(Vec<Requirement>);

#[derive(Clone, Debug)]
struct Requirement {
    /// Where the value stands, as a JSON pointer.
    at: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selection {
    /// What the parameters of a request ask for.
    pub(super) fn of(query: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let mut all = Vec::new();
        for text in split(query.get("labelSelector").map_or("", String::as_str)) {
            all.push(label(text).ok_or_else(|| unreadable("labelSelector", text))?);
        }
        for text in split(query.get("fieldSelector").map_or("", String::as_str)) {
            all.push(field(text).ok_or_else(|| unreadable("fieldSelector", text))?);
        }
        Ok(Self(all))
    }

    /// Whether an object is among what is asked for.
    pub(super) fn selects(&self, object: &Value) -> bool {
        self.0.iter().all(|Requirement { at, test }| {
            let value = object.pointer(at).and_then(Value::as_str);
            match test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => {
                    value.is_some_and(|value| values.iter().any(|one| one == value))
                }
                Test::NotIn(values) => {
                    value.is_none_or(|value| values.iter().all(|one| one != value))
                }
            }
        })
    }
}

fn unreadable(parameter: &str, text: &str) -> Refusal {
    Refusal::new(400, "BadRequest", format!("unable to parse {parameter}: {text:?}"))
}

/// The requirements of a selector: commas inside of parentheses separate values.
fn split(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let at_top = move |symbol: char| {
        depth += i32::from(symbol == '(') - i32::from(symbol == ')');
        symbol == ',' && depth == 0
    };
    selector.split(at_top).map(str::trim).filter(|text| !text.is_empty())
}

/// Key, whether the values are those that are wanted, and the values.
fn comparison(text: &str) -> Option<(&str, bool, Vec<String>)> {
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, value)) = text.split_once("!=") {
        return Some((key.trim(), false, one(value)));
    }
    if let Some((key, value)) = text.split_once('=') {
        return Some((key.trim(), true, one(value.trim_start_matches('='))));
    }
    let (head, values) = text.strip_suffix(')')?.split_once('(')?;
    let (key, operator) = head.trim().rsplit_once(' ')?;
    let values = values.split(',').map(|value| value.trim().to_owned()).collect();
    match operator {
        "in" => Some((key.trim(), true, values)),
        "notin" => Some((key.trim(), false, values)),
        _ => None,
    }
}

fn test(is_wanted: bool, values: Vec<String>) -> Test {
    if is_wanted { Test::In(values) } else { Test::NotIn(values) }
}

fn label(text: &str) -> Option<Requirement> {
    let at = |key: &str| format!("/metadata/labels/{}", key.replace('~', "~0").replace('/', "~1"));
    if let Some((key, is_wanted, values)) = comparison(text) {
        return Some(Requirement { at: at(key), test: test(is_wanted, values) });
    }
    let (key, test) = match text.strip_prefix('!') {
        Some(key) => (key, Test::Absent),
        None => (text, Test::Exists),
    };
    let is_key = !key.contains([' ', '(', ')', '!']);
    is_key.then(|| Requirement { at: at(key), test })
}

/// A field is a path of names.
fn field(text: &str) -> Option<Requirement> {
    let (key, is_wanted, values) = comparison(text)?;
    Some(Requirement { at: format!("/{}", key.replace('.', "/")), test: test(is_wanted, values) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selected(parameter: &str, selector: &str) -> Result<Vec<&'static str>, u16> {
        let query = BTreeMap::from([(parameter.to_owned(), selector.to_owned())]);
        let selection = Selection::of(&query).map_err(|refusal| refusal.code)?;
        let objects = [
            ("web", json!({"app": "web", "a.b/team": "shop"}), "one"),
            ("db", json!({"app": "db"}), "two"),
            ("bare", json!({}), "one"),
        ];
        let is_selected = |(name, labels, node): &(&str, Value, &str)| {
            let metadata = json!({"name": name, "labels": labels});
            selection.selects(&json!({"metadata": metadata, "spec": {"nodeName": node}}))
        };
        Ok(objects.iter().filter(|object| is_selected(object)).map(|object| object.0).collect())
    }

    #[test]
    fn selectors_are_read_as_the_real_one_reads_them() {
        for (selector, expected) in [
            ("", &["web", "db", "bare"][..]),
            ("app=web", &["web"]),
            ("app==web", &["web"]),
            ("app!=web", &["db", "bare"]),
            ("app", &["web", "db"]),
            ("!app", &["bare"]),
            ("app in (web, db),a.b/team=shop", &["web"]),
            ("app notin (web,db)", &["bare"]),
        ] {
            assert_eq!(selected("labelSelector", selector).as_deref(), Ok(expected), "{selector}");
        }
        for (selector, expected) in [
            ("spec.nodeName=one", &["web", "bare"][..]),
            ("metadata.name!=web,spec.nodeName=one", &["bare"]),
        ] {
            assert_eq!(selected("fieldSelector", selector).as_deref(), Ok(expected), "{selector}");
        }
        assert_eq!(selected("labelSelector", "app near (web)"), Err(400));
        assert_eq!(selected("fieldSelector", "spec.nodeName"), Err(400));
    }
}
