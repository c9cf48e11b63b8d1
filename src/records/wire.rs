//! **Pure.** The shape of a message, looked at in one pass before a record is made of
//! it. It asks for no memory, and takes time in proportion to the message.
//!
//! | of | is demanded |
//! | --- | --- |
//! | the header | as many records as it counts, and nothing left over |
//! | a name | labels of at most 63 bytes, and at most 255 in all (RFC 1035, section 2.3.4) |
//! | a pointer | leads back, to before the name that it ends, and not into the header: otherwise names would go round |
//! | all pointers | at most one to follow for every two bytes of the message: a long chain that each of many records begins would take the square of their number |
//! | all names | written out, no longer than [`MOST_LETTERS`] times the message: many records of one long name would fill the memory |
//! | a signature | is the last of the additional section (RFC 8945, section 5.1; RFC 2931, section 3.1) |
//! | EDNS options | end where their record does, and are [`MOST_OPTIONS`] at most |
//! | a cookie, a subnet | has the length of one (RFC 7873, section 5.2.2; RFC 7871, section 7.1.2) |
//!
//! What the data of a record must be like is its reader's to say.

/// Length of a header.
const HEADER: usize = 12;

/// Longest name on the wire.
const NAME: usize = 255;

/// Bytes of all names together, written out, for each byte of the message. A set of
/// addresses of the longest name has 16.
const MOST_LETTERS: usize = 32;

/// EDNS options of one message. Nobody has use for more.
const MOST_OPTIONS: usize = 32;

pub(crate) const EDNS_SUBNET: u16 = 8;
const EDNS_COOKIE: u16 = 10;

const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const MX: u16 = 15;
const SIG: u16 = 24;
const SRV: u16 = 33;
const NAPTR: u16 = 35;
const OPT: u16 = 41;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const TSIG: u16 = 250;
const ANAME: u16 = 65_305;

/// A message that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// It has a signature (TSIG or SIG(0)).
    pub(crate) is_signed: bool,
    /// Where the size in its OPT record stands.
    pub(crate) size_at: Option<usize>,
    /// Labels and pointers looked at.
    pub(crate) steps: usize,
}

/// Looks at a whole message. `None`: it is malformed.
pub(crate) fn shape(message: &[u8]) -> Option<Shape> {
    let mut walk = Walk {
        message,
        at: HEADER,
        pointers: message.len() / 2,
        letters: message.len().saturating_mul(MOST_LETTERS),
        steps: 0,
        is_signed: false,
        size_at: None,
    };
    for _ in 0..pair(message, 4)? {
        walk.name()?;
        walk.skip(4)?;
    }
    for section in [6, 8] {
        for _ in 0..pair(message, section)? {
            walk.record()?;
        }
    }
    if walk.is_signed {
        return None;
    }
    for _ in 0..pair(message, 10)? {
        walk.record()?;
    }
    (walk.at == message.len()).then_some(Shape {
        is_signed: walk.is_signed,
        size_at: walk.size_at,
        steps: walk.steps,
    })
}

/// Tells the code of each option in the data of an OPT record. `None`: they are
/// malformed, or too many.
pub(crate) fn options(data: &[u8], mut tell: impl FnMut(u16)) -> Option<()> {
    let mut rest = data;
    for _ in 0..MOST_OPTIONS {
        if rest.is_empty() {
            break;
        }
        let (code, length) = (pair(rest, 0)?, usize::from(pair(rest, 2)?));
        let (data, next) = rest.get(4..)?.split_at_checked(length)?;
        let is_good = match code {
            EDNS_COOKIE => matches!(length, 8 | 16..=40),
            // As many bytes as the bits of the prefix need.
            EDNS_SUBNET => length.checked_sub(4)? == usize::from(data.get(2)?.div_ceil(8)),
            _ => true,
        };
        if !is_good {
            return None;
        }
        tell(code);
        rest = next;
    }
    rest.is_empty().then_some(())
}

struct Walk<'a> {
    message: &'a [u8],
    at: usize,
    /// That may yet be followed.
    pointers: usize,
    /// Bytes that names may yet have.
    letters: usize,
    steps: usize,
    is_signed: bool,
    size_at: Option<usize>,
}

impl Walk<'_> {
    /// Passes over bytes that are there.
    fn skip(&mut self, length: usize) -> Option<()> {
        self.at = self.at.checked_add(length)?;
        (self.at <= self.message.len()).then_some(())
    }

    fn number(&mut self) -> Option<u16> {
        let number = pair(self.message, self.at)?;
        self.skip(2)?;
        Some(number)
    }

    /// Follows a name to its end, and stands behind the place where it began.
    fn name(&mut self) -> Option<()> {
        // The part that is read, from where it starts to where the last one did.
        let (mut start, mut end) = (self.at, self.message.len());
        let (mut at, mut length, mut behind) = (start, 0_usize, None);
        loop {
            self.steps = self.steps.saturating_add(1);
            match usize::from(*self.message.get(..end)?.get(at)?) {
                0 => {
                    self.at = behind.or_else(|| at.checked_add(1))?;
                    return Some(());
                }
                label @ 1..=63 => {
                    let bytes = label.checked_add(1)?;
                    at = at.checked_add(bytes)?;
                    length = length.checked_add(bytes)?;
                    self.letters = self.letters.checked_sub(bytes)?;
                    // Its last byte is the root's.
                    if length >= NAME {
                        return None;
                    }
                }
                64..=191 => return None,
                _ => {
                    let to = usize::from(pair(self.message, at)? & 0x3FFF);
                    if !(HEADER..start).contains(&to) {
                        return None;
                    }
                    self.pointers = self.pointers.checked_sub(1)?;
                    behind = behind.or_else(|| at.checked_add(2));
                    (end, start, at) = (start, to, to);
                }
            }
        }
    }

    fn record(&mut self) -> Option<()> {
        if self.is_signed {
            return None;
        }
        self.name()?;
        let kind = self.number()?;
        if kind == OPT {
            self.size_at = Some(self.at);
        }
        // Class and TTL.
        self.skip(6)?;
        let length = usize::from(self.number()?);
        let end = self.at.checked_add(length)?;
        let data = self.message.get(self.at..end)?;
        self.is_signed |= matches!(kind, TSIG | SIG);
        if kind == OPT {
            options(data, |_| {})?;
        } else if length > 0 {
            self.names_within(kind)?;
            if self.at > end {
                return None;
            }
        }
        self.at = end;
        Some(())
    }

    /// Follows the names in the data of a record.
    fn names_within(&mut self, kind: u16) -> Option<()> {
        match kind {
            NS | CNAME | PTR | TSIG | ANAME => self.name(),
            SOA => self.name().and_then(|()| self.name()),
            MX | SVCB | HTTPS => self.skip(2).and_then(|()| self.name()),
            SRV => self.skip(6).and_then(|()| self.name()),
            NAPTR => {
                self.skip(4)?;
                for _ in 0..3 {
                    let string = usize::from(*self.message.get(self.at)?);
                    self.skip(1)?;
                    self.skip(string)?;
                }
                self.name()
            }
            _ => Some(()),
        }
    }
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*two))
}

#[cfg(test)]
pub(crate) mod hostile;
#[cfg(test)]
mod tests;
