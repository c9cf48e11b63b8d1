use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::{
    message::{question_end, with_room},
    *,
};
use crate::stub::shortcut;

/// An ordinary question for the address of `www.example.com`.
fn question() -> Vec<u8> {
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01".to_vec()
}

/// Its answer, of that TTL.
fn answer(ttl: u32) -> Vec<u8> {
    let mut reply = question();
    reply[2] |= 0x80;
    reply[7] = 1;
    reply.extend(b"\xC0\x0C\0\x01\0\x01");
    reply.extend(ttl.to_be_bytes());
    reply.extend(b"\0\x04\x0A\0\0\x01");
    reply
}

#[test]
fn of_a_million_replies_with_one_field_forged_none_is_accepted() {
    let (packet, reply) = (question(), answer(60));
    let id = [0x12, 0x34];
    let end = question_end(&packet).unwrap();
    assert!(answers(&reply, &packet, id));
    let mut dice = SmallRng::seed_from_u64(11);
    let mut taken = 0;
    for round in 0..1_000_000 {
        let mut forged = reply.clone();
        match round % 8 {
            // Any other id.
            0 => {
                let other = (u16::from_be_bytes(id)).wrapping_add(dice.random_range(1..=u16::MAX));
                forged[..2].copy_from_slice(&other.to_be_bytes());
            }
            1 => forged[2] &= 0x7F,
            // Any other opcode.
            2 => forged[2] ^= dice.random_range(1..16) << 3,
            // Any other number of questions.
            3 => {
                let other = 1_u16.wrapping_add(dice.random_range(1..=u16::MAX));
                forged[4..6].copy_from_slice(&other.to_be_bytes());
            }
            // Another letter anywhere in the name, not the same one in another case; or
            // another length of a label.
            4 => {
                let at = dice.random_range(12..end - 4);
                let before = forged[at];
                while forged[at].eq_ignore_ascii_case(&before) {
                    forged[at] = dice.random();
                }
            }
            // Any other type or class.
            5 | 6 => {
                let at = end - if round % 8 == 5 { 4 } else { 2 };
                let other = 1_u16.wrapping_add(dice.random_range(1..=u16::MAX));
                forged[at..at + 2].copy_from_slice(&other.to_be_bytes());
            }
            // The question cut off anywhere.
            _ => forged.truncate(dice.random_range(0..end)),
        }
        taken += usize::from(answers(&forged, &packet, id));
    }
    assert_eq!(taken, 0);
    // Noise.
    for length in (0..200_usize).cycle().take(100_000) {
        let mut noise = vec![0; length];
        dice.fill_bytes(&mut noise);
        assert!(!answers(&noise, &packet, id), "{noise:?}");
    }
}

#[test]
fn types_are_numbers_and_names_are_not() {
    // Types 65 and 97 are `A` and `a` as letters.
    let (mut packet, mut reply) = (question(), answer(60));
    let kind = question_end(&packet).unwrap() - 3;
    (packet[kind], reply[kind]) = (65, 65);
    reply[13..16].make_ascii_uppercase();
    assert!(answers(&reply, &packet, [0x12, 0x34]));
    reply[kind] = 97;
    assert!(!answers(&reply, &packet, [0x12, 0x34]));
}

#[test]
fn a_forwarded_answer_is_stale_for_a_day_and_giving_it_renews_nothing() {
    let (mut memory, packet, start) = (Memory::default(), question(), clock::now());
    let plain = shortcut::read(&packet, Way::Loopback).unwrap();
    memory.hear(plain.key.as_bytes().into(), Some(&answer(60).into()), start);
    // Asked for each minute of that day.
    for minute in 0..=24 * 60 {
        let now = start + Duration::from_secs(60) * minute;
        let mut given = |stale| memory.answer(&packet, &plain, stale, now).is_some();
        assert_eq!(given(false), minute == 0, "{minute}");
        assert_eq!(given(true), minute < 24 * 60, "{minute}");
    }
}

