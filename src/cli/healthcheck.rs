//! `lockwatch healthcheck`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::{Failure, print_line};
use crate::config::ListenArgs;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// Check whether lockouts can be recorded (/readyz on the admin listener)
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    listen: ListenArgs,
}

pub(super) async fn run(args: HealthcheckArgs) -> Result<(), Failure> {
    let (address, path) = if args.ready {
        (args.listen.admin_listen, "readyz")
    } else {
        (args.listen.listen, "healthz")
    };
    let url = format!("http://{}/{path}", reachable_address(address));
    Ok(print_health(&url).await?)
}

async fn print_health(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    let response = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    if !status.is_success() {
        bail!("{url} answers {status}: {}", text.trim());
    }
    print_line(text.trim())?;
    Ok(())
}

/// Replaces the address of a listener on all addresses by loopback.
fn reachable_address(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
