//! The commands: what each takes, and what becomes of it. Error texts are Redis's own.
//!
//! `SESSION id seq [mark] COMMAND …` is the command with a number of the client's: however often it is sent, and to whichever
//! servers, it is applied once, and answered as it was the first time (`ringraft::session`).
//!
//! Between `MULTI` and `EXEC` commands are queued ([`Transaction`]). A command that cannot be queued is an error at once, and
//! `EXEC` then applies nothing.

use std::time::Duration;

use ringraft::session::{self, Request, Watch};
use ringraft::{Consistency, Node};

use crate::info;
use crate::limits::{ClientStats, Limits};
use crate::machine::{Answer, Command, MAX_KEY_BYTES, encode_transaction, replies, values};
use crate::resp::{Writer, number};
use crate::saves::Saves;
use crate::transaction::{Transaction, WATCHED_BYTES, Watches};

const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

/// What is to be done with a request.
#[derive(Debug)]
pub enum Action {
    /// The reply is written.
    Replied,
    /// The reply is written, and then the connection ends.
    Close,
    /// These are words of HTTP: the connection ends without a reply, and nothing behind them is looked at.
    Http,
    /// The encoded command goes to the leader's log.
    Write,
    /// The encoded query is answered by a read as the connection wants it: [`Client::reads`].
    Read,
    /// The encoded query reads the values of keys that are watched from then on.
    Watch,
    /// The encoded transaction goes to the leader's log; once it has been handed in, [`Client::end_transaction`].
    Exec,
}

/// What a connection has said of itself.
#[derive(Debug)]
pub struct Client {
    pub id: u64,
    pub resp3: bool,
    pub name: Vec<u8>,
    /// What its reads must see.
    pub reads: Consistency,
    /// Since `MULTI`.
    pub transaction: Option<Transaction>,
    pub watches: Watches,
}

impl Client {
    /// The transaction has been executed or dropped; nothing is watched any more.
    pub fn end_transaction(&mut self) {
        self.transaction = None;
        self.watches = Watches::default();
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        let queued = self.transaction.as_ref().map_or(0, Transaction::memory);
        self.name.capacity() + queued + self.watches.memory()
    }
}

impl Default for Client {
    fn default() -> Self {
        Self {
            id: 0,
            resp3: false,
            name: Vec::new(),
            reads: Consistency::Linearizable,
            transaction: None,
            watches: Watches::default(),
        }
    }
}

/// What commands can look at.
#[derive(Debug)]
pub struct Context<'a> {
    pub node: &'a Node,
    pub sessions: &'a Watch,
    pub saves: &'a Saves,
    pub clients: ClientStats,
    pub limits: &'a Limits,
    pub commands: u64,
    pub port: u16,
}

/// `(name, arity)`: a negative arity is a minimum, the name counts.
const TABLE: &[(&str, i64)] = &[
    ("ping", -1),
    ("echo", 2),
    ("hello", -1),
    ("info", -1),
    ("command", -1),
    ("config", -2),
    ("client", -2),
    ("quit", -1),
    ("reset", 1),
    ("select", 2),
    ("dbsize", 1),
    ("get", 2),
    ("set", -3),
    ("incr", 2),
    ("incrby", 3),
    ("decr", 2),
    ("decrby", 3),
    ("getset", 3),
    ("del", -2),
    ("exists", -2),
    ("mget", -2),
    ("cas", 4),
    ("readmode", -1),
    ("session", -2),
    ("bgsave", -1),
    ("lastsave", 1),
    ("multi", 1),
    ("exec", 1),
    ("discard", 1),
    ("watch", -2),
    ("unwatch", 1),
];

