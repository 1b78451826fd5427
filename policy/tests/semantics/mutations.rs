//! Documents with one thing wrong: parsing never panics, and what is refused names its field.

use std::fs;
use std::path::Path;

use namegate_policy::object::{self, Object};
use serde_json::{Map, Value, json};

use crate::corpus;

/// A field that no kind has.
const UNEXPECTED: &str = "unexpectedField";

#[test]
fn one_broken_field_is_refused_by_its_path_or_harmless() {
    let (mut accepted, mut refused) = (0, 0);
    for document in documents() {
        for place in places(&document) {
            for mutant in mutants(&document, &place) {
                match object::parse(mutant.clone()) {
                    Ok(_) => accepted += 1,
                    Err(error) => {
                        refused += 1;
                        let field = error.field().unwrap_or_default();
                        let is_there =
                            leads_somewhere(&mutant, field) || leads_somewhere(&document, field);
                        assert!(is_there, "{error}\nnames no field of {mutant}");
                        let is_named = error.to_string().len() > error.kind.len() + 2;
                        assert!(is_named, "{error} says nothing about {mutant}");
                    }
                }
            }
        }
    }
    eprintln!("{accepted} documents with one thing wrong were accepted, {refused} refused");
    assert!(refused > accepted, "most of what is broken is noticed");
}

/// A field that nothing reads would be a rule that silently is not there.
#[test]
fn a_field_too_many_in_a_policy_is_refused_by_its_path() {
    let mut tried = 0;
    for document in documents() {
        if !matches!(object::parse(document.clone()), Ok(Object::Policy(_))) {
            continue;
        }
        for place in places(&document) {
            let is_map = place.iter().any(|step| {
                matches!(step, Step::Field(name)
                    if matches!(name.as_str(), "matchLabels" | "metadata" | "status"))
            });
            let mut mutant = document.clone();
            let Some(Value::Object(fields)) = at(&mut mutant, &place) else { continue };
            if is_map {
                continue;
            }
            fields.insert(UNEXPECTED.to_owned(), json!({"a": [1]}));
            tried += 1;
            // Of a peer, the object counts that it does not have.
            let error =
                object::parse(mutant.clone()).err().unwrap_or_else(|| panic!("accepted: {mutant}"));
            let field = error.field().unwrap_or_default();
            assert!(field.ends_with(UNEXPECTED), "{error}\nfor {mutant}");
        }
    }
    assert!(tried > 500, "{tried} places");
}

/// The project's own cases and examples, and published policies where they are given.
fn documents() -> Vec<Value> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = Vec::new();
    for file in corpus::manifests(&here.join("tests/semantics/cases")) {
        let entries: Vec<Value> =
            serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for entry in entries {
            let listed = entry.get("objects").and_then(Value::as_array).cloned();
            documents.extend(listed.unwrap_or_else(|| vec![entry]));
        }
    }
    let mut files = corpus::manifests(&here.join("../examples"));
    files.extend(corpus::directory().iter().flat_map(|path| corpus::manifests(path)));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_default();
        let expanded = read.into_iter().flat_map(object::expand);
        documents.extend(expanded.map(|(_, document)| document));
    }
    documents.retain(|document| object::parse(document.clone()).is_ok());
    assert!(documents.len() > 100, "{} documents", documents.len());
    documents
}

/// One step from a value to one inside it.
#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Entry(usize),
}

/// The ways to every value inside, the document itself first.
fn places(document: &Value) -> Vec<Vec<Step>> {
    let mut found = vec![Vec::new()];
    let inner: Vec<(Step, &Value)> = match document {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (Step::Field(name.clone()), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (Step::Entry(index), value)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for (step, value) in inner {
        found.extend(places(value).into_iter().map(|mut way| {
            way.insert(0, step.clone());
            way
        }));
    }
    found
}

fn at<'a>(document: &'a mut Value, place: &[Step]) -> Option<&'a mut Value> {
    place.iter().try_fold(document, |value, step| match step {
        Step::Field(name) => value.get_mut(name),
        Step::Entry(index) => value.get_mut(index),
    })
}

/// The document with the value at `place` gone, doubled, or another.
fn mutants(document: &Value, place: &[Step]) -> Vec<Value> {
    let mut mutants = Vec::new();
    let replacements = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(70_000),
        json!(1.5),
        json!(""),
        json!("no such \u{0} value \u{fc}"),
        json!([]),
        json!([{}]),
        json!({}),
        json!({UNEXPECTED: {}}),
    ];
    for replacement in replacements {
        let mut mutant = document.clone();
        if let Some(value) = at(&mut mutant, place) {
            *value = replacement;
            mutants.push(mutant);
        }
    }
    let Some((last, parent)) = place.split_last() else { return mutants };
    let mut removed = document.clone();
    let mut doubled = document.clone();
    match (at(&mut removed, parent), at(&mut doubled, parent), last) {
        (Some(Value::Object(fields)), _, Step::Field(name)) => {
            fields.remove(name);
            mutants.push(removed);
        }
        (Some(Value::Array(fewer)), Some(Value::Array(more)), Step::Entry(index)) => {
            fewer.remove(*index);
            let twice = more[*index].clone();
            more.push(twice);
            mutants.extend([removed, doubled]);
        }
        _ => {}
    }
    mutants
}

/// Whether `path` names a value of the document, or something that is missing from one.
fn leads_somewhere(value: &Value, path: &str) -> bool {
    if path.is_empty() {
        return true;
    }
    let is_one_step = !path.trim_start_matches('.').contains(['.', '[']) || path.ends_with(']');
    let goes_on = match value {
        Value::Object(fields) => is_in(fields, path.strip_prefix('.').unwrap_or(path)),
        Value::Array(list) => path
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
            .and_then(|(index, rest)| Some((list.get(index.parse::<usize>().ok()?)?, rest)))
            .is_some_and(|(inner, rest)| leads_somewhere(inner, rest)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    goes_on || is_one_step
}

/// Keys can have dots themselves.
fn is_in(fields: &Map<String, Value>, path: &str) -> bool {
    fields.iter().any(|(name, inner)| {
        path.strip_prefix(name.as_str()).is_some_and(|rest| {
            (rest.is_empty() || rest.starts_with(['.', '['])) && leads_somewhere(inner, rest)
        })
    })
}
