//! Licences and sources of everything that is linked in, against `deny.toml`. The same check that `cargo deny`
//! makes, without having to build it; advisories need that one and a network.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};
use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};

const REGISTRY: &str = "registry+";

pub(crate) fn run() -> anyhow::Result<()> {
    let allowed = allowed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml"))?;
    let mut wrong = Vec::new();
    let packages = packages()?;
    for package in &packages {
        let text = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        if package["source"].is_null() {
            continue; // Ours.
        }
        if !text("source").starts_with(REGISTRY) {
            wrong.push(format!("{name} comes from {}, not from a registry", text("source")));
        }
        match Expression::parse_mode(text("license"), ParseMode::LAX) {
            Ok(licence) if licence.evaluate(|asked| allowed.iter().any(|l| l.satisfies(asked))) => {}
            Ok(licence) => wrong.push(format!("{name}: the licence {licence} is not in deny.toml")),
            Err(error) => wrong.push(format!("{name}: the licence {:?} is none: {error}", text("license"))),
        }
    }
    wrong.iter().for_each(|w| println!("{w}"));
    println!("{} packages, {} wrong", packages.len(), wrong.len());
    ensure!(wrong.is_empty(), "not everything may be linked in");
    Ok(())
}

fn allowed(path: &Path) -> anyhow::Result<Vec<Licensee>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: toml::Table = text.parse().with_context(|| format!("{} is not valid", path.display()))?;
    let list = file["licenses"]["allow"].as_array().context("licenses.allow is not a list")?;
    let parse = |v: &toml::Value| Ok(Licensee::parse(v.as_str().context("a licence is a text")?)?);
    list.iter().map(parse).collect()
}

fn packages() -> anyhow::Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = Command::new(cargo).args(["metadata", "--format-version", "1", "--locked"]).output()?;
    ensure!(said.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&said.stderr));
    let mut metadata: Value = serde_json::from_slice(&said.stdout)?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => anyhow::bail!("cargo metadata names no packages"),
    }
}