/// Reads a request. A reply at once goes to `out`; a command or query for the cluster into `encoded`.
pub fn dispatch(
    args: &[&[u8]],
    client: &mut Client,
    context: &Context<'_>,
    encoded: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Action {
    let Some((name, rest)) = args.split_first() else {
        return Action::Replied;
    };
    let mut lower = [0; 16];
    let lower = match lower.get_mut(..name.len()) {
        Some(lower) => {
            lower.copy_from_slice(name);
            lower.make_ascii_lowercase();
            std::str::from_utf8(lower).unwrap_or("")
        }
        None => "",
    };
    let mut reply = Writer {
        out,
        resp3: client.resp3,
    };
    // A web page can send what it likes to this port, in the body of a POST. These words come before the body, and are no
    // commands of any client.
    if matches!(lower, "post" | "host:") {
        return Action::Http;
    }
    let name = match check(lower, args) {
        Ok(name) => name,
        Err(text) => {
            if let Some(transaction) = &mut client.transaction {
                transaction.fail();
            }
            reply.error(&text);
            return Action::Replied;
        }
    };
    encoded.clear();
    let done = match name {
        "multi" | "exec" | "discard" | "watch" | "unwatch" | "session" => {
            transact(name, rest, client, context, encoded, &mut reply)
        }
        "quit" | "reset" => Ok(local(name, rest, client, context, reply)),
        _ if client.transaction.is_some() => {
            queue(name, rest, client, context, encoded, &mut reply)
        }
        _ => {
            Request::Plain.encode(encoded);
            match data(name, rest) {
                Some(Ok((command, action))) => {
                    command.encode(encoded);
                    if matches!(action, Action::Write) {
                        client.watches.touch(written_keys(name, rest));
                    }
                    Ok(action)
                }
                Some(Err(text)) => Err(text.to_owned()),
                None => Ok(local(name, rest, client, context, reply)),
            }
        }
    };
    done.unwrap_or_else(|text| {
        Writer {
            out,
            resp3: client.resp3,
        }
        .error(&text);
        Action::Replied
    })
}

/// The name of a command that there is, with as many arguments as it takes, none of them too long.
fn check(lower: &str, args: &[&[u8]]) -> Result<&'static str, String> {
    let Some(&(name, arity)) = TABLE.iter().find(|entry| entry.0 == lower) else {
        return Err(unknown(args[0], &args[1..]));
    };
    if !arity_fits(args.len(), arity) {
        return Err(wrong_arity(name));
    }
    let long = |arg: &&&[u8]| arg.len() > MAX_KEY_BYTES && name != "ping" && name != "echo";
    match args[1..].iter().find(long) {
        Some(long) => Err(format!(
            "ERR key of {} bytes is over the limit of {MAX_KEY_BYTES}",
            long.len()
        )),
        None => Ok(name),
    }
}

/// `MULTI`, `EXEC`, `DISCARD`, `WATCH`, `UNWATCH`, and `SESSION`, which may stand before `EXEC` and nowhere else within.
fn transact(
    name: &str,
    args: &[&[u8]],
    client: &mut Client,
    context: &Context<'_>,
    encoded: &mut Vec<u8>,
    reply: &mut Writer<'_>,
) -> Result<Action, String> {
    match (name, &mut client.transaction) {
        ("multi", Some(_)) => return Err("ERR MULTI calls can not be nested".into()),
        ("multi", none) => *none = Some(Transaction::default()),
        ("exec", _) => return execute(Request::Plain, client, context, encoded, reply),
        ("discard", None) => return Err("ERR DISCARD without MULTI".into()),
        ("discard", Some(_)) => client.end_transaction(),
        ("session", None) => {
            let (request, command) = session_request(args, encoded)?;
            if matches!(request, Request::Numbered { .. }) {
                // A first answer may be older than what is watched.
                client.watches.touch(command);
            }
            return Ok(Action::Write);
        }
        ("session", Some(transaction)) => {
            return match session_prefix(args) {
                Ok((request @ Request::Numbered { .. }, [exec]))
                    if exec.eq_ignore_ascii_case(b"exec") =>
                {
                    execute(request, client, context, encoded, reply)
                }
                _ => {
                    transaction.fail();
                    Err("ERR within MULTI, SESSION stands before EXEC only: SESSION id seq [mark] EXEC".into())
                }
            };
        }
        (_, Some(transaction)) => {
            transaction.fail();
            return Err(format!(
                "ERR {} inside MULTI is not allowed",
                name.to_uppercase()
            ));
        }
        ("watch", None) => {
            if !client
                .watches
                .has_room(args, context.limits.max_entry_bytes / 2)
            {
                return Err(format!(
                    "ERR the watched keys are over the limit of {} bytes, with {WATCHED_BYTES} for each key",
                    context.limits.max_entry_bytes / 2
                ));
            }
            Request::Plain.encode(encoded);
            Command::GetMany { keys: args }.encode(encoded);
            return Ok(Action::Watch);
        }
        (_, None) => client.watches = Watches::default(),
    }
    reply.simple("OK");
    Ok(Action::Replied)
}

