//! Requests to the counter server.
//!
//! What holds: the pieces in which a request comes change nothing; its arguments lie in it, in order;
//! commands that a client wrote come back as they were; a number is what Rust reads, or refused.

use super::input::Input;

#[allow(
    dead_code,
    unused_imports,
    missing_docs,
    missing_debug_implementations,
    reason = "a part of the example, of which this target needs the half that reads"
)]
#[path = "../../examples/counter/resp.rs"]
mod product;

use product::{MAX_ARGS, Parser, ProtocolError, number};

type Request = Vec<Vec<u8>>;

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let pieces = input.bytes(3).to_vec();
    let bytes = match input.flag() {
        true => input.rest().to_vec(),
        false => written(&mut input),
    };
    let whole = read(&bytes, &[]);
    assert_eq!(read(&bytes, &pieces), whole, "in pieces {pieces:?}");
    for argument in whole.0.iter().flatten() {
        let text = std::str::from_utf8(argument).unwrap_or("none");
        // Redis takes no plus sign, no leading zeros and no negative zero; Rust does.
        let plain = text.parse().ok().filter(|n: &i64| n.to_string() == text);
        assert_eq!(number(argument), plain, "{text:?}");
    }
}

/// All requests, and what is wrong behind them.
fn read(bytes: &[u8], pieces: &[u8]) -> (Vec<Request>, Result<(), ProtocolError>) {
    let (mut parser, mut requests, mut buffer) = (Parser::default(), Vec::new(), Vec::new());
    let (mut rest, mut sizes) = (bytes, pieces.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |&n| 1 + usize::from(n));
        let (piece, later) = rest.split_at(size.min(rest.len()));
        buffer.extend_from_slice(piece);
        rest = later;
        while !buffer.is_empty() {
            let used = match parser.parse(&buffer) {
                Ok(Some(used)) => used,
                Ok(None) => break,
                Err(error) => return (requests, Err(error)),
            };
            assert!(0 < used && used <= buffer.len());
            let ranges = parser.args();
            assert!(ranges.len() <= MAX_ARGS);
            assert!(
                ranges
                    .iter()
                    .all(|range| range.start <= range.end && range.end <= used)
            );
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            requests.push(ranges.iter().map(|r| buffer[r.clone()].to_vec()).collect());
            parser.next();
            buffer.drain(..used);
        }
    }
    (requests, Ok(()))
}

/// Commands as a client writes them, which must come back as they are.
fn written(input: &mut Input<'_>) -> Vec<u8> {
    let (mut requests, mut bytes) = (Vec::<Request>::new(), Vec::new());
    while !input.is_empty() && requests.len() < 32 {
        let count = input.below(5);
        let request: Request = (0..count)
            .map(|_| {
                let len = input.below(40);
                input.bytes(len).to_vec()
            })
            .collect();
        bytes.extend_from_slice(format!("*{count}\r\n").as_bytes());
        for argument in &request {
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        requests.push(request);
    }
    assert_eq!(read(&bytes, &[]), (requests, Ok(())));
    bytes
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let streams: [&[u8]; 7] = [
        b"*3\r\n$6\r\nINCRBY\r\n$1\r\na\r\n$2\r\n-7\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
        b"PING\r\nset \"a b\" 'c'\r\n\r\n*0\r\n*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$4\r\nECHO\r\n$20\r\n-9223372036854775808\r\n",
        b"*-1\r\n*1\r\n$-1\r\n",
        b"*1\r\n+PING\r\n",
        b"*65537\r\n",
        b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$524289\r\n",
    ];
    let raw = streams.map(|stream| [&[2, 0, 9, 1][..], stream].concat());
    let made = b"\x02\x05\x01\x00\x02\x04INCR\x03abc\x01\x04PING\x03\x03SET\x01k\x02-1".to_vec();
    raw.into_iter().chain([made]).collect()
}
