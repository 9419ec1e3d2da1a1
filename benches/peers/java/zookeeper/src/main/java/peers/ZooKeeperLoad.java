package peers;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Version;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.ZooKeeper;

/**
 * Sets one node's data in a ZooKeeper ensemble that is running, asynchronously.
 *
 * <p>A session for every 64 operations in flight, up to 16, taken in turns: with all on one, its connection is
 * the limit and not the ensemble.
 */
public final class ZooKeeperLoad {
    private static final int PER_SESSION = 64;
    // A server takes 60 from one address.
    private static final int MOST_SESSIONS = 16;

    public static void main(String[] args) throws Exception {
        Load load = new Load(args);
        List<ZooKeeper> sessions = new ArrayList<>();
        int count = Math.min(MOST_SESSIONS, (load.inflight + PER_SESSION - 1) / PER_SESSION);
        for (int i = 0; i < count; i++) {
            sessions.add(connect(load.required("server")));
        }
        byte[] data = new byte[load.payload];
        sessions.get(0).create("/load", data, ZooDefs.Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        // Touched by the thread that starts operations only.
        int[] turn = {0};
        load.run(Version.getVersion(), operation -> {
            turn[0] = (turn[0] + 1) % sessions.size();
            sessions.get(turn[0]).setData("/load", data, -1, (code, path, context, stat) -> {
                if (code == KeeperException.Code.OK.intValue()) {
                    operation.succeeded();
                } else {
                    operation.failed();
                }
            }, null);
        });
        for (ZooKeeper session : sessions) {
            session.close();
        }
    }

    private static ZooKeeper connect(String server) throws Exception {
        CountDownLatch connected = new CountDownLatch(1);
        ZooKeeper client = new ZooKeeper(server, 30_000, event -> {
            if (event.getState() == Watcher.Event.KeeperState.SyncConnected) {
                connected.countDown();
            }
        });
        if (!connected.await(30, TimeUnit.SECONDS)) {
            throw new IllegalStateException("not connected to " + server + " after 30 s");
        }
        return client;
    }
}
