package peers;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Version;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.ZooKeeper;

/** Sets one node's data in a ZooKeeper ensemble that is running, over one session, asynchronously. */
public final class ZooKeeperLoad {
    public static void main(String[] args) throws Exception {
        Load load = new Load(args);
        CountDownLatch connected = new CountDownLatch(1);
        ZooKeeper client = new ZooKeeper(load.required("server"), 30_000, event -> {
            if (event.getState() == Watcher.Event.KeeperState.SyncConnected) {
                connected.countDown();
            }
        });
        if (!connected.await(30, TimeUnit.SECONDS)) {
            throw new IllegalStateException("not connected to " + load.required("server") + " after 30 s");
        }
        byte[] data = new byte[load.payload];
        client.create("/load", data, ZooDefs.Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        load.run(Version.getVersion(), operation -> client.setData("/load", data, -1, (code, path, context, stat) -> {
            if (code == KeeperException.Code.OK.intValue()) {
                operation.succeeded();
            } else {
                operation.failed();
            }
        }, null));
        client.close();
    }
}
