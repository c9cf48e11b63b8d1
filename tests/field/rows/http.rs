//! The HTTP API fails, at the agent and at the servers, and DNS answers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::net::TcpListener;

use super::*;

/// 10: HTTP is closed everywhere, or silent, and DNS answers.
pub(crate) async fn http_is_away(lasts: Duration, how: Weather) -> Verdict {
    let mut field = Field::usual().await;
    field.weather_of_http(&how);
    field.fault_begins();
    sleep(lasts).await;
    field
        .shows("proconsul_source_up{source=\"http\"}", |up| up == 0.0)
        .await;
    field.weather_of_http(&Weather::default());
    field.mended(ms(2_000)).await;
    let fault = match how.silent {
        false => "HTTP is refused",
        // Who is followed there is silent for so long before that is an outage.
        true => "HTTP is silent",
    };
    let fresh = Some(if how.silent { ms(2_000) } else { ms(1_000) });
    let law = Law {
        fresh,
        ..Law::usual("10", fault)
    };
    field.judge(law).await
}

/// 24: the HTTP API sends its clients elsewhere.
pub(crate) async fn http_redirects(lasts: Duration) -> Verdict {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    let visits = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&visits);
    let waits = tokio::spawn(async move {
        while elsewhere.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut field = Field::usual().await;
    let says = format!("302 Found\r\nLocation: http://{there}/v1/");
    says_only(&mut field, &says, HTTP_ERRORS, lasts).await;
    sleep(ms(3_000)).await;
    waits.abort();
    let visits = visits.load(Ordering::Relaxed);
    field.notes("visits elsewhere", f64::from(visits), visits == 0);
    let law = Law::usual("24", "HTTP redirects to another host");
    field.judge(law).await
}

/// 25: the HTTP API asks to be left alone.
pub(crate) async fn http_is_throttled(lasts: Duration, status: u16) -> Verdict {
    let mut field = Field::usual().await;
    let says = format!("{status} No\r\nRetry-After: 1");
    says_only(&mut field, &says, HTTP_THROTTLED, lasts * 6).await;
    sleep(ms(3_000)).await;
    let fault = match status {
        429 => "HTTP says 429",
        _ => "HTTP says 503",
    };
    field.judge(Law::usual("25", fault)).await
}

/// The fault: each request has this for its answer, whatever it asks.
async fn says_only(field: &mut Field, says: &str, shown_by: &str, lasts: Duration) {
    let says = format!("HTTP/1.1 {says}\r\nContent-Length: 0\r\n\r\n");
    let says_so = Weather {
        says: Some(says.into()),
        ..Weather::default()
    };
    field.fault_begins();
    change(field, &says_so).await;
    // Whoever waited there has to hear it first.
    sleep(ms(1_000)).await;
    let doors = || std::iter::once(&field.http).chain(&field.server_doors);
    let before: Vec<_> = doors().map(Proxy::passed).collect();
    let began = Instant::now();
    sleep(lasts).await;
    let asked = doors()
        .zip(before)
        .map(|(door, before)| door.passed() - before);
    let most = asked.max().unwrap_or_default() as f64 / began.elapsed().as_secs_f64();
    // Who is asked to leave them alone does so.
    let holds = shown_by != HTTP_THROTTLED || most <= 2.0;
    field.notes("requests a second to one address", most, holds);
    field.shows(shown_by, |count| count > 0.0).await;
    change(field, &Weather::default()).await;
    field.fault_ends();
}

/// Connections that are open do not change their mind: they are cut.
async fn change(field: &Field, weather: &Weather) {
    field.weather_of_http(&Weather::refused());
    sleep(ms(50)).await;
    field.weather_of_http(weather);
}
