//! What a running agent says over its socket, and what it says where it cannot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::agent::binary;
use namegate_integration::process::run;
use namegate_integration::scene::Scene;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn socket_answers_its_owner_and_goes_with_the_agent() -> Result<()> {
    let test = "socket_answers_its_owner_and_goes_with_the_agent";
    let Some(scene) = Scene::for_test(test, &["--metrics-listen", "127.0.0.1:9753"])? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    let mode = fs::metadata(agent.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for the agent's user alone");

    let asked = agent.ask(&["endpoints"])?;
    assert!(asked.status.success(), "{}", asked.stderr);
    let endpoints: Value = serde_json::from_str(&asked.stdout)?;
    let pods: Vec<&str> =
        endpoints.as_array().unwrap().iter().filter_map(|item| item["pod"].as_str()).collect();
    assert!(pods.contains(&"checkout") && pods.contains(&"web"), "{pods:?}");

    for (path, expected) in [
        ("/readyz", "enforcing"),
        ("/healthz", "ok"),
        ("/metrics", "# EOF"),
        ("/v1/endpoints", "no such path"),
    ] {
        let url = format!("http://127.0.0.1:9753{path}");
        let mut curl = town.node.namespace.command("curl");
        let got = run(curl.args(["-sS", "--max-time", "5", &url]), Duration::from_secs(10))?;
        assert!(got.stdout.contains(expected), "{path}: {} {}", got.stdout, got.stderr);
    }

    let socket = agent.socket().to_owned();
    assert!(agent.stop(Signal::TERM)?.success());
    assert!(!socket.exists(), "goes with the agent");
    Ok(())
}

#[test]
fn a_command_without_an_agent_says_what_to_do() -> Result<()> {
    let mut command = Command::new(binary()?);
    command.args(["endpoints", "--socket", "/run/namegate-nobody/none.sock"]);
    let asked = run(&mut command, Duration::from_secs(5))?;
    assert_eq!(asked.status.code(), Some(1));
    assert!(asked.stderr.contains("no agent answers on /run/namegate-nobody/none.sock"));
    assert!(asked.stdout.is_empty());
    Ok(())
}
