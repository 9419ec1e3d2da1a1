//! `INFO`: the sections that Redis has, as far as they apply, and what the node says of itself.

use std::fmt::Write;

use ringraft::{Role, Status};

use crate::commands::Context;

/// The version of Redis whose commands and texts are followed.
pub const REDIS_VERSION: &str = "7.0.15";

/// The leader is what Redis calls a master. A follower takes writes too, but for tools it is a replica.
pub fn redis_role(status: &Status) -> &'static str {
    if status.role == Role::Leader {
        "master"
    } else {
        "replica"
    }
}

type Section<'a> = &'a dyn Fn(&mut String) -> std::fmt::Result;

/// The sections asked for; all without a name.
pub fn render(section: Option<&[u8]>, context: &Context<'_>) -> String {
    let status = context.node.status();
    let sections: [(&str, Section<'_>); 6] = [
        ("Server", &|out| {
            writeln!(out, "redis_version:{REDIS_VERSION}\r")?;
            writeln!(out, "redis_mode:standalone\r")?;
            writeln!(out, "ringraft_version:{}\r", env!("CARGO_PKG_VERSION"))?;
            writeln!(out, "process_id:{}\r", std::process::id())?;
            writeln!(out, "tcp_port:{}\r", context.port)
        }),
        ("Clients", &|out| {
            writeln!(out, "connected_clients:{}\r", context.connections)
        }),
        ("Stats", &|out| {
            writeln!(out, "total_commands_processed:{}\r", context.commands)
        }),
        ("Replication", &|out| {
            let role = if status.role == Role::Leader {
                "master"
            } else {
                "slave"
            };
            writeln!(out, "role:{role}\r")?;
            writeln!(
                out,
                "connected_slaves:{}\r",
                status.peers.iter().filter(|peer| peer.active).count()
            )
        }),
        ("Sessions", &|out| {
            let sessions = context.sessions.status();
            writeln!(out, "sessions:{}\r", sessions.sessions)?;
            writeln!(out, "sessions_opened:{}\r", sessions.opened)?;
            writeln!(out, "sessions_evicted:{}\r", sessions.evicted)?;
            writeln!(out, "session_long_bytes:{}\r", sessions.long_bytes)?;
            writeln!(out, "session_repeated:{}\r", sessions.repeated)?;
            writeln!(out, "session_refused:{}\r", sessions.refused)
        }),
        ("Raft", &|out| raft(&status, out)),
    ];
    let mut out = String::new();
    let everything = matches!(section, None | Some(b"all" | b"everything" | b"default"));
    for (name, write) in sections {
        if everything || section == Some(name.to_ascii_lowercase().as_bytes()) {
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            let _ = writeln!(out, "# {name}\r"); // Writing to a string does not fail.
            let _ = write(&mut out);
        }
    }
    out
}

fn raft(status: &Status, out: &mut String) -> std::fmt::Result {
    writeln!(out, "node:{}\r", status.id)?;
    writeln!(out, "role:{}\r", status.role)?;
    writeln!(out, "term:{}\r", status.term)?;
    writeln!(
        out,
        "leader:{}\r",
        status.leader.map_or(0, |leader| leader.0)
    )?;
    writeln!(out, "last:{}\r", status.last)?;
    writeln!(out, "durable:{}\r", status.durable)?;
    writeln!(out, "commit:{}\r", status.committed)?;
    writeln!(out, "applied:{}\r", status.applied)?;
    writeln!(out, "pending:{}\r", status.pending)?;
    writeln!(out, "flush_way:{}\r", status.flush_way)?;
    writeln!(out, "flushes:{}\r", status.flushes)?;
    writeln!(out, "flushed_entries:{}\r", status.flushed_entries)?;
    for ring in &status.rings {
        writeln!(
            out,
            "ring_{}:depth={},capacity={},full={}\r",
            ring.name, ring.depth, ring.capacity, ring.full
        )?;
    }
    for hop in status.hops.iter().filter(|hop| hop.count > 0) {
        writeln!(
            out,
            "hop_{}:p50_us={},p99_us={},max_us={},count={}\r",
            hop.name,
            hop.p50.as_micros(),
            hop.p99.as_micros(),
            hop.max.as_micros(),
            hop.count
        )?;
    }
    if let Some((p50, p99)) = status.why_slow() {
        writeln!(out, "slow:p50={},p99={}\r", p50.name, p99.name)?;
    }
    for peer in &status.peers {
        writeln!(
            out,
            "peer_{}:matched={},next={},inflight_bytes={},active={}\r",
            peer.id,
            peer.matched,
            peer.next,
            peer.inflight_bytes,
            u8::from(peer.active)
        )?;
    }
    match &status.error {
        Some(fault) => writeln!(
            out,
            "error:{}\r",
            fault.to_string().replace(['\r', '\n'], " ")
        ),
        None => Ok(()),
    }
}
