//! The hosts: a network namespace each, on one bridge, and what happens to packets between them.
//!
//! Clients and proxies are in the room's own namespace, which is on the bridge as [`HUB`]: no fault between nodes touches
//! them. Rules are at the input of the receiver, so that the sender does not notice.

use std::collections::BTreeMap;
use std::process::Command;

use crate::tools::{lacking, run, run_with};
use crate::trouble::Fallible;

/// Where clients and proxies are.
pub(crate) const HUB: &str = "10.99.0.254";
/// Nodes talk to each other on this port, on each host.
pub(crate) const RAFT_PORT: u16 = 7000;
/// And to their clients on this one.
pub(crate) const CLIENT_PORT: u16 = 6379;

/// What happens to the packets from one host to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Cut,
    /// So many of a hundred are lost.
    Lose(u32),
    /// Each is answered with a reset.
    Reset,
    /// New connections go to a port of the hub instead.
    Detour(u16),
}

#[derive(Debug)]
pub(crate) struct Network {
    hosts: usize,
    faults: BTreeMap<(usize, usize), Fault>,
}

pub(crate) fn addr(host: usize) -> String {
    format!("10.99.0.{host}")
}

/// A command on a host.
pub(crate) fn on(host: usize) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/n{host}"));
    command
}

/// Why no packet can be touched, if so.
pub(crate) fn lacks() -> Option<String> {
    let try_it = || {
        let all = [Fault::Cut, Fault::Lose(1), Fault::Reset, Fault::Detour(1)];
        // Each once for whoever hears, and once for whoever speaks.
        let faults = (2..)
            .zip(all)
            .flat_map(|(other, fault)| between(&[1], &[other], fault));
        let mut command = Command::new("nft");
        command.args(["--check", "--file", "-"]);
        run_with(command, &script(&faults.collect(), 1)).err()
    };
    lacking(&["nft"]).or_else(|| try_it().map(|trouble| trouble.to_string()))
}

impl Network {
    /// Hosts `1 ..= hosts`.
    pub(crate) fn make(hosts: usize) -> Fallible<Self> {
        std::fs::create_dir_all("/run/netns")?;
        // The names are the room's alone.
        run(&["mount", "-t", "tmpfs", "chaos", "/run/netns"])?;
        let ip = |words: &str| run(&words.split(' ').collect::<Vec<_>>());
        ip("ip link set lo up")?;
        ip("ip link add br0 type bridge")?;
        ip(&format!("ip addr add {HUB}/24 dev br0"))?;
        ip("ip link set br0 up")?;
        for host in 1..=hosts {
            ip(&format!("ip netns add n{host}"))?;
            ip(&format!(
                "ip link add v{host} type veth peer name eth0 netns n{host}"
            ))?;
            ip(&format!("ip link set v{host} master br0 up"))?;
            let addr = addr(host);
            for words in [
                "link set lo up",
                &format!("addr add {addr}/24 dev eth0"),
                "link set eth0 up",
            ] {
                let mut command = on(host);
                command.arg("ip").args(words.split(' '));
                run_with(command, "")?;
            }
        }
        Ok(Self {
            hosts,
            faults: BTreeMap::new(),
        })
    }

    /// Puts these faults in the place of those that are there, each as `(from, to)`.
    pub(crate) fn set(
        &mut self,
        faults: impl IntoIterator<Item = ((usize, usize), Fault)>,
    ) -> Fallible<()> {
        let new: BTreeMap<_, _> = faults.into_iter().collect();
        let old = std::mem::replace(&mut self.faults, new);
        for host in 1..=self.hosts {
            let script = script(&self.faults, host);
            if script != self::script(&old, host) {
                let mut command = on(host);
                command.args(["nft", "-f", "-"]);
                run_with(command, &script)?;
            }
        }
        Ok(())
    }

    pub(crate) fn heal(&mut self) -> Fallible<()> {
        self.set([])
    }
}

/// All pairs of which one is in each group, in both directions.
pub(crate) fn between(
    some: &[usize],
    others: &[usize],
    fault: Fault,
) -> Vec<((usize, usize), Fault)> {
    let pairs = some
        .iter()
        .flat_map(|&a| others.iter().map(move |&b| (a, b)));
    pairs
        .filter(|(a, b)| a != b)
        .flat_map(|(a, b)| [((a, b), fault), ((b, a), fault)])
        .collect()
}

/// The rules of one host.
fn script(faults: &BTreeMap<(usize, usize), Fault>, host: usize) -> String {
    let (mut input, mut output) = (String::new(), String::new());
    for (&(from, to), fault) in faults {
        let source = addr(from);
        match fault {
            Fault::Cut if to == host => input += &format!("ip saddr {source} drop\n"),
            Fault::Lose(percent) if to == host => {
                input += &format!("ip saddr {source} numgen random mod 100 < {percent} drop\n");
            }
            Fault::Reset if to == host => {
                input += &format!("ip saddr {source} meta l4proto tcp reject with tcp reset\n");
            }
            Fault::Detour(port) if from == host => {
                let target = addr(to);
                output +=
                    &format!("ip daddr {target} tcp dport {RAFT_PORT} dnat ip to {HUB}:{port}\n");
            }
            _ => {}
        }
    }
    let mut script = "add table inet chaos\ndelete table inet chaos\n".to_owned();
    if !input.is_empty() || !output.is_empty() {
        script += &format!(
            "table inet chaos {{\nchain in {{\ntype filter hook input priority 0;\n{input}}}\n"
        );
        // Without a need for it, connections are not tracked.
        if !output.is_empty() {
            script += &format!("chain out {{\ntype nat hook output priority -100;\n{output}}}\n");
        }
        script += "}\n";
    }
    script
}
