//! The whole of an embedding: a replicated sum, as a group of one in a temporary directory.

use std::io;
use std::time::Duration;

use ringraft::{Batch, Config, Consistency, Member, Node, NodeId, StateMachine};

#[derive(Default)]
struct Sum(i64);

impl StateMachine for Sum {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            self.0 += entry.command.try_into().map_or(0, i64::from_le_bytes);
            reply.extend_from_slice(&self.0.to_le_bytes());
        }
        Ok(())
    }
    fn query(&self, _query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.0.to_le_bytes());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let members = vec![Member {
        id: NodeId(1),
        addr: "127.0.0.1:7100".into(),
    }];
    let node = Node::start(Config::new(NodeId(1), dir.path(), members), Sum::default())?;
    node.wait_for_leader(Duration::from_secs(10))
        .ok_or("no leader within 10 s")?;
    let reply = node.propose(&5i64.to_le_bytes())?.wait()?; // Durable on a majority, and applied.
    let read = node.read(b"", Consistency::Linearizable)?.wait()?;
    println!("sum {:?} at index {}", read.bytes, reply.index);
    Ok(node.shutdown()?)
}
