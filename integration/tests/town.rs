//! The town by itself, without any firewall: sites, names and paths all work, so that what a test
//! finds closed was closed by Namegate.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use namegate_integration::addresses::{
    AUTHORITY, DB, DB_PORT, ECHO, ECHO_PORT, EVIL, KUBE_DNS, KUBE_DNS_SERVICE, METADATA, STRIPE,
};
use namegate_integration::authority::MANY;
use namegate_integration::capture::Capture;
use namegate_integration::dns::{Query, Transport};
use namegate_integration::lab::leftovers;
use namegate_integration::node::UPLINK;
use namegate_integration::town::Town;

#[test]
fn open_town_reaches_everything_and_leaves_nothing_behind() -> Result<()> {
    let Some(town) = Town::for_test("open_town_reaches_everything_and_leaves_nothing_behind")?
    else {
        return Ok(());
    };
    names_resolve(&town)?;
    sites_answer(&town)?;
    pods_reach_each_other(&town)?;
    the_outside_interface_shows_it(&town)?;
    let prefix = town.lab.prefix().to_owned();
    drop(town);
    assert_eq!(leftovers(&prefix)?, Vec::<String>::new());
    Ok(())
}

fn names_resolve(town: &Town) -> Result<()> {
    let resolvers: [IpAddr; 6] = [
        KUBE_DNS_SERVICE.v4.into(),
        KUBE_DNS_SERVICE.v6.into(),
        KUBE_DNS.v4.into(),
        KUBE_DNS.v6.into(),
        AUTHORITY.v4.into(),
        AUTHORITY.v6.into(),
    ];
    for resolver in resolvers {
        for transport in [Transport::Udp, Transport::Tcp] {
            let query = Query::a("api.stripe.com").at(resolver).over(transport);
            let reply = town.checkout.ask(&query)?;
            assert_eq!(reply.addresses(), [IpAddr::V4(STRIPE.v4)], "{query:?}");
        }
    }
    let reply = town.checkout.ask(&Query::aaaa("assets.acme.example"))?;
    assert_eq!(reply.answers.len(), 2, "a CNAME and an address: {reply:?}");
    let reply = town.checkout.resolve("many.acme.example")?;
    assert_eq!(reply.addresses().len(), usize::from(MANY));
    let reply = town.checkout.resolve("db.data.svc.cluster.local")?;
    assert_eq!(reply.addresses(), [IpAddr::V4(DB.v4)]);
    assert_eq!(town.checkout.resolve("no.such.example")?.status, "NXDOMAIN");
    Ok(())
}

fn sites_answer(town: &Town) -> Result<()> {
    for family in ["-4", "-6"] {
        let arguments = [family, "--max-time", "5", "https://api.stripe.com/"];
        let body = town.checkout.curl(&town.lab, &arguments)?.success()?;
        assert_eq!(body.trim(), r#"{"site": "api.stripe.com"}"#);
    }
    let metadata = format!("http://{METADATA}/latest");
    let body = town.checkout.curl(&town.lab, &[&metadata])?.success()?;
    assert!(body.contains("node-credentials"), "{body}");
    Ok(())
}

fn pods_reach_each_other(town: &Town) -> Result<()> {
    let targets: [(IpAddr, u16); 4] = [
        (DB.v4.into(), DB_PORT),
        (DB.v6.into(), DB_PORT),
        (ECHO.v4.into(), ECHO_PORT),
        (ECHO.v6.into(), ECHO_PORT),
    ];
    for target in targets {
        let target = SocketAddr::from(target);
        town.web.try_tcp(target)??;
        town.web.try_udp(target)??;
        assert!(town.web.ping(target.ip())?, "ping {target}");
    }
    Ok(())
}

fn the_outside_interface_shows_it(town: &Town) -> Result<()> {
    let capture = Capture::start(&town.lab, &town.node.namespace, UPLINK)?;
    town.checkout.try_tcp((EVIL.v4, 443).into())??;
    let seen = capture.finish(&town.node.namespace, EVIL.v4.into())?;
    assert!(seen.iter().any(|line| line.contains("10.244.1.10.")), "{seen:?}");
    Ok(())
}
