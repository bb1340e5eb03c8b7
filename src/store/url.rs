//! The database URL: one or several hosts, and parameters that libpq and sqlx understand
//! differently.

use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// The parameters that sqlx reads. A misspelt name must not be ignored: without its `sslmode`, a
/// connection would fall back to plain text.
const KNOWN: [&str; 19] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "target_session_attrs",
    "user",
];

/// The parameters of libpq that have no effect here
/// ([PostgreSQL: connection parameters](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS)).
const IGNORED: [&str; 37] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
    "tcp_user_timeout",
    "oauth_issuer",
    "oauth_client_id",
];

/// The error for a URL that is not one of Postgres. It never repeats the URL: that may contain a
/// password.
#[derive(Debug, thiserror::Error)]
#[error("not a Postgres URL (postgresql://user:password@host:5432/database): {0}")]
pub struct BadDatabaseUrl(String);

/// A URL, understood.
pub(super) struct ParsedUrl {
    /// The connection to each host, in the order of the URL; at least one.
    pub(super) hosts: Vec<PgConnectOptions>,
    /// The parameters of libpq in it that have no effect.
    pub(super) ignored: Vec<String>,
}

/// Parses a URL, with several hosts as libpq writes them:
/// `postgresql://user@host1:5432,host2/name`.
pub(super) fn parse(url: &str) -> Result<ParsedUrl, BadDatabaseUrl> {
    let refuse = |reason: &str| Err(BadDatabaseUrl(reason.to_owned()));
    let Some((scheme @ ("postgres" | "postgresql"), rest)) = url.split_once("://") else {
        return refuse("it does not start with postgresql://");
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let ignored = check_parameters(tail)?;
    let tail = without_parameter(tail, "target_session_attrs");
    let several = hosts.contains(',');
    let mut parsed = Vec::new();
    for host in hosts.split(',') {
        if several && host.is_empty() {
            return refuse("one of its hosts is empty");
        }
        let options = PgConnectOptions::from_str(&format!("{scheme}://{user}{host}{tail}"))
            .map_err(|error| BadDatabaseUrl(error.to_string()))?
            .disable_statement_logging()
            // It only matters for numbers as text, and a connection pooler refuses what it does not
            // know.
            .extra_float_digits(None);
        parsed.push(options);
    }
    Ok(ParsedUrl {
        hosts: parsed,
        ignored,
    })
}

/// Refuses parameters that nobody knows, and returns those that have no effect.
fn check_parameters(tail: &str) -> Result<Vec<String>, BadDatabaseUrl> {
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let mut ignored = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name == "target_session_attrs" && value != "read-write" {
            return Err(BadDatabaseUrl(format!(
                "target_session_attrs={value} does not fit: Lockwatch writes, so only read-write does"
            )));
        }
        // A folder of a socket may have a comma in its name.
        if name == "host" && value.contains(',') && !value.starts_with('/') {
            let reason = "several hosts go before the path: postgresql://user@host1:5432,host2:5432/database";
            return Err(BadDatabaseUrl(reason.to_owned()));
        }
        if IGNORED.contains(&&*name) {
            ignored.push(name.into_owned());
        } else if !KNOWN.contains(&&*name) && !name.starts_with("options[") {
            return Err(BadDatabaseUrl(format!("there is no parameter {name}")));
        }
    }
    Ok(ignored)
}

/// Removes a parameter that is understood here, and of which sqlx would warn.
fn without_parameter(tail: &str, name: &str) -> String {
    let Some((path, query)) = tail.split_once('?') else {
        return tail.to_owned();
    };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| pair.split('=').next() != Some(name))
        .collect();
    format!("{path}?{}", kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<(String, u16)> {
        let parsed = parse(url).unwrap();
        let address = |host: &PgConnectOptions| (host.get_host().to_owned(), host.get_port());
        parsed.hosts.iter().map(address).collect()
    }

    fn reason(url: &str) -> String {
        parse(url).err().unwrap().to_string()
    }

    #[test]
    fn hosts_are_separated_by_commas() {
        assert_eq!(
            hosts("postgresql://u:p%40,w@a:1,b,[::1]:3/d?sslmode=disable"),
            [
                ("a".to_owned(), 1),
                ("b".to_owned(), 5432),
                ("[::1]".to_owned(), 3)
            ]
        );
        assert_eq!(hosts("postgres://u@a/d"), [("a".to_owned(), 5432)]);
        let parsed = parse("postgresql://u@a,b/d?application_name=x").unwrap();
        for host in &parsed.hosts {
            assert_eq!((host.get_username(), host.get_database()), ("u", Some("d")));
        }
        assert!(reason("postgresql://u@a,,b/d").contains("one of its hosts is empty"));
        assert!(reason("postgresql://u@a/d?host=b,c").contains("host1:5432,host2:5432"));
        assert_eq!(
            parse("postgresql://u@a/d?host=/b,c").unwrap().hosts.len(),
            1
        );
    }

    #[test]
    fn a_misspelt_parameter_is_refused() {
        assert!(
            reason("postgresql://u@a/d?ssl_mode=verify-full").contains("no parameter ssl_mode")
        );
        assert!(reason("postgresql://u@a/d?SSLMODE=require").contains("no parameter SSLMODE"));
        assert!(!reason("postgresql://u:secret@a/d?x=1").contains("secret"));
    }

    #[test]
    fn parameters_of_libpq_without_effect_are_named() {
        let url = "postgresql://u@a/d?channel_binding=require&sslmode=require&connect_timeout=3";
        assert_eq!(
            parse(url).unwrap().ignored,
            ["channel_binding", "connect_timeout"]
        );
        assert!(parse("postgresql://u@a/d").unwrap().ignored.is_empty());
    }

    #[test]
    fn only_a_writable_host_will_do() {
        let url = "postgresql://u@a,b/d?target_session_attrs=";
        assert_eq!(parse(&format!("{url}read-write")).unwrap().hosts.len(), 2);
        for word in ["any", "standby", "prefer-standby", "primary", ""] {
            assert!(
                reason(&format!("{url}{word}")).contains("only read-write"),
                "{word}"
            );
        }
    }
}
