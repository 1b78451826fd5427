//! The programs that people look names up with, from inside a pod: allowed, refused and search-list
//! names, over UDP and TCP. What has no search list, kdig and delv, is refused the short name and gets
//! the one that a search list makes.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{DB, EVIL, KUBE_DNS_SERVICE, STRIPE};
use namegate_integration::pod::Pod;
use namegate_integration::process::{Finished, run};
use namegate_integration::scene::Scene;

const LIMIT: Duration = Duration::from_secs(20);
/// As kubelet writes it.
const SEARCH: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local";

const OPTIONS: &str = "ndots:5 timeout:3 attempts:1";

/// What a program says and how it ends.
struct Case {
    command: &'static str,
    /// All of this is said.
    says: Vec<String>,
    ends_well: bool,
}

fn case(command: &'static str, says: &[&str], ends_well: bool) -> Case {
    Case { command, says: says.iter().map(ToString::to_string).collect(), ends_well }
}

#[test]
fn tools_that_ask_a_server_show_what_the_proxy_says() -> Result<()> {
    let Some(scene) = Scene::for_test("tools_that_ask_a_server_show_what_the_proxy_says", &[])?
    else {
        return Ok(());
    };
    let (stripe, stripe6, db) = (STRIPE.v4.to_string(), STRIPE.v6.to_string(), DB.v4.to_string());
    let server = format!("{}#53", KUBE_DNS_SERVICE.v4);
    let kdig_server = format!("{}@53(UDP)", KUBE_DNS_SERVICE.v4);
    let kdig_server_tcp = format!("{}@53(TCP)", KUBE_DNS_SERVICE.v4);
    let blocked = "no egress policy allows this name";
    let cases = [
        case("dig api.stripe.com", &["status: NOERROR", &stripe, &server, "(UDP)"], true),
        case("dig +tcp api.stripe.com AAAA", &["status: NOERROR", &stripe6, "(TCP)"], true),
        case("dig evil.example", &["status: REFUSED", blocked, "ANSWER: 0"], true),
        case("dig +tcp evil.example", &["status: REFUSED", blocked], true),
        case("dig +search db.data", &["status: NOERROR", "db.data.svc.cluster.local.", &db], true),
        case("dig +dnssec +bufsize=4096 many.acme.example", &["ANSWER: 60", "flags: do"], true),
        case("dig +notcp +ignore +noedns many.acme.example", &["flags: qr tc"], true),
        case("dig +norecurse ANY api.stripe.com", &["status: REFUSED"], true),
        case("dig CH TXT version.bind", &["status: REFUSED"], true),
        case("dig AXFR stripe.com", &["Transfer failed"], true),
        case("dig +noednsneg +edns=1 api.stripe.com", &["status: BADVERS"], true),
        case("dig +opcode=NOTIFY api.stripe.com", &["status: NOTIMP"], true),
        case("kdig api.stripe.com", &["status: NOERROR", &stripe, &kdig_server], true),
        case("kdig +tcp api.stripe.com", &["status: NOERROR", &stripe, &kdig_server_tcp], true),
        case("kdig evil.example", &["status: REFUSED", "ANSWER: 0"], true),
        case("kdig +tcp evil.example", &["status: REFUSED"], true),
        case("kdig db.data", &["status: REFUSED", "ANSWER: 0"], true),
        case("kdig db.data.svc.cluster.local", &["status: NOERROR", &db], true),
        case("delv -i api.stripe.com", &["answer not validated", &stripe], true),
        case("delv -i +tcp api.stripe.com AAAA", &[&stripe6], true),
        case("delv -i evil.example", &["REFUSED", "resolution failed"], true),
        case("delv -i db.data", &["REFUSED", "resolution failed"], true),
        case("delv -i db.data.svc.cluster.local", &["; authoritative", &db], true),
        case("busybox nslookup -type=a api.stripe.com", &[&stripe], true),
        case("busybox nslookup api.stripe.com", &[&stripe, &stripe6], true),
        case("busybox nslookup evil.example", &["REFUSED"], false),
        case("busybox nslookup -type=a db.data.svc.cluster.local", &[&db], true),
        case("nslookup db.data", &["db.data.svc.cluster.local", &db], true),
    ];
    let checkout = &scene.town.checkout;
    checkout.namespace.set_resolver(&resolver(SEARCH, OPTIONS))?;
    check(checkout, &cases)?;
    // busybox asks the search list for names without a dot alone, which have to be of its first domain.
    checkout.namespace.set_resolver(&resolver("search data.svc.cluster.local", OPTIONS))?;
    let searched = [
        case("busybox nslookup db", &["db.data.svc.cluster.local", &db], true),
        case("busybox nslookup nobody", &["nobody.data.svc.cluster.local: NXDOMAIN"], false),
        case("busybox nslookup db.data", &["can't find db.data: REFUSED"], false),
    ];
    check(checkout, &searched)
}