/// `EXEC`: what was queued, as one command of the log.
fn execute(
    request: Request,
    client: &mut Client,
    context: &Context<'_>,
    encoded: &mut Vec<u8>,
    reply: &mut Writer<'_>,
) -> Result<Action, String> {
    let Some(transaction) = &client.transaction else {
        return Err("ERR EXEC without MULTI".into());
    };
    if transaction.failed || client.watches.failed {
        client.end_transaction();
        return Err("EXECABORT Transaction discarded because of previous errors.".into());
    }
    if client.watches.changed {
        client.end_transaction();
        reply.null_array();
        return Ok(Action::Replied);
    }
    if transaction.is_empty() && client.watches.is_empty() && request == Request::Plain {
        client.end_transaction();
        reply.array(0);
        return Ok(Action::Replied);
    }
    request.encode(encoded);
    encode_transaction(client.watches.iter(), transaction.commands(), encoded);
    if encoded.len() > context.limits.max_entry_bytes {
        let len = encoded.len();
        client.end_transaction();
        return Err(format!(
            "EXECABORT Transaction discarded: it has {len} bytes in the log, over the limit of {}; send fewer commands at a time",
            context.limits.max_entry_bytes
        ));
    }
    Ok(Action::Exec)
}

/// A command between `MULTI` and `EXEC`.
fn queue(
    name: &str,
    args: &[&[u8]],
    client: &mut Client,
    context: &Context<'_>,
    encoded: &mut Vec<u8>,
    reply: &mut Writer<'_>,
) -> Result<Action, String> {
    let Some(transaction) = &mut client.transaction else {
        unreachable!("its caller has seen one");
    };
    let command = match data(name, args) {
        Some(Ok((command, _))) => Ok(command),
        Some(Err(text)) => Err(text.to_owned()),
        None => Err(format!(
            "ERR {} cannot be in a transaction: commands for the counters can",
            name.to_uppercase()
        )),
    };
    match command {
        Ok(command) => command.encode(encoded),
        Err(text) => {
            transaction.fail();
            return Err(text);
        }
    }
    if !transaction.push(encoded, context.limits.max_entry_bytes) {
        return Err(format!(
            "ERR the transaction is over the limit of {} bytes in the log; send fewer commands at a time",
            context.limits.max_entry_bytes
        ));
    }
    reply.simple("QUEUED");
    Ok(Action::Replied)
}

/// The keys that a command for the counters names.
fn written_keys<'b, 'a>(name: &str, args: &'b [&'a [u8]]) -> &'b [&'a [u8]] {
    match name {
        "del" => args,
        _ => &args[..args.len().min(1)],
    }
}

/// What is asked of the counters; `None`: it is not for them.
fn data<'a, 'b>(
    name: &str,
    rest: &'b [&'a [u8]],
) -> Option<Result<(Command<'a, 'b>, Action), &'static str>> {
    let command = match name {
        "get" => return Some(Ok((Command::Get { key: rest[0] }, Action::Read))),
        "mget" => return Some(Ok((Command::GetMany { keys: rest }, Action::Read))),
        "exists" => return Some(Ok((Command::Exists { keys: rest }, Action::Read))),
        "dbsize" => return Some(Ok((Command::Size, Action::Read))),
        "set" if rest.len() > 2 => Err("ERR syntax error"),
        "set" => with(number(rest[1]), |value| Command::Set {
            key: rest[0],
            value,
        }),
        "getset" => with(number(rest[1]), |value| Command::GetSet {
            key: rest[0],
            value,
        }),
        "incr" => Ok(Command::Add {
            key: rest[0],
            delta: 1,
        }),
        "decr" => Ok(Command::Add {
            key: rest[0],
            delta: -1,
        }),
        "incrby" => with(number(rest[1]), |delta| Command::Add {
            key: rest[0],
            delta,
        }),
        "decrby" => match number(rest[1]).map(i64::checked_neg) {
            Some(Some(delta)) => Ok(Command::Add {
                key: rest[0],
                delta,
            }),
            Some(None) => Err("ERR decrement would overflow"),
            None => Err(NOT_A_NUMBER),
        },
        "del" => Ok(Command::Delete { keys: rest }),
        "cas" => {
            let expected = if rest[1].eq_ignore_ascii_case(b"nil") {
                Some(None)
            } else {
                number(rest[1]).map(Some)
            };
            match (expected, number(rest[2])) {
                (Some(expected), Some(new)) => Ok(Command::CompareAndSet {
                    key: rest[0],
                    expected,
                    new,
                }),
                _ => Err(NOT_A_NUMBER),
            }
        }
        _ => return None,
    };
    Some(command.map(|command| (command, Action::Write)))
}

