//! Connections to the stub that stall, flood, lie and break off. Whoever does so is cut
//! off, and the others do not notice.

mod support;

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use hickory_proto::rr::RecordType;
use socket2::SockRef;
use support::{
    Agent, Serving, SilentDns, ask_tcp, ask_udp, descriptors, framed, lonely_stub, memory,
    next_message, stub_of, wait_for,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep, timeout},
};

/// Known without asking anybody.
const KNOWN: &str = "0a000001.addr.consul.";

/// A question for [`KNOWN`], with its length.
fn known(id: u16) -> Vec<u8> {
    let question = b"\x01\0\0\x01\0\0\0\0\0\0\x080a000001\x04addr\x06consul\0\0\x01\0\x01";
    framed(&[&id.to_be_bytes()[..], question].concat())
}

/// How long until the stub closes, reading nothing but the end.
async fn closed(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "it is not closed");
    assert!(rest.is_empty(), "{rest:02x?}");
    start.elapsed()
}

async fn is_well(stub: SocketAddr) {
    let (udp, tcp) = tokio::join!(
        ask_udp(stub, KNOWN, RecordType::A),
        ask_tcp(stub, KNOWN, RecordType::A)
    );
    assert_eq!(udp.expect("a reply over UDP").answers.len(), 1);
    assert_eq!(tcp.expect("a reply over TCP").answers.len(), 1);
}

#[tokio::test]
async fn a_length_that_no_message_has_ends_the_connection_and_is_counted() {
    let (stub, traffic) = lonely_stub().await;
    for length in 0..12_u16 {
        for body in [0, usize::from(length), 40] {
            let mut stream = TcpStream::connect(stub).await.unwrap();
            let bytes = [&length.to_be_bytes()[..], &vec![0; body]].concat();
            stream.write_all(&bytes).await.unwrap();
            // What was sent and not read makes it a reset.
            let mut rest = [0; 1];
            let end = timeout(Duration::from_secs(5), stream.read(&mut rest)).await;
            assert!(matches!(end, Ok(Ok(0) | Err(_))), "{length}, {body}");
        }
    }
    wait_for("all to be counted", async || {
        let text = traffic.to_string();
        text.contains("{reason=\"dropped\"} 36\n").then_some(())
    })
    .await;
    // What came before it is answered.
    let mut stream = TcpStream::connect(stub).await.unwrap();
    stream.write_all(&known(1)).await.unwrap();
    assert!(next_message(&mut stream).await.is_some());
    is_well(stub).await;
}

#[tokio::test]
async fn who_never_ends_a_message_is_cut_off_after_two_seconds_however_it_trickles() {
    let (stub, _) = lonely_stub().await;
    let whole = known(1);
    let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
    let mut stalled = tokio::task::JoinSet::new();
    for (what, start, pause) in [
        ("half a length", whole[..1].to_vec(), None),
        ("a length", whole[..2].to_vec(), None),
        ("half a header", whole[..8].to_vec(), None),
        (
            "a byte less than all",
            whole[..whole.len() - 1].to_vec(),
            None,
        ),
        ("a hello of TLS", hello.to_vec(), None),
        (
            "a request over HTTP",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            None,
        ),
        ("65,535 bytes that never come", vec![0xFF; 2], None),
        (
            "a byte now and then",
            vec![0xFF; 2],
            Some(Duration::from_millis(300)),
        ),
        (
            "a byte now and then behind a question",
            [&whole[..], &[0xFF; 2]].concat(),
            Some(Duration::from_millis(300)),
        ),
    ] {
        stalled.spawn(async move {
            let mut stream = TcpStream::connect(stub).await.unwrap();
            stream.write_all(&start).await.unwrap();
            if start.len() > known(1).len() {
                next_message(&mut stream).await.unwrap();
            }
            let begun = Instant::now();
            let (mut reader, mut writer) = stream.into_split();
            let mut rest = [0; 1];
            loop {
                let read = reader.read(&mut rest);
                match timeout(pause.unwrap_or(Duration::from_secs(8)), read).await {
                    Ok(end) => {
                        assert!(matches!(end, Ok(0) | Err(_)), "{what} is answered");
                        break;
                    }
                    Err(_) => assert!(
                        pause.is_some() && begun.elapsed() < Duration::from_secs(8),
                        "{what}"
                    ),
                }
                _ = writer.write_all(b"x").await;
            }
            (what, begun.elapsed())
        });
    }
    // Meanwhile the others notice nothing.
    let mut asked = 0;
    while !stalled.is_empty() {
        let ended = timeout(Duration::from_millis(100), stalled.join_next()).await;
        is_well(stub).await;
        asked += 1;
        if let Ok(Some(ended)) = ended {
            let (what, took) = ended.unwrap();
            assert!(took > Duration::from_millis(1_500), "{what}: {took:?}");
            assert!(took < Duration::from_secs(7), "{what}: {took:?}");
        }
    }
    assert!(asked > 5, "{asked}");
}

