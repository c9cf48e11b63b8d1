//! A door in front of a real server, over UDP and TCP, whose weather a test makes: it
//! refuses, is silent, slow, lossy, out of order, half open, or says something of its own.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    select,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// What becomes of what passes. By default all goes through at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Weather {
    /// Both ports are closed, and every connection with them.
    pub(crate) refused: bool,
    /// TCP alone is closed.
    pub(crate) tcp_refused: bool,
    /// What comes in is taken and goes nowhere; connections stay open.
    pub(crate) silent: bool,
    /// TCP alone is silent.
    pub(crate) tcp_silent: bool,
    /// The share of datagrams that is lost, each way; over TCP a loss costs
    /// [`RETRANSMITTED`].
    pub(crate) loss: f64,
    /// Questions arrive, answers do not.
    pub(crate) replies_lost: bool,
    /// Until the answer goes back.
    pub(crate) delay: Duration,
    /// The share by which the delay differs, up and down.
    pub(crate) jitter: f64,
    /// The share of datagrams that come twice.
    pub(crate) twice: f64,
    /// Datagrams to the asker are cut to so many bytes.
    pub(crate) cut: Option<usize>,
    /// What a connection gives in a second, at most.
    pub(crate) bytes_a_second: Option<usize>,
    /// What every request over TCP is answered with, whatever it is, by nobody but us.
    pub(crate) says: Option<Arc<str>>,
}

impl Weather {
    pub(crate) fn refused() -> Self {
        Self {
            refused: true,
            ..Self::default()
        }
    }

    pub(crate) fn silent() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }
}

/// How long TCP takes to notice that a segment was lost.
const RETRANSMITTED: Duration = Duration::from_millis(200);

/// No server is waited for longer.
const LONGEST: Duration = Duration::from_secs(10);