const SESSION_USAGE: &str = "ERR SESSION takes OPEN, CLOSE id, KEEP id mark, or id seq [mark] and a command for the counters";

/// `SESSION …` up to the command, which only a numbered request has.
fn session_prefix<'a, 'b>(args: &'b [&'a [u8]]) -> Result<(Request, &'b [&'a [u8]]), String> {
    let unsigned = |arg: &[u8]| number(arg).and_then(|number| u64::try_from(number).ok());
    let usage = || SESSION_USAGE.to_owned();
    let lower = args[0].to_ascii_lowercase();
    let (request, rest) = match (lower.as_slice(), &args[1..]) {
        (b"open", []) => (Request::Open, &[][..]),
        (b"close", [id]) => {
            let session = unsigned(id).ok_or_else(usage)?;
            (Request::Close { session }, &[][..])
        }
        (b"keep", [id, mark]) => {
            let session = unsigned(id).ok_or_else(usage)?;
            let mark = unsigned(mark).ok_or_else(usage)?;
            (Request::Keep { session, mark }, &[][..])
        }
        (id, [sequence, rest @ ..]) => {
            let session = unsigned(id).ok_or_else(usage)?;
            let sequence = unsigned(sequence).ok_or_else(usage)?;
            let (mark, rest) = match rest.split_first() {
                Some((first, rest)) if first.first().is_some_and(u8::is_ascii_digit) => {
                    (Some(unsigned(first).ok_or_else(usage)?), rest)
                }
                _ => (None, rest),
            };
            if mark.is_some_and(|mark| mark > sequence) {
                return Err("ERR the mark is above the sequence number".to_owned());
            }
            let numbered = Request::Numbered {
                session,
                sequence,
                mark,
            };
            (numbered, rest)
        }
        _ => return Err(usage()),
    };
    Ok((request, rest))
}

/// `SESSION …` as a command for the cluster; the command in it, with its name.
fn session_request<'a, 'b>(
    args: &'b [&'a [u8]],
    encoded: &mut Vec<u8>,
) -> Result<(Request, &'b [&'a [u8]]), String> {
    let (request, command) = session_prefix(args)?;
    request.encode(encoded);
    if !matches!(request, Request::Numbered { .. }) {
        return Ok((request, command));
    }
    let (name, rest) = command.split_first().ok_or(SESSION_USAGE)?;
    let lower = String::from_utf8_lossy(name).to_ascii_lowercase();
    let known = check(&lower, command)?;
    match data(known, rest) {
        Some(Ok((encodable, _))) => {
            encodable.encode(encoded);
            Ok((request, command))
        }
        Some(Err(text)) => Err(text.to_owned()),
        None if known == "exec" => Err("ERR EXEC without MULTI".to_owned()),
        None => Err(format!("ERR {known} cannot be a command of a session")),
    }
}

fn arity_fits(count: usize, arity: i64) -> bool {
    let count = count as i64;
    count == arity || (arity < 0 && count >= -arity)
}

fn with<'a, 'b>(
    value: Option<i64>,
    make: impl FnOnce(i64) -> Command<'a, 'b>,
) -> Result<Command<'a, 'b>, &'static str> {
    value.map(make).ok_or(NOT_A_NUMBER)
}

fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

fn unknown(name: &[u8], args: &[&[u8]]) -> String {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned();
    let mut text = format!(
        "ERR unknown command '{}', with args beginning with: ",
        shown(name)
    );
    for arg in args {
        if text.len() > 256 {
            break;
        }
        text.push_str(&format!("'{}' ", shown(arg)));
    }
    text
}

