//! The service map in a real browser: over a real agent and real packets, and over a thousand workloads.
#![expect(clippy::unwrap_used, reason = "a test that meets what it did not expect has failed")]

#[path = "map/crowd.rs"]
mod crowd;

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use namegate_integration::addresses::{DB, DB_PORT, EVIL, METADATA, STRIPE};
use namegate_integration::agent::run_to_end;
use namegate_integration::browser::{self, Browser};
use namegate_integration::patience::wait_until;
use namegate_integration::process::run;
use namegate_integration::scene::Scene;
use rustix::process::Signal;
use serde_json::Value;

const LISTEN: [&str; 2] = ["--map-listen", "127.0.0.1:9966"];
const PAGE: &str = "http://127.0.0.1:9966/";

#[test]
fn page_tells_what_pods_did_and_why_it_was_refused() -> Result<()> {
    let test = "page_tells_what_pods_did_and_why_it_was_refused";
    if !has_browser(test)? {
        return Ok(());
    }
    let Some(scene) = Scene::for_test(test, &LISTEN)? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    let mut browser = Browser::start(town.node.namespace.command("sh"), &town.lab.folder())?;
    browser.open(PAGE)?;
    browser.wait_for("document.querySelector('#empty').textContent.includes('No flows yet')")?;
    browser.wait_for("document.querySelector('#health-word').textContent.includes('Healthy')")?;
    let lesson = browser.text("document.querySelector('#empty').textContent")?;
    assert!(lesson.contains("under policy") && lesson.contains("kubectl -n"), "{lesson}");
    picture(&mut browser, "empty", 1280, 640)?;

    let (checkout, web) = (&town.checkout, &town.web);
    checkout.resolve("api.stripe.com")?;
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    checkout.resolve("eu.storage.acme.example")?;
    checkout.resolve("assets.acme.example")?;
    checkout.try_tcp((DB.v4, DB_PORT).into())??;
    web.resolve("api.stripe.com")?;
    web.try_tcp((STRIPE.v4, 443).into())??;
    assert_eq!(checkout.resolve("evil.example")?.status, "REFUSED");
    checkout.resolve("<img src=x onerror=alert(1)>.example")?;
    assert!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
    assert!(checkout.try_tcp((METADATA, 80).into())?.is_err());
    assert!(web.try_tcp((DB.v4, DB_PORT).into())?.is_err(), "the database does not take it");

    // Each row: who, whom, what became of it, and a part of why.
    let told = [
        ("shop/checkout", "api.stripe.com", "allowed", "rule payments"),
        ("shop/checkout", "evil.example", "denied", "no rule names it"),
        ("shop/checkout", "203.0.113.66", "denied", "no rule allows it"),
        ("shop/checkout", "169.254.169.254", "denied", "a rule denies it"),
        ("shop/checkout", "data/db", "allowed", "NetworkPolicy data/database"),
        ("shop/web", "data/db", "denied", "no ingress rule allows it"),
    ];
    for (who, whom, outcome, why) in told {
        browser.wait_for(&format!(
            "[...document.querySelectorAll('#rows tr')].some((row) => \
             row.querySelector('.who').textContent === '{who}' \
             && row.querySelector('.whom').textContent === '{whom}' \
             && row.querySelector('.outcome').textContent.includes('{outcome}') \
             && row.querySelector('.why').textContent.includes('{why}'))"
        ))?;
    }
    let tree = browser.text("document.querySelector('#who').innerText")?;
    assert!(tree.contains("shop") && tree.contains("checkout"), "{tree}");
    let labels =
        "[...document.querySelectorAll('[role=treeitem]')].every((item) => item.ariaLabel)";
    assert_eq!(browser.evaluate(labels)?, true, "each is told to who cannot see it");

    hostile_names_stay_text(&mut browser)?;
    filters_work_by_keyboard(&mut browser)?;
    columns_can_be_walked_by_keyboard(&mut browser)?;
    phone_has_everything_and_does_not_scroll_sideways(&mut browser)?;
    pictures(&mut browser)?;
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());

    assert!(agent.stop(Signal::TERM)?.success());
    browser.wait_for("!document.querySelector('#lost').hidden")?;
    let lost = browser.text("document.querySelector('#lost').textContent")?;
    assert!(lost.contains("does not answer") && lost.contains("What you see is from"), "{lost}");
    assert_eq!(
        browser.text("document.querySelector('#link-text').textContent")?,
        "Connection lost"
    );
    Ok(())
}

