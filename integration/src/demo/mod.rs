//! The demo: a story told step by step on a real town, each step checked.
//!
//! [`story`] knows what happens, [`stage`] how it is told, [`summary`] what came of it.

mod questions;
mod stage;
mod story;
mod summary;

use std::env;
use std::fs::File;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::agent::Agent;
use crate::lab::{self, Lab};
use crate::manifests::Manifests;
use crate::scene::Scene;
use crate::town::Town;
use stage::Stage;
use summary::Summary;

/// The prefix of the demo's namespaces, which is what `examples/town` calls them.
const TOWN: &str = "town";
const LOCK: &str = "/run/namegate-demo.lock";
/// An address stays open for this long after an answer (a real node keeps the defaults, 30 s and
/// 60 s), so that the story needs no patience.
const LIFE: [&str; 4] = ["--min-ttl", "1s", "--ttl-grace", "1s"];

/// Builds the town, tells the story, and says whether everything went as told.
pub fn run() -> Result<bool> {
    if let Some(reason) = lab::missing() {
        bail!("the demo {reason}");
    }
    let lock = File::create(LOCK).with_context(|| format!("cannot write {LOCK}"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another demo is running on this machine");
    }
    let interrupted = clean_up_when_interrupted()?;
    let keep = env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    let started = Instant::now();
    let stage = Stage::new();
    let mut scene = set_up(&stage, keep)?;
    let mut summary = Summary::default();
    for (number, step) in (1..).zip(story::STEPS) {
        let result = step.tell(number, &stage, &mut scene);
        while interrupted.load(Ordering::Relaxed) {
            thread::park();
        }
        stage.result(&result);
        summary.add(step.title, result);
    }
    if keep {
        stay(&stage, scene);
    } else {
        summary.add("everything is cleaned up", clean_up(&stage, scene));
    }
    stage.line(&summary.table(started.elapsed(), &stage));
    Ok(summary.all_passed())
}

/// Removes a town that `KEEP=1` left standing.
pub fn clean() -> Result<()> {
    lab::sweep(TOWN)
}

fn set_up(stage: &Stage, keep: bool) -> Result<Scene> {
    stage.progress("building a town: a node with a bridge, pods shop/checkout, shop/web, data/db,");
    stage.progress("a resolver (unbound), an authoritative server (nsd), sites with TLS (nginx)");
    let town = Town::build(Lab::named(TOWN)?)?;
    let manifests = Manifests::town(&town.lab)?;
    stage.progress("starting: namegate agent --manifests examples/town --watch --audit-log FILE");
    let mut arguments = LIFE.to_vec();
    if !keep {
        arguments.push("--detach-on-exit");
    }
    let scene = Scene::begin(town, manifests, &arguments)?;
    stage.progress("every pod's interface is under policy");
    Ok(scene)
}

fn clean_up(stage: &Stage, scene: Scene) -> Result<String> {
    stage.step("Cleaning up", "The agent ends, the interfaces are as found, the town goes.");
    let status = scene.agent.stop(Signal::TERM)?;
    if !status.success() {
        bail!("the agent ended with {status}");
    }
    drop(scene.town);
    let left = lab::leftovers(TOWN)?;
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    let outcome = "no namespace, process, pin or file is left".to_owned();
    stage.happens(&outcome);
    Ok(outcome)
}

fn stay(stage: &Stage, scene: Scene) {
    let folder = scene.town.lab.folder();
    let folder = folder.display();
    stage.line(&format!(
        "\nThe town stands (KEEP=1). Look around:\n\
         \x20 tail -f {folder}/audit.log\n\
         \x20 ip netns exec town-checkout curl --cacert {folder}/ca.pem https://api.stripe.com/\n\
         \x20 ip netns exec town-checkout dig evil.example\n\
         \x20 ip netns exec town-web nc -zv 10.244.1.30 5432\n\
         \x20 $EDITOR {folder}/manifests/checkout-apis.yaml    (takes effect when saved)\n\
         Remove it with `make demo-clean`, or run the demo again."
    ));
    let Scene { agent, town, .. } = scene;
    Agent::release(agent);
    town.keep();
}

/// On Ctrl-C, removes the town from under the story and ends the process. Says so by the flag, since
/// the step that runs then fails for no fault of its own.
fn clean_up_when_interrupted() -> Result<Arc<AtomicBool>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            flag.store(true, Ordering::Relaxed);
            eprintln!("\ndemo: interrupted, cleaning up");
            if let Err(error) = clean() {
                eprintln!("demo: {error:#}");
            }
            exit(128 + signal);
        }
    });
    Ok(interrupted)
}