/// What this node answers by itself.
fn local(
    name: &str,
    args: &[&[u8]],
    client: &mut Client,
    context: &Context<'_>,
    mut reply: Writer<'_>,
) -> Action {
    match name {
        "ping" => match args {
            [] => reply.simple("PONG"),
            [text] => reply.bulk(text),
            _ => reply.error(&wrong_arity(name)),
        },
        "echo" => reply.bulk(args[0]),
        "quit" => {
            reply.simple("OK");
            return Action::Close;
        }
        "reset" => {
            (client.resp3, client.name) = (false, Vec::new());
            client.end_transaction();
            client.reads = Consistency::Linearizable;
            reply.resp3 = false;
            reply.simple("RESET");
        }
        "select" => match number(args[0]) {
            Some(0) => reply.simple("OK"),
            Some(_) => reply.error("ERR DB index is out of range"),
            None => reply.error(NOT_A_NUMBER),
        },
        "hello" => hello(args, client, context, reply),
        "info" => {
            let section = args.first().map(|name| name.to_ascii_lowercase());
            reply.verbatim(&info::render(section.as_deref(), context));
        }
        "command" => match args.first().map(|sub| sub.to_ascii_lowercase()).as_deref() {
            Some(b"count") => reply.integer(TABLE.len() as i64),
            Some(b"docs") => reply.map(0),
            Some(b"info") => {
                reply.array(args.len() - 1);
                for name in &args[1..] {
                    match TABLE
                        .iter()
                        .find(|entry| entry.0.as_bytes().eq_ignore_ascii_case(name))
                    {
                        Some(entry) => describe(entry, &mut reply),
                        None => reply.null(),
                    }
                }
            }
            None => {
                reply.array(TABLE.len());
                for entry in TABLE {
                    describe(entry, &mut reply);
                }
            }
            Some(_) => reply.error(&unknown_subcommand(args[0], "COMMAND")),
        },
        "config" => match args[0].to_ascii_lowercase().as_slice() {
            b"get" if args.len() >= 2 => config_get(&args[1..], &mut reply),
            b"get" => reply.error("ERR wrong number of arguments for 'config|get' command"),
            b"resetstat" => reply.simple("OK"),
            _ => reply.error(&unknown_subcommand(args[0], "CONFIG")),
        },
        "client" => client_command(args, client, &mut reply),
        "readmode" => read_mode(args, client, &mut reply),
        "bgsave" => match args {
            [] => background_save(context, &mut reply),
            // What would be put off in Redis is a rewrite of its log, and there is none here.
            [when] if when.eq_ignore_ascii_case(b"schedule") => {
                background_save(context, &mut reply);
            }
            _ => reply.error("ERR syntax error"),
        },
        "lastsave" => reply.integer(context.saves.last(&context.node.status()) as i64),
        other => unreachable!("{other} is in the table and has no arm"),
    }
    Action::Replied
}

fn background_save(context: &Context<'_>, reply: &mut Writer<'_>) {
    match context.saves.begin(context.node) {
        Ok(text) => reply.simple(text),
        Err(text) => reply.error(&text),
    }
}

fn unknown_subcommand(sub: &[u8], of: &str) -> String {
    let sub = String::from_utf8_lossy(&sub[..sub.len().min(128)]);
    format!("ERR unknown subcommand '{sub}'. Try {of} HELP.")
}

fn describe(&(name, arity): &(&str, i64), reply: &mut Writer<'_>) {
    let takes_key = matches!(
        name,
        "get"
            | "set"
            | "incr"
            | "incrby"
            | "decr"
            | "decrby"
            | "getset"
            | "del"
            | "exists"
            | "mget"
            | "cas"
            | "watch"
    );
    let last = if matches!(name, "del" | "exists" | "mget" | "watch") {
        -1
    } else {
        i64::from(takes_key)
    };
    reply.array(6);
    reply.bulk(name.as_bytes());
    reply.integer(arity);
    reply.array(0);
    for value in [i64::from(takes_key), last, i64::from(takes_key)] {
        reply.integer(value);
    }
}

