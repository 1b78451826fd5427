//! What becomes of a hook that another program takes: seen within a second, put right, and told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use namegate_integration::addresses::{DB, EVIL, STRIPE};
use namegate_integration::agent::binary;
use namegate_integration::flood::{Flood, Sink};
use namegate_integration::patience::wait_until;
use namegate_integration::process::{Finished, run};
use namegate_integration::rival::{self, Hook, Rival, RivalFilter};
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

const SOON: Duration = Duration::from_secs(10);

/// A port that no policy opens.
const DENIED: u16 = 9_999;

/// How soon it has to be seen that a hook is not the agent's.
const IN_TIME: Duration = Duration::from_secs(1);
/// How often that is tried: of all together the agent says sixteen.
const ROUNDS: usize = 3;

struct Stage {
    scene: Scene,
    traffic: Traffic,
    ready_file: PathBuf,
}

/// Datagrams without end that one hook of a pod denies, and where they would arrive.
struct Traffic {
    flood: Flood,
    sink: Sink,
    hook: Hook,
    interface: String,
    index: u32,
    /// How long it took each time until the agent saw that the hook was not its own.
    noticed: Vec<Duration>,
}

impl Traffic {
    /// What the checkout must not send, or what must not be sent to the database.
    fn start(town: &Town, hook: Hook) -> Result<Self> {
        let (from, pod, to) = match hook {
            Hook::Ingress => (&town.checkout.namespace, &town.checkout, EVIL.v4),
            Hook::Egress => (&town.internet, &town.db, DB.v4),
        };
        let at = match hook {
            Hook::Ingress => &town.internet,
            Hook::Egress => &town.db.namespace,
        };
        let denied = SocketAddr::from((to, DENIED));
        Ok(Self {
            sink: Sink::open(at, denied)?,
            flood: Flood::start(from, denied, 5_000)?,
            index: town.node.namespace.interface_index(&pod.interface)?,
            interface: pod.interface.clone(),
            noticed: Vec::new(),
            hook,
        })
    }

    /// What the agent calls the hook: by the pod's point of view.
    const fn direction(&self) -> &'static str {
        match self.hook {
            Hook::Ingress => "egress",
            Hook::Egress => "ingress",
        }
    }
}

impl Stage {
    /// The town, and the checkout sending what is denied without end.
    fn for_test(name: &str) -> Result<Option<Self>> {
        let ready_file = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let arguments = ["--ready-file", ready_file.to_str().context("a path of text")?];
        let Some(scene) = Scene::for_test(name, &arguments)? else { return Ok(None) };
        let traffic = Traffic::start(&scene.town, Hook::Ingress)?;
        let mut stage = Self { scene, traffic, ready_file };
        stage.expect_nothing_passed()?;
        Ok(Some(stage))
    }

    /// Goes on with what this hook denies.
    fn turn_to(&mut self, hook: Hook) -> Result<()> {
        if self.traffic.hook != hook {
            self.traffic = Traffic::start(&self.scene.town, hook)?;
        }
        self.expect_nothing_passed()
    }

    fn expect_nothing_passed(&mut self) -> Result<()> {
        self.expect_closed()?;
        assert_eq!(self.traffic.sink.received()?, 0, "{:?}", self.traffic.hook);
        Ok(())
    }

    /// Sees many datagrams sent and none of them arrive.
    fn expect_closed(&mut self) -> Result<()> {
        let (sent, received) = (self.traffic.flood.sent(), self.traffic.sink.received()?);
        wait_until("the flood to go on", SOON, || Ok(self.traffic.flood.sent() > sent + 1_000))?;
        assert_eq!(
            self.traffic.sink.received()?,
            received,
            "the agent said:\n{}",
            self.scene.agent.log()
        );
        Ok(())
    }

    /// Waits until the agent has said `text`.
    fn expect_said(&self, text: &str) -> Result<()> {
        wait_until(&format!("{text:?}"), SOON, || Ok(self.scene.agent.log().contains(text)))
            .with_context(|| format!("the agent said:\n{}", self.scene.agent.log()))
    }

    /// Waits until the agent has said `text` of the hook `times` times, and notes how long that took.
    fn expect_noticed(&mut self, text: &str, times: usize) -> Result<()> {
        let began = Instant::now();
        let traffic = &self.traffic;
        let hook =
            [format!("ifindex={} ", traffic.index), format!("direction={:?}", traffic.direction())];
        wait_until(&format!("{text:?} of {hook:?}, {times} times"), SOON, || {
            let log = self.scene.agent.log();
            let is_it =
                |line: &&str| line.contains(text) && hook.iter().all(|word| line.contains(word));
            Ok(log.lines().filter(is_it).count() >= times)
        })
        .with_context(|| format!("the agent said:\n{}", self.scene.agent.log()))?;
        self.traffic.noticed.push(began.elapsed());
        Ok(())
    }

    /// All of it was seen in time, but for once at most: the machine may have been busy.
    fn expect_in_time(&self) {
        let Traffic { noticed, hook, .. } = &self.traffic;
        println!("{hook:?}: seen after {noticed:?}");
        assert!(noticed.len() >= ROUNDS);
        let late = noticed.iter().filter(|took| **took >= IN_TIME).count();
        assert!(late <= 1, "{hook:?}: seen after {noticed:?}");
    }

    fn ready(&self) -> Result<Finished> {
        let mut command = self.scene.town.node.namespace.command(binary()?);
        run(command.args(["ready", "--ready-file"]).arg(&self.ready_file), SOON)
    }

