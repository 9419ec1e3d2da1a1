//! The Redis serialization protocol: requests in, replies out. <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//!
//! Requests come as arrays of bulk strings or as plain lines, in pieces of any size. What cannot be one is an error, after
//! which the connection ends, as in Redis.

use std::fmt;
use std::ops::Range;

/// Arguments of one request.
pub const MAX_ARGS: usize = 64 << 10;
/// Bytes of one argument, and of all of a request together.
pub const MAX_BULK: usize = 512 << 10;
pub const MAX_REQUEST: usize = 1 << 20;
/// A plain line, and the line that announces a length.
const MAX_LINE: usize = 64 << 10;
/// Arguments for which a parser keeps room.
const KEEP_ARGS: usize = 32;

/// Why bytes are no request. The text is what the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    InvalidArgCount,
    InvalidBulkLength,
    ExpectedBulk(u8),
    TooBigRequest,
    TooBigLine,
    UnbalancedQuotes,
    /// A backslash between quotes: Redis would take the argument for another text.
    Escape,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgCount => f.write_str("invalid multibulk length"),
            Self::InvalidBulkLength => f.write_str("invalid bulk length"),
            Self::ExpectedBulk(byte) => {
                let shown = if byte.is_ascii_graphic() {
                    *byte as char
                } else {
                    '?'
                };
                write!(f, "expected '$', got '{shown}'")
            }
            Self::TooBigRequest => f.write_str("too big request"),
            Self::TooBigLine => f.write_str("too big inline request"),
            Self::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            Self::Escape => f.write_str("escapes are not supported in inline requests"),
        }
    }
}

/// Finds requests in a buffer that grows at its end. Keeps where it stands, so that no byte is looked at twice.
#[derive(Debug, Default)]
pub struct Parser {
    /// Where the next thing begins, from the start of the request.
    at: usize,
    /// How far the line that begins there has been searched for its end.
    searched: usize,
    /// Arguments that are still to come; `None` before the first line is complete.
    missing: Option<usize>,
    /// The length of the argument that comes next, once known.
    bulk: Option<usize>,
    args: Vec<Range<usize>>,
}

impl Parser {
    /// Looks at a request that begins at the start of `buffer`. `Some(n)`: it is complete, in the first `n` bytes, and its
    /// arguments are in [`args`](Parser::args) (there may be none: an empty line) until [`next`](Parser::next).
    pub fn parse(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.missing.is_none() {
            if buffer.first().is_some_and(|&byte| byte != b'*') {
                return self.plain_line(buffer);
            }
            let Some(line) = self.line(buffer)? else {
                return Ok(None);
            };
            let count =
                number(&buffer[line.start + 1..line.end]).ok_or(ProtocolError::InvalidArgCount)?;
            if count > MAX_ARGS as i64 {
                return Err(ProtocolError::InvalidArgCount);
            }
            self.missing = Some(usize::try_from(count).unwrap_or(0));
        }
        while let Some(missing) = self.missing.filter(|&missing| missing > 0) {
            let length = match self.bulk {
                Some(length) => length,
                None => {
                    let Some(line) = self.line(buffer)? else {
                        return Ok(None);
                    };
                    match buffer.get(line.start) {
                        Some(b'$') => {}
                        other => {
                            return Err(ProtocolError::ExpectedBulk(
                                other.copied().unwrap_or(b'\r'),
                            ));
                        }
                    }
                    let length = number(&buffer[line.start + 1..line.end])
                        .and_then(|length| usize::try_from(length).ok())
                        .filter(|&length| length <= MAX_BULK)
                        .ok_or(ProtocolError::InvalidBulkLength)?;
                    if self.at + length > MAX_REQUEST {
                        return Err(ProtocolError::TooBigRequest);
                    }
                    *self.bulk.insert(length)
                }
            };
            if buffer.len() < self.at + length + 2 {
                return Ok(None);
            }
            if &buffer[self.at + length..self.at + length + 2] != b"\r\n" {
                return Err(ProtocolError::InvalidBulkLength);
            }
            self.args.push(self.at..self.at + length);
            self.at += length + 2;
            self.searched = self.at;
            self.bulk = None;
            self.missing = Some(missing - 1);
        }
        Ok(Some(self.at))
    }

