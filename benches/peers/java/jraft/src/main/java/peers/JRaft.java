package peers;

import com.alipay.sofa.jraft.Iterator;
import com.alipay.sofa.jraft.Node;
import com.alipay.sofa.jraft.RaftGroupService;
import com.alipay.sofa.jraft.Status;
import com.alipay.sofa.jraft.conf.Configuration;
import com.alipay.sofa.jraft.core.StateMachineAdapter;
import com.alipay.sofa.jraft.entity.PeerId;
import com.alipay.sofa.jraft.entity.Task;
import com.alipay.sofa.jraft.option.NodeOptions;
import java.io.File;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * Three SOFAJRaft nodes in this process, one group over loopback, under load on its leader.
 *
 * <p>Options are its defaults: the log in RocksDB, {@code sync} on, batches of 32 at the disruptors.
 * No snapshots, as the run is short.
 */
public final class JRaft {
    /** Counts the tasks that it is given. */
    private static final class Counter extends StateMachineAdapter {
        private long count;

        @Override
        public void onApply(Iterator entries) {
            while (entries.hasNext()) {
                count++;
                if (entries.done() != null) {
                    entries.done().run(Status.OK());
                }
                entries.next();
            }
        }
    }

    public static void main(String[] args) throws Exception {
        Load load = new Load(args);
        List<Node> nodes = start(load.required("data"));
        Node leader = leader(nodes);
        byte[] payload = new byte[load.payload];
        load.run(JRaft.class.getClassLoader().getResource("com/alipay/sofa/jraft/Node.class").getPath()
                .replaceAll(".*jraft-core-(.*)\\.jar.*", "$1"), operation -> {
            Task task = new Task(ByteBuffer.wrap(payload), status -> {
                if (status.isOk()) {
                    operation.succeeded();
                } else {
                    operation.failed();
                }
            });
            leader.apply(task);
        });
        // The report is out; its orderly way down takes seconds and is nobody's figure.
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    private static List<Node> start(String data) throws IOException {
        List<PeerId> peers = new ArrayList<>();
        List<ServerSocket> taken = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            // A port that is free now; another process may take it in between, and then the start fails and says so.
            ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
            taken.add(socket);
            peers.add(new PeerId("127.0.0.1", socket.getLocalPort()));
        }
        for (ServerSocket socket : taken) {
            socket.close();
        }
        Configuration members = new Configuration(peers);
        List<Node> nodes = new ArrayList<>();
        for (PeerId peer : peers) {
            File dir = new File(data, "node-" + peer.getPort());
            if (!dir.mkdirs()) {
                throw new IOException("making " + dir);
            }
            NodeOptions options = new NodeOptions();
            options.setFsm(new Counter());
            options.setInitialConf(members);
            options.setLogUri(dir + "/log");
            options.setRaftMetaUri(dir + "/meta");
            nodes.add(new RaftGroupService("load", peer, options).start());
        }
        return nodes;
    }

    private static Node leader(List<Node> nodes) throws InterruptedException {
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (System.nanoTime() < deadline) {
            for (Node node : nodes) {
                if (node.isLeader()) {
                    return node;
                }
            }
            Thread.sleep(10);
        }
        throw new IllegalStateException("no leader after 30 s");
    }
}