#[test]
fn who_gives_an_answer_on_is_told_when_it_is_not_so_any_more() {
    let (mut memory, packet, now) = (Memory::default(), question(), clock::now());
    let plain = shortcut::read(&packet, Way::Loopback).unwrap();
    let key = plain.key.as_bytes();
    let hear = |memory: &mut Memory, reply: Vec<u8>| {
        memory.hear(key.into(), Some(&reply.into()), now);
    };
    let given_on = |memory: &mut Memory| {
        hear(memory, answer(60));
        memory.fill(&plain, now).unwrap().term.fate.unwrap()
    };
    let coded = |code: u8| {
        let mut reply = packet.clone();
        (reply[2], reply[3]) = (0x80, code);
        reply
    };
    // Newer ones: of no time to live, and one that nobody says how long to keep.
    for newer in [answer(60), answer(0)] {
        let fate = given_on(&mut memory);
        assert!(!fate.is_over());
        hear(&mut memory, newer);
        assert!(fate.is_over() && memory.knows(key));
    }
    let fate = given_on(&mut memory);
    hear(&mut memory, coded(3));
    assert!(fate.is_over() && !memory.knows(key));
    // A failure tells nothing, and neither does what is cut: somebody may have guessed.
    let fate = given_on(&mut memory);
    for code in [1, 2, 4, 5] {
        hear(&mut memory, coded(code));
    }
    let mut cut = answer(60);
    cut[2] |= 0x02;
    hear(&mut memory, cut);
    // Nor does what ends too early, and does not say so.
    let mut unreadable = answer(60);
    unreadable.pop();
    hear(&mut memory, unreadable);
    assert!(!fate.is_over() && memory.knows(key));
    drop(memory);
    assert!(fate.is_over(), "nobody is left to say so");
}

/// A question with EDNS of that size, and that record behind.
fn edns(size: u16, more: &[u8]) -> Vec<u8> {
    let mut packet = question();
    packet[11] = 1 + u8::from(!more.is_empty());
    packet.extend(b"\0\0\x29");
    packet.extend(size.to_be_bytes());
    packet.extend([0; 6]);
    packet.extend(more);
    packet
}

#[test]
fn an_upstream_is_told_of_no_more_room_than_there_is_and_what_is_signed_is_left_alone() {
    for (said, most, told) in [
        (4_096, 1_232, 1_232),
        (65_535, 4_096, 4_096),
        (1_400, 4_096, 1_400),
        (0, 1_232, 0),
    ] {
        assert_eq!(with_room(&edns(said, &[]), most), edns(told, &[]));
        assert_eq!(room(&edns(said, &[])), usize::from(said.max(512)));
    }
    assert_eq!(with_room(&question(), 1_232), question());
    assert_eq!(room(&question()), 512);
    let signed = edns(4_096, b"\0\0\xFA\0\xFF\0\0\0\0\0\0");
    assert_eq!(with_room(&signed, 1_232), signed);
    assert_eq!(room(&signed), 4_096);
}

fn forwarder(upstreams: Upstreams) -> Forwarder {
    let lasting = Lasting::new(clock::now());
    Forwarder::new(upstreams, Vec::new(), Arc::new(lasting))
}

/// Upstreams on loopback that say nothing.
async fn silent(count: usize) -> (Vec<tokio::net::UdpSocket>, Arc<Forwarder>) {
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses = sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().to_string());
    let upstreams = Upstreams::parse(addresses).unwrap();
    (sockets, Arc::new(forwarder(upstreams)))
}

const NAME: &[&[u8]] = &[b"www", b"example", b"com"];

async fn told(forwarder: &Arc<Forwarder>, deadline: Instant) -> Forwarded {
    told_to(&question(), &Waiters::default(), forwarder, deadline).await
}

async fn told_to(
    packet: &[u8],
    waiters: &Waiters,
    forwarder: &Arc<Forwarder>,
    deadline: Instant,
) -> Forwarded {
    let plain = shortcut::read(packet, Way::Loopback);
    let asked = Asked {
        packet,
        labels: NAME,
        read: plain.as_ref(),
        client: "127.0.0.1:9".parse().unwrap(),
        way: Way::Loopback,
        waiters,
        deadline,
    };
    forwarder.answer(asked).await
}

/// Whether that the question failed is remembered.
fn is_failed(forwarder: &Forwarder) -> bool {
    let key = shortcut::read(&question(), Way::Loopback).unwrap().key;
    forwarder.failure(key.as_bytes(), LONGEST_REST).is_some()
}

