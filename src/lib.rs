//! Finds every healthy instance of a service registered in HashiCorp Consul.
//!
//! Give it a name: it answers with the endpoints of the service, the source that
//! told them, their age, and whether they are known to be the whole set. It asks
//! Consul's DNS interface first. Where that does not answer, or answers with a
//! set that may be cut, it asks Consul's HTTP API. Where no agent answers, it gives
//! what was found before, marked as stale, in this run or in an earlier one, and
//! at last what a static catalog or a default address says.
//!
//! It is a library for tokio, and a program with the same name: `proconsul lookup`
//! prints the instances of a service, `pick` one of them, `explain` each step of
//! the look-up, `watch` each change, and `serve` answers DNS clients.
//!
//! # One look-up
//!
//! [`Resolver::lookup`] reads the name (`web`, `v2.web`, `web@dc2`,
//! `web.service.consul`; see [`ConsulName`]) and looks into the cache. What is
//! there and still holds is given at once. If somebody else is asking for the same
//! name just now, the call waits for that answer and asks nobody itself.
//!
//! Otherwise it goes through the sources in the order of the table below. A port that
//! refuses costs less than a millisecond, and after that nothing: it is left alone and
//! probed by copies of real questions. Beside a source that is late the next one is
//! asked, after a delay that is learned; the first whole set wins. If the only set
//! found may be cut, it is given and says so. If no source has answered, the [`Error`]
//! holds every attempt: whom it asked, what came of it, and after what time.
//!
//! What was found once is never lost to a failure. Where nothing newer comes within
//! 150 ms, the set known before is given as [`Stale`](Freshness::Stale), for a
//! [day](ResolverBuilder::keep_stale) by default, while it is still asked for;
//! [`Lookup::require_fresh`] and [`Lookup::max_age`] say otherwise. And where a source
//! suddenly says that a known service does not exist, that is
//! [weighed](Protection) before it is believed: rights can be lost and agents can lose
//! their data, and both then say the same as when a service was taken down.
//!
//! Instances registered under a host name are given with its addresses. What was
//! found is kept for its TTL, and for at least
//! [`ttl_floor`](ResolverBuilder::ttl_floor), 1 s by default, because Consul's own
//! TTL is 0 unless configured.
//!
//! # Example
//!
//! ```no_run
//! use proconsul::{Resolver, Strategy};
//!
//! # async fn example() -> Result<(), proconsul::Error> {
//! let resolver = Resolver::from_env()?;
//! let answer = resolver.lookup("web").await?;
//! for endpoint in answer.endpoints() {
//!     println!("{endpoint}");
//! }
//! if !answer.is_complete() {
//!     eprintln!("there may be more: {:?}", answer.warnings());
//! }
//!
//! let mut picker = resolver.picker(&answer, Strategy::Weighted);
//! if let Some(endpoint) = picker.pick() {
//!     println!("connect to {}", endpoint.socket_addr());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Registering
//!
//! A service is registered at the agent of its machine as long as a guard lives, and again
//! where the agent forgets.
//!
//! ```no_run
//! use proconsul::{Check, Resolver, ServiceDefinition};
//!
//! # async fn example() -> Result<(), proconsul::Error> {
//! let web = ServiceDefinition::new("web", 8080)
//!     .address("10.0.0.7")
//!     .tag("v2")
//!     .check(Check::http("http://10.0.0.7:8080/health/ready"));
//! let registration = Resolver::from_env()?.register(web)?;
//! // Until SIGTERM or SIGINT: then it is deregistered before anything else.
//! registration.shutdown_on_signal().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A service at hand
//!
//! A [`Service`] is followed as long as a handle of it lives; a pick asks nobody and
//! allocates nothing.
//!
//! ```no_run
//! use proconsul::{Filter, Policy, Resolver, Strategy};
//!
//! # async fn example() -> Result<(), proconsul::Error> {
//! let policy = Policy::new(Strategy::LeastLoaded)
//!     .require(Filter::new().meta("provider", "openai").passing())
//!     .prefer(Filter::new().meta("model", "gpt-4"))
//!     .or_datacenter("dc2");
//! let service = Resolver::from_env()?.service_with("ai-provider", policy)?;
//!
//! // Waits for the first answer only.
//! let lease = service.pick().await?;
//! println!("call {}", lease.socket_addr());
//! // Or failed(), or report(what, how_long).
//! lease.succeeded();
//!
//! // Never waits; an error says why there is none.
//! let lease = service.try_pick()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Requests by name
//!
//! ```no_run
//! use proconsul::{HttpClient, Resolver};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let http = HttpClient::new(&Resolver::from_env()?)?;
//! let order = http.post("http://orders/new").with(|request| request.body("{}"));
//! println!("{}", order.send().await?.status());
//! # Ok(())
//! # }
//! ```
//!
//! # Sources
//!
//! | source | is asked | knows | configured by |
//! | --- | --- | --- | --- |
//! | Consul's DNS interface | first, over UDP, then TCP | address, port, weight | [`dns`](ResolverBuilder::dns), `PROCONSUL_DNS` |
//! | Consul's HTTP API | when DNS fails or is late, or its set may be cut | also node, id, tags, metadata, health | [`http`](ResolverBuilder::http), `CONSUL_HTTP_ADDR` |
//! | snapshot | when no agent answers, for what an earlier run found | what was found | [`snapshot`](ResolverBuilder::snapshot), `PROCONSUL_SNAPSHOT` |
//! | static catalog | when no agent gave an answer, for what was never found | also id, tags, metadata | [`catalog`](ResolverBuilder::catalog), `PROCONSUL_CATALOG` |
//! | default address | the same, after the static catalog | address and port | [`default_address`](ResolverBuilder::default_address), `PROCONSUL_DEFAULT_<NAME>` |
//!
//! When Consul says that a name does not exist, that is the answer: the static
//! catalog is not asked then.
//!
//! # Completeness
//!
//! Consul cuts a DNS reply that is too long, and unless `enable_truncate` is set
//! it does not tell. So [`Answer::is_complete`] is true only where something
//! proves that nothing was cut: a TXT record that the first cut would have
//! removed, two replies that hold as many instances though their limits are far
//! apart, or the HTTP API, which does not cut. A set is not complete either where
//! the token may not see all instances, or where an instance is registered under a
//! host name that has no address. [`Answer::warnings`] says why.
//!
//! # Contents
//!
//! | to | there is |
//! | --- | --- |
//! | set up | [`Resolver`], [`ResolverBuilder`] |
//! | name a service | [`ConsulName`], [`Subject`], [`Locality`], [`Domain`], [`Name`], [`NameError`] |
//! | read an answer | [`Answer`], [`Endpoint`], [`Health`], [`Source`], [`Transport`], [`Freshness`] |
//! | look up | [`Lookup`] |
//! | follow a name | [`Service`], [`Changes`], [`Change`], [`Endpoints`] |
//! | keep what vanishes | [`Protection`], [`Reason`] |
//! | see how it fares | [`Metrics`], [`Sample`], [`Resolver::alerts`], [`Alerts`], [`Alert`], [`AlertRule`], [`Severity`] |
//! | choose an endpoint | [`Policy`], [`Filter`], [`Strategy`], [`Lease`], [`Picker`], [`UnknownStrategy`] |
//! | leave alone who fails | [`Breaker`], [`BreakerState`], [`Feedback`], [`Standing`] |
//! | call one, and others where it fails | [`Service::call`], [`Retry`], [`Blame`], [`CallError`] |
//! | send HTTP requests by name | [`HttpClient`], [`HttpRequest`], [`HttpClientBuilder`], [`HttpError`] |
//! | do so from code that is not async | [`blocking::Resolver`] |
//! | register services, and keep them registered | [`Resolver::register`], [`ServiceDefinition`], [`Check`], [`Registration`], [`RegistrationState`] |
//! | see all that is registered, and its checks | [`Resolver::services`], [`Resolver::instances`], [`Registry`], [`ServiceName`], [`Instance`], [`CheckState`] |
//! | speak mTLS between services | [`Resolver::connect`], [`Connect`], [`SpiffeId`], [`SpiffeIdError`] |
//! | see how Consul's servers are | [`Resolver::cluster`], [`Cluster`], [`ClusterHealth`], [`Server`], [`Resolver::token_state`], [`TokenState`] |
//! | read, write and watch settings | [`Resolver::kv`], [`Kv`], [`KvEntry`], [`Setting`] |
//! | see DNS records | [`Records`], [`Record`], [`Section`] |
//! | know what went wrong | [`Error`], [`ErrorKind`], [`Attempt`], [`Outcome`] |
//! | answer DNS clients | [`stub::Stub`] |
//!
//! # Features
//!
//! | feature | for |
//! | --- | --- |
//! | `cli`, on by default | the program only: a service that links the library turns default features off |
//! | `grpc` | `grpc::Channel`, a gRPC channel for generated clients |
//! | `metrics` | [`Metrics`] handed to the recorder of the facade `metrics` |
//! | `tower` | `tower::Discover` and `tower::Connector`, for tower and hyper |

