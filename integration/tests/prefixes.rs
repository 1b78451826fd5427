//! Tables that mean the same by their prefixes share rows: written once, kept for as long as one of them is
//! there, found again by the next agent, and joined by nobody once their removal has begun.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{Direction, Mac};
use namegate_egress_bpf::compile::TableRows;
use namegate_egress_bpf::datapath::{
    Datapath, EndpointEntry, Options, RanVerdict, Settings, fail_writes,
};
use namegate_egress_bpf::packet::{TCP_SYN, protocol};
use namegate_egress_bpf::sim::frame;
use namegate_integration::lab;
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::table::{
    CidrPeer, CidrReach, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier, PolicyTable,
};

/// The loopback, which test runs happen on.
const IFINDEX: u32 = 1;
const OWN: [u8; 4] = [10, 244, 1, 5];
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Two sets of prefixes, what each opens, and what is cut out of the first.
const ONE: &[&str] = &["203.0.113.0/24", "198.51.100.0/24"];
const OTHER: &[&str] = &["192.0.2.0/24"];
const CUT_OUT: &str = "203.0.113.128/25";
const IN_ONE: [u8; 4] = [203, 0, 113, 7];
const IN_CUT_OUT: [u8; 4] = [203, 0, 113, 200];
const IN_OTHER: [u8; 4] = [192, 0, 2, 7];
const ROWS_OF_ONE: usize = 3;
const ROWS_OF_OTHER: usize = 1;

/// Maps under pins that go away whatever becomes of the test.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

impl Pins {
    fn new(name: &str) -> Self {
        let path = format!("/sys/fs/bpf/namegate-test-{name}-{}", std::process::id());
        Self(PathBuf::from(path))
    }

    fn open(&self) -> Result<Datapath> {
        let options = Options { pin_root: self.0.clone(), ..Options::default() };
        let (mut datapath, _events) = Datapath::open(&options)?;
        datapath.configure(&Settings::default())?;
        datapath.set_complete(true)?;
        Ok(datapath)
    }
}

fn mk_rows(table: u32, nets: &[&str]) -> TableRows {
    let cut_out = || Vec::from([CUT_OUT.parse().unwrap()]);
    let peer = |net: &&str| CidrPeer {
        net: net.parse().unwrap(),
        except: if **net == *ONE[0] { cut_out() } else { Vec::new() },
        reach: CidrReach::All,
    };
    // A list of its own, as in the table of another policy that says the same.
    let cidrs = Arc::new(nets.iter().map(peer).collect());
    let clause = |peers| Clause {
        action: ClauseAction::Forward,
        tier: ClauseTier::Namespaced,
        peers,
        ports: ClausePorts::Any,
        origins: Arc::new([]),
    };
    let (domain, search) = (DnsName::root(), Vec::new());
    let names =
        NamePolicy::ungoverned(Arc::new(ClusterNames { domain, search, ranges: Vec::new() }));
    let policy = PolicyTable {
        identity: Identity::FIRST_WORKLOAD,
        egress: vec![clause(ClausePeers { cidrs, ..ClausePeers::default() })],
        ingress: Vec::new(),
        names: Arc::new(names),
    };
    TableRows::compile(table, &policy)
}

/// Judges the pod by `table`, and says which of the three addresses are open to it.
fn open_under(datapath: &mut Datapath, table: u32) -> Result<[bool; 3]> {
    datapath.set_endpoint(&EndpointEntry {
        ifindex: IFINDEX,
        identity: Identity::FIRST_WORKLOAD,
        table,
        generation: table,
        epoch: table,
        is_dns_governed: false,
        is_translated: false,
        mac: Some(MAC.0),
        addresses: BTreeSet::from([IpAddr::from(OWN)]),
    })?;
    let mut open = [false; 3];
    for (open, remote) in open.iter_mut().zip([IN_ONE, IN_CUT_OUT, IN_OTHER]) {
        let payload = frame::tcp(20_000, 443, TCP_SYN);
        let packet = frame::ip(MAC, (OWN.into(), remote.into()), protocol::TCP, &payload);
        let ran = datapath.run(Direction::Egress, &packet, 1).context("a test run")?;
        *open = ran.verdict == RanVerdict::Next;
    }
    Ok(open)
}

fn prefixes(datapath: &Datapath) -> Result<usize> {
    datapath.rows()?.get("CIDRS").copied().context("rows of CIDRS")
}