fn keeps(forwarder: &Forwarder, ttl: u32, since: Instant) {
    let key = shortcut::read(&question(), Way::Loopback).unwrap().key;
    let (key, reply) = (key.as_bytes().into(), Arc::new(answer(ttl)));
    forwarder.memory().hear(key, Some(&reply), since);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_came_too_late_to_be_asked_has_not_failed() {
    let (_sockets, forwarder) = silent(1).await;
    let now = clock::now();
    assert!(matches!(told(&forwarder, now).await, Forwarded::Failed));
    assert!(!is_failed(&forwarder));
    // Nor has one whose client leaves before anybody could answer.
    let soon = now + Duration::from_millis(50);
    assert!(matches!(told(&forwarder, soon).await, Forwarded::Failed));
    assert!(!is_failed(&forwarder));
    keeps(&forwarder, 0, now);
    assert!(matches!(told(&forwarder, now).await, Forwarded::Reply(_)));
    assert!(!is_failed(&forwarder));
    // And one that nobody answers has.
    let (_sockets, forwarder) = silent(1).await;
    let late = clock::now() + LIMIT;
    assert!(matches!(told(&forwarder, late).await, Forwarded::Failed));
    assert!(is_failed(&forwarder));
}

#[tokio::test(start_paused = true)]
async fn who_stood_still_through_the_time_of_a_question_blames_nobody() {
    let (_sockets, forwarder) = silent(2).await;
    let asking = {
        let forwarder = Arc::clone(&forwarder);
        tokio::spawn(async move { told(&forwarder, clock::now() + LIMIT).await })
    };
    tokio::task::yield_now().await;
    // As a process that is stopped and goes on later.
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(matches!(asking.await.unwrap(), Forwarded::Failed));
    assert!(!is_failed(&forwarder));
    let servers = forwarder.servers(NAME);
    assert!(!forwarder.health().are_down(&servers, clock::now()));
    let share = forwarder.health().share(servers[0], 2, LIMIT);
    assert_eq!(share, Duration::from_millis(380), "as one that is well");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_given_while_nobody_can_be_asked() {
    let mut forwarder = forwarder(Upstreams::system());
    forwarder.system = Mutex::new(System::of(Vec::new()));
    let (forwarder, now) = (Arc::new(forwarder), clock::now());
    let deadline = now + LIMIT;
    assert!(matches!(
        told(&forwarder, deadline).await,
        Forwarded::Nobody
    ));
    // As fresh, and as stale.
    for (ttl, given) in [(60, 60_u32), (0, 30)] {
        keeps(&forwarder, ttl, now);
        let Forwarded::Reply(reply) = told(&forwarder, deadline).await else {
            panic!("refused");
        };
        let at = question().len() + 6;
        assert_eq!(reply[at..at + 4], given.to_be_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_datagram_is_sent_where_the_question_may_cost_it_and_only_there() {
    for (may, datagrams) in [(true, 2), (false, 1)] {
        let (sockets, forwarder) = silent(1).await;
        let (server, tally) = (sockets[0].local_addr().unwrap(), &forwarder.lasting.tally);
        let work = Work::new(tally);
        while !may && work.take(Transport::Udp) {}
        let packet = question();
        let asking = exchange::over_udp(server, &packet, &work);
        assert!(timeout(LIMIT, asking).await.is_err());
        let mut heard = 0;
        while sockets[0].try_recv(&mut [0; 512]).is_ok() {
            heard += 1;
        }
        assert_eq!(heard, datagrams);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_question_is_counted_and_takes_a_seat_where_too_many_do() {
    let (_sockets, forwarder) = silent(1).await;
    let (waiters, packet) = (Waiters::default(), question());
    let deadline = clock::now() + LIMIT;
    let ask = || Box::pin(told_to(&packet, &waiters, &forwarder, deadline));
    let short = Duration::from_millis(1);
    let mut first = ask();
    assert!(timeout(short, &mut first).await.is_err());
    assert_eq!(waiters.count(), 0);
    let mut second = ask();
    assert!(timeout(short, &mut second).await.is_err());
    assert_eq!(waiters.count(), 1);
    assert_eq!(forwarder.seats.available_permits(), MOST_SEATS - 1);
    // No room is left: it has a seat, as the question has.
    let room = &forwarder.lasting.waiters;
    let others = room.try_acquire_many(MOST_WAITERS as u32 - 1).unwrap();
    let mut third = ask();
    assert!(timeout(short, &mut third).await.is_err());
    assert_eq!(waiters.count(), 1);
    assert_eq!(forwarder.seats.available_permits(), MOST_SEATS - 2);
    // Half the seats are for those who ask.
    let half = MOST_SEATS as u32 / 2;
    let asking = forwarder.seats.try_acquire_many(half).unwrap();
    assert!(timeout(short, ask()).await.is_ok());
    drop((first, second, third, others, asking));
    assert_eq!(waiters.count(), 0);
    assert_eq!(room.available_permits(), MOST_WAITERS);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_tell_says_nothing_of_circles() {
    let (sockets, forwarder) = silent(1).await;
    let (hop, now) = ((sockets[0].local_addr().unwrap(), None), clock::now());
    let says = |told: Option<&[u8]>| {
        assert!(forwarder.health().is_to_be_probed(hop, now));
        let question = lock(&forwarder.probes).question(hop, std::iter::empty(), [1, 2], now);
        forwarder.probed(hop, &question.unwrap().0, told);
    };
    forwarder.health().loops(hop);
    let soon = now + Duration::from_secs(10);
    for silence in [None, Some(2), Some(4), Some(5)] {
        let reply = silence.map(|code| [0, 0, 0x80, code]);
        says(reply.as_ref().map(|reply| &reply[..]));
        assert!(forwarder.health().standing(hop.0).loops);
        assert!(forwarder.health().is_to_be_probed(hop, soon));
        forwarder
            .health()
            .kept_silent(hop, now - Duration::from_secs(10));
    }
    says(Some(&[0, 0, 0x80, 3]));
    assert!(!forwarder.health().standing(hop.0).loops);
    assert!(!forwarder.health().is_to_be_probed(hop, soon));
}

#[tokio::test(start_paused = true)]
async fn a_question_for_signatures_about_a_name_that_others_ask_for_is_free() {
    let (_sockets, forwarder) = silent(1).await;
    let now = clock::now();
    *forwarder.lasting.budget() = Budget::new(1, now);
    assert!(
        forwarder
            .lasting
            .budget()
            .take("127.0.0.1:9".parse().unwrap(), now)
    );
    let mut signed = edns(1_232, &[]);
    let flags = signed.len() - 4;
    signed[flags] = 0x80;
    let waiters = Waiters::default();
    let ask = || {
        told_to(
            &signed,
            &waiters,
            &forwarder,
            now + Duration::from_millis(50),
        )
    };
    assert!(matches!(ask().await, Forwarded::TurnedAway));
    keeps(&forwarder, 60, now);
    assert!(matches!(ask().await, Forwarded::Failed));
}

#[tokio::test]
async fn where_all_servers_of_the_system_send_questions_back_those_behind_them_are_asked() {
    let file = |what| {
        let name = format!("proconsul-{what}-{}.conf", std::process::id());
        std::env::temp_dir().join(name)
    };
    let files = [file("named"), file("behind")];
    std::fs::write(&files[0], "nameserver 127.0.0.53\n").unwrap();
    std::fs::write(&files[1], "nameserver 127.0.0.99\n").unwrap();
    let mut forwarder = forwarder(Upstreams::system());
    forwarder.system = Mutex::new(System::of(files.to_vec()));
    let forwarder = Arc::new(forwarder);
    let asked = || {
        let servers = forwarder.servers(NAME);
        servers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(asked(), ["127.0.0.53:53"]);
    let looping = "127.0.0.53:53".parse().unwrap();
    forwarder.health().loops((looping, None));
    assert_eq!(asked(), ["127.0.0.99:53"]);
    for file in files {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn what_this_machine_is_short_of_is_no_failure_of_an_upstream() {
    for (number, ours) in [
        (24, true),
        (23, true),
        (105, true),
        (111, false),
        (110, false),
    ] {
        let error = io::Error::from_raw_os_error(number);
        assert_eq!(is_our_own(&error), ours, "{error}");
    }
    assert!(!is_our_own(&io::ErrorKind::InvalidData.into()));
}
