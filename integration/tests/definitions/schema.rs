//! The structural schema of a definition as JSON Schema, in which a field that is not named is a fault: the
//! API server drops it, and refuses it where `kubectl apply` asks it to (`--validate=strict`, its default).

use anyhow::{Result, bail};
use boon::{Compiler, Schemas, ValidationError};
use serde_json::{Value, json};

/// What means in JSON Schema what it means in a structural schema.
const ALIKE: [&str; 13] = [
    "enum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "required",
    "type",
    "uniqueItems",
    "minProperties",
];

/// What restricts nothing; rules are asked apart.
const SILENT: [&str; 6] = [
    "default",
    "description",
    "format",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
];

/// The paths of what `schema` does not take, with the reasons.
pub(crate) fn faults(schema: &Value, object: &Value) -> Result<Vec<String>> {
    let place = "namegate.json";
    let mut compiler = Compiler::new();
    compiler
        .add_resource(place, json_schema(schema)?)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut schemas = Schemas::new();
    let index =
        compiler.compile(place, &mut schemas).map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let mut faults = Vec::new();
    if let Err(error) = schemas.validate(object, index) {
        tell(&error, &mut faults);
    }
    Ok(faults)
}

/// What is wrong at the end of each chain of causes.
fn tell(error: &ValidationError<'_, '_>, faults: &mut Vec<String>) {
    if error.causes.is_empty() {
        faults.push(format!("{}: {}", error.instance_location, error.kind));
    }
    for cause in &error.causes {
        tell(cause, faults);
    }
}

fn json_schema(schema: &Value) -> Result<Value> {
    let mut made = json!({});
    let Some(fields) = schema.as_object() else { bail!("no schema: {schema}") };
    for (key, value) in fields {
        match key.as_str() {
            key if ALIKE.contains(&key) => made[key] = value.clone(),
            key if SILENT.contains(&key) => {}
            "properties" => {
                let Some(properties) = value.as_object() else { bail!("no properties: {value}") };
                for (name, property) in properties {
                    made["properties"][name] = json_schema(property)?;
                }
                made["additionalProperties"] = false.into();
            }
            "items" | "additionalProperties" if value.is_object() => {
                made[key] = json_schema(value)?
            }
            "x-kubernetes-int-or-string" => made["type"] = json!(["integer", "string"]),
            "nullable" => {}
            other => bail!("{other} says something that this test does not know"),
        }
    }
    if schema["nullable"] == true {
        made["type"] = json!([made["type"], "null"]);
    }
    Ok(made)
}
