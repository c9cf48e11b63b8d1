//! Data on stdout, everything else on stderr; exit status by kind of error.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    collections::HashSet,
    io::{self, IsTerminal as _, Write as _},
    panic,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use proconsul::{Answer, Attempt, Endpoint, Error, ErrorKind, Freshness, Reason, Resolver};
use serde_json::{Value, json};
use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use crate::{
    args::{Color, Form, Output},
    stderr,
};

/// Nothing answered to the name, or nothing healthy.
const NOT_FOUND: u8 = 3;

/// Events of the library go to stderr: `-v` tells each look-up, `-vv` all, `-q` nothing; without
/// these flags `RUST_LOG` says which, and else those of `told` are.
pub(crate) fn start_log(output: &Output, told: &str) {
    let by_flag = match (output.quiet, output.verbose) {
        (true, _) => Some("off"),
        (_, 0) => None,
        (_, 1) => Some("proconsul=debug,warn"),
        (_, _) => Some("proconsul=trace,debug"),
    };
    let variable = std::env::var("RUST_LOG").unwrap_or_default();
    let by_variable = || {
        EnvFilter::try_new(&variable)
            .ok()
            .filter(|_| !variable.is_empty())
    };
    let filter = match by_flag {
        Some(level) => level.into(),
        None => by_variable().unwrap_or_else(|| told.into()),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| stderr::Events)
        // Colour is a feature that is not built in, and asking for it panics.
        .with_ansi(false)
        // They would go past that.
        .log_internal_errors(false)
        .finish()
        .with(Seldom::default())
        .init();
    tell_panics();
}

/// A panic is told as an event: with where it was, once a second at most, and without waiting for
/// who reads stderr.
fn tell_panics() {
    panic::set_hook(Box::new(|panic| {
        let told = panic.to_string().replace('\n', " ");
        let calls = match Backtrace::capture() {
            calls if calls.status() == BacktraceStatus::Captured => format!("\n{calls}"),
            _ => String::new(),
        };
        tracing::error!("{told}; this is a defect of proconsul: please report it{calls}");
    }));
}

/// How long a warning of one kind keeps others of its kind away.
const SELDOM: Duration = Duration::from_secs(1);

/// Lets one warning a second through of each kind, which is a place in the program: what
/// somebody else can cause without end must not fill a disk. Finer events were asked for.
#[derive(Default)]
struct Seldom(Arc<Mutex<HashSet<Identifier>>>);

impl<S: Subscriber> Layer<S> for Seldom {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let (kind, told) = (event.metadata().callsite(), Arc::clone(&self.0));
        if !lock(&told).insert(kind.clone()) {
            return false;
        }
        // A thread, since warnings come from outside the runtime too: one a second at most.
        let later = move || {
            thread::sleep(SELDOM);
            lock(&told).remove(&kind);
        };
        let forgotten = thread::Builder::new().name("proconsul-log".into());
        if forgotten.spawn(later).is_err() {
            lock(&self.0).clear();
        }
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn colored(output: &Output, terminal: bool) -> bool {
    let wished = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match output.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && wished,
    }
}

const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// A heading, bold where colour is wanted.
fn heading(output: &Output, text: &str) -> String {
    if colored(output, io::stdout().is_terminal()) {
        format!("{BOLD}{text}{PLAIN}")
    } else {
        text.to_owned()
    }
}

/// Writes data. A reader that has seen enough is no error.
pub(crate) fn data(text: &str) -> ExitCode {
    write(text).err().unwrap_or(ExitCode::SUCCESS)
}

/// Writes data where more may follow; an error is the end, and what it means.
pub(crate) fn write(text: &str) -> Result<(), ExitCode> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(harmless(text).as_bytes())
        .and_then(|()| out.flush());
    written.map_err(|error| unwritten(&error))
}

/// Writes in a thread of its own: whoever reads may have stopped, and signals are to be heard
/// all the same. Where it is dropped, the rest may be written or not.
pub(crate) async fn aside(
    write: impl FnOnce() -> Result<(), ExitCode> + Send + 'static,
) -> Result<(), ExitCode> {
    let done = tokio::task::spawn_blocking(write).await;
    done.unwrap_or_else(|error| Err(trouble(&format!("stdout cannot be written: {error}"))))
}

/// A reader that has seen enough is no error.
fn unwritten(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        _ => trouble(&format!("stdout cannot be written: {error}")),
    }
}

