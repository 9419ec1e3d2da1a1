//! As much of the Redis protocol as a client needs that must know exactly what became of a request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    /// A text, or none.
    Bulk(Option<String>),
}

/// One request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Connection {
    /// A server that is silent for so long has given no answer.
    pub(crate) fn open(addr: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream,
            input: Vec::new(),
        })
    }

    /// After an error nobody knows what became of the request, and the connection is of no more use.
    pub(crate) fn ask(&mut self, args: &[&str]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", args.len());
        for arg in args {
            request += &format!("${}\r\n{arg}\r\n", arg.len());
        }
        self.stream.write_all(request.as_bytes())?;
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| strange(&line))?;
        match kind {
            "+" => Ok(Reply::Simple(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => Ok(Reply::Integer(rest.parse().map_err(|_| strange(&line))?)),
            "$" if rest == "-1" => Ok(Reply::Bulk(None)),
            "$" => {
                let count: usize = rest.parse().map_err(|_| strange(&line))?;
                self.until(count + 2)?;
                let text = String::from_utf8_lossy(&self.input[..count]).into_owned();
                self.input.drain(..count + 2);
                Ok(Reply::Bulk(Some(text)))
            }
            _ => Err(strange(&line)),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
                self.input.drain(..end + 2);
                return Ok(line);
            }
            self.until(self.input.len() + 1)?;
        }
    }

    /// Reads until there are so many bytes.
    fn until(&mut self, count: usize) -> io::Result<()> {
        let mut piece = [0; 4096];
        while self.input.len() < count {
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&piece[..read]),
            }
        }
        Ok(())
    }
}

fn strange(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is no reply"))
}
