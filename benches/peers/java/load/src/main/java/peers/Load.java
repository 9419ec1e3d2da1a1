package peers;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import org.HdrHistogram.ConcurrentHistogram;

/**
 * Keeps a number of operations in flight for a time and reports what came of it, in the same form as
 * every driver here: one JSON object on one line.
 *
 * <p>One thread starts the operations; what ends them calls back from any thread. An operation counts
 * when it both ends within the measured window and succeeds. CPU time is that of this process and of
 * those named by {@code --cpu-of}, read at the window's two ends.
 */
public final class Load {
    public final int inflight;
    public final int payload;
    public final double seconds;
    public final double warm;
    private final Map<String, String> options = new HashMap<>();
    private final List<Long> cpuOf = new ArrayList<>();

    private final ConcurrentHistogram latency = new ConcurrentHistogram(1, 60_000_000_000L, 3);
    private final AtomicLong failed = new AtomicLong();
    private final Semaphore free;
    private volatile boolean measuring;
    private volatile boolean stopping;

    /** {@code --name value} pairs; those of the load have defaults. */
    public Load(String[] args) {
        for (int i = 0; i < args.length; i += 2) {
            if (!args[i].startsWith("--") || i + 1 == args.length) {
                throw new IllegalArgumentException("not --name value: " + args[i]);
            }
            options.put(args[i].substring(2), args[i + 1]);
        }
        inflight = Integer.parseInt(options.getOrDefault("inflight", "1"));
        payload = Integer.parseInt(options.getOrDefault("payload", "16"));
        seconds = Double.parseDouble(options.getOrDefault("seconds", "5"));
        // A virtual machine compiles as it goes. On two cores, which nodes and load share, 5 s are not enough: ZooKeeper did
        // 2.6 times as much after 25 s.
        warm = Double.parseDouble(options.getOrDefault("warm", "20"));
        for (String pid : options.getOrDefault("cpu-of", "").split(",")) {
            if (!pid.isEmpty()) {
                cpuOf.add(Long.parseLong(pid));
            }
        }
        free = new Semaphore(inflight);
    }

    public String required(String name) {
        String value = options.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return value;
    }

    /** One operation that was started. */
    public final class Operation {
        private final long since = System.nanoTime();

        public void succeeded() {
            if (measuring) {
                latency.recordValue(System.nanoTime() - since);
            }
            free.release();
        }

        public void failed() {
            failed.incrementAndGet();
            free.release();
        }
    }

    /** Calls {@code start} with a new operation as long as fewer than {@code inflight} are under way. */
    public void run(String version, Consumer<Operation> start) throws Exception {
        Thread window = new Thread(() -> window(version));
        window.start();
        while (!stopping) {
            free.acquire();
            start.accept(new Operation());
        }
        free.acquire(inflight);
        window.join();
    }

    /** The same for operations that end before the call returns; the caller is the only thread. */
    public void runInTurn(String version, Runnable operation) throws Exception {
        run(version, started -> {
            operation.run();
            started.succeeded();
        });
    }

    private void window(String version) {
        sleep(warm);
        failed.set(0);
        double cpu = cpuSeconds();
        long start = System.nanoTime();
        measuring = true;
        sleep(seconds);
        measuring = false;
        double took = (System.nanoTime() - start) / 1e9;
        cpu = cpuSeconds() - cpu;
        stopping = true;
        long done = latency.getTotalCount();
        if (done == 0) {
            System.err.println("no operation succeeded; " + failed.get() + " failed");
            System.exit(1);
        }
        System.out.printf(
                Locale.ROOT,
                "{\"ops_per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
                        + "\"cpu_s_per_1k_ops\": %.6f, \"failed\": %d, \"version\": \"%s\"}%n",
                done / took,
                latency.getValueAtPercentile(50) / 1e3,
                latency.getValueAtPercentile(99) / 1e3,
                latency.getValueAtPercentile(99.9) / 1e3,
                cpu / done * 1e3,
                failed.get(),
                version);
    }

    private static void sleep(double seconds) {
        long end = System.nanoTime() + (long) (seconds * 1e9);
        for (long left; (left = end - System.nanoTime()) > 0; ) {
            LockSupport.parkNanos(left);
        }
    }

    private double cpuSeconds() {
        double total = 0;
        List<Long> all = new ArrayList<>(cpuOf);
        all.add(ProcessHandle.current().pid());
        for (long pid : all) {
            try {
                String stat = Files.readString(Path.of("/proc/" + pid + "/stat"));
                // The name, in brackets, may hold spaces; the 12th and 13th field after it are user and system time.
                String[] fields = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
                total += (Long.parseLong(fields[11]) + Long.parseLong(fields[12])) / 100.0;
            } catch (IOException e) {
                throw new IllegalStateException("the CPU time of process " + pid, e);
            }
        }
        return total;
    }
}
