use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::mpsc::Sender as Valve;
use std::time::Instant;

use namegate_dns_proxy::clients::{Client, EndpointLabel as Endpoint};
use namegate_dns_proxy::record::{
    AnsweredAddress as Answered, DnsVerdict, QueryType, Rcode, Transport as Asked,
};
use namegate_egress_bpf::abi::{Direction, DropReason, EventVerdict, Pass};
use namegate_egress_bpf::datapath::Reason;
use namegate_policy::dns::{ClusterNames, NamePolicy};
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;
use namegate_policy::time::Timestamp;
use serde_json::{Value, json};

use super::testing::{mk_dns, mk_flow, mk_policy};
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A sink in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Memory {
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    fn told(&self, source: &str) -> u64 {
        let lines = self.lines();
        let of = lines.iter().filter(|line| line["kind"] == "lost" && line["source"] == source);
        of.filter_map(|line| line["count"].as_u64()).sum()
    }

    fn count(&self, kind: &str) -> u64 {
        self.lines().iter().filter(|line| line["kind"] == kind).count() as u64
    }
}

fn start(sink: impl Write + Send + 'static, bounds: Bounds) -> (AuditLog, AuditWriter) {
    let config = AuditConfig { bounds, ..AuditConfig::default() };
    AuditLog::over(vec![Box::new(Stream(sink))], &config, Arc::default())
}

fn mk_decision(name: DnsName, verdict: DnsVerdict) -> DecisionRecord {
    let domain = DnsName::parse("cluster.local").unwrap();
    let names = ClusterNames { domain, search: Vec::new(), ranges: Vec::new() };
    let client = Client {
        endpoint: Endpoint { namespace: "shop".into(), pod: "checkout".into() },
        identity: Identity::FIRST_WORKLOAD,
        names: Arc::new(NamePolicy::ungoverned(Arc::new(names))),
    };
    DecisionRecord {
        verdict,
        client: Arc::new(client),
        source: "10.244.1.10:40000".parse().unwrap(),
        name,
        query_type: QueryType::A,
        rcode: Rcode::REFUSED,
        addresses: Vec::new(),
        policies: Vec::new(),
        resolver: "10.96.0.10".parse().unwrap(),
        transport: Asked::Udp,
        latency: Duration::from_micros(7),
        failure: None,
        cached: false,
    }
}

