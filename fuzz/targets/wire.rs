//! Heads of messages.
//!
//! What holds: a head is refused or understood, never a panic; what was understood and is written
//! again is understood as the same.

use ringraft::fuzzing::{message_heads, reread};

pub(super) fn check(data: &[u8]) {
    let Some((&kind, head)) = data.split_first() else {
        return;
    };
    let Some(first) = reread(kind, head) else {
        return;
    };
    assert_eq!(first.kind, kind, "{}", first.text);
    assert_eq!(first.head.len(), head.len(), "{}", first.text);
    let again = reread(first.kind, &first.head).expect("what was written is understood");
    assert_eq!(again, first);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let heads = message_heads().into_iter();
    heads
        .map(|(kind, head)| [&[kind][..], &head].concat())
        .collect()
}
