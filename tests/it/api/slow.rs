//! A state machine that takes its time.

use super::*;

/// Takes a millisecond for each command, and notes how many each call of `apply` brought.
struct Slow(Arc<Mutex<Vec<usize>>>);

impl StateMachine for Slow {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let mut count = 0;
        while batch.next().is_some() {
            std::thread::sleep(Duration::from_millis(1));
            count += 1;
        }
        self.0.lock().expect("nobody panics with it").push(count);
        Ok(())
    }

    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
}

/// While it works nothing else happens on a thread that all stages share: were it given all that is committed, 600
/// milliseconds would go by without a heartbeat.
#[test]
fn a_slow_state_machine_gets_little_at_a_time_however_much_is_committed() {
    let dir = TempDir::new().expect("a temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let member = Member {
        id: NodeId(1),
        addr: listener.local_addr().expect("bound").to_string(),
    };
    let config = Config {
        segment_bytes: 1 << 20,
        max_entry_bytes: MAX_ENTRY,
        threads: Threads::Shared,
        ..Config::new(NodeId(1), dir.path(), vec![member])
    };
    let calls = Arc::new(Mutex::new(Vec::new()));
    let node = Node::start_on(listener, config, Slow(calls.clone())).expect("the node starts");
    node.wait_for_leader(DEADLINE).expect("it elects itself");
    let proposed: Vec<Pending> = (0..600)
        .map(|_| node.propose(b"takes long").expect("there is room"))
        .collect();
    for pending in proposed {
        pending.wait().expect("an undisturbed node commits");
    }
    let calls = calls.lock().expect("nobody panics with it").clone();
    assert_eq!(calls.iter().sum::<usize>(), 600);
    let most = calls.into_iter().max().expect("there were some");
    assert!(most <= 64, "one call brought {most} commands");
    node.shutdown().expect("it leaves in order");
}
