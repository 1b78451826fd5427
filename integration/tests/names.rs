//! What names open, for whom, and for how long: real lookups and real connections under a running
//! agent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{
    ASSETS, ECHO, ECHO_PORT, EVIL, KUBE_DNS, KUBE_DNS_SERVICE, METADATA, Pair, RELEASES, STORAGE,
    STRIPE,
};
use namegate_integration::audit::has;
use namegate_integration::authority::MANY;
use namegate_integration::dns::{Query, Transport};
use namegate_integration::patience::wait_until;
use namegate_integration::pod::{PROBE, echo};
use namegate_integration::scene::{SHORT_LIFE, Scene};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn address_is_closed_until_its_name_was_asked_for() -> Result<()> {
    let Some(scene) = Scene::for_test("address_is_closed_until_its_name_was_asked_for", &[])?
    else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    for target in both(STRIPE, 443) {
        let mark = scene.agent.audit.mark()?;
        assert_silent(checkout.try_tcp(target)?, target);
        let address = target.ip().to_string();
        scene.agent.audit.expect(
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "dropped"),
                ("direction", "egress"),
                ("protocol", "tcp"),
                ("source.namespace", "shop"),
                ("source.pod", "checkout"),
                ("destination.address", &address),
                ("destination.port", "443"),
            ],
        )?;
    }
    for (query, target) in [
        (Query::a("api.stripe.com"), both(STRIPE, 443)[0]),
        (Query::aaaa("api.stripe.com"), both(STRIPE, 443)[1]),
    ] {
        let mark = scene.agent.audit.mark()?;
        let reply = checkout.ask(&query)?;
        assert_eq!(reply.addresses(), [target.ip()]);
        checkout.try_tcp(target)??;
        scene.agent.audit.expect(
            mark,
            &[
                ("kind", "dns"),
                ("verdict", "allowed"),
                ("endpoint.pod", "checkout"),
                ("query.name", "api.stripe.com"),
                ("rcode", "NOERROR"),
                ("policy.kind", "EgressPolicy"),
                ("policy.name", "checkout-apis"),
                ("policy.rule", "payments"),
                ("transport", "udp"),
            ],
        )?;
        let record = scene.agent.audit.expect(
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "forwarded"),
                ("destination.names", "api.stripe.com"),
                ("policy.name", "checkout-apis"),
                ("policy.rule", "payments"),
            ],
        )?;
        assert!(has(&record, "source.pod", "checkout"), "{record}");
    }
    let other_port = SocketAddr::from((STRIPE.v4, 80));
    assert_silent(checkout.try_tcp(other_port)?, other_port);
    Ok(())
}

#[test]
fn lookups_work_over_each_transport_family_and_resolver_address() -> Result<()> {
    let test = "lookups_work_over_each_transport_family_and_resolver_address";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    let resolvers: [IpAddr; 4] = [
        KUBE_DNS_SERVICE.v4.into(),
        KUBE_DNS_SERVICE.v6.into(),
        KUBE_DNS.v4.into(),
        KUBE_DNS.v6.into(),
    ];
    for resolver in resolvers {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mark = scene.agent.audit.mark()?;
            let query = Query::a("api.stripe.com").at(resolver).over(transport);
            let reply = checkout.ask(&query)?;
            assert_eq!(reply.status, "NOERROR", "{query:?}");
            assert_eq!(reply.addresses(), [IpAddr::V4(STRIPE.v4)], "{query:?}");
            let transport = match transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            };
            let address = resolver.to_string();
            let fields = [("kind", "dns"), ("resolver", &address), ("transport", transport)];
            scene.agent.audit.expect(mark, &fields)?;
            let query = Query::a("evil.example").at(resolver);
            assert_eq!(checkout.ask(&query)?.status, "REFUSED", "{query:?}");
        }
    }
    let many = checkout.resolve("many.acme.example")?;
    assert_eq!(many.addresses().len(), usize::from(MANY), "too big for a datagram");
    Ok(())
}

