//! Stderr. It may be a pipe that nobody reads any more: a thread of its own writes there, and
//! nobody who has signals to hear or clients to answer waits long for that.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender, SyncSender},
    },
    thread,
    time::Duration,
};

/// Texts that wait for a reader; what is said while there are so many is lost.
const QUEUE: usize = 64;

/// Whoever says something waits so long until it is written: it stands in its order with what
/// is on stdout, and is not lost with the program.
const MOMENT: Duration = Duration::from_secs(1);

struct Text {
    bytes: Vec<u8>,
    written: Sender<()>,
}

/// `None`: there can be no thread.
static WRITER: OnceLock<Option<SyncSender<Text>>> = OnceLock::new();

/// Somebody waited in vain, and nothing was written since: the next need not wait too.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Writes there, as one text.
pub(crate) fn write(bytes: Vec<u8>) {
    let Some(writer) = WRITER.get_or_init(started) else {
        return put(&bytes);
    };
    let (written, told) = mpsc::channel();
    if writer.try_send(Text { bytes, written }).is_err() || STUCK.load(Ordering::Relaxed) {
        return;
    }
    if told.recv_timeout(MOMENT).is_err() {
        STUCK.store(true, Ordering::Relaxed);
    }
}

/// Ends with the program.
fn started() -> Option<SyncSender<Text>> {
    let (tell, told) = mpsc::sync_channel::<Text>(QUEUE);
    let writing = move || {
        for text in told {
            put(&text.bytes);
            STUCK.store(false, Ordering::Relaxed);
            // Whoever said it may have gone on.
            _ = text.written.send(());
        }
    };
    let thread = thread::Builder::new().name("proconsul-stderr".into());
    thread.spawn(writing).is_ok().then_some(tell)
}

fn put(bytes: &[u8]) {
    // Nobody is left to tell that stderr is gone.
    _ = io::stderr().write_all(bytes);
}

/// For what writes event by event, each at once.
pub(crate) struct Events;

impl Write for Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        write(event.to_vec());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
