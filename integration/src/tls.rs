//! The town's certificate authority, made with `openssl`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::run;

/// Makes an authority (`ca.pem` in the lab's folder) and one certificate (`site.pem`, `site.key`)
/// that it signed for `names`.
pub fn certify(lab: &Lab, names: &[&str]) -> Result<()> {
    let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
    fs::write(lab.file("site.ext"), format!("subjectAltName = {}\n", names.join(",")))?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        lab,
        &[
            &["req", "-x509", "-days", "30", "-subj", "/CN=Town authority"][..],
            &key,
            &["-keyout", "ca.key", "-out", "ca.pem"],
        ],
    )?;
    openssl(
        lab,
        &[
            &["req", "-new", "-subj", "/CN=town site"][..],
            &key,
            &["-keyout", "site.key", "-out", "site.csr"],
        ],
    )?;
    openssl(
        lab,
        &[&[
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            "site.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "site.ext",
            "-out",
            "site.pem",
        ][..]],
    )
}

fn openssl(lab: &Lab, arguments: &[&[&str]]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(arguments.concat()).current_dir(lab.folder());
    run(&mut command, Duration::from_secs(20))?
        .success()
        .context("cannot make the town's certificates")?;
    Ok(())
}