#[tokio::test]
async fn a_message_in_any_number_of_pieces_is_one_message() {
    let (stub, _) = lonely_stub().await;
    // Padded to 600 bytes by an EDNS option.
    let mut long = known(7);
    let padding = 600 - long.len() - 11 - 4;
    long[13] = 1;
    long.extend(b"\0\0\x29\x04\xd0\0\0\0\0");
    long.extend(u16::try_from(padding + 4).unwrap().to_be_bytes());
    long.extend(b"\0\x0c");
    long.extend(u16::try_from(padding).unwrap().to_be_bytes());
    long.extend(vec![0; padding]);
    let length = u16::try_from(long.len() - 2).unwrap();
    long[..2].copy_from_slice(&length.to_be_bytes());
    assert_eq!(long.len(), 600);
    let mut stream = TcpStream::connect(stub).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in long.chunks(1) {
        stream.write_all(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = next_message(&mut stream).await.unwrap();
    assert_eq!((answer[1], answer[7]), (7, 1));
    // Two in one, and one that is split at every place there is.
    stream
        .write_all(&[known(1), known(2)].concat())
        .await
        .unwrap();
    for _ in 0..2 {
        assert!(next_message(&mut stream).await.is_some());
    }
    let both = [known(3), known(4)].concat();
    for at in 1..both.len() {
        stream.write_all(&both[..at]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&both[at..]).await.unwrap();
        for _ in 0..2 {
            let answer = next_message(&mut stream).await.unwrap();
            assert!(
                matches!(answer[1], 3 | 4) && answer[7] == 1,
                "split at {at}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_questions_at_once_are_all_answered_and_keep_nobody_waiting() {
    let (stub, _) = lonely_stub().await;
    let (mut reader, mut writer) = TcpStream::connect(stub).await.unwrap().into_split();
    let asking = tokio::spawn(async move {
        let all: Vec<u8> = (0..10_000).flat_map(known).collect();
        writer.write_all(&all).await.unwrap();
        writer
    });
    let hearing = tokio::spawn(async move {
        let mut heard = HashSet::new();
        while heard.len() < 10_000 {
            let reply = next_message(&mut reader).await.unwrap();
            assert!(heard.insert([reply[0], reply[1]]), "answered twice");
        }
    });
    let mut times = Vec::new();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(stub).await.unwrap();
    while !hearing.is_finished() || times.len() < 20 {
        let start = Instant::now();
        client.send(&known(1)[2..]).await.unwrap();
        client.recv(&mut [0; 512]).await.unwrap();
        times.push(start.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    hearing.await.unwrap();
    drop(asking.await.unwrap());
    times.sort();
    let middle = times[times.len() / 2];
    println!(
        "another client waited {middle:?} in the middle of {}",
        times.len()
    );
    assert!(
        middle < Duration::from_millis(50),
        "{middle:?} of {}",
        times.len()
    );
}

#[tokio::test]
async fn who_asks_and_never_reads_is_read_no_more_and_cut_off() {
    let agent = Agent::start().await;
    agent.register_instances("web", 100).await;
    let mut command = support::serve(&agent.dns().to_string(), &agent.http());
    command.args(["--admin", "127.0.0.1:0"]);
    let server = Serving::start(command);
    let stub = server.dns;
    ask_tcp(stub, "web.service.consul.", RecordType::SRV).await;
    let (before, mut most) = (memory(server.id()), 0);
    let mut question = known(1);
    let name = b"\x03web\x07service\x06consul\0\0\x21\0\x01";
    question.truncate(14);
    question.extend(name);
    let length = u16::try_from(question.len() - 2).unwrap();
    question[..2].copy_from_slice(&length.to_be_bytes());
    let stream = TcpStream::connect(stub).await.unwrap();
    SockRef::from(&stream).set_recv_buffer_size(4_096).unwrap();
    let (_kept, mut writer) = stream.into_split();
    let begun = Instant::now();
    let mut asked = 0;
    // Until the stub reads no more; then until it ends the connection.
    while asked < 400_000 {
        match timeout(
            Duration::from_secs(8),
            writer.write_all(&question.repeat(100)),
        )
        .await
        {
            Ok(Ok(())) => asked += 100,
            Ok(Err(_)) => break,
            Err(_) => panic!("it is not cut off"),
        }
        most = memory(server.id()).max(most);
    }
    // 64 answers of 10 kB, twice 64 kB that are written together, and what an allocator keeps.
    let grown = most.saturating_sub(before);
    assert!(grown < 4 << 20, "by {grown} bytes");
    assert!(begun.elapsed() < Duration::from_secs(8));
    // Its answers are a hundred times longer than the questions: what was answered is
    // what the kernel took.
    assert!(asked < 400_000, "all was read");
    let metrics = format!("http://{}/metrics", server.admin);
    let metrics = support::http_client().get(metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let answered: u64 = metrics
        .lines()
        .filter(|line| line.starts_with("proconsul_dns_queries_total{transport=\"tcp\""))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum();
    assert!((1..10_000).contains(&answered), "{answered}: {metrics}");
    is_well(stub).await;
}

#[tokio::test]
async fn who_waits_for_many_answers_is_not_read_meanwhile() {
    let silent = SilentDns::start();
    let builder = proconsul::Resolver::builder()
        .dns(&silent.address().to_string())
        .http("none");
    let (stub, _) = stub_of(builder.build().unwrap(), &[]).await;
    let mut stream = TcpStream::connect(stub).await.unwrap();
    // Each for another name, none of which is answered soon.
    for number in 0..100_u16 {
        let name = format!("\x04{number:04}\x07service\x06consul\0\0\x01\0\x01");
        let mut question = known(number)[..14].to_vec();
        question.extend(name.as_bytes());
        let length = u16::try_from(question.len() - 2).unwrap();
        question[..2].copy_from_slice(&length.to_be_bytes());
        stream.write_all(&question).await.unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    let asked: HashSet<Vec<u8>> = silent
        .questions()
        .iter()
        .map(|question| question[13..17].to_vec())
        .collect();
    assert!((1..=64).contains(&asked.len()), "{}", asked.len());
    is_well(stub).await;
    // All of them get their answer in the end: SERVFAIL.
    for _ in 0..100 {
        assert_eq!(next_message(&mut stream).await.unwrap()[3] & 0x0F, 2);
    }
}

/// RFC 7766, section 6.2.1.1.
#[tokio::test]
async fn an_answer_that_is_known_does_not_wait_for_one_that_was_asked_for_before_it() {
    let silent = SilentDns::start();
    let server = Serving::start(support::serve(&silent.address().to_string(), "none"));
    let mut stream = TcpStream::connect(server.dns).await.unwrap();
    let mut slow = known(1)[..14].to_vec();
    slow[1] = 36;
    slow.extend(b"\x03web\x07service\x06consul\0\0\x01\0\x01");
    stream.write_all(&slow).await.unwrap();
    stream.write_all(&known(2)).await.unwrap();
    for (id, code) in [(2, 0), (1, 2)] {
        let reply = next_message(&mut stream).await.unwrap();
        assert_eq!((reply[1], reply[3] & 0x0F), (id, code));
    }
}

#[tokio::test]
async fn a_connection_that_is_idle_is_closed_after_ten_seconds_and_not_before() {
    let (stub, _) = lonely_stub().await;
    let mut stream = TcpStream::connect(stub).await.unwrap();
    for id in 1..=2 {
        sleep(Duration::from_secs(4)).await;
        stream.write_all(&known(id)).await.unwrap();
        next_message(&mut stream).await.unwrap();
    }
    let asked = Instant::now();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(30), stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty());
    // It goes by the last question, and is looked at once a second.
    let idle = asked.elapsed();
    assert!((8..20).contains(&idle.as_secs()), "{idle:?}");
}

#[tokio::test]
async fn connections_that_break_off_leave_nothing_behind() {
    let silent = SilentDns::start();
    let server = Serving::start(support::serve(&silent.address().to_string(), "none"));
    let stub = server.dns;
    is_well(stub).await;
    // By then that connection is closed.
    sleep(Duration::from_millis(300)).await;
    let before = descriptors(server.id());
    let mut waiting = known(1)[..14].to_vec();
    waiting[1] = 36;
    waiting.extend(b"\x03web\x07service\x06consul\0\0\x01\0\x01");
    for start in [&b""[..], &known(1), &known(1)[..9], &waiting] {
        for number in 0..100 {
            let mut stream = TcpStream::connect(stub).await.unwrap();
            stream.write_all(start).await.unwrap();
            if number % 2 == 0 {
                // A reset, with whatever was on its way.
                SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
        }
    }
    is_well(stub).await;
    // Half a close: the answer is still sent, and then the end.
    let mut stream = TcpStream::connect(stub).await.unwrap();
    stream
        .write_all(&[&known(1)[..], &waiting].concat())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    for code in [0, 2] {
        assert_eq!(next_message(&mut stream).await.unwrap()[3] & 0x0F, code);
    }
    assert!(closed(&mut stream).await < Duration::from_secs(5));
    // Neither their sockets nor those of the questions that they asked.
    wait_for("all descriptors to be given back", async || {
        (descriptors(server.id()) <= before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_urgent_byte_harms_nobody() {
    let (stub, _) = lonely_stub().await;
    for at in [0, 1, 2, 14] {
        let stream = TcpStream::connect(stub).await.unwrap();
        let question = known(1);
        let mut stream = stream;
        stream.write_all(&question[..at]).await.unwrap();
        SockRef::from(&stream).send_out_of_band(b"!").unwrap();
        stream.write_all(&question[at..]).await.unwrap();
        // It is no part of the message.
        assert_eq!(next_message(&mut stream).await.unwrap()[7], 1, "at {at}");
    }
    is_well(stub).await;
}

#[tokio::test]
async fn many_connections_at_once_keep_nobody_from_the_answers_over_udp() {
    let (stub, _) = lonely_stub().await;
    let mut idle = Vec::new();
    // As many as the kernel lets wait, and those that are there.
    for _ in 0..1_200 {
        idle.push(TcpStream::connect(stub).await.unwrap());
        if idle.len() % 100 == 0 {
            let reply = ask_udp(stub, KNOWN, RecordType::A).await;
            assert_eq!(reply.expect("a reply").answers.len(), 1, "{}", idle.len());
        }
    }
    // Those who say nothing go, and one that asks gets its turn.
    wait_for("room for one more", async || {
        let reply = ask_tcp(stub, KNOWN, RecordType::A).await?;
        (reply.answers.len() == 1).then_some(())
    })
    .await;
    drop(idle);
    for _ in 0..2_000 {
        drop(TcpStream::connect(stub).await.unwrap());
    }
    is_well(stub).await;
}

#[tokio::test]
async fn clients_that_are_gone_before_their_answer_harm_nobody() {
    let (stub, _) = lonely_stub().await;
    for _ in 0..300 {
        // The kernel answers the reply with "port unreachable".
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&known(1)[2..], stub).await.unwrap();
        drop(client);
    }
    is_well(stub).await;
}

#[tokio::test]
async fn a_question_takes_no_more_room_over_tcp_than_over_udp() {
    let (stub, _) = lonely_stub().await;
    let mut stream = TcpStream::connect(stub).await.unwrap();
    for (padding, code) in [(4_000_u16, 0), (4_100, 1), (60_000, 1)] {
        // Padding of that length (RFC 7830) in an OPT record.
        let mut question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\x01".to_vec();
        // Another name each time: what is remembered takes no room.
        question.extend(format!("\x080a00{padding:04x}\x04addr\x06consul\0\0\x01\0\x01").bytes());
        question.extend(b"\0\0\x29\x10\0\0\0\0\0");
        question.extend((padding + 4).to_be_bytes());
        question.extend([0, 12]);
        question.extend(padding.to_be_bytes());
        question.resize(question.len() + usize::from(padding), 0);
        stream.write_all(&framed(&question)).await.unwrap();
        let reply = next_message(&mut stream).await.expect("a reply");
        assert_eq!(
            (&reply[..2], reply[3] & 15),
            (&[0, 7][..], code),
            "{padding}"
        );
    }
}
