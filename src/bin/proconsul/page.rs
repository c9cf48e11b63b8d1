//! The page for people: one document without anything from elsewhere, which asks for
//! itself again every two seconds.

use std::{fmt::Write as _, time::Duration};

use proconsul::{Alert, Cached, Freshness, Reason, Severity, SourceStatus, Status};

/// Nothing is loaded from anywhere but here, and no other page may frame it.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";

/// What is true of the process as a whole.
pub(crate) struct Head {
    pub(crate) domain: String,
    pub(crate) listen: Vec<String>,
    pub(crate) uptime: Duration,
    pub(crate) queries: u64,
    pub(crate) remembered: u64,
    pub(crate) ready: bool,
    pub(crate) alerts: Vec<Alert>,
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --worn: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #f85149; --worn: #d29922 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.5rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
p { margin: .2rem 0 } .quiet { opacity: .7 }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top }
th { font-weight: 600 } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.good { color: var(--good) } .bad { color: var(--bad) } .worn { color: var(--worn) }
#lost { background: var(--bad); border-radius: .3rem; color: #fff; display: none; padding: .4rem .8rem }
code { font-family: ui-monospace, monospace }
";

/// Asks for the page again, and puts what came in place of what there was.
const SCRIPT: &str = "
const lost = document.getElementById('lost');
async function again() {
  try {
    const reply = await fetch('/', { cache: 'no-store' });
    const text = await reply.text();
    const fresh = new DOMParser().parseFromString(text, 'text/html');
    document.querySelector('main').replaceWith(fresh.querySelector('main'));
    document.title = fresh.title;
    lost.style.display = 'none';
  } catch (error) {
    lost.style.display = 'block';
  }
  setTimeout(again, 2000);
}
setTimeout(again, 2000);
";

/// The whole document.
pub(crate) fn html(head: &Head, status: &Status, cached: &[Cached]) -> String {
    let (word, class) = state(head, status);
    let mut main = String::new();
    let _ = write!(
        main,
        "<h1>proconsul <span id=\"state\" class=\"{class}\">{word}</span></h1>\
         <p class=\"quiet\">{version}, up {uptime}; answers for <code>{domain}.</code> on {listen}</p>",
        version = escaped(env!("CARGO_PKG_VERSION")),
        uptime = lasted(head.uptime),
        domain = escaped(&head.domain),
        listen = escaped(&head.listen.join(", ")),
    );
    alerts(&mut main, &head.alerts);
    sources(&mut main, &status.sources);
    let _ = write!(
        main,
        "<h2>Answers</h2><table><tr><th class=\"number\">questions</th>\
         <th class=\"number\">from memory</th><th class=\"number\">stale look-ups</th>\
         <th class=\"number\">names followed</th><th class=\"number\">protected</th></tr>\
         <tr><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
         <td class=\"number\">{}</td><td class=\"number\">{}</td></tr></table>",
        head.queries, head.remembered, status.stale, status.watches, status.protected
    );
    names(&mut main, status, cached);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>proconsul: {word}</title><style>{STYLE}</style></head><body>\
         <p id=\"lost\" role=\"alert\">proconsul does not answer: what is below is old</p>\
         <main>{main}</main><script>{SCRIPT}</script></body></html>"
    )
}

/// All in one word.
fn state(head: &Head, status: &Status) -> (&'static str, &'static str) {
    if !head.ready {
        ("cannot answer", "bad")
    } else if status.sources.iter().all(|source| !source.up) {
        ("answers from memory", "bad")
    } else if status.sources.iter().any(|source| !source.up) || status.protected > 0 {
        ("answers, a source is down", "worn")
    } else {
        ("well", "good")
    }
}

fn alerts(main: &mut String, alerts: &[Alert]) {
    if alerts.is_empty() {
        return;
    }
    main.push_str(
        "<h2>Alerts</h2><table id=\"alerts\"><tr><th>severity</th><th>rule</th><th>what</th></tr>",
    );
    for alert in alerts {
        let class = match alert.severity {
            Severity::Critical => "bad",
            _ => "worn",
        };
        let what = match &*alert.about {
            "" => alert.text.to_string(),
            about => format!("{about}: {}", alert.text),
        };
        let _ = write!(
            main,
            "<tr><td class=\"{class}\">{}</td><td>{}</td><td>{}</td></tr>",
            alert.severity,
            escaped(alert.rule),
            escaped(&what),
        );
    }
    main.push_str("</table>");
}

fn sources(main: &mut String, sources: &[SourceStatus]) {
    main.push_str(
        "<h2>Sources</h2><table id=\"sources\"><tr><th>source</th><th>address</th><th>state</th></tr>",
    );
    for source in sources {
        for (address, down) in &source.addresses {
            let (class, state) = match down {
                None => ("good", "asked".to_owned()),
                Some(down) => ("bad", format!("failed {} ago, probed", lasted(*down))),
            };
            let _ = write!(
                main,
                "<tr><td>{}</td><td><code>{}</code></td><td class=\"{class}\">{state}</td></tr>",
                source.source,
                escaped(address),
            );
        }
    }
    main.push_str("</table>");
}

fn names(main: &mut String, status: &Status, cached: &[Cached]) {
    let _ = write!(
        main,
        "<h2>Names</h2><p class=\"quiet\">{} in {} KiB, used last first</p>\
         <table id=\"names\"><tr><th>name</th><th class=\"number\">instances</th><th>state</th>\
         <th>source</th><th class=\"number\">age</th></tr>",
        status.names,
        status.bytes / 1024
    );
    for one in cached {
        let (class, state) = match (one.protected, one.freshness, one.complete) {
            (Some(reason), ..) => ("worn", format!("protected: {}", Reason::as_str(reason))),
            (None, Freshness::Fresh, true) => ("good", "fresh".to_owned()),
            (None, Freshness::Fresh, false) => ("worn", "not complete".to_owned()),
            (None, ..) => ("", "old: asked for again when it is needed".to_owned()),
        };
        let _ = write!(
            main,
            "<tr><td><code>{}</code></td><td class=\"number\">{}</td><td class=\"{class}\">{}</td>\
             <td>{}</td><td class=\"number\">{}</td></tr>",
            escaped(&one.name),
            one.endpoints,
            escaped(&state),
            one.source,
            lasted(one.age),
        );
    }
    main.push_str("</table>");
}

/// `3 s`, `5 min`, `2 h`.
fn lasted(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Names come from whoever asks.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_part_of_the_page() {
        let evil = "<script>alert('x')</script>&\"\u{1b}";
        let safe = escaped(evil);
        assert!(!safe.contains(['<', '>', '"', '\'', '\u{1b}']), "{safe}");
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        let told = |seconds| lasted(Duration::from_secs(seconds));
        assert_eq!(told(0), "0 s");
        assert_eq!(told(119), "119 s");
        assert_eq!(told(120), "2 min");
        assert_eq!(told(7_200), "2 h");
        assert_eq!(told(200_000), "2 days");
    }
}
