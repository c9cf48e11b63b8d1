//! What comes in through dependencies: the part of `deny.toml` that can be judged without a
//! list of advisories, which `cargo deny check` fetches.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

/// What is linked on this system, with all features, and not for tests alone.
fn linked() -> Vec<Value> {
    let mut command = Command::new(env!("CARGO"));
    let host = Command::new("rustc")
        .args(["--print", "host-tuple"])
        .output()
        .unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let told = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "metadata",
            "--format-version=1",
            "--all-features",
            "--locked",
        ])
        .arg(format!("--filter-platform={}", host.trim()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{said}");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let resolve = &told["resolve"];
    let nodes: BTreeMap<&str, &Value> = (resolve["nodes"].as_array().unwrap().iter())
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let mut wanted = BTreeSet::new();
    let mut next = vec![resolve["root"].as_str().unwrap()];
    while let Some(id) = next.pop() {
        if !wanted.insert(id) {
            continue;
        }
        for needed in nodes[id]["deps"].as_array().unwrap() {
            let kinds = needed["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"] != "dev") {
                next.push(needed["pkg"].as_str().unwrap());
            }
        }
    }
    let packages = told["packages"].as_array().unwrap().iter();
    let linked = packages.filter(|package| wanted.contains(package["id"].as_str().unwrap()));
    linked.cloned().collect()
}

/// Whether an SPDX expression can be met with these licences.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let met = |one: &str| {
        let plain = one.split(" WITH ").next().unwrap_or(one);
        allowed.contains(&one.trim()) || allowed.contains(&plain.trim())
    };
    // "A OR B AND C": AND binds first, and each has to be met.
    (expression.split(" OR ")).any(|part| part.split(" AND ").all(met))
}

#[test]
fn licences_versions_and_registries_are_those_that_are_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let law: toml::Value = fs::read_to_string(root.join("deny.toml"))
        .unwrap()
        .parse::<toml::Table>()
        .unwrap()
        .into();
    let texts = |value: &toml::Value, key: Option<&str>| -> Vec<String> {
        let all = value.as_array().unwrap().iter();
        let text = |one: &toml::Value| key.map_or_else(|| one.clone(), |key| one[key].clone());
        all.map(|one| text(one).as_str().unwrap().to_owned())
            .collect()
    };
    let allowed = texts(&law["licenses"]["allow"], None);
    let allowed: Vec<_> = allowed.iter().map(String::as_str).collect();
    let skipped = texts(&law["bans"]["skip"], Some("crate"));
    let banned = texts(&law["bans"]["deny"], Some("crate"));

    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for package in linked() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, version, licence) = (text("name"), text("version"), text("license"));
        if !is_met(&licence, &allowed) {
            wrong.push(format!("{name} {version} is under {licence:?}"));
        }
        let from = text("source");
        if !from.is_empty() && !from.contains("crates.io-index") {
            wrong.push(format!("{name} comes from {from}"));
        }
        if banned.contains(&name) {
            wrong.push(format!("{name} is banned"));
        }
        let is_skipped = skipped.iter().any(|skip| {
            let (which, part) = skip.split_once('@').unwrap();
            which == name && version.starts_with(part)
        });
        if !is_skipped {
            versions.entry(name).or_default().push(version);
        }
    }
    assert!(versions.len() > 50, "nothing was looked at");
    let twice = versions.iter().filter(|(_, versions)| versions.len() > 1);
    wrong.extend(twice.map(|(name, versions)| format!("{name} twice: {versions:?}")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_expression_of_licences_is_met_by_what_it_offers_and_needs() {
    let allowed = ["MIT", "ISC"];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT AND ISC) OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT WITH an-exception", true),
        ("", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
