//! Nothing fails but the services themselves: what is gone has to be gone at once.

use super::*;

/// 21: a service is taken down while all is well.
pub(crate) async fn a_service_is_taken_down(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    for number in 0..3 {
        let leaving = instance("leaving", number, 5_000 + number);
        field.servers[0].put("/v1/catalog/register", leaving).await;
    }
    let stub = field.stub.dns;
    let there = async || {
        let told = ask(stub, &asked("leaving"), RecordType::SRV, Over::Udp).await;
        told.map(|(reply, _)| (reply.metadata.response_code, reply.answers.len()))
    };
    wait_for("the service that leaves", async || {
        (there().await? == (ResponseCode::NoError, 3)).then_some(())
    })
    .await;
    field.calm().await;
    field.warm("leaving").await;
    field.fault_begins();
    for number in 0..3 {
        let node = json!({ "Node": format!("leaving-{number}") });
        field.servers[0].put("/v1/catalog/deregister", node).await;
    }
    let began = Instant::now();
    while there().await != Some((ResponseCode::NXDomain, 0)) && began.elapsed() < PATIENCE {
        sleep(ms(5)).await;
    }
    let took = began.elapsed();
    field.timed("gone", took, ms(1_000));
    if took > PATIENCE {
        field.trouble("it is given still");
    }
    sleep(lasts).await;
    field.shows(PROTECTION, |active| active == 0.0).await;
    field.fault_ends();
    let law = Law {
        recovers: None,
        ..Law::usual("21", "a service is taken down")
    };
    field.judge(law).await
}

/// 22: all instances of a service fail their checks, and are well again.
pub(crate) async fn all_instances_are_critical(lasts: Duration) -> Verdict {
    let mut field = Field::start(Plan::default()).await;
    register_sick(&field, "passing").await;
    field.calm().await;
    field.warm("sick").await;
    field.fault_begins();
    for (status, count, what) in [("critical", 0, "gone"), ("passing", 3, "back")] {
        register_sick(&field, status).await;
        let took = field.until_count("sick", count).await;
        field.timed(what, took, ms(1_000));
        if took > PATIENCE {
            field.trouble(format!("in vain: {what}"));
        }
        sleep(lasts / 2).await;
    }
    field.shows(PROTECTION, |active| active == 0.0).await;
    field.fault_ends();
    let law = Law::usual("22", "all instances of a service are critical");
    field.judge(law).await
}

/// Three instances, all of this status.
async fn register_sick(field: &Field, status: &str) {
    for number in 0..3 {
        let mut node = instance("sick", number, 6_000 + number);
        node["Check"] = json!({
            "Node": format!("sick-{number}"), "CheckID": format!("c{number}"), "Name": "own",
            "ServiceID": format!("sick-{number}"), "Status": status,
        });
        field.servers[0].put("/v1/catalog/register", node).await;
    }
}

impl Field {
    /// Asks often, and until the name is asked for anew: it is followed then.
    pub(crate) async fn warm(&self, service: &str) {
        let enough = ms(2_500) + Duration::from_secs(setting("TTL", 0));
        let began = Instant::now();
        while began.elapsed() < enough {
            self.count(service).await;
            sleep(ms(20)).await;
        }
    }

    pub(crate) async fn until_count(&self, service: &str, count: usize) -> Duration {
        let began = Instant::now();
        while self.count(service).await != count && began.elapsed() < PATIENCE {
            sleep(ms(5)).await;
        }
        began.elapsed()
    }
}