/// What tools ask before they begin: everything is always on disk.
fn config_get(patterns: &[&[u8]], reply: &mut Writer<'_>) {
    const VALUES: [(&str, &str); 4] = [
        ("save", ""),
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("databases", "1"),
    ];
    let wanted = |name: &str| {
        patterns
            .iter()
            .any(|pattern| *pattern == b"*" || pattern.eq_ignore_ascii_case(name.as_bytes()))
    };
    reply.map(VALUES.iter().filter(|(name, _)| wanted(name)).count());
    for (name, value) in VALUES.iter().filter(|(name, _)| wanted(name)) {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

fn client_command(args: &[&[u8]], client: &mut Client, reply: &mut Writer<'_>) {
    match (args[0].to_ascii_lowercase().as_slice(), &args[1..]) {
        (b"id", []) => reply.integer(client.id as i64),
        (b"getname", []) if client.name.is_empty() => reply.null(),
        (b"getname", []) => reply.bulk(&client.name),
        (b"setname", [name]) if name.iter().all(u8::is_ascii_graphic) => {
            client.name = name.to_vec();
            reply.simple("OK");
        }
        (b"setname", [_]) => {
            reply.error(BAD_NAME);
        }
        (b"setinfo", [_, _]) | (b"no-evict" | b"no-touch", [_]) => reply.simple("OK"),
        (b"info", []) => {
            let line = format!(
                "id={} name={} resp={}",
                client.id,
                String::from_utf8_lossy(&client.name),
                if client.resp3 { 3 } else { 2 }
            );
            reply.verbatim(&line);
        }
        (b"id" | b"getname" | b"setname" | b"setinfo" | b"info", _) => {
            let sub = String::from_utf8_lossy(args[0]).to_lowercase();
            reply.error(&wrong_arity(&format!("client|{sub}")));
        }
        _ => reply.error(&unknown_subcommand(args[0], "CLIENT")),
    }
}

/// `READMODE [index | lease | stale [milliseconds] | log]`: how this connection reads from now on.
fn read_mode(args: &[&[u8]], client: &mut Client, reply: &mut Writer<'_>) {
    let wanted = match args {
        [] => return reply.bulk(mode_name(client.reads).as_bytes()),
        [mode] => match mode.to_ascii_lowercase().as_slice() {
            b"index" => Some(Consistency::Linearizable),
            b"lease" => Some(Consistency::Lease),
            b"stale" => Some(Consistency::Stale),
            b"log" => Some(Consistency::Log),
            _ => None,
        },
        [mode, age] if mode.eq_ignore_ascii_case(b"stale") => {
            let Some(age) = number(age).and_then(|age| u64::try_from(age).ok()) else {
                return reply.error(NOT_A_NUMBER);
            };
            Some(Consistency::AtMost {
                age: Duration::from_millis(age),
                entries: 0,
            })
        }
        _ => None,
    };
    match wanted {
        Some(reads) => {
            client.reads = reads;
            reply.simple("OK");
        }
        None => reply.error("ERR READMODE takes index, lease, stale, stale <milliseconds> or log"),
    }
}

fn mode_name(reads: Consistency) -> String {
    match reads {
        Consistency::Linearizable => "index".into(),
        Consistency::Lease => "lease".into(),
        Consistency::AtMost { age, .. } => format!("stale {}", age.as_millis()),
        Consistency::Stale => "stale".into(),
        Consistency::Log => "log".into(),
    }
}

fn hello(args: &[&[u8]], client: &mut Client, context: &Context<'_>, mut reply: Writer<'_>) {
    let mut resp3 = client.resp3;
    let mut rest = args;
    if let [version, more @ ..] = args {
        match number(version) {
            Some(2) => resp3 = false,
            Some(3) => resp3 = true,
            Some(_) => return reply.error("NOPROTO unsupported protocol version"),
            None => return reply.error("ERR Protocol version is not an integer or out of range"),
        }
        rest = more;
    }
    let mut name = None;
    while let [option, more @ ..] = rest {
        rest = match (option.to_ascii_lowercase().as_slice(), more) {
            (b"auth", [_, _, ..]) => {
                return reply.error(
                    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
                );
            }
            (b"setname", [wanted, more @ ..]) => {
                if !wanted.iter().all(u8::is_ascii_graphic) {
                    return reply.error(BAD_NAME);
                }
                name = Some(wanted.to_vec());
                more
            }
            _ => {
                let option = String::from_utf8_lossy(option).into_owned();
                return reply.error(&format!("ERR Syntax error in HELLO option '{option}'"));
            }
        };
    }
    client.resp3 = resp3;
    reply.resp3 = resp3;
    client.name = name.unwrap_or_else(|| std::mem::take(&mut client.name));
    reply.map(7);
    for (key, value) in [("server", "redis"), ("version", info::REDIS_VERSION)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"proto");
    reply.integer(if resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(client.id as i64);
    reply.bulk(b"mode");
    reply.bulk(b"standalone");
    reply.bulk(b"role");
    reply.bulk(info::redis_role(&context.node.status()).as_bytes());
    reply.bulk(b"modules");
    reply.array(0);
}

/// Writes what the cluster answered.
pub fn write_reply(bytes: &[u8], out: &mut Vec<u8>, resp3: bool) {
    let refusal = match session::Answer::decode(bytes) {
        session::Answer::Applied(answer) => {
            return write_answer(Answer::decode(answer), out, resp3);
        }
        session::Answer::Opened { session, .. } => {
            return Writer { out, resp3 }.integer(session as i64);
        }
        session::Answer::Done => return Writer { out, resp3 }.simple("OK"),
        session::Answer::TooOld => {
            "TOOOLD this sequence number is below the mark, or below the last window: its answer is not kept, and it is \
             not applied any more"
        }
        session::Answer::NotKept => {
            "NOTKEPT applied, once; its answer was long and has made room for others"
        }
        session::Answer::TooFar => {
            "TOOFAR not applied: the sequence number is further above the mark than the window is long"
        }
        session::Answer::Expired => {
            "EXPIRED there is no such session: it was closed, or has made room; this try was not applied"
        }
        session::Answer::Malformed => "ERR the command was damaged on its way",
    };
    Writer { out, resp3 }.error(refusal);
}

fn write_answer(answer: Answer<'_>, out: &mut Vec<u8>, resp3: bool) {
    let mut reply = Writer { out, resp3 };
    match answer {
        Answer::Done => reply.simple("OK"),
        Answer::Integer(value) => reply.integer(value),
        Answer::Value(value) => reply.value(value),
        Answer::Values(bytes) => {
            let values = values(bytes);
            reply.array(values.len());
            values.for_each(|value| reply.value(value));
        }
        Answer::Overflow => reply.error("ERR increment or decrement would overflow"),
        Answer::Replies(bytes) => {
            reply.array(replies(bytes).count());
            replies(bytes).for_each(|answer| write_answer(answer, reply.out, resp3));
        }
        Answer::Aborted => reply.null_array(),
        Answer::Malformed => reply.error("ERR the command was damaged on its way"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_is_named_with_its_first_arguments() {
        assert_eq!(
            unknown(b"FOO", &[b"a", b"b"]),
            "ERR unknown command 'FOO', with args beginning with: 'a' 'b' "
        );
    }

    #[test]
    fn a_session_is_a_prefix_of_a_command() {
        let encode = |text: &str| {
            let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            let mut encoded = Vec::new();
            session_request(&args, &mut encoded).map(|_| encoded)
        };
        let numbered = encode("7 12 incr a").expect("it is a command");
        let (request, command) = Request::decode(&numbered).expect("it can be read");
        let expected = Request::Numbered {
            session: 7,
            sequence: 12,
            mark: None,
        };
        assert_eq!(request, expected);
        let mut add = Vec::new();
        Command::Add {
            key: b"a",
            delta: 1,
        }
        .encode(&mut add);
        assert_eq!(command, add);
        let marked = encode("7 12 10 MGET a b").expect("it is a command");
        let mark = Some(10);
        let read = Request::decode(&marked).map(|(request, _)| request);
        assert!(
            matches!(read, Some(Request::Numbered { mark: is, .. }) if is == mark),
            "{read:?}"
        );
        for (text, says) in [
            ("open 5", "SESSION takes"),
            ("close", "SESSION takes"),
            ("keep 7 x", "SESSION takes"),
            ("7 12", "SESSION takes"),
            ("-7 12 incr a", "SESSION takes"),
            ("7 12 13 incr a", "mark is above"),
            ("7 12 10x incr a", "SESSION takes"),
            ("7 12 ping", "PING cannot be"),
            ("7 12 session open", "SESSION cannot be"),
            ("7 12 incr", "wrong number of arguments for 'incr'"),
            ("7 12 set a b", "not an integer"),
            ("7 12 foo", "unknown command 'foo'"),
        ] {
            let error = encode(text).expect_err("an error");
            assert!(
                error.to_lowercase().contains(&says.to_lowercase()),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn answers_are_written_in_the_version_of_the_connection() {
        let written = |answer, resp3| {
            let mut out = Vec::new();
            write_answer(answer, &mut out, resp3);
            String::from_utf8(out).expect("text")
        };
        assert_eq!(written(Answer::Value(None), false), "$-1\r\n");
        assert_eq!(written(Answer::Value(None), true), "_\r\n");
        assert_eq!(written(Answer::Value(Some(-5)), true), "$2\r\n-5\r\n");
        assert_eq!(written(Answer::Integer(7), false), ":7\r\n");
        assert_eq!(
            written(Answer::Overflow, false),
            "-ERR increment or decrement would overflow\r\n"
        );
    }
}
