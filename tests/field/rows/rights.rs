//! The stub loses its rights, or the agent its certificate.

use reqwest::Method;

use super::*;

/// A field whose stub has its token from a file of this name.
async fn with_token(name: &str) -> (Field, PathBuf) {
    let file = temporary(name);
    let plan = Plan {
        token_file: Some(file.clone()),
        ..Plan::default()
    };
    (Field::start(plan).await, file)
}

/// 17: the rights of the token are taken away, and given back.
pub(crate) async fn the_token_is_revoked(lasts: Duration) -> Verdict {
    let (mut field, file) = with_token("revoked").await;
    // Sets go on changing: a query that waits is told of lost rights when it wakes.
    field.calm().await;
    field.fault_begins();
    field.delete_token(TOKEN).await;
    // Agents remember rights for a second.
    sleep(ms(3_000) + lasts).await;
    field.cannot_tell(&asked("nobody"), PROHIBITED).await;
    for metric in [HTTP_DENIED, STALE_SERVED] {
        field.shows(metric, |count| count > 0.0).await;
    }
    make_token(&field.servers[0], TOKEN).await;
    field.fault_ends();
    sleep(ms(6_000)).await;
    _ = fs::remove_file(file);
    let law = Law {
        first: ms(160),
        new: Fails(ms(900)),
        fresh: None,
        recovers: Some(ms(5_000)),
        ..Law::usual("17", "the token's rights are taken away")
    };
    field.judge(law).await
}

/// 18: the token is another one, in the file.
pub(crate) async fn the_token_is_rotated(lasts: Duration) -> Verdict {
    const NEXT: &str = "00000000-0000-4000-8000-0000000000cc";
    let (mut field, file) = with_token("rotated").await;
    field.calm().await;
    field.fault_begins();
    make_token(&field.servers[0], NEXT).await;
    sleep(ms(500)).await;
    let next = temporary("rotated-next");
    fs::write(&next, NEXT).unwrap();
    fs::rename(&next, &file).unwrap();
    // The old one is taken away when nobody needs it any more.
    sleep(ms(2_000)).await;
    field.delete_token(TOKEN).await;
    sleep(lasts).await;
    field.fault_ends();
    _ = fs::remove_file(file);
    let denied = field.metric(HTTP_DENIED).await;
    field.notes("denied", denied, true);
    let law = Law::usual("18", "the token is rotated in its file");
    field.judge(law).await
}

/// 23: the agent's certificate is no longer good, and is renewed by another authority.
pub(crate) async fn the_certificate_is_not_good(lasts: Duration) -> Verdict {
    let (cert, key, ca) = (temporary("cert"), temporary("key"), temporary("ca"));
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(&cert, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        made.cert.pem()
    };
    fs::write(&ca, write("localhost")).unwrap();
    let tls = Plan {
        agent: json!({ "cert_file": cert, "key_file": key }),
        ca_file: Some(ca.clone()),
        ..Plan::default()
    };
    let mut field = Field::start(tls).await;
    field.calm().await;
    field.fault_begins();
    // The same agent, with a certificate that nobody vouches for.
    let next = write("localhost");
    field.restart_agent().await;
    sleep(lasts).await;
    field.shows(HTTP_ERRORS, |count| count > 0.0).await;
    fs::write(&ca, next).unwrap();
    field.fault_ends();
    let began = Instant::now();
    while field.metric(HTTP_UP).await == 0.0 && began.elapsed() < Duration::from_secs(40) {
        sleep(ms(200)).await;
    }
    let took = began.elapsed().as_secs_f64();
    field.notes("a new authority is believed after s", took, took < 31.0);
    for file in [cert, key, ca] {
        _ = fs::remove_file(file);
    }
    let law = Law {
        // The agent itself restarts, and nobody else is asked here.
        first: ms(160),
        next: ms(160),
        new: Either(ms(900)),
        fresh: Some(ms(4_000)),
        recovers: None,
        ..Law::usual("23", "the agent's certificate is not good")
    };
    field.judge(law).await
}

impl Field {
    pub(super) async fn delete_token(&self, secret: &str) {
        let tokens = any_of(&self.servers, Method::GET, "/v1/acl/tokens").await;
        for token in tokens.as_array().unwrap() {
            let id = token["AccessorID"].as_str().unwrap();
            let path = format!("/v1/acl/token/{id}");
            if any_of(&self.servers, Method::GET, &path).await["SecretID"] == secret {
                any_of(&self.servers, Method::DELETE, &path).await;
            }
        }
    }
}