/// Writes bytes as they are and a line end; on a terminal without what it would obey.
pub(crate) fn bytes(bytes: &[u8], terminal: bool) -> Result<(), ExitCode> {
    if terminal {
        return write(&format!("{}\n", String::from_utf8_lossy(bytes)));
    }
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.write_all(b"\n"));
    written
        .and_then(|()| out.flush())
        .map_err(|error| unwritten(&error))
}

/// Writes one JSON object.
pub(crate) fn object(value: &Value) -> ExitCode {
    data(&format!("{value:#}\n"))
}

/// Tells a person something that is not data, unless they want quiet.
pub(crate) fn remark(output: &Output, text: &str) {
    if !output.quiet {
        say(text);
    }
}

/// The machine would not do what it was asked for: told as an error of the library is.
pub(crate) fn refused(text: &str, output: &Output) -> ExitCode {
    wrong(ErrorKind::Io, text, &[], output)
}

/// Anything else that went wrong, of which stdout can hear no more.
pub(crate) fn trouble(text: &str) -> ExitCode {
    say(&format!("proconsul: {text}"));
    ExitCode::FAILURE
}

fn say(text: &str) {
    stderr::write(format!("{}\n", harmless(text)).into_bytes());
}

/// What comes from a catalog may hold what a terminal obeys: of control characters
/// only our own get through, line ends and bold.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| c == '\n' || !c.is_control();
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let own = [BOLD, PLAIN]
            .into_iter()
            .find(|mark| rest.starts_with(mark));
        let length = own.map_or_else(|| c.len_utf8(), str::len);
        match own {
            Some(mark) => shown.push_str(mark),
            None if is_harmless(c) => shown.push(c),
            None => shown.extend(c.escape_default()),
        }
        rest = &rest[length..];
    }
    Cow::Owned(shown)
}

/// Every step of a look-up.
pub(crate) fn explained(answer: &Answer) -> Value {
    let mut told = head(answer);
    told["count"] = answer.endpoints().len().into();
    told["attempts"] = attempts(answer.attempts());
    told
}

pub(crate) fn failed(failed: &Error) -> Value {
    error(failed.kind(), &failed.to_string(), failed.attempts())
}

/// The form that all errors have.
fn error(kind: ErrorKind, message: &str, made: &[Attempt]) -> Value {
    // Whoever reads it knows five kinds. What the machine says no to may go another time.
    let kind = match kind {
        ErrorKind::Io => ErrorKind::Unavailable,
        kind => kind,
    };
    json!({
        "error": {"kind": kind.as_str(), "message": message},
        "attempts": attempts(made),
    })
}

/// An error of the library: told on stderr, as JSON also on stdout.
pub(crate) fn failure(error: &Error, output: &Output) -> ExitCode {
    wrong(error.kind(), &error.to_string(), error.attempts(), output)
}

/// The same of what the library has no error for.
pub(crate) fn wrong(kind: ErrorKind, text: &str, made: &[Attempt], output: &Output) -> ExitCode {
    if output.form() == Form::Json {
        object(&error(kind, text, made));
    }
    say(&format!("proconsul: {text}"));
    status(kind)
}

/// Consul answered, and there is nothing to print: told on stderr, as JSON also
/// on stdout, with what is known beside it.
pub(crate) fn nothing(message: &str, mut told: Value, output: &Output) -> ExitCode {
    if output.form() == Form::Json {
        let mut error = error(ErrorKind::NotFound, message, &[]);
        told["error"] = error["error"].take();
        if told.get("attempts").is_none() {
            told["attempts"] = error["attempts"].take();
        }
        object(&told);
    }
    remark(output, &format!("proconsul: {message}"));
    ExitCode::from(NOT_FOUND)
}

/// Writes the snapshot, if there is to be one, and tells what is wrong with it. Without it an
/// answer is still one.
pub(crate) async fn saved(resolver: &Resolver, output: &Output) {
    // What is wrong is kept.
    _ = resolver.save_snapshot().await;
    snapshot_problem(resolver, output);
}

/// Tells why what an earlier run found is not used, or what this one found not kept.
pub(crate) fn snapshot_problem(resolver: &Resolver, output: &Output) {
    if let Some(problem) = resolver.snapshot_problem() {
        remark(output, &format!("proconsul: {problem}"));
    }
}

