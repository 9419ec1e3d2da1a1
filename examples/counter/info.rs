//! `INFO`: the sections that Redis has, as far as they apply, and what the node says of itself.

use std::fmt::Write;

use ringraft::{Role, Status, TransferStatus};

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
    let sections: [(&str, Section<'_>); 8] = [
        ("Server", &|out| {
            writeln!(out, "redis_version:{REDIS_VERSION}\r")?;
            writeln!(out, "redis_mode:standalone\r")?;
            writeln!(out, "ringraft_version:{}\r", env!("CARGO_PKG_VERSION"))?;
            writeln!(out, "process_id:{}\r", std::process::id())?;
            writeln!(out, "tcp_port:{}\r", context.port)
        }),
        ("Clients", &|out| {
            let (clients, limits) = (&context.clients, context.limits);
            writeln!(out, "connected_clients:{}\r", clients.connected)?;
            writeln!(out, "maxclients:{}\r", limits.max_clients)?;
            writeln!(out, "client_buffer_bytes:{}\r", clients.buffer_bytes)?;
            writeln!(out, "client_buffer_limit:{}\r", limits.client_memory)
        }),
        ("Stats", &|out| {
            let clients = &context.clients;
            writeln!(out, "total_connections_received:{}\r", clients.accepted)?;
            writeln!(out, "total_commands_processed:{}\r", context.commands)?;
            writeln!(out, "rejected_connections:{}\r", clients.rejected)?;
            writeln!(out, "evicted_clients:{}\r", clients.evicted)
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
        ("Persistence", &|out| {
            let running = context.saves.is_running(&status);
            writeln!(out, "loading:0\r")?;
            writeln!(out, "rdb_bgsave_in_progress:{}\r", u8::from(running))?;
            let last = context.saves.last(&status);
            writeln!(out, "rdb_last_save_time:{last}\r")?;
            let well = context.saves.is_well(&status);
            let well = if well { "ok" } else { "err" };
            writeln!(out, "rdb_last_bgsave_status:{well}\r")?;
            writeln!(out, "aof_enabled:1\r")
        }),
        ("Snapshot", &|out| snapshot(&status, out)),
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
    writeln!(out, "flush_backend:{}\r", status.flush_backend)?;
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
    if let Some(exclusion) = &status.excluded {
        writeln!(out, "excluded:{}\r", one_line(&exclusion.to_string()))?;
    }
    for refusal in &status.refusals {
        writeln!(
            out,
            "refusal_{}:by_peer={},reason={}\r",
            refusal.peer,
            u8::from(refusal.by_peer),
            one_line(&refusal.reason)
        )?;
    }
    match &status.error {
        Some(fault) => writeln!(out, "error:{}\r", one_line(&fault.to_string())),
        None => Ok(()),
    }
}

/// A field ends with its line.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn snapshot(status: &Status, out: &mut String) -> std::fmt::Result {
    let snapshot = &status.snapshot;
    writeln!(out, "snapshot_index:{}\r", snapshot.index)?;
    writeln!(out, "snapshot_bytes:{}\r", snapshot.bytes)?;
    writeln!(out, "snapshot_disk_bytes:{}\r", snapshot.disk_bytes)?;
    writeln!(out, "snapshot_taken:{}\r", snapshot.taken)?;
    let taken_ms = snapshot.taken_unix_us / 1000;
    writeln!(out, "snapshot_taken_unix_ms:{taken_ms}\r")?;
    writeln!(out, "snapshot_restored:{}\r", snapshot.restored)?;
    if let Some(bytes) = snapshot.taking {
        writeln!(out, "snapshot_taking:bytes={bytes}\r")?;
    }
    if let Some(transfer) = &snapshot.receiving {
        on_its_way("receiving", transfer, out)?;
    }
    for transfer in &snapshot.sending {
        on_its_way(&format!("sending_{}", transfer.peer), transfer, out)?;
    }
    if let Some(trouble) = &snapshot.trouble {
        writeln!(out, "snapshot_trouble:{}\r", one_line(trouble))?;
    }
    if let Some(rot) = &snapshot.rot {
        writeln!(out, "rot:{}\r", one_line(rot))?;
    }
    let repairs = &status.repairs;
    writeln!(out, "start_mended:{}\r", repairs.mended_at_start)?;
    writeln!(out, "start_cut:{}\r", repairs.cut_at_start)?;
    writeln!(out, "start_set_aside:{}\r", repairs.set_aside_at_start)?;
    writeln!(out, "start_healed:{}\r", repairs.healed_at_start)?;
    writeln!(out, "rot_found:{}\r", repairs.found)?;
    writeln!(out, "rot_mended:{}\r", repairs.mended)?;
    if let Some(last) = &repairs.last {
        writeln!(out, "repair_last:{}\r", one_line(last))?;
    }
    writeln!(out, "log_first:{}\r", status.first)?;
    writeln!(out, "healing:{}\r", u8::from(status.healing))
}

fn on_its_way(name: &str, transfer: &TransferStatus, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "snapshot_{name}:peer={},index={},bytes={},of_bytes={},bytes_per_second={}\r",
        transfer.peer, transfer.index, transfer.bytes, transfer.of_bytes, transfer.bytes_per_second
    )
}
