//! Those who do not belong: noise on the ports, a node of another cluster, a member that has forgotten everything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Nemesis, victim};
use crate::cluster::{client_addr, members};
use crate::dice::Dice;
use crate::network::{self, RAFT_PORT, addr};
use crate::sandbox;
use crate::trouble::{Fallible, Trouble, pass};
use crate::world::{STRANGER, World};

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Noise), Box::new(Stranger), Box::new(Wiped)]
}

struct Noise;

impl Nemesis for Noise {
    fn name(&self) -> &'static str {
        "noise"
    }

    fn about(&self) -> &'static str {
        "connections that send garbage, echo what they hear, say nothing or come in crowds, on all ports"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let ids = world.cluster().ids();
        let mut silent = Vec::new();
        for _ in 0..20 + dice.below(60) {
            let id = ids[dice.below(ids.len())];
            let raft = format!("{}:{RAFT_PORT}", addr(id));
            let raft: SocketAddr = raft.parse().expect("an address that was made here");
            let target = if dice.below(4) == 0 {
                client_addr(id)
            } else {
                raft
            };
            // A node may refuse to be knocked at so often.
            let patience = Duration::from_millis(500);
            let Ok(mut stream) = TcpStream::connect_timeout(&target, patience) else {
                continue;
            };
            let _ = stream.set_read_timeout(Some(Duration::from_millis(30)));
            let mut heard = vec![0; 4096];
            // What a node makes of these is its own affair: it may hang up in the middle.
            let _ = match dice.below(5) {
                0 => {
                    let count = 1 + dice.below(5000);
                    stream.write_all(&dice.bytes(count))
                }
                1 => stream.write_all(&[0xff; 4096]),
                2 => stream.write_all(b"*1000000000\r\n$9999999999\r\nGET / HTTP/1.1\r\n\r\n"),
                3 => {
                    // Its own greeting, once as it is, and then damaged.
                    let count = stream.read(&mut heard).unwrap_or(0);
                    let whole = stream.write_all(&heard[..count]);
                    if count > 0 {
                        heard[dice.below(count)] ^= 1 << dice.below(8);
                    }
                    whole.and_then(|()| stream.write_all(&heard[..count]))
                }
                _ => Ok(()),
            };
            if dice.flip() {
                silent.push(stream);
            }
            pass(dice.millis(0, 20))?;
        }
        pass(dice.millis(0, 300))
    }
}

/// A node of another cluster, that takes members of this one for its own.
struct Stranger;

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may have ended by itself.
        let _ = self.0.wait();
    }
}

impl Nemesis for Stranger {
    fn name(&self) -> &'static str {
        "stranger"
    }

    fn about(&self) -> &'static str {
        "a node of another cluster that takes two of these for its members"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let mut known = world.cluster().ids();
        dice.shuffle(&mut known);
        known.truncate(2);
        known.push(STRANGER);
        known.sort_unstable();
        let place = world.place();
        let number = dice.next();
        let log = std::fs::File::create(place.join(format!("stranger-{number}.log")))?;
        let mut command: Command = network::on(STRANGER);
        command.arg(sandbox::server()).arg("serve");
        command.args(["--id", &STRANGER.to_string(), "--members", &members(&known)]);
        command
            .arg("--data")
            .arg(place.join(format!("stranger-{number}")));
        command.args([
            "--election-timeout",
            "300ms",
            "--segment-mib",
            "4",
            "--log",
            "info",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let stranger = Guard(command.spawn()?);
        pass(dice.millis(800, 2000))?;
        let leads = crate::cluster::face(STRANGER).is_some_and(|face| face.leads);
        drop(stranger);
        if leads {
            let text = "a node of another cluster has been voted for".to_owned();
            return Err(Trouble::Found(text));
        }
        Ok(())
    }
}

/// A member that comes back without its directory has promised things it does not know of. The others refuse it.
struct Wiped;

impl Nemesis for Wiped {
    fn name(&self) -> &'static str {
        "wiped"
    }

    fn about(&self) -> &'static str {
        "a node starts with an empty directory, and later with its own again"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        let (own, number) = (world.disks.data(id), dice.next());
        let empty = world.place().join(format!("empty-{number}"));
        let cluster = world.cluster();
        cluster.kill(id)?;
        cluster.set_data(id, empty);
        cluster.start_one(id)?;
        pass(dice.millis(300, 1500))?;
        // It may have ended by itself: nobody wants it.
        let _ = cluster.ended(id)?;
        cluster.kill(id)?;
        cluster.set_data(id, own);
        cluster.start_one(id)
    }
}