#[test]
fn refused_name_is_logged_and_other_spellings_do_not_help() -> Result<()> {
    let test = "refused_name_is_logged_and_other_spellings_do_not_help";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    for name in [
        "evil.example",
        "EVIL.example.",
        "api.stripe.com.evil.example",
        "xapi.stripe.com",
        "stripe.com",
        "sub.api.stripe.com",
        "storage.acme.example",
        "private.storage.acme.example",
    ] {
        let mark = scene.agent.audit.mark()?;
        let reply = checkout.resolve(name)?;
        assert_eq!(reply.status, "REFUSED", "{name}");
        assert_eq!(reply.answers, [], "{name}");
        let fields = [("kind", "dns"), ("verdict", "denied"), ("endpoint.pod", "checkout")];
        let record = scene.agent.audit.expect(mark, &fields)?;
        let logged = record.pointer("/query/name").and_then(|name| name.as_str());
        let logged = logged.unwrap_or_default().trim_end_matches('.');
        assert!(logged.eq_ignore_ascii_case(name.trim_end_matches('.')), "{record}");
    }
    for name in
        ["API.Stripe.COM", "api.stripe.com.", "eu.storage.acme.example", "a.b.storage.acme.example"]
    {
        assert_eq!(checkout.resolve(name)?.status, "NOERROR", "{name}");
    }
    for target in both(EVIL, 443) {
        assert_silent(checkout.try_tcp(target)?, target);
    }
    Ok(())
}