fn hostile_names_stay_text(browser: &mut Browser) -> Result<()> {
    let shown = "[...document.querySelectorAll('#rows .whom')].map((cell) => cell.textContent)\
                 .find((text) => text.includes('onerror'))";
    browser.wait_for(&format!("Boolean({shown})"))?;
    let images = "[...document.images].filter((image) => !image.src.endsWith('/icon.svg')).length";
    assert_eq!(browser.evaluate(images)?, 0);
    // The page's own policy forbids it even where a mistake would try.
    let forced = "(() => { try { document.body.insertAdjacentHTML('beforeend', '<b>'); return 'taken' } \
                  catch (error) { return error.name } })()";
    assert_eq!(browser.text(forced)?, "TypeError");
    browser.forget_complaints();
    Ok(())
}

/// Tabs to an element of the page; fails where that leads nowhere.
fn tab_to(browser: &mut Browser, id: &str) -> Result<()> {
    browser.evaluate("document.activeElement.blur(), true")?;
    for _ in 0..40 {
        browser.press("Tab")?;
        if browser.evaluate(&format!("document.activeElement?.id === '{id}'"))? == true {
            return Ok(());
        }
    }
    bail!("no way to #{id} by Tab")
}

fn rows(browser: &mut Browser) -> Result<Vec<String>> {
    let rows = browser
        .evaluate("[...document.querySelectorAll('#rows tr')].map((row) => row.textContent)")?;
    Ok(rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap().to_owned()).collect())
}

fn filters_work_by_keyboard(browser: &mut Browser) -> Result<()> {
    let all = rows(browser)?.len();
    browser.press("/")?;
    assert_eq!(browser.text("document.activeElement.id")?, "find");
    browser.type_text("stripe")?;
    let found = rows(browser)?;
    assert!(found.len() < all && found.iter().all(|row| row.contains("stripe")), "{found:?}");
    assert!(browser.text("location.hash")?.contains("find=stripe"), "can be passed on");
    browser.press("Escape")?;
    assert_eq!(rows(browser)?.len(), all);

    tab_to(browser, "namespace")?;
    // A closed list takes letters: the first choice that begins with it.
    browser.press("d")?;
    browser.wait_for("document.querySelector('#namespace').value === 'data'")?;
    assert!(rows(browser)?.iter().all(|row| row.contains("data/db")));
    browser.press("Escape")?;

    for _ in 0..40 {
        browser.press("Tab")?;
        if browser.evaluate("document.activeElement?.dataset.verdict === 'denied'")? == true {
            break;
        }
    }
    browser.press(" ")?;
    let pressed = "document.activeElement.getAttribute('aria-pressed')";
    assert_eq!(browser.text(pressed)?, "true");
    let refused = rows(browser)?;
    assert!(!refused.is_empty() && refused.iter().all(|row| row.contains("denied")), "{refused:?}");
    browser.press("Escape")?;
    assert_eq!(rows(browser)?.len(), all);
    Ok(())
}

