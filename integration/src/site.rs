//! The internet's sites: one `nginx` with a virtual host for each, certificates from the town's
//! authority, a big file that comes slowly, and the cloud's metadata service.

use std::fs::{self, File};

use anyhow::Result;

use crate::addresses::{ASSETS, EVIL, EXAMPLE, METADATA, Pair, RELEASES, STORAGE, STRIPE};
use crate::authority::wait_listening;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Daemon;
use crate::tls;

/// Size of the file `/image.iso` at `releases.acme.example`.
pub const IMAGE_BYTES: u64 = 64 << 20;

const SITES: [(&str, Pair); 6] = [
    ("api.stripe.com", STRIPE),
    ("releases.acme.example", RELEASES),
    ("assets.acme.example", ASSETS),
    ("*.storage.acme.example", STORAGE),
    ("example.com", EXAMPLE),
    ("evil.example", EVIL),
];

/// Starts the sites in `internet` and waits until they accept connections.
pub fn start(lab: &Lab, internet: &Namespace) -> Result<Daemon> {
    let names: Vec<_> = SITES.iter().map(|(name, _)| *name).collect();
    tls::certify(lab, &names)?;
    File::create(lab.file("image.iso"))?.set_len(IMAGE_BYTES)?;
    fs::create_dir_all(lab.file("nginx"))?;
    fs::write(lab.file("nginx.conf"), configuration(lab))?;
    let mut daemon = Daemon::start(
        internet
            .command("nginx")
            .arg("-p")
            .arg(lab.file("nginx"))
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(lab.file("nginx.conf")),
        &lab.file("nginx.log"),
    )?;
    wait_listening(&mut daemon, internet, "the sites", 443, STRIPE.v4)?;
    Ok(daemon)
}

fn configuration(lab: &Lab) -> String {
    let folder = lab.folder();
    let folder = folder.display();
    let mut text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {folder}/nginx/pid;\n\
         error_log stderr warn;\nevents {{ worker_connections 512; }}\nhttp {{\n  \
         access_log off;\n  default_type application/json;\n  \
         ssl_certificate {folder}/site.pem;\n  ssl_certificate_key {folder}/site.key;\n"
    );
    for temporary in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        text.push_str(&format!("  {temporary}_temp_path {folder}/nginx/{temporary};\n"));
    }
    for (name, pair) in SITES {
        text.push_str(&format!(
            "  server {{\n    server_name {name};\n    listen {v4}:443 ssl;\n    \
             listen [{v6}]:443 ssl;\n    listen {v4}:80;\n    listen [{v6}]:80;\n    \
             location / {{ return 200 '{{\"site\": \"{name}\"}}\\n'; }}\n    \
             location = /image.iso {{ root {folder}; limit_rate 256k; }}\n  }}\n",
            v4 = pair.v4,
            v6 = pair.v6
        ));
    }
    text.push_str(&format!(
        "  server {{\n    listen {METADATA}:80;\n    \
         location / {{ return 200 '{{\"secret\": \"node-credentials\"}}\\n'; }}\n  }}\n}}\n"
    ));
    text
}
