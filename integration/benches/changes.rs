//! What a policy costs that changes: one of 1,000 patterns and 1,000 prefixes, of all 100 pods of a node, which
//! are copies of one workload or of 100. A change is every tenth pattern and prefix another. Times are the
//! agent's own, from the parsed object to the write after which the last pod is judged by it.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::agent::Agent;
use namegate_integration::lab::{self, Lab};
use namegate_integration::manifests::Manifests;
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::wait_until;
use namegate_integration::process::run;
use rustix::process::Signal;

const PODS: usize = 100;
const PATTERNS: usize = 1_000;
const PREFIXES: usize = 1_000;
const CHANGES: usize = 30;
const LIMIT: Duration = Duration::from_secs(60);

/// What the agent counted so far: changes, and the seconds that they took.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    changes: f64,
    compile: f64,
    write: f64,
    processor: f64,
}

fn main() -> Result<()> {
    if !lab::can_run("bench-changes")? {
        return Ok(());
    }
    println!("milliseconds: least, median, most of {CHANGES} changes");
    println!("workloads  compiled             written              both                 processor");
    for workloads in [1, PODS] {
        let changes = measure(&Lab::named("bench-changes")?, workloads)?;
        let columns: [fn(&Reading) -> f64; 4] = [
            |change| change.compile,
            |change| change.write,
            |change| change.compile + change.write,
            |change| change.processor,
        ];
        let shown = columns.map(|column| spread(changes.iter().map(column).collect()));
        println!("{workloads:>9}  {}", shown.join("  "));
    }
    Ok(())
}

/// Changes the policy again and again, and says what each change took.
fn measure(lab: &Lab, workloads: usize) -> Result<Vec<Reading>> {
    let node = Namespace::create(&lab.namespace("node"))?;
    let plugs: Vec<String> = (0..PODS)
        .flat_map(|pod| {
            let plug = format!("link add veth{pod} type veth peer name pod{pod}");
            [plug, format!("link set veth{pod} up")]
        })
        .collect();
    node.ip(&Vec::from_iter(plugs.iter().map(String::as_str)))?;
    let manifests = Manifests::empty(lab)?;
    manifests.write("pods.yaml", &mk_pods(workloads))?;
    manifests.write("policy.yaml", &mk_policy(0))?;
    let arguments = ["--resolver", "192.0.2.53"];
    let agent = Agent::spawn_on(lab, &node, &manifests, None, &arguments)?.expect_ready()?;
    let mut seen = read(&agent)?;
    let mut changes = Vec::new();
    for change in 1..=CHANGES {
        let before = seen;
        manifests.write("policy.yaml", &mk_policy(change))?;
        wait_until("the change to be in force", LIMIT, || {
            seen = read(&agent)?;
            Ok(seen.changes > before.changes)
        })?;
        changes.push(Reading {
            changes: seen.changes - before.changes,
            compile: seen.compile - before.compile,
            write: seen.write - before.write,
            processor: seen.processor - before.processor,
        });
    }
    agent.stop(Signal::TERM)?;
    Ok(changes)
}

fn spread(mut seconds: Vec<f64>) -> String {
    seconds.sort_unstable_by(f64::total_cmp);
    let [least, median, most] =
        [0, seconds.len() / 2, seconds.len() - 1].map(|place| seconds[place] * 1e3);
    format!("{least:>5.2} {median:>6.2} {most:>7.2}")
}

fn mk_pods(workloads: usize) -> String {
    let mut text = String::new();
    for pod in 0..PODS {
        let (app, last) = (pod % workloads, pod + 1);
        let _infallible = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata:
  name: pod{pod}
  namespace: shop
  labels: {{tier: web, app: app{app}}}
  annotations: {{namegate.dev/interface: veth{pod}}}
status: {{podIPs: [{{ip: 10.244.1.{last}}}]}}
"
        );
    }
    text
}

fn mk_policy(change: usize) -> String {
    let other = |number, count| if number % 10 == 0 { number + change * count } else { number };
    let mut text = "apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {tier: web}}
  egress:
  - to:
"
    .to_owned();
    for pattern in (0..PATTERNS).map(|number| other(number, PATTERNS)) {
        let _infallible = writeln!(text, "    - fqdn: \"*.tenant-{pattern:x}.example\"");
    }
    for prefix in (0..PREFIXES).map(|number| other(number, PREFIXES)) {
        let [_, a, b, c] = u32::try_from(prefix).unwrap_or(0).to_be_bytes();
        let _infallible = writeln!(text, "    - cidr: {}.{b}.{c}.0/24", 20 + a);
    }
    text
}

fn read(agent: &Agent) -> Result<Reading> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "http://agent/metrics", "--unix-socket"]);
    let text = run(curl.arg(agent.socket()), LIMIT)?.success()?;
    let value = |name: &str| -> Result<f64> {
        let name = format!("namegate_apply_duration_seconds_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        Ok(line.with_context(|| format!("the agent does not tell {name}"))?.parse()?)
    };
    let mut processor = 0.0;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.process_id()))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran = text.split(' ').next().context("what a thread ran for")?;
        processor += ran.parse::<f64>()? / 1e9;
    }
    Ok(Reading {
        changes: value("count{step=\"write\"}")?,
        compile: value("sum{step=\"compile\"}")?,
        write: value("sum{step=\"write\"}")?,
        processor,
    })
}
