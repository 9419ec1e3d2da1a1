//! Proposals on their way from a follower to the leader: `token u64 | len u32 | command`, one after the other.
//!
//! A damaged or hostile body yields the commands before the damage and ends; the frame's checksum has been verified
//! before, so this is a second fence, not the first.

const HEAD: usize = 12;

pub(crate) fn push(into: &mut Vec<u8>, token: u64, command: &[u8]) {
    into.extend_from_slice(&token.to_le_bytes());
    into.extend_from_slice(&(command.len() as u32).to_le_bytes());
    into.extend_from_slice(command);
}

/// The proposals of a body.
pub(crate) fn commands(mut body: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let (token, rest) = body.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (command, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        body = rest;
        Some((u64::from_le_bytes(*token), command))
    })
}

/// Whether a body holds whole proposals, none longer than `max`, and nothing else.
pub(crate) fn well_formed(body: &[u8], max: usize) -> bool {
    let mut bytes = 0;
    for (_, command) in commands(body) {
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
        push(&mut body, 7, b"seven");
        push(&mut body, 8, b"");
        assert_eq!(
            commands(&body).collect::<Vec<_>>(),
            [(7, &b"seven"[..]), (8, b"")]
        );
        assert!(well_formed(&body, 5));
        assert!(!well_formed(&body, 4), "longer than the limit");
    }

    #[test]
    fn a_cut_body_is_not_well_formed_and_does_not_panic() {
        let mut body = Vec::new();
        push(&mut body, 7, b"seven");
        push(&mut body, 8, b"eight");
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