#[test]
fn prefixes_are_written_once_and_stay_while_a_table_means_them() -> Result<()> {
    if !lab::can_run("prefixes_are_written_once_and_stay_while_a_table_means_them")? {
        return Ok(());
    }
    let pins = Pins::new("prefixes");
    let mut datapath = pins.open()?;
    for (table, nets, rows) in
        [(1, ONE, ROWS_OF_ONE), (2, ONE, ROWS_OF_ONE), (3, OTHER, ROWS_OF_ONE + ROWS_OF_OTHER)]
    {
        datapath.install(table, &mk_rows(table, nets))?;
        ensure!(prefixes(&datapath)? == rows, "{} with table {table}", prefixes(&datapath)?);
    }
    ensure!(open_under(&mut datapath, 1)? == [true, false, false]);
    ensure!(open_under(&mut datapath, 3)? == [false, false, true]);
    datapath.remove_table(1)?;
    ensure!(open_under(&mut datapath, 2)? == [true, false, false], "as before the first went");

    drop(datapath);
    let mut datapath = pins.open()?;
    ensure!(prefixes(&datapath)? == ROWS_OF_ONE + ROWS_OF_OTHER, "as the former agent left them");
    datapath.install(4, &mk_rows(4, ONE))?;
    ensure!(prefixes(&datapath)? == ROWS_OF_ONE + ROWS_OF_OTHER, "found again");
    ensure!(open_under(&mut datapath, 4)? == [true, false, false]);
    datapath.remove_table(2)?;
    ensure!(open_under(&mut datapath, 4)? == [true, false, false], "as before the second went");
    datapath.remove_endpoint(IFINDEX)?;
    datapath.remove_table(4)?;
    ensure!(prefixes(&datapath)? == ROWS_OF_OTHER, "nobody means the others");
    datapath.remove_table(3)?;
    ensure!(prefixes(&datapath)? == 0);
    Ok(())
}

#[test]
fn whichever_write_of_shared_prefixes_fails_they_stay_whole() -> Result<()> {
    if !lab::can_run("whichever_write_of_shared_prefixes_fails_they_stay_whole")? {
        return Ok(());
    }
    let pins = Pins::new("prefixes-fail");
    let mut datapath = pins.open()?;
    let mut table = 0;
    for before in 0.. {
        let mut failed = 0;
        // One comes, one joins it, and the first goes; the write after `before` fails in each.
        let (first, second, third) = (table + 1, table + 2, table + 3);
        table += 3;
        let mut step = |datapath: &mut Datapath, act: &dyn Fn(&mut Datapath) -> bool| {
            fail_writes(before, 1);
            let is_done = act(datapath);
            if fail_writes(0, 0).1 == 0 {
                failed += 1;
            }
            is_done || act(datapath)
        };
        let install = |number| {
            move |datapath: &mut Datapath| datapath.install(number, &mk_rows(number, ONE)).is_ok()
        };
        let remove = |number| move |datapath: &mut Datapath| datapath.remove_table(number).is_ok();
        ensure!(step(&mut datapath, &install(first)), "write {before}");
        ensure!(step(&mut datapath, &install(second)), "write {before}");
        ensure!(open_under(&mut datapath, second)? == [true, false, false], "write {before}");
        ensure!(step(&mut datapath, &remove(first)), "write {before}");
        ensure!(open_under(&mut datapath, second)? == [true, false, false], "write {before}");
        ensure!(prefixes(&datapath)? == ROWS_OF_ONE, "write {before}");

        // The last goes as far as it can; who comes then writes rows of its own.
        datapath.remove_endpoint(IFINDEX)?;
        fail_writes(before, 1);
        let is_gone = datapath.remove_table(second).is_ok();
        fail_writes(0, 0);
        datapath.install(third, &mk_rows(third, ONE))?;
        ensure!(open_under(&mut datapath, third)? == [true, false, false], "write {before}");
        datapath.remove_table(second)?;
        ensure!(open_under(&mut datapath, third)? == [true, false, false], "write {before}");
        ensure!(prefixes(&datapath)? == ROWS_OF_ONE, "write {before}");
        datapath.remove_endpoint(IFINDEX)?;
        datapath.remove_table(third)?;
        let left = datapath.rows()?;
        let left = ["TABLES", "PEERS", "CIDRS", "PORTS", "HITS"].map(|map| left[map]);
        ensure!(left == [0; 5], "write {before}: {left:?} rows are left");
        if failed == 0 && is_gone {
            ensure!(before >= 4, "only {before} writes were tried");
            return Ok(());
        }
    }
    Ok(())
}
