//! Proposals on their way from a follower to the leader: `token u64 | len u32 | command`, one after the other. The
//! highest bit of the length says that it is a query, which is to be answered where it is applied and changes nothing.
//!
//! A damaged or hostile body yields the commands before the damage and ends; the frame's checksum has been verified
//! before, so this is a second fence, not the first.

const HEAD: usize = 12;
/// Far beyond `Config::max_entry_bytes`.
const IS_QUERY: u32 = 1 << 31;

pub(crate) fn push(into: &mut Vec<u8>, token: u64, is_query: bool, command: &[u8]) {
    let flag = if is_query { IS_QUERY } else { 0 };
    into.extend_from_slice(&token.to_le_bytes());
    into.extend_from_slice(&(command.len() as u32 | flag).to_le_bytes());
    into.extend_from_slice(command);
}

/// The proposals of a body: `(token, whether it is a query, bytes)`.
pub(crate) fn commands(mut body: &[u8]) -> impl Iterator<Item = (u64, bool, &[u8])> {
    std::iter::from_fn(move || {
        let (token, rest) = body.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        let (command, rest) = rest.split_at_checked((len & !IS_QUERY) as usize)?;
        body = rest;
        Some((u64::from_le_bytes(*token), len & IS_QUERY != 0, command))
    })
}

/// Whether a body holds whole proposals, none longer than `max`, and nothing else.
pub(crate) fn well_formed(body: &[u8], max: usize) -> bool {
    let mut bytes = 0;
    for (_, _, command) in commands(body) {
        if command.len() > max {
            return false;
        }
        bytes += HEAD + command.len();
    }
    bytes == body.len()
}

/// The tokens of a refusal.
pub(crate) fn tokens(body: &[u8]) -> impl Iterator<Item = u64> {
    body.chunks_exact(8)
        .map(|token| u64::from_le_bytes(token.try_into().expect("chunks of eight")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_comes_out_in_order() {
        let mut body = Vec::new();
        push(&mut body, 7, false, b"seven");
        push(&mut body, 8, true, b"");
        assert_eq!(
            commands(&body).collect::<Vec<_>>(),
            [(7, false, &b"seven"[..]), (8, true, b"")]
        );
        assert!(well_formed(&body, 5));
        assert!(!well_formed(&body, 4), "longer than the limit");
    }

    #[test]
    fn a_cut_body_is_not_well_formed_and_does_not_panic() {
        let mut body = Vec::new();
        push(&mut body, 7, false, b"seven");
        push(&mut body, 8, true, b"eight");
        let whole = HEAD + 5;
        for cut in 0..body.len() {
            assert_eq!(
                well_formed(&body[..cut], 100),
                cut == 0 || cut == whole,
                "cut at {cut}"
            );
        }
    }
}
