//! The tutorials for clusters, run by their script over programs that only note what they are asked, and
//! answer as they would beside a firewall that works, or beside one that does nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use namegate_integration::manifests::examples;
use namegate_integration::objects::documents;
use namegate_integration::process::{Finished, run};

use super::{LIMIT, TUTORIAL};

/// Stands for every program of the tutorials: notes its words, keeps what it reads, and answers.
const PROGRAM: &str = r#"#!/bin/bash
echo "$(basename "$0") $*" >>"$NOTES/words"
case "$*" in
*"-f -"* | *"--config -"*) cat >>"$NOTES/read.yaml" && echo --- >>"$NOTES/read.yaml" ;;
*jsonpath*) echo 10.244.1.30 ;;
*"$OPEN"*) ;;
*evil.example*) echo "** server can't find evil.example: REFUSED" && exit 1 ;;
*1.1.1.1* | *"exec web "*) exit 1 ;;
*patch*) echo 'The EgressPolicy "checkout-apis" is invalid' >&2 && exit 1 ;;
esac
case "$*" in *"nslookup -type=a api.stripe.com"*) printf 'Address:\t203.0.113.10\n' ;; esac
"#;

/// Nothing that is asked has this in it.
const NOTHING: &str = "nothing like this";

/// Where the programs are, and what they noted; it goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let folder = Self(std::env::temp_dir().join(format!("{name}-{}", std::process::id())));
        fs::create_dir_all(&folder.0)?;
        let program = folder.0.join("kubectl");
        fs::write(&program, PROGRAM)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        for other in ["docker", "helm", "kind", "minikube"] {
            symlink(&program, folder.0.join(other))?;
        }
        Ok(folder)
    }

    /// Runs a tutorial where whatever has `open` in it goes through.
    fn run(&self, tutorial: &str, open: &str) -> Result<Finished> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/tutorial");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(script);
        command.arg(tutorial).env("PATH", format!("{}:{path}", self.0.display()));
        command.env("NOTES", &self.0).env("OPEN", open).env("TUTORIAL_PATIENCE", "0");
        run(&mut command, LIMIT)
    }

    fn noted(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).with_context(|| format!("nothing in {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays is in nobody's way.
        let _left = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_command_of_the_clusters_tutorials_is_run_in_its_order() -> Result<()> {
    for (tutorial, first) in [("minikube", "minikube image build"), ("kind", "kind create cluster")]
    {
        let folder = Folder::new(&format!("tutorial-{tutorial}"))?;
        folder.run(tutorial, NOTHING)?.success()?;
        let words = folder.noted("words")?;
        assert!(words.starts_with(first), "{words}");
        let mut rest = words.as_str();
        for step in [
            "helm install namegate helm/namegate -n kube-system --set cluster.podCIDRs={10.244.0.0/16}",
            "helm test namegate",
            "kubectl create namespace shop",
            "kubectl -n shop wait --timeout=2m --for=condition=Programmed egresspolicies --all",
            "exec checkout -- nslookup -type=a evil.example",
            "exec web -- nc -zw2 10.244.1.30 5432",
            "patch egresspolicy checkout-apis",
            "delete pod -l app.kubernetes.io/name=namegate",
            "helm uninstall namegate",
        ] {
            let at = rest.find(step).with_context(|| format!("no {step:?} in\n{rest}"))?;
            rest = &rest[at..];
        }
        let kinds: Vec<_> = documents(&folder.noted("read.yaml")?)?;
        assert!(kinds.iter().any(|object| object["kind"] == "Pod"), "{kinds:?}");

        // With the same policies as the demo and the tutorial without a cluster.
        let applied =
            words.lines().filter_map(|line| line.strip_prefix("kubectl apply -f examples/town/"));
        let applied: BTreeSet<String> = applied.map(str::to_owned).collect();
        let mut town = BTreeSet::new();
        for entry in fs::read_dir(examples().join("town"))? {
            town.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        town.remove("cluster.yaml");
        assert_eq!(applied, town, "the policies of the town");
        for question in ["api.stripe.com", "evil.example", "5432"] {
            ensure!(words.contains(question) && TUTORIAL.contains(question), "{question}");
        }
    }
    Ok(())
}

#[test]
fn a_tutorial_whose_promise_is_not_kept_fails() -> Result<()> {
    let folder = Folder::new("tutorial-open")?;
    for (open, promise) in [
        ("evil.example", "should: REFUSED"),
        ("1.1.1.1", "should: times out"),
        ("exec web ", "should: times out"),
        ("patch", "should: is invalid"),
    ] {
        let finished = folder.run("minikube", open)?;
        assert_eq!(finished.code(), 1, "{open}: {}", finished.stdout);
        assert!(finished.stderr.contains(promise), "{open}: {}", finished.stderr);
    }
    Ok(())
}