    /// Where the arguments are, from the start of the request.
    pub fn args(&self) -> &[Range<usize>] {
        &self.args
    }

    /// The request has been dealt with.
    pub fn next(&mut self) {
        (self.at, self.searched, self.missing, self.bulk) = (0, 0, None, None);
        self.args.clear();
        if self.args.capacity() > KEEP_ARGS {
            self.args = Vec::new();
        }
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        self.args.capacity() * size_of::<Range<usize>>()
    }

    /// The next line without its end, if that is there.
    fn line(&mut self, buffer: &[u8]) -> Result<Option<Range<usize>>, ProtocolError> {
        let from = self.searched.max(self.at);
        let Some(end) = buffer[from..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map(|found| from + found)
        else {
            self.searched = buffer.len();
            if buffer.len() - self.at > MAX_LINE {
                return Err(if self.missing.is_none() {
                    ProtocolError::TooBigLine
                } else {
                    ProtocolError::InvalidBulkLength
                });
            }
            return Ok(None);
        };
        let start = self.at;
        (self.at, self.searched) = (end + 1, end + 1);
        let end = if end > start && buffer[end - 1] == b'\r' {
            end - 1
        } else {
            end
        };
        Ok(Some(start..end))
    }

    fn plain_line(&mut self, buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(line) = self.line(buffer)? else {
            return Ok(None);
        };
        let mut at = line.start;
        while at < line.end {
            if buffer[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let quote = Some(buffer[at]).filter(|byte| matches!(byte, b'"' | b'\''));
            let start = at + usize::from(quote.is_some());
            let is_end = |byte: u8| quote.map_or(byte.is_ascii_whitespace(), |quote| byte == quote);
            let end = buffer[start..line.end].iter().position(|&b| is_end(b));
            let end = end.map_or(line.end, |found| start + found);
            let arg = &buffer[start..end];
            match quote {
                // Redis reads quotes within an argument, too, and would take it for another text.
                None if arg.iter().any(|byte| matches!(byte, b'"' | b'\'')) => {
                    return Err(ProtocolError::UnbalancedQuotes);
                }
                None => at = end,
                Some(_) if arg.contains(&b'\\') => return Err(ProtocolError::Escape),
                Some(_) => {
                    at = end + 1;
                    let is_last = at == line.end;
                    if end == line.end || !(is_last || buffer[at].is_ascii_whitespace()) {
                        return Err(ProtocolError::UnbalancedQuotes);
                    }
                }
            }
            self.args.push(start..end);
            if self.args.len() > MAX_ARGS {
                return Err(ProtocolError::InvalidArgCount);
            }
        }
        self.missing = Some(0);
        Ok(Some(self.at))
    }
}

/// An integer as Redis takes it: no plus, no spaces, no leading zeros, within 64 bits.
pub fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] => return (!negative).then_some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    digits.iter().try_fold(0i64, |value, &digit| {
        let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        let value = value.checked_mul(10)?;
        if negative {
            value.checked_sub(digit)
        } else {
            value.checked_add(digit)
        }
    })
}

/// Writes replies, in the version of the protocol that the connection speaks.
#[derive(Debug)]
pub struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
    pub resp3: bool,
}

