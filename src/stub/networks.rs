//! **Pure.** Who may have long replies by datagram. Whoever sends a datagram may write another's
//! address on it, and who bears that address gets the reply (RFC 5358): so clients outside of
//! the networks that are trusted get no more than three times what they sent, and what is longer
//! over TCP, which nobody speaks for somebody else.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::shortcut::{OPT, Way, write_opt};
use crate::error::Error;

/// Most bytes of a reply for each of the question.
const TIMES: usize = 3;

/// Bytes of a header.
const HEADER: usize = 12;

/// TC, in a header's third byte.
const CUT: u8 = 0x02;

/// This machine, and what routers of the Internet lead nowhere: RFC 1918, 3927, 4193, 4291, 6598.
const OWN: [&str; 9] = [
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
    "fe80::/10",
];

/// Networks whose clients may have replies by UDP as long as they can take, at most 1,232 bytes
/// and on this machine 4,096, as `serve --trust` takes them. By default this machine, private and
/// link-local networks.
///
/// ```
/// use proconsul::stub::Networks;
///
/// let networks = Networks::parse(["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"])?;
/// # Ok::<(), proconsul::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(Box<[IpNet]>);

/// Networks that may become others while replies are sent.
#[derive(Debug, Default)]
pub(super) struct Trusted(ArcSwap<Networks>);

impl Trusted {
    /// From the next reply on it is these.
    pub(super) fn set(&self, networks: Networks) {
        self.0.store(Arc::new(networks));
    }

    /// The reply to a datagram as its client may have it now.
    pub(super) fn cut<'a>(
        &self,
        question: &[u8],
        reply: &'a [u8],
        client: SocketAddr,
    ) -> Cow<'a, [u8]> {
        self.0.load().cut(question, reply, client)
    }
}

impl Networks {
    /// Reads networks as `10.0.0.0/8`, and addresses as networks of one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for the first that is neither.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let network = |text: T| {
            let text = text.as_ref();
            let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
            let network = text.parse::<IpNet>().ok().or_else(one);
            network.ok_or_else(|| {
                let text = text.escape_debug();
                let wrong =
                    format!("{text} is no network: write it as 10.0.0.0/8 or 2001:db8::/32");
                Error::invalid_setting(wrong)
            })
        };
        texts
            .into_iter()
            .map(network)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn has(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.0.iter().any(|network| network.contains(&client))
    }

    /// The reply to a datagram as its client may have it: whole, or cut to the question.
    fn cut<'a>(&self, question: &[u8], reply: &'a [u8], client: SocketAddr) -> Cow<'a, [u8]> {
        let most = |way: Way| usize::from(way.most());
        let of_strangers = TIMES
            .saturating_mul(question.len())
            .min(most(Way::Elsewhere));
        let is_trusted = || self.has(client.ip());
        let fits = reply.len() <= of_strangers
            || reply.len() <= most(Way::udp(client.ip())) && is_trusted();
        if fits {
            return Cow::Borrowed(reply);
        }
        Cow::Owned(brief(question, reply).unwrap_or_default())
    }
}

impl Default for Networks {
    fn default() -> Self {
        Self(OWN.iter().filter_map(|own| own.parse().ok()).collect())
    }
}

/// The reply without its records: its client asks again over TCP.
fn brief(question: &[u8], reply: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER;
    // A question's name is written out.
    while let length @ 1..=63 = *reply.get(end)? {
        end = end.checked_add(usize::from(length))?.checked_add(1)?;
    }
    // The root, type and class.
    let end = end.checked_add(5)?;
    let mut brief = reply.get(..end)?.to_vec();
    *brief.get_mut(2)? |= CUT;
    brief.get_mut(6..HEADER)?.fill(0);
    let speaks_edns = question.get(10..HEADER)? != [0, 0];
    if speaks_edns {
        *brief.get_mut(11)? = 1;
        brief.resize(end.checked_add(OPT)?, 0);
        write_opt(Way::Elsewhere.most(), None, brief.get_mut(end..)?)?;
    }
    Some(brief)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: [u8; 21] = *b"ab\x01\x00\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";

    fn client(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4_242)
    }

    /// A reply to that question of so many bytes.
    fn reply(length: usize) -> Vec<u8> {
        let mut reply = QUESTION.to_vec();
        reply[2..12].copy_from_slice(&[0x85, 0x80, 0, 1, 0, 9, 0, 0, 0, 1]);
        reply.resize(length, 7);
        reply
    }

    #[test]
    fn by_default_only_addresses_that_the_internet_does_not_route_are_trusted() {
        let networks = Networks::default();
        assert_eq!(networks.0.len(), OWN.len());
        let trusted = [
            "127.8.9.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.9.9",
            "169.254.1.1",
            "100.127.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ];
        for own in trusted {
            assert!(networks.has(client(own).ip()), "{own}");
        }
        for strange in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "::ffff:9.9.9.9",
        ] {
            assert!(!networks.has(client(strange).ip()), "{strange}");
        }
    }

    #[test]
    fn strangers_get_three_times_what_they_sent_and_are_sent_to_tcp_for_more() {
        let networks = Networks::default();
        for (length, whole) in [(63, true), (64, false), (1_232, false)] {
            let reply = reply(length);
            let own = networks.cut(&QUESTION, &reply, client("10.0.0.1"));
            assert_eq!(own, reply);
            let strange = networks.cut(&QUESTION, &reply, client("192.0.2.1"));
            assert_eq!(*strange == *reply, whole, "{length}");
            assert!(strange.len() <= 3 * QUESTION.len());
        }
        // However long the question is.
        let long = [&QUESTION[..], &[0; 2_000]].concat();
        let strange = networks
            .cut(&long, &reply(1_233), client("192.0.2.1"))
            .len();
        assert_eq!(strange, QUESTION.len());
    }

    #[test]
    fn no_datagram_to_another_machine_is_longer_than_every_path_carries() {
        let networks = Networks::default();
        for (address, most) in [("127.0.0.1", 4_096), ("::1", 4_096), ("10.0.0.1", 1_232)] {
            for (length, whole) in [(most, true), (most + 1, false)] {
                let reply = reply(length);
                let own = networks.cut(&QUESTION, &reply, client(address));
                assert_eq!(*own == *reply, whole, "{length} to {address}");
                assert!(whole || own[2] & CUT != 0);
            }
        }
    }

    #[test]
    fn what_is_cut_holds_the_question_and_says_so() {
        let mut brief = QUESTION.to_vec();
        brief[2..12].copy_from_slice(&[0x87, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        let networks = Networks::parse(["10.0.0.0/8"]).unwrap();
        let cut = |question: &[u8]| {
            let reply = reply(100);
            networks
                .cut(question, &reply, client("127.0.0.1"))
                .into_owned()
        };
        assert_eq!(cut(&QUESTION), brief);
        let mut with_opt = QUESTION.to_vec();
        with_opt[11] = 1;
        with_opt.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        brief[11] = 1;
        brief.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cut(&with_opt), brief);
    }

    #[test]
    fn what_is_no_network_is_told() {
        for odd in ["", "10.0.0.0/33", "web", "10.0.0.0/8 ", "1.2.3"] {
            let error = Networks::parse([odd]).unwrap_err().to_string();
            assert!(error.contains("no network"), "{error}");
        }
        let one = Networks::parse(["192.0.2.1"]).unwrap();
        assert!(one.has(client("192.0.2.1").ip()) && !one.has(client("192.0.2.2").ip()));
    }
}
