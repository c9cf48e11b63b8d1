//! A web service on axum: registered when it starts, with a check of its own readiness, and
//! gone from Consul before it stops answering.
//!
//! ```console
//! $ SERVICE_PORT=8080 cargo run --example axum
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use proconsul::{Check, Resolver, ServiceDefinition};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::var("SERVICE_PORT").map_or(Ok(0), |port| port.parse::<u16>())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;

    let resolver = Resolver::from_env()?;
    let ready = resolver.clone();
    let app = Router::new()
        .route("/", get(async || "hello\n"))
        .route("/health/live", get(async || StatusCode::OK))
        // Ready where Consul can be asked; add what else it needs.
        .route(
            "/health/ready",
            get(async move || match ready.status().is_ready() {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            }),
        );

    let check =
        Check::http(format!("http://{address}/health/ready")).interval(Duration::from_secs(1));
    let web = ServiceDefinition::new("hello", address.port())
        .address(address.ip().to_string())
        .check(check);
    let registration = resolver.register(web)?.drain(Duration::from_millis(500));
    println!("hello on http://{address}/");

    // At SIGTERM: deregistered, then half a second for those who still come, then the end.
    let end = async move {
        if let Err(error) = registration.shutdown_on_signal().await {
            println!("{error}");
        }
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(end)
        .await?;
    Ok(())
}