#[test]
fn cname_target_and_wildcard_open_what_was_asked() -> Result<()> {
    let Some(scene) = Scene::for_test("cname_target_and_wildcard_open_what_was_asked", &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    for (name, pair) in [("assets.acme.example", ASSETS), ("eu.storage.acme.example", STORAGE)] {
        for (target, query) in both(pair, 443).into_iter().zip([Query::a(name), Query::aaaa(name)])
        {
            assert_silent(checkout.try_tcp(target)?, target);
            assert_eq!(checkout.ask(&query)?.addresses(), [target.ip()], "{name}");
            checkout.try_tcp(target)??;
        }
    }
    let target = checkout.resolve("edge7.cdn.example")?;
    assert_eq!(target.status, "REFUSED", "a CNAME's target is a name of its own");
    Ok(())
}

#[test]
fn names_made_up_below_a_wildcard_are_refused_beyond_the_budget() -> Result<()> {
    let test = "names_made_up_below_a_wildcard_are_refused_beyond_the_budget";
    let Some(scene) = Scene::for_test(test, &["--dns-new-names", "2"])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    for name in ["eu.storage.acme.example", "one.storage.acme.example"] {
        assert_eq!(checkout.resolve(name)?.status, "NOERROR", "{name}");
    }
    let mark = scene.agent.audit.mark()?;
    assert_eq!(checkout.resolve("c2VjcmV0.storage.acme.example")?.status, "REFUSED");
    scene.agent.audit.expect(
        mark,
        &[
            ("kind", "dns"),
            ("verdict", "denied"),
            ("reason", "new-names"),
            ("endpoint.pod", "checkout"),
            ("query.name", "c2vjcmv0.storage.acme.example"),
            ("policy.name", "checkout-apis"),
        ],
    )?;
    assert_eq!(checkout.ask(&Query::aaaa("eu.storage.acme.example"))?.status, "NOERROR");
    assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR", "named in full");
    Ok(())
}

#[test]
fn what_one_pod_learned_opens_nothing_for_another() -> Result<()> {
    let Some(scene) = Scene::for_test("what_one_pod_learned_opens_nothing_for_another", &[])?
    else {
        return Ok(());
    };
    let (checkout, web) = (&scene.town.checkout, &scene.town.web);
    let target = SocketAddr::from((STRIPE.v4, 443));
    checkout.resolve("api.stripe.com")?;
    checkout.try_tcp(target)??;
    assert_silent(web.try_tcp(target)?, target);
    web.resolve("api.stripe.com")?;
    web.try_tcp(target)??;
    Ok(())
}

/// EP-10, CNP-17: usable from the answer on, closed to new flows after its time.
#[test]
fn expired_address_is_closed_for_new_flows_and_open_for_live_ones() -> Result<()> {
    let test = "expired_address_is_closed_for_new_flows_and_open_for_live_ones";
    let Some(scene) = Scene::for_test(test, &SHORT_LIFE)? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    let target = SocketAddr::from((RELEASES.v4, 443));
    assert_eq!(checkout.resolve("releases.acme.example")?.status, "NOERROR");
    let image = scene.town.lab.file("image").display().to_string();
    let url = "https://releases.acme.example/image.iso";
    let mut download =
        checkout.start_curl(&scene.town.lab, "curl.log", &["-4", "-o", &image, url])?;
    let size = || std::fs::metadata(&image).map_or(0, |file| file.len());
    wait_until("the download to begin", LIMIT, || {
        download.check()?;
        Ok(size() > 0)
    })?;
    wait_until("the address to close", LIMIT, || Ok(checkout.try_tcp(target)?.is_err()))?;
    assert_silent(checkout.try_tcp(target)?, target);
    let before = size();
    wait_until("the download to go on", LIMIT, || {
        download.check()?;
        Ok(size() > before)
    })?;
    checkout.resolve("releases.acme.example")?;
    checkout.try_tcp(target)??;
    Ok(())
}

#[test]
fn name_may_not_point_into_the_house() -> Result<()> {
    let Some(scene) = Scene::for_test("name_may_not_point_into_the_house", &[])? else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    let mark = scene.agent.audit.mark()?;
    let reply = checkout.resolve("rebind.acme.example")?;
    assert_eq!(reply.addresses(), [IpAddr::V4(METADATA)], "the answer itself is unchanged");
    let record = scene.agent.audit.expect(mark, &[("query.name", "rebind.acme.example")])?;
    let not_opened = record.pointer("/not_opened/0/address").and_then(|value| value.as_str());
    assert_eq!(not_opened, Some("169.254.169.254"), "{record}");
    for target in [SocketAddr::from((METADATA, 80)), SocketAddr::from((METADATA, 443))] {
        assert_silent(checkout.try_tcp(target)?, target);
    }
    let reply = checkout.resolve("db.data.svc.cluster.local")?;
    assert_eq!(reply.status, "NOERROR", "cluster names always resolve");
    Ok(())
}

#[test]
fn rule_without_ports_opens_tcp_udp_and_echo_by_name() -> Result<()> {
    let Some(scene) = Scene::for_test("rule_without_ports_opens_tcp_udp_and_echo_by_name", &[])?
    else {
        return Ok(());
    };
    let checkout = &scene.town.checkout;
    for target in both(ECHO, ECHO_PORT) {
        assert_silent(checkout.try_udp(target)?, target);
        assert!(!checkout.ping(target.ip())?, "{target}");
    }
    checkout.resolve("echo.acme.example")?;
    checkout.ask(&Query::aaaa("echo.acme.example"))?;
    for target in both(ECHO, ECHO_PORT) {
        checkout.try_udp(target)??;
        let mut stream = checkout.connect(target)??;
        echo(&mut stream)?;
        assert!(checkout.ping(target.ip())?, "{target}");
    }
    Ok(())
}

#[test]
fn unreachable_resolver_is_servfail_and_recovers() -> Result<()> {
    let test = "unreachable_resolver_is_servfail_and_recovers";
    let Some(mut scene) = Scene::for_test(test, &["--dns-timeout", "1s"])? else {
        return Ok(());
    };
    drop(scene.town.resolver.take());
    let checkout = &scene.town.checkout;
    let mark = scene.agent.audit.mark()?;
    let reply = checkout.resolve("api.stripe.com")?;
    assert_eq!(reply.status, "SERVFAIL");
    let fields = [("kind", "dns"), ("verdict", "error"), ("query.name", "api.stripe.com")];
    scene.agent.audit.expect(mark, &fields)?;
    assert_eq!(checkout.resolve("evil.example")?.status, "REFUSED");
    let resolver = namegate_integration::resolver::start(&scene.town.lab, &scene.town.kube_dns)?;
    scene.town.resolver = Some(resolver);
    assert_eq!(scene.town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    scene.agent.check()
}

fn both(pair: Pair, port: u16) -> [SocketAddr; 2] {
    [(pair.v4, port).into(), (pair.v6, port).into()]
}

/// Nothing came back within the probe's patience: no answer, and no refusal either.
fn assert_silent(outcome: io::Result<()>, target: SocketAddr) {
    match outcome {
        Ok(()) => panic!("{target} is open"),
        Err(error) => assert!(
            matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock),
            "{target} after {PROBE:?}: {error}"
        ),
    }
}
