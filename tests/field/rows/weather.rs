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

/// 11: DNS over TCP is closed, or silent, and UDP is not.
pub(crate) async fn dns_over_tcp_is_away(lasts: Duration, silent: bool) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    field.servers[0].register_nodes("big", 100).await;
    field.calm().await;
    field.fault_begins();
    field.dns.set(Weather {
        tcp_refused: !silent,
        tcp_silent: silent,
        ..Weather::default()
    });
    let began = Instant::now();
    let big = ask(field.stub.dns, &asked("big"), RecordType::SRV, Over::Tcp).await;
    let took = began.elapsed();
    let found = big.map_or(0, |(reply, _)| reply.answers.len());
    field.notes("of 100 instances", found as f64, found == 100);
    field.timed("which took", took, ms(300));
    sleep(lasts).await;
    field.dns.set(Weather::default());
    field.fault_ends();
    sleep(ms(2_000)).await;
    let fault = match silent {
        false => "DNS over TCP is refused",
        true => "DNS over TCP is silent",
    };
    let law = Law {
        first: ms(300),
        new: Found(1.0, ms(300)),
        ..Law::usual("11", fault)
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
        fresh: None,
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
        fresh: None,
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
        fresh: Some(ms(2_000)),
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
    let file = temporary("anything");
    let plan = Plan {
        token_file: Some(file.clone()),
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    field.calm().await;
    let mut dice = SmallRng::seed_from_u64(seed);
    field.fault_begins();
    let began = Instant::now();
    while began.elapsed() < lasts {
        let mut two = [any(&mut dice), any(&mut dice)];
        // Rights are taken away as long as there is somebody to do it.
        two.sort_by_key(|fault| !matches!(fault, Fault::NoRights));
        for fault in &two {
            field.suffers(fault).await;
        }
        sleep(ms(2_000)).await;
        field.recovers_from(&two).await;
    }
    field.mended(ms(5_000)).await;
    _ = fs::remove_file(file);
    field.notes("seed", seed as f64, true);
    let law = Law {
        first: ms(200),
        next: ms(200),
        new: Either(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        said: 2 * SAID * usize::try_from(lasts.as_secs().div_ceil(60)).unwrap_or(1),
        ..Law::usual("39", "any two faults, others every 2 s")
    };
    field.judge(law).await
}

/// One of the faults of the other rows. Servers do not lose their data here: what is held for
/// that is held for minutes.
#[derive(Debug)]
enum Fault {
    OfDns(Weather),
    OfAgentsHttp(Weather),
    OfHttp(Weather),
    OfAll(Weather),
    AgentHangs,
    AgentDies,
    AgentForgets,
    ServerHangs(usize),
    ServerDies(usize),
    NoRights,
    StubStandsStill,
}

fn any(dice: &mut SmallRng) -> Fault {
    match dice.random_range(0..12_u8) {
        0 | 1 => Fault::OfDns(any_weather(dice)),
        2 => Fault::OfAgentsHttp(any_weather(dice)),
        3 => Fault::OfHttp(any_weather(dice)),
        4 => Fault::OfAll(any_weather(dice)),
        5 => Fault::AgentHangs,
        6 => Fault::AgentDies,
        7 => Fault::AgentForgets,
        8 => Fault::ServerHangs(dice.random_range(0..3)),
        9 => Fault::ServerDies(dice.random_range(0..3)),
        10 => Fault::NoRights,
        _ => Fault::StubStandsStill,
    }
}

fn any_weather(dice: &mut SmallRng) -> Weather {
    let fair = Weather::default();
    match dice.random_range(0..9_u8) {
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
        6 => Weather { twice: 0.5, ..fair },
        // In the midst of the first record, or of the header.
        7 => Weather {
            cut: Some(dice.random_range(5..60)),
            ..fair
        },
        _ => Weather {
            bytes_a_second: Some(200),
            ..fair
        },
    }
}

impl Field {
    async fn suffers(&mut self, fault: &Fault) {
        match fault {
            Fault::OfDns(weather) => self.dns.set(weather.clone()),
            Fault::OfAgentsHttp(weather) => self.weather_of_agents_http(weather),
            Fault::OfHttp(weather) => self.weather_of_http(weather),
            Fault::OfAll(weather) => self.weather_everywhere(weather),
            // Twice the same is once.
            Fault::AgentHangs if self.agent.is_running() => self.agent.pause(),
            Fault::AgentHangs => {}
            Fault::AgentDies => self.kill_agent(),
            Fault::AgentForgets => {
                self.kill_agent();
                self.agent.forget();
            }
            Fault::ServerHangs(at) if self.servers[*at].is_running() => {
                self.servers[*at].pause();
                self.falls_behind();
            }
            Fault::ServerHangs(_) => {}
            Fault::ServerDies(at) => {
                self.kill_server(*at);
                self.falls_behind();
            }
            Fault::NoRights => self.delete_token(TOKEN).await,
            Fault::StubStandsStill => {
                self.stub.signal("-STOP");
                sleep(ms(50)).await;
                self.stub.signal("-CONT");
            }
        }
    }

    async fn recovers_from(&mut self, faults: &[Fault]) {
        for at in 0..self.servers.len() {
            match self.servers[at].is_running() {
                true => self.servers[at].resume(),
                false => self.launch_server(at),
            }
        }
        self.weather_everywhere(&Weather::default());
        leader(&self.servers).await;
        self.catches_up(ms(3_000));
        match self.agent.is_running() {
            true => self.agent.resume(),
            false => self.restart_agent().await,
        }
        if faults.iter().any(|fault| matches!(fault, Fault::NoRights)) {
            make_token(&self.servers[0], TOKEN).await;
        }
    }
}
