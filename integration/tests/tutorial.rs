//! The tutorials do what they say: their own lines, run in their order; those for clusters by their script.

#[path = "tutorial/clusters.rs"]
mod clusters;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::process::{Daemon, Finished, run};
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::Signal;

const TUTORIAL: &str = include_str!("../../docs/tutorial-no-cluster.md");
const LIMIT: Duration = Duration::from_secs(20);

/// What the reader does: a shell whose settings last, and an agent in another.
struct Reader<'a> {
    town: &'a Town,
    manifests: &'a Manifests,
    of_the_demo: Option<Agent>,
    settings: Vec<String>,
    agent: Option<Daemon>,
}

#[test]
fn tutorial_does_what_it_says() -> Result<()> {
    let Some(scene) = Scene::for_test("tutorial_does_what_it_says", &[])? else {
        return Ok(());
    };
    let Scene { agent: of_the_demo, manifests, town, .. } = scene;
    let of_the_demo = Some(of_the_demo);
    let mut reader = Reader {
        town: &town,
        manifests: &manifests,
        of_the_demo,
        settings: Vec::new(),
        agent: None,
    };
    for block in blocks(&reader.in_the_lab(TUTORIAL)) {
        if !block.contains("make demo") {
            reader.follow(&block).with_context(|| format!("in the lines\n{block}"))?;
        }
    }
    let mut agent = reader.agent.context("no agent was started")?;
    ensure!(agent.stop(Signal::INT, LIMIT)?.success(), "{}", agent.log());
    Ok(())
}

impl Reader<'_> {
    /// The text with this lab's names in the place of the demo's.
    fn in_the_lab(&self, text: &str) -> String {
        let lab = &self.town.lab;
        let folder = lab.folder().display().to_string();
        text.replace("examples/town", &self.manifests.folder().display().to_string())
            .replace("/netns/town-", &format!("/netns/{}-", lab.prefix()))
            .replace("pids town-", &format!("pids {}-", lab.prefix()))
            .replace("namegate-town", &format!("namegate-{}", lab.prefix()))
            .replace("/tmp/", &format!("{folder}/"))
    }

    fn follow(&mut self, block: &str) -> Result<()> {
        if let Some(start) = block.find("nsenter").filter(|_| block.contains("namegate agent")) {
            self.end_the_demos_agent(&block[..start])?;
            return self.start(&block[start..]);
        }
        self.settings
            .extend(block.lines().filter(|line| line.starts_with("export ")).map(str::to_owned));
        if !block.contains(" # ") {
            return self.run(block)?.success().map(drop);
        }
        for line in block.lines() {
            match line.split_once(" # ") {
                Some((command, promise)) => self.expect(command.trim(), promise)?,
                None => self.run(line)?.success().map(drop)?,
            }
        }
        Ok(())
    }

    /// Ends the agent that the demo left, as whoever started it reaps it meanwhile.
    fn end_the_demos_agent(&mut self, script: &str) -> Result<()> {
        let agent = self.of_the_demo.take();
        thread::scope(|scope| {
            let reaped = agent.map(|mut agent| {
                scope.spawn(move || {
                    wait_until("the demo's agent to end", LIMIT, || Ok(agent.check().is_err()))
                })
            });
            self.run(script)?.success()?;
            reaped.map_or(Ok(()), |reaped| match reaped.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("whoever reaps broke off"),
            })
        })
    }

    /// Starts an agent in the place of the one before, which ends as by Ctrl-C.
    fn start(&mut self, line: &str) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            ensure!(agent.stop(Signal::INT, LIMIT)?.success(), "{}", agent.log());
        }
        let log = self.town.lab.file("tutorial-agent.log");
        let agent = Daemon::start(&mut self.shell(&format!("exec {line}"))?, &log)?;
        wait_until("the agent to enforce", LIMIT, || Ok(agent.log().contains("enforcing objects")))
            .with_context(|| agent.log())?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Runs a line until it does what is promised beside it: changes take their moment.
    fn expect(&self, command: &str, promise: &str) -> Result<()> {
        wait_until(&format!("{command}: {promise}"), LIMIT, || {
            let done = self.run(command)?;
            let said = format!("{}{}", done.stdout, done.stderr);
            Ok(match promise {
                "an address" => done.stdout.starts_with(|first: char| first.is_ascii_digit()),
                "connects" => done.code() == 0,
                "times out" | "times out: not for web" => said.contains("TIMEOUT"),
                "REFUSED" => said.contains("status: REFUSED"),
                "healthy"
                | "does not go through"
                | "would be"
                | "0 errors"
                | "error[invalid]"
                | "fqdn: api.stripe.com" => said.contains(promise),
                "the most refused" => said.lines().count() == 4,
                _ => bail!("what shows that {promise:?}?"),
            })
        })
    }

    fn run(&self, script: &str) -> Result<Finished> {
        run(&mut self.shell(script)?, LIMIT)
    }

    fn shell(&self, script: &str) -> Result<Command> {
        let binary = binary()?;
        let folder = binary.parent().context("a folder")?.display().to_string();
        let mut command = Command::new("bash");
        let settings = self.settings.join("\n");
        // The programs under test, wherever they were built.
        let path = format!("export PATH={folder}:$PATH");
        command.args(["-euo", "pipefail", "-c", &format!("{settings}\n{path}\n{script}")]);
        command.env("NO_COLOR", "1");
        Ok(command)
    }
}

/// The lines between fences.
fn blocks(text: &str) -> Vec<String> {
    let parts = text.split("```sh\n").skip(1);
    parts.filter_map(|part| part.split_once("```").map(|(block, _)| block.to_owned())).collect()
}
