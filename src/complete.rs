//! **Pure.** Is this reply the whole set?
//!
//! Consul cuts a reply that is too long and does not say so: TC stays clear
//! unless the agent has `enable_truncate` (Consul docs: DNS configuration). So
//! wholeness has to be proven from what can be seen. How the agent cuts an SRV
//! reply:
//!
//! 1. over TCP it first keeps at most 1,024 SRV records;
//! 2. while the message is over the limit (TCP: 65,523 bytes; UDP: the client's
//!    EDNS size), it drops answers from the end. When it was over by more than
//!    100 bytes it keeps as many as fit, otherwise it drops just one;
//! 3. after the first drop the additional section is made anew: one address a
//!    target, **no TXT**.
//!
//! Step 3 makes size alone a trap. A set whose TXT records push it over the limit
//! by a few bytes loses one instance *and* all its TXT, and the reply that is sent
//! may be half the limit long. It looks roomy, and it is cut. (Measured on Consul
//! 1.8.7: of 43 instances 42 over EDNS, of 610 instances 609 over TCP, in 38,721
//! bytes.) What follows:
//!
//! | seen | verdict |
//! | --- | --- |
//! | TC set | cut |
//! | our odd EDNS size is not echoed | unproven: another name server stands between, and it may have been given a subset |
//! | 1,024 records or more | cut |
//! | a TXT record in the additional section | **whole**: the first cut would have removed it |
//! | less than [`ONE_MORE`] below the limit | cut, perhaps |
//! | none of these | unproven: nodes without metadata look like a cut reply |
//!
//! Two unproven replies prove each other when they were cut to limits that are
//! far apart, because one set cannot be just over both ([`second_opinion`]).

use std::fmt;

use crate::endpoint::Transport;

/// Longest message that Consul sends over TCP, in bytes.
pub(crate) const TCP_LIMIT: usize = 65_523;

/// Most SRV records that Consul sends over TCP.
const TCP_SRV_LIMIT: usize = 1_024;

/// No SRV record with its address record is longer than this, in bytes: owner
/// pointer, 10 bytes of record header, 6 of SRV, a target of 255, and a record
/// with an owner of 255 and an IPv6 address come to 554. Rounded up, because an
/// agent's own reckoning is a few bytes off.
const ONE_MORE: usize = 1_024;

/// Two limits that are at least this far apart cannot both be passed by less
/// than the 100 bytes of rule 2, even though the order of records, and with it
/// their compressed length, changes from reply to reply.
const FAR_APART: usize = 4_096;

/// What can be seen of one SRV reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) transport: Transport,
    /// The size that it was cut to, in bytes.
    pub(crate) limit: usize,
    /// Its own size, in bytes.
    pub(crate) size: usize,
    pub(crate) instances: usize,
    /// A TXT record stands in its additional section.
    pub(crate) text: bool,
    /// TC.
    pub(crate) truncated: bool,
    /// Its OPT record repeats the size that we sent.
    pub(crate) echoed: bool,
}

/// Whether a reply is the whole set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    /// More can be had over another transport.
    Cut(Reason),
    /// Nothing says that it is cut, and nothing that it is not.
    Unproven(Reason),
}

/// Why a reply is not known to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Truncated,
    RecordLimit,
    SizeLimit,
    NoText,
    Forwarded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "TC is set",
            Self::RecordLimit => "as many records as Consul sends at most",
            Self::SizeLimit => "so near the size limit that more may have been cut",
            Self::NoText => "no node metadata in the reply to prove that nothing was cut",
            Self::Forwarded => "came through another name server, which may hold a subset",
        })
    }
}

/// The table of the module documentation.
pub(crate) fn judge(seen: &Seen) -> Verdict {
    if seen.truncated {
        Verdict::Cut(Reason::Truncated)
    } else if !seen.echoed {
        Verdict::Unproven(Reason::Forwarded)
    } else if seen.instances >= TCP_SRV_LIMIT {
        Verdict::Cut(Reason::RecordLimit)
    } else if seen.text {
        Verdict::Whole
    } else if seen.size + ONE_MORE > seen.limit {
        Verdict::Cut(Reason::SizeLimit)
    } else {
        Verdict::Unproven(Reason::NoText)
    }
}

