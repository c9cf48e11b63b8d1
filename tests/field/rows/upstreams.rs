//! Other names: who answers for them dies, hangs, is slow or lies.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command},
};

use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;
use crate::field::load::{Reply, ask_once};

const ANSWERS: &str = "--address=/example.net/192.0.2.1";
const KNOWN: &str = "known.example.net.";

/// Rounds of one row.
const ROUNDS: u32 = 20;

/// To a server on this machine and back, and the proxy's way in between.
const ROUND_TRIP: Duration = ms(10);

/// What becomes of an upstream.
#[derive(Clone, Copy)]
enum Fails {
    Weather(fn() -> Weather),
    Says(ResponseCode),
}

/// 30, 31, 32: upstreams of other names die, hang, are slow or lie.
pub(crate) async fn upstreams_fail(lasts: Duration) -> Vec<Verdict> {
    let slow = || Weather {
        delay: ms(2_000),
        ..Weather::default()
    };
    let one = [
        (
            "30",
            "the first upstream is killed",
            Fails::Weather(Weather::refused),
        ),
        (
            "30",
            "the first upstream is silent",
            Fails::Weather(Weather::silent),
        ),
        ("30", "the first upstream takes 2 s", Fails::Weather(slow)),
        (
            "32",
            "the first upstream says REFUSED",
            Fails::Says(ResponseCode::Refused),
        ),
        (
            "32",
            "the first upstream says SERVFAIL",
            Fails::Says(ResponseCode::ServFail),
        ),
    ];
    let mut verdicts = Vec::new();
    for (row, fault, how) in one {
        verdicts.push(one_fails(row, fault, how, lasts).await);
    }
    verdicts.push(all_fail("both upstreams are killed", Weather::refused(), lasts).await);
    verdicts.push(all_fail("both upstreams are silent", Weather::silent(), lasts).await);
    verdicts.push(one_denies(lasts).await);
    verdicts
}

/// 30, 32: one fails, and the other one's answer is given, also for what is known.
async fn one_fails(row: &'static str, fault: &'static str, how: Fails, lasts: Duration) -> Verdict {
    let (mut field, upstreams) = with_upstreams().await;
    field.fault_begins();
    let liar = upstreams.fails(how).await;
    let (mut first, mut next) = (Duration::ZERO, Vec::new());
    for number in 0..ROUNDS {
        for name in [KNOWN, &format!("n{number}.example.net.")] {
            let (reply, took) = asks(&field, name).await;
            match reply {
                Some(reply) if reply.answers == 1 && !reply.is_stale() => {}
                other => field.trouble(format!("{name} is {other:?}, and one upstream is well")),
            }
            match number {
                0 => first = first.max(took),
                _ => next.push(took),
            }
        }
        sleep(lasts / ROUNDS).await;
    }
    field.fault_ends();
    drop(liar);
    field.timed("first upstream name", first, ms(400));
    field.next_upstream_names(next, ROUND_TRIP + ms(5));
    field.judge(Law::usual(row, fault)).await
}

/// 31: nobody answers: what is known is given as stale, and what is not is an error.
async fn all_fail(fault: &'static str, weather: Weather, lasts: Duration) -> Verdict {
    let (mut field, upstreams) = with_upstreams().await;
    // Past its TTL.
    sleep(ms(1_500)).await;
    field.fault_begins();
    for door in &upstreams.doors {
        door.set(weather.clone());
    }
    let (mut next, mut worst) = (Vec::new(), Duration::ZERO);
    for number in 0..ROUNDS {
        let (reply, took) = asks(&field, KNOWN).await;
        match reply {
            Some(reply) if reply.answers == 1 && reply.is_stale() => {}
            other => field.trouble(format!("{KNOWN} is {other:?}, and was known")),
        }
        match number {
            0 => field.timed("first upstream name", took, ms(750)),
            _ => next.push(took),
        }
        let name = format!("n{number}.example.net.");
        let (reply, took) = asks(&field, &name).await;
        let told = reply.map(|reply| (reply.code, reply.reasons));
        let why = [NO_REACHABLE_AUTHORITY, NETWORK_ERROR];
        match &told {
            Some((ResponseCode::ServFail, reasons)) if matches!(reasons[..], [reason] if why.contains(&reason)) =>
                {}
            _ => field.trouble(format!("{name} is {told:?}, and no upstream answers")),
        }
        worst = worst.max(took);
        sleep(lasts / ROUNDS).await;
    }
    field.fault_ends();
    field.next_upstream_names(next, ms(5));
    field.timed("new upstream names", worst, ms(900));
    field.judge(Law::usual("31", fault)).await
}

