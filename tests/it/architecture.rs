//! The invariants of the house, said as absences.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, found),
            path => found.push(path),
        }
    }
}

/// The files under `src` that start with `prefix` and use a word outside comments.
fn users(prefix: &str, word: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let uses = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        text.lines()
            .any(|line| !line.trim_start().starts_with("//") && line.contains(word))
    };
    let name = |file: &PathBuf| {
        file.strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let found: Vec<PathBuf> = files
        .into_iter()
        .filter(|file| name(file).starts_with(prefix))
        .collect();
    assert!(!found.is_empty(), "{prefix} is where it was");
    found.iter().filter(|file| uses(file)).map(name).collect()
}

fn only_in(word: &str, allowed: &[&str]) {
    let others: Vec<_> = users("", word)
        .into_iter()
        .filter(|name| !allowed.iter().any(|allowed| name.starts_with(allowed)))
        .collect();
    assert!(others.is_empty(), "{word} is used in {others:?}");
}

fn absent_in(place: &str, words: &[&str]) {
    for word in words {
        let users = users(place, word);
        assert!(users.is_empty(), "{word} is used in {users:?}");
    }
}

#[test]
fn sql_lives_only_in_the_store() {
    only_in("sqlx::", &["store/", "lib.rs"]);
}

#[test]
fn routes_and_status_codes_live_only_in_http_and_the_simulator() {
    for word in ["axum::", "StatusCode"] {
        only_in(word, &["http/", "simulator/"]);
    }
}

#[test]
fn requests_are_made_only_at_the_rim() {
    only_in("reqwest::", &["graph/", "cli/"]);
}

#[test]
fn children_get_a_clean_environment() {
    only_in("Command::new", &["embedded/host.rs"]);
}

#[test]
fn what_prometheus_is_told_is_named_in_one_place() {
    only_in("prometheus_client::", &["metrics.rs"]);
}

#[test]
fn what_people_are_shown_knows_neither_pages_nor_terminals() {
    only_in("maud::", &["http/dashboard/"]);
    absent_in(
        "report/",
        &["crate::http", "crate::cli", "anstyle", "comfy_table"],
    );
}

#[test]
fn the_rules_know_no_io_no_async_and_no_clock() {
    let words = [
        "tokio",
        "async ",
        "std::fs",
        "std::net",
        "now_utc",
        "SystemTime",
        "Instant",
        "fastrand",
    ];
    absent_in("meta/", &words);
    absent_in("lockout/", &words);
}

#[test]
fn http_and_the_follow_up_meet_only_in_rows() {
    absent_in("http/", &["followup", "graph::"]);
    absent_in("followup.rs", &["crate::http"]);
}
