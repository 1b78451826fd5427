//! The audit log of a running agent under those who would break it: every line keeps to the published
//! schema, and no sink, however slow or dead, holds up a lookup or the end.

use std::fs::{File, OpenOptions};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use namegate_integration::addresses::{EVIL, KUBE_DNS_SERVICE, STRIPE};
use namegate_integration::lab::Lab;
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::process::{resident_kib, run};
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;
use rustix::process::Signal;
use serde_json::{Value, json};

const HOSTILE_NAMES: usize = 10_000;

/// What a pod may put in the log in this test, of refusals and of the rest each.
const RATE: &str = "100";

#[test]
fn every_line_keeps_to_the_published_schema_while_a_pod_floods() -> Result<()> {
    let test = "every_line_keeps_to_the_published_schema_while_a_pod_floods";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let manifests = Manifests::town(&town.lab)?;
    let path = town.lab.file("syslog");
    let _never_reads = UnixDatagram::bind(&path)?;
    let syslog = format!("unix:{}", path.display());
    let arguments = ["--audit-syslog", &syslog, "--audit-rate", RATE];
    let scene = Scene::begin(town, manifests, &arguments)?;
    let (checkout, web) = (&scene.town.checkout, &scene.town.web);
    let mark = scene.agent.audit.mark()?;
    let before = resident_kib(scene.agent.process_id())?;

    let socket = checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let evil = checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..HOSTILE_NAMES {
        socket.send_to(&random.query(), (KUBE_DNS_SERVICE.v4, 53))?;
        evil.send_to(b"x", (EVIL.v4, 1 + u16::try_from(number % 60_000)?))?;
        if number % 2_500 == 0 {
            assert_eq!(web.resolve("api.stripe.com")?.status, "NOERROR", "others are served");
        }
    }
    web.try_tcp((STRIPE.v4, 443).into())??;
    let of_web = [("kind", "flow"), ("source.pod", "web"), ("destination.names", "api.stripe.com")];
    scene.agent.audit.expect(mark, &of_web)?;

    let grown = resident_kib(scene.agent.process_id())?.saturating_sub(before);
    ensure!(grown < 64 << 10, "{grown} KiB more than before {HOSTILE_NAMES} names");
    let audit = scene.agent.audit.path().to_owned();
    scene.agent.stop(Signal::TERM)?;
    let lines = checked_lines(&audit)?;
    let of_checkout: Vec<&Value> =
        lines.iter().filter(|line| line["endpoint"]["pod"] == "checkout").collect();
    let count = |kind: &str| of_checkout.iter().filter(|line| line["kind"] == kind).count();
    ensure!(count("dns") > 0 && count("flow") > 0, "{} lines", lines.len());
    let bound: u64 = of_checkout.iter().filter_map(|line| line["rate"]["refused"].as_u64()).sum();
    ensure!(bound > 1_000, "{bound} were said to be kept out of {}", lines.len());
    ensure!(count("dns") + count("flow") < HOSTILE_NAMES, "the rate bounds what is written");
    let is_refusal = |line: &Value| line["verdict"] == "denied" || line["verdict"] == "dropped";
    for line in of_checkout.iter().filter(|line| is_refusal(line)) {
        ensure!(
            line["policies"][0]["name"] == "checkout-apis"
                || line["policy"]["name"] == "checkout-apis",
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn log_that_nobody_reads_holds_up_neither_lookups_nor_the_end() -> Result<()> {
    let test = "log_that_nobody_reads_holds_up_neither_lookups_nor_the_end";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let pipe = town.lab.file("audit.log");
    run(Command::new("mkfifo").arg(&pipe), Duration::from_secs(5))?;
    let never_read = open_both_ends(&pipe)?;
    let manifests = Manifests::town(&town.lab)?;
    let scene = Scene::begin(town, manifests, &["--audit-rate", "0"])?;
    let checkout = &scene.town.checkout;
    let evil = checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    // Far more than a pipe and all queues hold.
    for number in 0..30_000_u16 {
        evil.send_to(b"x", (EVIL.v4, 1 + number))?;
    }
    for _ in 0..3 {
        assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR");
        checkout.try_tcp((STRIPE.v4, 443).into())??;
    }
    let began = Instant::now();
    scene.agent.stop(Signal::TERM)?;
    ensure!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    drop(never_read);
    Ok(())
}

#[test]
fn a_full_disk_costs_records_that_are_told_and_nothing_else() -> Result<()> {
    const FILLER: usize = 1 << 20;
    let test = "a_full_disk_costs_records_that_are_told_and_nothing_else";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let disk = SmallDisk::mount(&town.lab, "1280k")?;
    std::fs::write(disk.0.join("filler"), vec![0; FILLER])?;
    std::os::unix::fs::symlink(disk.0.join("audit.log"), town.lab.file("audit.log"))?;
    let manifests = Manifests::town(&town.lab)?;
    let scene = Scene::begin(town, manifests, &["--audit-rate", "0"])?;
    let checkout = &scene.town.checkout;
    let evil = checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let mut port = 1;
    wait_until("the disk to be full", Duration::from_secs(60), || {
        for _ in 0..500 {
            evil.send_to(b"x", (EVIL.v4, port))?;
            port = port % 60_000 + 1;
        }
        Ok(scene.agent.log().contains("cannot write the audit log"))
    })?;
    assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR", "lookups go on");
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    ensure!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err(), "enforcement goes on");

    std::fs::remove_file(disk.0.join("filler"))?;
    wait_until("the log to go on", Duration::from_secs(20), || {
        evil.send_to(b"x", (EVIL.v4, 7))?;
        Ok(scene.agent.log().contains("the audit log works again"))
    })?;
    let log = disk.0.join("audit.log");
    scene.agent.stop(Signal::TERM)?;
    let lines = checked_lines(&log)?;
    let lost: u64 = lines
        .iter()
        .filter(|line| line["kind"] == "lost" && line["source"] == "sink")
        .filter_map(|line| line["count"].as_u64())
        .sum();
    ensure!(lost > 0, "no loss is told among {} lines", lines.len());
    Ok(())
}

#[test]
fn file_is_rotated_and_never_outgrows_its_bound() -> Result<()> {
    const MEBIBYTE: u64 = 1 << 20;
    let test = "file_is_rotated_and_never_outgrows_its_bound";
    let arguments = ["--audit-log-max-size", "1Mi", "--audit-log-keep", "1", "--audit-rate", "0"];
    let Some(scene) = Scene::for_test(test, &arguments)? else { return Ok(()) };
    let checkout = &scene.town.checkout;
    let evil = checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let current = scene.agent.audit.path().to_owned();
    let earlier = current.with_extension("log.1");
    let mut port = 1;
    wait_until("a second rotation", Duration::from_secs(60), || {
        for _ in 0..500 {
            evil.send_to(b"x", (EVIL.v4, port))?;
            port = port % 60_000 + 1;
        }
        for file in [&current, &earlier] {
            let size = std::fs::metadata(file).map_or(0, |is| is.len());
            ensure!(size <= MEBIBYTE, "{}: {size}", file.display());
        }
        Ok(port > 6_000 && earlier.exists())
    })?;
    ensure!(!current.with_extension("log.2").exists(), "one is kept");
    scene.agent.stop(Signal::TERM)?;
    checked_lines(&current)?;
    checked_lines(&earlier)?;
    Ok(())
}

/// The lines of a log, each held against the schema that the docs publish, without fields that it
/// does not know.
fn checked_lines(log: &Path) -> Result<Vec<Value>> {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/audit-v1.schema.json");
    let mut schema: Value = serde_json::from_reader(File::open(published)?)?;
    schema["unevaluatedProperties"] = json!(false);
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    let refused = |error: &dyn std::fmt::Display| anyhow!("the schema: {error}");
    compiler.add_resource("audit.json", schema).map_err(|error| refused(&error))?;
    let index = compiler.compile("audit.json", &mut schemas).map_err(|error| refused(&error))?;
    let octets = std::fs::read(log)?;
    ensure!(octets.iter().all(|octet| matches!(octet, b'\n' | b' '..=b'~')), "not ASCII");
    let text = String::from_utf8(octets)?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        schemas.validate(&value, index).map_err(|error| anyhow!("{line}\n{error:#}"))?;
        lines.push(value);
    }
    ensure!(!lines.is_empty(), "{} is empty", log.display());
    Ok(lines)
}

/// A file system of a bounded size, for as long as this value lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(lab: &Lab, size: &str) -> Result<Self> {
        let place = std::env::temp_dir().join(lab.namespace("disk"));
        std::fs::create_dir_all(&place)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "namegate-test"]).arg(&place);
        run(&mut command, Duration::from_secs(5))?.success()?;
        Ok(Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // An agent that a failed test left behind may still have the log open.
        let unmounted = run(Command::new("umount").arg("-l").arg(&self.0), Duration::from_secs(5));
        let gone = unmounted.and_then(|done| done.success());
        if let Err(error) = gone.and_then(|_| Ok(std::fs::remove_dir(&self.0)?)) {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}

/// A pipe that is open for reading and that nobody reads.
fn open_both_ends(pipe: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).open(pipe)?)
}

/// Small, seeded and good enough to make names.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A query for a name of up to four labels of octets that terminals, parsers and shells mind.
    fn query(&mut self) -> Vec<u8> {
        const HOSTILE: &[u8] =
            b"\x1b[2J\x1b]0;\x07\"\\{}',:\n\r\0\t\x7f\x80\x9b\xff\xe2\x80\xae<>&`$()";
        let mut message = vec![0; 12];
        message[..2].copy_from_slice(&(self.next() as u16).to_be_bytes());
        message[2] = 1;
        message[5] = 1;
        for _ in 0..1 + self.next() % 4 {
            let length = 1 + (self.next() % 60) as u8;
            message.push(length);
            for _ in 0..length {
                let octet = HOSTILE[self.next() as usize % HOSTILE.len()];
                message.push(if self.next().is_multiple_of(4) { self.next() as u8 } else { octet });
            }
        }
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        message
    }
}
