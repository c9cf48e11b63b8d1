//! An agent's HTTP API that says what a test tells it to, byte by byte, and keeps all that
//! it was asked.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::PATIENCE;

/// What is done with a connection, one step after the other. At the end of them it waits
/// for the next request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Say(Vec<u8>),
    Pause(Duration),
    /// These bytes again and again, with a pause after each, until nobody takes them.
    Endless(Vec<u8>, Duration),
    /// Says nothing more, and leaves the connection open.
    Hang,
    Close,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Request line and headers, as they came.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// How many requests there were before.
    pub(crate) number: usize,
    /// Which connection it came over, from 0.
    pub(crate) connection: usize,
}

impl Asked {
    /// `GET /v1/health/service/web?stale`
    pub(crate) fn what(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.rsplit_once(' ').map_or(line, |(what, _)| what)
    }

    /// About a service, and not about the agent or Consul's own service.
    pub(crate) fn is_about(&self, service: &str) -> bool {
        self.what().contains(&format!("/service/{service}"))
    }

    /// The service that the path names, if it names one.
    pub(crate) fn service(&self) -> &str {
        self.what().split(['/', '?']).nth(4).unwrap_or_default()
    }

    /// Whether there is a leader: whoever follows names asks that once a second.
    pub(crate) fn is_pulse(&self) -> bool {
        self.what().contains("/v1/status/leader")
    }

    /// The header's value; the name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.to_ascii_lowercase() == name).then(|| value.trim())
        })
    }
}

type Script = dyn Fn(&Asked) -> Vec<Step> + Send + Sync;

/// The server. Its threads end with their connections, or with the test's process.
pub(crate) struct ScriptedHttp {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

impl ScriptedHttp {
    pub(crate) fn start(script: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let script: Arc<Script> = Arc::new(script);
        let (asked, connections) = (Arc::clone(&server.asked), Arc::clone(&server.connections));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                thread::spawn(move || _ = converse(stream, number, &script, &asked));
            }
        });
        server
    }

    /// Is asked about `web` by this script, and answers all else as an agent that is well
    /// and tells a stranger nothing of itself.
    pub(crate) fn of_web(script: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start(move |asked| {
            if asked.is_about("web") {
                script(asked)
            } else if asked.is_about("consul") {
                vec![ok("", &entries("consul", &[8300]))]
            } else if asked.is_pulse() {
                vec![ok("", "\"10.0.0.1:8300\"")]
            } else {
                vec![status("403 Forbidden", "Permission denied")]
            }
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often it was asked about a service.
    pub(crate) fn times(&self, service: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|one| one.is_about(service)).count()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn converse(
    mut stream: TcpStream,
    connection: usize,
    script: &Arc<Script>,
    all: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let mut asked = Asked {
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
            number: 0,
            connection,
        };
        let length = asked.header("content-length").map_or(Ok(0), str::parse);
        asked.body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut asked.body)?;
        {
            let mut all = all.lock().unwrap();
            asked.number = all.len();
            all.push(asked.clone());
        }
        for step in script(&asked) {
            match step {
                Step::Say(bytes) => stream.write_all(&bytes)?,
                Step::Pause(time) => thread::sleep(time),
                Step::Endless(bytes, pause) => loop {
                    stream.write_all(&bytes)?;
                    thread::sleep(pause);
                },
                // Until the other side has had enough.
                Step::Hang => while stream.read(&mut [0; 64])? > 0 {},
                Step::Close => return Ok(()),
            }
        }
    }
}

/// These bytes.
pub(crate) fn say(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Say(bytes.into())
}

/// A whole reply with this status. `headers`: lines, each with its end.
pub(crate) fn reply(status: &str, headers: &str, body: &str) -> Step {
    let length = body.len();
    say(format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    ))
}

pub(crate) fn ok(headers: &str, body: &str) -> Step {
    reply("200 OK", headers, body)
}

pub(crate) fn status(status: &str, body: &str) -> Step {
    reply(status, "", body)
}

/// Instances of a service on 10.0.0.1, one a port, as the health API tells them.
pub(crate) fn entries(service: &str, ports: &[u16]) -> String {
    let one = |port: &u16| {
        format!(
            r#"{{"Node":{{"Node":"n1","Address":"10.0.0.1","Datacenter":"dc1"}},"Service":{{"ID":"{service}-{port}","Service":"{service}","Port":{port}}},"Checks":[]}}"#
        )
    };
    let all: Vec<_> = ports.iter().map(one).collect();
    format!("[{}]", all.join(","))
}