fn columns_can_be_walked_by_keyboard(browser: &mut Browser) -> Result<()> {
    browser.evaluate("document.querySelector('#who [tabindex=\"0\"]').focus(), true")?;
    let inside = "document.querySelector('#who').contains(document.activeElement)";
    for _ in 0..20 {
        browser.press("ArrowDown")?;
        assert_eq!(browser.evaluate(inside)?, true);
        if browser.text("document.activeElement.ariaLabel")?.starts_with("shop/checkout") {
            break;
        }
    }
    let label = browser.text("document.activeElement.ariaLabel")?;
    assert!(label.contains("denied") && label.contains("allowed"), "{label}");
    browser.wait_for("document.querySelector('#aside-title').textContent === 'shop/checkout'")?;
    browser.press("Enter")?;
    assert!(rows(browser)?.iter().all(|row| row.contains("shop/checkout")));
    assert_eq!(browser.text("document.activeElement.getAttribute('aria-selected')")?, "true");
    browser.press("ArrowRight")?;
    let across = "document.querySelector('#whom').contains(document.activeElement)";
    assert_eq!(browser.evaluate(across)?, true, "to what it talks to");
    browser.press("Escape")?;

    browser.evaluate(
        "[...document.querySelectorAll('#rows tr')].find((row) => \
         row.textContent.includes('evil.example')).querySelector('button').focus(), true",
    )?;
    browser.press("Enter")?;
    let more = browser.text("document.querySelector('#rows .explained').innerText")?;
    assert!(more.contains("EgressPolicy shop/checkout-apis"), "{more}");
    assert!(more.contains("namegate why shop/checkout evil.example 443"), "{more}");
    browser.press("Enter")?;
    assert_eq!(browser.evaluate("document.querySelector('#rows .explained')")?, Value::Null);
    browser.evaluate("document.activeElement.blur(), true")?;
    Ok(())
}

fn phone_has_everything_and_does_not_scroll_sideways(browser: &mut Browser) -> Result<()> {
    let count = rows(browser)?.len();
    for width in [360, 768] {
        browser.resize(width, 780)?;
        let wide = "document.documentElement.scrollWidth";
        browser.wait_for(&format!("innerWidth === {width}"))?;
        assert_eq!(browser.evaluate(wide)?, width, "no sideways scrolling");
        let hidden = "[...document.querySelectorAll('#rows td, #rows th')]\
                      .filter((cell) => !cell.getClientRects().length).length";
        assert_eq!(browser.evaluate(hidden)?, 0, "each cell is there");
        assert_eq!(rows(browser)?.len(), count);
        if width == 360 {
            picture(browser, "phone", 360, 1500)?;
        }
    }
    browser.resize(1280, 900)
}

fn pictures(browser: &mut Browser) -> Result<()> {
    picture(browser, "map", 1280, 1000)?;
    browser.prefer("dark")?;
    picture(browser, "dark", 1280, 1000)?;
    browser.prefer("light")
}

#[test]
fn page_shows_a_thousand_workloads() -> Result<()> {
    let test = "page_shows_a_thousand_workloads";
    if !has_browser(test)? {
        return Ok(());
    }
    let crowd = crowd::Crowd::serve(test)?;
    let mut browser = Browser::start(Command::new("sh"), crowd.folder())?;
    browser.open(&crowd.url())?;
    hostile_names_stay_text(&mut browser)?;
    let squares = "document.querySelectorAll('#who .dots i').length";
    browser.wait_for(&format!("{squares} === {}", crowd::WORKLOADS))?;
    picture(&mut browser, "thousand", 1280, 1180)?;

    browser.evaluate("document.querySelector('#unfold').click(), true")?;
    browser.wait_for(&format!(
        "document.querySelectorAll('#who [role=treeitem].row').length === {}",
        crowd::WORKLOADS
    ))?;
    let cost = "(async () => { const began = performance.now(); \
                document.querySelector('#stage').scrollTop += 400; \
                await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next))); \
                return performance.now() - began })()";
    let frame = browser.evaluate(cost)?;
    let heap = browser.heap()?;
    let seen = format!(
        "{} workloads, {} edges: two frames {frame} ms, heap {heap} octets, agent {} KiB more\n",
        crowd::WORKLOADS,
        crowd.edges(),
        crowd.grown_kib(),
    );
    // To be seen where the test passes as well.
    write!(std::io::stderr(), "{seen}")?;
    assert!(heap < 256 << 20, "{heap}");

    let who =
        browser.text("document.querySelector('#who [role=treeitem].row .name').textContent")?;
    browser.evaluate("document.querySelector('#find').focus(), true")?;
    browser.type_text(&who)?;
    browser.wait_for("document.querySelectorAll('#who [role=treeitem].row').length < 20")?;
    browser.press("Escape")?;
    browser.resize(360, 780)?;
    browser.wait_for("innerWidth === 360")?;
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth")?, 360);
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    Ok(())
}