/// The door. It closes when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    passed: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// At this address, with a port of its own, to that server.
    pub(crate) async fn start(at: std::net::Ipv4Addr, server: SocketAddr) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((at, 0)).await.expect("a free port");
            let address = tcp.local_addr().expect("a bound socket has an address");
            if let Ok(udp) = UdpSocket::bind(address).await {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().expect("a bound socket has an address");
        let (weather, seen) = watch::channel(Weather::default());
        let passed: Arc<AtomicU64> = Arc::default();
        let path = Path {
            address,
            server,
            weather: seen,
            passed: Arc::clone(&passed),
            dice: Arc::new(Mutex::new(SmallRng::seed_from_u64(u64::from(
                address.port(),
            )))),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(path.clone().datagrams(udp));
        tasks.spawn(path.connections(tcp));
        Self {
            address,
            weather,
            passed,
            _tasks: tasks,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Questions and requests that came in so far.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Path {
    address: SocketAddr,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    passed: Arc<AtomicU64>,
    dice: Arc<Mutex<SmallRng>>,
}

impl Path {
    fn now(&self) -> Weather {
        self.weather.borrow().clone()
    }

    fn chance(&self, share: f64) -> bool {
        share > 0.0 && self.dice.lock().expect("no roll panics").random_bool(share)
    }

    fn delay(&self, weather: &Weather) -> Duration {
        if weather.delay.is_zero() {
            return Duration::ZERO;
        }
        let roll: f64 = self.dice.lock().expect("no roll panics").random();
        weather
            .delay
            .mul_f64(1.0 + weather.jitter * (roll * 2.0 - 1.0))
    }

    async fn until(&mut self, wanted: impl FnMut(&Weather) -> bool) {
        // An error is the end of the proxy, and of this task with it.
        _ = self.weather.wait_for(wanted).await;
    }

    async fn datagrams(mut self, first: UdpSocket) {
        let mut socket = Some(Arc::new(first));
        let mut packet = vec![0; 65_535];
        let mut asked = JoinSet::new();
        loop {
            let Some(open) = &socket else {
                self.until(|weather| !weather.refused).await;
                socket = UdpSocket::bind(self.address).await.ok().map(Arc::new);
                continue;
            };
            let mut eyes = self.clone();
            select! {
                () = eyes.until(|weather| weather.refused) => {
                    asked.abort_all();
                    while asked.join_next().await.is_some() {}
                    socket = None;
                }
                Ok((length, client)) = open.recv_from(&mut packet) => {
                    self.passed.fetch_add(1, Ordering::Relaxed);
                    let question = packet[..length].to_vec();
                    asked.spawn(self.clone().datagram(Arc::clone(open), question, client));
                    while asked.try_join_next().is_some() {}
                }
            }
        }
    }

    /// One question, and what comes of it.
    async fn datagram(self, open: Arc<UdpSocket>, question: Vec<u8>, client: SocketAddr) {
        let weather = self.now();
        if weather.silent || self.chance(weather.loss) {
            return;
        }
        let told = async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
            socket.connect(self.server).await.ok()?;
            socket.send(&question).await.ok()?;
            let mut reply = vec![0; 65_535];
            let length = socket.recv(&mut reply).await.ok()?;
            reply.truncate(length);
            Some(reply)
        };
        let Ok(Some(mut reply)) = timeout(LONGEST, told).await else {
            return;
        };
        if weather.replies_lost || self.chance(weather.loss) {
            return;
        }
        sleep(self.delay(&weather)).await;
        reply.truncate(weather.cut.unwrap_or(usize::MAX));
        for _ in 0..1 + usize::from(self.chance(weather.twice)) {
            // Whoever asked may be gone.
            _ = open.send_to(&reply, client).await;
        }
    }

    async fn connections(mut self, first: TcpListener) {
        let mut listener = Some(first);
        let mut open = JoinSet::new();
        let closed = |weather: &Weather| weather.refused || weather.tcp_refused;
        loop {
            let Some(door) = &listener else {
                self.until(|weather| !closed(weather)).await;
                listener = self.listen();
                if listener.is_none() {
                    sleep(Duration::from_millis(5)).await;
                }
                continue;
            };
            let mut eyes = self.clone();
            select! {
                () = eyes.until(closed) => {
                    listener = None;
                    open.abort_all();
                    while open.join_next().await.is_some() {}
                }
                Ok((client, _)) = door.accept() => {
                    open.spawn(self.clone().connection(client));
                    while open.try_join_next().is_some() {}
                }
            }
        }
    }

    /// Again at the same port, which may still have connections that end.
    fn listen(&self) -> Option<TcpListener> {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_reuseaddr(true).ok()?;
        socket.bind(self.address).ok()?;
        socket.listen(1024).ok()
    }

    async fn connection(self, mut client: TcpStream) {
        _ = client.set_nodelay(true);
        if let Some(says) = self.now().says {
            let mut request = vec![0; 65_535];
            while matches!(client.read(&mut request).await, Ok(1..)) {
                self.passed.fetch_add(1, Ordering::Relaxed);
                if client.write_all(says.as_bytes()).await.is_err() {
                    break;
                }
            }
            return;
        }
        let Ok(Ok(server)) = timeout(LONGEST, TcpStream::connect(self.server)).await else {
            return;
        };
        _ = server.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // One way ends: the other has what is still due.
        let asking = self.clone().pass(from_client, to_server, true);
        let answering = self.pass(from_server, to_client, false);
        tokio::join!(asking, answering);
    }

    async fn pass(
        mut self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        asks: bool,
    ) {
        let mut chunk = vec![0; 65_535];
        loop {
            let room = match self.now().bytes_a_second {
                Some(most) if !asks => most.div_ceil(10).min(chunk.len()),
                _ => chunk.len(),
            };
            let Ok(length @ 1..) = from.read(&mut chunk[..room]).await else {
                // Its end, and the other's way back goes on.
                _ = to.shutdown().await;
                return;
            };
            if asks {
                self.passed.fetch_add(1, Ordering::Relaxed);
            }
            let weather = self.now();
            let is_held = |weather: &Weather| {
                weather.silent || weather.tcp_silent || (weather.replies_lost && !asks)
            };
            // As long as that lasts nothing arrives; what waited arrives then.
            self.until(|weather| !is_held(weather)).await;
            if !asks {
                sleep(self.delay(&weather)).await;
            }
            if self.chance(weather.loss) {
                sleep(RETRANSMITTED).await;
            }
            if !asks && weather.bytes_a_second.is_some() {
                sleep(Duration::from_millis(100)).await;
            }
            if to.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    }
}
