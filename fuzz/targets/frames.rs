//! Frames of the network, whatever arrives and in whatever pieces.
//!
//! What holds: the pieces in which bytes come change nothing, neither the frames nor the error that
//! ends them; a connection's buffer never grows over the limit; a frame that was written is read back
//! as it was; a greeting that is understood says the same when it is written again.

use net::HEADER_BYTES;
use net::fuzzing::{OwnedFrame, Stream, decode_all};

use super::input::Input;

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let buffer = HEADER_BYTES + input.below(300);
    let limit = HEADER_BYTES.max(usize::from(input.u16()));
    let covers_body = input.flag();
    let pieces = input.bytes(4).to_vec();
    let bytes = match input.flag() {
        true => input.rest().to_vec(),
        false => written(&mut input, limit, covers_body),
    };

    let (frames, end) = decode_all(&bytes, limit);
    for frame in &frames {
        assert!(frame.encode(false).len() <= limit, "longer than {limit}");
        if let Some(head) = frame.greeting() {
            let mut again = frame.clone();
            again.head = head.clone();
            assert_eq!(again.greeting(), Some(head), "{frame:?}");
        }
    }

    let mut stream = Stream::new(buffer, limit);
    let (mut received, mut rest, mut outcome) = (Vec::new(), &*bytes, Ok(()));
    let mut sizes = pieces.iter().cycle();
    while outcome.is_ok() && !rest.is_empty() {
        let size = sizes.next().map_or(1, |&size| 1 + usize::from(size));
        let (piece, later) = rest.split_at(size.min(rest.len()));
        outcome = stream.receive(piece, &mut received);
        rest = later;
        let most = buffer.max(limit);
        assert!(stream.capacity() <= most, "{} > {most}", stream.capacity());
    }
    assert_eq!(received, frames);
    // A stream looks at nothing before a whole header is there.
    let taken: usize = frames.iter().map(|frame| frame.encode(false).len()).sum();
    if bytes.len() - taken >= HEADER_BYTES {
        assert_eq!(outcome, end);
    }
}

/// Sound frames one behind the other, which must come back as they are.
fn written(input: &mut Input<'_>, limit: usize, covers_body: bool) -> Vec<u8> {
    let (mut frames, mut bytes) = (Vec::new(), Vec::new());
    while !input.is_empty() && frames.len() < 64 {
        let (group, kind) = (input.u32(), input.byte());
        let (head, body) = (input.below(80), input.below(700));
        let frame = OwnedFrame {
            group,
            kind,
            head: input.bytes(head).to_vec(),
            body: input.bytes(body).to_vec(),
        };
        let encoded = frame.encode(covers_body);
        if encoded.len() <= limit {
            bytes.extend_from_slice(&encoded);
            frames.push(frame);
        }
    }
    assert_eq!(decode_all(&bytes, limit), (frames, Ok(())));
    bytes
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frame = |kind, head: &[u8], body: &[u8]| OwnedFrame {
        group: 0,
        kind,
        head: head.to_vec(),
        body: body.to_vec(),
    };
    let mut hello = b"RINGRAFT\x01\0\x01\0\0\0\0\0".to_vec();
    for value in [0xC1_u64, 1, 100, 2] {
        hello.extend_from_slice(&value.to_le_bytes());
    }
    let mut refuse = vec![7];
    refuse.extend_from_slice(&[9; 16]);
    let frames = [
        frame(0xF0, &hello, b"").encode(false),
        frame(0xF1, &refuse, b"").encode(false),
        frame(0xF2, b"", b"").encode(false),
        frame(3, &[0; 48], &[0xAB; 200]).encode(false),
        frame(9, &[1; 16], b"covered").encode(true),
    ];
    // Buffer, limit, no checksum over bodies, pieces, and what follows is the stream itself.
    let knobs = |pieces: [u8; 4]| [&[40, 0, 0, 16, 0][..], &pieces, &[1]].concat();
    let mut seeds: Vec<_> = frames
        .iter()
        .map(|frame| [&knobs([3, 0, 7, 60])[..], frame].concat())
        .collect();
    seeds.push([&knobs([255; 4])[..], &frames.concat()].concat());
    let mut damaged = frames.concat();
    damaged[70] ^= 4;
    seeds.push([&knobs([15; 4])[..], &damaged].concat());
    // Frames that the target itself writes.
    let parts = [&[1, 0, 0, 0, 7, 5, 20, 0][..], b"heads", &[0x5A; 20]].concat();
    seeds.push([&[40, 0, 0, 16, 1, 2, 3, 4, 5, 0][..], &parts, &parts].concat());
    seeds
}
