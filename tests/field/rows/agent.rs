//! The client agent beside the stub dies, hangs, comes and goes, or forgets.

use super::*;

/// 1: the client agent dies, and comes back.
pub(crate) async fn the_agent_is_killed(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.kill_agent();
    field.fault_begins();
    sleep(lasts).await;
    field.shows(DNS_UP, |up| up == 0.0).await;
    field.one_of_ours_leaves_unheard().await;
    field.restart_agent().await;
    field.mended(ms(3_000)).await;
    field.shows(DNS_UP, |up| up == 1.0).await;
    let law = Law {
        first: ms(20),
        ..Law::usual("1", "the agent is killed")
    };
    field.judge(law).await
}

/// 2 and 3: the client agent hangs, and goes on.
pub(crate) async fn the_agent_hangs(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.agent.pause();
    field.fault_begins();
    sleep(lasts).await;
    field.shows(DNS_UP, |up| up == 0.0).await;
    field.shows(DNS_ERRORS, |count| count > 0.0).await;
    field.agent.resume();
    field.mended(ms(3_000)).await;
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(400)),
        // Who is followed there is silent for so long before that is an outage.
        fresh: Some(ms(2_000)),
        ..Law::usual("2, 3", "the agent hangs")
    };
    field.judge(law).await
}

/// 15: the agent comes and goes.
pub(crate) async fn the_agent_flaps(lasts: Duration, each: Duration) -> Verdict {
    let mut field = Field::usual().await;
    let before = field.metric("proconsul_circuit_transitions_total").await;
    field.fault_begins();
    let began = Instant::now();
    while began.elapsed() < lasts * 12 {
        field.weather_of_agent(&Weather::refused());
        sleep(each).await;
        field.weather_of_agent(&Weather::default());
        sleep(each).await;
    }
    field.fault_ends();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let after = field.metric("proconsul_circuit_transitions_total").await;
    // Of the agent's two doors.
    let often = (after - before) / minutes / 2.0;
    field.notes("openings and closings a minute", often, often <= 20.0);
    sleep(ms(2_000)).await;
    let fault = match each.as_millis() {
        50 => "the agent comes and goes each 50 ms",
        _ => "the agent comes and goes each second",
    };
    let law = Law {
        first: ms(160),
        next: ms(160),
        new: Found(1.0, ms(900)),
        ..Law::usual("15", fault)
    };
    field.judge(law).await
}

/// 16: the agent comes back with an empty disk.
pub(crate) async fn the_agent_forgets_all(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.fault_begins();
    field.kill_agent();
    field.agent.forget();
    sleep(lasts).await;
    field.restart_agent().await;
    field.fault_ends();
    // Until the agent removes what it does not know, the servers have what they had.
    let began = Instant::now();
    while field.told_again() < 1.0 && began.elapsed() < PATIENCE {
        sleep(ms(20)).await;
    }
    field.timed("told again", began.elapsed(), ms(2_000));
    let again = field.told_again();
    field.notes("times told again", again, again >= 1.0);
    field.ours_is_there(ms(2_000)).await;
    sleep(ms(3_000)).await;
    field.ours_is_there(ms(2_000)).await;
    let law = Law {
        first: ms(20),
        ..Law::usual("16", "the agent comes back with an empty disk")
    };
    field.judge(law).await
}
