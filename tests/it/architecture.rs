//! The architecture as rules: words that some layers never use.

use std::fs;
use std::path::{Path, PathBuf};

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn uses_word(file: &Path, word: &str) -> bool {
    fs::read_to_string(file)
        .unwrap()
        .lines()
        .any(|line| !line.trim_start().starts_with("//") && line.contains(word))
}

/// Returns the files under `src` that start with `prefix` and use a word outside comments.
fn users_of(word: &str, prefix: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut is_any_there, mut users) = (false, Vec::new());
    for file in source_files(&root) {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        if name.starts_with(prefix) {
            is_any_there = true;
            if uses_word(&file, word) {
                users.push(name.to_owned());
            }
        }
    }
    assert!(is_any_there, "no file starts with src/{prefix}");
    users
}

fn has_prefix(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn assert_used_only_in(word: &str, allowed: &[&str]) {
    let mut users = users_of(word, "");
    users.retain(|name| !has_prefix(name, allowed));
    assert!(users.is_empty(), "{word} is used in {users:?}");
}

fn assert_unused_in(prefix: &str, words: &[&str]) {
    for word in words {
        let users = users_of(word, prefix);
        assert!(users.is_empty(), "{word} is used in {users:?}");
    }
}

#[test]
fn sql_lives_only_in_the_store() {
    assert_used_only_in("sqlx::", &["store/", "lib.rs"]);
}

#[test]
fn routes_and_status_codes_live_only_in_http_and_the_simulator() {
    for word in ["axum::", "StatusCode"] {
        assert_used_only_in(word, &["http/", "simulator/"]);
    }
}

#[test]
fn http_requests_are_made_only_by_graph_and_the_cli() {
    assert_used_only_in("reqwest::", &["graph/", "cli/", "alerts/channel/"]);
}

#[test]
fn children_get_a_clean_environment() {
    assert_used_only_in("Command::new", &["embedded/host.rs"]);
}

#[test]
fn prometheus_metrics_are_named_in_one_file() {
    assert_used_only_in("prometheus_client::", &["metrics.rs"]);
}

#[test]
fn reports_know_neither_html_nor_terminals() {
    assert_used_only_in("maud::", &["http/dashboard/"]);
    assert_unused_in(
        "report/",
        &["crate::http", "crate::cli", "anstyle", "comfy_table"],
    );
}

#[test]
fn meta_intake_and_lockout_know_no_io_no_async_and_no_clock() {
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
    for pure in ["meta/", "lockout/", "intake.rs"] {
        assert_unused_in(pure, &words);
    }
}

#[test]
fn http_processor_and_followup_meet_only_in_the_database() {
    assert_unused_in("http/", &["processor", "followup", "graph::"]);
    assert_unused_in("followup.rs", &["crate::http", "processor"]);
    for part in ["processor.rs", "processor/", "inbox.rs"] {
        assert_unused_in(part, &["crate::http", "followup", "graph::"]);
    }
}

#[test]
fn nothing_is_read_before_it_is_acknowledged() {
    for before in ["http/webhook.rs", "inbox.rs", "store/inbox.rs"] {
        assert_unused_in(
            before,
            &["Intake", "serde_json", "lock_account", "incidents"],
        );
    }
}
