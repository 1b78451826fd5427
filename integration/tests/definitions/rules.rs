//! Rules in CEL, and the functions that Kubernetes adds to the language.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cel::extractors::This;
use cel::{Context, Program};
use ipnet::IpNet;
use namegate_integration::objects::{documents, text};
use serde_json::Value;

/// A rule of a schema, or a validation of an admission policy.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    expression: String,
    pub(crate) message: String,
}

impl Rule {
    /// Reads a rule; without a message it is refused by its own words, as by the API server.
    fn read(written: &Value, expression: &str) -> Result<Self> {
        let expression = text(written, expression)?.to_owned();
        let message = written["message"].as_str().unwrap_or(&expression).to_owned();
        Ok(Self { expression, message })
    }

    /// Whether a value of the schema is as the rule wants it.
    pub(crate) fn holds(&self, value: &Value) -> Result<bool> {
        is_true(&self.expression, [("self", cel_value(value))])
    }
}

/// The rules of a schema and everything below it.
pub(crate) fn all(schema: &Value) -> Result<Vec<Rule>> {
    let mut rules = own(schema)?;
    let properties = schema["properties"].as_object().into_iter().flatten();
    for below in properties.map(|(_, property)| property).chain(schema.get("items")) {
        rules.extend(all(below)?);
    }
    Ok(rules)
}

/// The rules of a schema, each with the values in `value` that it is about.
pub(crate) fn of<'a>(schema: &Value, value: &'a Value) -> Result<Vec<(Rule, &'a Value)>> {
    let mut found: Vec<_> = own(schema)?.into_iter().map(|rule| (rule, value)).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            found.extend(of(property, value)?);
        }
    }
    for entry in value.as_array().into_iter().flatten() {
        found.extend(of(&schema["items"], entry)?);
    }
    Ok(found)
}

fn own(schema: &Value) -> Result<Vec<Rule>> {
    let written = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    written.map(|written| Rule::read(written, "/rule")).collect()
}

/// A ValidatingAdmissionPolicy.
#[derive(Debug)]
pub(crate) struct Admission {
    name: String,
    conditions: Vec<String>,
    variables: Vec<(String, String)>,
    validations: Vec<Rule>,
}

impl Admission {
    /// Those of a template of the chart, rendered as for `helm install namegate -n kube-system`.
    pub(crate) fn of_template(template: &str) -> Result<Vec<Self>> {
        let mut text: String = template
            .lines()
            .filter(|line| !line.trim_start().starts_with("{{"))
            .fold(String::new(), |all, line| all + line + "\n");
        for (call, value) in [
            ("{{ $name }}", "namegate"),
            ("{{- include \"namegate.labels\" . | nindent 4 }}", "{}"),
            ("{{ .Values.admission.action }}", "Deny"),
            ("{{ .Release.Namespace }}", "kube-system"),
            ("{{ include \"namegate.serviceAccount\" . }}", "namegate"),
        ] {
            text = text.replace(call, value);
        }
        ensure!(!text.contains("{{"), "the template calls what this test does not know:\n{text}");
        let policies = documents(&text)?;
        let is_policy = |object: &&Value| object["kind"] == "ValidatingAdmissionPolicy";
        policies.iter().filter(is_policy).map(Self::read).collect()
    }

    fn read(object: &Value) -> Result<Self> {
        let list = |name: &str| object["spec"][name].as_array().cloned().unwrap_or_default();
        let expression = |entry: &Value| text(entry, "/expression").map(str::to_owned);
        let variable = |entry: &Value| -> Result<(String, String)> {
            Ok((text(entry, "/name")?.to_owned(), expression(entry)?))
        };
        Ok(Self {
            name: text(object, "/metadata/name")?.to_owned(),
            conditions: list("matchConditions").iter().map(expression).collect::<Result<_>>()?,
            variables: list("variables").iter().map(variable).collect::<Result<_>>()?,
            validations: list("validations")
                .iter()
                .map(|written| Rule::read(written, "/expression"))
                .collect::<Result<_>>()?,
        })
    }

    /// Whether this is the one whose name ends so.
    pub(crate) fn is_about(&self, subject: &str) -> bool {
        self.name == format!("namegate-{subject}")
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = String> {
        self.validations.iter().map(|rule| rule.message.clone())
    }

    /// Why it refuses a request that `given` describes.
    pub(crate) fn faults(&self, given: &BTreeMap<String, Value>) -> Result<Vec<String>> {
        let given = || given.iter().map(|(name, value)| (name.as_str(), cel_value(value)));
        for condition in &self.conditions {
            if !is_true(condition, given())? {
                return Ok(Vec::new());
            }
        }
        let mut variables: HashMap<String, cel::Value> = HashMap::new();
        for (name, expression) in &self.variables {
            let known = cel::Value::Map(variables.clone().into());
            let value = evaluate(expression, given().chain([("variables", known)]))?;
            variables.insert(name.clone(), value);
        }
        let mut faults = Vec::new();
        for Rule { expression, message } in &self.validations {
            let known = cel::Value::Map(variables.clone().into());
            if !is_true(expression, given().chain([("variables", known)]))? {
                faults.push(message.clone());
            }
        }
        Ok(faults)
    }
}

fn is_true<'a>(
    expression: &str,
    variables: impl IntoIterator<Item = (&'a str, cel::Value)>,
) -> Result<bool> {
    let answer = evaluate(expression, variables)?;
    let cel::Value::Bool(is_true) = answer else {
        bail!("{expression}: {answer:?} is no answer");
    };
    Ok(is_true)
}

fn evaluate<'a>(
    expression: &str,
    variables: impl IntoIterator<Item = (&'a str, cel::Value)>,
) -> Result<cel::Value> {
    let program = Program::compile(expression).map_err(|error| anyhow!("{expression}: {error}"))?;
    let mut context = Context::default();
    add_functions(&mut context).context("functions that the interpreter has already")?;
    for (name, value) in variables {
        context.add_variable_from_value(name, value);
    }
    program.execute(&context).map_err(|error| anyhow!("{expression}: {error}"))
}

/// The library for prefixes (k8s.io/apiserver/pkg/cel/library/cidr.go); a prefix is kept as its text.
fn add_functions(context: &mut Context) -> Result<()> {
    let net = |text: &str| text.parse::<IpNet>().ok();
    let failed = |error: cel::DeclarationError| anyhow!("{error}");
    context
        .add_function("isCIDR", move |text: Arc<String>| net(&text).is_some())
        .map_err(failed)?;
    context.add_function("cidr", |text: Arc<String>| text).map_err(failed)?;
    context
        .add_function("containsCIDR", move |This(outer): This<Arc<String>>, inner: Arc<String>| {
            net(&outer).zip(net(&inner)).is_some_and(|(outer, inner)| outer.contains(&inner))
        })
        .map_err(failed)?;
    context
        .add_function("prefixLength", move |This(text): This<Arc<String>>| {
            net(&text).map_or(-1, |net| i64::from(net.prefix_len()))
        })
        .map_err(failed)?;
    Ok(())
}

/// A value as the API server hands it to rules: a whole number is an `int`.
fn cel_value(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(is_true) => cel::Value::Bool(*is_true),
        Value::Number(number) => match number.as_i64() {
            Some(number) => cel::Value::Int(number),
            None => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(entries) => {
            cel::Value::List(Arc::new(entries.iter().map(cel_value).collect()))
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), cel_value(value)));
            cel::Value::Map(fields.collect::<HashMap<_, _>>().into())
        }
    }
}
