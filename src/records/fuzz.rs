//! **Pure.** The rule of reading replies, for the fuzzer.

use std::{collections::HashSet, net::IpAddr};

use hickory_proto::rr::{RData, RecordType};

use super::{endpoints, read::Asks, wire_name::to_text};
use crate::{
    name::{ConsulName, Domain, Target, classify_target},
    source::dns::message::{Query, decode},
};

/// A reply is accepted only if it answers the question that was sent, and gives
/// no address that it does not hold itself. The input is a reply whole, and also
/// what follows the question in one.
pub fn reply(bytes: &[u8]) {
    let zones = [Domain::default()];
    for text in [
        "web",
        "host1.node.consul",
        "10.0.0.1",
        "consul",
        "web.virtual.consul",
    ] {
        let name: ConsulName = text.parse().expect("a plain name");
        let asks = Asks::of(&name);
        let query = Query::new(&name.to_string(), asks.kind(), 4093).expect("a plain name");
        let sent = query.with_id(0x1234);
        let framed = frame(&sent, bytes);
        for reply in [bytes, &framed] {
            if query.is_answered_by(0x1234, reply).is_err() {
                continue;
            }
            let Ok(message) = decode(reply) else { continue };
            assert_eq!(message.metadata.id, 0x1234);
            assert_eq!(message.queries.len(), 1);
            assert_eq!(message.queries[0].query_type(), asks.kind());
            assert_eq!(
                message.queries[0].name().to_ascii().to_lowercase(),
                name.to_string()
            );
            let Some((found, _)) = asks.read(&message, &zones) else {
                continue;
            };
            let mut held: HashSet<IpAddr> = HashSet::new();
            for record in message.answers.iter().chain(&message.additionals) {
                held.extend(record.data.ip_addr());
                if let (RData::SRV(srv), RecordType::SRV) = (&record.data, asks.kind())
                    && let Target::Address(address) = classify_target(&to_text(&srv.target), &zones)
                {
                    held.insert(address);
                }
            }
            for endpoint in endpoints(&found, &name.to_string()) {
                assert!(
                    held.contains(&endpoint.address),
                    "{endpoint} was told by nobody"
                );
            }
        }
    }
}

/// The question as a reply, with the sections that the input brings: its first
/// byte says how many records each has.
fn frame(sent: &[u8], bytes: &[u8]) -> Vec<u8> {
    let (&counts, records) = bytes.split_first().unwrap_or((&0, &[]));
    let opt = 11;
    let mut framed = sent[..sent.len() - opt].to_vec();
    framed[2] |= 0x80;
    framed[7] = counts & 7;
    framed[9] = counts >> 3 & 3;
    framed[11] = counts >> 5;
    framed.extend_from_slice(records);
    framed
}
