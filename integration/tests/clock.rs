//! A node's wall clock that is set while the agent runs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_integration::addresses::{DB, DB_PORT, EVIL, STRIPE};
use namegate_integration::agent::Agent;
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::pod::echo;
use namegate_integration::town::Town;
use namegate_integration::wall_clock::WallClock;

const SOON: Duration = Duration::from_secs(10);
/// The one clause that each warning has.
const WARNING: &str = "the node's clock was set";

#[test]
fn a_clock_that_is_set_is_told_of_and_changes_nothing_that_is_in_force() -> Result<()> {
    let test = "a_clock_that_is_set_is_told_of_and_changes_nothing_that_is_in_force";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let clock = WallClock::new(&town.lab)?;
    let manifests = Manifests::town(&town.lab)?;
    let agent = Agent::spawn_with(&town, &manifests, clock.environment(), &[])?;
    let mut agent = agent.expect_ready()?;
    let site = SocketAddr::from((STRIPE.v4, 443));
    let evil = SocketAddr::from((EVIL.v4, 443));
    let mut live = town.checkout.connect((DB.v4, DB_PORT).into())??;
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");

    // Far beyond what any name is open for, and back behind the agent's start.
    for (times, seconds, how) in [(1, 86_400, "forward"), (2, -86_400, "back")] {
        clock.set(seconds)?;
        let said = format!("{WARNING} {how} by ");
        wait_until(&said, SOON, || Ok(agent.log().contains(&said)))
            .with_context(|| format!("the agent said:\n{}", agent.log()))?;
        echo(&mut live)?;
        town.checkout.try_tcp(site)?.context("what was learned before is open")?;
        assert!(town.checkout.try_tcp(evil)?.is_err());
        assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
        assert_eq!(agent.log().matches(WARNING).count(), times, "{}", agent.log());
    }
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    town.checkout.try_tcp(site)??;
    agent.check()
}
