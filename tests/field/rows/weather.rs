//! DNS fails, or what lies between the stub and Consul does: weather at the doors.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;

/// 8: the DNS port is closed.
pub(crate) async fn dns_is_refused(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.dns.set(Weather::refused());
    field.fault_begins();
    sleep(lasts).await;
    field.shows(FALLBACKS, |count| count > 0.0).await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let law = Law {
        first: ms(20),
        ..Law::usual("8", "DNS is refused")
    };
    field.judge(law).await
}

/// 9: the DNS port is silent.
pub(crate) async fn dns_is_silent(lasts: Duration) -> Verdict {
    let mut field = Field::usual().await;
    field.dns.set(Weather::silent());
    field.fault_begins();
    sleep(lasts).await;
    field.shows(FALLBACKS, |count| count > 0.0).await;
    field.shows(DNS_UP, |up| up == 0.0).await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(300)),
        ..Law::usual("9", "DNS is silent")
    };
    field.judge(law).await
}

/// 11: DNS over TCP is closed, and UDP is not.
pub(crate) async fn dns_over_tcp_is_refused(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.servers[0].register_nodes("big", 100).await;
    field.calm().await;
    field.fault_begins();
    field.dns.set(Weather {
        tcp_refused: true,
        ..Weather::default()
    });
    let began = Instant::now();
    let big = ask(field.stub.dns, &asked("big"), RecordType::SRV, Over::Tcp).await;
    let took = began.elapsed();
    let found = big.map_or(0, |(reply, _)| reply.answers.len());
    let whole = found == 100 && took < ms(300);
    field.notes("of 100 instances", found as f64, whole);
    sleep(lasts).await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let law = Law {
        first: ms(300),
        new: Found(1.0, ms(300)),
        ..Law::usual("11", "DNS over TCP is refused")
    };
    field.judge(law).await
}

/// 13: everything takes longer.
pub(crate) async fn all_is_slow(lasts: Duration, delay: Duration) -> Verdict {
    let (fault, new) = match delay.as_millis() {
        100 => ("100 ms of delay, differing by a half", Found(1.0, ms(900))),
        400 => ("400 ms of delay, differing by a half", Either(ms(900))),
        _ => ("2 s of delay, differing by a half", Fails(ms(900))),
    };
    let law = Law {
        first: ms(160),
        next: ms(160),
        new,
        ..Law::usual("13", fault)
    };
    let slow = Weather {
        delay,
        jitter: 0.5,
        ..Weather::default()
    };
    weather(law, lasts, true, slow).await
}

/// 14: datagrams are lost, each way.
pub(crate) async fn datagrams_are_lost(lasts: Duration, loss: f64) -> Verdict {
    let (fault, new) = match (loss * 100.0) as u32 {
        5 => ("5 % of datagrams are lost", Found(0.999, ms(900))),
        30 => ("30 % of datagrams are lost", Found(0.99, ms(900))),
        _ => ("60 % of datagrams are lost", Found(0.9, ms(900))),
    };
    let law = Law {
        first: ms(160),
        next: ms(160),
        new,
        ..Law::usual("14", fault)
    };
    let lossy = Weather {
        loss,
        ..Weather::default()
    };
    weather(law, lasts, true, lossy).await
}

/// 29: questions arrive at the agent, and answers do not come back.
pub(crate) async fn answers_are_lost(lasts: Duration) -> Verdict {
    let law = Law {
        first: ms(200),
        new: Found(1.0, ms(400)),
        ..Law::usual("29", "answers of the agent are lost")
    };
    let one_way = Weather {
        replies_lost: true,
        ..Weather::default()
    };
    weather(law, lasts, false, one_way).await
}

/// A weather at the agent's doors, or at all of them.
async fn weather(law: Law, lasts: Duration, everywhere: bool, weather: Weather) -> Verdict {
    let mut field = Field::usual().await;
    field.fault_begins();
    let set = match everywhere {
        true => Field::weather_everywhere,
        false => Field::weather_of_agent,
    };
    set(&field, &weather);
    sleep(lasts).await;
    set(&field, &Weather::default());
    field.fault_ends();
    sleep(ms(3_000)).await;
    field.judge(law).await
}

/// 39: two faults at a time, others every two seconds, by a seed.
pub(crate) async fn anything_may_fail(lasts: Duration, seed: u64) -> Verdict {
    let mut field = Field::usual().await;
    let mut dice = SmallRng::seed_from_u64(seed);
    field.fault_begins();
    let began = Instant::now();
    let mut paused = false;
    while began.elapsed() < lasts {
        for _ in 0..2 {
            let weather = any(&mut dice);
            match dice.random_range(0..4_u8) {
                0 => field.dns.set(weather),
                1 => field.http.set(weather),
                2 => field.weather_of_http(&weather),
                _ if !paused => {
                    field.agent.pause();
                    paused = true;
                }
                _ => field.weather_everywhere(&weather),
            }
        }
        sleep(ms(2_000)).await;
        field.weather_everywhere(&Weather::default());
        if std::mem::take(&mut paused) {
            field.agent.resume();
        }
    }
    field.mended(ms(5_000)).await;
    field.notes("seed", seed as f64, true);
    let law = Law {
        first: ms(200),
        next: ms(200),
        new: Either(ms(900)),
        recovers: Some(ms(5_000)),
        ..Law::usual("39", "any two faults, others every 2 s")
    };
    field.judge(law).await
}

fn any(dice: &mut SmallRng) -> Weather {
    let fair = Weather::default();
    match dice.random_range(0..7_u8) {
        0 => Weather::refused(),
        1 => Weather::silent(),
        2 => Weather { loss: 0.4, ..fair },
        3 => Weather {
            delay: ms(300),
            jitter: 0.5,
            ..fair
        },
        4 => Weather {
            replies_lost: true,
            ..fair
        },
        5 => Weather {
            tcp_refused: true,
            ..fair
        },
        _ => Weather {
            bytes_a_second: Some(200),
            ..fair
        },
    }
}
