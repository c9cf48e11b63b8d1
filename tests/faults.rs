//! What a fault of Consul costs those who ask the stub: the rows of the fault matrix that are
//! quick, on a real cluster under a steady load, each answer held against what was true.
//! `scripts/withstand` runs all rows, with the bounds of time that a busy machine cannot keep.

mod field;
mod support;

use std::time::Duration;

use field::{
    rows::{agent, http, rights, servers, services, stub, weather},
    verdict::Verdict,
};
use support::Weather;
use tokio::sync::Mutex;

/// One at a time: each is three servers, an agent, and a load.
static FIELD: Mutex<()> = Mutex::const_new(());

const LASTS: Duration = Duration::from_secs(3);

async fn holds(row: impl Future<Output = Verdict>) {
    let _alone = FIELD.lock().await;
    let verdict = row.await;
    verdict.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_is_killed_the_servers_answer_in_its_place() {
    holds(agent::the_agent_is_killed(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_hangs_nobody_waits_for_it() {
    holds(agent::the_agent_hangs(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_answers_go_on() {
    holds(servers::the_leader_is_killed(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_servers_are_killed_what_is_known_is_given() {
    holds(servers::all_servers_are_killed(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_is_killed_what_is_known_is_given_and_then_what_is_written_down() {
    holds(servers::all_is_killed(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_dns_is_refused_http_answers() {
    holds(weather::dns_is_refused(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_dns_is_silent_http_answers() {
    holds(weather::dns_is_silent(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_http_is_refused_dns_answers() {
    holds(http::http_is_away(LASTS, Weather::refused())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_token_loses_its_rights_nothing_is_deleted() {
    holds(rights::the_token_is_revoked(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_servers_lose_their_data_nothing_is_deleted() {
    holds(servers::the_servers_lose_their_data(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_taken_down_is_gone_at_once() {
    holds(services::a_service_is_taken_down(LASTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_stub_is_killed_without_consul_it_comes_back_with_what_it_knew() {
    holds(stub::the_stub_is_killed_without_consul(LASTS)).await;
}
