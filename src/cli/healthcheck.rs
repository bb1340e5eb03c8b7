//! `lockwatch healthcheck`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::{Failure, say};
use crate::config::ListenArgs;

/// Asks /healthz of the public listener: is the process alive
#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Ask /readyz of the admin listener instead: can lockouts be recorded
    #[arg(long)]
    ready: bool,
}

pub(super) async fn run(args: HealthcheckArgs) -> Result<(), Failure> {
    let (address, path) = match args.ready {
        true => (args.listen.admin_listen, "readyz"),
        false => (args.listen.listen, "healthz"),
    };
    let url = format!("http://{}/{path}", on_this_machine(address));
    Ok(ask(&url).await?)
}

async fn ask(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()?;
    let answer = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    if !status.is_success() {
        bail!("{url} answers {status}: {}", text.trim());
    }
    say(format_args!("{}", text.trim()))?;
    Ok(())
}

/// A listener on every address is asked on loopback.
fn on_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