#[test]
fn only_who_means_this_machine_is_answered() -> Result<()> {
    let crowd = crowd::Crowd::serve("only_who_means_this_machine_is_answered")?;
    let url = crowd.url();
    let curl = |arguments: &[&str]| -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "--max-time", "10"]).args(arguments);
        run(&mut curl, Duration::from_secs(20))?.success()
    };
    let page = curl(&[&url])?;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(page.to_lowercase().contains(header), "{header}: {page}");
    }
    assert!(!page.to_lowercase().contains("access-control-allow"), "{page}");
    for path in ["", "v1/map", "v1/node", "main.js"] {
        let rebound = curl(&["-H", "Host: map.evil.example", &format!("{url}{path}")])?;
        assert!(rebound.starts_with("HTTP/1.1 421"), "{path}: {rebound}");
        assert!(!rebound.contains("<html"), "{path}: {rebound}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let refused = curl(&["-X", method, &format!("{url}v1/map")])?;
        assert!(refused.starts_with("HTTP/1.1 405"), "{method}: {refused}");
    }
    assert!(curl(&[&format!("{url}v1/endpoints")])?.starts_with("HTTP/1.1 404"));
    Ok(())
}

#[test]
fn an_address_of_the_network_has_to_be_meant() -> Result<()> {
    let test = "an_address_of_the_network_has_to_be_meant";
    let Some(scene) = Scene::without_policies(test, &[])? else {
        return Ok(());
    };
    let node = &scene.town.node.namespace;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/one-machine");
    let arguments = ["--manifests", manifests, "--map-listen", "0.0.0.0:9966"];
    let refused = run_to_end(node, &arguments, Duration::from_secs(10))?;
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("--map-host"), "{}", refused.stderr);
    Ok(())
}

/// Whether there is a browser. Where there is none: an error when `CI` is set, otherwise a line that
/// says SKIPPED and why.
fn has_browser(test: &str) -> Result<bool> {
    let Some(reason) = browser::missing() else {
        return Ok(true);
    };
    if env::var_os("CI").is_some_and(|value| !value.is_empty()) {
        bail!("{test} cannot run in CI: {reason}");
    }
    writeln!(std::io::stderr(), "SKIPPED {test}: {reason}")?;
    Ok(false)
}

/// Where `make screenshots` wants pictures.
fn pictures_folder() -> Option<PathBuf> {
    env::var_os("NAMEGATE_SCREENSHOTS").map(PathBuf::from)
}

/// Takes a picture for the docs where they are wanted.
fn picture(browser: &mut Browser, name: &str, width: u32, height: u32) -> Result<()> {
    let Some(folder) = pictures_folder() else {
        return Ok(());
    };
    fs::create_dir_all(&folder)?;
    browser.resize(width, height)?;
    browser.evaluate("scrollTo(0, 0), document.activeElement.blur(), true")?;
    browser.point(1.0, 1.0)?;
    browser.evaluate(
        "new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))",
    )?;
    let path: &Path = &folder.join(format!("map-{name}.png"));
    browser.screenshot(path)?;
    wait_until("the picture", Duration::from_secs(5), || Ok(path.is_file()))
}