impl Writer<'_> {
    fn prefixed(&mut self, prefix: u8, value: i64) {
        self.out.push(prefix);
        self.out
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn simple(&mut self, text: &str) {
        self.out.push(b'+');
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// A line: what would break it becomes a space.
    pub fn error(&mut self, text: &str) {
        self.out.push(b'-');
        self.out.extend(text.bytes().map(|byte| {
            if byte == b'\r' || byte == b'\n' {
                b' '
            } else {
                byte
            }
        }));
        self.out.extend_from_slice(b"\r\n");
    }

    pub fn integer(&mut self, value: i64) {
        self.prefixed(b':', value);
    }

    pub fn bulk(&mut self, bytes: &[u8]) {
        self.prefixed(b'$', bytes.len() as i64);
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// A counter's value, which Redis stores as a string.
    pub fn value(&mut self, value: Option<i64>) {
        match value {
            Some(value) => self.bulk(itoa::Buffer::new().format(value).as_bytes()),
            None => self.null(),
        }
    }

    pub fn null(&mut self) {
        self.out
            .extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// What `EXEC` answers when a watched key has changed.
    pub fn null_array(&mut self) {
        self.out
            .extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    pub fn array(&mut self, len: usize) {
        self.prefixed(b'*', len as i64);
    }

    /// A map of `len` pairs; in the older version an array of twice as many.
    pub fn map(&mut self, len: usize) {
        if self.resp3 {
            self.prefixed(b'%', len as i64);
        } else {
            self.array(2 * len);
        }
    }

    /// Text for people; in the older version a string.
    pub fn verbatim(&mut self, text: &str) {
        if self.resp3 {
            self.prefixed(b'=', text.len() as i64 + 4);
            self.out.extend_from_slice(b"txt:");
            self.out.extend_from_slice(text.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.bulk(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What all requests of `bytes` say when they come in pieces of `step` bytes.
    fn requests(bytes: &[u8], step: usize) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let (mut parser, mut found, mut buffer) = (Parser::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(used) = parser.parse(&buffer)? {
                if used == 0 {
                    break;
                }
                found.push(
                    parser
                        .args()
                        .iter()
                        .map(|range| buffer[range.clone()].to_vec())
                        .collect(),
                );
                parser.next();
                buffer.drain(..used);
                if buffer.is_empty() {
                    break;
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn requests_in_pieces_of_any_size_are_the_same() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$5\r\na\r\nb \r\nPING\r\n*1\r\n$4\r\nPING\r\nset \"a b\" 'c'\n*0\r\n\r\n*2\r\n$4\r\nINCR\r\n$0\r\n\r\n";
        let whole = requests(bytes, bytes.len()).expect("well formed");
        assert_eq!(whole.len(), 7, "{whole:?}");
        assert_eq!(whole[0], [b"GET".to_vec(), b"a\r\nb ".to_vec()]);
        assert_eq!(whole[3], [b"set".to_vec(), b"a b".to_vec(), b"c".to_vec()]);
        for step in 1..bytes.len() {
            assert_eq!(
                requests(bytes, step).as_ref(),
                Ok(&whole),
                "in pieces of {step}"
            );
        }
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let error = |bytes: &[u8]| requests(bytes, 1).expect_err("not well formed");
        assert_eq!(error(b"*x\r\n"), ProtocolError::InvalidArgCount);
        assert_eq!(error(b"*99999999\r\n"), ProtocolError::InvalidArgCount);
        assert_eq!(error(b"*1\r\n+PING\r\n"), ProtocolError::ExpectedBulk(b'+'));
        assert_eq!(error(b"*1\r\n$-1\r\n"), ProtocolError::InvalidBulkLength);
        assert_eq!(
            error(b"*1\r\n$600000\r\n"),
            ProtocolError::InvalidBulkLength
        );
        assert_eq!(
            error(b"*1\r\n$4\r\nPINGxx"),
            ProtocolError::InvalidBulkLength
        );
        for quotes in ["\"a b", "\"a\"b 1", "a\"b\" 1", "'a'\"b\"", "it's 1", "\""] {
            let line = format!("set {quotes}\r\n");
            let error = error(line.as_bytes());
            assert_eq!(error, ProtocolError::UnbalancedQuotes, "{quotes}");
        }
        assert_eq!(error(b"set \"a\\x41\" 1\r\n"), ProtocolError::Escape);
        assert_eq!(error(&vec![b'a'; MAX_LINE + 2]), ProtocolError::TooBigLine);
        let mut many = b"*3\r\n".to_vec();
        for _ in 0..3 {
            many.extend_from_slice(format!("${}\r\n", MAX_BULK).as_bytes());
            many.extend_from_slice(&vec![b'a'; MAX_BULK]);
            many.extend_from_slice(b"\r\n");
        }
        assert_eq!(requests(&many, 4096), Err(ProtocolError::TooBigRequest));
    }

    #[test]
    fn random_bytes_never_panic_the_parser() {
        let mut seed = 1u64;
        let alphabet = b"*$+-:0123459\r\n\"' aPING\0\xff";
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    alphabet[(seed >> 33) as usize % alphabet.len()]
                })
                .collect();
            let _ = requests(&bytes, 1 + (seed >> 60) as usize);
        }
    }

    #[test]
    fn numbers_are_those_that_redis_takes() {
        for (text, value) in [
            ("0", 0),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "a",
        ] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
    }
}
