//! The state machine of benchmarks: as little as one can be, with snapshots, so that the log is let go of as a service's is.

use std::io;

use ringraft::{Batch, SnapshotWriter, StateMachine};

/// Counts what it is given; answers with the count.
#[derive(Debug, Default)]
pub struct Count(u64);

impl StateMachine for Count {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            self.0 += 1;
            if entry.local {
                reply.extend_from_slice(&self.0.to_le_bytes());
            }
        }
        Ok(())
    }

    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.0.to_le_bytes());
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let count = self.0.to_le_bytes();
        Ok(Box::new(move |to| to.write_all(&count)))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut count = [0; 8];
        from.read_exact(&mut count)?;
        self.0 = u64::from_le_bytes(count);
        Ok(())
    }
}