#[test]
fn libraries_find_allowed_and_search_list_names_and_no_refused_ones() -> Result<()> {
    let test = "libraries_find_allowed_and_search_list_names_and_no_refused_ones";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    let (stripe, stripe6, db) = (STRIPE.v4.to_string(), STRIPE.v6.to_string(), DB.v4.to_string());
    for (transport, options) in [("UDP", OPTIONS), ("TCP", &format!("{OPTIONS} use-vc"))] {
        checkout.namespace.set_resolver(&resolver(SEARCH, options))?;
        println!("glibc over {transport}:");
        check(
            checkout,
            &[
                case("getent ahostsv4 api.stripe.com", &[&stripe], true),
                case("getent ahosts api.stripe.com", &[&stripe, &stripe6], true),
                case("getent hosts db.data", &["db.data.svc.cluster.local"], true),
                case("getent ahostsv4 db.data", &[&db], true),
                case("getent ahosts evil.example", &[], false),
                case("getent ahosts sub.api.stripe.com", &[], false),
            ],
        )?;
        let fetched = checkout.curl(&scene.town.lab, &["https://api.stripe.com/"])?;
        assert!(fetched.status.success(), "{transport}: {}", fetched.stderr);
        let refused = checkout.curl(&scene.town.lab, &["https://evil.example/"])?;
        assert_eq!(refused.status.code(), Some(6), "{transport}: {}", refused.stderr);
        assert!(refused.stderr.contains("Could not resolve host"), "{}", refused.stderr);
        // What answers there speaks no HTTP: it counts whom curl reached by the name.
        let reached = ["-4", "-w", "%{remote_ip}", "http://db.data:5432/"];
        let searched = checkout.curl(&scene.town.lab, &reached)?;
        assert_eq!(searched.stdout, db, "{transport}: {}", searched.stderr);
        let nobody = checkout.curl(&scene.town.lab, &["http://nobody.data:5432/"])?;
        assert_eq!(nobody.status.code(), Some(6), "{transport}: {}", nobody.stderr);
    }
    let web_only =
        checkout.curl(&scene.town.lab, &["--max-time", "3", "http://api.stripe.com/"])?;
    assert_eq!(web_only.status.code(), Some(28), "the rule names port 443: {}", web_only.stderr);
    Ok(())
}

/// The text of a `resolv.conf`.
fn resolver(search: &str, options: &str) -> String {
    format!("nameserver {}\n{search}\noptions {options}\n", KUBE_DNS_SERVICE.v4)
}

/// Runs every case in the pod; at the end says all that went wrong at once.
fn check(pod: &Pod, cases: &[Case]) -> Result<()> {
    let mut wrong = Vec::new();
    for case in cases {
        let mut words = case.command.split(' ');
        let mut command: Command =
            pod.namespace.resolving_command(words.next().unwrap_or_default());
        let Finished { status, stdout, stderr, .. } = run(command.args(words), LIMIT)?;
        let said = format!("{stdout}{stderr}");
        let missing: Vec<_> = case.says.iter().filter(|text| !said.contains(*text)).collect();
        println!("$ {}\n{said}", case.command);
        if !missing.is_empty() || status.success() != case.ends_well {
            wrong.push(format!("{}: {status}, without {missing:?}:\n{said}", case.command));
        }
        if said.contains(&EVIL.v4.to_string()) || said.contains(&EVIL.v6.to_string()) {
            wrong.push(format!("{}: an address of a refused name:\n{said}", case.command));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
