//! What becomes of a hook that another program takes: seen within a second, put right, and told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use namegate_integration::addresses::EVIL;
use namegate_integration::agent::binary;
use namegate_integration::flood::{Flood, Sink};
use namegate_integration::patience::wait_until;
use namegate_integration::process::{Finished, run};
use namegate_integration::rival::{self, Hook, Rival, RivalFilter};
use namegate_integration::scene::Scene;

const SOON: Duration = Duration::from_secs(10);

/// Somewhere that the checkout may not send to.
const DENIED: u16 = 9_999;

struct Stage {
    scene: Scene,
    flood: Flood,
    sink: Sink,
    ready_file: PathBuf,
    index: u32,
}

impl Stage {
    /// The town, and the checkout sending what is denied without end.
    fn for_test(name: &str) -> Result<Option<Self>> {
        let ready_file = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let arguments = ["--ready-file", ready_file.to_str().context("a path of text")?];
        let Some(scene) = Scene::for_test(name, &arguments)? else { return Ok(None) };
        let denied = SocketAddr::from((EVIL.v4, DENIED));
        let sink = Sink::open(&scene.town.internet, denied)?;
        let flood = Flood::start(&scene.town.checkout.namespace, denied, 5_000)?;
        let index = scene.town.node.namespace.interface_index(&scene.town.checkout.interface)?;
        let mut stage = Self { scene, flood, sink, ready_file, index };
        stage.expect_closed()?;
        assert_eq!(stage.sink.received()?, 0);
        Ok(Some(stage))
    }

    /// Sees many datagrams sent and none of them arrive.
    fn expect_closed(&mut self) -> Result<()> {
        let (sent, received) = (self.flood.sent(), self.sink.received()?);
        wait_until("the flood to go on", SOON, || Ok(self.flood.sent() > sent + 1_000))?;
        assert_eq!(self.sink.received()?, received, "the agent said:\n{}", self.scene.agent.log());
        Ok(())
    }

    /// Waits until the agent has said `text` `times` times, and says how long that took.
    fn expect_said(&self, text: &str, times: usize) -> Result<()> {
        let began = Instant::now();
        wait_until(&format!("{text:?}, {times} times"), SOON, || {
            Ok(self.scene.agent.log().matches(text).count() >= times)
        })
        .with_context(|| format!("the agent said:\n{}", self.scene.agent.log()))?;
        println!("{text:?} after {:?}", began.elapsed());
        Ok(())
    }

    fn ready(&self) -> Result<Finished> {
        let mut command = self.scene.town.node.namespace.command(binary()?);
        run(command.args(["ready", "--ready-file"]).arg(&self.ready_file), SOON)
    }

    /// Where it is kept that the checkout's program is attached.
    fn pin(&self) -> Result<PathBuf> {
        let version = only_entry(&self.scene.town.lab.pins())?;
        let folder = if self.has_filters() { "filters" } else { "links" };
        Ok(version.join(folder).join(format!("{}-egress", self.index)))
    }

    /// Whether the agent attached its programs as filters.
    fn has_filters(&self) -> bool {
        self.scene.agent.log().contains("attach=clsact")
    }

    fn rival(&self, count: u32) -> Result<Rival> {
        let (lab, node) = (&self.scene.town.lab, &self.scene.town.node.namespace);
        Rival::before(lab, node, self.index, Hook::Ingress, count)
    }

    /// One that comes before the agent's program where that is.
    fn rival_of_its_kind(&self) -> Result<Either> {
        if !self.has_filters() {
            return Ok(Either::Link { _held: self.rival(1)? });
        }
        let town = &self.scene.town;
        let (node, interface) = (&town.node.namespace, &town.checkout.interface);
        let held = RivalFilter::before(node, interface, Hook::Ingress)?;
        Ok(Either::Filter { _held: held })
    }

    /// Takes the agent's program off its hook.
    fn detach(&self) -> Result<()> {
        let node = &self.scene.town.node.namespace;
        if self.has_filters() {
            return rival::clear(node, &self.scene.town.checkout.interface);
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
    let mut times = 0;
    // Now and then it is put behind so soon that nothing comes between.
    let rival = loop {
        times += 1;
        assert!(times <= 20, "a rival lets something pass, or this shows nothing");
        let rival = stage.rival_of_its_kind()?;
        stage.expect_said("another program was put before the agent's", times)?;
        if stage.sink.received()? > 0 {
            break rival;
        }
    };
    stage.expect_closed()?;
    assert_eq!(stage.ready()?.code(), 0);
    drop(rival);
    stage.expect_closed()?;
    stage.scene.town.checkout.resolve("api.stripe.com")?;
    stage
        .scene
        .town
        .checkout
        .try_tcp((namegate_integration::addresses::STRIPE.v4, 443).into())??;
    stage.scene.agent.check()
}

#[test]
fn a_program_that_is_taken_away_comes_back() -> Result<()> {
    let test = "a_program_that_is_taken_away_comes_back";
    let Some(mut stage) = Stage::for_test(test)? else { return Ok(()) };
    let mut times = 0;
    // Now and then it is put back so soon that nothing comes between.
    while times == 0 || stage.sink.received()? == 0 {
        times += 1;
        assert!(times <= 20, "something passes, or this shows nothing");
        stage.detach()?;
        stage.expect_said("the agent's program was detached", times)?;
    }
    stage.expect_closed()?;

    // With its pins, too: what is pinned again is there for the next agent.
    std::fs::remove_dir_all(stage.pin()?.parent().unwrap())?;
    if stage.has_filters() {
        stage.detach()?;
    }
    stage.expect_said("the agent's program was detached", times + 1)?;
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
    stage.expect_said("programs cannot be put where they belong", 1)?;
    wait_until("the agent not to be ready", SOON, || Ok(stage.ready()?.code() == 1))?;
    let said = stage.ready()?.stderr;
    assert!(said.contains(&format!("not ready: interface {}", stage.index)), "{said}");
    if rivals.is_none() {
        rival::vacate(node, interface)?;
    }
    drop(rivals);
    wait_until("the agent to be ready again", SOON, || Ok(stage.ready()?.code() == 0))?;
    stage.expect_closed()?;
    stage.scene.agent.check()
}