/// 32: that there is no such name is an answer, whoever else may know it.
async fn one_denies(lasts: Duration) -> Verdict {
    let (mut field, upstreams) = with_upstreams().await;
    field.fault_begins();
    let liar = upstreams.fails(Fails::Says(ResponseCode::NXDomain)).await;
    let mut worst = Duration::ZERO;
    for number in 0..ROUNDS {
        let name = format!("n{number}.example.net.");
        let (reply, took) = asks(&field, &name).await;
        let code = reply.map(|reply| reply.code);
        if code != Some(ResponseCode::NXDomain) {
            field.trouble(format!("{name} is {code:?}, and its upstream denies it"));
        }
        worst = worst.max(took);
        sleep(lasts / ROUNDS).await;
    }
    field.fault_ends();
    drop(liar);
    field.timed("new upstream names", worst, ROUND_TRIP + ms(5));
    let fault = "the first upstream says NXDOMAIN";
    field.judge(Law::usual("32", fault)).await
}

/// Two of them, each behind a door.
struct Upstreams {
    doors: [Proxy; 2],
    _servers: [Upstream; 2],
}

async fn with_upstreams() -> (Field, Upstreams) {
    let servers = [31, 32].map(|last| Upstream::start(last, ANSWERS));
    let at = Ipv4Addr::new(127, 0, 0, 43);
    let doors = [
        Proxy::start(at, servers[0].1).await,
        Proxy::start(at, servers[1].1).await,
    ];
    let plan = Plan {
        upstreams: doors.iter().map(Proxy::address).collect(),
        ..Plan::default()
    };
    let mut field = Field::start(plan).await;
    wait_for("an upstream", async || {
        (asks(&field, KNOWN).await.0?.answers == 1).then_some(())
    })
    .await;
    field.calm().await;
    let upstreams = Upstreams {
        doors,
        _servers: servers,
    };
    (field, upstreams)
}

impl Upstreams {
    /// The first of them, until what is given back is dropped or its weather is another.
    async fn fails(&self, how: Fails) -> Option<Liar> {
        let door = &self.doors[0];
        match how {
            Fails::Weather(weather) => door.set(weather()),
            Fails::Says(code) => {
                door.set(Weather::refused());
                return Some(Liar::start(door.address(), code).await);
            }
        }
        None
    }
}

async fn asks(field: &Field, name: &str) -> (Option<Reply>, Duration) {
    let began = Instant::now();
    let told = ask_once(field.stub.dns, name, RecordType::A).await;
    (told, began.elapsed())
}

impl Field {
    /// All but those that try again who failed, which are few and wait their share for it.
    fn next_upstream_names(&mut self, mut times: Vec<Duration>, most: Duration) {
        times.sort_unstable();
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        let (usual, worst) = (at(0.8), times[times.len() - 1]);
        self.timed("next upstream names, 8 of 10", usual, most);
        self.timed("worst", worst, ms(400));
    }
}

/// Says the same to whatever is asked.
struct Liar(JoinHandle<()>);

impl Liar {
    async fn start(at: SocketAddr, code: ResponseCode) -> Self {
        // The door closes at its own pace.
        let socket = wait_for("the door to close", async || UdpSocket::bind(at).await.ok()).await;
        Self(tokio::spawn(async move {
            let mut packet = vec![0; 4_096];
            while let Ok((length, client)) = socket.recv_from(&mut packet).await {
                let flags = [packet[2] | 0x80, 0x80 | code.low()];
                packet[2..4].copy_from_slice(&flags);
                // Whoever asked may be gone.
                _ = socket.send_to(&packet[..length], client).await;
            }
        }))
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A name server of Debian's for other names, which ends with this.
struct Upstream(Child, SocketAddr);

impl Upstream {
    fn start(last: u8, answers: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, last], 5_300));
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
            ])
            .args([
                "--no-hosts",
                "--bind-interfaces",
                "--pid-file",
                "--local-ttl=1",
                "--user=root",
            ])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--listen-address={}", address.ip()))
            .arg(answers);
        let child = command
            .spawn()
            .expect("dnsmasq: scripts/withstand installs it");
        Self(child, address)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
