//! What a flush takes when all nodes' logs are on one disk.

use std::io;
use std::path::Path;
use std::time::Duration;

/// The disk's own flush, p50, while `nodes` threads make theirs at once, each in a folder of its own below `dir`: their mean.
pub fn of_all(dir: &Path, nodes: u32) -> io::Result<Duration> {
    let floors: io::Result<Vec<Duration>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..nodes)
            .map(|id| {
                scope.spawn(move || {
                    let dir = dir.join(format!("floor-{id}"));
                    std::fs::create_dir_all(&dir)?;
                    storage::flush_floor(dir, 1000)
                })
            })
            .collect();
        let floors = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        floors.collect()
    });
    Ok(floors?.iter().sum::<Duration>() / nodes)
}
