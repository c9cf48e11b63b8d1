//! The rows of the fault matrix, by what fails. Each makes its fault in a [`Field`] of its
//! own, and gives what that cost. The runner, `benches/withstand/main.rs`, knows them by
//! their numbers.
//!
//! | what fails | rows |
//! | --- | --- |
//! | [`agent`]: the agent beside the stub | 1, 2, 3, 15, 16 |
//! | [`servers`]: Consul's servers, and all of Consul | 4 to 7, 12, 19, 20, 28, 38 |
//! | [`http`]: the HTTP API, and DNS does not | 10, 24, 25 |
//! | [`weather`]: DNS, what lies between, and anything | 8, 9, 11, 13, 14, 29, 39 |
//! | [`rights`]: tokens and certificates | 17, 18, 23 |
//! | [`services`]: what is registered | 21, 22 |
//! | [`upstreams`]: who answers for other names | 30, 31, 32 |
//! | [`stub`]: the stub and its machine | 33 to 37 |

pub(crate) mod agent;
pub(crate) mod http;
pub(crate) mod rights;
pub(crate) mod servers;
pub(crate) mod services;
pub(crate) mod stub;
pub(crate) mod upstreams;
pub(crate) mod weather;

use std::{fs, path::PathBuf, time::Duration};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Field, KNOWN, Plan, TOKEN, any_of, asked, instance, known, make_token, port, register, setting,
    verdict::{
        Law,
        New::{Either, Fails, Found, Gone},
        SAID, Verdict, ms,
    },
};
use crate::support::{Over, PATIENCE, Proxy, Weather, ask, leader, wait_for};

// What the stub shows of itself.
const DNS_UP: &str = "proconsul_source_up{source=\"dns\"}";
const HTTP_UP: &str = "proconsul_source_up{source=\"http\"}";
const DNS_ERRORS: &str = "proconsul_source_errors_total{source=\"dns\"}";
const HTTP_ERRORS: &str = "proconsul_source_errors_total{source=\"http\"}";
const HTTP_DENIED: &str = "proconsul_source_errors_total{source=\"http\",reason=\"denied\"}";
const HTTP_THROTTLED: &str = "proconsul_source_errors_total{source=\"http\",reason=\"throttled\"}";
const LEADER: &str = "proconsul_cluster_leader";
const FALLBACKS: &str = "proconsul_fallbacks_total{from=\"dns\",to=\"http\"}";
const STALE_SERVED: &str = "proconsul_stale_served_total";
const PROTECTION: &str = "proconsul_protection_active";

// Extended errors (RFC 8914).
const PROHIBITED: u16 = 18;
const NO_REACHABLE_AUTHORITY: u16 = 22;
const NETWORK_ERROR: u16 = 23;

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-{}", std::process::id()))
}
