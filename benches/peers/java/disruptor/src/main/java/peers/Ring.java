package peers;

import com.lmax.disruptor.BusySpinWaitStrategy;
import com.lmax.disruptor.EventHandler;
import com.lmax.disruptor.RingBuffer;
import com.lmax.disruptor.dsl.Disruptor;
import com.lmax.disruptor.dsl.ProducerType;
import com.lmax.disruptor.util.DaemonThreadFactory;
import java.util.Locale;

/**
 * LMAX's disruptor: one producer streams longs in bursts to one spinning consumer.
 *
 * <p>A burst is one claim of as many slots. The consumer adds up what it gets, and the sum is compared.
 */
public final class Ring {
    private static final int CAPACITY = 1024;

    private static final class Slot {
        long value;
    }

    private static final class Sum implements EventHandler<Slot> {
        long sum;
        volatile long seen = -1;

        @Override
        public void onEvent(Slot slot, long sequence, boolean endOfBatch) {
            sum += slot.value;
            if (endOfBatch) {
                seen = sequence;
            }
        }
    }

    public static void main(String[] args) {
        int burst = Integer.parseInt(args[0]);
        double seconds = Double.parseDouble(args[1]);
        Disruptor<Slot> disruptor = new Disruptor<>(
                Slot::new, CAPACITY, DaemonThreadFactory.INSTANCE, ProducerType.SINGLE, new BusySpinWaitStrategy());
        Sum reader = new Sum();
        disruptor.handleEventsWith(reader);
        RingBuffer<Slot> ring = disruptor.start();
        // The virtual machine compiles as it goes; what it does in the first seconds is not measured.
        stream(ring, reader, burst, 3);
        double perSecond = stream(ring, reader, burst, seconds);
        disruptor.shutdown();
        long sent = ring.getCursor() + 1;
        if (reader.sum != sent * (sent - 1) / 2) {
            throw new IllegalStateException("the reader got " + reader.sum + " from " + sent + " slots");
        }
        System.out.printf(Locale.ROOT, "{\"ops_per_s\": %.0f}%n", perSecond);
    }

    private static double stream(RingBuffer<Slot> ring, Sum reader, int burst, double seconds) {
        long start = System.nanoTime();
        long end = start + (long) (seconds * 1e9);
        long from = ring.getCursor();
        long last = from;
        while (System.nanoTime() < end) {
            // The clock is looked at once in a while.
            for (int i = 0; i < 4096 / burst; i++) {
                last = ring.next(burst);
                for (long sequence = last - burst + 1; sequence <= last; sequence++) {
                    ring.get(sequence).value = sequence;
                }
                ring.publish(last - burst + 1, last);
            }
        }
        while (reader.seen < last) {
            Thread.onSpinWait();
        }
        return (last - from) / ((System.nanoTime() - start) / 1e9);
    }
}
