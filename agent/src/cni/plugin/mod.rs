//! The plugin: one command of the CNI specification 1.1, from environment and standard input to
//! standard output.
//!
//! It has no state and does one thing: ask the agent. Everything that earlier plugins made is handed
//! on as it came.

mod agent;
mod config;
mod reply;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::protocol::{AttachedPod, Attachment, Attachments};
use agent::Agent;
use config::{Config, FailurePolicy};
use reply::{Code, Refusal, SUPPORTED};

/// The largest configuration that is read: results of earlier plugins among it.
const CONFIG_MAX: u64 = 4 << 20;

/// Runs the command that the environment names, and says how it ended.
pub fn main() -> ExitCode {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut written = Vec::new();
    let read = io::stdin().lock().take(CONFIG_MAX).read_to_end(&mut written);
    let outcome = match read {
        Ok(_) => run(&environment, &written),
        Err(error) => Err(Refusal::new(Code::Io, "cannot read the configuration").because(error)),
    };
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(refusal) => {
            // Runtimes show what is on standard error where they cannot read the rest.
            eprintln!("{}: {refusal}", super::PLUGIN);
            (refusal.document().to_string(), ExitCode::FAILURE)
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One command: what to print, or why not.
fn run(environment: &BTreeMap<String, String>, written: &[u8]) -> Result<Option<Value>, Refusal> {
    let variable = |name: &str| {
        let value = environment.get(name).filter(|value| !value.is_empty());
        value.map(String::as_str).ok_or_else(|| {
            Refusal::new(Code::Environment, format!("{name} is not set; a CNI runtime sets it"))
        })
    };
    let command = variable("CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(Some(reply::versions()));
    }
    let config = Config::parse(written)?;
    if !SUPPORTED.contains(&config.version.as_str()) {
        let text = format!("cniVersion {:?} is none of {}", config.version, SUPPORTED.join(", "));
        return Err(Refusal::new(Code::Version, text));
    }
    let agent = Agent::new(&config.socket);
    let attachment = || -> Result<Attachment, Refusal> {
        Ok(Attachment {
            container_id: variable("CNI_CONTAINERID")?.to_owned(),
            interface: variable("CNI_IFNAME")?.to_owned(),
        })
    };
    match command {
        "ADD" => {
            variable("CNI_NETNS")?;
            add(&agent, &config, environment, attachment()?).map(Some)
        }
        "CHECK" => {
            variable("CNI_NETNS")?;
            let Some(pod) = attached_pod(&config, environment, attachment()?)? else {
                return Ok(None);
            };
            agent.ask("check", &pod, config.wait)?;
            Ok(None)
        }
        // Whatever is left of a pod must be able to go, the agent's absence notwithstanding: an
        // agent that comes back learns from the kernel and the API server that it is gone.
        "DEL" => {
            let attachment = attachment()?;
            said_or_not(agent.ask("del", &attachment, config.wait));
            Ok(None)
        }
        "GC" => {
            let valid = config.valid_attachments()?;
            said_or_not(agent.ask("gc", &Attachments { valid }, config.wait));
            Ok(None)
        }
        "STATUS" => match (agent.is_ready(config.wait), config.failure_policy) {
            (Ok(()), _) | (Err(_), FailurePolicy::Allow) => Ok(None),
            (Err(refusal), FailurePolicy::Fail) => Err(refusal.with_code(Code::NotAvailable)),
        },
        other => {
            let text = format!("CNI_COMMAND {other:?} is none that this plugin knows");
            Err(Refusal::new(Code::Environment, text))
        }
    }
}

fn add(
    agent: &Agent,
    config: &Config,
    environment: &BTreeMap<String, String>,
    attachment: Attachment,
) -> Result<Value, Refusal> {
    let result = config.previous()?.clone();
    let Some(pod) = attached_pod(config, environment, attachment)? else { return Ok(result) };
    match (agent.ask("add", &pod, config.wait), config.failure_policy) {
        (Ok(()), _) => Ok(result),
        (Err(refusal), FailurePolicy::Fail) => Err(refusal),
        (Err(refusal), FailurePolicy::Allow) => {
            agent::alarm(config, &pod, &refusal);
            Ok(result)
        }
    }
}

/// The pod that the command is about; `None` for a container that is no pod's, which has no policy.
fn attached_pod(
    config: &Config,
    environment: &BTreeMap<String, String>,
    attachment: Attachment,
) -> Result<Option<AttachedPod>, Refusal> {
    let arguments = environment.get("CNI_ARGS").map_or("", String::as_str);
    let argument = |name: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let (Some(namespace), Some(pod)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"))
    else {
        return Ok(None);
    };
    Ok(Some(AttachedPod {
        attachment,
        namespace,
        pod,
        uid: argument("K8S_POD_UID").filter(|uid| !uid.is_empty()),
        addresses: config.addresses()?,
        wait_ms: u64::try_from(config.wait.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// What could not be said to the agent is shown, and that is all.
fn said_or_not(said: Result<(), Refusal>) {
    if let Err(refusal) = said {
        eprintln!("{}: {refusal}", super::PLUGIN);
    }
}

#[cfg(test)]
mod tests;
