//! `docs/withstand.md` says for each bad input and each fault which test shows what becomes
//! of it. Here it is read: nothing is left out, and each test that it names is there.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{collections::HashMap, fs, path::Path};

/// The rows of a table: those whose first column is a number, under a heading.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, part) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter_map(|line| {
        let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let cells: Vec<_> = cells.split(" | ").map(str::trim).collect();
        cells[0].parse::<u32>().is_ok().then_some(cells)
    });
    rows.collect()
}

/// The tests that a cell names, behind the file of each; those that are not there.
fn tests_of(shown: &str, files: &mut HashMap<String, String>) -> (usize, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut file, mut named, mut missing) = (None::<&String>, 0, Vec::new());
    for word in shown.split('`').skip(1).step_by(2) {
        if word.ends_with(".rs") {
            let read = || fs::read_to_string(root.join(word)).unwrap_or_default();
            files.entry(word.to_owned()).or_insert_with(read);
            file = files.get(word);
        } else if let Some(file) = file {
            named += 1;
            if !file.contains(&format!("fn {word}(")) {
                missing.push(word.to_owned());
            }
        }
    }
    (named, missing)
}

#[test]
fn each_advisory_has_a_rule_and_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/withstand.md")).unwrap();
    let (_, part) = text.split_once("\n## Advisories\n").unwrap();
    let part = part.split("\n## ").next().unwrap();
    let lines = part.lines().filter(|line| line.starts_with("| "));
    // The first two are its head.
    let rows: Vec<Vec<&str>> = lines
        .skip(2)
        .map(|line| line.split(" | ").collect())
        .collect();
    assert!(rows.len() > 20, "{rows:#?}");
    let mut files = HashMap::new();
    for row in rows {
        let [advisory, rule, shown] = row[..] else {
            panic!("{row:?}");
        };
        assert!(advisory.len() > 10 && rule.len() > 10, "{row:?}");
        let (named, missing) = tests_of(shown, &mut files);
        assert!(named > 0 && missing.is_empty(), "{advisory}: {missing:?}");
    }
}

#[test]
fn each_row_is_there_once_and_each_test_that_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/withstand.md")).unwrap();
    let mut files = HashMap::new();
    let mut wrong = Vec::new();
    for (heading, count) in [("Bad input", 169), ("Faults", 39)] {
        let rows = rows(&text, heading);
        let numbers: Vec<u32> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "{heading}");
        for row in &rows {
            let shown = row[row.len() - 1];
            let (named, missing) = tests_of(shown, &mut files);
            for test in missing {
                wrong.push(format!("{heading} {}: no {test}", row[0]));
            }
            let reason = shown
                .split_once("not done: ")
                .map_or(0, |(_, why)| why.len());
            if named == 0 && reason < 20 {
                wrong.push(format!("{heading} {}: neither a test nor a reason", row[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
