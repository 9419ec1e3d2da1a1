package peers;

import org.rocksdb.Options;
import org.rocksdb.RocksDB;
import org.rocksdb.RocksDBException;
import org.rocksdb.WriteBatch;
import org.rocksdb.WriteOptions;

/**
 * RocksDB as a log: batches of entries under growing keys, each batch one synchronous write.
 *
 * <p>Its defaults; an operation is a batch.
 */
public final class RocksDbWal {
    public static void main(String[] args) throws Exception {
        Load load = new Load(args);
        int batch = Integer.parseInt(load.required("batch"));
        byte[] payload = new byte[load.payload];
        byte[] key = new byte[8];
        long[] index = {0};
        try (Options options = new Options().setCreateIfMissing(true);
                RocksDB db = RocksDB.open(options, load.required("data"));
                WriteOptions durable = new WriteOptions().setSync(true);
                WriteBatch entries = new WriteBatch()) {
            load.runInTurn(RocksDB.rocksdbVersion().toString(), () -> {
                entries.clear();
                try {
                    for (int i = 0; i < batch; i++) {
                        long next = index[0]++;
                        for (int b = 0; b < 8; b++) {
                            key[b] = (byte) (next >>> (56 - 8 * b));
                        }
                        entries.put(key, payload);
                    }
                    db.write(durable, entries);
                } catch (RocksDBException e) {
                    throw new IllegalStateException(e);
                }
            });
        }
    }
}