/// `1 endpoint`, `2 endpoints`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The exit status of the contract.
fn status(kind: ErrorKind) -> ExitCode {
    match kind {
        ErrorKind::Invalid => ExitCode::from(2),
        ErrorKind::NotFound => ExitCode::from(NOT_FOUND),
        ErrorKind::Denied => ExitCode::from(4),
        ErrorKind::Unavailable | ErrorKind::Timeout => ExitCode::from(5),
        _ => ExitCode::FAILURE,
    }
}

/// What an answer says of itself, without its endpoints.
pub(crate) fn head(answer: &Answer) -> Value {
    json!({
        "name": answer.name(),
        "source": answer.source().as_str(),
        "transport": answer.transport().as_str(),
        "freshness": answer.freshness().as_str(),
        "age_ms": millis(answer.age()),
        "ttl_s": answer.ttl().as_secs(),
        "complete": answer.is_complete(),
        "protected": answer.protected().map(Reason::as_str),
        "warnings": answer.warnings(),
    })
}

pub(crate) fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "address": endpoint.address,
        "port": endpoint.port,
        "priority": endpoint.priority,
        "weight": endpoint.weight,
        "target": &*endpoint.target,
        "node": endpoint.node.as_deref(),
        "id": endpoint.id.as_deref(),
        "tags": endpoint.tags.as_ref(),
        "meta": endpoint.meta.as_deref(),
        "health": endpoint.health.map(proconsul::Health::as_str),
    })
}

pub(crate) fn attempts(attempts: &[Attempt]) -> Value {
    let one = |attempt: &Attempt| {
        json!({
            "source": attempt.source.as_str(),
            "address": &*attempt.address,
            "transport": attempt.transport.as_str(),
            "outcome": attempt.outcome.as_str(),
            "elapsed_ms": (attempt.elapsed.as_secs_f64() * 1e4).round() / 10.0,
            "bytes": attempt.received,
            "count": attempt.count,
            "detail": if attempt.detail.is_empty() { Value::Null } else { (*attempt.detail).into() },
        })
    };
    attempts.iter().map(one).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Rows in columns below a heading, which is the first of them.
pub(crate) fn table(rows: &[Vec<String>], output: &Output) -> String {
    let text = columns(rows);
    match text.split_once('\n') {
        Some((head, rest)) => format!("{}\n{rest}", heading(output, head)),
        None => text,
    }
}

/// Rows in columns, the last one ragged.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        rows.iter()
            .filter_map(|row| row.get(at))
            .map(|cell| cell.chars().count())
            .max()
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let pad = width(at)
                .unwrap_or_default()
                .saturating_sub(cell.chars().count());
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One line on what an answer is worth, and its warnings.
pub(crate) fn summary(answer: &Answer, count: usize, what: &str, output: &Output) {
    let whole = if answer.is_complete() {
        "complete"
    } else {
        "NOT COMPLETE"
    };
    let (source, transport, fresh) = (answer.source(), answer.transport(), answer.freshness());
    let (counted, ttl) = (counted(count, what), answer.ttl().as_secs());
    let line = format!("{counted} from {source} ({transport}), {fresh}, {whole}, ttl {ttl} s");
    remark(output, &line);
    warnings(answer, output);
}

pub(crate) fn warnings(answer: &Answer, output: &Output) {
    if answer.freshness() == Freshness::Stale {
        let age = answer.age().as_secs_f64();
        let why = answer
            .protected()
            .map_or("no source answered", Reason::as_str);
        remark(output, &format!("warning: {age:.1} s old: {why}"));
    }
    for warning in answer.warnings() {
        remark(output, &format!("warning: {warning}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(event);
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_one_line_that_says_where_and_comes_once_a_second() {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish()
            .with(Seldom::default());
        let before = panic::take_hook();
        tell_panics();
        tracing::subscriber::with_default(log, || {
            for _ in 0..3 {
                panic::catch_unwind(|| panic!("on purpose")).unwrap_err();
            }
        });
        panic::set_hook(before);
        let told = String::from_utf8(lock(&kept.0).clone()).unwrap();
        // Where they are wished for, the calls that led there follow.
        assert_eq!(told.matches("panicked at ").count(), 1, "{told}");
        let told = told.lines().next().unwrap();
        for part in [
            "ERROR",
            concat!("panicked at ", file!(), ":"),
            ": on purpose",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        let heading = format!("{BOLD}NODE{PLAIN}\nweb\n");
        assert_eq!(harmless(&heading), heading);
        assert_eq!(
            harmless("a\x1b[2Jb\x07\u{9b}1m é"),
            "a\\u{1b}[2Jb\\u{7}\\u{9b}1m é"
        );
    }
}
