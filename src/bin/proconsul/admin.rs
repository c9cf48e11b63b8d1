//! The admin address of `serve`: health, metrics, and a page for people, over HTTP.
//! Everything is read, nothing is changed.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proconsul::{
    Alert, Cached, Error, Resolver, Status,
    stub::{Control, Traffic},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use crate::{lookup, output, page};

/// Connections at once.
const MOST: usize = 64;

/// Time for a request to arrive.
const HEAD: Duration = Duration::from_secs(5);

/// Time for one connection, whatever is done on it.
const LONGEST: Duration = Duration::from_secs(60);

/// Names that are listed.
const MOST_NAMES: usize = 1_000;

/// What is told.
pub(crate) struct Admin {
    pub(crate) control: Control,
    pub(crate) traffic: Traffic,
    /// Where DNS is answered.
    pub(crate) listen: Vec<SocketAddr>,
    /// What is wrong now.
    pub(crate) alerts: watch::Receiver<Vec<Alert>>,
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, admin: Admin) {
    let admin = Arc::new(admin);
    let seats = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Descriptors are short.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        // Bounded by its seat and its time.
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            // Whoever leaves in the middle is told nothing.
            _ = tokio::time::timeout(LONGEST, connection).await;
            drop(seat);
        });
    }
}

type Reply = Response<Full<Bytes>>;

impl Admin {
    fn resolver(&self) -> Resolver {
        self.control.resolver()
    }

    async fn answer(&self, request: Request<Incoming>) -> Reply {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.resolver().status().is_ready() => text(StatusCode::OK, "ready\n"),
            "/readyz" => {
                let why = "not ready: no source answers and nothing is known\n";
                text(StatusCode::SERVICE_UNAVAILABLE, why)
            }
            "/metrics" => {
                let told = format!("{}{}", self.resolver().metrics(), self.traffic);
                typed(StatusCode::OK, "text/plain; version=0.0.4", told)
            }
            "/v1/status" => object(&self.status()),
            "/v1/cache" => object(&self.cache()),
            "/v1/explain" => {
                self.explain(request.uri().query().unwrap_or_default())
                    .await
            }
            "/" => self.page(),
            _ => {
                let all = "/ /healthz /readyz /metrics /v1/status /v1/cache /v1/explain?name=web";
                text(
                    StatusCode::NOT_FOUND,
                    &format!("not here; there are {all}\n"),
                )
            }
        }
    }

    fn page(&self) -> Reply {
        let status = self.resolver().status();
        let cached = self.resolver().cached(MOST_NAMES);
        let html = page::html(&self.head(&status), &status, &cached);
        let mut reply = typed(StatusCode::OK, "text/html; charset=utf-8", html);
        let policy = HeaderValue::from_static(page::POLICY);
        reply.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        reply
    }

    /// What is true of the process as a whole.
    fn head(&self, status: &Status) -> page::Head {
        page::Head {
            domain: self.resolver().domain().to_string(),
            listen: self.listen.iter().map(ToString::to_string).collect(),
            uptime: self.traffic.uptime(),
            queries: self.traffic.queries(),
            remembered: self.traffic.remembered(),
            ready: status.is_ready(),
            alerts: self.alerts.borrow().clone(),
        }
    }

    fn status(&self) -> Value {
        let status = self.resolver().status();
        let head = self.head(&status);
        let sources = status.sources.iter().map(|source| {
            let addresses = source.addresses.iter().map(|(address, down)| {
                json!({
                    "address": &**address,
                    "up": down.is_none(),
                    "down_s": down.map(|down| down.as_secs()),
                })
            });
            json!({
                "source": source.source.as_str(),
                "up": source.up,
                "addresses": addresses.collect::<Value>(),
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": head.uptime.as_secs(),
            "ready": head.ready,
            "domain": head.domain,
            "listen": head.listen,
            "sources": sources.collect::<Value>(),
            "cache": {"names": status.names, "bytes": status.bytes, "hits": status.hits},
            "stale": status.stale,
            "watches": status.watches,
            "protected": status.protected,
            "queries": head.queries,
            "remembered": head.remembered,
            "alerts": head.alerts.iter().map(alert).collect::<Value>(),
        })
    }

    fn cache(&self) -> Value {
        let one = |cached: &Cached| {
            json!({
                "name": &*cached.name,
                "source": cached.source.as_str(),
                "freshness": cached.freshness.as_str(),
                "age_ms": u64::try_from(cached.age.as_millis()).unwrap_or(u64::MAX),
                "count": cached.endpoints,
                "complete": cached.complete,
                "protected": cached.protected.map(proconsul::Reason::as_str),
            })
        };
        let resolver = self.resolver();
        json!({
            "total": resolver.cached_sets(),
            "names": resolver.cached(MOST_NAMES).iter().map(one).collect::<Value>(),
        })
    }

    /// As a look-up that nothing was known of.
    async fn explained(&self, name: &str) -> Result<Value, Error> {
        let resolver = self.resolver();
        let name = lookup::read_name(&resolver, name, None)?;
        let answer = resolver.lookup(&name).max_age(Duration::ZERO).await?;
        let Some(kind) = lookup::own_type(&name) else {
            return Ok(output::explained(&answer));
        };
        let found = resolver.records(&name, kind).await?;
        let mut told = lookup::records_told(answer.name(), &found);
        told["attempts"] = output::attempts(answer.attempts());
        Ok(told)
    }

    async fn explain(&self, query: &str) -> Reply {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let Some((_, name)) = pairs.find(|(key, _)| *key == "name") else {
            return text(
                StatusCode::BAD_REQUEST,
                "which name? /v1/explain?name=web\n",
            );
        };
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        object(&match self.explained(&name).await {
            Ok(told) => told,
            Err(error) => output::failed(&error),
        })
    }
}

fn alert(alert: &Alert) -> Value {
    json!({
        "rule": alert.rule,
        "about": &*alert.about,
        "severity": alert.severity.as_str(),
        "text": &*alert.text,
    })
}

fn object(value: &Value) -> Reply {
    typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: &str) -> Reply {
    typed(status, "text/plain; charset=utf-8", body.to_owned())
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    reply
}
