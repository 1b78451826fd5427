//! The files in `examples/` are what they say: valid, and in step with the town.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{CHECKOUT, DB, KUBE_DNS, KUBE_DNS_SERVICE, WEB};
use namegate_integration::agent;
use namegate_integration::manifests::examples;
use namegate_integration::process::run;

#[test]
fn every_example_passes_the_check() -> Result<()> {
    let mut command = Command::new(agent::binary()?);
    let finished = run(command.arg("check").arg(examples()), Duration::from_secs(20))?;
    assert_eq!(finished.code(), 0, "{}{}", finished.stdout, finished.stderr);
    Ok(())
}

#[test]
fn town_manifests_carry_the_towns_addresses() -> Result<()> {
    let text = fs::read_to_string(examples().join("town/cluster.yaml"))?;
    for pair in [CHECKOUT, WEB, DB, KUBE_DNS, KUBE_DNS_SERVICE] {
        for address in [pair.v4.to_string(), pair.v6.to_string()] {
            assert!(text.contains(&address), "{address}");
        }
    }
    Ok(())
}
