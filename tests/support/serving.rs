//! The program, serving: where it answers, and what it says.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use hickory_proto::rr::RecordType;
use tokio::time::Instant;

use super::{PATIENCE, ask_udp};

/// Ended when dropped.
pub(crate) struct Serving {
    child: Child,
    said: mpsc::Receiver<String>,
    reading: JoinHandle<()>,
    /// What it said of a panic.
    panicked: Arc<OnceLock<String>>,
    /// What it said before it served, a line each: warnings, unless it is to say more.
    pub(crate) warnings: Vec<String>,
    /// `serving consul. on 127.0.0.1:1 (udp, tcp), admin 127.0.0.1:2`
    pub(crate) line: String,
    /// Its first address.
    pub(crate) dns: SocketAddr,
    /// The admin address; empty without one.
    pub(crate) admin: String,
}

/// `proconsul serve` on free ports, which asks these and nobody else.
pub(crate) fn serve(dns: &str, http: &str) -> Command {
    let mut command = serve_at((Ipv4Addr::LOCALHOST, 0).into(), dns, http);
    command.args(["--upstream", "none"]);
    command
}

/// The same at this address, with the upstreams that are still to be said.
pub(crate) fn serve_at(listen: SocketAddr, dns: &str, http: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
    command
        .env_clear()
        .args(["serve", "--listen", &listen.to_string()])
        .args(["--dns", dns, "--http", http]);
    command
}

impl Serving {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (tell, said) = mpsc::channel();
        let panicked = Arc::<OnceLock<String>>::default();
        let saw = Arc::clone(&panicked);
        let reading = thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                if line.contains("panicked at ") {
                    _ = saw.set(line.clone());
                }
                // Whoever listened may have heard enough.
                _ = tell.send(line);
            }
        });
        // From here on it is ended, whatever it says.
        let mut serving = Self {
            child,
            said,
            reading,
            panicked,
            warnings: Vec::new(),
            line: String::new(),
            dns: SocketAddr::from(([0; 4], 0)),
            admin: String::new(),
        };
        let mut line = serving.says();
        while !line.starts_with("serving ") {
            serving
                .warnings
                .push(std::mem::replace(&mut line, serving.says()));
        }
        let (_, rest) = line.split_once(" on ").unwrap_or_else(|| panic!("{line}"));
        serving.dns = rest.split([' ', ',']).next().unwrap().parse().unwrap();
        let admin = line.split_once(", admin ").map_or("", |(_, admin)| admin);
        serving.admin = admin.to_owned();
        serving.line = line;
        serving
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// The next line on stderr.
    pub(crate) fn says(&self) -> String {
        self.said.recv_timeout(PATIENCE).unwrap()
    }

    /// All lines on stderr that nobody took yet.
    pub(crate) fn said_so_far(&self) -> Vec<String> {
        self.said.try_iter().collect()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The next line on stderr of a program that was told to end; `None`: that was all.
    pub(crate) fn said_before_it_ended(&self) -> Option<String> {
        match self.said.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it has not ended"),
        }
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// How many addresses of `web` it gives.
    pub(crate) async fn instances(&self) -> usize {
        let reply = ask_udp(self.dns, "web.service.consul.", RecordType::A).await;
        reply.map_or(0, |reply| reply.answers.len())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        // Somebody whom it started may have its stderr still.
        let until = Instant::now() + Duration::from_secs(1);
        while !self.reading.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        // A panic is a defect, whatever else was looked at.
        if let Some(line) = self.panicked.get()
            && !thread::panicking()
        {
            panic!("the program panicked: {line}");
        }
    }
}