    /// Where it is kept that the checkout's program is attached.
    fn pin(&self) -> Result<PathBuf> {
        let version = only_entry(&self.scene.town.lab.pins())?;
        let folder = if self.has_filters() { "filters" } else { "links" };
        Ok(version.join(folder).join(format!(
            "{}-{}",
            self.traffic.index,
            self.traffic.direction()
        )))
    }

    /// Whether the agent attached its programs as filters.
    fn has_filters(&self) -> bool {
        self.scene.agent.log().contains("attach=clsact")
    }

    fn rival(&self, count: u32) -> Result<Rival> {
        let (lab, node) = (&self.scene.town.lab, &self.scene.town.node.namespace);
        Rival::before(lab, node, self.traffic.index, self.traffic.hook, count)
    }

    /// One that comes before the agent's program where that is.
    fn rival_of_its_kind(&self) -> Result<Either> {
        if !self.has_filters() {
            return Ok(Either::Link { _held: self.rival(1)? });
        }
        let node = &self.scene.town.node.namespace;
        let held = RivalFilter::before(node, &self.traffic.interface, self.traffic.hook)?;
        Ok(Either::Filter { _held: held })
    }

    /// Takes the agent's program off its hook.
    fn detach(&self) -> Result<()> {
        let node = &self.scene.town.node.namespace;
        if self.has_filters() {
            return rival::clear(node, &self.traffic.interface);
        }
        rival::detach(node, &self.pin()?)
    }
}

/// A rival, whatever holds it.
enum Either {
    Link { _held: Rival },
    Filter { _held: RivalFilter },
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The agent is killed, and leaves its file.
        let _left = std::fs::remove_file(&self.ready_file);
    }
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    assert_eq!(entries.len(), 1, "{entries:?}");
    Ok(entries[0].path())
}

#[test]
fn a_program_that_comes_before_the_agents_is_put_behind_it() -> Result<()> {
    let test = "a_program_that_comes_before_the_agents_is_put_behind_it";
    let Some(mut stage) = Stage::for_test(test)? else { return Ok(()) };
    for hook in [Hook::Ingress, Hook::Egress] {
        stage.turn_to(hook)?;
        let mut times = 0;
        // Now and then it is put behind so soon that nothing comes between.
        let rival = loop {
            times += 1;
            assert!(times <= 20, "a rival lets something pass, or this shows nothing");
            let rival = stage.rival_of_its_kind()?;
            stage.expect_noticed("another program was put before the agent's", times)?;
            if times >= ROUNDS && stage.traffic.sink.received()? > 0 {
                break rival;
            }
        };
        stage.expect_in_time();
        stage.expect_closed()?;
        assert_eq!(stage.ready()?.code(), 0);
        drop(rival);
        stage.expect_closed()?;
    }
    stage.scene.town.checkout.resolve("api.stripe.com")?;
    stage.scene.town.checkout.try_tcp((STRIPE.v4, 443).into())??;
    stage.scene.agent.check()
}

#[test]
fn a_program_that_is_taken_away_comes_back() -> Result<()> {
    let test = "a_program_that_is_taken_away_comes_back";
    let Some(mut stage) = Stage::for_test(test)? else { return Ok(()) };
    for hook in [Hook::Ingress, Hook::Egress] {
        stage.turn_to(hook)?;
        let mut times = 0;
        // Now and then it is put back so soon that nothing comes between.
        while times < ROUNDS || stage.traffic.sink.received()? == 0 {
            times += 1;
            assert!(times <= 20, "something passes, or this shows nothing");
            stage.detach()?;
            stage.expect_noticed("the agent's program was detached", times)?;
        }
        stage.expect_in_time();
        stage.expect_closed()?;
    }

    // With its pins, too: what is pinned again is there for the next agent.
    std::fs::remove_dir_all(stage.pin()?.parent().unwrap())?;
    if stage.has_filters() {
        stage.detach()?;
    }
    // The log tells of the first findings alone, and there were more by now.
    let pin = stage.pin()?;
    wait_until("the program to be known as attached again", SOON, || Ok(pin.exists()))?;
    stage.expect_closed()?;
    assert_eq!(stage.ready()?.code(), 0);
    stage.scene.agent.check()
}

#[test]
fn a_hook_that_cannot_be_put_right_is_not_ready() -> Result<()> {
    let test = "a_hook_that_cannot_be_put_right_is_not_ready";
    let Some(mut stage) = Stage::for_test(test)? else { return Ok(()) };
    let town = &stage.scene.town;
    let (node, interface) = (&town.node.namespace, &town.checkout.interface);
    // The kernel takes 63 programs a hook (kernel/bpf/mprog.c): with the agent's own these are all.
    let rivals = if stage.has_filters() { None } else { Some(stage.rival(62)?) };
    if rivals.is_none() {
        rival::occupy(node, interface)?;
    }
    stage.expect_said("programs cannot be put where they belong")?;
    wait_until("the agent not to be ready", SOON, || Ok(stage.ready()?.code() == 1))?;
    let said = stage.ready()?.stderr;
    assert!(said.contains(&format!("not ready: interface {}", stage.traffic.index)), "{said}");
    if rivals.is_none() {
        rival::vacate(node, interface)?;
    }
    drop(rivals);
    wait_until("the agent to be ready again", SOON, || Ok(stage.ready()?.code() == 0))?;
    stage.expect_closed()?;
    stage.scene.agent.check()
}