fn mk_event(number: u16) -> FlowEvent {
    FlowEvent {
        time: Timestamp::from_nanos(1),
        ifindex: 7,
        identity: Identity::new(256),
        remote_identity: Some(Identity::WORLD),
        local: "10.244.1.10".parse().unwrap(),
        remote: "203.0.113.1".parse().unwrap(),
        service: None,
        local_port: number,
        remote_port: 443,
        protocol: 6,
        direction: Direction::Egress,
        packet_direction: Direction::Egress,
        verdict: EventVerdict::Dropped,
        reason: Reason::Drop(DropReason::NoRule),
        table: 1,
        clause: None,
        audit: None,
        length: 60,
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Names that are meant to break a log: every octet, in several places of a label.
fn hostile_names() -> Vec<DnsName> {
    let mut texts: Vec<String> = Vec::new();
    for octet in 0..=255_u8 {
        texts.push(format!("\\{octet:03}.example"));
        texts.push(format!("a\\{octet:03}\\034\\125\\010\\092.example"));
    }
    texts.push("\\027[2j\\027]0\\059pwned\\007.example".to_owned());
    texts.push(r#"\034\044\034kind\034\058\034lost\034\125.example"#.to_owned());
    texts.push(format!("{0}.{0}.{0}.example", "\\255".repeat(63)));
    texts.iter().map(|text| DnsName::parse(text).expect(text)).collect()
}

/// A validator of the published schema that takes no field that the schema does not know.
struct Strict {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Strict {
    fn new() -> Self {
        let mut schema = serde_json::to_value(schema()).unwrap();
        for definition in schema["$defs"].as_object_mut().unwrap().values_mut() {
            if definition["type"] == "object" && definition["properties"].is_object() {
                definition["unevaluatedProperties"] = json!(false);
            }
        }
        let variants = schema["oneOf"].as_array().unwrap().clone();
        // The records themselves are looked at together with the line around them.
        for variant in &variants {
            let name = variant["$ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            schema["$defs"][name].as_object_mut().unwrap().remove("unevaluatedProperties");
        }
        schema["unevaluatedProperties"] = json!(false);
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("audit.json", schema).unwrap();
        let index = compiler.compile("audit.json", &mut schemas).unwrap();
        Self { schemas, index }
    }

    fn refusal(&self, line: &Value) -> Option<String> {
        self.schemas.validate(line, self.index).err().map(|error| format!("{error:#}"))
    }
}

#[test]
fn published_schema_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/audit-v1.schema.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == published,
        "`namegate schema audit > {}` and look at the difference: what is published may grow, and \
         may not change its meaning",
        path.display()
    );
}

#[test]
fn schema_refuses_what_is_no_record() {
    let strict = Strict::new();
    let mut entry = Vec::new();
    let record = mk_dns(LookupVerdict::Denied, "api.example.com");
    Entry { time: SystemTime::UNIX_EPOCH, record }.write_line(&mut entry).unwrap();
    let good: Value = serde_json::from_slice(&entry).unwrap();
    assert_eq!(strict.refusal(&good), None);
    let cases: [(&str, Value); 7] = [
        ("/verdict", json!("maybe")),
        ("/time", json!(7)),
        ("/schema", json!(2)),
        ("/kind", json!("other")),
        ("/endpoint/identity", json!("256")),
        ("/query", json!({"name": "a"})),
        ("/addresses", json!([{"address": "203.0.113.1", "ttl": 1, "more": 1}])),
    ];
    for (field, value) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(field).unwrap() = value;
        assert!(strict.refusal(&bad).is_some(), "{field}");
    }
    let mut bad = good.clone();
    bad["extra"] = json!(true);
    assert!(strict.refusal(&bad).is_some(), "an unknown field");
    let mut bad = good;
    bad.as_object_mut().unwrap().remove("verdict");
    assert!(strict.refusal(&bad).is_some(), "a field is missing");
}

#[test]
fn a_line_has_the_published_fields() {
    let line = |record: Record| {
        let mut text = Vec::new();
        Entry { time: SystemTime::UNIX_EPOCH, record }.write_line(&mut text).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()
    };
    let endpoint = json!({
        "namespace": "shop", "pod": "checkout", "workload": "checkout", "identity": 256,
        "labels": {"app": "checkout"},
    });
    assert_eq!(
        line(mk_dns(LookupVerdict::Denied, "api.example.com")),
        json!({
            "time": "1970-01-01T00:00:00.000000Z",
            "schema": 1,
            "kind": "dns",
            "verdict": "denied",
            "reason": "no-rule",
            "endpoint": endpoint,
            "query": {"name": "api.example.com", "type": "A"},
            "rcode": "REFUSED",
            "addresses": [{"address": "203.0.113.1", "ttl": 60}],
            "policy": null,
            "resolver": "10.96.0.10",
            "transport": "udp",
            "cached": false,
            "latency_us": 7,
        })
    );
    let flow = line(mk_flow(FlowVerdict::Forwarded, Some(mk_policy("shop", "apis"))));
    assert_eq!(
        flow["destination"],
        json!({
            "address": "203.0.113.1", "port": 443, "namespace": null, "pod": null,
            "identity": 4, "entity": "world", "names": ["api.example.com"],
        })
    );
    assert_eq!(
        flow["policy"],
        json!({"kind": "EgressPolicy", "namespace": "shop", "name": "apis", "rule": "payments"})
    );
}

#[test]
fn every_line_keeps_to_the_schema_whatever_is_asked() {
    let (memory, strict) = (Memory::default(), Strict::new());
    let (log, writer) = start(memory.clone(), Bounds::default());
    let names = hostile_names();
    let verdicts = [DnsVerdict::Allowed, DnsVerdict::Denied, DnsVerdict::Audit, DnsVerdict::Error];
    for (place, name) in names.iter().enumerate() {
        log.lookup(mk_decision(name.clone(), verdicts[place % verdicts.len()]));
    }
    let reasons = Pass::ALL.iter().map(|pass| Reason::Pass(*pass));
    let reasons = reasons.chain(DropReason::ALL.iter().map(|reason| Reason::Drop(*reason)));
    for reason in reasons {
        for (protocol, remote) in [(6, "203.0.113.1"), (0, "::"), (255, "fe80::1")] {
            let remote: IpAddr = remote.parse().unwrap();
            log.flows(vec![FlowEvent { reason, protocol, remote, ..mk_event(9) }]);
        }
    }
    log.kernel_lost(3);
    writer.close();
    let lines = memory.lines();
    let asked: BTreeSet<&str> =
        lines.iter().filter_map(|line| line["query"]["name"].as_str()).collect();
    let expected: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(asked, expected.iter().map(String::as_str).collect());
    for line in &lines {
        assert_eq!(strict.refusal(line), None, "{line}");
        let read: Line<'_> = serde_json::from_value(line.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), *line, "read back whole");
    }
    let octets = memory.0.lock().unwrap().clone();
    assert!(octets.iter().all(|octet| matches!(octet, b'\n' | b' '..=b'~')), "ASCII alone");
    assert_eq!(memory.told("kernel"), 3);
}

#[test]
fn an_answer_with_thousands_of_addresses_is_cut() {
    let memory = Memory::default();
    let (log, writer) = start(memory.clone(), Bounds::default());
    let name = DnsName::parse("many.example").unwrap();
    let mut decision = mk_decision(name, DnsVerdict::Allowed);
    let address = |number: u16| IpAddr::from([203, 0, (number >> 8) as u8, number as u8]);
    decision.addresses = (0..4_000)
        .map(|number| Answered { address: address(number), ttl: 1, withheld: None })
        .collect();
    log.lookup(decision);
    writer.close();
    let line = &memory.lines()[0];
    assert_eq!(line["addresses"].as_array().unwrap().len(), ADDRESSES_MAX);
    assert_eq!(line["addresses_omitted"], 4_000 - ADDRESSES_MAX);
}

/// A sink that takes nothing until told.
struct Gate(Receiver<()>, Memory);

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Open for good once the other end is gone.
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_dead_sink_stalls_nobody_holds_little_and_every_loss_is_told() {
    const FLOOD: u16 = 40_000;
    let memory = Memory::default();
    let (open, gate): (Valve<()>, _) = channel();
    let (log, writer) = start(Gate(gate, memory.clone()), Bounds::default());
    for number in 0..FLOOD {
        log.flows(vec![mk_event(number)]);
        // The hub keeps up: what is lost is lost at the sink alone.
        wait_until("a place in the queue", || log.counts.enter(1, QUEUE_MAX) == 1);
        log.counts.leave(1);
    }
    let settled = || {
        let counts = log.counts();
        let held = u64::from(FLOOD) - counts.lost_sink - counts.lost_queue - counts.written;
        held <= outlet::OUTLET_MAX as u64 + 1_000
    };
    wait_until("the sink's losses to be counted", settled);
    assert_eq!(log.counts().written, 0);
    log.kernel_lost(3);
    drop(open);
    writer.close();
    let counts = log.counts();
    assert!(counts.lost_sink > 10_000, "{counts:?}");
    assert_eq!(memory.count("flow"), counts.written);
    assert_eq!(counts.written + counts.lost_sink + counts.lost_queue, u64::from(FLOOD));
    assert_eq!(memory.told("sink"), counts.lost_sink, "the log says what it lacks");
    assert_eq!(memory.told("queue"), counts.lost_queue);
    assert_eq!(memory.told("kernel"), 3);
}

#[test]
fn a_full_queue_costs_whoever_decides_a_count() {
    let counts = Counts::new(1);
    assert_eq!(counts.enter(QUEUE_MAX - 1, QUEUE_MAX), QUEUE_MAX - 1);
    assert_eq!(counts.enter(3, QUEUE_MAX), 1, "as many as there are places");
    assert_eq!(counts.enter(1, QUEUE_MAX), 0);
    counts.leave(2);
    assert_eq!(counts.enter(3, QUEUE_MAX), 2, "places that were given back");
}

/// A disk that is full from the second write on, until told.
struct Disk {
    memory: Memory,
    is_full: Arc<std::sync::atomic::AtomicBool>,
}

impl Sink for Disk {
    fn write(&mut self, batch: &sink::Batch) -> Result<(), sink::Unwritten> {
        if self.is_full.load(std::sync::atomic::Ordering::SeqCst) {
            let source = io::ErrorKind::StorageFull.into();
            return Err(sink::Unwritten { lines: batch.len(), source });
        }
        self.memory.0.lock().unwrap().extend_from_slice(&batch.text);
        Ok(())
    }
}

#[test]
fn a_full_disk_costs_records_that_are_told_once_there_is_room() {
    let (memory, is_full) = (Memory::default(), Arc::default());
    let disk = Disk { memory: memory.clone(), is_full: Arc::clone(&is_full) };
    let config = AuditConfig { bounds: Bounds::default(), ..AuditConfig::default() };
    let (log, writer) = AuditLog::over(vec![Box::new(disk)], &config, Arc::default());
    is_full.store(true, std::sync::atomic::Ordering::SeqCst);
    for number in 0..100 {
        log.flows(vec![mk_event(number)]);
    }
    wait_until("the losses", || log.counts().lost_sink == 100);
    is_full.store(false, std::sync::atomic::Ordering::SeqCst);
    log.flows(vec![mk_event(100)]);
    writer.close();
    assert_eq!((memory.count("flow"), memory.told("sink")), (1, 100));
}

#[test]
fn what_an_endpoint_may_not_log_is_said() {
    let memory = Memory::default();
    let bounds = Bounds { rate: NonZeroU32::new(10), sample: None };
    let (log, writer) = start(memory.clone(), bounds);
    let mut listener = log.listen();
    for _ in 0..500 {
        log.lookup(mk_decision(DnsName::parse("a.example").unwrap(), DnsVerdict::Denied));
    }
    writer.close();
    let lines = memory.lines();
    let suppressed: Vec<&Value> =
        lines.iter().filter(|line| line["kind"] == "suppressed").collect();
    let told: u64 = suppressed.iter().filter_map(|line| line["rate"]["refused"].as_u64()).sum();
    assert_eq!(memory.count("dns") + told, 500);
    assert!(told >= 400, "{told}");
    assert_eq!(suppressed[0]["endpoint"]["pod"], "checkout");
    let strict = Strict::new();
    assert_eq!(strict.refusal(suppressed[0]), None);
    let heard = std::iter::from_fn(|| listener.entries.try_recv().ok()).count();
    assert_eq!(heard as u64, memory.count("dns"), "as much as the sinks while nobody follows");
}

#[test]
fn events_beyond_a_bound_are_counted_and_heard_by_followers_alone() {
    let memory = Memory::default();
    let (log, writer) = start(memory.clone(), Bounds { rate: NonZeroU32::new(10), sample: None });
    let mut listener = log.listen();
    let mut heard = || std::iter::from_fn(|| listener.entries.try_recv().ok()).count() as u64;
    let through = FlowEvent {
        verdict: EventVerdict::Forwarded,
        reason: Reason::Pass(Pass::Judged),
        ..mk_event(0)
    };
    log.flows((0..500).map(mk_event).chain([through]).collect());
    let passed_on = |count: u64| {
        wait_until("the hub to pass all on", || {
            log.counts().suppressed + memory.count("flow") >= count
        });
    };
    passed_on(501);
    let logged = memory.count("flow");
    assert!((11..100).contains(&logged), "{logged}");
    assert_eq!(heard(), logged, "as much as the sinks while nobody follows");
    let through = memory.lines().iter().filter(|line| line["verdict"] == "forwarded").count();
    assert_eq!(through, 1, "refusals have a bound of their own");

    let following = log.follow();
    log.flows((0..500).map(mk_event).collect());
    passed_on(1_001);
    drop(following);
    writer.close();
    assert_eq!(heard(), 500);
    let refused = |line: &Value| line["rate"]["refused"].as_u64();
    let told: u64 = memory.lines().iter().filter_map(refused).sum();
    assert_eq!((told, memory.count("flow")), (log.counts().suppressed, 1_001 - told));
}

#[test]
fn who_follows_hears_what_an_endpoint_may_not_log() {
    let memory = Memory::default();
    let (log, writer) = start(memory.clone(), Bounds { rate: NonZeroU32::new(10), sample: None });
    let mut listener = log.listen();
    let refused = |count: usize| {
        for _ in 0..count {
            log.lookup(mk_decision(DnsName::parse("a.example").unwrap(), DnsVerdict::Denied));
        }
    };
    let following = log.follow();
    refused(500);
    wait_until("the hub to pass all on", || log.counts().suppressed + memory.count("dns") >= 500);
    drop(following);
    refused(500);
    writer.close();
    let heard = std::iter::from_fn(|| listener.entries.try_recv().ok()).count();
    let logged = usize::try_from(memory.count("dns")).unwrap();
    assert!((500..=500 + logged).contains(&heard), "{heard} heard, {logged} logged");
    assert_eq!(log.counts().suppressed, 1_000 - memory.count("dns"));
}

#[test]
fn a_listener_that_never_listens_misses_and_holds_up_nobody() {
    let (log, writer) = AuditLog::over(Vec::new(), &AuditConfig::default(), Arc::default());
    log.flows(vec![mk_event(0)]);
    let mut listener = log.listen();
    let _following = log.follow();
    let sent = u16::try_from(LISTENER_MAX + 1_000).unwrap();
    for number in 0..sent {
        log.flows(vec![mk_event(number)]);
        wait_until("a place in the queue", || log.counts.enter(1, QUEUE_MAX) == 1);
        log.counts.leave(1);
    }
    writer.close();
    let first = listener.entries.blocking_recv();
    let missed = match first {
        Err(broadcast::error::RecvError::Lagged(missed)) => missed,
        other => panic!("{other:?}"),
    };
    let heard = std::iter::from_fn(|| listener.entries.try_recv().ok()).count();
    assert_eq!(heard as u64 + missed, u64::from(sent), "what came before it is not for it");
    assert_eq!(heard, LISTENER_MAX);
    drop(listener);
    assert!(!log.counts.is_anyone_there(), "nothing is made for nobody");
}

#[test]
fn a_sink_that_cannot_be_opened_is_named() {
    let file = Some(PathBuf::from("/proc/no/such/file"));
    let config = AuditConfig { file, ..AuditConfig::default() };
    let error = AuditLog::start(&config, Arc::default()).expect_err("no such place");
    assert!(error.to_string().contains("/proc/no/such/file"));
}