mod air;
mod alert;
mod balance;
pub mod blocking;
mod bounded;
mod cache;
mod call;
mod catalog;
mod change;
mod circuit;
mod clock;
mod cluster;
mod complete;
mod config;
mod connect;
mod consul;
mod endpoint;
mod error;
mod evidence;
mod flight;
mod found;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "grpc")]
pub mod grpc;
mod http_client;
mod kv;
mod ladder;
mod leased;
mod metrics;
mod name;
mod pool;
mod process;
mod protection;
mod record;
mod records;
mod registration;
mod resolver;
mod retry;
mod snapshot;
mod source;
mod stamp;
mod status;
pub mod stub;
mod task;
#[cfg(feature = "tower")]
pub mod tower;
mod udp;
#[cfg(test)]
mod world;
mod zone;

pub use self::metrics::{Metrics, Sample};
pub use alert::{Alert, AlertRule, Alerts, Severity};
pub use balance::{Picker, Strategy, UnknownStrategy};
pub use catalog::Registry;
pub use change::Change;
pub use cluster::{Cluster, ClusterHealth, Server, TokenState};
pub use config::ResolverBuilder;
pub use connect::{Connect, SpiffeId, SpiffeIdError};
pub use consul::instances::{CheckState, Instance, ServiceName};
pub use endpoint::{Answer, Attempt, Endpoint, Freshness, Health, Outcome, Source, Transport};
pub use error::{Error, ErrorKind};
pub use http_client::{HttpClient, HttpClientBuilder, HttpError, HttpRequest};
pub use kv::{Kv, KvEntry, Setting};
pub use name::{ConsulName, Domain, Locality, NameError, Subject};
pub use pool::{Breaker, BreakerState, Feedback, Filter, Lease, Policy, Standing};
pub use protection::{Protection, Reason};
pub use record::{Record, Records, Section};
pub use registration::{Check, Registration, RegistrationState, ServiceDefinition};
pub use resolver::{Changes, Endpoints, Lookup, Name, Problems, Resolver, Service};
pub use retry::{Blame, CallError, Retry};
pub use status::{Cached, SourceStatus, Status};