/// Whether `later`, unproven by itself, is proven whole by an `earlier` reply to
/// the same question: both roomy, neither smaller, limits far apart.
pub(crate) fn second_opinion(earlier: &Seen, later: &Seen) -> bool {
    let unproven = |seen| judge(seen) == Verdict::Unproven(Reason::NoText);
    unproven(earlier)
        && unproven(later)
        && earlier.limit.abs_diff(later.limit) >= FAR_APART
        && later.instances >= earlier.instances
}

/// Whether a reply to any other question (a node, a pointer) holds all there is.
pub(crate) fn holds_all(truncated: bool, size: usize, limit: usize) -> bool {
    !truncated && size + ONE_MORE <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(limit: usize, size: usize, instances: usize) -> Seen {
        Seen {
            transport: Transport::Udp,
            limit,
            size,
            instances,
            text: false,
            truncated: false,
            echoed: true,
        }
    }

    fn tcp(size: usize, instances: usize) -> Seen {
        Seen {
            transport: Transport::Tcp,
            ..udp(TCP_LIMIT, size, instances)
        }
    }

    #[test]
    fn node_text_proves_that_nothing_was_cut() {
        let seen = Seen {
            text: true,
            ..udp(4093, 4090, 40)
        };
        assert_eq!(judge(&seen), Verdict::Whole);
    }

    #[test]
    fn a_reply_that_fills_its_limit_is_cut() {
        assert_eq!(judge(&udp(4093, 4047, 71)), Verdict::Cut(Reason::SizeLimit));
        assert_eq!(judge(&tcp(65_470, 997)), Verdict::Cut(Reason::SizeLimit));
    }

    #[test]
    fn the_largest_count_that_tcp_carries_is_cut_even_where_it_is_short() {
        let seen = Seen {
            text: true,
            ..tcp(46_000, 1_024)
        };
        assert_eq!(judge(&seen), Verdict::Cut(Reason::RecordLimit));
    }

    #[test]
    fn tc_is_believed_whatever_else_is_seen() {
        let seen = Seen {
            text: true,
            truncated: true,
            ..udp(4093, 300, 3)
        };
        assert_eq!(judge(&seen), Verdict::Cut(Reason::Truncated));
    }

    #[test]
    fn a_roomy_reply_without_node_text_is_not_believed_alone() {
        // 42 instances with TXT come to 4,100 bytes: one is dropped with all TXT,
        // and 41 are sent in 2,400.
        assert_eq!(
            judge(&udp(4093, 2_400, 41)),
            Verdict::Unproven(Reason::NoText)
        );
    }

    #[test]
    fn a_reply_through_a_forwarder_proves_nothing() {
        let seen = Seen {
            echoed: false,
            text: true,
            ..tcp(300, 3)
        };
        assert_eq!(judge(&seen), Verdict::Unproven(Reason::Forwarded));
        assert!(!second_opinion(&udp(4093, 300, 3), &seen));
    }

    #[test]
    fn two_roomy_replies_with_limits_far_apart_prove_each_other() {
        assert!(second_opinion(&udp(4093, 900, 12), &tcp(900, 12)));
        assert!(second_opinion(&udp(4093, 2_400, 41), &tcp(2_450, 42)));
        assert!(second_opinion(&tcp(6_000, 100), &udp(60_000, 6_000, 100)));
    }

    #[test]
    fn a_larger_earlier_reply_proves_that_the_later_one_lost_something() {
        assert!(!second_opinion(&udp(4093, 2_500, 42), &tcp(2_400, 41)));
        assert!(!second_opinion(&udp(4093, 4_040, 70), &tcp(4_040, 70)));
        assert!(!second_opinion(&tcp(900, 12), &tcp(900, 12)));
    }
}
