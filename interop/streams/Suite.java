import java.time.Duration;
import java.util.*;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.state.Stores;

/** Kafka Streams with exactly_once_v2: counts by key while threads die. Usage: java -cp JARS Suite.java BOOTSTRAP */
public class Suite {
    static final int KEYS = 10, EACH = 100;
    static final Set<String> BAD = Set.of("v77", "v333", "v777");
    static String bootstrap;

    static Properties config(Object... pairs) {
        var config = new Properties();
        config.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) config.put(pairs[i], pairs[i + 1]);
        return config;
    }

    /** Counts what comes, by key; throws at bad moments, once at each. */
    static KafkaStreams app(String id, String from, String to, Set<String> thrown) {
        var builder = new StreamsBuilder();
        builder.<String, String>stream(from)
            .peek((key, value) -> {
                if (BAD.contains(value) && thrown.add(value)) throw new IllegalStateException("a bad moment");
            })
            .groupByKey()
            .count(Materialized.<String, Long>as(Stores.inMemoryKeyValueStore("counts")).withValueSerde(Serdes.Long()))
            .toStream().mapValues(String::valueOf).to(to);
        var streams = new KafkaStreams(builder.build(), config("application.id", id,
            "processing.guarantee", "exactly_once_v2", "commit.interval.ms", 100, "num.stream.threads", 2,
            "statestore.cache.max.bytes", 0, "default.key.serde", Serdes.StringSerde.class,
            "default.value.serde", Serdes.StringSerde.class, "replication.factor", 1,
            "state.dir", System.getProperty("java.io.tmpdir") + "/" + id, "consumer.session.timeout.ms", 6000,
            "consumer.heartbeat.interval.ms", 500));
        streams.setUncaughtExceptionHandler(e -> {
            for (Throwable cause = e; cause != null; cause = cause.getCause()) {
                if ("a bad moment".equals(cause.getMessage())) return StreamThreadExceptionResponse.REPLACE_THREAD;
            }
            e.printStackTrace(System.out);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        return streams;
    }

    static void run() throws Exception {
        String id = "streams-" + UUID.randomUUID().toString().substring(0, 8), from = id + "-in", to = id + "-out";
        try (var admin = Admin.create(config())) {
            admin.createTopics(List.of(new NewTopic(from, 2, (short) 1), new NewTopic(to, 2, (short) 1))).all().get();
        }
        Set<String> thrown = ConcurrentHashMap.newKeySet();
        var first = app(id, from, to, thrown);
        first.start();
        Map<String, List<Integer>> counts = new TreeMap<>();
        try (var producer = new KafkaProducer<>(config(), new StringSerializer(), new StringSerializer());
             var consumer = new KafkaConsumer<>(config("group.id", id + "-reader", "auto.offset.reset", "earliest",
                 "isolation.level", "read_committed"), new StringDeserializer(), new StringDeserializer())) {
            for (int i = 0; i < KEYS * EACH / 2; i++) producer.send(new ProducerRecord<>(from, "k" + i % KEYS, "v" + i));
            producer.flush();
            consumer.subscribe(List.of(to));
            read(consumer, counts, KEYS * EACH / 4);
            // The first instance goes in the middle of it, and another one carries on.
            first.close(Duration.ofSeconds(20));
            var second = app(id, from, to, thrown);
            second.start();
            for (int i = KEYS * EACH / 2; i < KEYS * EACH; i++) {
                producer.send(new ProducerRecord<>(from, "k" + i % KEYS, "v" + i));
            }
            producer.flush();
            read(consumer, counts, KEYS * EACH);
            consumer.poll(Duration.ofMillis(500)).forEach(r -> add(counts, r));
            second.close(Duration.ofSeconds(20));
        }
        if (!thrown.equals(BAD)) throw new AssertionError("thrown: " + thrown);
        for (int k = 0; k < KEYS; k++) {
            var seen = counts.get("k" + k);
            for (int i = 0; i < EACH; i++) {
                if (seen.size() != EACH || seen.get(i) != i + 1) throw new AssertionError("k" + k + ": " + seen);
            }
        }
    }

    static void add(Map<String, List<Integer>> counts, ConsumerRecord<String, String> record) {
        counts.computeIfAbsent(record.key(), k -> new ArrayList<>()).add(Integer.parseInt(record.value()));
    }

    static void read(KafkaConsumer<String, String> consumer, Map<String, List<Integer>> counts, int count) {
        long end = System.currentTimeMillis() + 90_000;
        while (counts.values().stream().mapToInt(List::size).sum() < count) {
            if (System.currentTimeMillis() > end) throw new AssertionError("it took too long: " + counts);
            consumer.poll(Duration.ofMillis(100)).forEach(r -> add(counts, r));
        }
    }

    public static void main(String[] args) {
        bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        // Threads that die have told the application why.
        Thread.setDefaultUncaughtExceptionHandler((thread, e) -> { });
        boolean good = false;
        try {
            run();
            good = true;
        } catch (Throwable e) {
            System.out.println("FAILED exactly once");
            e.printStackTrace(System.out);
        }
        System.out.println(good ? "1 passed, 0 failed" : "0 passed, 1 failed");
        System.exit(good ? 0 : 1);
    }
}
