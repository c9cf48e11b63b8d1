//! **Pure.** Names between their text and hickory's form. hickory's own parser
//! refuses names that the wire carries, and its printer escapes in octal: the
//! text is [`crate::name`]'s.

use hickory_proto::rr::Name;

use crate::name;

/// `None` for what the wire does not carry.
pub(crate) fn from_text(text: &str) -> Option<Name> {
    let append = |name: Name, label: &[u8]| name.append_label(label).ok();
    (name::labels(text)?.iter()).try_fold(Name::root(), |name, label| append(name, label))
}

/// With its final dot.
pub(crate) fn to_text(name: &Name) -> String {
    name::text(name.iter())
}
