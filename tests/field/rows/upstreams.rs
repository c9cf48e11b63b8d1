//! Other names: who answers for them dies, hangs or refuses.

use std::{
    net::SocketAddr,
    process::{Child, Command},
};

use super::*;

const ANSWERS: &str = "--address=/example.test/192.0.2.1";

/// 30, 31, 32: upstreams of other names die, hang or lie.
pub(crate) async fn upstreams_fail(lasts: Duration) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (row, fault) in [
        ("30", "the first upstream is killed"),
        ("30", "the first upstream hangs"),
        ("31", "both upstreams are killed"),
        ("32", "the first upstream refuses all"),
    ] {
        let mut first = Upstream::start(31, ANSWERS);
        let mut second = Upstream::start(32, ANSWERS);
        let plan = Plan {
            upstreams: vec![first.1, second.1],
            ..Plan::default()
        };
        let mut field = Field::start(plan).await;
        let stub = field.stub.dns;
        let asks = async |name: String| {
            let began = Instant::now();
            let told = ask(stub, &name, RecordType::A, Over::Udp).await;
            let found = told.is_some_and(|(reply, _)| reply.answers.len() == 1);
            (found, began.elapsed())
        };
        wait_for("an upstream", async || {
            asks("known.example.test.".into()).await.0.then_some(())
        })
        .await;
        field.calm().await;
        field.fault_begins();
        match fault {
            "the first upstream is killed" => drop(first.0.kill()),
            "the first upstream hangs" => first.signal("STOP"),
            "both upstreams are killed" => {
                _ = first.0.kill();
                _ = second.0.kill();
            }
            _ => {
                drop(first);
                // Without anything to say or to ask, dnsmasq refuses.
                first = Upstream::start(31, "--log-queries=extra");
            }
        }
        let (mut known, mut new) = ((0, Duration::ZERO), (0, Duration::ZERO));
        for number in 0..20 {
            // Past its TTL of a second, in most rounds.
            let (found, took) = asks("known.example.test.".into()).await;
            known = (known.0 + u32::from(found), known.1.max(took));
            let (found, took) = asks(format!("n{number}.example.test.")).await;
            new = (new.0 + u32::from(found), new.1.max(took));
            sleep(lasts / 20).await;
        }
        field.fault_ends();
        let wanted = if row == "31" { 0 } else { 20 };
        for (what, (found, took), wanted, most) in [
            ("known upstream names of 20", known, 20, 750.0),
            ("new upstream names of 20", new, wanted, 900.0),
        ] {
            field.notes(what, f64::from(found), found == wanted);
            let worst = took.as_secs_f64() * 1_000.0;
            field.notes("worst ms", worst, worst < most);
        }
        verdicts.push(field.judge(Law::usual(row, fault)).await);
    }
    verdicts
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

    fn signal(&self, name: &str) {
        crate::support::signal(self.0.id(), name);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
